//! The configurations that are timed on both sides.

use serde_json::{Value, json};

/// One method on batches of one shape.
#[derive(Debug, Clone, Copy)]
pub struct Configuration {
    /// The value that `--only` takes.
    pub name: &'static str,
    /// The text in the table.
    pub title: &'static str,
    method: &'static str,
    /// `None`: all.
    layers: Option<&'static [usize]>,
    rank: usize,
    /// First and last prompt tokens edited.
    positions: (usize, usize),
    /// `None`: all seven.
    target_modules: Option<&'static [&'static str]>,
    batch_size: usize,
    kind: &'static str,
    /// Tokens to generate; 0: training steps are timed.
    pub new_tokens: usize,
}

const PROMPT_LENGTH: usize = 120;
const RESPONSE_LENGTH: usize = 8;
const VIRTUAL_TOKENS: usize = 20;

const LORA: Configuration = Configuration {
    name: "lora-qv",
    title: "LoRA q,v r8",
    method: "lora",
    layers: None,
    rank: 8,
    positions: (7, 7),
    target_modules: Some(&["q_proj", "v_proj"]),
    batch_size: 8,
    kind: "f32",
    new_tokens: 0,
};

const LORA_ALL: Configuration = Configuration {
    name: "lora-all",
    title: "LoRA all seven projections r8",
    target_modules: None,
    ..LORA
};

const LOREFT: Configuration = Configuration {
    name: "loreft-f7l7",
    title: "LoReFT all layers r8 f7+l7 tied",
    method: "loreft",
    ..LORA_ALL
};

/// All of them, in the table's order.
pub const CONFIGURATIONS: [Configuration; 14] = [
    Configuration {
        name: "floor",
        title: "frozen floor: gradient to embeddings, logits at labels",
        method: "floor",
        ..LORA_ALL
    },
    LOREFT,
    Configuration { name: "loreft-f7l7-bf16", title: "the same in bf16", kind: "bf16", ..LOREFT },
    Configuration {
        name: "loreft-l1",
        title: "LoReFT all layers r8 l1",
        positions: (0, 1),
        ..LOREFT
    },
    Configuration {
        name: "loreft-l7",
        title: "LoReFT all layers r8 l7",
        positions: (0, 7),
        ..LOREFT
    },
    Configuration {
        name: "loreft-4-layers",
        title: "LoReFT layers 3;9;18;24 r8 f5+l5 tied",
        layers: Some(&[3, 9, 18, 24]),
        positions: (5, 5),
        ..LOREFT
    },
    Configuration {
        name: "emoji",
        title: "LoReFT layer 15 r4 l1, batch 10",
        layers: Some(&[15]),
        rank: 4,
        positions: (0, 1),
        batch_size: 10,
        ..LOREFT
    },
    LORA,
    LORA_ALL,
    Configuration { name: "prefix", title: "prefix tuning 20", method: "prefix", ..LORA_ALL },
    Configuration { name: "prompt", title: "prompt tuning 20", method: "prompt", ..LORA_ALL },
    Configuration { name: "full", title: "full fine-tuning", method: "full", ..LORA_ALL },
    Configuration {
        name: "generate",
        title: "generation with LoReFT f7+l7, batch 1, 64 new tokens",
        batch_size: 1,
        new_tokens: 64,
        ..LOREFT
    },
    Configuration {
        name: "generate-base",
        title: "generation with the base model, batch 1, 64 new tokens",
        method: "floor",
        batch_size: 1,
        new_tokens: 64,
        ..LORA_ALL
    },
];

impl Configuration {
    /// Whether the rival is pyreft, which works with older packages only.
    pub fn needs_pyreft(&self) -> bool {
        self.method == "loreft"
    }

    /// The flags of `reft bench` for one turn.
    pub fn flags(&self, steps: usize, threads: usize) -> Vec<String> {
        let (first, last) = self.positions;
        let positions = match first {
            0 => format!("l{last}"),
            _ => format!("f{first}+l{last}"),
        };
        let layers = self
            .layers
            .map(|layers| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(";"));
        let flags = [
            ("--methods", self.method.to_owned()),
            ("--layers", layers.unwrap_or_else(|| "all".to_owned())),
            ("--rank", self.rank.to_string()),
            ("--positions", positions),
            ("--n-virtual-tokens", VIRTUAL_TOKENS.to_string()),
            ("--batch-size", self.batch_size.to_string()),
            ("--prompt-length", PROMPT_LENGTH.to_string()),
            ("--response-length", RESPONSE_LENGTH.to_string()),
            ("--kind", self.kind.to_owned()),
            ("--generate", self.new_tokens.to_string()),
            ("--steps", if self.new_tokens > 0 { 1 } else { steps }.to_string()),
            ("--rounds", "1".to_owned()),
            ("--threads", threads.to_string()),
            ("--device", "cpu".to_owned()),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let modules = self.target_modules.into_iter();
        let modules = modules.flat_map(|names| ["--target-modules".to_owned(), names.join(",")]);
        flags.chain(modules).chain(["--share-weights".to_owned()]).collect()
    }

    /// The configuration for the scripts in `tools/rivals`.
    pub fn case(&self, steps: usize) -> Value {
        json!({
            "method": self.method,
            "layers": self.layers,
            "rank": self.rank,
            "first": self.positions.0,
            "last": self.positions.1,
            "target_modules": self.target_modules,
            "n_virtual_tokens": VIRTUAL_TOKENS,
            "batch_size": self.batch_size,
            "prompt_length": PROMPT_LENGTH,
            "response_length": RESPONSE_LENGTH,
            "steps": steps,
            "kind": self.kind,
            "new_tokens": self.new_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn both_sides_are_told_the_same() {
        let names: HashSet<&str> = CONFIGURATIONS.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), CONFIGURATIONS.len());
        let find = |name: &str| CONFIGURATIONS.iter().find(|one| one.name == name);
        let emoji = find("emoji").expect("there is one");
        let flags = emoji.flags(3, 2).join(" ");
        for part in
            ["--layers 15 ", "--rank 4 ", "--positions l1 ", "--batch-size 10 ", "--steps 3 "]
        {
            assert!(flags.contains(part), "{part} is not in {flags}");
        }
        let case = emoji.case(3);
        assert_eq!((&case["layers"], &case["rank"]), (&json!([15]), &json!(4)));
        assert_eq!((&case["first"], &case["last"]), (&json!(0), &json!(1)));
        let qv = find("lora-qv").expect("there is one");
        assert!(qv.flags(3, 2).join(" ").contains("--target-modules q_proj,v_proj"));
        assert_eq!(qv.case(3)["target_modules"], json!(["q_proj", "v_proj"]));
    }
}
