use std::path::Path;

use anyhow::{Result, bail};
use reft_causal::{area_under_curve, latents};
use reft_models::{Decoder, Row};
use reft_train::{Encoding, REFT_R1, TextEncoder, read_labelled};
use serde_json::{Value, json};

use crate::generation::prompts::lines;
use crate::steering::sources::{Source, row};
use crate::terminal::output;

/// A text as tokens, and whether it shows the concept, if known.
struct Text {
    row: Row,
    is_shown: Option<bool>,
}

/// Prints, for each direction and text, the largest latent `relu(vᵀ h)` and its token. If the rows have concept labels, it also prints how
/// well the largest latents separate the texts: the area under the curve.
pub fn detect(
    file: &Path,
    sources: &[Source],
    model: &Decoder,
    encoder: TextEncoder,
    as_json: bool,
) -> Result<()> {
    let tokenizer = encoder.tokenizer;
    let texts = texts(file, encoder)?;
    let rows: Vec<Row> = texts.iter().map(|text| text.row.clone()).collect();
    let (mut all, mut said) = (Vec::new(), Vec::new());
    for source in sources {
        let directions = source.directions();
        if directions.is_empty() {
            bail!("--detect reads along a direction that is added, and {} has none", source.name);
        }
        for (site, v) in directions {
            let found = latents(model, site, &v, &rows)?;
            let (mut of_texts, mut scores) = (Vec::new(), Vec::new());
            for (latents, text) in found.iter().zip(&texts) {
                let largest = (0..latents.len()).max_by(|a, b| latents[*a].total_cmp(&latents[*b]));
                let at = largest.unwrap_or(0);
                let token = tokenizer.decode(&text.row.input_ids[at..=at], false)?;
                said.push(format!(
                    "{:>9.3}  at {token:?}  {}",
                    latents[at],
                    tokenizer.decode(&text.row.input_ids, true)?.replace('\n', " ")
                ));
                of_texts.push(json!({ "score": latents[at], "token": at, "latents": latents }));
                scores.extend(text.is_shown.map(|is_shown| (latents[at], is_shown)));
            }
            let area = area_under_curve(&scores);
            if let Some(area) = area {
                said.push(format!(
                    "{}, {site}: texts with the concept score higher than those without it in {:.1} % of pairs",
                    source.name,
                    100.0 * area
                ));
            }
            all.push(json!({
                "name": source.name, "site": site.to_string(), "texts": of_texts, "area_under_curve": area,
            }));
        }
    }
    output::result(as_json, &Value::from(all), || said.iter().try_for_each(output::line))
}

/// The texts of a file: lines of a `.txt` file, or rows with a text and a concept.
fn texts(file: &Path, encoder: TextEncoder) -> Result<Vec<Text>> {
    if file.extension().is_some_and(|extension| extension == "txt") {
        let text = |(_, line): &(usize, String)| {
            Ok(Text { row: row(encoder.tokenizer, line.trim())?, is_shown: None })
        };
        return lines(file)?.iter().map(text).collect();
    }
    let encoding = Encoding { text: Some(encoder), vocab_size: i64::MAX, max_length: usize::MAX };
    let examples = REFT_R1.examples(&read_labelled(file, None)?, &encoding, None)?;
    let text = |example: &reft_train::Example| Text {
        row: Row::prompt(example.row().input_ids.clone()),
        is_shown: example.value.map(|value| value > 0.0),
    };
    Ok(examples.iter().map(text).collect())
}
