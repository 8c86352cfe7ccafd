use reft_models::{ModelDescription, WeightStorage};

use crate::{Precision, TimingCase};

/// A variant of a case, and the flags of `reft train` that select it.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// The flags; empty for the case itself.
    pub flags: String,
    /// The case with them.
    pub case: TimingCase,
}

/// Variants of the same training that take less memory, the cheapest first; the first is the case itself. All pass [`TimingCase::check`].
pub fn ways(case: &TimingCase, model: &ModelDescription) -> Vec<Way> {
    let mut ways = vec![Way { flags: String::new(), case: case.clone() }];
    let row_by_row = format!("--batch-size 1 --grad-accum {}", case.batch_size);
    let mut add = |applies: bool, flags: &str, change: fn(&mut TimingCase)| {
        if applies {
            let changed: Vec<Way> = ways.iter().map(|way| way.with(flags, change)).collect();
            ways.extend(changed);
        }
    };
    add(!case.checkpoint_activations, "--checkpoint-activations", |case| {
        case.checkpoint_activations = true;
    });
    add(case.batch_size > 1, &row_by_row, |case| case.batch_size = 1);
    add(case.kind == Precision::F32, "--kind bf16", |case| case.kind = Precision::Bf16);
    if case.weights == WeightStorage::Dense {
        for weights in [WeightStorage::Int8, WeightStorage::Int4] {
            let packed = TimingCase { weights, ..case.clone() };
            let packed = Way { flags: format!("--weights {weights}"), case: packed };
            ways.push(packed.with(&row_by_row, |case| case.batch_size = 1));
        }
    }
    ways.retain(|way| way.case.check(model).is_ok());
    ways
}

impl Way {
    fn with(&self, flags: &str, change: fn(&mut TimingCase)) -> Self {
        let mut case = self.case.clone();
        change(&mut case);
        Self { flags: format!("{} {flags}", self.flags).trim_start().to_owned(), case }
    }
}
