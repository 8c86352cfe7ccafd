use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use reft_models::{Model, Reach, Row};
use sysinfo::System;
use tch::Tensor;

use crate::reuse::frozen_row::FrozenRow;
use crate::reuse::groups::Groups;
use crate::reuse::spill_file::{Extent, SpillFile};
use crate::{Needed, ReferenceOutputs, Result, Sequence};

/// How much of the frozen model's work is cached for the next epoch, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReuseConfig {
    /// Bytes of memory; `None`: half of the free memory when the first row is cached, divided among the processes.
    pub memory: Option<u64>,
    /// Directory for rows that do not fit into memory; `None`: they are computed again.
    pub directory: Option<PathBuf>,
    /// Number of processes on this machine that cache rows at once; 0 is 1.
    pub processes: usize,
}

/// The frozen model's activations for rows, cached from epoch to epoch.
///
/// Rows are keyed by their tokens, not by their batch or data set, and equal rows are cached once. The rows cached first stay: each row is used
/// once an epoch, so an evicted row would be needed before the new one. When the machine runs short of memory, half of the cached bytes are
/// freed and no more rows are cached there. The cache changes only the time.
///
/// If there is room for all rows, a trainer's store computes the training rows of each micro-batch of the first epoch in one forward;
/// otherwise it computes each row alone. The two round differently, so a checkpoint records the choice. Rows that are lost, with a warning,
/// are computed again one by one.
#[derive(Debug)]
pub struct FrozenStore<'d> {
    groups: Groups<'d>,
    /// Whether rows are computed in groups; `None` before the first request. A resumed run sets it from its checkpoint.
    pub(crate) in_groups: Option<bool>,
    /// Bytes reserved for the rows of each group, 0 once one of them was asked for; empty if rows are computed alone; `None` before the first
    /// request.
    reserved: Option<Vec<u64>>,
    rows: HashMap<Key, Cached>,
    /// The first memory check sets its `memory`; a failure of the file clears its `directory`.
    config: ReuseConfig,
    bytes: u64,
    file: Option<SpillFile>,
    insertions: u64,
    warnings: Vec<String>,
}

/// The key of a cached row.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A row's tokens, their types, and its reach.
    Row(Vec<i64>, Option<Vec<i64>>, Reach),
    /// A sequence, the outputs cached of it, and whether the plain model ran it.
    Reference(Sequence, ReferenceOutputs, bool),
}

#[derive(Debug)]
enum Cached {
    Memory(Rc<FrozenRow>),
    File(Vec<Extent>), // of its tensors
}

/// Share of the machine's memory that is left free.
const RESERVE: f64 = 0.08;

/// Rows between two looks at the machine's memory.
const LOOK_EVERY: u64 = 16;

impl<'d> FrozenStore<'d> {
    /// An empty store.
    pub fn new(config: ReuseConfig) -> Self {
        Self {
            groups: Groups::default(),
            in_groups: None,
            reserved: None,
            rows: HashMap::new(),
            config,
            bytes: 0,
            file: None,
            insertions: 0,
            warnings: Vec::new(),
        }
    }

    /// Number of cached rows, in memory or in the file.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of memory that the rows take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Warnings since the last call, for the user: nothing but time is lost.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Computes the sequences of these micro-batches in one forward each.
    pub(crate) fn grouped(self, batches: impl IntoIterator<Item = Vec<Needed<'d>>>) -> Self {
        Self { groups: Groups::new(batches), ..self }
    }

