use rayon::prelude::*;
use reft_models::TaskHead;

use crate::{Content, Encoding, Error, Example, IGNORE_INDEX, Record, Result};

/// The kind of a head's output for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A class: the head has one output for each.
    Class,
    /// A number.
    Number,
    /// How good a reply is, learned from pairs with the better reply first.
    Reward,
}

/// The labels of rows for a head: classes by name, numbers, or which of two replies is the better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    told: Told,
    /// The names of the classes, in the order of the head's outputs.
    classes: Vec<String>,
}

impl Labels {
    /// The labels of rows that a new head is to be trained on. Classes come from the rows: whole numbers in their order, or names in
    /// alphabetical order.
    ///
    /// # Errors
    /// [`Error::Labels`] if there are fewer than two classes; [`Error::Refused`] for a label that is no class.
    pub fn of_rows<'r>(told: Told, rows: impl IntoIterator<Item = &'r Record>) -> Result<Self> {
        if told != Told::Class {
            return Ok(Self { told, classes: Vec::new() });
        }
        let mut classes: Vec<String> = Vec::new();
        for record in rows {
            let class = class(record)?;
            if !classes.contains(&class) {
                classes.push(class);
            }
        }
        if classes.len() < 2 {
            let reason = match classes.first() {
                None => "there is no row, expected rows of two classes or more".to_owned(),
                Some(only) => format!(
                    "all rows have the label {only:?}, and a head tells two classes or more apart; give rows of other classes, too"
                ),
            };
            return Err(Error::Labels { reason });
        }
        let number = |class: &String| class.parse::<i64>().ok();
        if classes.iter().all(|class| number(class).is_some()) {
            classes.sort_by_key(number);
        } else {
            classes.sort();
        }
        Ok(Self { told, classes })
    }

    /// The labels of a trained head. Classes without names are numbered from 0.
    pub fn of_head(told: Told, head: &TaskHead) -> Self {
        let classes = match (told, head.names()) {
            (Told::Class, []) => (0..head.n_outputs()).map(|class| class.to_string()).collect(),
            (Told::Class, names) => names.to_vec(),
            (Told::Number | Told::Reward, _) => Vec::new(),
        };
        Self { told, classes }
    }

    /// The names of the classes, in the order of the head's outputs; empty for numbers and rewards.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of outputs that a head needs for these labels.
    pub fn n_outputs(&self) -> i64 {
        self.classes.len().max(1) as i64
    }

    /// The examples of rows: each a text with its [`value`](Example::value), or a pair of replies.
    ///
    /// # Errors
    /// The error of the first row that cannot be used: [`Error::Refused`] for an unknown class, or a label that is no number; others as
    /// [`Encoding::examples`].
    pub fn examples(&self, records: &[Record], encoding: &Encoding) -> Result<Vec<Example>> {
        self.each(records, encoding).into_iter().collect() // the first error in the file's order
    }

    /// Every example, or its row's error.
    pub(crate) fn each(&self, records: &[Record], encoding: &Encoding) -> Vec<Result<Example>> {
        records.par_iter().map(|record| self.example(record, encoding)).collect()
    }

    fn example(&self, record: &Record, encoding: &Encoding) -> Result<Example> {
        match &record.content {
            Content::Labelled { text, label } => {
                let value = Some(self.value(record, label)?);
                let sequences = vec![encoding.labelled(record, text)?];
                Ok(Example { id: record.id.clone(), sequences, value })
            }
            Content::Preference { chosen, rejected } => {
                let mut pair = encoding.pair(record, [chosen, rejected])?;
                for sequence in &mut pair.sequences {
                    sequence.row.prompt_length = sequence.row.input_ids.len(); // the whole sequence is the prompt
                    sequence.labels.fill(IGNORE_INDEX);
                }
                Ok(pair)
            }
            _ => Err(record.refused("the row has no label for the head to learn; give one")),
        }
    }

    fn value(&self, record: &Record, label: &str) -> Result<f64> {
        if self.told != Told::Class {
            let number = label.parse::<f64>().ok().filter(|number| number.is_finite());
            return number.ok_or_else(|| {
                record.refused(format!(
                    "its label {label:?} is no number; --objective classification learns names"
                ))
            });
        }
        let own = class(record)?;
        let place = self.classes.iter().position(|class| *class == own);
        let place = place.ok_or_else(|| {
            let known = self.classes.join(", ");
            record.refused(format!(
                "its label {label:?} is none of the classes that the head tells, {known}"
            ))
        });
        Ok(place? as f64)
    }

    /// The label of an example, in words.
    pub fn said(&self, example: &Example) -> String {
        match (self.told, example.value) {
            (Told::Class, Some(class)) => {
                let name = self.classes.get(class as usize).map_or("none", String::as_str);
                format!("class {name:?}")
            }
            (Told::Number, Some(number)) => format!("number {number}"),
            _ => "the better of two replies".to_owned(),
        }
    }
}

