use std::path::PathBuf;

use reft_methods::MethodOptions;
use reft_models::WeightStorage;
use reft_report::grouped;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::{FLOOR, GenerationSeconds, Machine, Measured, Precision, Result, TimingCase};

/// The measurements, method by method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimingReport {
    /// One per method, in the order asked for.
    pub rows: Vec<TimingRow>,
    /// The model, by its path.
    pub model: PathBuf,
    /// Whether its weights were random.
    pub random_weights: bool,
    /// Kind of the frozen model's numbers.
    pub kind: Precision,
    /// How the frozen model's matrices are stored in memory.
    pub weights: WeightStorage,
    /// Whether hidden states were rounded to eight bits in products.
    pub int8_products: bool,
    /// Memory of the frozen weights on the device, in 10⁶ bytes.
    pub weights_mb: f64,
    /// Whether each block is recomputed in the backward.
    pub checkpoint_activations: bool,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Prompt tokens of a row.
    pub prompt_length: usize,
    /// Tokens of a row after its prompt.
    pub response_length: usize,
    /// The given options; each method takes the options that it declares.
    pub options: MethodOptions,
    /// Whether the frozen model's part of rows was kept.
    pub reuse: bool,
    /// Number of turns of each method, each in its own process.
    pub rounds: usize,
    /// Timed steps per turn and epoch.
    pub steps_per_round: usize,
    /// The machine and the versions.
    pub machine: Machine,
}

/// One method.
///
/// The step's figures are from the epochs after the first if something of a row is cached (then [`Self::first_epoch`] has the figures of
/// the first), else from any step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimingRow {
    /// The method.
    pub method: String,
    /// Its steps.
    #[serde(flatten)]
    pub steps: StepSeconds,
    /// Tokens of a batch, prompts and responses, over the median.
    pub tokens_per_second: f64,
    /// The most memory that a process held while it trained, in 10⁶ bytes, where the system tells it.
    pub peak_memory_mb: Option<f64>,
    /// Memory of the GPU in use at the end, libtorch's own cache included, in 10⁶ bytes.
    pub device_memory_mb: Option<f64>,
    /// Trained parameters.
    pub trainable_parameters: i64,
    /// Median seconds of the orthonormal map in a step, forward and backward, if the method has one.
    pub map_seconds_median: Option<f64>,
    /// Steps of the first epoch, if later ones reuse cached activations: the first epoch computes them.
    pub first_epoch: Option<StepSeconds>,
    /// Generation, if it was timed.
    pub generation: Option<GenerationTiming>,
}

/// How long steps took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepSeconds {
    /// Seconds of the fastest step.
    pub step_seconds_min: f64,
    /// Median of the seconds of a step.
    pub step_seconds_median: f64,
    /// Seconds of every step.
    pub step_seconds: Vec<f64>,
}

/// Generation from a batch of prompts with the adapter, or with the base model for [`FLOOR`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationTiming {
    /// Tokens generated after each prompt.
    pub new_tokens: usize,
    /// Median of the seconds until the first token.
    pub prefill_seconds_median: f64,
    /// Median of the seconds of every further token, for all rows at once.
    pub decode_seconds_per_token_median: f64,
    /// Seconds until the first token, of every generation.
    pub prefill_seconds: Vec<f64>,
    /// Seconds of every further token, of every generation.
    pub decode_seconds_per_token: Vec<f64>,
}

/// Times cases of one model and shape, one per method, in turns: each round runs all methods one after the other, so that a change of the
/// machine's speed affects all of them. One turn has [`TimingCase::steps`] steps.
///
/// `run_one` must run [`measure`](crate::measure) in a separate process; `say` receives each result as a line.
///
/// # Errors
/// The first error of `run_one`.
///
/// # Panics
/// If there is no case or no round.
pub fn run_timing(
    cases: &[TimingCase],
    rounds: usize,
    device: Device,
    run_one: &mut dyn FnMut(&TimingCase) -> Result<Measured>,
    say: &mut dyn FnMut(&str),
) -> Result<TimingReport> {
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); cases.len()];
    for round in 1..=rounds {
        for (case, measured) in cases.iter().zip(&mut measured) {
            let one = run_one(case)?;
            let seconds = median(one.later_epochs.as_ref().unwrap_or(&one.first_epoch));
            say(&format!("round {round} of {rounds}: {} {seconds:.3} s/step", case.method));
            measured.push(one);
        }
    }
    let rows = cases.iter().zip(&measured);
    let case = &cases[0];
    Ok(TimingReport {
        rows: rows.map(|(case, measured)| TimingRow::new(case, measured)).collect(),
        model: case.model.clone(),
        random_weights: case.random_weights,
        kind: case.kind,
        weights: case.weights,
        int8_products: case.int8_products,
        batch_size: case.batch_size,
        prompt_length: case.prompt_length,
        response_length: case.response_length,
        options: case.options.clone(),
        weights_mb: measured[0][0].weight_bytes as f64 / 1e6,
        checkpoint_activations: case.checkpoint_activations,
        reuse: case.reuse,
        rounds,
        steps_per_round: case.steps,
        machine: Machine::here(device),
    })
}

