use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{DeclaredOptions, OptionDeclaration, declare_options};
use reft_kernels::{Drawing, drawn, token_weights};

use crate::{Result, Tokenizer};

declare_options! {
    /// How tokens are chosen, and when to stop: greedily, 256 tokens and no stop token by default.
    ///
    /// The scores of the next token pass, in this order, through the repetition penalty, the frequency and presence penalties, the ban on repeated
    /// n-grams, the temperature, top-k and top-p: frequency and presence as in OpenAI's API, the others as in transformers. Then a token is drawn,
    /// or the best one is taken if the temperature is 0.
    pub struct GenerationConfig {
        /// Most tokens of a reply
        max_new_tokens: usize = 256, Count("N") in "Generation" if |n: usize| n > 0, "at least 1";
        /// 0 = always the best token (greedy); above 0 = draw at random, the more varied the higher
        temperature: f64 = 0.0, Number("X") in "Generation"
            if |x: f64| x >= 0.0 && x.is_finite(), "0 (the best token) or a positive number";
        /// Draw only from the N best tokens [default: from all]
        top_k: Option<usize> = None, Count("N") in "Generation"
            if |n: usize| n > 0, "at least 1; leave it out to draw from all tokens";
        /// Draw only from the best tokens that together have this probability, above 0 to 1
        top_p: f64 = 1.0, Number("P") in "Generation" if |x: f64| x > 0.0 && x <= 1.0, "0 < top_p <= 1";
        /// Makes tokens that have occurred less likely: positive scores are divided by X, others multiplied by X; 1 = no penalty
        repetition_penalty: f64 = 1.0, Number("X") in "Generation"
            if |x: f64| x > 0.0 && x.is_finite(), "a positive number; 1 is no penalty";
        /// Makes tokens of the reply less likely the more often they occur in it: subtracts X times their count from their scores
        frequency_penalty: f64 = 0.0, Number("X") in "Generation"
            if |x: f64| (-2.0..=2.0).contains(&x), "a number from -2 to 2; 0 is no penalty";
        /// Makes tokens of the reply less likely, however often they occur in it: subtracts X from their scores
        presence_penalty: f64 = 0.0, Number("X") in "Generation"
            if |x: f64| (-2.0..=2.0).contains(&x), "a number from -2 to 2; 0 is no penalty";
        /// No N tokens in a row may occur twice in prompt and reply [default: they may]
        no_repeat_ngram_size: Option<usize> = None, Count("N") in "Generation"
            if |n: usize| n > 0, "at least 1; leave it out to allow repetition";
        /// Compute each reply alone, so that it is the same to the last bit whatever else is computed; many take as long as one after the other
        deterministic: bool = false, Switch("BOOL") in "Generation";
        /// Seed of the draws; they depend on the seed and on the prompt's place in the list
        seed: u64 = 0, Count("N") in "Generation";
    }
    beside {
        /// Tokens that end a reply.
        stop_ids: Vec<i64> = Vec::new();
        /// Prompts generated for at once; `None`: all.
        batch_size: Option<usize> = None;
        /// Number of most likely tokens whose log-probabilities an [`Engine`](crate::Engine) reports beside each token's own; `None`: none.
        logprobs: Option<usize> = None;
    }
}

impl GenerationConfig {
    /// The default (greedy) with the model's end tokens as stop tokens.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        Self { stop_ids: tokenizer.eos_ids().to_vec(), ..Self::default() }
    }

    /// Checks that every option has a valid value.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] names the first option with an invalid value.
    pub fn check(&self) -> Result<()> {
        self.check_each()?;
        let at_least_one = |n: usize| n > 0;
        OptionDeclaration::require("batch_size", self.batch_size, at_least_one, "at least 1")?;
        let (lowest, expected) = (self.stop_ids.iter().min(), "token ids, which are not negative");
        Ok(OptionDeclaration::require("stop_ids", lowest.copied(), |id: i64| id >= 0, expected)?)
    }

    /// Whether the next token is simply the best token by the model's logits.
    pub(crate) fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0
            && self.repetition_penalty == 1.0
            && self.frequency_penalty == 0.0
            && self.presence_penalty == 0.0
            && self.no_repeat_ngram_size.is_none()
    }
}

