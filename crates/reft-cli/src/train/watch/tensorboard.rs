//! Metrics in TensorBoard's event files. A record has a length, the masked CRC-32C of the length's bytes, an `Event` message of protocol
//! buffers (tensorflow/core/util/event.proto), and the masked CRC-32C of the message.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use reft_train::{Progress, StepStats, ValidationStats};

use crate::terminal::note;

/// Prefix of the names of event files; the time of their start follows.
pub const EVENTS: &str = "events.out.tfevents.";

/// Writes every step and validation into an event file.
#[derive(Debug)]
pub struct EventFile {
    file: Option<File>,
}

impl EventFile {
    /// Creates a file in a run's directory. A resumed run creates another file: TensorBoard takes later steps from later files.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(directory: &Path) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (process, seconds) = (std::process::id(), now.as_secs());
        let path = directory.join(format!("{EVENTS}{seconds:010}.reft.{process}.0"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let version = event(now.as_secs_f64(), 0, &field_of_bytes(3, b"brain.Event:2"));
        file.write_all(&record(&version))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file: Some(file) })
    }

    fn write(&mut self, step: usize, values: &[(&str, f64)]) {
        let Some(file) = &mut self.file else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = event(now.as_secs_f64(), step as u64, &field_of_bytes(5, &summary(values)));
        if let Err(error) = file.write_all(&record(&event)) {
            note(format!("warning: no more events for TensorBoard: {error}"));
            self.file = None;
        }
    }
}

impl Progress for EventFile {
    fn step(&mut self, stats: &StepStats) {
        let speed = stats.tokens as f64 / stats.seconds;
        let mut values = vec![
            ("train/loss", stats.loss),
            ("train/learning_rate", stats.lr),
            ("train/grad_norm", stats.grad_norm),
            ("train/epoch", stats.epoch),
            ("speed/tokens_per_second", speed),
        ];
        let names: Vec<String> =
            stats.terms.keys().map(|name| format!("train/terms/{name}")).collect();
        values.extend(names.iter().map(String::as_str).zip(stats.terms.values().copied()));
        values.extend(stats.memory.map(|bytes| ("machine/memory_gb", bytes as f64 / 1e9)));
        self.write(stats.step, &values);
    }

    fn validated(&mut self, stats: &ValidationStats) {
        let names: Vec<String> =
            stats.measured.keys().map(|name| format!("validation/{name}")).collect();
        let mut values = vec![("validation/loss", stats.validation_loss)];
        values.extend(names.iter().map(String::as_str).zip(stats.measured.values().copied()));
        self.write(stats.step, &values);
    }
}

/// A record of an event file.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat()
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    const MASK: u32 = 0xa282_ead8;
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK).to_le_bytes()
}

/// An `Event`: 1 wall_time, 2 step, then its contents.
fn event(wall_time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut event = vec![tag(1, WIRE_F64)];
    event.extend(wall_time.to_le_bytes());
    if step > 0 {
        event.push(tag(2, WIRE_VARINT));
        event.extend(varint(step));
    }
    event.extend(what);
    event
}

/// A `Summary` of scalars: 1 value (1 tag, 2 simple_value), repeated.
fn summary(values: &[(&str, f64)]) -> Vec<u8> {
    let value = |(name, value): &(&str, f64)| {
        let mut of_value = field_of_bytes(1, name.as_bytes());
        of_value.push(tag(2, WIRE_F32));
        of_value.extend((*value as f32).to_le_bytes());
        field_of_bytes(1, &of_value)
    };
    values.iter().flat_map(value).collect()
}

const WIRE_VARINT: u8 = 0;
const WIRE_F64: u8 = 1;
const WIRE_BYTES: u8 = 2;
const WIRE_F32: u8 = 5;

fn tag(field: u8, wire: u8) -> u8 {
    field << 3 | wire
}

fn field_of_bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut of_field = vec![tag(field, WIRE_BYTES)];
    of_field.extend(varint(bytes.len() as u64));
    of_field.extend(bytes);
    of_field
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that TensorBoard's own writer makes of the same events: `tools/oracle/events.py`.
    #[test]
    fn records_are_those_of_tensorboard() {
        let version = event(1.5, 0, &field_of_bytes(3, b"brain.Event:2"));
        let values = [("train/loss", 0.625), ("train/grad_norm", -3.0)];
        let step = event(1_700_000_000.25, 300, &field_of_bytes(5, &summary(&values)));
        let written = [record(&version), record(&step)].concat();
        let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("events.hex").trim());
    }
}
