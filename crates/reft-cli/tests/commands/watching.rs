//! The page and the event files of a run, during the run and after its end.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::files::{losses, many_rows};
use crate::runs::{args, oracle, overridden, run, succeed};

fn training(data: &Path, output: &Path, more: Vec<OsString>) -> Vec<OsString> {
    let model = oracle("tiny_llama");
    let run = args!["train", "--model", model, "--data", data, "--output", output];
    let sizes = args!["--rank", "2", "--batch-size", "4", "--threads", "1", "--max-steps", "6"];
    overridden([run, sizes, more].concat())
}

/// The rows of validations: step and loss.
fn validations(run: &Path) -> Result<Vec<(u64, f64)>> {
    let text = fs::read_to_string(run.join("metrics.jsonl"))?;
    let rows =
        text.lines().map(serde_json::from_str).collect::<std::result::Result<Vec<_>, _>>()?;
    let found = rows
        .iter()
        .filter_map(|row: &Value| Some((row["step"].as_u64()?, row["validation_loss"].as_f64()?)));
    Ok(found.collect())
}

#[test]
fn a_finished_run_is_made_longer_and_never_shorter() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 8)?, dir.path().join("run"));
    succeed(training(&data, &output, args![]))?;
    let first = losses(&output)?;
    let resume = |more| [args!["train", "--resume", "--output", output], more].concat();
    let nothing = succeed(resume(args![]))?;
    assert!(nothing.stdout.contains("--epochs or --max-steps makes the run longer"));
    assert_eq!(losses(&output)?, first);
    let shorter = run(resume(args!["--max-steps", "5"]))?;
    assert_eq!(shorter.code, Some(1));
    assert!(shorter.stderr.contains("a run can be made longer"), "{}", shorter.stderr);
    // 5 epochs of 2 steps; the rate of step 7 on a line from 2e-3 at 0 to 0 at 10
    let longer = succeed(resume(args!["--epochs", "5"]))?;
    assert!(longer.stderr.contains("now has 10 steps"), "{}", longer.stderr);
    assert!(longer.stderr.contains("goes on at 8.000e-4"), "{}", longer.stderr);
    let all = losses(&output)?;
    assert_eq!((all.len(), &all[..6]), (10, &first[..]));
    let options = fs::read_to_string(output.join("train.toml"))?;
    assert!(options.contains("epochs = 5") && !options.contains("max_steps"), "{options}");
    Ok(())
}

#[test]
fn a_run_ends_when_validations_find_no_lower_loss_and_stays_ended() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 12)?;
    let (held_out, output) = (dir.path().join("held_out"), dir.path().join("run"));
    fs::create_dir(&held_out)?;
    // training soon raises the loss of these rows: each token is followed by another token than in the training data
    let row = |i: usize| {
        let ids: Vec<usize> =
            (0..6 + i % 5).map(|t| (7 * i + 13 * t + i * t + 64) % 128).rev().collect();
        format!("{{\"input_ids\": {ids:?}, \"prompt_length\": 3}}\n")
    };
    let held_out = held_out.join("rows.jsonl");
    fs::write(&held_out, (0..3).map(row).collect::<String>())?;
    let patience =
        args!["--lr", "3e-2", "--max-steps", "60", "--eval-every", "2", "--patience", "3"];
    let options = [patience, args!["--validation-data", held_out]].concat();
    let json = succeed([training(&data, &output, options), args!["--json"]].concat())?.stdout;
    let said: Value = serde_json::from_str(&json)?;
    let seen = validations(&output)?;
    let best = seen[1..].iter().min_by(|a, b| a.1.total_cmp(&b.1)).ok_or("no validation")?;
    let last = seen.last().ok_or("no validation")?;
    assert_eq!(last.0, best.0 + 6, "three validations after the best: {seen:?}");
    assert!(last.0 < 60, "no power: {seen:?}");
    assert_eq!(said["steps"], last.0);
    assert_eq!(said["best"]["step"], best.0);
    succeed(args!["train", "--resume", "--output", output])?;
    assert_eq!(losses(&output)?.len() as u64, last.0, "a step more was taken");
    // more patience is more steps
    succeed(args!["train", "--resume", "--output", output, "--patience", "4"])?;
    assert!(losses(&output)?.len() as u64 > last.0);

    let none = run(training(&data, &dir.path().join("none"), args!["--patience", "3"]))?;
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("--validation-data"), "{}", none.stderr);
    let both = args!["--validation", "0.5", "--validation-data", held_out];
    let both = run(training(&data, &dir.path().join("both"), both))?;
    assert_eq!(both.code, Some(2), "{}", both.stderr);
    Ok(())
}

