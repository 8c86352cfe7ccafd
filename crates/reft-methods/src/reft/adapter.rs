use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reft_core::{
    Edit, InterventionSet, InterventionTensors, Parameter, PromptPositions, Subspace, TokenGroup,
};
use reft_models::{
    Adapter, Cut, Error, HookPoint, Hooks, Layout, Mode, Model, Placement, Reach, Result, Row,
    Site, Span, TaskHead, TokenEdit, TrainedText, save_safetensors, send, write_json_in_order,
};
use tch::{Device, Tensor};

use crate::files::adapter_file::{Shapes, read_exactly};
use crate::files::head_file;
use crate::{AdapterFiles, ReftConfig};

/// A ReFT adapter: interventions ⟨Φ, P, ℓ⟩ on the prompt's hidden states of a frozen decoder.
#[derive(Debug)]
pub struct ReftAdapter {
    config: ReftConfig,
    interventions: InterventionSet, // in the order of ReftConfig::sites
    placement: Placement,           // of the model; the interventions lie on its home device
    text: Option<TrainedText>,
    head: Option<TaskHead>,
}

impl ReftAdapter {
    /// Name of the tensors' file in an adapter directory.
    pub const FILE_NAME: &str = AdapterFiles::Reft.names()[0];

    /// A new adapter for a decoder. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// # Errors
    /// Errors of [`ReftConfig::check`].
    pub fn new(config: ReftConfig, model: &dyn Model) -> Result<Self> {
        config.check_model(model.description())?;
        let (n, d) = (config.sites().len() as i64, model.description().hidden_size);
        let interventions = InterventionSet::new(config.intervention(), n, d, model.device())?;
        let placement = model.placement().clone();
        Ok(Self { config, interventions, placement, text: None, head: None })
    }

    /// An adapter of given interventions, in the order of [`ReftConfig::sites`].
    ///
    /// # Errors
    /// Errors of [`ReftConfig::check`]; [`Error::Adapter`] if they are of another kind or number.
    pub fn from_interventions(config: ReftConfig, interventions: InterventionSet) -> Result<Self> {
        config.check()?;
        let (expected, found) = (config.sites().len() as i64, interventions.len());
        if expected != found {
            let reason =
                format!("{found} interventions are given, the configuration has {expected}");
            return Err(Error::Adapter { reason });
        }
        let placement = interventions.device().into();
        Ok(Self { config, interventions, placement, text: None, head: None })
    }

    /// Reads an adapter, to be used, and checks that it belongs to the decoder.
    ///
    /// Its logits equal the saved adapter's bit for bit.
    ///
    /// # Errors
    /// If a file is missing or broken, a tensor is missing, unexpected or misshapen (by name), or the model is another one.
    pub fn load(dir: &Path, model: &dyn Model) -> Result<Self> {
        let config = ReftConfig::read(dir)?;
        config.check_model(model.description())?;
        Self::load_with(config, dir, model.placement().clone())
    }

