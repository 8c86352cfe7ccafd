//! The comparisons that come with the project.

use std::path::Path;

use reft_bench::{ConfigFile, TaskConfig};
use reft_models::DecoderConfig;

use crate::tiny_model::TestResult;

#[test]
fn every_comparison_is_accepted_and_all_its_files_are_there() -> TestResult {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let model = DecoderConfig::open(&root.join("tests/oracle/tiny_llama"))?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("recipes"))? {
        let path = entry?.path();
        if path.is_dir() || !std::fs::read_to_string(&path)?.contains("[[method]]") {
            continue;
        }
        let file = ConfigFile::open(&path)?;
        file.check_methods(&model)?;
        let task = TaskConfig::open(&file.beside(&file.config.task))?;
        if let Some(train_task) = &file.config.train_task {
            assert_eq!(TaskConfig::open(&file.beside(train_task))?.kind, task.kind);
        }
        let quick = file.config.clone().quick();
        match (&file.config.sweep, &quick.sweep) {
            (Some(whole), Some(quick)) => {
                assert!(quick.x.values.len() < whole.x.values.len());
                assert!(quick.y.values.len() < whole.y.values.len());
            }
            _ => {
                let neutral = file.config.neutral.as_ref().ok_or("no neutral text")?;
                assert!(file.beside(neutral).is_file());
                assert!(file.config.seeds.len() >= 3);
                assert!(quick.data.train_size < file.config.data.train_size);
            }
        }
        found.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    found.sort();
    assert_eq!(found, ["arc-easy", "memorise", "rotation-rate", "sst2", "svamp"]);
    Ok(())
}

#[test]
fn the_memorisation_recipe_is_a_grid_of_rank_1_edits_of_one_token() -> TestResult {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut model = DecoderConfig::open(&root.join("tests/oracle/tiny_llama"))?;
    model.num_hidden_layers = 30; // as many as the model that the recipe is for
    let file = ConfigFile::open(&root.join("recipes/memorise.toml"))?;
    let task = TaskConfig::open(&file.beside(&file.config.task))?;
    let points = file.points(&file.config, &task, None, &model)?;
    assert_eq!(points.len(), 6 * 5);
    for point in &points {
        let options = &point.config.method[0].options;
        assert_eq!(options.layers.as_ref().map(Vec::len), Some(1));
        assert_eq!((options.rank, options.positions), (Some(1), Some("l1".parse()?)));
        let longest = point.task.length.ok_or("no length")? + 64; // room for the prompt
        assert!(longest <= point.config.train.max_length, "{} is cut", point.name);
    }
    Ok(())
}
