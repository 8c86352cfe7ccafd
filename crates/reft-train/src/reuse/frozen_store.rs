use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use reft_models::{Decoder, Reach, Row};
use sysinfo::System;

use crate::Result;
use crate::batches::Batch;
use crate::dataset::Example;
use crate::reuse::frozen_row::FrozenRow;
use crate::reuse::groups::Groups;
use crate::reuse::spill_file::{Place, SpillFile};

/// How much of the frozen model's work is kept for the next epoch, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReuseConfig {
    /// Bytes of memory; `None`: half of what is available when the first row is kept.
    pub memory: Option<u64>,
    /// Directory for what does not fit into memory; `None`: it is computed again.
    pub directory: Option<PathBuf>,
}

/// The frozen model's part of rows, kept from epoch to epoch.
///
/// Rows are known by their tokens, so it does not matter in which batch or data set they come, and equal rows are kept once. What is
/// kept first stays: rows come round once an epoch, and whatever room newcomers were given they would take from rows that come sooner.
/// When the machine runs short of memory, half of the rows are let go and no more are kept there. Nothing depends on what is kept but time.
///
/// A trainer's store computes training rows side by side that stand in one micro-batch of the first epoch, if there is room for them all, and
/// each by itself otherwise. The two are rounded differently, so a checkpoint says which it was. What is lost on the way, with a warning,
/// is computed again by itself.
#[derive(Debug)]
pub struct FrozenStore<'d> {
    groups: Groups<'d>,
    side_by_side: Option<bool>,
    reserved: u64,
    rows: HashMap<Key, Kept>,
    config: ReuseConfig,
    whole_rows: bool,
    budget: Option<u64>,
    bytes: u64,
    file: Spill,
    insertions: u64,
    available_memory: fn() -> (u64, u64),
    warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    input_ids: Vec<i64>,
    reach: Option<Reach>, // None: any
}

#[derive(Debug)]
enum Kept {
    Memory(Rc<FrozenRow>),
    File { hidden_states: Place, keys_and_values: Option<Place> },
}

#[derive(Debug)]
enum Spill {
    NotYet,
    Open(SpillFile),
    Closed,
}

/// Share of the machine's memory that is left free.
const RESERVE: f64 = 0.08;

/// Rows between two looks at the machine's memory.
const LOOK_EVERY: u64 = 16;

impl<'d> FrozenStore<'d> {
    /// An empty store.
    pub fn new(config: ReuseConfig) -> Self {
        let file = if config.directory.is_some() { Spill::NotYet } else { Spill::Closed };
        Self {
            groups: Groups::default(),
            side_by_side: None,
            reserved: 0,
            rows: HashMap::new(),
            budget: config.memory,
            config,
            whole_rows: false,
            bytes: 0,
            file,
            insertions: 0,
            available_memory,
            warnings: Vec::new(),
        }
    }

    /// A store that keeps what goes into every stage, and all keys and values, so that one run of a row serves methods of any reach: for
    /// searches over layers and tokens. A row takes about as many times the memory as the model has layers.
    pub fn of_whole_rows(config: ReuseConfig) -> Self {
        Self { whole_rows: true, ..Self::new(config) }
    }

    /// Number of rows that are kept, in memory or in the file.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of memory that the rows take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What went wrong since the last call, for the user to know: nothing but time is lost by it.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Computes rows of these micro-batches of examples side by side.
    pub(crate) fn grouped(self, examples: &'d [Example], batches: &[Vec<usize>]) -> Self {
        Self { groups: Groups::new(examples, batches), ..self }
    }

    /// Whether rows are computed side by side; `None` while none was asked for.
    pub(crate) fn side_by_side(&self) -> Option<bool> {
        self.side_by_side
    }

    /// Goes on as an earlier store did.
    pub(crate) fn set_side_by_side(&mut self, side_by_side: Option<bool>) {
        self.side_by_side = side_by_side;
    }

