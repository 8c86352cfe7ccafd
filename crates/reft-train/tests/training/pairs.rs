//! Helpers for tests of objectives on recorded rows: the rows, the options of a case, and the ingredients of its objective.

use reft_core::DeclaredOptions;
use reft_models::{Adapter, AdapterStack};
use reft_train::{Content, Encoding, Example, Ingredients, ObjectiveOptions, Record};
use serde_json::{Map, Value};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

pub const ENCODING: Encoding = Encoding { text: None, vocab_size: 128, max_length: 64 };

pub fn ids(value: &Value) -> Outcome<Vec<i64>> {
    Ok(serde_json::from_value(value.clone())?)
}

/// An oracle's pairs, as rows of tokens become examples.
pub fn pairs(oracle: &Value) -> Outcome<Vec<Example>> {
    let record = |row: &Value| -> Outcome<Record> {
        let prompt = ids(&row["prompt"])?;
        let of = |reply: &str| -> Outcome<Box<Content>> {
            let input_ids = [prompt.clone(), ids(&row[reply])?].concat();
            let prompt_length = prompt.len();
            Ok(Box::new(Content::Tokens { input_ids, prompt_length, labels: None }))
        };
        let content = Content::Preference { chosen: of("chosen")?, rejected: of("rejected")? };
        Ok(Record::new("pair", content))
    };
    let records = oracle["pairs"].as_array().ok_or("pairs")?.iter().map(record);
    Ok(ENCODING.examples(&records.collect::<Outcome<Vec<_>>>()?)?)
}

/// The objective's options in a case.
pub fn options(case: &Value) -> Outcome<ObjectiveOptions> {
    let names = ObjectiveOptions::DECLARED.iter().map(|option| option.name);
    let own = names.filter_map(|name| Some((name.to_owned(), case.get(name)?.clone())));
    let options: ObjectiveOptions = serde_json::from_value(own.collect::<Map<_, _>>().into())?;
    options.check()?;
    Ok(options)
}

/// The ingredients of an objective in a run of these adapters.
pub fn ingredients<'a>(
    options: &'a ObjectiveOptions,
    adapters: &'a [Box<dyn Adapter>],
    reference: &'a [Box<dyn Adapter>],
) -> Outcome<Ingredients<'a>> {
    let (stack, reference) =
        (AdapterStack::of_boxed(adapters)?, AdapterStack::of_boxed(reference)?);
    Ok(Ingredients { options, stack, reference, head: None })
}
