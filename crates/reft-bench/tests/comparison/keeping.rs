//! Comparisons of methods with a divergence from the frozen model in the loss.

use crate::run::compare;
use crate::tiny_model::{Bench, TestResult};

const REPLAY: &str = "{\"prompt\": \"the fox\", \"completion\": \" jumps over\"}\n{\"prompt\": \"a dog\", \"completion\": \" is lazy\"}\n";

#[test]
fn a_divergence_is_a_part_of_every_methods_loss() -> TestResult {
    let bench = Bench::new()?;
    bench.write("replay.jsonl", REPLAY)?;
    let run = |name: &str, objective: &str, replays: bool| -> TestResult<Vec<Vec<f64>>> {
        let asked = format!("seeds = [0]\n\n{objective}");
        let mut config = bench.config("seeds = [0, 1]\n", &asked)?;
        config.replay = replays.then(|| bench.path("replay.jsonl"));
        config.method.iter_mut().for_each(|method| method.lr.truncate(1));
        let loaded = bench.load(config)?;
        let report = compare(&loaded, &bench.path(name), usize::MAX).0?;
        assert!(report.complete, "{name}");
        Ok(report.methods.into_iter().map(|method| method.losses).collect())
    };
    let plain = run("one", "", false)?;
    let kept = run("one", "[objective]\nkl_weight = 0.5\n", false)?; // the same directory: its cells have another identity and run again
    let replayed = run("three", "[objective]\nkl_weight = 0.5\nreplay_batch_size = 2\n", true)?;
    for ((plain, kept), replayed) in plain.iter().zip(&kept).zip(&replayed) {
        // before the first step the divergence from the frozen model is 0
        assert!((plain[0] - kept[0]).abs() < 1e-5 && (plain[0] - replayed[0]).abs() < 1e-5);
        let last = |losses: &Vec<f64>| losses[losses.len() - 1];
        assert!(last(kept) > last(plain) + 1e-3, "{} {}", last(kept), last(plain));
        assert!((last(replayed) - last(plain)).abs() > 1e-5 && last(replayed) != last(kept));
    }
    Ok(())
}

#[test]
fn what_is_no_objective_of_a_comparison_is_refused() -> TestResult {
    let bench = Bench::new()?;
    for (objective, words) in [
        ("[objective]\nobjective = \"reward\"\n", "follows from the task"),
        ("[objective]\nobjective = \"dpo\"\nreference = \"start\"\n", "reference is start"),
        ("[objective]\nkl_weight = 0.0\n", "kl_weight"),
        ("[objective]\nkl_top_k = 3\n", "kl_top_k"),
        ("replay = \"replay.jsonl\"\n", "without kl_weight"),
    ] {
        let asked = format!("seeds = [0]\n{objective}");
        let refused = bench.config("seeds = [0, 1]\n", &asked).map_err(|error| error.to_string());
        assert!(refused.as_ref().is_err_and(|text| text.contains(words)), "{refused:?}");
    }
    bench.write("task.toml", "type = \"classification\"\ncolumns = [\"text\", \"label\"]\n")?;
    let mut config =
        bench.config("seeds = [0, 1]\n", "seeds = [0]\n[objective]\nkl_weight = 1.0\n")?;
    config.neutral = None;
    let refused = bench.load(config).map_err(|error| error.to_string());
    assert!(
        refused.as_ref().is_err_and(|text| text.contains("labelled rows have none")),
        "{refused:?}"
    );
    Ok(())
}
