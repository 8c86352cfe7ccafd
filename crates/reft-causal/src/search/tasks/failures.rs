//! Which counterfactuals are answered as expected, template by template, and which are not.

use std::collections::HashSet;

use crate::{
    Accuracy, DasReport, MeasuredShare, Pairs, PlaceFailures, TemplateShares, WrongAnswer,
};

/// Most failing prompts that a report shows for each place.
const SHOWN: usize = 12;

impl Pairs {
    /// Held-out pairs that are also among the first `train`, word for word.
    pub(crate) fn repeated(&self, train: usize) -> Option<usize> {
        let words = |i: usize| (&self.texts[i].base, &self.texts[i].source);
        let learned: HashSet<_> = (0..train.min(self.texts.len())).map(words).collect();
        let held_out = train..self.texts.len();
        (!self.texts.is_empty()).then(|| held_out.filter(|i| learned.contains(&words(*i))).count())
    }

    /// The answers to the texts of each template without a swap.
    pub(crate) fn without_swaps(&self, given: &[i64], train: usize) -> Vec<TemplateShares> {
        let of_template = |(number, template): (usize, &String)| {
            let is_right = |i: &usize| given[*i] == self.own_answers[*i];
            let is_expected = |i: &usize| Some(&given[*i]) == self.bases[*i].labels().last();
            TemplateShares {
                template: template.clone(),
                base_accuracy: self.share(number, 0, &is_right),
                no_intervention: self.share(number, train, &is_expected),
            }
        };
        self.templates.iter().enumerate().map(of_template).collect()
    }

    /// The share of a template's pairs, from pair `first` on, for which `holds` is true.
    fn share(
        &self,
        template: usize,
        first: usize,
        holds: &dyn Fn(&usize) -> bool,
    ) -> MeasuredShare {
        let is_of_it = |i: &usize| self.texts[*i].template == template;
        let own: Vec<usize> = (first..self.texts.len()).filter(is_of_it).collect();
        Accuracy { hits: own.iter().filter(|i| holds(i)).count(), total: own.len() }.into()
    }

    /// The first bases that are answered wrong without a swap.
    pub(crate) fn wrong_bases(&self, given: &[i64]) -> Vec<WrongAnswer> {
        let wrong = (0..self.texts.len()).filter(|i| given[*i] != self.own_answers[*i]);
        let tell = |i: usize| WrongAnswer {
            base: self.texts[i].base.clone(),
            source: None,
            expected: self.answer_text(self.own_answers[i]),
            given: self.answer_text(given[i]),
        };
        wrong.take(SHOWN).map(tell).collect()
    }

    /// Fills in the rows' shares of each template, and the counterfactuals that fail at the best place of each rank.
    pub(crate) fn tell_failures(&self, report: &mut DasReport) {
        if self.texts.is_empty() {
            return;
        }
        let train = report.options.train_pairs;
        for row in &mut report.rows {
            let Some(failed) = &row.failed else { continue };
            let failed: HashSet<usize> = failed.iter().map(|(i, _)| *i).collect();
            let of_template =
                |template| self.share(template, train, &|i: &usize| !failed.contains(i));
            row.by_template = (0..self.templates.len()).map(of_template).collect();
        }
        let best = report.options.ranks.iter().filter_map(|&rank| report.best(rank));
        let failures = best.filter_map(|row| {
            let failed = row.failed.as_ref()?;
            let tell = |(i, given): &(usize, i64)| WrongAnswer {
                base: self.texts[*i].base.clone(),
                source: Some(self.texts[*i].source.clone()),
                expected: self.bases[*i]
                    .labels()
                    .last()
                    .map(|own| self.answer_text(*own))
                    .unwrap_or_default(),
                given: self.answer_text(*given),
            };
            Some(PlaceFailures {
                site: row.site.clone(),
                position: row.position.clone(),
                rank: row.rank,
                failed: failed.len(),
                first: failed.iter().take(SHOWN).map(tell).collect(),
            })
        });
        report.failures = failures.collect();
    }

    fn answer_text(&self, answer: i64) -> String {
        self.answer_texts.get(&answer).cloned().unwrap_or_else(|| format!("token {answer}"))
    }
}
