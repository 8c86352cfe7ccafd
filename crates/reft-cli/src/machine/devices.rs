//! `reft devices`: the devices of this machine.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::machine::cuda::{self, Cuda, release};
use crate::machine::device_choice::DeviceChoice;
use crate::terminal::{bytes, counted, output};

/// Show the libtorch in use, the GPUs, and why CUDA is or is not used
#[derive(Debug, Args)]
#[command(after_long_help = "Example:
  reft devices --json")]
pub struct DevicesArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let cuda = cuda::load();
    let auto = DeviceChoice::of(DeviceChoice::Auto.resolve()?).to_string();
    let (library, driver) = (cuda.library.as_ref().ok(), cuda.driver.as_ref());
    let json = json!({
        "auto": auto,
        "threads": tch::get_num_threads(),
        "libtorch": cuda.libtorch,
        "cuda": {
            "usable": cuda.obstacle().is_none(),
            "obstacle": cuda.obstacle(),
            "library": library.map(|loaded| &loaded.path),
            "built_for": library.and_then(|loaded| loaded.built_for).map(release),
            "driver_supports": driver.ok().map(|driver| release(driver.supports)),
            "devices": driver.map(|driver| driver.gpus.as_slice()).unwrap_or_default(),
        },
    });
    output::result(args.json, &json, || output::table(&rows(cuda, &auto)))
}

fn rows(cuda: &Cuda, auto: &str) -> Vec<(&'static str, String)> {
    let version = cuda.libtorch.version.as_deref().unwrap_or("of unknown release");
    let place = cuda.libtorch.directory.as_ref().map(|dir| format!(" in {}", dir.display()));
    let mut rows = vec![
        ("libtorch", format!("{version}{}", place.unwrap_or_default())),
        ("cpu", counted(tch::get_num_threads() as usize, "thread")),
    ];
    if let Ok(loaded) = &cuda.library {
        let built_for = loaded.built_for.map(|version| format!(", for CUDA {}", release(version)));
        let built_for = built_for.unwrap_or_default();
        rows.push(("cuda library", format!("{}{built_for}", loaded.path.display())));
    }
    if let Ok(driver) = &cuda.driver {
        rows.push(("driver", format!("supports CUDA {}", release(driver.supports))));
        for gpu in &driver.gpus {
            let memory = bytes(gpu.memory_bytes);
            rows.push(("gpu", format!("cuda:{}: {}, {memory}", gpu.index, gpu.name)));
        }
    }
    let verdict = cuda.obstacle().map(|obstacle| format!("not used: {obstacle}"));
    rows.push(("cuda", verdict.unwrap_or_else(|| "used".to_owned())));
    rows.push(("--device auto", auto.to_owned()));
    rows
}
