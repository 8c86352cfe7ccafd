//! How the program is linked.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=REFT_RUN_PATH");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system != "linux") {
        return;
    }
    // Lazy binding lets the program start with any libtorch and check its release. With eager binding, a libtorch that lacks a function
    // ends the program in the system's loader, with a mangled symbol name as the only message.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,lazy");
    // The folder in which a packed program looks for libtorch before LD_LIBRARY_PATH. `cargo xtask wheel` and `cargo xtask dist` set it.
    if let Ok(run_path) = env::var("REFT_RUN_PATH") {
        println!("cargo::rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,{run_path}");
    }
}
