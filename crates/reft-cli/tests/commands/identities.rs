//! Runs and reports belong to the content of their weights and data, not to the paths.

use reft_test_support::change_values;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::compare::{bench, compare};
use crate::das;
use crate::files::{losses, many_rows, model_copy};
use crate::interruption::{start, wait_for_step};
use crate::runs::{args, run, succeed};

/// Changes one number of a model's weights.
fn change(model: &Path) -> Result {
    change_values(&model.join("model.safetensors"), |tensors| {
        let norm = tensors.get_mut("model.norm.weight").map(|(_, values)| values);
        norm.into_iter().flatten().take(1).for_each(|x| *x += 0.5);
    })
}

#[test]
fn a_run_goes_on_with_the_weights_it_was_begun_with_wherever_they_lie() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, model) = (many_rows(dir.path(), 8)?, model_copy(dir.path())?);
    let train = |output: &Path| -> Vec<OsString> {
        let mut words = args!["train", "--model", model, "--data", data, "--output", output];
        words.extend(args!["--max-steps", "120", "--rank", "2", "--threads", "1"]);
        words.extend(args!["--batch-size", "2", "--checkpoint-every", "3"]);
        words
    };
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    succeed(train(&whole))?;
    let mut killed = start(train(&broken))?;
    wait_for_step(&mut killed, &broken, 7)?;
    killed.kill()?;
    killed.wait()?;
    assert!(losses(&broken)?.len() < 120, "the run had ended already");

    let weights = fs::read(model.join("model.safetensors"))?;
    change(&model)?;
    let resume = args!["train", "--resume", "--output", broken];
    let refused = run(resume.clone())?;
    assert!(
        refused.code == Some(1) && refused.stderr.contains("cannot resume: weights_digest was"),
        "{}",
        refused.stderr
    );
    fs::write(model.join("model.safetensors"), weights)?;
    let (elsewhere, other_data) = (dir.path().join("elsewhere"), dir.path().join("rows.jsonl"));
    fs::rename(&model, &elsewhere)?;
    fs::rename(&data, &other_data)?;

    // checkpoints of versions that did not check weights have no digest
    let older = dir.path().join("older");
    let status = std::process::Command::new("cp").arg("-r").args([&broken, &older]).status()?;
    assert!(status.success());
    for checkpoint in fs::read_dir(older.join("checkpoint"))? {
        let state = checkpoint?.path().join("trainer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&state)?)?;
        let identity = json["identity"].as_object_mut().ok_or("an identity")?;
        assert!(identity.remove("weights_digest").is_some());
        fs::write(&state, json.to_string())?;
    }
    for (run, warns) in [(&broken, false), (&older, true)] {
        let resume = args!["train", "--resume", "--output", run];
        let moved = args!["--model", elsewhere, "--data", other_data];
        let resumed = succeed([resume, moved].concat())?;
        let warned = resumed.stderr.contains("did not note its model's weights");
        assert_eq!(warned, warns, "{}", resumed.stderr);
        assert_eq!(losses(run)?, losses(&whole)?);
    }
    Ok(())
}

#[test]
fn a_comparison_is_run_again_with_other_weights_and_not_for_another_path() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let again = |flags: Vec<OsString>| -> Result<usize> {
        let done = succeed([compare(dir.path(), &output), flags].concat())?;
        Ok(done.stderr.matches("finished before").count())
    };
    assert_eq!((again(vec![])?, again(vec![])?), (0, 3));
    change(&dir.path().join("model"))?;
    assert_eq!((again(vec![])?, again(vec![])?), (0, 3));
    Ok(())
}

/// An older comparison has cells with the model's name only. The digest of the weights is added, and other weights are refused.
#[test]
fn a_comparison_of_before_is_not_gone_on_with_in_other_weights() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let plan = output.join("plan.json");
    fs::create_dir(&output)?;
    fs::write(&plan, r#"{"format_version": 2}"#)?;
    succeed(compare(dir.path(), &output))?;
    let mut older: Value = serde_json::from_slice(&fs::read(&plan)?)?;
    assert_eq!(older["format_version"], 2);
    let digest = older.as_object_mut().ok_or("a plan")?.remove("weights");
    assert!(digest.is_some());
    fs::write(&plan, older.to_string())?;
    let done = succeed(compare(dir.path(), &output))?;
    assert_eq!(done.stderr.matches("finished before").count(), 3, "{}", done.stderr);
    let noted: Value = serde_json::from_slice(&fs::read(&plan)?)?;
    assert_eq!(noted.get("weights"), digest.as_ref());
    change(&dir.path().join("model"))?;
    let refused = run(compare(dir.path(), &output))?;
    assert!(
        refused.code == Some(1)
            && refused.stderr.contains("the weights of the model have changed since"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn a_search_is_made_again_in_other_weights() -> Result {
    let dir = tempfile::tempdir()?;
    let model = das::model(dir.path())?;
    let search = || -> Result<usize> {
        let done = succeed(das::arguments(dir.path(), &model, das::TASK, &[])?)?;
        Ok(done.stderr.matches(": IIA ").count())
    };
    assert_eq!((search()?, search()?), (8, 0));
    change(&model)?;
    assert_eq!((search()?, search()?), (8, 0));
    // a search of an older version, whose cells have the model's name only
    let file = dir.path().join("out/das.json");
    let mut older: Value = serde_json::from_slice(&fs::read(&file)?)?;
    older["format_version"] = 2.into();
    fs::write(&file, older.to_string())?;
    assert_eq!((search()?, search()?), (8, 0));
    change(&model)?;
    let refused = run(das::arguments(dir.path(), &model, das::TASK, &[])?)?;
    assert!(
        refused.code == Some(1) && refused.stderr.contains("have changed since the search"),
        "{}",
        refused.stderr
    );
    Ok(())
}