impl TimingRow {
    fn new(case: &TimingCase, rounds: &[Measured]) -> Self {
        let all = |of: fn(&Measured) -> Vec<f64>| rounds.iter().flat_map(of).collect::<Vec<f64>>();
        let first = StepSeconds::new(all(|one| one.first_epoch.clone()));
        let later = all(|one| one.later_epochs.clone().unwrap_or_default());
        let map = all(|one| one.map_seconds.clone().unwrap_or_default());
        let generations: Vec<GenerationSeconds> =
            rounds.iter().flat_map(|one| one.generation.clone()).collect();
        let (steps, first_epoch) = match later.is_empty() {
            true => (first, None),
            false => (StepSeconds::new(later), Some(first)),
        };
        let tokens = case.batch_size * (case.prompt_length + case.response_length);
        let megabytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / 1e6);
        let peak = rounds.iter().filter_map(|one| one.peak_memory_bytes).max();
        let on_device = rounds.iter().filter_map(|one| one.device_memory_bytes).max();
        Self {
            method: case.method.clone(),
            tokens_per_second: tokens as f64 / steps.step_seconds_median,
            steps,
            peak_memory_mb: megabytes(peak),
            device_memory_mb: megabytes(on_device),
            trainable_parameters: rounds[0].trainable_parameters,
            map_seconds_median: (!map.is_empty()).then(|| median(&map)),
            first_epoch,
            generation: GenerationTiming::new(case.new_tokens, &generations),
        }
    }
}

impl StepSeconds {
    fn new(step_seconds: Vec<f64>) -> Self {
        Self {
            step_seconds_min: step_seconds.iter().copied().fold(f64::INFINITY, f64::min),
            step_seconds_median: median(&step_seconds),
            step_seconds,
        }
    }
}

impl GenerationTiming {
    fn new(new_tokens: usize, generations: &[GenerationSeconds]) -> Option<Self> {
        let prefill: Vec<f64> = generations.iter().map(|one| one.prefill).collect();
        let decode: Vec<f64> = generations.iter().map(|one| one.decode_per_token).collect();
        (!generations.is_empty()).then(|| Self {
            new_tokens,
            prefill_seconds_median: median(&prefill),
            decode_seconds_per_token_median: median(&decode),
            prefill_seconds: prefill,
            decode_seconds_per_token: decode,
        })
    }
}

impl TimingReport {
    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let mut columns = vec!["method", "s/step", "fastest", "first epoch"];
        let floor = self.rows.iter().find(|row| row.method == FLOOR);
        columns.extend(floor.map(|_| "× floor"));
        columns.extend(["tokens/s", "peak memory", "trained"]);
        let generates = self.rows.iter().any(|row| row.generation.is_some());
        columns.extend(generates.then_some(["prefill s", "decode ms/token"]).iter().flatten());
        let mut lines = vec![columns.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for row in &self.rows {
            let mut cells = vec![
                row.method.clone(),
                format!("{:.4}", row.steps.step_seconds_median),
                format!("{:.4}", row.steps.step_seconds_min),
                or_dash(row.first_epoch.as_ref().map(|e| format!("{:.4}", e.step_seconds_median))),
            ];
            cells.extend(floor.map(|floor| {
                format!("{:.3}", row.steps.step_seconds_median / floor.steps.step_seconds_median)
            }));
            cells.push(grouped(row.tokens_per_second as i64));
            cells.push(or_dash(
                row.peak_memory_mb.map(|mb| format!("{} MB", grouped(mb.round() as i64))),
            ));
            cells.push(grouped(row.trainable_parameters));
            if let Some(generation) = &row.generation {
                cells.push(format!("{:.4}", generation.prefill_seconds_median));
                cells.push(format!("{:.2}", 1e3 * generation.decode_seconds_per_token_median));
            }
            lines.push(cells);
        }
        aligned(&lines)
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// Lines of cells in aligned columns: the first column to the left, the others to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|c| c.chars().count()).max()
    };
    let line = |cells: &Vec<String>| {
        let cell = |(column, text): (usize, &String)| {
            let width = width(column).unwrap_or(0);
            if column == 0 { format!("{text:width$}") } else { format!("{text:>width$}") }
        };
        cells.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ") + "\n"
    };
    lines.iter().map(line).collect()
}

