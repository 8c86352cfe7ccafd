//! What there is to compute with, and what is said where a GPU's libraries are not what they should be.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::Result;
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

/// A library that is none, and one that needs a symbol which this libtorch does not have.
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

    // who asked for no device is told, and served by the CPU
    let auto = with_libraries(dir.path(), words("auto"))?;
    assert_eq!(auto.code, Some(0), "{}", auto.stderr);
    assert!(auto.stderr.contains("computing on the CPU: "), "{}", auto.stderr);
    Ok(())
}

/// A libtorch that has no function but the one that tells its release: the program has to start in order to say so.
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
