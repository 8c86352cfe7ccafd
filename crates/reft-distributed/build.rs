//! Compiles the C++ calls of libtorch's process groups on supported platforms.

use std::env;
use std::path::Path;

/// The platform where the sizes of libtorch's classes were compared with gloo's own headers.
const SUPPORTED: [(&str, &str); 3] = [
    ("CARGO_CFG_TARGET_OS", "linux"),
    ("CARGO_CFG_TARGET_ARCH", "x86_64"),
    ("CARGO_CFG_TARGET_ENV", "gnu"),
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(process_groups)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=src/engine/c10d.cpp");
    for name in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("DOCS_RS").is_some() {
        return; // there is no libtorch
    }
    if SUPPORTED.iter().any(|(name, value)| env::var(name).as_deref() != Ok(value)) {
        return;
    }
    println!("cargo::rustc-cfg=process_groups");
    // torch-sys says where the libraries are; its headers are beside them unless they were named.
    let libraries = env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    let root = env::var("LIBTORCH_INCLUDE").map_or_else(
        |_| Path::new(&libraries).parent().expect("lib is in a folder").to_owned(),
        Into::into,
    );
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .include("include") // before libtorch's headers, which include gloo's but come without them
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .file("src/engine/c10d.cpp")
        .compile("reft_c10d");
}