    /// The store with all that is kept, for other examples.
    pub(crate) fn ungrouped(self) -> FrozenStore<'static> {
        FrozenStore { groups: Groups::default(), side_by_side: None, reserved: 0, ..self }
    }

    /// The frozen part of a row: from the store, or computed and kept. `token_of` says of rows with their first target where they are
    /// reached.
    pub(crate) fn row(
        &mut self,
        decoder: &Decoder,
        row: &Row,
        reach: Reach,
        token_of: &dyn Fn(&Row, usize) -> usize,
    ) -> Result<Rc<FrozenRow>> {
        if let Some(kept) = self.kept_row(row, reach) {
            return Ok(kept);
        }
        let wanted = self.key(row, reach);
        if self.whole_rows {
            let whole = self.keep(wanted, FrozenRow::compute_whole(decoder, row)?);
            return Ok(whole.at(reach).into());
        }
        let rows = match self.group(decoder, row, reach, token_of)? {
            Some(rows) if rows.iter().any(|(row, reach)| self.key(row, *reach) == wanted) => rows,
            _ => vec![(row.clone(), reach)],
        };
        let mut asked = None;
        for ((row, reach), computed) in rows.iter().zip(FrozenRow::compute(decoder, &rows)?) {
            let key = self.key(row, *reach);
            if rows.len() > 1 {
                self.reserved = self.reserved.saturating_sub(computed.bytes() as u64);
            }
            if key == wanted {
                asked = Some(self.keep(key, computed));
            } else if !self.rows.contains_key(&key) {
                self.keep(key, computed);
            }
        }
        Ok(asked.expect("invariant: the row is among those computed"))
    }

    /// The rows to be computed beside one, if that is how they are computed.
    fn group(
        &mut self,
        decoder: &Decoder,
        row: &Row,
        reach: Reach,
        token_of: &dyn Fn(&Row, usize) -> usize,
    ) -> Result<Option<Vec<(Row, Reach)>>> {
        let reached = |group: &Batch| -> Vec<(Row, Reach)> {
            let rows = group.layout.rows().iter().zip(group.first_targets());
            let reach = |row: &Row, first| Reach { token: token_of(row, first), ..reach };
            rows.map(|(row, first)| (row.clone(), reach(row, first))).collect()
        };
        let bytes = |rows: &[(Row, Reach)]| -> u64 {
            let of_row = |(row, reach): &(Row, Reach)| {
                FrozenRow::bytes_of(decoder, row.input_ids.len(), *reach) as u64
            };
            rows.iter().map(of_row).sum()
        };
        if self.side_by_side.is_none() {
            let groups = self.groups.iter().map(|group| Ok(bytes(&reached(&group?))));
            let total = groups.sum::<Result<u64>>()?;
            self.side_by_side = Some(self.has_room(total));
            self.reserved = total;
        }
        if self.side_by_side == Some(false) {
            return Ok(None);
        }
        let Some(group) = self.groups.of(row)? else { return Ok(None) };
        let rows = reached(&group);
        Ok(self.has_room(bytes(&rows)).then_some(rows))
    }

    /// Whether the store has a row.
    pub(crate) fn has(&self, row: &Row, reach: Reach) -> bool {
        self.rows.contains_key(&self.key(row, reach))
    }

    /// The frozen part of a row, if the store has it and its file can be read.
    pub(crate) fn kept_row(&mut self, row: &Row, reach: Reach) -> Option<Rc<FrozenRow>> {
        let kept = match self.rows.get(&self.key(row, reach))? {
            Kept::Memory(row) => row.clone(),
            Kept::File { hidden_states, keys_and_values } => {
                match self.read(hidden_states, keys_and_values.as_ref()) {
                    Ok(row) => row.into(),
                    Err(error) => {
                        self.close_file("read", &error);
                        return None;
                    }
                }
            }
        };
        Some(if self.whole_rows { kept.at(reach).into() } else { kept })
    }

    fn key(&self, row: &Row, reach: Reach) -> Key {
        let reach = Some(reach).filter(|_| !self.whole_rows);
        Key { input_ids: row.input_ids.clone(), reach }
    }

    /// Whether rows that take so much can be kept, in memory or in the file.
    fn has_room(&mut self, bytes: u64) -> bool {
        if self.budget.is_none() {
            self.look_at_memory();
        }
        self.bytes + bytes <= self.budget.unwrap_or(0) || !matches!(self.file, Spill::Closed)
    }

    /// Keeps a row if there is room.
    fn keep(&mut self, key: Key, row: FrozenRow) -> Rc<FrozenRow> {
        let row = Rc::new(row);
        let bytes = row.bytes() as u64;
        if self.insertions.is_multiple_of(LOOK_EVERY) {
            self.look_at_memory();
        }
        self.insertions += 1;
        if self.bytes + self.reserved + bytes <= self.budget.unwrap_or(0) {
            self.bytes += bytes;
            self.rows.insert(key, Kept::Memory(row.clone()));
        } else if let Some(file) = self.open_file() {
            let mut places = row.tensors().map(|tensor| file.write(tensor));
            let first = places.next().expect("invariant: a row has hidden states");
            match (first, places.next().transpose()) {
                (Ok(hidden_states), Ok(keys_and_values)) => {
                    self.rows.insert(key, Kept::File { hidden_states, keys_and_values });
                }
                (Err(error), _) | (_, Err(error)) => {
                    drop(places);
                    self.close_file("write", &error);
                }
            }
        }
        row
    }

    /// Sets the budget at first, and lets rows go when the machine runs short.
    fn look_at_memory(&mut self) {
        let (available, total) = (self.available_memory)();
        let budget = *self.budget.get_or_insert(available / 2);
        if (available as f64) < RESERVE * total as f64 && self.bytes > 0 {
            let target = self.bytes / 2;
            let bytes = &mut self.bytes;
            self.rows.retain(|_, kept| match kept {
                Kept::Memory(row) if *bytes > target => {
                    *bytes -= row.bytes() as u64;
                    false
                }
                _ => true,
            });
            self.budget = Some(budget.min(self.bytes));
            self.warnings.push(format!(
                "memory runs short ({} MiB available): kept work is reduced to {} MiB",
                available >> 20,
                self.bytes >> 20
            ));
        }
    }

    fn open_file(&mut self) -> Option<&mut SpillFile> {
        if let (Spill::NotYet, Some(directory)) = (&self.file, &self.config.directory) {
            match SpillFile::create(directory) {
                Ok(file) => self.file = Spill::Open(file),
                Err(error) => self.close_file("create", &error),
            }
        }
        match &mut self.file {
            Spill::Open(file) => Some(file),
            _ => None,
        }
    }

    fn read(&self, hidden_states: &Place, rest: Option<&Place>) -> std::io::Result<FrozenRow> {
        let Spill::Open(file) = &self.file else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        let rest = rest.map(|place| file.read(place)).transpose()?;
        Ok(FrozenRow::from_tensors(file.read(hidden_states)?, rest))
    }

    /// Goes on without the file: what was in it is computed again.
    fn close_file(&mut self, action: &str, error: &std::io::Error) {
        let directory = self.config.directory.clone().unwrap_or_default();
        self.warnings.push(format!(
            "cannot {action} the file for kept work in {}: {error}; what does not fit into memory is computed again",
            directory.display()
        ));
        self.file = Spill::Closed;
        self.rows.retain(|_, kept| matches!(kept, Kept::Memory(_)));
    }
}