    /// Reads an adapter without its model, for instance to look at it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_alone(dir: &Path) -> Result<Self> {
        Self::load_with(ReftConfig::read(dir)?, dir, Device::Cpu.into())
    }

    fn load_with(config: ReftConfig, dir: &Path, placement: Placement) -> Result<Self> {
        let d = config.base_model.hidden_size;
        let own = config.intervention().tensor_shapes(d);
        let named = |place| {
            let name = move |tensor: &str| ReftConfig::tensor_name(place, tensor);
            own.iter().map(move |(tensor, shape)| (*tensor, name(tensor), shape.clone()))
        };
        let all = config.sites().into_iter().flat_map(named);
        let shapes: Shapes = all.map(|(_, name, shape)| (name, shape)).collect();
        let tensors = read_exactly(&dir.join(Self::FILE_NAME), &shapes, &|_| false)?;
        let of_place = |place| -> InterventionTensors {
            let own = named(place);
            own.map(|(tensor, name, _)| (tensor.to_owned(), tensors[&name].shallow_clone()))
                .collect()
        };
        let interventions: Vec<InterventionTensors> =
            config.sites().into_iter().map(of_place).collect();
        let interventions = InterventionSet::from_tensors(
            config.intervention(),
            d,
            &interventions,
            placement.home(),
        )?;
        let text = TrainedText::read(&dir.join(Self::FILE_NAME))?;
        Ok(Self { config, interventions, placement, text, head: None })
    }

    /// Makes a loaded adapter trainable; see [`InterventionSet::into_trainable`].
    ///
    /// # Errors
    /// If a loaded rotation is not orthonormal.
    pub fn into_trainable(self) -> Result<Self> {
        Ok(Self { interventions: self.interventions.into_trainable()?, ..self })
    }

    /// The configuration of the adapter.
    pub fn config(&self) -> &ReftConfig {
        &self.config
    }

    /// Its interventions, in the order of [`ReftConfig::sites`].
    pub fn interventions(&self) -> &InterventionSet {
        &self.interventions
    }

    /// Hooks that apply given edits, in the order of [`ReftConfig::sites`], at the adapter's positions. In a model split over devices, each
    /// edit is moved to the device of its site.
    ///
    /// # Errors
    /// [`reft_core::Error::Subspace`] if a row names a coordinate that does not exist.
    pub fn hooks_with(&self, edits: Vec<Edit>, layout: &Layout) -> Result<ReftHooks> {
        let mut places: BTreeMap<Site, Vec<(TokenGroup, Edit)>> = BTreeMap::new();
        for ((site, group), mut edit) in self.config.sites().into_iter().zip(edits) {
            edit.tensors_mut().into_iter().for_each(|own| self.placement.bring(own, site));
            places.entry(site).or_default().push((group, edit));
        }
        let resolved: Vec<_> = layout.rows().iter().map(|row| self.positions(row)).collect();
        let r = self.config.low_rank_dimension;
        let groups = self.config.positions.groups(self.config.share_weights).into_iter();
        let positions = groups.map(|group| {
            let rows = resolved.iter().enumerate();
            let tokens = rows.flat_map(|(row, p)| p.group(group).map(move |token| (row, token)));
            (group, tokens.collect())
        });
        let mask = |row: &Row| match &row.subspace {
            Some(coordinates) => Subspace::mask_of(coordinates, r),
            None => Ok(Tensor::ones([r], (tch::Kind::Float, Device::Cpu))),
        };
        let mut masks = None;
        if layout.rows().iter().any(|row| row.subspace.is_some()) {
            let of_rows: reft_core::Result<Vec<Tensor>> = layout.rows().iter().map(mask).collect();
            masks = Some(Tensor::stack(&of_rows?, 0));
        }
        Ok(ReftHooks { places, positions: positions.collect(), masks, pass: None })
    }

    fn positions(&self, row: &Row) -> PromptPositions {
        self.config.positions.in_prompt(row.prompt_length, self.config.position_rule)
    }
}

impl Adapter for ReftAdapter {
    fn method(&self) -> &str {
        self.config.method.name()
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.interventions.parameters()
    }

    fn hooks<'a>(&'a self, layout: &Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        let edits = self.interventions.edits(mode == Mode::Train);
        Ok(Box::new(self.hooks_with(edits, layout)?))
    }

    fn subspace_size(&self) -> Option<i64> {
        Some(self.config.low_rank_dimension)
    }

    fn acts_on_replies(&self) -> bool {
        false
    }

    fn reach(&self, row: &Row) -> Reach {
        let first = self.positions(row).group(TokenGroup::FirstAndLast).next();
        let sites = self.config.sites().into_iter().map(|(site, _)| site);
        Reach::of_sites(sites, first.unwrap_or(row.input_ids.len()))
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        self.interventions.state()
    }

    fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        Ok(self.interventions.load_state(state)?)
    }

    fn keep_trained_text(&mut self, text: TrainedText) {
        self.text = Some(text);
    }

    fn keep_head(&mut self, head: &TaskHead) {
        self.head = Some(head.clone());
    }

    fn save(&self, dir: &Path) -> Result<()> {
        if let Some(head) = &self.head {
            head_file::write(dir, head)?;
        }
        let mut tensors = Vec::new();
        for (place, own) in self.config.sites().into_iter().zip(self.interventions.tensors()) {
            tensors.extend(
                own.into_iter().map(|(name, t)| (ReftConfig::tensor_name(place, &name), t)),
            );
        }
        let path = dir.join(Self::FILE_NAME);
        let text = self.text.as_ref().map(|text| text.metadata(&path)).transpose()?;
        save_safetensors(&path, &tensors, text.map(|text| [text].into()))?;
        write_json_in_order(&dir.join(ReftConfig::FILE_NAME), &self.config)
    }
}

