use reft_core::{LARGEST_COUNT, declare_options};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

declare_options! {
    /// What is written while a run goes on. It changes no number.
    pub struct WatchOptions {
        /// Write the reply to this prompt, of the base model and as training goes on; several times for several prompts
        #[serde(skip_serializing_if = "Prompts::is_empty")]
        sample_prompt: Prompts = Prompts::default(), Texts("TEXT") in "Watching";
        /// Steps between replies to sample prompts; 0 = after every epoch
        sample_every: usize = 0, Count("N") in "Watching" if |n: usize| n <= LARGEST_COUNT, "a whole number of at most 1,000,000,000";
        /// Tokens of a reply to a sample prompt
        sample_tokens: usize = 64, Count("N") in "Watching"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// Write the metrics also as: tensorboard (event files beside the others)
        #[serde(skip_serializing_if = "Option::is_none")]
        log: Option<Log> = None, Text("FORMAT") in "Watching";
    }
}

/// Prompts, of which a file may give one as a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompts(pub Vec<String>);

impl Prompts {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Prompts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMore {
            One(String),
            More(Vec<String>),
        }
        Ok(Self(match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }))
    }
}

/// A form of metrics that other programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Event files of TensorBoard.
    Tensorboard,
}

reft_core::names!(Log, "log", reft_core::Error, { Tensorboard => "tensorboard" });
