use reft_core::VanillaInterchange;
use reft_models::{
    AdapterStack, HookPoint, Hooks, Layout, Model, PaddingSide, Place, Row, Span, TokenAt, collect,
};
use reft_train::{Example, IGNORE_INDEX};
use tch::{Kind, Tensor};

use crate::patching::metric::Metric;
use crate::{BaseRuns, Error, Result, Swap};

/// Two prompts of equal length, the model that runs them, and the metric of the next token.
pub struct PromptPair<'a> {
    model: &'a dyn Model,
    runs: BaseRuns<'a>,
    base: Vec<i64>,
    source: Vec<i64>,
    metric: &'a Metric,
}

impl<'a> PromptPair<'a> {
    /// The pair of a base and a source.
    ///
    /// # Errors
    /// [`Error::Counterfactuals`] unless both prompts have the same number of tokens, at least one: a hidden state is put at its own token.
    pub fn new(
        model: &'a dyn Model,
        base: Vec<i64>,
        source: Vec<i64>,
        metric: &'a Metric,
    ) -> Result<Self> {
        if base.len() != source.len() || base.is_empty() {
            let reason = format!(
                "the base has {} tokens, the source {}; expected as many in both, so that each hidden state has a place",
                base.len(),
                source.len()
            );
            return Err(Error::Counterfactuals { reason });
        }
        Ok(Self { model, runs: BaseRuns::new(model), base, source, metric })
    }

    /// Number of tokens of each prompt.
    pub fn tokens(&self) -> usize {
        self.base.len()
    }

    /// The metric of the base and of the source, without patching.
    ///
    /// # Errors
    /// Errors of the model.
    pub fn ends(&self) -> Result<(f64, f64)> {
        let of = |ids: &[i64]| -> Result<f64> {
            Ok(self.patched(ids, 1, Vec::new())?.first().copied().unwrap_or(f64::NAN))
        };
        Ok((of(&self.base)?, of(&self.source)?))
    }

    /// The metric for each place and token when the source's hidden state is put into the base's run there, and there alone (activation
    /// patching; Meng et al. 2022, arXiv:2202.05262).
    ///
    /// # Errors
    /// Errors of the model.
    pub fn patching(&self, places: &[Place]) -> Result<Vec<Vec<f64>>> {
        let n = self.tokens();
        let at_place = |(place, source): (&Place, Tensor)| {
            let tokens = (0..n).map(|token| TokenAt { row: token, token }).collect();
            let interchange = Box::new(VanillaInterchange::new(source.size()[1]));
            let swap = Swap { place: place.clone(), tokens, source, interchange };
            self.patched(&self.base, n, vec![swap])
        };
        places.iter().zip(self.states(&self.source, places)?).map(at_place).collect()
    }

    /// The change of the metric by [`Self::patching`], to first order: `(s − b) · ∂metric/∂b` for each place and token, from one run of the
    /// base and its gradient (attribution patching; Nanda 2023).
    ///
    /// # Errors
    /// Errors of the model.
    pub fn attribution(&self, places: &[Place]) -> Result<Vec<Vec<f64>>> {
        let layout = self.layout(&self.base)?;
        let span = layout.whole();
        let mut leaves = Leaves { places, leaves: places.iter().map(|_| None).collect() };
        let input_ids = layout.input_ids(self.model.device());
        let h = self.model.hidden_states(&input_ids, &span, None, &mut leaves)?; // [1, t, d]
        let logits = self.model.logits(&h.select(1, -1)); // [1, v]
        self.metric.of(&logits).sum(Kind::Float).backward();
        let (base, source) = (self.states(&self.base, places)?, self.states(&self.source, places)?);
        let effect = |(i, leaf): (usize, &Option<Tensor>)| -> Result<Vec<f64>> {
            let Some(leaf) = leaf else {
                return Err(reft_models::Error::NotReached(places[i].clone()).into());
            };
            let change = &source[i] - &base[i];
            let gradient = leaf.grad().squeeze_dim(0); // [t, d]
            let effect = (change.to_kind(Kind::Float) * gradient.to_kind(Kind::Float))
                .sum_dim_intlist(-1, false, Kind::Double);
            numbers(effect)
        };
        leaves.leaves.iter().enumerate().map(effect).collect()
    }

