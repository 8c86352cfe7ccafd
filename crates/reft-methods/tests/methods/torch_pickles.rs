//! `torch.save` files: every tensor of pyreft's read bit by bit, everything else refused.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use proptest::prelude::*;
use reft_methods::load_torch_pickle;
use reft_models::Error;
use tch::{Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::oracle::{self, Outcome};

const METHODS: [&str; 6] = ["loreft", "consreft", "direft", "lobireft", "nodireft", "noreft"];

/// Writes a zip as `torch.save` does: everything stored, below one directory.
fn write_zip(path: &Path, parts: &[(&str, &[u8])]) -> Outcome {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in parts {
        zip.start_file(format!("archive/{name}"), stored)?;
        zip.write_all(bytes)?;
    }
    fs::write(path, zip.finish()?.into_inner())?;
    Ok(())
}

/// Reads a pickle that refers to one storage of the floats 0 to 5.
fn load(pickle: &[u8]) -> Result<std::collections::BTreeMap<String, Tensor>, Error> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("x.bin");
    let floats: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    write_zip(&path, &[("data.pkl", pickle), ("byteorder", b"little"), ("data/0", &floats)])
        .expect("a zip");
    load_torch_pickle(&path)
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn tuple(items: &[i64]) -> Vec<u8> {
    let items: Vec<u8> =
        items.iter().flat_map(|&n| [b"J".as_slice(), &(n as i32).to_le_bytes()].concat()).collect();
    [b"(".as_slice(), &items, b"t"].concat()
}

/// `_rebuild_tensor_v2` of the one storage.
fn tensor(offset: i32, size: &[i64], stride: &[i64]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        b"K\x06tQJ".to_vec(),
        offset.to_le_bytes().to_vec(),
        tuple(size),
        tuple(stride),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

/// A dictionary with one entry, as a whole pickle.
fn dict_of(key: &str, value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}(".as_slice(), &text(key), value, b"u."].concat()
}

fn reason(pickle: &[u8]) -> String {
    match load(pickle) {
        Err(Error::Format { reason, .. }) => reason,
        other => format!("not refused: {other:?}"),
    }
}

#[test]
fn every_tensor_that_pyreft_saved_is_bit_equal() -> Outcome {
    let mut n_files = 0;
    let mut n_scalars = 0;
    for method in METHODS {
        let contents = oracle::tensors(&format!("reft_saved/{method}.bin_contents.safetensors"))?;
        let mut n_tensors = 0;
        for entry in fs::read_dir(oracle::path(&format!("reft_saved/{method}")))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "bin") {
                continue;
            }
            n_files += 1;
            let file = path.file_stem().ok_or("no name")?.to_string_lossy().into_owned();
            for (name, tensor) in load_torch_pickle(&path)? {
                let expected = &contents[&format!("{file}|{name}")];
                assert_eq!(tensor.kind(), expected.kind(), "{method} {name}");
                assert_eq!(tensor, *expected, "{method} {name}");
                assert!(tensor.is_contiguous());
                n_scalars += usize::from(tensor.size().is_empty());
                n_tensors += 1;
            }
        }
        assert_eq!(n_tensors, contents.len(), "{method}: tensors were left out");
    }
    assert_eq!(n_files, 12);
    assert!(n_scalars > 0, "the test has no power over embed_dim");
    Ok(())
}

#[test]
fn a_view_is_read_by_its_offset_and_strides() -> Outcome {
    let tensors = load(&dict_of("t", &tensor(1, &[2, 2], &[1, 2])))?;
    assert_eq!(tensors["t"], Tensor::from_slice(&[1f32, 3., 2., 4.]).reshape([2, 2]));
    let scalar = load(&dict_of("t", &tensor(5, &[], &[])))?;
    assert_eq!(scalar["t"].size(), [0i64; 0]);
    assert_eq!(f64::try_from(&scalar["t"])?, 5.0);
    Ok(())
}

#[test]
fn names_of_inner_dictionaries_are_joined_by_dots() -> Outcome {
    let inner = [b"}(".as_slice(), &text("b"), &tensor(0, &[6], &[1]), b"u"].concat();
    let tensors = load(&dict_of("a", &inner))?;
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a.b"]);
    assert_eq!(tensors["a.b"], Tensor::arange(6, (Kind::Float, tch::Device::Cpu)));
    Ok(())
}

