//! `cargo xtask test` and `cargo xtask ci`.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{command, model, packing, setup, tidy};

/// Runs `cargo test --workspace` with `arguments`, after setting up missing parts.
pub fn test(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    command::run(workspace.cargo().args(["test", "--workspace"]).args(arguments))
}

/// The arguments of [`quick_test`]. The other tests search and compare for minutes, or start the program hundreds of times.
const QUICK: [&str; 14] = [
    "--lib",
    "--bins",
    "--test",
    "documentation",
    "--test",
    "maps",
    "--test",
    "methods",
    "--test",
    "models",
    "--test",
    "seeded",
    "--test",
    "training",
];

/// Names, or parts of names, of the quick tests that need the demo model.
const NEED_THE_DEMO_MODEL: [&str; 8] = [
    "smollm2",
    "every_recorded_text_has",
    "every_recorded_chat_has",
    "the_demo_models_special_tokens",
    "a_stream_gives_out_whole_characters",
    "any_stream_adds_up",
    "any_text_comes_back",
    "a_conversation_has_the_tokens",
];

/// Names, or parts of names, of tests of these programs that train or generate for many seconds.
const TAKE_LONG: [&str; 12] = [
    "a_run_killed_after_any_step",
    "joined_adapters_compute",
    "losses_gradients_and_steps_are_the_authors",
    "micro_batches_checkpointing",
    "processes_draw_the_dropout",
    "recipes_and_tasks",
    "stays_orthonormal_for_a_thousand_steps",
    "such_an_adapter_learns",
    "without_room_the_numbers",
    "no_step_is_rounded_away",
    "every_method_trains_to_the_same_bits_in_parts",
    "do_not_depend_on_what_else_is_in_flight",
];

/// Runs the tests that do not need the demo model and do not take long.
pub fn quick_test(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::ready(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace"]).args(QUICK).args(arguments);
    if !arguments.iter().any(|argument| argument == "--") {
        cargo.arg("--");
    }
    cargo.args(NEED_THE_DEMO_MODEL.iter().chain(&TAKE_LONG).flat_map(|name| ["--skip", name]));
    command::run(&mut cargo)
}

/// Runs every check, cheapest first, and ends at the first failure.
pub fn run(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    step("fmt", || command::run(workspace.cargo().args(["fmt", "--all", "--check"])))?;
    step("tidy", || tidy::run(workspace))?;
    step("setup", || setup::run(workspace, false))?;
    step("clippy", || {
        let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        command::run(workspace.cargo().args(lints))
    })?;
    // RUSTDOCFLAGS hides the run path of libtorch/cargo.toml; only doc tests need that, and those run under `test`.
    step("doc", || {
        let doc = ["doc", "--workspace", "--no-deps"];
        command::run(workspace.cargo().env("RUSTDOCFLAGS", "-D warnings").args(doc))
    })?;
    step("package", || package(workspace))?;
    step("test", || test(workspace, &[]))?;
    if packing::CAN_BE_PACKED {
        step("wheel", || packing::check_wheel_of_tests(workspace))?;
    }
    eprintln!("== ci passed in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Packs the crates as for the registry, without building them again: published crates have all their files and versions.
fn package(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["package", "--workspace", "--no-verify", "--allow-dirty", "--quiet"]);
    command::run(cargo.args(["--exclude", "xtask", "--exclude", "reft-test-support"]))
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let started = Instant::now();
    check().with_context(|| {
        format!("the step `{name}` failed after {:.1} s", started.elapsed().as_secs_f64())
    })?;
    eprintln!("== {name} passed in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A renamed test would not be skipped: it would take long, or fail without the demo model.
    #[test]
    fn skipped_tests_are_known_by_their_names() -> Result<()> {
        let mut sources = String::new();
        let folders = [
            "reft-cli/src",
            "reft-methods/tests/methods",
            "reft-models/tests/models",
            "reft-train/tests/training",
        ];
        for folder in folders {
            for file in fs::read_dir(Workspace::current().root().join("crates").join(folder))? {
                let file = file?.path();
                if file.is_file() {
                    sources += &fs::read_to_string(file)?;
                }
            }
        }
        for name in NEED_THE_DEMO_MODEL.iter().chain(&TAKE_LONG) {
            assert!(
                sources
                    .lines()
                    .any(|line| line.trim_start().starts_with("fn ") && line.contains(name)),
                "{name}"
            );
        }
        Ok(())
    }
}
