use reft_core::autocast;
use reft_models::{
    Error, Fields, HookPoint, Hooks, Layout, LowRank, Mode, Model, ModelDescription, Projection,
    Result, Site, Span,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use tch::{Kind, Tensor, no_grad};

use crate::files::adapter_file::OF_PEFT;
use crate::files::peft_fields::{self, OtherFields, whole_if_it_is};
use crate::target_modules::{TargetModules, matches_whole, or_default};
use crate::trained::{
    Keeps, MadeHooks, Part, Start, Table, TensorMethod, TensorSpec, check_positive, read_config,
    resolve_config, weight_of,
};
use crate::{
    ALPHA, ActsOn, AdapterFiles, DROPOUT, Joined, JoinedModule, Joining, Joint, LAYERS,
    MergedWeights, Merging, MethodDeclaration, MethodOption, MethodOptions, RANK, TARGET_MODULES,
    TOKENS, all_modules, check_sizes,
};

const OPTIONS: &[&MethodOption] = &[&LAYERS, &RANK, &DROPOUT, &ALPHA, &TARGET_MODULES, &TOKENS];

/// LoRA: a low-rank update of frozen projections, `y = W x + b + s B A x` with `s = alpha / r`.
///
/// Hu et al. 2021 (arXiv:2106.09685), section 4.1. `A` `[r, in]` starts random and `B` `[out, r]` at 0, so training begins from the
/// base model. Dropout is on the input of `A`.
pub(crate) const LORA: MethodDeclaration = MethodDeclaration {
    name: "lora",
    title: "LoRA",
    equation: "y = W x + b + (alpha / r) B A x",
    source: "Hu et al. 2021, arXiv:2106.09685",
    options: OPTIONS,
    files: AdapterFiles::Peft("LORA"),
    merging: Merging::IntoWeights,
    joining: Joining::Exactly {
        with: &["lora", "rslora", "dora"],
        how: "ranks are concatenated; or the sum is approximated with a given rank",
        needs_weights: false,
        join,
    },
    acts_on_generated: true,
    per_row: true,
    usual_lr: 1e-3,
    resolve: resolve_config::<LoraConfig>,
    read: read_config::<LoraConfig>,
};

/// Rank-stabilised LoRA: `s = alpha / √r` (Kalajdzievski 2023, arXiv:2312.03732).
pub(crate) const RSLORA: MethodDeclaration = MethodDeclaration {
    name: "rslora",
    title: "rsLoRA",
    equation: "y = W x + b + (alpha / √r) B A x",
    source: "Kalajdzievski 2023, arXiv:2312.03732",
    ..LORA
};

/// DoRA (Liu et al. 2024, arXiv:2402.09353) trains the length of every row of the weight apart from its direction:
///
/// ```text
/// y = b + m ⊙ (W + s B A) x / ‖W + s B A‖,   ‖·‖ the length of each row, taken as a constant in the gradient (section 4.3)
/// ```
///
/// `m` `[out]` starts as `‖W‖`.
pub(crate) const DORA: MethodDeclaration = MethodDeclaration {
    name: "dora",
    title: "DoRA",
    equation: "y = b + m ⊙ (W + s B A) x / ‖W + s B A‖",
    source: "Liu et al. 2024, arXiv:2402.09353",
    joining: Joining::Exactly {
        with: &["lora", "rslora", "dora"],
        how: "ranks are concatenated, with lengths of the base model's rows",
        needs_weights: true,
        join,
    },
    ..LORA
};

/// LoRA and DoRA as `adapter_config.json` says them (`peft_type` LORA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LoraConfig {
    /// Rank `r` of `B A`.
    r: i64,
    #[serde(serialize_with = "whole_if_it_is")]
    lora_alpha: f64,
    /// Dropout probability on the input of `A`, in training.
    lora_dropout: f64,
    #[serde(default, deserialize_with = "or_default")]
    target_modules: TargetModules,
    /// Modules that are excluded.
    #[serde(default)]
    exclude_modules: Option<TargetModules>,
    /// The layers adapted; all if there is none.
    #[serde(default, deserialize_with = "one_or_more")]
    layers_to_transform: Option<Vec<usize>>,
    /// Names before the layer's number in a module's name; any if `None`.
    #[serde(default, deserialize_with = "one_or_more")]
    layers_pattern: Option<Vec<String>>,
    /// Other ranks of single modules: a module name or its end (a regular expression), then the rank.
    #[serde(default, deserialize_with = "or_default")]
    rank_pattern: Map<String, Value>,
    /// Other alphas of single modules, likewise.
    #[serde(default, deserialize_with = "or_default")]
    alpha_pattern: Map<String, Value>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default, skip_serializing_if = "ActsOn::is_all")]
    tokens: ActsOn,
    #[serde(flatten)]
    other: OtherFields,
}