#[test]
fn a_pickle_that_would_run_something_is_refused_by_name() {
    let call = [b"\x80\x02cos\nsystem\n(".as_slice(), &text("touch /tmp/owned"), b"tR."].concat();
    assert!(reason(&call).contains("os.system"), "{}", reason(&call));
    let hidden = dict_of("t", b"cbuiltins\neval\n");
    assert!(reason(&hidden).contains("builtins.eval"), "{}", reason(&hidden));
    // Other codes that make instances.
    for code in [b"i", b"o", b"\x81", b"\x92", b"\x93", b"P"] {
        let pickle = [b"\x80\x02".as_slice(), code, b"os\nsystem\n."].concat();
        assert!(reason(&pickle).contains("does not belong"), "{}", reason(&pickle));
    }
}

#[test]
fn views_outside_their_storage_are_refused() {
    let views: [(i32, &[i64], &[i64]); 7] = [
        (0, &[7], &[1]),
        (4, &[3], &[1]),
        (-1, &[2], &[1]),
        (0, &[2, 3], &[4, 1]),
        (5, &[2], &[-1]),
        (0, &[1 << 30, 1 << 30], &[0, 0]),
        (0, &[2, 3], &[1]),
    ];
    for (offset, size, stride) in views {
        let found = reason(&dict_of("t", &tensor(offset, size, stride)));
        let expected = ["does not fit", "its tensors take"];
        assert!(expected.iter().any(|part| found.contains(part)), "{size:?} {stride:?}: {found}");
    }
}

#[test]
fn what_is_no_dictionary_of_tensors_is_refused() {
    let cases: [(Vec<u8>, &str); 8] = [
        (b"\x80\x02K\x01.".to_vec(), "something other than a dictionary"),
        (dict_of("n", b"K\x01"), "neither a tensor nor a dictionary"),
        (b"\x80\x02}(K\x01K\x02u.".to_vec(), "is not a string"),
        (dict_of("t", b"}(X\x01\0\0\0aK\x01u}b"), "neither"),
        ([b"\x80\x02}q\x00(".as_slice(), &text("me"), b"h\x00u."].concat(), "two places"),
        (b"\x80\x02}(".to_vec(), "cut short"),
        (b"\x80\x02X\xff\xff\xff\xff".to_vec(), "cut short"),
        (b"\x80\x02t.".to_vec(), "mark"),
    ];
    for (pickle, part) in cases {
        let found = reason(&pickle);
        assert!(found.contains(part), "{part:?} is not in {found:?}");
    }
}

#[test]
fn deep_nesting_and_endless_sharing_cost_no_more_than_their_length() {
    let deep = [b"\x80\x02K\x01".as_slice(), &b"\x85".repeat(1 << 20), b"."].concat();
    assert!(reason(&deep).contains("something other"));
    // A tuple that holds the previous tuple twice, sixty times over: 2^60 leaves if copied.
    let doubled = [b"\x80\x02K\x01".as_slice(), &b"q\x00h\x00\x86".repeat(60), b"."].concat();
    assert!(reason(&doubled).contains("something other"));
}

