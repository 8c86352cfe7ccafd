use std::path::{Path, PathBuf};

use reft_train::Example;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::compare::leakage::Leakage;

/// What the data are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Rows trained on.
    pub train: PartFacts,
    /// Rows that rates are chosen on.
    pub validation: PartFacts,
    /// Rows tested on, one part per file.
    pub test: Vec<PartFacts>,
    /// Training examples longer than the maximum length, which are cut.
    pub cut: usize,
    /// Rows that stand in more than one part.
    pub leakage: Leakage,
    /// Windows and digest of the neutral text.
    pub neutral: Option<PartFacts>,
}

/// A part of the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFacts {
    /// The file.
    pub file: PathBuf,
    /// Rows of the file.
    pub available: usize,
    /// Rows used.
    pub used: usize,
    /// Tokens of the rows used, prompt and completion.
    pub tokens: usize,
    /// SHA-256 of their tokens and answers.
    pub digest: String,
}

impl PartFacts {
    /// The facts of examples, each with its right answer, that were drawn from the `available` rows of a file.
    pub(crate) fn of(file: &Path, available: usize, used: &[(&Example, &str)]) -> Self {
        let mut hasher = Sha256::new();
        for (example, answer) in used {
            let row = example.row();
            hasher.update((row.prompt_length as u64).to_le_bytes());
            hasher.update((row.input_ids.len() as u64).to_le_bytes());
            row.input_ids.iter().chain(example.labels()).for_each(|id| {
                hasher.update(id.to_le_bytes());
            });
            hasher.update((answer.len() as u64).to_le_bytes());
            hasher.update(answer);
        }
        Self {
            file: file.to_owned(),
            available,
            used: used.len(),
            tokens: used.iter().map(|(example, _)| example.row().input_ids.len()).sum(),
            digest: hex(&hasher.finalize()),
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