/// The edits of a [`ReftAdapter`] on one batch.
#[derive(Debug)]
pub struct ReftHooks {
    places: BTreeMap<Site, Vec<(TokenGroup, Edit)>>,
    positions: Vec<(TokenGroup, Vec<(usize, usize)>)>, // (row, prompt token) of each group
    masks: Option<Tensor>,                             // subspace of each row [b, r]
    pass: Option<EditedTokens>,
}

/// The edited tokens of the present pass: the same at every layer on a device, so computed once.
#[derive(Debug)]
struct EditedTokens {
    columns: std::ops::Range<usize>,
    device: Device,
    groups: Vec<(TokenGroup, Tensor, Subspace)>, // flat indices [m]
}

impl ReftHooks {
    fn resolve(&self, span: &Span, device: Device) -> EditedTokens {
        let group = |(group, tokens): &(TokenGroup, Vec<(usize, usize)>)| {
            let edited = tokens
                .iter()
                .filter_map(|&(row, token)| Some((row as i64, span.flat_index(row, token)?)));
            let (rows, indices): (Vec<i64>, Vec<i64>) = edited.unzip();
            let subspace = self.masks.as_ref().map_or(Subspace::Whole, |masks| {
                Subspace::Masked(send(&masks.index_select(0, &Tensor::from_slice(&rows)), device))
            });
            (*group, send(&Tensor::from_slice(&indices), device), subspace)
        };
        let groups = self.positions.iter().map(group).collect();
        EditedTokens { columns: span.columns.clone(), device, groups }
    }
}

impl Hooks for ReftHooks {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        let HookPoint::Residual(site) = point else { return Ok(h) };
        let Some(edits) = self.places.get(&site) else { return Ok(h) };
        let device = h.device();
        let is_known = |pass: &EditedTokens| pass.columns == span.columns && pass.device == device;
        if !self.pass.as_ref().is_some_and(is_known) {
            self.pass = Some(self.resolve(span, device));
        }
        let groups = self.pass.as_ref().map_or(&[][..], |pass| &pass.groups);
        let (b, t, d) = h.size3()?;
        let mut h = h;
        for (group, indices, subspace) in groups {
            let Some((_, edit)) = edits.iter().find(|(g, _)| g == group) else { continue };
            if indices.numel() == 0 {
                continue;
            }
            let flat = h.reshape([b * t, d]);
            // index_add passes the gradient of h on unchanged; index_copy would copy it at every layer
            let change = edit.change(&flat.index_select(0, indices), subspace)?; // [m, d]
            h = flat.index_add(0, indices, &change).view([b, t, d]);
        }
        Ok(h)
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        let HookPoint::Residual(site) = point else { return false };
        self.places.contains_key(&site) && span.columns.start < span.layout.width()
    }

    fn token_edits(&self, point: HookPoint, span: &Span) -> Option<Vec<TokenEdit<'_>>> {
        let HookPoint::Residual(site) = point else { return None };
        let edits = self.places.get(&site).filter(|_| self.masks.is_none())?;
        let (mut own, mut seen) = (Vec::new(), BTreeSet::new());
        for (group, edit) in edits {
            let (_, tokens) = self.positions.iter().find(|(of, _)| of == group)?;
            let indices = tokens.iter().filter_map(|&(row, token)| span.flat_index(row, token));
            let tokens: Vec<i64> = indices.collect();
            if !tokens.iter().all(|token| seen.insert(*token)) {
                return None; // the second of two edits of a token sees the output of the first
            }
            own.push(TokenEdit { tokens, edit: edit.linear()?, scaling: 1.0 });
        }
        Some(own)
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        let kept = |&(row, token): &(usize, usize)| {
            Some((rows.iter().position(|kept| *kept == row)?, token))
        };
        for (_, tokens) in &mut self.positions {
            *tokens = tokens.iter().filter_map(kept).collect();
        }
        let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let selected = |masks: &Tensor| masks.index_select(0, &Tensor::from_slice(&indices));
        self.masks = self.masks.as_ref().map(selected);
        self.pass = None;
    }

    fn cut(&mut self) -> Vec<Cut> {
        let edits = self.places.values_mut().flatten();
        edits.flat_map(|(_, edit)| edit.tensors_mut()).filter_map(Cut::of).collect()
    }
}
