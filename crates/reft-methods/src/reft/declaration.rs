use std::path::Path;

use reft_core::{InterventionConfig, MapKind, Method as Edit, Positions};
use reft_models::{Adapter, BaseModel, Component, Model, ModelDescription};

use crate::reft::joining::join;
use crate::{
    ACT_FN, ADD_BIAS, AdapterFiles, COMPONENT, DROPOUT, INIT, Joining, LAYERS, MAX_EDIT_NORM,
    Merging, Method, MethodDeclaration, MethodOptions, ORTHONORMAL_MAP, POSITION_RULE, POSITIONS,
    RANK, ReftAdapter, ReftConfig, Result, SHARE_WEIGHTS,
};

/// LoReFT: `Φ(h) = h + Rᵀ(W h + b − R h)`, the paper's strongest form.
pub(crate) const LOREFT: MethodDeclaration = MethodDeclaration {
    name: "loreft",
    title: "LoReFT",
    equation: "h + Rᵀ(W h + b − R h)",
    source: "Wu et al. 2024, arXiv:2404.03592",
    options: &[
        &LAYERS,
        &RANK,
        &DROPOUT,
        &COMPONENT,
        &POSITIONS,
        &POSITION_RULE,
        &SHARE_WEIGHTS,
        &ORTHONORMAL_MAP,
        &ACT_FN,
        &ADD_BIAS,
        &MAX_EDIT_NORM,
        &INIT,
    ],
    files: AdapterFiles::Reft,
    merging: Merging::Never("it edits hidden states of the prompt, and none of the reply"),
    joining: Joining::Exactly {
        with: &["loreft", "direft", "direft-orth", "noreft", "consreft", "lobireft"],
        how: "layers and positions together; edits of one place one after the other, at the sum of their ranks",
        needs_weights: false,
        join,
    },
    acts_on_generated: false,
    per_row: true,
    usual_lr: 2e-3,
    resolve,
    read: |dir| Ok(Box::new(ReftConfig::read(dir)?)),
};

/// The paper's DiReFT.
pub(crate) const DIREFT: MethodDeclaration =
    MethodDeclaration {
        name: "direft", title: "DiReFT", equation: "h + W₂ᵀ(W₁ h + b)", ..LOREFT
    };

/// pyreft's `DireftIntervention`, which the paper calls an ablation.
pub(crate) const DIREFT_ORTH: MethodDeclaration = MethodDeclaration {
    name: "direft-orth",
    title: "DiReFT, orthonormal",
    equation: "h + Rᵀ(W h + b)",
    ..LOREFT
};

/// LoReFT without the constraint.
pub(crate) const NOREFT: MethodDeclaration = MethodDeclaration {
    name: "noreft",
    title: "NoReFT",
    equation: "h + Pᵀ(W h + b − P h − c)",
    ..LOREFT
};

/// A constant put into the subspace.
pub(crate) const CONSREFT: MethodDeclaration = MethodDeclaration {
    name: "consreft",
    title: "ConsReFT",
    equation: "h + Rᵀ(b − R h)",
    ..LOREFT
};

/// A constant vector of the subspace is added.
pub(crate) const LOBIREFT: MethodDeclaration =
    MethodDeclaration { name: "lobireft", title: "LobiReFT", equation: "h + Rᵀ b", ..LOREFT };

fn resolve(
    name: &str,
    options: &MethodOptions,
    model: &ModelDescription,
) -> Result<Box<dyn Method>> {
    let edit: Edit = name.parse()?;
    let rank = options.get(&RANK).unwrap_or(8);
    let intervention = InterventionConfig {
        dropout: options.get(&DROPOUT).unwrap_or(0.0),
        orthonormal_map: options.get(&ORTHONORMAL_MAP).unwrap_or_default(),
        act_fn: options.get(&ACT_FN).unwrap_or_default(),
        add_bias: options.get(&ADD_BIAS).unwrap_or(false),
        max_edit_norm: options.get(&MAX_EDIT_NORM),
        init: options.get::<String>(&INIT).map(|init| init.parse()).transpose()?,
        ..InterventionConfig::new(edit, rank)
    };
    if intervention.add_bias && edit != Edit::Noreft {
        let expected = "false: it is for noreft's projection";
        return Err(ADD_BIAS.refuse(format!("true for {name}"), expected));
    }
    intervention.check(model.hidden_size)?; // before a start is chosen for it
    let positions: Positions = match options.get(&POSITIONS) {
        Some(positions) => positions,
        None => POSITIONS.default.parse()?,
    };
    let layers = options.layers_of(model.num_hidden_layers);
    let config = ReftConfig {
        component: options.get(&COMPONENT).unwrap_or(Component::BlockOutput),
        position_rule: options.get(&POSITION_RULE).unwrap_or_default(),
        share_weights: options.get(&SHARE_WEIGHTS).unwrap_or(false),
        ..ReftConfig::new(&intervention, layers, positions, BaseModel::of(model, ""))
    };
    config.check_model(model)?;
    Ok(Box::new(config))
}

impl Method for ReftConfig {
    fn merging(&self) -> Merging {
        LOREFT.merging
    }

    fn name(&self) -> &str {
        self.method.name()
    }

    fn options(&self) -> MethodOptions {
        MethodOptions::of_config(LOREFT.options, self)
    }

    fn build(&self, model: &dyn Model, base_model: &str) -> Result<Box<dyn Adapter>> {
        let base_model = BaseModel::of(model.description(), base_model);
        Ok(Box::new(ReftAdapter::new(Self { base_model, ..self.clone() }, model)?))
    }

    fn load(&self, dir: &Path, model: &dyn Model) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(ReftAdapter::load(dir, model)?))
    }

    fn load_trainable(&self, dir: &Path, model: &dyn Model) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(ReftAdapter::load(dir, model)?.into_trainable()?))
    }

    fn check_files(&self, dir: &Path, model: &ModelDescription) -> Result<()> {
        self.check_model(model)?;
        Ok(ReftAdapter::load_alone(dir).map(drop)?)
    }

    fn merge(&self, _dir: &Path, _model: &dyn Model) -> Result<()> {
        unreachable!("invariant: the declaration says that it cannot be merged")
    }

    fn rotations(&self) -> Option<(MapKind, [i64; 3])> {
        let shape =
            [self.sites().len() as i64, self.base_model.hidden_size, self.low_rank_dimension];
        self.method.has_rotation().then_some((self.orthonormal_map, shape))
    }
}