/// Chooses the tokens of one row.
#[derive(Debug)]
pub(crate) struct Sampler {
    config: GenerationConfig,
    history: Vec<i64>, // prompt and reply
    prompt: usize,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for a prompt, with its own stream of random numbers.
    pub(crate) fn new(config: &GenerationConfig, prompt: &[i64], stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(stream);
        Self { config: config.clone(), history: prompt.to_vec(), prompt: prompt.len(), rng }
    }

    /// Chooses the next token by its logits `[v]` and takes it into the history. `weights` is memory for all rows of a batch, one after the
    /// other.
    pub(crate) fn choose(&mut self, logits: &[f32], weights: &mut Vec<f32>) -> i64 {
        let Self { config, history, prompt, rng } = self;
        let mut scores = Cow::Borrowed(logits);
        if config.repetition_penalty != 1.0 {
            penalize_repetition(scores.to_mut(), history, config.repetition_penalty as f32);
        }
        if config.frequency_penalty != 0.0 || config.presence_penalty != 0.0 {
            let each = [config.frequency_penalty, config.presence_penalty].map(|x| x as f32);
            penalize_occurrence(scores.to_mut(), &history[*prompt..], each);
        }
        if let Some(n) = config.no_repeat_ngram_size {
            ban_repeated_ngrams(&mut scores, history, n);
        }
        let id = if config.temperature == 0.0 {
            best(&scores)
        } else {
            let GenerationConfig { temperature, top_k, top_p, .. } = *config;
            weights.resize(scores.len(), 0.0);
            let sum = token_weights(&scores, Drawing { temperature, top_k, top_p }, weights);
            drawn(weights, rng.random::<f64>() * sum)
        };
        history.push(id as i64);
        id as i64
    }
}

/// Divides the scores of tokens of the history by `penalty` if they are positive, multiplies them if they are negative.
fn penalize_repetition(scores: &mut [f32], history: &[i64], penalty: f32) {
    for &id in history.iter().collect::<HashSet<_>>() {
        let score = &mut scores[id as usize];
        *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
    }
}

/// Subtracts `frequency · count + presence` from the score of each token of a reply, with the number of times it occurs there.
fn penalize_occurrence(scores: &mut [f32], reply: &[i64], [frequency, presence]: [f32; 2]) {
    let mut counts: HashMap<i64, u32> = HashMap::new();
    reply.iter().for_each(|&id| *counts.entry(id).or_default() += 1);
    for (id, count) in counts {
        scores[id as usize] -= frequency * count as f32 + presence;
    }
}

/// Bans (−∞) each token that would repeat `n` tokens in a row; if that is every token, none is banned.
fn ban_repeated_ngrams(scores: &mut Cow<[f32]>, history: &[i64], n: usize) {
    if history.len() < n {
        return;
    }
    let beginning = &history[history.len() + 1 - n..];
    let repeats = history.windows(n).filter(|ngram| ngram.starts_with(beginning));
    let banned: HashSet<usize> = repeats.map(|ngram| ngram[n - 1] as usize).collect();
    let is_left = |i: usize| scores[i] > f32::NEG_INFINITY && !banned.contains(&i);
    if banned.is_empty() || !(0..scores.len()).any(is_left) {
        return;
    }
    let scores = scores.to_mut();
    banned.into_iter().for_each(|i| scores[i] = f32::NEG_INFINITY);
}

