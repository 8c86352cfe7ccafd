//! Checkpoints on disk: written completely or not at all, read by name, refused if they are damaged.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use reft_models::{
    Error, Weights, atomic_directory, atomic_write, load_safetensors, load_safetensors_metadata,
    save_safetensors,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const KINDS: [Kind; 10] = [
    Kind::Float,
    Kind::Half,
    Kind::BFloat16,
    Kind::Double,
    Kind::Int64,
    Kind::Int,
    Kind::Int16,
    Kind::Int8,
    Kind::Uint8,
    Kind::Bool,
];

/// A matrix that is neither square nor contiguous, with a zero and values that every kind rounds differently.
fn sample(kind: Kind) -> Tensor {
    (Tensor::arange(6, (Kind::Double, Device::Cpu)) * 1.37).reshape([2, 3]).tr().to_kind(kind)
}

/// A tensor that a model needs.
fn wanted<'a>(name: &'a str, shape: &'a [i64]) -> (&'a str, &'a [i64]) {
    (name, shape)
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Metadata come from a hash map, whose order differs each time.
#[test]
fn one_content_is_one_file_byte_for_byte() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("x.safetensors");
    let names = ["format", "base_model", "é \"quoted\"", "a", "z", "merged"];
    let write = || -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let metadata = names.map(|name| (name.to_owned(), format!("{name}\n/"))).into();
        save_safetensors(&path, &[("w".to_owned(), sample(Kind::Float))], Some(metadata))?;
        Ok(fs::read(&path)?)
    };
    let first = write()?;
    for _ in 0..20 {
        assert!(write()? == first, "the file differs");
    }
    let found = load_safetensors_metadata(&path)?;
    assert_eq!(found.len(), names.len());
    assert!(names.iter().all(|name| found[*name] == format!("{name}\n/")), "{found:?}");
    assert_eq!(load_safetensors(&path)?["w"], sample(Kind::Float));
    let header = String::from_utf8_lossy(&first[8..]);
    let places: Vec<_> = ["\"a\"", "base_model", "format", "merged"].map(|n| header.find(n)).into();
    assert!(places.is_sorted() && places[0].is_some(), "{header}");
    Ok(())
}

#[test]
fn every_kind_comes_back_bit_equal_with_its_shape() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("small.safetensors");
    let mut tensors: Vec<(String, Tensor)> =
        KINDS.iter().map(|&kind| (format!("{kind:?}"), sample(kind))).collect();
    tensors.push(("scalar".to_owned(), Tensor::from(-7i64)));
    tensors.push(("empty".to_owned(), Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))));
    let metadata: HashMap<String, String> = [("format".to_owned(), "pt".to_owned())].into();
    save_safetensors(&path, &tensors, Some(metadata))?;
    let read = load_safetensors(&path)?;
    assert_eq!(read.len(), tensors.len());
    for (name, expected) in &tensors {
        assert_eq!(read[name].kind(), expected.kind(), "{name}");
        assert_eq!(read[name], *expected, "{name}");
        assert_eq!(read[name].size(), expected.size(), "{name}");
    }
    assert_eq!(load_safetensors_metadata(&path)?["format"], "pt");
    assert_eq!(entries(directory.path()), ["small.safetensors"]);
    Ok(())
}

#[test]
fn loading_converts_to_the_kind_that_is_asked_for() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("model.safetensors");
    let half = sample(Kind::BFloat16);
    save_safetensors(&path, &[("w".to_owned(), half.shallow_clone())], None)?;
    let weights = Weights::open(directory.path())?;
    assert_eq!(weights.names().collect::<Vec<_>>(), ["w"]);
    assert_eq!(weights.shape("w"), Some([3, 2].as_slice()));
    assert_eq!(weights.load("w", Kind::Float, Device::Cpu)?, half.to_kind(Kind::Float));
    let lost = weights.load("v", Kind::Float, Device::Cpu);
    assert!(matches!(lost, Err(Error::UnknownTensor { name, .. }) if name == "v"));
    Ok(())
}

#[cfg(unix)]
#[test]
fn files_and_directories_get_the_mode_of_plainly_made_ones() -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    fs::write(at("plain"), "")?;
    fs::create_dir(at("plain.d"))?;
    save_safetensors(&at("ours"), &[("w".to_owned(), sample(Kind::Float))], None)?;
    atomic_directory::<Error>(&at("ours.d"), |_| Ok(()))?;
    let mode = |name: &str| fs::metadata(at(name)).map(|m| m.permissions().mode());
    assert_eq!(mode("ours")?, mode("plain")?);
    assert_eq!(mode("ours.d")?, mode("plain.d")?);
    Ok(())
}