#[test]
fn of_enough_examples_some_are_held_out_unasked() -> Result {
    let dir = tempfile::tempdir()?;
    for (n, more, held_out) in
        [(199, args![], 0), (200, args![], 10), (200, args!["--validation", "0"], 0)]
    {
        let data = many_rows(dir.path(), n)?;
        let output = dir.path().join("run");
        let one_step = [args!["--max-steps", "1"], more].concat();
        let overwrite = args!["--overwrite"];
        let said = succeed([training(&data, &output, one_step), overwrite].concat())?.stderr;
        assert_eq!(
            said.contains(&format!("{held_out} of {n} examples are held out")),
            held_out > 0
        );
        let options: toml::Table = fs::read_to_string(output.join("train.toml"))?.parse()?;
        assert_eq!(options["validation"].as_float(), Some(f64::from(held_out)));
        assert_eq!(validations(&output)?.len(), if held_out > 0 { 2 } else { 0 });
    }
    Ok(())
}

/// The event files of a run.
fn events(run: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(run)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.to_string_lossy().contains("/events.out.")).collect())
}

#[test]
fn a_run_shows_its_curves_and_replies_and_two_are_on_one_page() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let data = dir.path().join("data.jsonl");
    let row = |i: usize| format!("{{\"prompt\": \"a {i}\", \"completion\": \"<b>\"}}\n");
    fs::write(&data, (0..8).map(row).collect::<String>())?;
    let training = |output: &Path, more: Vec<OsString>| {
        let run = args!["train", "--model", model, "--data", data, "--output", output];
        let sizes = args!["--rank", "2", "--batch-size", "4", "--threads", "1", "--lr", "3e-2"];
        [run, sizes, more].concat()
    };
    let [plain, watched, killed] = ["plain", "watched", "killed"].map(|name| dir.path().join(name));
    let watch = args!["--sample-prompt", "a 1", "--sample-prompt", "z", "--sample-every", "2"];
    let watch = [watch, args!["--sample-tokens", "5", "--log", "tensorboard"]].concat();
    succeed(training(&plain, args!["--epochs", "2"]))?;
    let said = succeed(training(&watched, [args!["--epochs", "2"], watch.clone()].concat()))?;
    assert_eq!(losses(&watched)?, losses(&plain)?, "watching changes numbers");
    assert!(said.stderr.contains("step 4: \"z\" → "), "{}", said.stderr);

    // a resumed run has the replies of an uninterrupted run
    succeed(training(&killed, [args!["--epochs", "1"], watch].concat()))?;
    succeed(args!["train", "--resume", "--output", killed, "--epochs", "2"])?;
    let rows = |run: &Path| -> Result<Vec<Value>> {
        let text = fs::read_to_string(run.join("samples.jsonl"))?;
        Ok(text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
    };
    let of_watched = rows(&watched)?;
    let steps: Vec<Option<u64>> = of_watched.iter().map(|row| row["step"].as_u64()).collect();
    assert_eq!(steps, [None, None, Some(2), Some(2), Some(4), Some(4)]);
    assert_eq!(rows(&killed)?.len(), 6);
    assert_ne!(of_watched[0]["reply"], of_watched[4]["reply"], "no power");
    // the reply after the last step is the adapter's
    let adapter = args!["--adapter", watched, "--prompt", "a 1", "--max-new-tokens", "5"];
    let said = succeed([args!["generate", "--model", model], adapter].concat())?.stdout;
    assert_eq!(of_watched[4]["reply"].as_str(), Some(said.trim()));

    assert_eq!((events(&watched)?.len(), events(&killed)?.len()), (1, 2));
    let page = fs::read_to_string(watched.join("report.html"))?;
    for expected in ["Training loss", "Gradient norm", "after step 4", "<td>sample-every</td>"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(!page.contains("http") && !page.contains(&*dir.path().to_string_lossy()), "{page}");
    let both = dir.path().join("both.html");
    succeed(args!["report", plain, watched, "--output", both])?;
    let both = fs::read_to_string(both)?;
    assert!(both.contains("Options that differ") && both.contains("class=\"c1 curve\""));
    let none = run(args!["report", dir.path()])?;
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("holds no run of reft train"), "{}", none.stderr);
    assert!(run(args!["report", plain, watched])?.stderr.contains("--output is missing"));

    // starting anew removes all of it
    succeed(training(&watched, args!["--epochs", "1", "--overwrite"]))?;
    assert!(events(&watched)?.is_empty() && !watched.join("samples.jsonl").exists());
    Ok(())
}
