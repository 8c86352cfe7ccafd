//! The times of both sides, and their ratios.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::rivals::configuration::Configuration;

/// The turns of both sides at one configuration.
#[derive(Debug, Default)]
pub struct Turns {
    /// The results of `tools/rivals/measure.py`, turn by turn.
    pub rival: Vec<Value>,
    /// The row of `reft bench --json`, turn by turn.
    pub ours: Vec<Value>,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    title: String,
    rival_seconds: f64,
    our_seconds: f64,
    /// Peak memory of both sides in 10⁶ bytes; `None` in further lines of the same turns.
    memory: Option<(f64, f64)>,
}

impl Turns {
    /// The figures of a configuration: medians of all turns, the highest of the peaks.
    pub fn lines(&self, configuration: &Configuration) -> Result<Vec<Line>> {
        let title = configuration.title;
        let peak = |turns: &[Value]| -> Result<f64> {
            let peaks = turns.iter().map(|turn| turn["peak_memory_mb"].as_f64());
            let peaks: Option<Vec<f64>> = peaks.collect();
            Ok(peaks.context("a turn has no peak_memory_mb")?.into_iter().fold(0.0, f64::max))
        };
        if configuration.new_tokens > 0 {
            return self.generation_lines(configuration);
        }
        let memory = Some((peak(&self.rival)?, peak(&self.ours)?));
        let rival_seconds = median(seconds(&self.rival, "/step_seconds"))?;
        let line = |title: String, field: &str, memory| -> Result<Line> {
            let our_seconds = median(seconds(&self.ours, field))?;
            Ok(Line { title, rival_seconds, our_seconds, memory })
        };
        if self.ours.iter().all(|turn| turn["first_epoch"].is_null()) {
            return Ok(vec![line(title.to_owned(), "/step_seconds", memory)?]);
        }
        Ok(vec![
            line(format!("{title}, first epoch"), "/first_epoch/step_seconds", memory)?,
            line(format!("{title}, later epochs"), "/step_seconds", None)?,
        ])
    }

    fn generation_lines(&self, configuration: &Configuration) -> Result<Vec<Line>> {
        let (title, n) = (configuration.title, configuration.new_tokens as f64);
        let rival = |field: &str| {
            let turns = self.rival.iter().filter_map(|turn| turn["generation"].as_array());
            let values: Vec<f64> = turns.flatten().filter_map(|one| one[field].as_f64()).collect();
            median(values)
        };
        let ours = |field: &str| median(seconds(&self.ours, &format!("/generation/{field}")));
        let prefill = (rival("prefill")?, ours("prefill_seconds")?);
        let decode = (rival("decode_per_token")?, ours("decode_seconds_per_token")?);
        let line = |what: &str, (rival_seconds, our_seconds): (f64, f64)| Line {
            title: format!("{title}{what}"),
            rival_seconds,
            our_seconds,
            memory: None,
        };
        let whole = |prefill: f64, decode: f64| prefill + (n - 1.0) * decode;
        Ok(vec![
            line("", (whole(prefill.0, decode.0), whole(prefill.1, decode.1))),
            line(": prefill", prefill),
            line(": each further token", decode),
        ])
    }
}

impl Line {
    /// The head of the table.
    pub const HEAD: &str = "\
| configuration | rival s | our s | ratio | rival peak MB | our peak MB | of the rival's |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
";

    /// The line in Markdown.
    pub fn markdown(&self) -> String {
        let Self { title, rival_seconds, our_seconds, memory } = self;
        let memory = match memory {
            Some((rival, ours)) => {
                format!("{rival:.0} | {ours:.0} | {:.0} %", 100.0 * ours / rival)
            }
            None => "| | ".to_owned(),
        };
        let ratio = rival_seconds / our_seconds;
        format!("| {title} | {rival_seconds:.3} | {our_seconds:.3} | {ratio:.2} | {memory} |\n")
    }
}

/// The numbers of a list of each turn, all together.
fn seconds(turns: &[Value], pointer: &str) -> Vec<f64> {
    let lists = turns.iter().filter_map(|turn| turn.pointer(pointer)?.as_array());
    lists.flatten().filter_map(Value::as_f64).collect()
}

/// The middle value; the mean of the two middle ones if the number is even.
fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).context("a side has printed no seconds")?;
    Ok(if values.len() % 2 == 1 { *upper } else { (values[middle - 1] + upper) / 2.0 })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rivals::configuration::CONFIGURATIONS;

    fn configuration(name: &str) -> &'static Configuration {
        CONFIGURATIONS.iter().find(|one| one.name == name).expect("there is one")
    }

    #[test]
    fn ratios_are_of_the_medians_of_all_turns() -> Result<()> {
        let turns = Turns {
            rival: vec![
                json!({"step_seconds": [4.0, 9.0], "peak_memory_mb": 4000.0}),
                json!({"step_seconds": [5.0], "peak_memory_mb": 3000.0}),
            ],
            ours: vec![
                json!({"step_seconds": [2.0], "first_epoch": null, "peak_memory_mb": 900.0}),
                json!({"step_seconds": [3.0], "first_epoch": null, "peak_memory_mb": 1000.0}),
            ],
        };
        let lines = turns.lines(configuration("lora-qv"))?;
        let expected = "| LoRA q,v r8 | 5.000 | 2.500 | 2.00 | 4000 | 1000 | 25 % |\n";
        assert_eq!(lines.iter().map(Line::markdown).collect::<String>(), expected);
        Ok(())
    }

    #[test]
    fn epochs_have_a_line_each_where_they_differ() -> Result<()> {
        let first_epoch = json!({"step_seconds": [2.0]});
        let turns = Turns {
            rival: vec![json!({"step_seconds": [4.0], "peak_memory_mb": 1.0})],
            ours: vec![
                json!({"step_seconds": [0.5], "first_epoch": first_epoch, "peak_memory_mb": 1.0}),
            ],
        };
        let lines = turns.lines(configuration("loreft-l1"))?;
        let ratios: Vec<f64> = lines.iter().map(|l| l.rival_seconds / l.our_seconds).collect();
        assert_eq!(ratios, [2.0, 8.0]);
        assert!(
            lines[0].title.ends_with("first epoch") && lines[1].title.ends_with("later epochs")
        );
        assert_eq!(lines[1].memory, None);
        Ok(())
    }

    #[test]
    fn generation_is_prefill_and_all_further_tokens() -> Result<()> {
        let generation = json!({"prefill_seconds": [1.0], "decode_seconds_per_token": [0.5]});
        let turns = Turns {
            rival: vec![json!({"generation": [{"prefill": 2.0, "decode_per_token": 1.0}]})],
            ours: vec![json!({"generation": generation})],
        };
        let lines = turns.lines(configuration("generate"))?;
        let seconds: Vec<_> = lines.iter().map(|l| (l.rival_seconds, l.our_seconds)).collect();
        assert_eq!(seconds, [(65.0, 32.5), (2.0, 1.0), (1.0, 0.5)]);
        Ok(())
    }

    #[test]
    fn a_side_without_figures_is_an_error() {
        let turns = Turns { rival: vec![json!({"peak_memory_mb": 1.0})], ours: Vec::new() };
        assert!(turns.lines(configuration("full")).is_err());
    }
}