impl LoraConfig {
    /// The projections that it works on.
    fn projections(&self, model: &ModelDescription) -> Result<Vec<Projection>> {
        let layers = self.layers_to_transform.as_deref();
        let projections =
            self.target_modules.select(model, layers, self.exclude_modules.as_ref())?;
        if let Some(names) = self.layers_pattern.as_ref().filter(|_| layers.is_some()) {
            let of_layers = format!(r"(?:.*?\.)?(?:{})\.\d+\..*", names.join("|"));
            for Projection { module, .. } in &projections {
                if !matches_whole(&of_layers, module)? {
                    let names = names.join(", ");
                    let reason = format!("layers_pattern {names} means no layer of {module}");
                    return Err(Error::Adapter { reason });
                }
            }
        }
        let patterns =
            [("rank_pattern", &self.rank_pattern), ("alpha_pattern", &self.alpha_pattern)];
        for (field, pattern) in patterns.iter().flat_map(|(f, all)| all.keys().map(move |p| (f, p)))
        {
            let mut modules = projections.iter();
            let is_one = |found, p: &Projection| -> Result<bool> {
                Ok(found || is_of_pattern(pattern, &p.module)?)
            };
            if !modules.try_fold(false, is_one)? {
                let reason = format!("{field} names {pattern:?}, which is none of the modules");
                return Err(Error::Adapter { reason });
            }
        }
        Ok(projections)
    }

    /// Rank and scaling of a module.
    fn rank_and_scaling(&self, module: &str) -> Result<(i64, f64)> {
        let rank = of_pattern(&self.rank_pattern, module, self.r)?;
        let alpha = of_pattern(&self.alpha_pattern, module, self.lora_alpha)?;
        if rank < 1 {
            return Err(not_positive(module, &rank));
        }
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / divisor))
    }
}

/// The value of the first pattern that matches the end of a module's name; without a match the value of all modules.
fn of_pattern<T: DeserializeOwned>(
    patterns: &Map<String, Value>,
    module: &str,
    of_all: T,
) -> Result<T> {
    for (pattern, value) in patterns {
        if is_of_pattern(pattern, module)? {
            return serde_json::from_value(value.clone()).map_err(|_| not_positive(module, value));
        }
    }
    Ok(of_all)
}

/// Whether a key of `rank_pattern` or `alpha_pattern` means a module, as PEFT's `get_pattern_key` has it.
fn is_of_pattern(pattern: &str, module: &str) -> Result<bool> {
    matches_whole(&format!(r"(?:.*\.)?(?:{pattern})"), module)
}

/// Reads one value, several, or none: null and an empty list are `None`.
fn one_or_more<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    field: D,
) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected one value, a list of them, or null")]
    enum OneOrMore<T> {
        Nothing(()),
        One(T),
        More(Vec<T>),
    }
    let values = match OneOrMore::deserialize(field)? {
        OneOrMore::Nothing(()) => Vec::new(),
        OneOrMore::One(value) => vec![value],
        OneOrMore::More(values) => values,
    };
    Ok(Some(values).filter(|values| !values.is_empty()))
}

fn not_positive(module: &str, found: &dyn Display) -> Error {
    let reason = format!("alpha or r of {module} is {found}, expected a positive number");
    Error::Adapter { reason }
}