#[test]
fn a_failed_write_leaves_what_was_there() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("file");
    fs::write(&path, "before")?;
    let failed: Result<(), Error> = atomic_write(&path, |temporary| {
        fs::write(temporary, "half of what").ok();
        Err(Error::EmptyBatch)
    });
    assert!(matches!(failed, Err(Error::EmptyBatch)));
    assert_eq!(fs::read_to_string(&path)?, "before");
    let failed: Result<(), Error> = atomic_directory(&directory.path().join("d"), |temporary| {
        fs::write(temporary.join("one"), "of two").ok();
        Err(Error::EmptyBatch)
    });
    assert!(matches!(failed, Err(Error::EmptyBatch)));
    assert_eq!(entries(directory.path()), ["file"]);
    Ok(())
}

#[test]
fn a_directory_with_something_in_it_is_not_replaced() -> Outcome {
    let directory = tempfile::tempdir()?;
    let place = directory.path().join("there");
    fs::create_dir(&place)?;
    atomic_directory::<Error>(&place, |d| {
        fs::write(d.join("a"), "1").map_err(|source| Error::Io {
            action: "write",
            path: d.to_owned(),
            source,
        })
    })?;
    assert_eq!(entries(&place), ["a"]);
    let refused = atomic_directory::<Error>(&place, |_| Ok(()));
    assert!(matches!(refused, Err(Error::OutputExists(path)) if path == place));
    assert_eq!(entries(directory.path()), ["there"]);
    assert_eq!(entries(&place), ["a"]);
    Ok(())
}

/// The shell caps the size of files, so that writing past it fails as on a full disk; this test runs itself under that cap.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() -> Outcome {
    const PLACE: &str = "REFT_TEST_FULL_DISK";
    if let Some(place) = std::env::var_os(PLACE) {
        let big = Tensor::ones([100_000], (Kind::Float, Device::Cpu));
        let path = Path::new(&place).join("big.safetensors");
        let failed = save_safetensors(&path, &[("w".to_owned(), big)], None);
        assert!(matches!(failed, Err(Error::Io { action: "write", .. })), "{failed:?}");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    // The output goes through a pipe: the limit would apply to an output file as well.
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact checkpoint_files::a_full_disk_is_an_error_and_leaves_nothing"])
        .arg(std::env::current_exe()?)
        .env(PLACE, directory.path())
        .output()?;
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(entries(directory.path()), [""; 0]);
    Ok(())
}

#[test]
fn a_name_given_twice_is_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let pair = [("w".to_owned(), sample(Kind::Float)), ("w".to_owned(), sample(Kind::Half))];
    let refused = save_safetensors(&directory.path().join("x"), &pair, None);
    assert!(matches!(refused, Err(Error::DuplicateTensor(name)) if name == "w"));
    Ok(())
}

#[test]
fn every_missing_unexpected_and_misshapen_tensor_is_named() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("model.safetensors");
    let tensors = ["a", "b", "extra", "extra2", "rotary.inv_freq"];
    let tensors = tensors.map(|name| (name.to_owned(), sample(Kind::Float)));
    save_safetensors(&path, &tensors, None)?;
    let weights = Weights::open(directory.path())?;
    let expected = [
        wanted("a", &[3, 2]),
        wanted("b", &[2, 3]),
        wanted("c", &[1]),
        wanted("d", &[1]),
        wanted("lm_head", &[1]),
    ];
    let ignore = |name: &str| name.ends_with("inv_freq") || name == "lm_head";
    let error = weights.check(expected, &ignore).expect_err("they differ");
    let text = error.to_string();
    let Error::WeightMismatch { missing, unexpected, misshapen, .. } = error else {
        return Err("another error".into());
    };
    assert_eq!(missing, ["c", "d"]);
    assert_eq!(unexpected, ["extra", "extra2"]);
    assert_eq!(misshapen, [("b".to_owned(), vec![3, 2], vec![2, 3])]);
    for part in
        ["missing: c", "missing: d", "unexpected: extra2", "b has shape [3, 2], expected [2, 3]"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let all = tensors.iter().map(|(name, _)| wanted(name, &[3, 2]));
    weights.check(all, &|_| false)?;
    Ok(())
}

