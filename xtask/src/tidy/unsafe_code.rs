//! Checks that every file with `unsafe` code is listed here, with its reason.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A file with `unsafe` code.
struct Place {
    file: &'static str,
    /// Blocks, implementations, functions and declarations of foreign functions.
    count: usize,
    /// Their purpose; each block's own comment says why it is sound.
    why: &'static str,
}

const PLACES: [Place; 10] = [
    Place {
        file: "crates/reft-cli/src/machine/allocator.rs",
        count: 4,
        why: "an option of the allocator, what it gives back and what threads hand over, and one of MKL: they are C libraries",
    },
    Place {
        file: "crates/reft-cli/src/machine/cuda.rs",
        count: 4,
        why: "loads libtorch's GPU half when a GPU is chosen, and calls functions and a variable that tch has no call for",
    },
    Place {
        file: "crates/reft-cli/src/machine/libtorch.rs",
        count: 2,
        why: "asks the libtorch that is loaded for its release, before anything is called that another one may not have",
    },
    Place {
        file: "crates/reft-cli/src/machine/cuda_driver.rs",
        count: 2,
        why: "asks the driver for the GPUs before libtorch is loaded",
    },
    Place {
        file: "crates/reft-distributed/src/engine/c10d.rs",
        count: 14,
        why: "libtorch's process groups, which tch has no calls for",
    },
    Place {
        file: "crates/reft-distributed/src/engine/nccl.rs",
        count: 4,
        why: "NVIDIA's NCCL and its driver, which libtorch brings along with CUDA and tch has no calls for",
    },
    Place {
        file: "crates/reft-kernels/src/product/few.rs",
        count: 1,
        why: "a hint to the CPU to fetch memory, which has no safe form",
    },
    Place {
        file: "crates/reft-kernels/src/threads.rs",
        count: 4,
        why: "runs on libtorch's own threads: those of a second pool would wait for cores that the first one's hold",
    },
    Place {
        file: "crates/reft-models/src/files/safetensors_file.rs",
        count: 2,
        why: "maps weights into memory, and lets go of pages that have been read",
    },
    Place {
        file: "crates/reft-models/src/weights/quick_products.rs",
        count: 2,
        why: "reads the numbers of a tensor where they are, and writes those of a new one",
    },
];

/// Findings about the Rust files among `files`, which are relative to `root`.
pub fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    check_against(&PLACES, root, files)
}

fn check_against(places: &[Place], root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut met = Vec::new();
    for file in files.iter().filter(|file| file.extension() == Some("rs".as_ref())) {
        let text = fs::read_to_string(root.join(file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        if !text.contains("unsafe") {
            continue;
        }
        let tokens: TokenStream =
            text.parse().map_err(|error| anyhow!("{}: {error}", file.display()))?;
        let count = count(tokens);
        let listed = places.iter().find(|place| Path::new(place.file) == file);
        let expected = listed.map_or(0, |place| place.count);
        if count != expected {
            findings.push(format!(
                "{} has {count} pieces of unsafe code, and the table of xtask/src/tidy/unsafe_code.rs lists {expected}{}: do without, or list them with their reason",
                file.display(),
                listed.map_or(String::new(), |place| format!(" ({})", place.why))
            ));
        }
        met.extend(listed.map(|place| place.file));
    }
    let gone = places.iter().filter(|place| !met.contains(&place.file));
    findings.extend(gone.map(|place| {
        format!("{} has no unsafe code ({}) any more: take it off the table of xtask/src/tidy/unsafe_code.rs", place.file, place.why)
    }));
    Ok(findings)
}

/// Counts the word `unsafe` before blocks, implementations, functions and declarations of foreign functions, but not in function types.
fn count(tokens: TokenStream) -> usize {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_block = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace);
    let is_word = |token: Option<&TokenTree>, word: &str| matches!(token, Some(TokenTree::Ident(ident)) if ident == word);
    let is_name = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Ident(_)));
    let mut pieces = 0;
    for (i, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            pieces += count(group.stream());
        }
        if !is_word(Some(token), "unsafe") {
            continue;
        }
        let is_foreign = is_word(tokens.get(i + 1), "extern");
        let behind = if is_foreign { i + 3 } else { i + 1 }; // `extern "C"`
        let next = tokens.get(behind);
        let is_function = is_word(next, "fn") && is_name(tokens.get(behind + 1));
        pieces += usize::from(is_block(next) || is_word(next, "impl") || is_function);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: [Place; 1] = [Place { file: "a.rs", count: 2, why: "a test" }];

    fn findings(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let root = tempfile::tempdir()?;
        for (name, content) in files {
            fs::write(root.path().join(name), content)?;
        }
        let files: Vec<PathBuf> = files.iter().map(|(name, _)| name.into()).collect();
        check_against(&PLACE, root.path(), &files)
    }

    #[test]
    fn every_form_is_counted_and_words_are_not() {
        let counted = |code: &str| count(code.parse().expect("code"));
        assert_eq!(counted("fn f() { unsafe { g() } let x = unsafe { h(unsafe { i() }) }; }"), 3);
        assert_eq!(counted("unsafe impl Send for A {} unsafe fn f() {}"), 2);
        assert_eq!(counted("unsafe extern \"C\" { fn f(); } unsafe extern \"C\" fn g() {}"), 2);
        assert_eq!(counted("type F = unsafe extern \"C\" fn(i32); type G = unsafe fn();"), 0);
        assert_eq!(
            counted("#![allow(unsafe_code)] /* unsafe { */ const A: &str = \"unsafe {\";"),
            0
        );
    }

    #[test]
    fn what_is_not_listed_and_what_is_gone_is_found() -> Result<()> {
        let two = "fn f() { unsafe { g() }; unsafe { h() } }";
        assert_eq!(findings(&[("a.rs", two), ("b.rs", "// unsafe\n")])?, Vec::<String>::new());
        let more = findings(&[("a.rs", two), ("b.rs", "fn f() { unsafe { g() } }")])?;
        assert!(more.len() == 1 && more[0].starts_with("b.rs has 1 pieces"), "{more:?}");
        let other = findings(&[("a.rs", "unsafe impl Send for A {}")])?;
        assert!(other.len() == 1 && other[0].contains("lists 2 (a test)"), "{other:?}");
        let none = findings(&[("a.rs", "fn f() {}")])?;
        assert!(
            none.len() == 1 && none[0].starts_with("a.rs has no unsafe code (a test)"),
            "{none:?}"
        );
        Ok(())
    }
}