    /// The frozen part of a row: from the store, or computed and cached. `token_of` gives a row's [`Reach::token`], from the row and its
    /// first token whose final hidden state is read.
    pub(crate) fn row(
        &mut self,
        model: &dyn Model,
        row: &Row,
        reach: Reach,
        token_of: &dyn Fn(&Row, usize) -> usize,
    ) -> Result<Rc<FrozenRow>> {
        if let Some(cached) = self.cached_row(row, reach) {
            return Ok(cached);
        }
        let rows = match self.group(model, row, reach, token_of) {
            Some(rows) if rows.iter().any(|(r, at)| key(r, *at) == key(row, reach)) => rows,
            _ => vec![(row.clone(), reach)],
        };
        let wanted = key(row, reach);
        let mut asked = None;
        for ((row, reach), computed) in rows.iter().zip(FrozenRow::compute(model, &rows)?) {
            let key = key(row, *reach);
            if key == wanted {
                asked = Some(self.insert(key, computed));
            } else if !self.rows.contains_key(&key) {
                self.insert(key, computed);
            }
        }
        Ok(asked.expect("invariant: the row is among those computed"))
    }

    /// The rows to compute together with this one; `None` if it is computed alone.
    fn group(
        &mut self,
        model: &dyn Model,
        row: &Row,
        reach: Reach,
        token_of: &dyn Fn(&Row, usize) -> usize,
    ) -> Option<Vec<(Row, Reach)>> {
        let reached = |needed: &Needed| {
            let row = needed.row();
            let token = token_of(&row, needed.first_wanted);
            (row, Reach { token, ..reach })
        };
        let bytes = |(row, reach): (Row, Reach)| {
            FrozenRow::bytes_of(model, row.input_ids.len(), reach) as u64
        };
        if self.reserved.is_none() {
            let of_group = |group: &[Needed]| group.iter().map(|n| bytes(reached(n))).sum();
            let reserved: Vec<u64> = self.groups.iter().map(of_group).collect();
            let has_room = self.has_room(reserved.iter().sum());
            let in_groups = *self.in_groups.get_or_insert(has_room);
            self.reserved = Some(if in_groups { reserved } else { Vec::new() });
        }
        let (number, group) = self.groups.of(row)?;
        // the group's rows are cached now: release their reservation
        if let Some(reserved) = self.reserved.iter_mut().flatten().nth(number) {
            *reserved = 0;
        }
        if self.in_groups == Some(false) {
            return None;
        }
        let rows: Vec<(Row, Reach)> = group.iter().map(reached).collect();
        let total = rows.iter().cloned().map(bytes).sum();
        self.has_room(total).then_some(rows)
    }

    /// The reference's cached part of a sequence: from the store, or computed and cached.
    pub(crate) fn reference(
        &mut self,
        (sequence, outputs, is_plain): (Sequence, ReferenceOutputs, bool),
        compute: &dyn Fn(&Sequence) -> Result<FrozenRow>,
    ) -> Result<Rc<FrozenRow>> {
        let key = Key::Reference(sequence, outputs, is_plain);
        if let Some(cached) = self.cached(&key) {
            return Ok(cached);
        }
        let Key::Reference(sequence, ..) = &key else { unreachable!("invariant: as made above") };
        let computed = compute(sequence)?;
        Ok(self.insert(key, computed))
    }

    /// Whether the store has a sequence's reference.
    pub(crate) fn has_reference(
        &self,
        (sequence, outputs, is_plain): (Sequence, ReferenceOutputs, bool),
    ) -> bool {
        self.rows.contains_key(&Key::Reference(sequence, outputs, is_plain))
    }

    /// Whether the store has a row.
    pub(crate) fn has(&self, row: &Row, reach: Reach) -> bool {
        self.rows.contains_key(&key(row, reach))
    }

    /// The frozen part of a row, if the store has it and its file can be read.
    pub(crate) fn cached_row(&mut self, row: &Row, reach: Reach) -> Option<Rc<FrozenRow>> {
        self.cached(&key(row, reach))
    }

    fn cached(&mut self, key: &Key) -> Option<Rc<FrozenRow>> {
        match self.rows.get(key)? {
            Cached::Memory(row) => Some(row.clone()),
            Cached::File(extents) => match self.read(extents) {
                Ok(row) => Some(row.into()),
                Err(error) => {
                    self.close_file("read", &error);
                    None
                }
            },
        }
    }