    fn layout(&self, ids: &[i64]) -> Result<Layout> {
        Ok(Layout::new(vec![Row::prompt(ids.to_vec())], PaddingSide::Right)?)
    }

    /// The hidden states `[n, d]` of a prompt at each place.
    fn states(&self, ids: &[i64], places: &[Place]) -> Result<Vec<Tensor>> {
        let layout = self.layout(ids)?;
        let tokens: Vec<TokenAt> = (0..ids.len()).map(|token| TokenAt { row: 0, token }).collect();
        let wanted = places.iter().map(|place| (place.clone(), tokens.clone())).collect();
        Ok(collect(self.model, &AdapterStack::EMPTY, &layout, wanted)?)
    }

    /// The metric after a prompt in each trial of a run with swaps; row `i` of the run is trial `i`.
    fn patched(&self, ids: &[i64], trials: usize, swaps: Vec<Swap>) -> Result<Vec<f64>> {
        let _guard = tch::no_grad_guard();
        // a dummy token after the prompt is the target; its id does not matter
        let input_ids: Vec<i64> = ids.iter().copied().chain([0]).collect();
        let mut labels = vec![IGNORE_INDEX; input_ids.len()];
        labels[ids.len()] = 0;
        let row = Row { prompt_length: ids.len(), input_ids, ..Row::default() };
        let batch = self.runs.batch(&[Example::of("the prompt", row, labels)])?;
        let (h, _) = self.runs.run(&batch, trials, swaps)?;
        numbers(self.metric.of(&self.model.logits(&h)).to_kind(Kind::Double))
    }
}

/// The values of a tensor of one dimension, in f64.
fn numbers(values: Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(values).map_err(reft_models::Error::from)?)
}

/// Adds a leaf of zeros at each place. Its gradient equals the gradient of the hidden states there.
struct Leaves<'a> {
    places: &'a [Place],
    leaves: Vec<Option<Tensor>>,
}

