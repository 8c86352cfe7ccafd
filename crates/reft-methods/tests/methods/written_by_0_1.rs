//! Adapters that version 0.1.0 wrote (`tests/written_by_0_1`) are written the same today.

use std::path::Path;

use reft_methods::{AdapterSummary, Methods, adapter_files};
use reft_models::{AdapterStack, load_safetensors, load_safetensors_metadata};

use crate::oracle::{Outcome, load_adapter, model, names_in, path};

const FOLDER: &str = "../written_by_0_1";

/// Checks that two files of an adapter are equal: configurations byte by byte, tensors' files in all entries (the order of their metadata may
/// differ).
fn assert_same(name: &str, found: &Path, expected: &Path) -> Outcome {
    let what = format!("{name}: {} is not what version 0.1.0 wrote", found.display());
    if expected.extension().is_some_and(|extension| extension == "json") {
        assert!(std::fs::read(found)? == std::fs::read(expected)?, "{what}");
        return Ok(());
    }
    assert_eq!(load_safetensors(found)?, load_safetensors(expected)?, "{what}");
    let (found, expected) =
        (load_safetensors_metadata(found)?, load_safetensors_metadata(expected)?);
    assert_eq!(found, expected, "{what}");
    Ok(())
}

#[test]
fn adapters_are_written_as_version_0_1_0_wrote_them() -> Outcome {
    let adapters = path(FOLDER).join("adapters");
    let names = names_in(&adapters)?;
    assert!(names.len() >= 40, "an adapter is missing");
    for name in names {
        let (theirs, model) = (adapters.join(&name), model(&format!("{FOLDER}/model"))?);
        let again = tempfile::tempdir()?;
        load_adapter(&theirs, &model)?.save(again.path())?;
        // a new adapter of the same method: another start, but the same configuration
        let base_model = AdapterSummary::read(&theirs)?.base_model_name.unwrap_or_default();
        let new = Methods::read(&theirs)?.build(&model, &base_model)?;
        let new_dir = tempfile::tempdir()?;
        AdapterStack::of_boxed(&new)?.save(new_dir.path())?;
        for file in adapter_files(&theirs)? {
            let own = file.strip_prefix(&theirs)?;
            assert_same(&name, &again.path().join(own), &file)?;
            if file.extension().is_some_and(|extension| extension == "json") {
                assert_same(&name, &new_dir.path().join(own), &file)?;
            }
        }
    }
    Ok(())
}
