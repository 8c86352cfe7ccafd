use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::Path;
use std::rc::Rc;

use reft_core::Parameter;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::adapters::owned_hooks::OwnedHooks;
use crate::model::hooks::{AtStrength, Hooks, Stacked};
use crate::{
    Adapter, Error, Layout, Mode, Model, PaddingSide, Reach, Result, Row, io_error, read_json,
    write_json,
};

/// The adapters that a model is used with, in the order in which they see hidden states: none, one or several.
///
/// Training, evaluation, generation and logits all take a stack; adapters cannot be used in another way.
#[derive(Clone, Default)]
pub struct AdapterStack<'a> {
    entries: Vec<StackEntry<'a>>,
}

/// One of the adapters of an [`AdapterStack`].
#[derive(Clone)]
pub struct StackEntry<'a> {
    /// The adapter.
    pub adapter: StackAdapter<'a>,
    /// Strength `s`: `base + s · (edited − base)`. 1 is the adapter as it was trained.
    pub strength: f64,
    /// Coordinates of the subspace that it may change; they replace those that rows name.
    pub subspace: Option<Vec<i64>>,
}

/// How a forward uses the adapters of a stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dose {
    /// Multiplies their strengths: 1 is the stack as it is, 0 the plain model, −1 reverses the edits.
    Times(f64),
    /// Steers away from their concepts: by [`Adapter::away`], or at strength −1 if a method has no such hooks.
    Away,
}

impl Dose {
    /// The stack as it is.
    pub const WHOLE: Self = Self::Times(1.0);

    /// Whether the dose gives the plain model.
    pub fn is_none(self) -> bool {
        self == Self::Times(0.0)
    }
}

/// An adapter of an [`AdapterStack`].
#[derive(Clone)]
pub enum StackAdapter<'a> {
    /// Owned by the caller.
    Borrowed(&'a dyn Adapter),
    /// Owned together by the stacks and hooks that share it.
    Shared(Rc<dyn Adapter>),
}

impl<'a> Deref for StackAdapter<'a> {
    type Target = dyn Adapter + 'a;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Borrowed(adapter) => *adapter,
            Self::Shared(adapter) => &**adapter,
        }
    }
}

impl StackAdapter<'_> {
    /// Whether both are the same object, rather than equal adapters.
    pub(crate) fn is_same(&self, other: &StackAdapter) -> bool {
        std::ptr::addr_eq(&raw const **self, &raw const **other)
    }
}

/// `combined.json`: the adapters of a directory, in order, each in its own subdirectory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Combination {
    format_version: u32,
    adapters: Vec<String>,
}

const FORMAT_VERSION: u32 = 1;

impl<'a> From<&'a dyn Adapter> for StackEntry<'a> {
    fn from(adapter: &'a dyn Adapter) -> Self {
        Self { adapter: StackAdapter::Borrowed(adapter), strength: 1.0, subspace: None }
    }
}

impl From<Rc<dyn Adapter>> for StackEntry<'_> {
    fn from(adapter: Rc<dyn Adapter>) -> Self {
        Self { adapter: StackAdapter::Shared(adapter), strength: 1.0, subspace: None }
    }
}

impl<'a> AdapterStack<'a> {
    /// Name of the file that marks a directory of several adapters.
    pub const FILE_NAME: &'static str = "combined.json";

    /// The plain model.
    pub const EMPTY: AdapterStack<'static> = AdapterStack { entries: Vec::new() };

    /// These adapters, as they were trained.
    ///
    /// # Errors
    /// [`Error::NotCombinable`] if two of them bring virtual tokens, or two a prefix: their order would be ambiguous.
    pub fn of(adapters: &[&'a dyn Adapter]) -> Result<Self> {
        Self::new(adapters.iter().map(|adapter| StackEntry::from(*adapter)).collect())
    }

    /// [`Self::of`] adapters that are owned.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn of_boxed(adapters: &'a [Box<dyn Adapter>]) -> Result<Self> {
        Self::new(adapters.iter().map(|adapter| StackEntry::from(&**adapter)).collect())
    }

