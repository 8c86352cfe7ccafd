//! How the program is linked.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=REFT_RUN_PATH");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system != "linux") {
        return;
    }
    // With every function looked up before the program begins, a libtorch of another release that lacks one ends it in the system's
    // loader, with a name that tells nobody anything. Looked up when they are called, they leave the program time to check the release.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,lazy");
    // Where a packed program looks for libtorch before LD_LIBRARY_PATH is asked: `cargo xtask wheel` and `cargo xtask dist` say it.
    if let Ok(run_path) = env::var("REFT_RUN_PATH") {
        println!("cargo::rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,{run_path}");
    }
}
