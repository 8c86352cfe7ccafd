//! Which of our crates may depend on which: only on crates of lower layers.

use anyhow::{Context, Result};
use serde_json::Value;

/// The libraries that programs use.
const LIBRARIES: &[&str] = &[
    "reft-core",
    "reft-report",
    "reft-models",
    "reft-methods",
    "reft-train",
    "reft-distributed",
    "reft-causal",
    "reft-bench",
    "reft-serve",
];

/// Each crate of the workspace, lowest layer first, with the crates of ours that it may depend on.
const ALLOWED: [(&str, &[&str]); 14] = [
    (FOR_TESTS, &[]),
    ("reft-core", &[]),
    ("reft-kernels", &[]),
    ("reft-report", &[]),
    ("reft-models", &["reft-core", "reft-kernels"]),
    ("reft-methods", &["reft-core", "reft-models"]),
    ("reft-train", &["reft-core", "reft-models"]),
    ("reft-distributed", &["reft-core", "reft-models", "reft-train"]),
    ("reft-causal", &["reft-core", "reft-report", "reft-models", "reft-methods", "reft-train"]),
    ("reft-serve", &["reft-core", "reft-models", "reft-methods"]),
    ("reft-bench", &["reft-core", "reft-report", "reft-models", "reft-methods", "reft-train"]),
    ("reft-cli", LIBRARIES),
    ("reft", LIBRARIES),
    ("xtask", &[]),
];

/// The crate that tests of every crate may use. It knows none of our crates.
const FOR_TESTS: &str = "reft-test-support";

/// Crates that only the tests and benches of a crate may use: hooks are tested with real methods, the trainer and the methods with each other.
const ALLOWED_IN_TESTS: [(&str, &str); 5] = [
    ("reft-bench", "reft-kernels"),
    ("reft-distributed", "reft-methods"),
    ("reft-models", "reft-methods"),
    ("reft-train", "reft-methods"),
    ("reft-methods", "reft-train"),
];

/// Crates that need libtorch to build. `xtask` makes libtorch, so it must do without them.
const NEED_LIBTORCH: [&str; 2] = ["tch", "torch-sys"];

/// Findings about the dependencies in the output of `cargo metadata --no-deps`: of every kind, tests' and build scripts' too.
pub fn check(metadata: &Value) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in packages {
        let name =
            package["name"].as_str().context("`cargo metadata` has a package without a name")?;
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            findings.push(format!(
                "crate {name} has no layer: give it a row in the table of xtask/src/tidy/arrows.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let kind = dependency["kind"].as_str();
            let is_for_tests = kind == Some("dev")
                && (target == FOR_TESTS || ALLOWED_IN_TESTS.contains(&(name, target)));
            if ours.contains(&target)
                && target != name
                && !allowed.contains(&target)
                && !is_for_tests
            {
                let kind = kind.map_or(String::new(), |kind| format!(" ({kind})"));
                findings.push(format!(
                    "{name} depends on {target}{kind}, which is not below it: it may use [{}]",
                    allowed.join(", ")
                ));
            }
            if name == "xtask" && NEED_LIBTORCH.contains(&target) {
                findings.push(format!(
                    "xtask depends on {target}, but it must build before libtorch is there"
                ));
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
        let dependencies: Vec<_> =
            dependencies.iter().map(|(name, kind)| json!({"name": name, "kind": kind})).collect();
        json!({"name": name, "dependencies": dependencies})
    }

    fn findings(packages: &[Value]) -> Result<Vec<String>> {
        check(&json!({ "packages": packages }))
    }

    #[test]
    fn arrows_that_point_down_are_fine_in_every_kind() -> Result<()> {
        let found = findings(&[
            package("reft-core", &[("tch", None), ("proptest", Some("dev"))]),
            package("reft-models", &[("reft-core", None)]),
            package("reft-train", &[("reft-core", Some("dev")), ("reft-models", None)]),
            package("reft-cli", &[("reft-bench", None), ("reft-core", None)]),
            package("reft-bench", &[("reft-train", None), ("reft-report", None)]),
            package("reft-methods", &[]),
            package("reft-report", &[("serde", None)]),
            package("xtask", &[("clap", None)]),
            package("reft-test-support", &[("tch", None)]),
            package("reft-causal", &[("reft-test-support", Some("dev"))]),
        ])?;
        assert_eq!(found, Vec::<String>::new());
        let found = findings(&[
            package("reft-test-support", &[("reft-core", None)]),
            package("reft-core", &[("reft-test-support", None)]),
        ])?;
        assert_eq!(found.len(), 2, "{found:?}");
        Ok(())
    }

    #[test]
    fn some_arrows_are_for_tests_only() -> Result<()> {
        let found = findings(&[
            package("reft-models", &[("reft-methods", Some("dev"))]),
            package("reft-methods", &[("reft-models", None), ("reft-train", Some("dev"))]),
            package("reft-train", &[("reft-methods", None), ("reft-methods", Some("dev"))]),
        ])?;
        assert_eq!(
            found,
            [
                "reft-train depends on reft-methods, which is not below it: it may use [reft-core, reft-models]"
            ]
        );
        Ok(())
    }

    #[test]
    fn upward_arrows_are_found_in_dev_and_build_dependencies_too() -> Result<()> {
        let found = findings(&[
            package("reft-core", &[("reft-models", Some("dev"))]),
            package("reft-models", &[("reft-core", None), ("reft-train", None)]),
            package("reft-train", &[("reft-bench", Some("build"))]),
            package("reft-bench", &[]),
        ])?;
        assert_eq!(
            found,
            [
                "reft-core depends on reft-models (dev), which is not below it: it may use []",
                "reft-models depends on reft-train, which is not below it: it may use [reft-core, reft-kernels]",
                "reft-train depends on reft-bench (build), which is not below it: it may use [reft-core, reft-models]",
            ]
        );
        Ok(())
    }

    #[test]
    fn xtask_may_know_neither_our_crates_nor_tch() -> Result<()> {
        let found = findings(&[
            package("reft-core", &[]),
            package("xtask", &[("reft-core", None), ("tch", None)]),
        ])?;
        assert_eq!(
            found,
            [
                "xtask depends on reft-core, which is not below it: it may use []",
                "xtask depends on tch, but it must build before libtorch is there",
            ]
        );
        Ok(())
    }

    #[test]
    fn a_crate_without_a_layer_is_found() -> Result<()> {
        let found = findings(&[package("reft-extra", &[])])?;
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("crate reft-extra has no layer"), "{found:?}");
        Ok(())
    }

    #[test]
    fn the_table_itself_points_down() {
        for (row, (name, allowed)) in ALLOWED.iter().enumerate() {
            for target in *allowed {
                let below = ALLOWED[..row].iter().any(|(lower, _)| lower == target);
                assert!(below, "{name} → {target}");
            }
            for (_, target) in ALLOWED_IN_TESTS.iter().filter(|(user, _)| user == name) {
                assert!(!allowed.contains(target), "{name} → {target} is no exception");
            }
        }
    }
}
