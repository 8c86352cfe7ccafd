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
        let neutral = file.config.neutral.as_ref().ok_or("no neutral text")?;
        assert!(file.beside(neutral).is_file());
        assert!(file.config.seeds.len() >= 3);
        assert!(file.config.clone().quick().data.train_size < file.config.data.train_size);
        found.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    found.sort();
    assert_eq!(found, ["arc-easy", "sst2", "svamp"]);
    Ok(())
}
