//! Models whose tokens see later ones: only whole stages can be the frozen model's alone.

use reft_core::{MapKind, Method};
use reft_methods::{ReftAdapter, ReftConfig};
use reft_models::{Decoder, Forward, Head, Mode, Model, ModelDescription, Placement, Span, Weight};
use reft_train::{FrozenStore, ReuseConfig};
use tch::{Kind, Tensor};

use crate::tiny_llama::{TestResult, alone, config, decoder, examples, learner};

/// A decoder that says it is not causal.
struct NotCausal {
    decoder: Decoder,
    description: ModelDescription,
}

impl Model for NotCausal {
    fn description(&self) -> &ModelDescription {
        &self.description
    }

    fn kind(&self) -> Kind {
        self.decoder.kind()
    }

    fn placement(&self) -> &Placement {
        self.decoder.placement()
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        self.decoder.weights()
    }

    fn forward<'a>(&'a self, span: &Span<'a>, prefix_length: usize) -> Box<dyn Forward<'a> + 'a> {
        self.decoder.forward(span, prefix_length)
    }

    fn head(&self) -> Head {
        self.decoder.head()
    }

    fn trains_head(&self) -> bool {
        self.decoder.trains_head()
    }
}

#[test]
fn rows_are_whole_and_only_stages_are_cached() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let description = ModelDescription { is_causal: false, ..decoder.description().clone() };
    let model = NotCausal { decoder, description };
    let at_the_end = ReftConfig {
        positions: "l2".parse()?,
        ..config(&model.decoder, Method::Loreft, MapKind::Householder, 0.0) // at layers 1 and 3
    };
    let adapter = ReftAdapter::new(at_the_end, &model)?;
    let examples = examples(5);
    let (causal, not_causal) = (learner(&model.decoder, &adapter), learner(&model, &adapter));
    let bytes = |is_causal: bool| -> Result<_, Box<dyn std::error::Error>> {
        let learner = if is_causal { &causal } else { &not_causal };
        let batch = learner.batch(&examples)?;
        for (row, example) in batch.layout.rows().iter().zip(&examples) {
            let cut = usize::from(is_causal); // nothing is predicted from the last token
            assert_eq!(row.input_ids.len(), example.row().input_ids.len() - cut);
        }
        let mut store = FrozenStore::new(ReuseConfig::default());
        let loss = |sums: Vec<Tensor>| sums[0].double_value(&[]);
        let plain = loss(learner.sums(&batch, Mode::Eval, None)?);
        let cached = loss(learner.sums(&batch, Mode::Eval, Some(&mut store))?);
        assert!((plain - cached).abs() < 1e-6 * plain, "{plain} {cached}"); // f32, sums in another order
        Ok(store.bytes())
    };
    let tokens: usize = examples.iter().map(|example| example.row().input_ids.len()).sum();
    let size = 4 * model.description.hidden_size as u64; // a hidden state in f32
    assert_eq!(bytes(false)?, tokens as u64 * size); // the input of stage 2, for every token
    assert_ne!(bytes(true)?, (tokens - examples.len()) as u64 * size); // keys and values too
    Ok(())
}