/// The middle value; the mean of the two middle ones if the number is even.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(method: &str) -> TimingCase {
        TimingCase {
            model: "model".into(),
            random_weights: false,
            kind: Precision::F32,
            method: method.to_owned(),
            options: MethodOptions::default(),
            batch_size: 3,
            prompt_length: 17,
            response_length: 3,
            steps: 2,
            reuse: true,
            weights: WeightStorage::Dense,
            int8_products: false,
            checkpoint_activations: false,
            new_tokens: 4,
        }
    }

    fn measured(first: [f64; 2], later: Option<[f64; 2]>, peak: u64) -> Measured {
        let decode_per_token = first[0] / 100.0;
        Measured {
            first_epoch: first.to_vec(),
            later_epochs: later.map(|later| later.to_vec()),
            peak_memory_bytes: Some(peak),
            device_memory_bytes: None,
            weight_bytes: 500_000,
            trainable_parameters: 1_234,
            map_seconds: later.map(|later| vec![later[0] / 64.0]),
            generation: vec![GenerationSeconds { prefill: first[1], decode_per_token }],
        }
    }

    fn report() -> Result<(TimingReport, Vec<String>)> {
        let mut results = vec![
            measured([4.0, 5.0], None, 3_000_000),
            measured([2.0, 8.0], Some([0.5, 0.25]), 1_000_000),
            measured([6.0, 9.0], None, 2_000_000),
            measured([3.0, 1.0], Some([0.75, 1.5]), 7_000_000),
        ]
        .into_iter();
        let mut order = Vec::new();
        let cases = [case(FLOOR), case("loreft")];
        let mut run_one = |case: &TimingCase| {
            order.push(case.method.clone());
            Ok(results.next().expect("invariant: two methods in two rounds"))
        };
        let report = run_timing(&cases, 2, Device::Cpu, &mut run_one, &mut |_| {})?;
        Ok((report, order))
    }

    #[test]
    fn methods_take_turns_and_figures_are_of_all_rounds() -> Result<()> {
        let (report, order) = report()?;
        assert_eq!(order, [FLOOR, "loreft", FLOOR, "loreft"]);
        let [floor, loreft] = &report.rows[..] else { panic!("two rows") };
        let of = |steps: &StepSeconds| (steps.step_seconds_min, steps.step_seconds_median);
        assert_eq!(floor.steps.step_seconds, [4.0, 5.0, 6.0, 9.0]);
        assert_eq!(of(&floor.steps), (4.0, 5.5));
        assert_eq!(floor.tokens_per_second, 60.0 / 5.5);
        assert_eq!((floor.peak_memory_mb, floor.first_epoch.as_ref()), (Some(3.0), None));
        assert_eq!(of(&loreft.steps), (0.25, 0.625));
        assert_eq!((loreft.peak_memory_mb, loreft.trainable_parameters), (Some(7.0), 1_234));
        assert_eq!(
            (floor.map_seconds_median, loreft.map_seconds_median),
            (None, Some(0.625 / 64.0))
        );
        let first = loreft.first_epoch.as_ref().expect("kept");
        assert_eq!(of(first), (1.0, 2.5));
        let generation = loreft.generation.as_ref().expect("timed");
        assert_eq!(generation.prefill_seconds, [8.0, 1.0]);
        assert_eq!(generation.decode_seconds_per_token_median, 0.025);
        Ok(())
    }

    #[test]
    fn the_table_sets_methods_against_the_floor() -> Result<()> {
        let table = report()?.0.table();
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        let floor = ["floor", "5.5000", "4.0000", "-", "1.000", "10", "3", "MB", "1,234"];
        assert_eq!(lines[1], [&floor[..], &["7.0000", "50.00"]].concat());
        assert_eq!(lines[2][..5], ["loreft", "0.6250", "0.2500", "2.5000", "0.114"]);
        Ok(())
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