/// The constants of a projection's update, beside `A` `[r, in]`, `B` `[out, r]`, and DoRA's `m` `[out]`.
#[derive(Debug)]
struct Update {
    module: String,
    scaling: f64, // s
}

impl TensorMethod for LoraConfig {
    const DECLARATION: &'static MethodDeclaration = &LORA;
    type Constants = Update;

    fn name(&self) -> &'static str {
        match (self.use_dora, self.use_rslora) {
            (true, _) => DORA.name,
            (false, true) => RSLORA.name,
            (false, false) => LORA.name,
        }
    }

    fn decide(
        name: &str,
        options: &MethodOptions,
        model: &ModelDescription,
    ) -> crate::Result<Self> {
        let r = options.get(&RANK).unwrap_or(8);
        let all = || TargetModules::all(model);
        let layers: Option<Vec<usize>> = options.get(&LAYERS);
        let tokens: ActsOn = options.get(&TOKENS).unwrap_or_default();
        Ok(Self {
            r,
            lora_alpha: options.get(&ALPHA).unwrap_or(2.0 * r as f64),
            lora_dropout: options.get(&DROPOUT).unwrap_or(0.0),
            target_modules: TargetModules::given(options, model)?.unwrap_or_else(all),
            exclude_modules: None,
            layers_pattern: None,
            layers_to_transform: layers
                .filter(|l| !l.iter().copied().eq(0..model.num_hidden_layers)),
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            use_rslora: name == RSLORA.name,
            use_dora: name == DORA.name,
            tokens,
            other: OtherFields::of(
                &tokens.peft_type("LORA"),
                model,
                json!({
                    "bias": "none", "eva_config": null, "fan_in_fan_out": false,
                    "init_lora_weights": true, "layer_replication": null,
                    "loftq_config": {}, "lora_bias": false, "megatron_config": null,
                    "megatron_core": "megatron.core", "modules_to_save": null,
                }),
            ),
        })
    }

    fn check(&self) -> crate::Result<()> {
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(reft_core::Error::Dropout(self.lora_dropout).into());
        }
        if !self.lora_alpha.is_finite() {
            let reason = format!("lora_alpha is {}, expected a finite number", self.lora_alpha);
            return Err(Error::Adapter { reason }.into());
        }
        if self.other.starts_as_lora_ga() {
            log::warn!(
                "the adapter started as LoRA-GA does, which changes the base model's weights too; it is applied to the \
                 model as it is. If that is the published one, convert the adapter in PEFT first: save_pretrained with \
                 path_initial_model_for_weight_conversion"
            );
        }
        Ok(())
    }

    fn other(&self) -> Option<(&'static Fields, &OtherFields)> {
        Some((&peft_fields::LORA, &self.other))
    }

    fn target_modules(&mut self) -> Option<&mut TargetModules> {
        Some(&mut self.target_modules)
    }

    fn merging(&self) -> Merging {
        match self.other.starts_as_lora_ga() {
            true => Merging::Never("it changed the base model's weights before it was trained"),
            false => LORA.merging,
        }
    }

    fn acts_on(&self) -> ActsOn {
        self.tokens
    }

    fn parts(&self, model: &ModelDescription) -> Result<Vec<Part<Update>>, crate::Error> {
        let part = |Projection { site, module, in_features, out_features }: Projection| {
            let (r, scaling) = self.rank_and_scaling(&module)?;
            let name = |tensor: &str| format!("base_model.model.{module}.{tensor}");
            let a = Start::Uniform(in_features);
            let mut tensors = vec![
                TensorSpec::new(name("lora_A.weight"), [r, in_features], a),
                TensorSpec::new(name("lora_B.weight"), [out_features, r], Start::Zeros),
            ];
            if self.use_dora {
                let weight = format!("{module}.weight");
                let norms =
                    move |model: &dyn Model| Ok(row_norms(&weight_of(model, &weight)?.dense()));
                let start = Start::FromModel(Box::new(norms));
                let name = name("lora_magnitude_vector");
                tensors.push(TensorSpec::new(name, [out_features], start).without_decay());
            }
            // DoRA also keeps the frozen product, and the sum that is rescaled
            let numbers = r + if self.use_dora { 2 * out_features } else { 0 };
            let keeps = Keeps { input: in_features, numbers };
            Ok(Part { site: Some(site), constants: Update { module, scaling }, tensors, keeps })
        };
        self.other.check_biases(model)?;
        self.projections(model)?.into_iter().map(part).collect()
    }

    fn hooks<'a>(&'a self, table: &'a Table<Update>, _: &Layout, mode: Mode) -> MadeHooks<'a> {
        let dropout = if mode == Mode::Train { self.lora_dropout } else { 0.0 };
        Ok(Box::new(LoraHooks { table, dropout, norms: BTreeMap::new() }))
    }

    fn merge(
        &self,
        constants: &Update,
        tensors: &[Tensor],
        weights: &MergedWeights,
    ) -> crate::Result<()> {
        let Update { module, scaling } = constants;
        weights.change(&format!("{module}.weight"), |weight| {
            let updated = updated(weight, tensors, *scaling);
            match tensors.get(2) {
                Some(m) => (m / row_norms(&updated)).unsqueeze(1) * updated,
                None => updated,
            }
        })
    }
}