/// The most memory that this process has held, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no peak")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Values written once and referred to often, in files of 200 kB: copies of each would take gigabytes.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_by_a_constant_times_the_file() -> Outcome {
    let memoised = |slot: u8, value: &[u8]| [value, &[b'q', slot]].concat();
    let storage = [
        &b"("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x06tQ",
    ]
    .concat();
    let long = tuple(&[0; 12_000]); // 60 kB
    let most = tuple(&[0; 64]);
    let tensor_of = |size: &[u8]| {
        let arguments = [&b"("[..], b"h\0K\0h\x01h\x01t"].concat();
        let parts = [
            memoised(0, &storage),
            memoised(1, size),
            memoised(2, b"ctorch._utils\n_rebuild_tensor_v2\n"),
            memoised(3, &arguments),
            b"h\x02h\x03R".repeat(28_000),
        ];
        parts.concat()
    };
    let id = [
        &b"("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(&"x".repeat(60_000)),
        &text("cpu"),
        b"K\x06t",
    ]
    .concat();
    let ids = [memoised(0, &id), b"h\0Q".repeat(40_000)].concat();
    let inner = |key: u16| {
        [text(&format!("{key:x}")), b"h\x01".to_vec()].concat() // a key, and a tensor
    };
    let names = [
        memoised(0, &tensor(0, &[6], &[1])),
        memoised(1, b""),
        b"}(".to_vec(),
        text(&"x".repeat(60_000)),
        b"}(".to_vec(),
        (0..15_000).flat_map(inner).collect(),
        b"uu".to_vec(),
    ]
    .concat();
    for (what, body) in [
        ("sizes", tensor_of(&long)),
        ("allowed sizes", tensor_of(&most)),
        ("ids", ids),
        ("names", names),
        ("marks", b"(".repeat(190_000)),
        ("tuples", b")".repeat(190_000)),
    ] {
        let pickle = [b"\x80\x02".as_slice(), &body, b"."].concat();
        assert!(pickle.len() < 260_000, "{what}: {}", pickle.len());
        let before = peak()?;
        let refused = reason(&pickle);
        // other tests of this process run at the same time; copies would take 1.8 to 5 GB
        let grown = peak()?.saturating_sub(before) / 1_000_000; // the system's count may fall a little
        assert!(grown < 400, "{what}: {grown} MB for {} bytes: {refused}", pickle.len());
    }
    Ok(())
}

#[test]
fn a_big_endian_or_foreign_file_is_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("x.bin");
    let pickle = dict_of("t", &tensor(0, &[6], &[1]));
    write_zip(&path, &[("data.pkl", &pickle), ("byteorder", b"big"), ("data/0", &[0; 24])])?;
    let error = load_torch_pickle(&path).expect_err("big-endian");
    assert!(error.to_string().contains("byte order"), "{error}");
    write_zip(&path, &[("data.pkl", &pickle), ("data/0", &[0; 20])])?;
    let error = load_torch_pickle(&path).expect_err("a short storage");
    assert!(error.to_string().contains("20 bytes"), "{error}");
    fs::write(&path, b"\x80\x02}.")?;
    assert!(matches!(load_torch_pickle(&path), Err(Error::Format { .. })));
    assert!(matches!(
        load_torch_pickle(directory.path().join("no").as_path()),
        Err(Error::Io { .. })
    ));
    Ok(())
}

/// One of pyreft's own files: the zip, and the pickle in it.
fn saved() -> (Vec<u8>, Vec<u8>) {
    let path =
        oracle::path("reft_saved/consreft/intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin");
    let bytes = fs::read(path).expect("the oracle");
    let mut zip = ZipArchive::new(Cursor::new(bytes.clone())).expect("a zip");
    let mut pickle = Vec::new();
    let mut part = zip.by_index(0).expect("a part");
    part.read_to_end(&mut pickle).expect("the pickle");
    drop(part);
    (bytes, pickle)
}

fn mutate(bytes: &mut Vec<u8>, flips: &[(usize, u8)], cut: Option<usize>) {
    for &(at, value) in flips {
        let at = at % bytes.len();
        bytes[at] = value;
    }
    if let Some(cut) = cut {
        let len = bytes.len();
        bytes.truncate(cut % len);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_pickle_never_panics(
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..5),
        cut in proptest::option::weighted(0.2, any::<usize>()),
    ) {
        let (_, mut pickle) = saved();
        mutate(&mut pickle, &flips, cut);
        let _ = load(&pickle);
    }

    #[test]
    fn a_damaged_zip_never_panics(
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..5),
        cut in proptest::option::weighted(0.3, any::<usize>()),
    ) {
        let (whole, _) = saved();
        let mut bytes = whole.clone();
        mutate(&mut bytes, &flips, cut);
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("x.bin");
        fs::write(&path, &bytes)?;
        let read = load_torch_pickle(&path);
        if bytes.len() < whole.len() {
            prop_assert!(read.is_err(), "a zip cut short was read");
        }
    }

    #[test]
    fn random_codes_never_panic(codes in proptest::collection::vec(
        proptest::sample::select(b"\x80c\nqhj()\x85\x86\x87t}su]aeGNKMJX\x88\x89\x8aQRb.\x00\x01".to_vec()), 0..60)
    ) {
        let _ = load(&codes);
    }
}