/// Index of the largest score, the first of equal ones.
fn best(scores: &[f32]) -> usize {
    let is_better = |i: usize, best: usize| scores[i].total_cmp(&scores[best]).is_gt();
    (1..scores.len()).fold(0, |best, i| if is_better(i, best) { i } else { best })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Error;

    fn greedy() -> GenerationConfig {
        GenerationConfig::default()
    }

    fn sampled(temperature: f64) -> GenerationConfig {
        GenerationConfig { temperature, ..greedy() }
    }

    fn probabilities(scores: &[f32], config: &GenerationConfig) -> Vec<f64> {
        let GenerationConfig { temperature, top_k, top_p, .. } = *config;
        let mut weights = vec![0.0; scores.len()];
        let sum = token_weights(scores, Drawing { temperature, top_k, top_p }, &mut weights);
        weights.into_iter().map(|weight| f64::from(weight) / sum).collect()
    }

    #[test]
    fn penalty_divides_positive_and_multiplies_negative_scores_once_per_token() {
        let mut scores = [3.0, -3.0, 2.0, -2.0, 0.0];
        penalize_repetition(&mut scores, &[0, 1, 0, 0, 1, 4], 1.5);
        assert_eq!(scores, [2.0, -4.5, 2.0, -2.0, 0.0]);
    }

    #[test]
    fn tokens_of_the_reply_are_penalised_by_their_number_and_once() {
        let mut scores = [3.0, -3.0, 2.0, -2.0];
        penalize_occurrence(&mut scores, &[0, 1, 0], [0.5, 0.25]);
        assert_eq!(scores, [3.0 - 1.25, -3.75, 2.0, -2.0]);
        // token 1 is in the prompt only: there it counts for the repetition penalty alone
        let config = GenerationConfig { frequency_penalty: 1.0, presence_penalty: 0.5, ..greedy() };
        let mut sampler = Sampler::new(&config, &[1, 1, 1], 0);
        let mut weights = Vec::new();
        let logits = [0.0, 5.0, 4.0, 1.0];
        // 5; 5 − 1.5 < 4; 5 − 1.5 > 4 − 1.5; 5 − 2.5 = 4 − 1.5, and the first of equal ones is taken
        let replied: Vec<i64> = (0..4).map(|_| sampler.choose(&logits, &mut weights)).collect();
        assert_eq!(replied, [1, 2, 1, 1]);
    }

    #[test]
    fn repeated_ngrams_are_banned() {
        const BAN: f32 = f32::NEG_INFINITY;
        let banned = |history: &[i64], n| {
            let mut scores = Cow::Borrowed(&[1.0, 2.0, 3.0, 4.0][..]);
            ban_repeated_ngrams(&mut scores, history, n);
            (0..4).filter(|&i| scores[i] == BAN).collect::<Vec<_>>()
        };
        assert_eq!(banned(&[0, 1, 2, 0, 1], 3), [2]); // 0 1 → 2 was there
        assert_eq!(banned(&[0, 1, 2, 0, 1, 3, 0, 1], 3), [2, 3]);
        assert_eq!(banned(&[0, 1, 2, 0, 1], 4), [0usize; 0]); // 2 0 1 was not
        assert_eq!(banned(&[1, 1], 2), [1]);
        assert_eq!(banned(&[2, 0, 2], 1), [0, 2]);
        assert_eq!(banned(&[0, 1], 3), [0usize; 0]); // too short to repeat anything
        assert_eq!(banned(&[0, 1, 2, 3], 1), [0usize; 0]); // all of them: none
    }

    #[test]
    fn draws_have_the_frequencies_of_the_probabilities() {
        let config = sampled(1.0);
        let mut sampler = Sampler::new(&config, &[0], 3);
        let logits = [0.1f32, 0.6, 0.3].map(f32::ln);
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            counts[sampler.choose(&logits, &mut Vec::new()) as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip([0.1, 0.6, 0.3]) {
            // five standard deviations of a binomial count of 10,000, at most 50 each
            assert!((f64::from(count) - 10_000.0 * p).abs() < 250.0, "{counts:?}");
        }
    }

    #[test]
    fn rows_and_seeds_draw_differently_and_repeatably() {
        let text = |seed, row| {
            let config = GenerationConfig { seed, ..sampled(1.0) };
            let mut sampler = Sampler::new(&config, &[0], row);
            (0..20).map(|_| sampler.choose(&[0.0; 50], &mut Vec::new())).collect::<Vec<_>>()
        };
        assert_eq!(text(1, 2), text(1, 2));
        assert_ne!(text(1, 2), text(1, 3));
        assert_ne!(text(1, 2), text(2, 2));
    }

    #[test]
    fn greedy_with_penalties_takes_the_best_that_is_left() {
        let config =
            GenerationConfig { repetition_penalty: 2.0, no_repeat_ngram_size: Some(2), ..greedy() };
        let mut sampler = Sampler::new(&config, &[1, 2, 1], 0);
        // 2 after 1 would repeat; 1 is halved to 2.5; 3 is best
        assert_eq!(sampler.choose(&[0.0, 5.0, 9.0, 3.0], &mut Vec::new()), 3);
        // now 3 is in the history too: 9 / 2 for 2, 3 / 2 for 3, 5 / 2 for 1
        assert_eq!(sampler.choose(&[0.0, 5.0, 9.0, 3.0], &mut Vec::new()), 2);
    }

    #[test]
    fn meaningless_options_are_refused_by_name() {
        let bad = [
            ("max_new_tokens", GenerationConfig { max_new_tokens: 0, ..greedy() }),
            ("temperature", GenerationConfig { temperature: -0.5, ..greedy() }),
            ("temperature", GenerationConfig { temperature: f64::NAN, ..greedy() }),
            ("temperature", GenerationConfig { temperature: f64::INFINITY, ..greedy() }),
            ("top_k", GenerationConfig { top_k: Some(0), ..greedy() }),
            ("top_p", GenerationConfig { top_p: 0.0, ..greedy() }),
            ("top_p", GenerationConfig { top_p: 1.1, ..greedy() }),
            ("top_p", GenerationConfig { top_p: f64::NAN, ..greedy() }),
            ("repetition_penalty", GenerationConfig { repetition_penalty: 0.0, ..greedy() }),
            ("repetition_penalty", GenerationConfig { repetition_penalty: f64::NAN, ..greedy() }),
            ("frequency_penalty", GenerationConfig { frequency_penalty: 2.1, ..greedy() }),
            ("frequency_penalty", GenerationConfig { frequency_penalty: f64::NAN, ..greedy() }),
            ("presence_penalty", GenerationConfig { presence_penalty: -2.1, ..greedy() }),
            (
                "no_repeat_ngram_size",
                GenerationConfig { no_repeat_ngram_size: Some(0), ..greedy() },
            ),
            ("stop_ids", GenerationConfig { stop_ids: vec![2, -1], ..greedy() }),
        ];
        for (name, config) in bad {
            let refused = config.check();
            assert!(
                matches!(&refused, Err(Error::Core(reft_core::Error::OptionValue { option, .. })) if *option == name),
                "{name}: {refused:?}"
            );
        }
        let at_the_bounds = [
            GenerationConfig { temperature: 0.0, top_p: 1.0, top_k: Some(1), ..greedy() },
            GenerationConfig { temperature: 1e300, max_new_tokens: 1, ..greedy() },
            GenerationConfig { no_repeat_ngram_size: Some(1), stop_ids: vec![0], ..greedy() },
        ];
        for config in at_the_bounds {
            assert!(config.check().is_ok(), "{config:?}: {:?}", config.check());
        }
    }

    proptest! {
        #[test]
        fn any_scores_leave_probabilities(
            logits in prop::collection::vec(-1e4f32..1e4, 1..40),
            history in prop::collection::vec(0usize..1000, 0..60),
            temperature in prop_oneof![Just(f64::MIN_POSITIVE), Just(1e300), 1e-3f64..10.0],
            top_k in prop::option::of(1usize..50),
            top_p in prop_oneof![Just(f64::MIN_POSITIVE), Just(1.0), 0.001f64..1.0],
            repetition_penalty in 0.1f32..10.0,
            no_repeat_ngram_size in prop::option::of(1usize..5),
        ) {
            let v = logits.len();
            let history: Vec<i64> = history.into_iter().map(|id| (id % v) as i64).collect();
            let mut scores = Cow::Borrowed(&logits[..]);
            penalize_repetition(scores.to_mut(), &history, repetition_penalty);
            if let Some(n) = no_repeat_ngram_size {
                ban_repeated_ngrams(&mut scores, &history, n);
            }
            let config = GenerationConfig { top_k, top_p, ..sampled(temperature) };
            let p = probabilities(&scores, &config);
            prop_assert!(p.iter().all(|x| (0.0..=1.0).contains(x)), "{:?}", p);
            prop_assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12); // 40 roundings
            prop_assert!(p[best(&scores)] > 0.0, "the best token was left out");
            for (score, p) in scores.iter().zip(&p) {
                prop_assert!(score.is_finite() || *p == 0.0, "a banned token is left");
            }
        }
    }
}
