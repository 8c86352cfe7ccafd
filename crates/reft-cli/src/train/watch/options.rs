use reft_core::{LARGEST_COUNT, Texts, declare_options};

declare_options! {
    /// Options of the files to look at while a run goes on. They change no number.
    pub struct WatchOptions {
        /// Write replies to this prompt, by the base model and again during training; give it several times for several prompts
        #[serde(skip_serializing_if = "is_none")]
        sample_prompt: Texts = Texts::default(), Texts("TEXT") in "Watching";
        /// Steps between replies to sample prompts; 0 = after every epoch
        sample_every: usize = 0, Count("N") in "Watching" if |n: usize| n <= LARGEST_COUNT, "a whole number of at most 1,000,000,000";
        /// Tokens of a reply to a sample prompt
        sample_tokens: usize = 64, Count("N") in "Watching"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// Also write the metrics in this form: tensorboard (event files in the output directory)
        #[serde(skip_serializing_if = "Option::is_none")]
        log: Option<Log> = None, Text("FORMAT") in "Watching";
    }
}

fn is_none(texts: &Texts) -> bool {
    texts.0.is_empty()
}

/// A form of metrics that other programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Event files of TensorBoard.
    Tensorboard,
}

reft_core::names!(Log, "log", reft_core::Error, { Tensorboard => "tensorboard" });