    /// These adapters at their strengths.
    ///
    /// # Errors
    /// As [`Self::of`]; [`Error::Adapter`] if a strength is no number, or is not 1 for an adapter that brings virtual tokens or a prefix
    /// or is in the weights: these have no base value to mix with.
    pub fn new(entries: Vec<StackEntry<'a>>) -> Result<Self> {
        type Length = fn(&dyn Adapter) -> usize;
        let lengths: [(Length, _); 2] = [
            (|adapter| adapter.virtual_tokens(), "both bring virtual tokens"),
            (|adapter| adapter.prefix_length(), "both bring a prefix"),
        ];
        for (length, reason) in lengths {
            let with = entries.iter().filter(|entry| length(&*entry.adapter) > 0);
            let mut methods = with.map(|entry| entry.adapter.method().to_owned());
            if let (Some(first), Some(second)) = (methods.next(), methods.next()) {
                return Err(Error::NotCombinable { first, second, reason });
            }
        }
        for StackEntry { adapter, strength, .. } in &entries {
            let method = adapter.method();
            let refuse = |expected: &str| {
                let reason = format!("the strength of {method} is {strength}, {expected}");
                Err(Error::Adapter { reason })
            };
            if !strength.is_finite() {
                return refuse("expected a number");
            }
            let has_base = adapter.virtual_tokens() + adapter.prefix_length() == 0;
            if *strength != 1.0 && (!has_base || adapter.is_in_weights()) {
                return refuse("it takes 1 only");
            }
        }
        Ok(Self { entries })
    }

    /// One adapter, as it was trained.
    pub fn one(adapter: &'a dyn Adapter) -> Self {
        Self { entries: vec![adapter.into()] }
    }

    /// The adapters, in order.
    pub fn entries(&self) -> &[StackEntry<'a>] {
        &self.entries
    }

    /// Whether it is the same adapters, in the same order, at the same strengths and in the same subspaces.
    pub fn is_same(&self, other: &AdapterStack) -> bool {
        let same = |(own, other): (&StackEntry, &StackEntry)| {
            own.adapter.is_same(&other.adapter)
                && own.strength == other.strength
                && own.subspace == other.subspace
        };
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(same)
    }