/// The parts of a module's joined update, adapter by adapter.
#[derive(Default)]
struct JoinedUpdate {
    a: Vec<Tensor>,         // [r, in]
    b: Vec<Tensor>,         // [out, r], scaled
    factor: Option<Tensor>, // [out]: DoRA's factors of the rows; `None` is 1
}

impl JoinedUpdate {
    /// Adds the update `s B A` of an adapter at a strength, after the earlier ones: `y = b + g ⊙ (W + B A) x`.
    fn add(&mut self, a: &Tensor, b: &Tensor, strength: f64) {
        let b = b * strength;
        self.b.push(match &self.factor {
            Some(g) => b / g.unsqueeze(1),
            None => b,
        });
        self.a.push(a.shallow_clone());
    }

    /// Adds DoRA's update, which multiplies the rows of `W + B A` by `f` `[out]`: `y ← y + s ((f − 1) (y − b) + f B A x)`.
    fn add_scaled(&mut self, a: &Tensor, b: &Tensor, f: &Tensor, strength: f64) {
        let before = self.factor.take().unwrap_or_else(|| f.ones_like());
        self.factor = Some(before * ((f - 1.0) * strength + 1.0));
        self.add(a, &(b * f.unsqueeze(1)), strength);
    }

    /// `A` `[r, in]` and `B` `[out, r]` of all adapters together.
    fn concatenated(&self) -> (Tensor, Tensor) {
        (Tensor::cat(&self.a, 0), Tensor::cat(&self.b, 1))
    }
}

/// The best approximation of `B A` of a rank, and the part of its squared norm that it keeps.
fn truncated((a, b): (Tensor, Tensor), rank: i64) -> (Tensor, Tensor, f64) {
    // of B A = Q_B (R_B R_Aᵀ) Q_Aᵀ only the small product R_B R_Aᵀ needs an SVD
    let (q_b, r_b) = Tensor::linalg_qr(&b, "reduced");
    let (q_a, r_a) = Tensor::linalg_qr(&a.tr(), "reduced");
    let (u, s, v) = r_b.matmul(&r_a.tr()).svd(true, true);
    let rank = rank.min(s.size()[0]);
    let squares = s.square();
    let (kept, all) =
        (squares.narrow(0, 0, rank).sum(Kind::Double), squares.sum(Kind::Double).double_value(&[]));
    let kept = if all > 0.0 { kept.double_value(&[]) / all } else { 1.0 };
    let b = q_b.matmul(&(u.narrow(1, 0, rank) * s.narrow(0, 0, rank)));
    (v.narrow(1, 0, rank).tr().matmul(&q_a.tr()), b, kept)
}

