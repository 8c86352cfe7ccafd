//! Devices, and the messages about missing or wrong GPU libraries.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::Result;
use crate::files::{logits_input, losses, many_rows};
use crate::runs::{Run, args, command, oracle, run, succeed};

fn devices() -> Result<Value> {
    Ok(serde_json::from_str(&succeed(["devices", "--json"])?.stdout)?)
}

/// Runs with a folder's libraries within reach.
fn with_libraries(dir: &Path, words: Vec<std::ffi::OsString>) -> Result<Run> {
    Ok(command(words).env("LD_LIBRARY_PATH", dir).output()?.into())
}

#[test]
fn devices_tells_the_libtorch_in_use_and_why_there_is_no_gpu() -> Result {
    let told = devices()?;
    assert_eq!(told["libtorch"]["version"].as_str(), Some("2.11.0"), "{told}");
    let usable = told["cuda"]["usable"].as_bool().ok_or("no answer")?;
    assert_eq!(told["cuda"]["obstacle"].is_null(), usable, "{told}");
    assert_eq!(told["auto"].as_str(), Some(if usable { "cuda:0" } else { "cpu" }), "{told}");
    let table = succeed(["devices"])?.stdout;
    assert!(table.contains("libtorch") && table.contains("--device auto"), "{table}");
    Ok(())
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_the_reason() -> Result {
    let told = devices()?;
    let run = run(args![
        "bench",
        "--model",
        oracle("tiny_llama"),
        "--steps",
        "1",
        "--device",
        "cuda:99"
    ])?;
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.starts_with("error: device cuda:99 is not there: "), "{}", run.stderr);
    if let Some(obstacle) = told["cuda"]["obstacle"].as_str() {
        assert!(run.stderr.contains(obstacle), "{}", run.stderr);
    }
    Ok(())
}

/// Two wrong libraries: a file that is no library, and a library with a symbol that this libtorch lacks.
#[cfg(target_os = "linux")]
#[test]
fn cuda_libraries_of_another_release_are_refused_in_one_message() -> Result {
    if !devices()?["cuda"]["library"].is_null() {
        return Ok(()); // the right one is found first
    }
    let dir = tempfile::tempdir()?;
    let library = dir.path().join("libtorch_cuda.so");
    let data = dir.path().join("data.jsonl");
    std::fs::write(&data, "{\"input_ids\": [1, 2, 3], \"prompt_length\": 1}\n")?;
    let words = |device: &str| {
        args![
            "eval",
            "--model",
            oracle("tiny_llama"),
            "--task",
            "lm",
            "--data",
            data,
            "--device",
            device
        ]
    };

    std::fs::write(&library, "no library")?;
    let broken = with_libraries(dir.path(), words("cuda"))?;
    assert_eq!(broken.code, Some(1), "{}", broken.stderr);
    assert!(broken.stderr.contains("libtorch_cuda.so cannot be loaded"), "{}", broken.stderr);

    let source = dir.path().join("other.c");
    std::fs::write(
        &source,
        "int of_another_release(void); int f(void) { return of_another_release(); }",
    )?;
    let linked =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status()?;
    assert!(linked.success());
    let other = with_libraries(dir.path(), words("cuda"))?;
    assert_eq!(other.code, Some(1), "{}", other.stderr);
    for words in [
        "error: device cuda:0 is not there",
        "of another release than libtorch 2.11.0",
        "of_another_release",
    ] {
        assert!(other.stderr.contains(words), "{words:?} is not in {}", other.stderr);
    }

    // --device auto prints a note and computes on the CPU
    let auto = with_libraries(dir.path(), words("auto"))?;
    assert_eq!(auto.code, Some(0), "{}", auto.stderr);
    assert!(auto.stderr.contains("computing on the CPU: "), "{}", auto.stderr);
    Ok(())
}

/// A libtorch with a single function, which returns its release: the program must start with it to report it.
#[cfg(target_os = "linux")]
#[test]
fn a_libtorch_of_another_release_is_refused_before_anything_is_done() -> Result {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("other.c");
    std::fs::write(
        &source,
        r#"unsigned long long aoti_torch_abi_version(void) { return 0x020c000000000000; }
char data[64] __asm__("_ZN3c1019UndefinedTensorImpl10_singletonE");
char table[64] __asm__("_ZTVN5torch8autograd12AutogradMetaE");"#,
    )?;
    for library in ["libtorch_cpu.so", "libc10.so"] {
        let library = dir.path().join(library);
        let linked = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status()?;
        assert!(linked.success());
    }
    let refused = with_libraries(dir.path(), args!["devices"])?;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let place = dir.path().display().to_string();
    for words in
        ["error: found libtorch 2.12.0 in ", &place, "expected libtorch 2.11;", "take it out"]
    {
        assert!(refused.stderr.contains(words), "{words:?} is not in {}", refused.stderr);
    }
    let help = with_libraries(dir.path(), args!["--version"])?;
    assert_eq!(help.code, Some(0), "{}", help.stderr);
    Ok(())
}