    /// The adapters that are the model's weights themselves.
    pub(crate) fn in_weights(&self) -> Vec<&StackAdapter<'a>> {
        let adapters = self.entries.iter().map(|entry| &entry.adapter);
        adapters.filter(|adapter| adapter.is_in_weights()).collect()
    }

    /// Whether generated tokens are changed too, not only the prompt's.
    pub(crate) fn acts_on_replies(&self) -> bool {
        self.entries.iter().any(|entry| entry.adapter.acts_on_replies())
    }

    /// The methods, joined with `+`.
    pub fn method(&self) -> String {
        let methods: Vec<&str> = self.entries.iter().map(|e| e.adapter.method()).collect();
        methods.join("+")
    }

    /// The leaves of all adapters; leaves of several are called `0-loreft/…`, `1-lora/…`.
    pub fn parameters(&self) -> Vec<Parameter> {
        let of_one = |(prefix, adapter): (String, &dyn Adapter)| {
            let rename = move |p: Parameter| Parameter { name: prefix.clone() + &p.name, ..p };
            adapter.parameters().into_iter().map(rename)
        };
        self.prefixed().flat_map(of_one).collect()
    }

    /// A layout with room for the adapters' virtual tokens.
    pub fn layout(&self, layout: Layout) -> Layout {
        layout.with_virtual_tokens(self.virtual_tokens())
    }

    /// Number of virtual tokens before every prompt.
    pub fn virtual_tokens(&self) -> usize {
        self.entries.iter().map(|entry| entry.adapter.virtual_tokens()).sum()
    }

    /// Number of keys and values before every layer's own.
    pub fn prefix_length(&self) -> usize {
        self.entries.iter().map(|entry| entry.adapter.prefix_length()).sum()
    }

    /// The hooks of all adapters for one forward over a batch.
    ///
    /// # Errors
    /// Errors of an adapter.
    pub fn hooks(&self, layout: &Layout, mode: Mode) -> Result<Stacked<'a>> {
        self.hooks_at(1.0, layout, mode)
    }

    /// [`Self::hooks`] with the strengths of all adapters multiplied by `factor`: 0 is the plain model, −1 reverses the edits.
    ///
    /// # Errors
    /// Errors of an adapter; [`Error::Adapter`] for virtual tokens or a prefix at a strength that is neither 0 nor 1, and for an
    /// adapter in the weights at a strength that is not 1.
    pub fn hooks_at(&self, factor: f64, layout: &Layout, mode: Mode) -> Result<Stacked<'a>> {
        if factor == 0.0 && !self.entries.iter().any(|entry| entry.adapter.is_in_weights()) {
            return Ok(Stacked::default());
        }
        let scaled = |entry: &StackEntry<'a>| StackEntry {
            strength: entry.strength * factor,
            ..entry.clone()
        };
        layout.rows().iter().try_for_each(|row| self.check_subspace(row))?;
        let stack = Self::new(self.entries.iter().map(scaled).collect())?;
        let hooks = stack.entries.iter().map(|entry| entry.hooks(layout, mode));
        Ok(Stacked(hooks.collect::<Result<_>>()?))
    }

    /// [`Self::hooks_at`] a dose.
    ///
    /// # Errors
    /// As [`Self::hooks_at`]; [`Error::Adapter`] for [`Dose::Away`] with a shared adapter.
    pub fn hooks_of(&self, dose: Dose, layout: &Layout, mode: Mode) -> Result<Stacked<'a>> {
        if let Dose::Times(factor) = dose {
            return self.hooks_at(factor, layout, mode);
        }
        let mut hooks = Vec::new();
        for entry in &self.entries {
            let own = match &entry.adapter {
                StackAdapter::Borrowed(adapter) => adapter.away(layout).transpose()?,
                StackAdapter::Shared(_) => {
                    let reason = "a shared adapter is not turned away from its concept";
                    return Err(Error::Adapter { reason: reason.to_owned() });
                }
            };
            match own {
                Some(own) => hooks.push(own),
                None => {
                    let alone = Self { entries: vec![entry.clone()] };
                    hooks.extend(alone.hooks_at(-1.0, layout, mode)?.0);
                }
            }
        }
        Ok(Stacked(hooks))
    }

    /// Final hidden states of every row's own tokens, virtual ones included, as the adapters leave them: `[t, d]` each, without a graph.
    ///
    /// # Errors
    /// Errors of [`Layout::new`] or an adapter.
    pub fn hidden_states(
        &self,
        model: &dyn Model,
        rows: Vec<Row>,
        padding: PaddingSide,
    ) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        let layout = self.layout(Layout::new(rows, padding)?);
        let h = model.whole_pass(&layout, &mut self.hooks(&layout, Mode::Eval)?)?;
        Ok((0..layout.batch_size()).map(|row| layout.own(&h, row)).collect())
    }

    /// Logits of every row's own tokens, virtual ones included, as the adapters leave them: `[t, v]` each, without a graph.
    ///
    /// # Errors
    /// As [`Self::hidden_states`], and [`Error::Encoder`] of a model without a head.
    pub fn logits(
        &self,
        model: &dyn Model,
        rows: Vec<Row>,
        padding: PaddingSide,
    ) -> Result<Vec<Tensor>> {
        model.description().check_predicts("logits")?;
        let _guard = tch::no_grad_guard();
        let layout = self.layout(Layout::new(rows, padding)?);
        model.row_logits(&layout, &mut self.hooks(&layout, Mode::Eval)?)
    }

    /// Checks that the adapters have the coordinates that a row names, and the coordinates that their own entries name.
    ///
    /// # Errors
    /// [`Error::NoSubspace`] if none of them edits in a subspace; [`reft_core::Error::Subspace`] for a coordinate that one does not have.
    pub fn check_subspace(&self, row: &Row) -> Result<()> {
        for StackEntry { adapter, subspace, .. } in &self.entries {
            let Some(coordinates) = subspace else { continue };
            let Some(rank) = adapter.subspace_size() else {
                return Err(Error::NoSubspace { method: adapter.method().to_owned() });
            };
            check_coordinates(coordinates, rank)?;
        }
        let Some(coordinates) = &row.subspace else { return Ok(()) };
        let following = self.entries.iter().filter(|entry| entry.subspace.is_none());
        let sizes: Vec<i64> = following.filter_map(|e| e.adapter.subspace_size()).collect();
        let has_own = self.entries.iter().any(|entry| entry.subspace.is_some());
        if sizes.is_empty() && !self.entries.is_empty() && !has_own {
            return Err(Error::NoSubspace { method: self.method() });
        }
        for rank in sizes {
            check_coordinates(coordinates, rank)?;
        }
        Ok(())
    }

    /// The earliest point of a row's forward that an adapter touches; [`None`] without adapters.
    pub fn reach(&self, row: &Row) -> Option<Reach> {
        self.entries.iter().map(|entry| entry.adapter.reach(row)).reduce(Reach::and)
    }

    /// Everything a checkpoint needs of all adapters, in the shapes that it is trained in.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let of_one = |(prefix, adapter): (String, &dyn Adapter)| {
            adapter.state().into_iter().map(move |(name, tensor)| (prefix.clone() + &name, tensor))
        };
        self.prefixed().flat_map(of_one).collect()
    }

    /// Restores a [`Self::state`].
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape, by name.
    pub fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let prefixes: BTreeSet<String> = self.prefixed().map(|(prefix, _)| prefix).collect();
        let is_known = |name: &&String| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if let Some(tensor) = state.keys().find(|name| !is_known(name)) {
            let reason = format!("{tensor} belongs to none of {}", self.method());
            return Err(Error::Adapter { reason });
        }
        self.prefixed().try_for_each(|(prefix, adapter)| {
            let own = |(name, tensor): (&String, &Tensor)| {
                Some((name.strip_prefix(&prefix)?.to_owned(), tensor.shallow_clone()))
            };
            adapter.load_state(&state.iter().filter_map(own).collect())
        })
    }

    /// Writes the adapters' files into an existing directory. Several adapters get a subdirectory each, listed in `combined.json`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        if let [entry] = &self.entries[..] {
            return entry.adapter.save(dir);
        }
        let mut adapters = Vec::new();
        for (prefix, adapter) in self.prefixed() {
            let name = prefix.trim_end_matches('/').to_owned();
            let own = dir.join(&name);
            std::fs::create_dir_all(&own).map_err(io_error("create", &own))?;
            adapter.save(&own)?;
            adapters.push(name);
        }
        let combination = Combination { format_version: FORMAT_VERSION, adapters };
        write_json(&dir.join(Self::FILE_NAME), &combination)
    }

    /// The directories of the adapters that `combined.json` names, in order.
    ///
    /// # Errors
    /// If it cannot be read, is of another version, or names anything but directories beside it.
    pub fn directories(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
        let combination: Combination = read_json(&dir.join(Self::FILE_NAME))?;
        let refuse = |reason: String| Err(Error::Adapter { reason });
        let found = combination.format_version;
        if found != FORMAT_VERSION {
            return refuse(format!("format_version is {found}, expected {FORMAT_VERSION}"));
        }
        let is_plain = |name: &&String| Path::new(name).file_name() == Some(name.as_ref());
        if let Some(name) = combination.adapters.iter().find(|name| !is_plain(name)) {
            return refuse(format!("combined.json names {name:?}, expected a directory beside it"));
        }
        Ok(combination.adapters.iter().map(|name| dir.join(name)).collect())
    }

    /// Every adapter with the prefix of its tensors' names, which is empty if it is the only one.
    fn prefixed(&self) -> impl Iterator<Item = (String, &dyn Adapter)> {
        let is_alone = self.entries.len() == 1;
        self.entries.iter().enumerate().map(move |(i, entry)| {
            let method = entry.adapter.method();
            let prefix = if is_alone { String::new() } else { format!("{i}-{method}/") };
            (prefix, &*entry.adapter)
        })
    }
}

fn check_coordinates(coordinates: &[i64], rank: i64) -> Result<()> {
    match coordinates.iter().find(|index| !(0..rank).contains(*index)) {
        Some(&index) => Err(reft_core::Error::Subspace { index, rank }.into()),
        None => Ok(()),
    }
}

impl<'a> StackEntry<'a> {
    fn hooks(&self, layout: &Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        let restricted = self.subspace.as_ref().map(|own| layout.with_subspace(own));
        let layout = restricted.as_ref().unwrap_or(layout);
        let hooks = match &self.adapter {
            StackAdapter::Borrowed(adapter) => adapter.hooks(layout, mode)?,
            StackAdapter::Shared(adapter) => Box::new(OwnedHooks::of(adapter, layout, mode)?),
        };
        if self.strength == 1.0 {
            return Ok(hooks);
        }
        Ok(Box::new(AtStrength { hooks, strength: self.strength }))
    }
}
