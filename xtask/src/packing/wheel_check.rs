//! `cargo xtask wheel-check`: installs the wheel in every way that people do, and uses it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::demo::DATA;
use crate::packing::{program, python_wheel};
use crate::platform::LIBTORCH_VERSION;
use crate::workspace::Workspace;
use crate::{command, model};

/// Enough to see that the program trains.
const STEPS: &str = "3";

/// The command `reft` as one kind of installation leaves it.
struct Installed {
    /// How it was installed.
    how: &'static str,
    /// The command.
    program: PathBuf,
    /// Further folders for Python's search path.
    python_path: Vec<PathBuf>,
    /// The folder of libtorch that it has to find.
    libraries: PathBuf,
}

/// Checks the wheel: beside a stand-in for torch, which holds the libraries that setup fetched, or with `full` beside torch itself.
///
/// # Errors
/// The failed check, and the kind of installation.
pub fn run(workspace: &Workspace, full: bool) -> Result<()> {
    let program = program::build(workspace)?;
    let wheel = python_wheel::make(workspace, &program, &program.target()?.join("wheels"))?;
    model::ready(workspace)?;
    if full {
        let scratch = scratch_folder()?;
        return beside_torch(workspace, &wheel, scratch.path());
    }
    beside_stand_in(workspace, &wheel)
}

/// As [`run`], with the program that the tests have built: its wheel is larger and contains the path of this machine's libtorch.
///
/// # Errors
/// As [`run`].
pub fn run_of_tests(workspace: &Workspace) -> Result<()> {
    let folder = scratch_folder()?;
    let program = program::build_for_tests(workspace)?;
    beside_stand_in(workspace, &python_wheel::make(workspace, &program, folder.path())?)
}

fn scratch_folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().context("cannot make a folder for the installations")
}