/// A short run on devices.
fn short(data: &Path, output: &Path, device: &str, more: &[OsString]) -> Vec<OsString> {
    let model = oracle("tiny_llama");
    let files = args!["train", "--model", model, "--data", data, "--output", output];
    let words = "--batch-size 3 --grad-accum 2 --lr 3e-3 --weight-decay 0.01 --validation 3 \
                 --max-steps 12 --eval-every 6 --seed 5 --threads 1";
    let words = words.split_whitespace().map(OsString::from).collect();
    [files, words, args!["--device", device], more.to_vec()].concat()
}

#[test]
fn parts_of_a_model_on_several_devices_give_the_files_of_one_device() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let input = logits_input(dir.path())?;
    let model = oracle("tiny_llama");
    let methods = [
        args!["--method", "loreft", "--layers", "1;2", "--positions", "f2+l2", "--dropout", "0.2"],
        args!["--method", "lora", "--checkpoint-activations"],
        args!["--method", "full"],
    ];
    for (i, words) in methods.iter().enumerate() {
        let outputs = ["cpu", "cpu,cpu", "cpu,cpu,cpu"].map(|device| {
            let name = format!("{i}-{}", device.replace(',', "-"));
            (device, dir.path().join(name))
        });
        for (device, output) in &outputs {
            let said = succeed(short(&data, output, device, words))?.stderr;
            assert_eq!(said.contains("blocks: cpu, from block "), *device != "cpu", "{said}");
        }
        let [(_, whole), others @ ..] = outputs;
        for (device, parts) in others {
            let what = format!("{:?} on {device}", words[1]);
            assert_eq!(losses(&parts)?, losses(&whole)?, "losses of {what}");
            assert_eq!(trained(&parts)?, trained(&whole)?, "tensors of {what}");
            let config = fs::read_to_string(parts.join("train.toml"))?;
            assert!(config.contains(&format!("device = \"{device}\"")), "{config}");
        }
    }
    // the adapter, used with another split over devices than in training
    let adapter = dir.path().join("0-cpu");
    let used = |device: &str| -> Result<Vec<Vec<u8>>> {
        let machine = args!["--adapter", adapter, "--device", device, "--threads", "1"];
        let with = |words: Vec<OsString>| succeed([words, machine.clone()].concat());
        let file = dir.path().join(format!("{}.safetensors", device.replace(',', "-")));
        with(args!["logits", "--model", model, "--input", input, "--output", file])?;
        let short = args!["--json", "--max-new-tokens", "6"];
        let generate = args!["generate", "--model", model, "--input", data];
        let generated = with([generate, short].concat())?;
        let mut generated: Value = serde_json::from_str(&generated.stdout)?;
        let evaluated = args!["eval", "--model", model, "--task", "lm", "--data", data, "--json"];
        let mut evaluated: Value = serde_json::from_str(&with(evaluated)?.stdout)?;
        for (told, times) in [(&mut generated, "rows"), (&mut evaluated, "loss")] {
            *told = told[times].take();
            assert!(!told.is_null(), "no {times}");
        }
        Ok(vec![fs::read(file)?, generated.to_string().into(), evaluated.to_string().into()])
    };
    let whole = used("cpu")?;
    for device in ["cpu,cpu", "cpu,cpu,cpu,cpu"] {
        assert!(used(device)? == whole, "another result on {device}");
    }
    Ok(())
}

/// The name and bytes of every safetensors file at the top of a run's directory.
fn trained(run: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push((path.file_name().map(PathBuf::from).ok_or("no name")?, fs::read(path)?));
        }
    }
    found.sort();
    if found.is_empty() { Err("nothing was trained".into()) } else { Ok(found) }
}

#[test]
fn devices_that_cannot_be_are_refused_in_one_message() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 4)?;
    let model = oracle("tiny_llama");
    let eval = |device: &str| {
        let input = args!["eval", "--model", model, "--task", "lm", "--data", data];
        [input, args!["--device", device]].concat()
    };
    let five = "cpu,cpu,cpu,cpu,cpu";
    let bench = args!["bench", "--model", model, "--steps", "1", "--device", "cpu,cpu"];
    let train = short(&data, &dir.path().join("run"), "cpu,cpu", &args!["--processes", "3"]);
    for (words, code, told) in [
        (eval(five), 1, "found 5 devices for 4 blocks; name 4 devices at most"),
        (eval("cpu,auto"), 2, "expected the name of each of several devices"),
        (eval("cpu,cuda:4000"), 1, "device cuda:4000 is not there"),
        (bench, 1, "--device is cpu,cpu, and this command computes on one device"),
        (train, 1, "--device names 2 devices, which 3 processes cannot share"),
    ] {
        let run = run(words)?;
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        assert!(run.stderr.contains(told), "{told:?} is not in {}", run.stderr);
    }
    Ok(())
}

#[test]
fn processes_that_are_in_parts_each_train_as_processes_on_one_device() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let output = |name: &str| dir.path().join(name);
    for (name, device) in [("one", "cpu"), ("parts", "cpu,cpu,cpu,cpu")] {
        succeed(short(&data, &output(name), device, &args!["--processes", "2"]))?;
    }
    assert_eq!(losses(&output("parts"))?, losses(&output("one"))?);
    assert_eq!(trained(&output("parts"))?, trained(&output("one"))?);
    Ok(())
}