/// Joins low-rank updates: the ranks are concatenated, and every strength and scaling goes into `B`, so that alpha / r is 1.
fn join(joint: &Joint, output: &Path) -> crate::Result<Joined> {
    let refuse = |reason: String| Err(crate::Error::from(Error::Adapter { reason }));
    let [a, b, magnitude] = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"];
    let parts = joint.modules::<LoraConfig>(&[a, b, magnitude], &[magnitude])?;
    let is_dora = parts.iter().any(|part| part.config.use_dora);
    if parts.iter().any(|part| part.config.other.starts_as_lora_ga()) {
        return refuse("one of the adapters started as LoRA-GA does, which changed the base model's weights before it was trained; convert it in PEFT first: save_pretrained with path_initial_model_for_weight_conversion".to_owned());
    }
    if is_dora && joint.options.svd_rank.is_some() {
        return refuse("the best approximation of a rank is for lora and rslora: DoRA's lengths belong to the whole sum; leave the rank out".to_owned());
    }
    if let Some(rank) = joint.options.svd_rank {
        check_positive("rank", rank)?;
    }
    let (mut tensors, mut joined_modules) = (Vec::new(), Vec::new());
    for module in all_modules(&parts) {
        let mut update = JoinedUpdate::default();
        let of_model = |model| weight_of(model, &format!("{module}.weight"));
        let weight = if is_dora { joint.options.model.map(of_model).transpose()? } else { None };
        let weight = weight.map(|weight| weight.dense().to_kind(Kind::Double));
        let own = parts.iter().filter_map(|part| Some((part, part.modules.get(&module)?)));
        let sizes = own.clone().map(|(_, own)| vec![own[b].size()[0], own[a].size()[1]]);
        check_sizes(&module, &sizes.collect::<Vec<_>>())?;
        for (part, own) in own {
            let (rank, scaling) = part.config.rank_and_scaling(&module)?;
            if [own[a].size()[0], own[b].size()[1]] != [rank, rank] {
                return refuse(format!(
                    "{module} has tensors of rank {}, its configuration says {rank}",
                    own[a].size()[0]
                ));
            }
            let scaled = &own[b] * scaling;
            match (&weight, own.get(magnitude)) {
                (Some(weight), Some(m)) => {
                    let f = m / row_norms(&(weight + scaled.matmul(&own[a])));
                    update.add_scaled(&own[a], &scaled, &f, part.strength);
                }
                _ => update.add(&own[a], &scaled, part.strength),
            }
        }
        let (mut own_a, mut own_b) = update.concatenated();
        let mut kept = 1.0;
        if let Some(rank) = joint.options.svd_rank {
            (own_a, own_b, kept) = truncated((own_a, own_b), rank);
        }
        if let Some(weight) = weight {
            let lengths = row_norms(&(weight + own_b.matmul(&own_a)));
            let m = update.factor.map_or_else(|| lengths.shallow_clone(), |g| g * &lengths);
            tensors.push((format!("{OF_PEFT}{module}.{magnitude}"), m));
        }
        joined_modules.push(JoinedModule { module: module.clone(), rank: own_a.size()[0], kept });
        tensors.push((format!("{OF_PEFT}{module}.{a}"), own_a));
        tensors.push((format!("{OF_PEFT}{module}.{b}"), own_b));
    }
    let configs: Vec<&LoraConfig> = parts.iter().map(|part| &part.config).collect();
    let config = LoraConfig::joined(&configs, is_dora, &joined_modules);
    let joined = joint.write(&config, &tensors, output)?;
    Ok(Joined { modules: joined_modules, ..joined })
}

