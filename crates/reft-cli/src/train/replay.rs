use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use reft_models::{AdapterStack, GenerationConfig, Model, Row, generate};
use reft_train::{
    ColumnNames, Content, Encoding, Example, IGNORE_INDEX, ObjectiveOptions, Record, read_prompts,
    read_records,
};

use crate::terminal::{counted, note};

/// Batch size for the frozen model's replies.
const AT_ONCE: usize = 8;

/// The rows of a replay file as examples. A row without a reply gets the frozen model's greedy reply.
///
/// # Errors
/// A row that cannot be used; errors of the model.
pub fn read(
    path: &Path,
    columns: Option<&ColumnNames>,
    encoding: &Encoding,
    model: &dyn Model,
    options: &ObjectiveOptions,
) -> Result<Vec<Example>> {
    // rows without replies are read as prompts; that reader also reports faults of other rows
    let records = read_records(path, columns).or_else(|_| read_prompts(path, columns))?;
    let in_file = || format!("cannot replay {}", path.display());
    let (asked, answered): (Vec<Record>, Vec<Record>) = records.into_iter().partition(is_asked);
    let mut examples = encoding.examples(&answered).with_context(in_file)?;
    if !asked.is_empty() {
        note(format!(
            "{} of {} without a reply: the frozen model's own is kept",
            counted(asked.len(), "row"),
            path.display()
        ));
        examples.extend(replied(&asked, encoding, model, options).with_context(in_file)?);
    }
    Ok(examples)
}

/// Whether a row is a prompt without a reply.
fn is_asked(record: &Record) -> bool {
    match &record.content {
        Content::Tokens { input_ids, prompt_length, .. } => input_ids.len() == *prompt_length,
        Content::Completion { prompt, completion } => completion.is_empty() && !prompt.is_empty(),
        Content::Instruction { output, .. } => output.is_empty(),
        Content::Preference { .. } | Content::Labelled { .. } => false,
        Content::Chat { messages, .. } => {
            messages.last().is_some_and(|message| message.text().is_empty())
        }
    }
}

/// Prompts with the frozen model's greedy replies, whose every token is labelled.
fn replied(
    asked: &[Record],
    encoding: &Encoding,
    model: &dyn Model,
    options: &ObjectiveOptions,
) -> Result<Vec<Example>> {
    let row = |record: &Record| -> Result<Row> {
        let ids = match (&record.content, &encoding.text) {
            (Content::Tokens { input_ids, .. }, _) => input_ids.clone(),
            (_, Some(text)) => text.prompt(record)?,
            (_, None) => bail!("the rows are text and the model has no tokenizer; give input_ids"),
        };
        Ok(Row::prompt(ids))
    };
    let rows = asked.iter().map(row).collect::<Result<Vec<_>>>()?;
    let own = encoding.text.map(|text| GenerationConfig::of(text.tokenizer)).unwrap_or_default();
    let config = GenerationConfig {
        max_new_tokens: options.replay_tokens,
        batch_size: Some(AT_ONCE),
        ..own
    };
    let on_token = &mut |_row: usize, _id: i64| ControlFlow::Continue(());
    let replies = generate(model, &AdapterStack::EMPTY, &rows, &config, on_token)?;
    let example = |((record, row), reply): ((&Record, Row), reft_models::Generated)| {
        let prompt_length = row.prompt_length;
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&reply.ids);
        let input_ids = [row.input_ids, reply.ids].concat();
        let row =
            Row { input_ids, prompt_length, subspace: record.subspace.clone(), ..Row::default() };
        Example::of(record.id.clone(), row, labels)
    };
    Ok(asked.iter().zip(rows).zip(replies).map(example).collect())
}