/// The class that a row names. Spellings of a whole number are one class: tables write 1 as 1.0.
fn class(record: &Record) -> Result<String> {
    let Content::Labelled { label, .. } = &record.content else {
        return Err(record.refused("the row has no label for the head to learn; give one"));
    };
    match label.parse::<f64>() {
        Ok(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            Ok((number as i64).to_string())
        }
        Ok(number) if number.is_finite() => Err(record.refused(format!(
            "its label {label} is no class, which is a name or a whole number; --objective regression learns numbers"
        ))),
        _ => Ok(label.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LabelledText;

    fn record(label: &str) -> Record {
        let text = LabelledText::Tokens { input_ids: vec![5, 6, 7], token_types: None };
        Record::new("it", Content::Labelled { text, label: label.to_owned() })
    }

    fn labels(told: Told, labels: &[&str]) -> Result<Labels> {
        Labels::of_rows(told, &labels.iter().map(|label| record(label)).collect::<Vec<_>>())
    }

    fn values(labels: &Labels, of: &[&str]) -> Result<Vec<Option<f64>>> {
        let records: Vec<Record> = of.iter().map(|label| record(label)).collect();
        let encoding = Encoding { text: None, vocab_size: 100, max_length: 2 };
        let examples = labels.examples(&records, &encoding)?;
        for example in &examples {
            assert_eq!((example.row().input_ids.len(), example.row().prompt_length), (2, 2));
            assert!(example.labels().iter().all(|label| *label == IGNORE_INDEX));
        }
        Ok(examples.into_iter().map(|example| example.value).collect())
    }

    #[test]
    fn classes_are_whole_numbers_in_their_order_or_names() -> Result<()> {
        let numbers = labels(Told::Class, &["10", "2.0", "2", "-1"])?;
        assert_eq!(numbers.classes(), ["-1", "2", "10"]);
        assert_eq!(values(&numbers, &["10", "2.0", "-1"])?, [Some(2.0), Some(1.0), Some(0.0)]);
        let names = labels(Told::Class, &["yes", "no", "10", "yes"])?;
        assert_eq!(names.classes(), ["10", "no", "yes"]);
        assert_eq!(names.n_outputs(), 3);
        let numbers = labels(Told::Number, &["10", "2.5"])?;
        assert_eq!((numbers.classes().len(), numbers.n_outputs()), (0, 1));
        assert_eq!(values(&numbers, &["10", "-2.5"])?, [Some(10.0), Some(-2.5)]);
        Ok(())
    }

    #[test]
    fn labels_that_a_head_cannot_tell_are_refused() -> Result<()> {
        let one = labels(Told::Class, &["a", "a"]).map_err(|error| error.to_string());
        assert!(one.as_ref().is_err_and(|reason| reason.contains("all rows have the label \"a\"")));
        let refused = |found: Result<Vec<Option<f64>>>, words: &str| {
            let refused = found.map_err(|error| error.to_string());
            assert!(refused.as_ref().is_err_and(|reason| reason.contains(words)), "{refused:?}");
        };
        let classes = labels(Told::Class, &["a", "b"])?;
        refused(
            values(&classes, &["a", "c"]),
            "\"c\" is none of the classes that the head tells, a, b",
        );
        refused(values(&labels(Told::Number, &["1"])?, &["x"]), "\"x\" is no number");
        refused(values(&labels(Told::Number, &["1"])?, &["nan"]), "\"nan\" is no number");
        refused(labels(Told::Class, &["0.5", "1"]).map(|_| Vec::new()), "--objective regression");
        Ok(())
    }
}