/// Two shards and their index; `w` in the first, `v` in the second.
fn write_shards(directory: &Path, weight_map: serde_json::Value) -> Outcome {
    let shards = [("1.safetensors", "w", Kind::Float), ("2.safetensors", "v", Kind::Half)];
    for (file, name, kind) in shards {
        save_safetensors(&directory.join(file), &[(name.to_owned(), sample(kind))], None)?;
    }
    let index = json!({ "metadata": { "total_size": 36 }, "weight_map": weight_map });
    fs::write(directory.join("model.safetensors.index.json"), index.to_string())?;
    Ok(())
}

#[test]
fn shards_are_read_as_one_checkpoint() -> Outcome {
    let directory = tempfile::tempdir()?;
    write_shards(directory.path(), json!({ "w": "1.safetensors", "v": "2.safetensors" }))?;
    let weights = Weights::open(directory.path())?;
    assert_eq!(weights.names().collect::<Vec<_>>(), ["v", "w"]);
    assert_eq!(weights.load("v", Kind::Half, Device::Cpu)?, sample(Kind::Half));
    assert_eq!(weights.load("w", Kind::Float, Device::Cpu)?, sample(Kind::Float));
    Ok(())
}

#[test]
fn an_index_that_contradicts_its_shards_is_refused() -> Outcome {
    let cases = [
        (json!({ "w": "1.safetensors", "v": "3.safetensors" }), "3.safetensors"),
        (json!({ "w": "1.safetensors", "v": "1.safetensors" }), "holds no tensor v"),
        (json!({ "w": "../1.safetensors" }), "plain file name"),
    ];
    for (weight_map, part) in cases {
        let directory = tempfile::tempdir()?;
        write_shards(directory.path(), weight_map)?;
        let error = Weights::open(directory.path()).expect_err(part);
        assert!(matches!(&error, Error::Format { reason, .. } if reason.contains(part)), "{error}");
    }
    let directory = tempfile::tempdir()?;
    assert!(matches!(Weights::open(directory.path()), Err(Error::NoWeights { .. })));
    let nowhere = Weights::open(&directory.path().join("nowhere"));
    assert!(matches!(nowhere, Err(Error::Io { action: "read", .. })));
    fs::write(directory.path().join("model.safetensors.index.json"), "{\"weight_map\": 3}")?;
    assert!(matches!(Weights::open(directory.path()), Err(Error::Json { .. })));
    Ok(())
}

#[test]
fn a_tensor_outside_the_index_is_unexpected() -> Outcome {
    let directory = tempfile::tempdir()?;
    write_shards(directory.path(), json!({ "w": "1.safetensors" }))?;
    let two = ["w", "stray"].map(|name| (name.to_owned(), sample(Kind::Float)));
    save_safetensors(&directory.path().join("1.safetensors"), &two, None)?;
    let weights = Weights::open(directory.path())?;
    let error = weights.check([wanted("w", &[3, 2])], &|_| false);
    assert!(
        matches!(error, Err(Error::WeightMismatch { unexpected, .. }) if unexpected == ["stray"])
    );
    Ok(())
}

/// Reads everything that can be read, and expects only that it returns.
fn read_all(path: &Path) {
    if let Ok(weights) = Weights::open_file(path) {
        for name in weights.names().map(str::to_owned).collect::<Vec<_>>() {
            let _ = weights.load(&name, Kind::Float, Device::Cpu);
        }
    }
    let _ = load_safetensors_metadata(path);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_safetensors_never_panic(
        flips in proptest::collection::vec((0usize..400, any::<u8>()), 0..6),
        cut in proptest::option::of(0usize..600),
    ) {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("x.safetensors");
        let tensors = [("a".to_owned(), sample(Kind::Float)), ("b".to_owned(), sample(Kind::Int64))];
        save_safetensors(&path, &tensors, None).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut bytes = fs::read(&path)?;
        let whole = bytes.clone();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        fs::write(&path, &bytes)?;
        read_all(&path);
        if bytes.len() < whole.len() && bytes == whole[..bytes.len()] {
            let refused = Weights::open_file(&path);
            prop_assert!(matches!(refused, Err(Error::Safetensors { .. })), "{refused:?}");
        }
    }

    #[test]
    fn random_bytes_are_not_safetensors(bytes in proptest::collection::vec(any::<u8>(), 0..300), header in "\\PC{0,80}") {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("x.safetensors");
        fs::write(&path, &bytes)?;
        read_all(&path);
        let mut framed = (header.len() as u64).to_le_bytes().to_vec();
        framed.extend(header.as_bytes());
        fs::write(&path, framed)?;
        read_all(&path);
    }
}