impl Hooks for Leaves<'_> {
    fn visit(
        &mut self,
        point: HookPoint,
        mut h: Tensor,
        _span: &Span,
    ) -> reft_models::Result<Tensor> {
        let places = self.places.iter().zip(&mut self.leaves);
        for (place, leaf) in places.filter(|(place, _)| Some(place.site) == point.place()) {
            let own = place.read(&h)?;
            let zeros = own.zeros_like().set_requires_grad(true);
            h = place.replace(&h, own + &zeros);
            *leaf = Some(zeros);
        }
        Ok(h)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_models::{Component, Decoder, Site, Tokenizer};
    use std::path::{Path, PathBuf};
    use tch::Device;

    type TestResult<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

    fn oracle(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle").join(path)
    }

    /// A tokenizer with a letter for each id.
    fn tokenizer(dir: &Path) -> TestResult<Tokenizer> {
        let vocab: String = ('a'..='z').enumerate().map(|(i, c)| format!("\"{c}\":{i},")).collect();
        let text = format!(
            "{{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":null,\"post_processor\":null,\"decoder\":null,\
             \"model\":{{\"type\":\"BPE\",\"vocab\":{{{vocab}\"(\":26,\")\":27}},\"merges\":[]}}}}"
        );
        std::fs::write(dir.join("tokenizer.json"), text)?;
        Ok(Tokenizer::open(dir)?)
    }

    #[test]
    fn metrics_are_read_and_others_refused() -> TestResult {
        let dir = tempfile::tempdir()?;
        let tokenizer = tokenizer(dir.path())?;
        let logits = Tensor::from_slice(&[0.5f32, 2.0, -1.0]).view([1, 3]);
        let value = |text: &str| -> TestResult<f64> {
            Ok(Metric::parse(text, &tokenizer)?.of(&logits).double_value(&[0]))
        };
        assert_eq!(value("logit(b)")?, 2.0);
        assert_eq!(value(" logit(b) - logit(c) ")?, 3.0);
        let total = 0.5f64.exp() + 2f64.exp() + (-1f64).exp();
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-6; // f32
        assert!(near(value("prob(a)")?, 0.5f64.exp() / total));
        assert!(near(value("logprob(a)-logprob(b)")?, -1.5));
        let ids = Tensor::arange(28, (Kind::Float, Device::Cpu)).view([1, 28]);
        assert_eq!(Metric::parse("logit())", &tokenizer)?.of(&ids).double_value(&[0]), 27.0);
        for wrong in [
            "",
            "b",
            "logit(b",
            "logits(b)",
            "logit(bc)",
            "-logit(b)",
            "logit(a)-logit(b)-logit(c)",
            "logit(a)+logit(b)",
        ] {
            let refused = Metric::parse(wrong, &tokenizer);
            assert!(matches!(refused, Err(Error::OptionValue { option: "metric", .. })), "{wrong}");
        }
        Ok(())
    }

    /// Puts one hidden state in by hand.
    struct Put<'a>(Site, usize, &'a Tensor);

    impl Hooks for Put<'_> {
        fn visit(&mut self, point: HookPoint, h: Tensor, _: &Span) -> reft_models::Result<Tensor> {
            if point.place() == Some(self.0) {
                let h = h.copy();
                h.select(1, self.1 as i64).copy_(self.2);
                return Ok(h);
            }
            Ok(h)
        }
    }

    #[test]
    fn patching_is_a_run_with_one_hidden_state_of_another_and_attribution_its_first_order()
    -> TestResult {
        let dir = tempfile::tempdir()?;
        let tokenizer = tokenizer(dir.path())?;
        let metric = Metric::parse("logit(f)-logit(q)", &tokenizer)?;
        let decoder = Decoder::open(&oracle("tiny_llama"), Kind::Float, Device::Cpu)?;
        let (base, source) = (vec![5, 9, 31, 7, 12], vec![5, 40, 31, 8, 12]);
        let pair = PromptPair::new(&decoder, base.clone(), source.clone(), &metric)?;
        let (at_base, at_source) = pair.ends()?;
        let by_hand = |site: Site, token: usize, state: &Tensor| -> TestResult<f64> {
            let _guard = tch::no_grad_guard();
            let layout = pair.layout(&base)?;
            let h = decoder.whole_pass(&layout, &mut Put(site, token, state))?;
            Ok(metric.of(&decoder.logits(&h.select(1, -1))).double_value(&[0]))
        };
        let components = [Component::BlockOutput, Component::AttentionOutput, Component::MlpOutput];
        let sites = (0..4).flat_map(|layer| components.map(|component| Site { layer, component }));
        for site in sites {
            let place = [Place::whole(site)];
            let own = pair.states(&base, &place)?.remove(0);
            let other = pair.states(&source, &place)?.remove(0);
            let patched = pair.patching(&place)?.remove(0);
            let attributed = pair.attribution(&place)?.remove(0);
            for token in 0..5 {
                let (own, other) = (own.get(token as i64), other.get(token as i64));
                let expected = by_hand(site, token, &other)?;
                let found = patched[token];
                // f32 sums in another order
                assert!((found - expected).abs() < 1e-5, "{site} {token}: {found} for {expected}");
                // the derivative, by a small step either way; of f32 differences
                let step = |by: f64| by_hand(site, token, &(&own + (&other - &own) * by));
                let slope = (step(0.002)? - step(-0.002)?) / 0.004;
                let found = attributed[token];
                assert!(
                    (found - slope).abs() < 3e-3 * slope.abs() + 5e-4,
                    "{site} {token}: {found} for {slope}"
                );
            }
            if site.component == Component::BlockOutput && site.layer == 3 {
                // the last hidden state alone decides the next token
                assert!((patched[4] - at_source).abs() < 1e-5, "{patched:?} {at_source}");
                assert!(patched[..4].iter().all(|value| (value - at_base).abs() < 1e-5));
            }
        }
        assert!((at_base - at_source).abs() > 0.1, "no power");
        let heads = pair.patching(&[Place::head(1, 0, 16)])?;
        assert!(heads[0].iter().any(|value| (value - at_base).abs() > 1e-4));
        assert!(PromptPair::new(&decoder, base, vec![1], &metric).is_err());
        Ok(())
    }
}