    /// Whether rows of this many bytes can be cached, in memory or in the file.
    fn has_room(&mut self, bytes: u64) -> bool {
        if self.config.memory.is_none() {
            self.look_at_memory();
        }
        self.bytes + bytes <= self.config.memory.unwrap_or(0) || self.config.directory.is_some()
    }

    /// Caches a row if there is room.
    fn insert(&mut self, key: Key, row: FrozenRow) -> Rc<FrozenRow> {
        let row = Rc::new(row);
        let bytes = row.bytes() as u64;
        if self.insertions.is_multiple_of(LOOK_EVERY) {
            self.look_at_memory();
        }
        self.insertions += 1;
        let reserved: u64 = self.reserved.iter().flatten().sum();
        if self.bytes + reserved + bytes <= self.config.memory.unwrap_or(0) {
            self.bytes += bytes;
            self.rows.insert(key, Cached::Memory(row.clone()));
        } else if let Some(file) = self.open_file() {
            match row.tensors().map(|tensor| file.write(tensor)).collect() {
                Ok(extents) => drop(self.rows.insert(key, Cached::File(extents))),
                Err(error) => self.close_file("write", &error),
            }
        }
        row
    }

    /// Sets the budget at first, and frees rows when the machine runs short of memory.
    fn look_at_memory(&mut self) {
        let (available, total) = available_memory();
        let processes = self.config.processes.max(1) as u64;
        let budget = *self.config.memory.get_or_insert(available / 2 / processes);
        if (available as f64) < RESERVE * total as f64 && self.bytes > 0 {
            let target = self.bytes / 2;
            let bytes = &mut self.bytes;
            self.rows.retain(|_, cached| match cached {
                Cached::Memory(row) if *bytes > target => {
                    *bytes -= row.bytes() as u64;
                    false
                }
                _ => true,
            });
            self.config.memory = Some(budget.min(self.bytes));
            self.warnings.push(format!(
                "memory runs short ({} MiB available): cached activations are reduced to {} MiB",
                available >> 20,
                self.bytes >> 20
            ));
        }
    }

    fn open_file(&mut self) -> Option<&mut SpillFile> {
        if let (None, Some(directory)) = (&self.file, &self.config.directory) {
            match SpillFile::create(directory) {
                Ok(file) => self.file = Some(file),
                Err(error) => self.close_file("create", &error),
            }
        }
        self.file.as_mut()
    }

    fn read(&self, extents: &[Extent]) -> std::io::Result<FrozenRow> {
        let file = self.file.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        let tensors: Vec<Tensor> =
            extents.iter().map(|extent| file.read(extent)).collect::<std::io::Result<_>>()?;
        Ok(FrozenRow::from_tensors(tensors))
    }

    /// Goes on without the file: its rows are computed again.
    fn close_file(&mut self, action: &str, error: &std::io::Error) {
        let directory = self.config.directory.take().unwrap_or_default();
        self.warnings.push(format!(
            "cannot {action} the file of cached activations in {}: {error}; rows that do not fit into memory are computed again",
            directory.display()
        ));
        self.file = None;
        self.rows.retain(|_, cached| matches!(cached, Cached::Memory(_)));
    }
}

fn key(row: &Row, reach: Reach) -> Key {
    Key::Row(row.input_ids.clone(), row.token_types.clone(), reach)
}

/// Available and total memory in bytes, of the machine or of the container that the program runs in: the smaller of the two.
fn available_memory() -> (u64, u64) {
    let mut system = System::new();
    system.refresh_memory();
    // a container's file cache can be evicted, so it does not count
    let in_container = system
        .cgroup_limits()
        .map(|limits| (limits.total_memory.saturating_sub(limits.rss), limits.total_memory));
    smaller((system.available_memory(), system.total_memory()), in_container)
}

