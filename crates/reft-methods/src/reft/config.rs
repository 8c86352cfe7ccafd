use std::path::Path;

use reft_core::{
    Activation, Init, InterventionConfig, MapKind, Method, PositionRule, Positions, TokenGroup,
};
use reft_models::{BaseModel, Component, Error, ModelDescription, Result, Site, read_json};
use serde::{Deserialize, Serialize};

use crate::AdapterFiles;
use crate::files::own_config::{self, check_layers, check_version};

/// `reft_config.json`: the configuration of a ReFT adapter, everything but its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReftConfig {
    /// Version of this format: [`ReftConfig::FORMAT_VERSION`].
    pub format_version: u32,
    /// The edit.
    pub method: Method,
    /// Layers edited, 0-based, each once, in ascending order.
    pub layers: Vec<usize>,
    /// Where in each layer: one of the four points of the residual stream.
    pub component: Component,
    /// Prompt tokens edited.
    pub positions: Positions,
    /// The rule for prompts shorter than the positions.
    pub position_rule: PositionRule,
    /// One intervention per layer for all positions, or one for the first and one for the last tokens.
    pub share_weights: bool,
    /// Dimension `r` of the subspace.
    pub low_rank_dimension: i64,
    /// How `R` is kept orthonormal while it trains.
    pub orthonormal_map: MapKind,
    /// Activation of the learned source.
    pub act_fn: Activation,
    /// Dropout on the edit, in training.
    pub dropout: f64,
    /// Whether noreft's projection has a bias.
    pub add_bias: bool,
    /// Largest norm of the edit as a multiple of the hidden state's; absent if there is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_edit_norm: Option<f64>,
    /// The start in force when it was made.
    pub init: Init,
    /// The model it belongs to.
    pub base_model: BaseModel,
}

impl ReftConfig {
    /// The version written.
    pub const FORMAT_VERSION: u32 = own_config::FORMAT_VERSION;
    /// Name of the file in an adapter directory.
    pub const FILE_NAME: &str = AdapterFiles::Reft.names()[1];

    /// An adapter of `intervention` at the output of `layers`, on untied `positions`.
    pub fn new(
        intervention: &InterventionConfig,
        layers: Vec<usize>,
        positions: Positions,
        base_model: BaseModel,
    ) -> Self {
        Self {
            format_version: Self::FORMAT_VERSION,
            method: intervention.method,
            layers,
            component: Component::BlockOutput,
            positions,
            position_rule: PositionRule::default(),
            share_weights: false,
            low_rank_dimension: intervention.low_rank_dimension,
            orthonormal_map: intervention.orthonormal_map,
            act_fn: intervention.act_fn,
            dropout: intervention.dropout,
            add_bias: intervention.add_bias,
            max_edit_norm: intervention.max_edit_norm,
            init: intervention.resolved_init(),
            base_model,
        }
    }

    /// Reads `reft_config.json` of an adapter directory.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`] with the line, or errors of [`Self::check`].
    pub fn read(dir: &Path) -> Result<Self> {
        let config: Self = read_json(&dir.join(Self::FILE_NAME))?;
        config.check()?;
        Ok(config)
    }

    /// Checks everything that needs no model.
    ///
    /// # Errors
    /// [`Error::Adapter`] or an error of the intervention's own.
    pub fn check(&self) -> Result<()> {
        check_version(self.format_version)?;
        if Component::PROJECTIONS.contains(&self.component) {
            let accepted = "block_input, attention_output, mlp_output or block_output";
            let reason = format!("component is {}, ReFT edits {accepted}", self.component);
            return Err(Error::Adapter { reason });
        }
        check_layers(&self.layers, self.base_model.num_hidden_layers.unwrap_or(usize::MAX))?;
        Ok(self.intervention().check(self.base_model.hidden_size)?)
    }

    /// Checks that the adapter can run on a model.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it is another model than the adapter's, or has no such layer.
    pub fn check_model(&self, model: &ModelDescription) -> Result<()> {
        self.base_model.check(model)?;
        let name = self.base_model.name.clone().unwrap_or_default();
        Self { base_model: BaseModel::of(model, name), ..self.clone() }.check()
    }

    /// The intervention at each site.
    pub fn intervention(&self) -> InterventionConfig {
        InterventionConfig {
            method: self.method,
            low_rank_dimension: self.low_rank_dimension,
            orthonormal_map: self.orthonormal_map,
            act_fn: self.act_fn,
            dropout: self.dropout,
            add_bias: self.add_bias,
            max_edit_norm: self.max_edit_norm,
            init: Some(self.init),
        }
    }

    /// The site and tokens of each intervention: one group of positions after the other, each by layers.
    pub fn sites(&self) -> Vec<(Site, TokenGroup)> {
        let groups = self.positions.groups(self.share_weights).into_iter();
        groups
            .flat_map(|group| self.layers.iter().map(move |layer| (*layer, group)))
            .map(|(layer, group)| (Site { layer, component: self.component }, group))
            .collect()
    }

    /// Name of a tensor in the adapter's file: `layers.15.block_output.tied.rotation`.
    pub fn tensor_name((site, group): (Site, TokenGroup), tensor: &str) -> String {
        format!("layers.{}.{}.{group}.{tensor}", site.layer, site.component)
    }
}
