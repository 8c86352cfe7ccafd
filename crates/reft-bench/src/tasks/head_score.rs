//! How well a head predicts the labels of rows.

use std::time::Instant;

use reft_models::{AdapterStack, ContextLimit, Model, Row, TaskHead};
use reft_train::{Example, Metric, Told, head_outputs};
use tch::Kind;

use crate::tasks::score::examples;
use crate::{EncodedQuestion, Result, Score, TaskConfig};

/// A model with its adapters and a head, to be measured on labelled rows.
#[derive(Clone, Copy)]
pub struct HeadScorer<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// Its adapters.
    pub stack: &'a AdapterStack<'a>,
    /// The head.
    pub head: &'a TaskHead,
    /// The kind of label that the head predicts.
    pub told: Told,
    /// Rows computed at once.
    pub batch_size: usize,
}

/// The predictions of a head for labelled rows.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadScore {
    /// Their scores, the usual metric first.
    pub measures: Vec<(Metric, f64)>,
    /// The prediction for each row, in the rows' order.
    pub told: Vec<ToldOf>,
}

/// The prediction of a head for a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ToldOf {
    /// The likeliest class, its probability, and the right class.
    Class {
        /// Index of the class.
        class: usize,
        /// Its probability.
        score: f64,
        /// Index of the right class.
        expected: usize,
    },
    /// The predicted number, and the right one.
    Number {
        /// The number that the head predicts.
        score: f64,
        /// The right number.
        expected: f64,
    },
    /// The rewards of the two replies of a pair.
    Rewards {
        /// Reward of the chosen reply.
        chosen: f64,
        /// Reward of the rejected reply.
        rejected: f64,
    },
}

impl HeadScorer<'_> {
    /// Scores the head on examples.
    ///
    /// # Errors
    /// [`reft_models::Error::ContextFull`] before the first is computed; [`reft_train::Error::EvaluationNotFinite`] with the example; errors of
    /// the model or an adapter.
    pub fn score(&self, examples: &[Example]) -> Result<HeadScore> {
        let context = ContextLimit::of(self.model.description(), self.stack);
        context.check(examples.iter().map(|example| (&example.id, example.length())))?;
        let mut outputs = self.outputs(examples)?.into_iter();
        let told = examples.iter().map(|example| {
            let own: Vec<Vec<f64>> = outputs.by_ref().take(example.sequences.len()).collect();
            if let Some(&value) = own.iter().flatten().find(|output| !output.is_finite()) {
                let ids = vec![example.id.clone()];
                return Err(reft_train::Error::EvaluationNotFinite { value, ids }.into());
            }
            Ok(self.told_of(example, &own))
        });
        let told = told.collect::<Result<Vec<_>>>()?;
        Ok(HeadScore { measures: self.measures(&told), told })
    }

    /// Scores the head on the questions of a task.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub(crate) fn of_task(
        &self,
        task: &TaskConfig,
        questions: &[EncodedQuestion],
    ) -> Result<Score> {
        let started = Instant::now();
        let score = self.score(&examples(questions))?;
        let names = self.head.names();
        let answer = |told: &ToldOf| match told {
            ToldOf::Class { class, .. } => names[*class].clone(),
            ToldOf::Number { score, .. } => score.to_string(),
            ToldOf::Rewards { chosen, rejected } => (chosen - rejected).to_string(),
        };
        let metric = task.metric();
        let value = score.measures.iter().find(|(own, _)| *own == metric);
        let (_, value) = value.expect("invariant: the task's metric is one that is measured");
        Ok(Score {
            metric,
            value: *value,
            perplexity: None,
            margin: None,
            questions: questions.len(),
            seconds: started.elapsed().as_secs_f64(),
            answers: score.told.iter().map(answer).collect(),
        })
    }

    /// The head's outputs of each sequence, `[k]` each, in the order of the examples.
    fn outputs(&self, examples: &[Example]) -> Result<Vec<Vec<f64>>> {
        let rows: Vec<&Row> =
            examples.iter().flat_map(|example| &example.sequences).map(|own| &own.row).collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(rows[i].input_ids.len()));
        let mut outputs = vec![Vec::new(); rows.len()];
        for batch in order.chunks(self.batch_size.max(1)) {
            let own = batch.iter().map(|&i| rows[i].clone()).collect();
            let found = head_outputs(self.head, self.model, self.stack, own)?.to_kind(Kind::Double);
            let found = Vec::<Vec<f64>>::try_from(found).map_err(reft_models::Error::from)?; // sync
            for (&i, found) in batch.iter().zip(found) {
                outputs[i] = found;
            }
        }
        Ok(outputs)
    }

    fn told_of(&self, example: &Example, outputs: &[Vec<f64>]) -> ToldOf {
        let expected = example.value.unwrap_or_default();
        match (self.told, outputs) {
            (Told::Class, [own, ..]) => {
                let best = |best, i| if own[i] > own[best] { i } else { best };
                let class = (0..own.len()).reduce(best).unwrap_or_default();
                let sum: f64 = own.iter().map(|output| (output - own[class]).exp()).sum();
                ToldOf::Class { class, score: 1.0 / sum, expected: expected as usize }
            }
            (Told::Reward, [chosen, rejected]) => {
                ToldOf::Rewards { chosen: chosen[0], rejected: rejected[0] }
            }
            (_, own) => ToldOf::Number { score: own[0][0], expected },
        }
    }

    fn measures(&self, told: &[ToldOf]) -> Vec<(Metric, f64)> {
        let pairs: Vec<[f64; 2]> = told.iter().map(ToldOf::pair).collect();
        let classes = self.head.n_outputs() as usize;
        let measure = |&metric: &Metric| Some((metric, metric.of_told(&pairs, classes)?));
        self.told.metrics().iter().filter_map(measure).collect()
    }
}

impl ToldOf {
    /// The predictions, and the right labels.
    fn pair(&self) -> [f64; 2] {
        match *self {
            Self::Class { class, expected, .. } => [class as f64, expected as f64],
            Self::Number { score, expected } => [score, expected],
            Self::Rewards { chosen, rejected } => [f64::from(chosen > rejected), 1.0],
        }
    }
}