fn smaller(machine: (u64, u64), container: Option<(u64, u64)>) -> (u64, u64) {
    let (available, total) = container.unwrap_or(machine);
    (available.min(machine.0), total.min(machine.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_smaller_of_the_machine_and_its_container_counts() {
        assert_eq!(smaller((20, 30), None), (20, 30));
        assert_eq!(smaller((20, 30), Some((4, 8))), (4, 8));
        assert_eq!(smaller((2, 30), Some((4, 8))), (2, 8));
        assert_eq!(smaller((20, 30), Some((25, 30))), (20, 30));
    }

    /// With exactly the memory that all rows need, each of them is cached, whether rows are computed alone or in groups; with less, some.
    #[test]
    fn what_was_reserved_for_rows_is_theirs() -> std::result::Result<(), Box<dyn std::error::Error>>
    {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = reft_models::Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let sequence = |i: i64| {
            let input_ids: Vec<i64> = (0..8 + i % 2).map(|t| 3 + (i * 31 + t * 17) % 120).collect();
            let row = Row { input_ids: input_ids.clone(), prompt_length: 4, ..Row::default() };
            Sequence { row, labels: input_ids }
        };
        let sequences: Vec<Sequence> = (0..6).map(sequence).collect();
        let needed = |sequence| Needed::new(sequence, 4..6, true);
        let rows: Vec<Row> = sequences.iter().map(|sequence| needed(sequence).row()).collect();
        let reach = Reach { stage: 1, token: 3 };
        let bytes_of = |row: &Row| FrozenRow::bytes_of(&decoder, row.input_ids.len(), reach) as u64;
        let need: u64 = rows.iter().map(bytes_of).sum();
        for batch_size in [1, 2, 6] {
            let kept = |memory: u64| -> Result<(usize, u64)> {
                let reuse = ReuseConfig { memory: Some(memory), ..ReuseConfig::default() };
                let batches = sequences.chunks(batch_size);
                let batches = batches.map(|batch| batch.iter().map(needed).collect());
                let mut store = FrozenStore::new(reuse).grouped(batches);
                for row in &rows {
                    store.row(&decoder, row, reach, &|_, _| reach.token)?;
                }
                Ok((store.len(), store.bytes()))
            };
            for memory in [need, need * 6 / 5] {
                assert_eq!(kept(memory)?, (6, need), "{batch_size} at once, {memory} of {need}");
            }
            let (some, _) = kept(need * 3 / 4)?;
            assert_eq!(some, 4, "{batch_size} at once");
        }
        Ok(())
    }

    /// If the file has lost its rows, they are computed again, and the user gets one warning.
    #[test]
    fn a_file_that_is_gone_is_a_warning() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = reft_models::Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let directory = tempfile::tempdir()?;
        let path = Some(directory.path().to_owned());
        let mut store =
            FrozenStore::new(ReuseConfig { memory: Some(0), directory: path, processes: 1 });
        let rows = [vec![5, 6, 7, 8, 9], vec![11, 12, 13, 14]].map(Row::prompt);
        let reach = Reach { stage: 1, token: 3 };
        let tensors = |store: &mut FrozenStore| -> Result<Vec<Vec<Tensor>>> {
            let of_row = |row| {
                let cached = store.row(&decoder, row, reach, &|_, first| first)?;
                Ok(cached.tensors().map(Tensor::shallow_clone).collect())
            };
            rows.iter().map(of_row).collect()
        };
        let computed = tensors(&mut store)?;
        assert_eq!(tensors(&mut store)?, computed);
        assert!(store.len() == 2 && store.take_warnings().is_empty());

        store.file = Some(SpillFile::create(directory.path())?); // an empty one
        assert!(store.cached_row(&rows[0], reach).is_none()); // as in prefetching
        assert_eq!(tensors(&mut store)?, computed);
        let warnings = store.take_warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("cannot read the file of cached activations"), "{warnings:?}");
        assert!(store.is_empty());
        Ok(())
    }
}
