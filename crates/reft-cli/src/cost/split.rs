//! `reft plan --devices`: a model split over several devices, by one process or by several with such devices each.

use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use reft_bench::{DevicePlan, Split, TimingCase, ways};
use reft_models::ModelDescription;
use serde_json::{Value, json};

use crate::options::in_flags;
use crate::terminal::counted;

/// The memory of each device: `4x24GB`, or `2x80GB,24GB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMemories(Vec<u64>);

/// Most devices of one process. A larger number is a typing error.
const MOST: usize = 1024;

impl FromStr for DeviceMemories {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let mut all = Vec::new();
        for part in s.split(',') {
            let (n, size) = part.split_once('x').unwrap_or(("1", part));
            let read = || Some((n.parse::<usize>().ok()?, size.parse::<ByteSize>().ok()?.as_u64()));
            let (n, bytes) = read()
                .filter(|(n, bytes)| (1..=MOST).contains(n) && *bytes > 0)
                .with_context(|| format!("{part:?} is not of the form 4x24GB"))?;
            all.extend(vec![bytes; n]);
        }
        ensure!(all.len() <= MOST, "{} devices are named, expected at most {MOST}", all.len());
        Ok(Self(all))
    }
}

/// A step on several devices.
pub struct SplitPlan {
    memories: Vec<u64>,
    processes: usize,
    rows: usize,
    /// Memory of each device, or the reason why the model cannot be split over them.
    devices: Result<Vec<DevicePlan>, String>,
    most_rows: usize,
    fewest: Option<usize>,
    /// Other flags with which the model fits.
    way: Option<String>,
    gradient_bytes: u64,
}

impl SplitPlan {
    /// Plans a case that [`TimingCase::check`] has accepted.
    ///
    /// # Errors
    /// If there are more devices than blocks; errors of the method.
    pub fn of(
        case: &TimingCase,
        model: &ModelDescription,
        DeviceMemories(memories): &DeviceMemories,
        processes: usize,
    ) -> Result<Self> {
        let (n, blocks) = (memories.len(), model.num_hidden_layers);
        if n > blocks {
            bail!("--devices names {n} devices for {blocks} blocks; name {blocks} at most");
        }
        let split = Split::of(case).map_err(in_flags)?;
        let rows = case.batch_size;
        let devices = split.over(memories, rows).map_err(|error| error.to_string());
        let fits = |devices: &Vec<DevicePlan>| devices.iter().all(DevicePlan::fits);
        let (mut fewest, mut way) = (None, None);
        if !devices.as_ref().is_ok_and(fits) {
            let largest = memories.iter().copied().max().unwrap_or_default();
            fewest = split.fewest(largest, rows);
            for other in ways(case, model).into_iter().skip(1) {
                let split = Split::of(&other.case).map_err(in_flags)?;
                if split.over(memories, other.case.batch_size).is_ok_and(|found| fits(&found)) {
                    way = Some(other.flags);
                    break;
                }
            }
        }
        Ok(Self {
            processes,
            rows,
            devices,
            most_rows: split.most_rows(memories),
            fewest,
            way,
            gradient_bytes: split.gradient_bytes(),
            memories: memories.clone(),
        })
    }

    fn fits(&self) -> bool {
        self.devices.as_ref().is_ok_and(|devices| devices.iter().all(DevicePlan::fits))
    }

    /// The plan in the form of `--json`.
    pub fn json(&self) -> Value {
        json!({
            "devices": self.devices.as_deref().unwrap_or_default(),
            "obstacle": self.devices.as_ref().err(),
            "fits": self.fits(),
            "most_rows": self.most_rows,
            "fewest_devices": self.fewest,
            "fits_with": self.way,
            "processes": self.processes,
            "all_devices": self.processes * self.memories.len(),
            "rows_of_a_step": self.processes * self.rows,
            "gradient_bytes": self.gradient_bytes,
        })
    }

    /// The plan as it is printed.
    pub fn text(&self) -> String {
        let size = |bytes: u64| ByteSize::b(bytes).display().si().to_string();
        let mut text = format!("\non {}\n", counted(self.memories.len(), "device"));
        match &self.devices {
            Err(obstacle) => text += &format!("  {obstacle}\n"),
            Ok(devices) => {
                let columns = ["weights", "trained", "activations", "a moment", "kept", "all"];
                text += &format!("  {:<8}{:>10}", "blocks", "memory");
                columns.iter().for_each(|name| text += &format!("{name:>13}"));
                for own in devices {
                    let blocks =
                        format!("{}–{}", own.first_block, own.first_block + own.blocks - 1);
                    text += &format!("\n  {blocks:<8}{:>10}", size(own.room));
                    let DevicePlan { weights, optimizer, activations, .. } = *own;
                    let DevicePlan { transient, frozen_batch, .. } = *own;
                    for bytes in
                        [weights, optimizer, activations, transient, frozen_batch, own.total()]
                    {
                        text += &format!("{:>13}", size(bytes));
                    }
                    text += if own.fits() { "  fits" } else { "  does not fit" };
                }
                text += "\n";
            }
        }
        let rows = match self.most_rows {
            0 => "not even one row of a batch fits".to_owned(),
            n => format!("batches of up to {} fit", counted(n, "row")),
        };
        text += &format!("  {rows}\n");
        if !self.fits() {
            let largest = size(self.memories.iter().copied().max().unwrap_or_default());
            text += &match self.fewest {
                Some(n) => format!("  it fits on {} of {largest}\n", counted(n, "device")),
                None => format!("  no number of devices of {largest} holds it\n"),
            };
            if let Some(flags) = &self.way {
                text += &format!("  on these it fits with {flags}\n");
            }
        }
        if self.processes > 1 {
            let (n, devices) = (self.processes, self.processes * self.memories.len());
            text += &format!(
                "  {n} processes: {devices} devices, {} a step; each process sends about {} of gradients\n",
                counted(n * self.rows, "row"),
                size(2 * self.gradient_bytes)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_or_named_each() {
        let read = |text: &str| text.parse::<DeviceMemories>().map(|own| own.0).ok();
        assert_eq!(read("2x24GB,80GB"), Some(vec![24_000_000_000, 24_000_000_000, 80_000_000_000]));
        assert_eq!(read("1x1GiB"), Some(vec![1 << 30]));
        for wrong in ["", "4x", "x24GB", "0x24GB", "4x0B", "4y24GB", "2000x24GB", "4x24GB,"] {
            assert_eq!(read(wrong), None, "{wrong} is taken for devices");
        }
    }
}