fn beside_stand_in(workspace: &Workspace, wheel: &Path) -> Result<()> {
    let started = Instant::now();
    let scratch = scratch_folder()?;
    let scratch = scratch.path();
    // Debian's python3 comes without the modules that make environments
    let install = if has_environments()? { in_environment } else { in_target };
    for installed in [
        install(workspace, wheel, scratch)?,
        for_user(workspace, wheel, scratch)?,
        by_links(workspace, wheel, scratch)?,
        in_target(workspace, wheel, scratch)?,
    ] {
        finds_libtorch(&installed).with_context(|| format!("installed {}", installed.how))?;
        eprintln!("{}: the program runs with {}", installed.how, installed.libraries.display());
    }
    let installed = install(workspace, wheel, scratch)?;
    train(workspace, &mut installed.command(), &scratch.join("trained"))?;
    refuses_others(installed)?;
    eprintln!("the wheel passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

impl Installed {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_remove("LD_LIBRARY_PATH").env_remove("PYTHONPATH");
        if !self.python_path.is_empty() {
            let paths = self.python_path.iter().map(|path| path.as_os_str());
            command.env("PYTHONPATH", paths.collect::<Vec<_>>().join(&OsString::from(":")));
        }
        command
    }
}

/// Installs into an environment, with torch beside it.
fn in_environment(workspace: &Workspace, wheel: &Path, scratch: &Path) -> Result<Installed> {
    let environment = scratch.join("environment");
    if !environment.exists() {
        make_environment(&environment)?;
        let mut pip = Command::new(environment.join("bin/python"));
        install(pip.args(["-m", "pip"]), &[], wheel)?;
    }
    let packages = packages(&environment)?;
    Ok(Installed {
        how: "into an environment",
        program: environment.join("bin/reft"),
        python_path: Vec::new(),
        libraries: stand_in(workspace, &packages)?,
    })
}

/// Installs into a folder on Python's search path, with torch in the same folder.
fn in_target(workspace: &Workspace, wheel: &Path, scratch: &Path) -> Result<Installed> {
    let target = scratch.join("target");
    let text = target.to_str().context("the path of the temporary folder is not UTF-8")?;
    if !target.exists() {
        install(command::python()?.args(["-m", "pip"]), &["--target", text], wheel)?;
    }
    Ok(Installed {
        how: "with --target",
        program: target.join("bin/reft"),
        libraries: stand_in(workspace, &target)?,
        python_path: vec![target],
    })
}

/// Installs for a user, with torch in another folder.
fn for_user(workspace: &Workspace, wheel: &Path, scratch: &Path) -> Result<Installed> {
    let (base, elsewhere) = (scratch.join("user"), scratch.join("elsewhere"));
    let mut pip = command::python()?;
    pip.args(["-m", "pip"]).env("PYTHONUSERBASE", &base);
    pip.env("PIP_BREAK_SYSTEM_PACKAGES", "1").env("PIP_REQUIRE_VIRTUALENV", "0");
    install(&mut pip, &["--user"], wheel)?;
    Ok(Installed {
        how: "with --user, torch elsewhere",
        program: base.join("bin/reft"),
        libraries: stand_in(workspace, &elsewhere)?,
        python_path: vec![packages(&base)?, elsewhere],
    })
}

/// Installs as links to a cache, as uv can.
fn by_links(workspace: &Workspace, wheel: &Path, scratch: &Path) -> Result<Installed> {
    let (cache, target) = (scratch.join("cache"), scratch.join("links"));
    let text = cache.to_str().context("the path of the temporary folder is not UTF-8")?;
    install(command::python()?.args(["-m", "pip"]), &["--target", text], wheel)?;
    for entry in ignore::WalkBuilder::new(&cache).standard_filters(false).build() {
        let entry = entry.context("cannot list an installation")?;
        let place = target.join(entry.path().strip_prefix(&cache)?);
        if entry.path().is_dir() {
            fs::create_dir_all(&place)?;
        } else {
            std::os::unix::fs::symlink(entry.path(), &place)?;
        }
    }
    Ok(Installed {
        how: "as links to a cache",
        program: target.join("bin/reft"),
        libraries: stand_in(workspace, &target)?,
        python_path: vec![target],
    })
}

/// Whether this Python makes environments.
fn has_environments() -> Result<bool> {
    let mut python = command::python()?;
    let asked = python.args(["-c", "import ensurepip, venv"]).output();
    let can = asked.context("cannot start Python")?.status.success();
    if !can {
        eprintln!(
            "not tried in an environment: this Python makes none (Debian: apt install python3-venv)"
        );
    }
    Ok(can)
}

fn make_environment(environment: &Path) -> Result<()> {
    let mut venv = command::python()?;
    command::run_as_progress(venv.args(["-m", "venv"]).arg(environment))
        .context("cannot make a Python environment (Debian: apt install python3-venv)")
}

fn install(pip: &mut Command, options: &[&str], wheel: &Path) -> Result<()> {
    pip.env_remove("PYTHONPATH").args(["install", "--quiet", "--no-deps", "--no-index"]);
    pip.args(["--no-input", "--disable-pip-version-check"]).args(options).arg(wheel);
    command::run_as_progress(pip)
}

/// The folder of packages in `base`, the folder with Python's `lib`.
fn packages(base: &Path) -> Result<PathBuf> {
    let lib = base.join("lib");
    let pythons = fs::read_dir(&lib).with_context(|| format!("cannot list {}", lib.display()))?;
    let mut folders = pythons.flatten().map(|python| python.path().join("site-packages"));
    let found = folders.find(|folder| folder.is_dir());
    found.with_context(|| format!("{} holds no packages", lib.display()))
}

/// A package torch that has only libraries, and must not be imported. Returns the libraries' folder.
fn stand_in(workspace: &Workspace, packages: &Path) -> Result<PathBuf> {
    let libraries = packages.join("torch/lib");
    if libraries.exists() {
        return Ok(libraries);
    }
    fs::create_dir_all(&libraries)?;
    let imported = "raise ImportError('the program was to find torch, not to import it')\n";
    fs::write(packages.join("torch/__init__.py"), imported)?;
    let about = packages.join(format!("torch-{LIBTORCH_VERSION}.dist-info"));
    fs::create_dir_all(&about)?;
    fs::write(
        about.join("METADATA"),
        format!("Metadata-Version: 2.1\nName: torch\nVersion: {LIBTORCH_VERSION}+cpu\n"),
    )?;
    let own = workspace.libtorch().join("lib");
    for file in fs::read_dir(&own).with_context(|| format!("cannot list {}", own.display()))? {
        let path = file?.path();
        let place = libraries.join(path.file_name().context("invariant: a listed file")?);
        std::os::unix::fs::symlink(&path, &place)
            .with_context(|| format!("cannot link {}", place.display()))?;
    }
    Ok(libraries)
}

/// Checks that the program starts with the right libraries. The stand-in's are links to `libtorch/`.
fn finds_libtorch(installed: &Installed) -> Result<()> {
    let told = command::output(installed.command().args(["devices", "--json"]))?;
    let told: Value =
        serde_json::from_str(&told).context("cannot read what `reft devices` says")?;
    let version = &told["libtorch"]["version"];
    if version != LIBTORCH_VERSION {
        bail!("the program runs with libtorch {version}, expected {LIBTORCH_VERSION}");
    }
    let found = PathBuf::from(told["libtorch"]["directory"].as_str().unwrap_or_default());
    let library = "libtorch_cpu.so";
    let expected = installed.libraries.join(library).canonicalize()?;
    if found.join(library).canonicalize().ok().as_ref() != Some(&expected) {
        bail!("the program runs with {}, expected {}", found.display(), expected.display());
    }
    Ok(())
}

fn train(workspace: &Workspace, reft: &mut Command, output: &Path) -> Result<()> {
    reft.current_dir(workspace.root()).args(["train", "--max-steps", STEPS, "--data", DATA]);
    reft.arg("--model").arg(workspace.model()).arg("--output").arg(output);
    command::run_as_progress(reft)?;
    let adapter = output.join("reft_model.safetensors");
    if !adapter.is_file() {
        bail!("the training wrote no {}", adapter.display());
    }
    Ok(())
}

/// With another torch, or none, the command names the torch found, the one expected and the remedy.
fn refuses_others(installed: Installed) -> Result<()> {
    let packages = installed.libraries.parent().and_then(Path::parent).context("packages")?;
    let about = |version: &str| packages.join(format!("torch-{version}.dist-info"));
    let metadata = "Metadata-Version: 2.1\nName: torch\nVersion: 2.12.0\n";
    fs::write(about(LIBTORCH_VERSION).join("METADATA"), metadata)?;
    fs::rename(about(LIBTORCH_VERSION), about("2.12.0"))?;
    refusal(&installed, &["found torch 2.12.0 in", "expected torch 2.11", "pip install"])?;
    fs::remove_dir_all(about("2.12.0"))?;
    let library = installed.libraries.join("libtorch_cpu.so");
    fs::remove_file(&library)?;
    refusal(&installed, &["found no libtorch_cpu.so in", "expected that of torch 2.11"])?;
    fs::remove_dir_all(packages.join("torch"))?;
    refusal(&installed, &["found no torch, expected torch 2.11", "pip install 'torch==2.11.*'"])
}

fn refusal(installed: &Installed, words: &[&str]) -> Result<()> {
    let ended = installed.command().arg("--version").output().context("cannot start reft")?;
    let said = String::from_utf8_lossy(&ended.stderr);
    let missing = words.iter().find(|word| !said.contains(*word));
    if ended.status.code() != Some(1) || missing.is_some() {
        bail!("reft ended with {} and said {said:?}, expected 1 and {words:?}", ended.status);
    }
    eprint!("refused: {said}");
    Ok(())
}

/// From an empty environment to a trained adapter, with all of pip's packages; then compares the module with the program.
fn beside_torch(workspace: &Workspace, wheel: &Path, scratch: &Path) -> Result<()> {
    let started = Instant::now();
    let environment = scratch.join("environment");
    make_environment(&environment)?;
    let python = environment.join("bin/python");
    let mut pip = Command::new(&python);
    pip.env_remove("PYTHONPATH").args(["-m", "pip", "install", "--no-input"]);
    pip.arg("--disable-pip-version-check").arg(format!("{}[transformers]", wheel.display()));
    command::run_as_progress(&mut pip)?;
    eprintln!("installed after {:.0} s", started.elapsed().as_secs_f64());
    let installed = Installed {
        how: "into an environment, with torch",
        program: environment.join("bin/reft"),
        python_path: Vec::new(),
        libraries: packages(&environment)?.join("torch/lib"),
    };
    finds_libtorch(&installed).context("installed with torch")?;
    train(workspace, &mut installed.command(), &scratch.join("trained"))?;
    eprintln!("trained after {:.0} s", started.elapsed().as_secs_f64());
    let mut compare = Command::new(&python);
    compare.env_remove("PYTHONPATH").env("HF_HUB_OFFLINE", "1");
    compare.arg(workspace.root().join("python/tests/compare_with_program.py"));
    command::run(compare.arg(workspace.root()).arg(&installed.program))
}
