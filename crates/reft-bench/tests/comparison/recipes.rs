//! The comparisons that come with the project.

use std::path::Path;

use reft_bench::{Comparison, ConfigFile, TaskConfig};
use reft_methods::{LAYERS, POSITIONS, RANK, SHARE_WEIGHTS};
use reft_models::DecoderConfig;

use crate::tiny_model::TestResult;

#[test]
fn every_comparison_is_accepted_and_all_its_files_are_there() -> TestResult {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let describe = |model: &str| -> TestResult<_> {
        Ok(DecoderConfig::open(&root.join("tests/oracle").join(model))?.describe())
    };
    let (decoder, encoder) = (describe("tiny_llama")?, describe("encoders/bert")?);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("recipes"))? {
        let path = entry?.path();
        if path.is_dir() || !std::fs::read_to_string(&path)?.contains("[[method]]") {
            continue;
        }
        let file = ConfigFile::open(&path)?;
        let task = TaskConfig::open(&file.beside(&file.config.task))?;
        let is_told = task.kind.told().is_some();
        file.check_methods(if is_told { &encoder } else { &decoder })?;
        for options in file.config.method.iter().map(|method| &method.options) {
            let both_ends = options.get::<String>(&POSITIONS).is_some_and(|p| p.contains('+'));
            let says = options.get::<bool>(&SHARE_WEIGHTS).is_some();
            assert!(says || !both_ends, "{}: shared or not?", path.display());
        }
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
                let neutral = file.config.neutral.as_ref().map(|neutral| file.beside(neutral));
                assert!(neutral.map_or(is_told, |neutral| neutral.is_file())); // an encoder predicts none
                assert!(file.config.seeds.len() >= 3);
                assert!(quick.data.train_size < file.config.data.train_size);
            }
        }
        found.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    found.sort();
    let expected = [
        "arc-easy",
        "memorise",
        "metamath",
        "minilm-kinds",
        "minilm-sst2",
        "prompt-only",
        "question-kinds",
        "rotation-rate",
        "sst2",
        "svamp",
    ];
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn the_memorisation_recipe_is_a_grid_of_rank_1_edits_of_one_token() -> TestResult {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut model = DecoderConfig::open(&root.join("tests/oracle/tiny_llama"))?;
    model.model.num_hidden_layers = 30; // as many as the model that the recipe is for
    let file = ConfigFile::open(&root.join("recipes/memorise.toml"))?;
    let task = TaskConfig::open(&file.beside(&file.config.task))?;
    let comparison = Comparison { config: file.config.clone(), task, train_task: None };
    let points = file.points(&comparison, &model.describe())?;
    assert_eq!(points.len(), 6 * 5);
    for point in &points {
        let Comparison { config, task, .. } = &point.comparison;
        let options = &config.method[0].options;
        assert_eq!(options.get::<Vec<usize>>(&LAYERS).map(|layers| layers.len()), Some(1));
        assert_eq!(options.get::<i64>(&RANK), Some(1));
        assert_eq!(options.get::<String>(&POSITIONS).as_deref(), Some("l1"));
        let longest = task.length.ok_or("no length")? + 64; // room for the prompt
        assert!(longest <= config.train.options.max_length, "{} is cut", point.plan.name);
    }
    Ok(())
}