/// Available and total memory in bytes.
fn available_memory() -> (u64, u64) {
    let mut system = System::new();
    system.refresh_memory();
    (system.available_memory(), system.total_memory())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// A file that has lost what was put into it: rows are computed again, and the user is told once.
    #[test]
    fn a_file_that_is_gone_is_a_warning() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let directory = tempfile::tempdir()?;
        let path = Some(directory.path().to_owned());
        let mut store = FrozenStore::new(ReuseConfig { memory: Some(0), directory: path });
        let rows = [vec![5, 6, 7, 8, 9], vec![11, 12, 13, 14]].map(Row::prompt);
        let reach = Reach { stage: 1, token: 3 };
        let tensors = |store: &mut FrozenStore| -> Result<Vec<Vec<tch::Tensor>>> {
            let of_row = |row| {
                let kept = store.row(&decoder, row, reach, &|_, first| first)?;
                Ok(kept.tensors().map(tch::Tensor::shallow_clone).collect())
            };
            rows.iter().map(of_row).collect()
        };
        let computed = tensors(&mut store)?;
        assert_eq!(tensors(&mut store)?, computed);
        assert!(store.len() == 2 && store.take_warnings().is_empty());

        store.file = Spill::Open(SpillFile::create(directory.path())?); // an empty one
        assert!(store.kept_row(&rows[0], reach).is_none()); // as it is read ahead of its turn
        assert_eq!(tensors(&mut store)?, computed);
        let warnings = store.take_warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("cannot read the file for kept work"), "{warnings:?}");
        assert!(store.is_empty());
        Ok(())
    }
}
