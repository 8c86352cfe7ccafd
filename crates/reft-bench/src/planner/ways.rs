use reft_models::WeightStorage;

use crate::precision::Precision;
use crate::timing::TimingCase;

/// A case in another way, and the flags of `reft train` that change it.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// The flags; empty: as asked for.
    pub flags: String,
    /// The case with them.
    pub case: TimingCase,
}

/// Ways to compute the same training in less memory, the ones that cost least first; the first is the case itself.
pub fn ways(case: &TimingCase) -> Vec<Way> {
    let checkpointed = |way: &Way| Way {
        flags: joined(&way.flags, "--checkpoint-activations"),
        case: TimingCase { checkpoint_activations: true, ..way.case.clone() },
    };
    let in_bf16 = |way: &Way| Way {
        flags: joined(&way.flags, "--kind bf16"),
        case: TimingCase { kind: Precision::Bf16, ..way.case.clone() },
    };
    let row_by_row = |way: &Way| Way {
        flags: joined(&way.flags, &format!("--batch-size 1 --grad-accum {}", case.batch_size)),
        case: TimingCase { batch_size: 1, ..way.case.clone() },
    };
    let asked = Way { flags: String::new(), case: case.clone() };
    let mut ways = vec![asked];
    let mut add = |applies: bool, change: &dyn Fn(&Way) -> Way| {
        if applies {
            let changed: Vec<Way> = ways.iter().map(change).collect();
            ways.extend(changed);
        }
    };
    add(!case.checkpoint_activations, &checkpointed);
    add(case.batch_size > 1, &row_by_row);
    add(case.kind == Precision::F32, &in_bf16);
    if case.weights == WeightStorage::Dense {
        let packed = |(flag, weights): (&str, WeightStorage)| {
            let case = TimingCase { weights, ..case.clone() };
            row_by_row(&Way { flags: format!("--weights {flag}"), case })
        };
        ways.extend([("int8", WeightStorage::Int8), ("int4", WeightStorage::Int4)].map(packed));
    }
    ways
}

fn joined(flags: &str, more: &str) -> String {
    format!("{flags} {more}").trim_start().to_owned()
}