impl LoraConfig {
    /// The configuration of joined updates with scaling 1: each alpha equals its rank.
    fn joined(configs: &[&Self], use_dora: bool, modules: &[JoinedModule]) -> Self {
        let first = configs[0];
        let of_ranks = |rank| modules.iter().filter(|own| own.rank == rank).count();
        let r = modules.iter().map(|own| own.rank).max_by_key(|rank| (of_ranks(*rank), *rank));
        let r = r.unwrap_or(first.r);
        let others = modules.iter().filter(|own| own.rank != r);
        let pattern: Map<String, Value> =
            others.map(|own| (own.module.clone(), json!(own.rank))).collect();
        let selection = |own: &Self| {
            let Self {
                target_modules, exclude_modules, layers_to_transform, layers_pattern, ..
            } = own;
            let (targets, excluded) = (target_modules.clone(), exclude_modules.clone());
            (targets, excluded, layers_to_transform.clone(), layers_pattern.clone())
        };
        let all = modules.iter().map(|own| own.module.clone()).collect();
        let (target_modules, exclude_modules, layers_to_transform, layers_pattern) =
            match configs.iter().all(|own| selection(own) == selection(first)) {
                true => selection(first),
                false => (TargetModules::Names(all), None, None, None),
            };
        Self {
            r,
            lora_alpha: r as f64,
            lora_dropout: 0.0,
            target_modules,
            exclude_modules,
            layers_to_transform,
            layers_pattern,
            alpha_pattern: pattern.clone(),
            rank_pattern: pattern,
            use_rslora: false,
            use_dora,
            tokens: first.tokens,
            other: first.other.clone().with("init_lora_weights", json!(true)),
        }
    }
}

/// `W + s B A` `[out, in]` in f32
fn updated(weight: &Tensor, tensors: &[Tensor], scaling: f64) -> Tensor {
    weight.to_kind(Kind::Float) + tensors[1].matmul(&tensors[0]) * scaling
}

/// Length of every row `[out]` of `[out, in]`, in f64 for f64 weights, else in f32.
fn row_norms(weight: &Tensor) -> Tensor {
    let kind = if weight.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    weight.to_kind(kind).square().sum_dim_intlist([1i64].as_slice(), false, kind).sqrt()
}

/// The updates in one forward.
struct LoraHooks<'a> {
    table: &'a Table<Update>,
    dropout: f64,                  // 0 but in training
    norms: BTreeMap<Site, Tensor>, // ‖W + s B A‖ of DoRA: the same in every pass until the next step
}

impl Hooks for LoraHooks<'_> {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        matches!(point, HookPoint::Output(site, ..) if self.table.at(site).is_some())
    }

    fn low_rank(&self, point: HookPoint, _span: &Span) -> Option<LowRank<'_>> {
        let HookPoint::Output(site, ..) = point else { return None };
        match self.table.at(site)? {
            (Update { scaling, .. }, [a, b]) if self.dropout == 0.0 => {
                Some(LowRank { a, b, scaling: *scaling })
            }
            _ => None, // DoRA rescales the existing weight
        }
    }

    fn visit(&mut self, point: HookPoint, y: Tensor, _span: &Span) -> Result<Tensor> {
        let HookPoint::Output(site, linear, x) = point else { return Ok(y) };
        let Some((Update { scaling, .. }, tensors)) = self.table.at(site) else { return Ok(y) };
        let kind = y.kind();
        let x = x.to_kind(Kind::Float);
        let dropped = (self.dropout > 0.0).then(|| x.dropout(self.dropout, true));
        let x = dropped.as_ref().unwrap_or(&x);
        let scaled = x.linear(&tensors[0], None::<Tensor>) * *scaling; // s A x [b, t, r]
        let update = scaled.linear(&tensors[1], None::<Tensor>); // s B A x [b, t, out]
        let Some(magnitude) = tensors.get(2) else { return Ok((y + update).to_kind(kind)) };
        let norms = self.norms.entry(site).or_insert_with(|| {
            let weight = linear.weight.dense();
            no_grad(|| autocast(false, || row_norms(&updated(&weight, tensors, *scaling))))
        });
        let factor = magnitude / &*norms; // m / ‖W + s B A‖ [out]
        let frozen = match (&dropped, &linear.bias) {
            (Some(x), _) => x.linear(&linear.weight.dense().to_kind(Kind::Float), None::<Tensor>),
            (None, Some(bias)) => &y - bias,
            (None, None) => y.shallow_clone(),
        }; // W x [b, t, out], of the same x as the update
        Ok((y + (&factor - 1.0) * frozen + factor * update).to_kind(kind))
    }
}
