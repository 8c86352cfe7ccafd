use std::path::Path;

use reft_models::{
    Component, Error, Fields, HookPoint, Hooks, Layout, Mode, ModelDescription, Projection, Result,
    Span,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::files::adapter_file::OF_PEFT;
use crate::files::peft_fields;
use crate::joined_tables::ModulePart;
use crate::target_modules::or_default;
use crate::{
    ActsOn, AdapterFiles, FEEDFORWARD_MODULES, Joined, Joining, Joint, Keeps, MadeHooks,
    MergedWeights, Merging, MethodDeclaration, MethodOptions, OtherFields, Part, Start,
    TARGET_MODULES, TOKENS, Table, TargetModules, TensorMethod, TensorSpec, all_modules,
    check_sizes, read_config, resolve_config,
};

/// (IA)³: learned factors for keys, values and the inner state of the MLP.
///
/// Liu et al. 2022 (arXiv:2205.05638), section 3.3: `y = l ⊙ (W x + b)`, and `y = W (l ⊙ x) + b` for feed-forward modules. Every `l` starts at
/// 1, so training begins from the base model.
pub(crate) const IA3: MethodDeclaration = MethodDeclaration {
    name: "ia3",
    title: "(IA)³",
    equation: "y = l ⊙ (W x + b), or y = W (l ⊙ x) + b",
    source: "Liu et al. 2022, arXiv:2205.05638",
    options: &[&TARGET_MODULES, &FEEDFORWARD_MODULES, &TOKENS],
    files: AdapterFiles::Peft("IA3"),
    merging: Merging::IntoWeights,
    joining: Joining::Exactly {
        with: &["ia3"],
        how: "factors are multiplied",
        needs_weights: false,
        join,
    },
    acts_on_generated: true,
    per_row: true,
    usual_lr: 1e-3,
    resolve: resolve_config::<Ia3Config>,
    read: read_config::<Ia3Config>,
};

/// (IA)³ as `adapter_config.json` says it (`peft_type` IA3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ia3Config {
    #[serde(default, deserialize_with = "or_default")]
    target_modules: TargetModules,
    /// Modules that are excluded.
    #[serde(default)]
    exclude_modules: Option<TargetModules>,
    /// Of the target modules, those whose input is rescaled instead of their output.
    feedforward_modules: TargetModules,
    #[serde(default, skip_serializing_if = "ActsOn::is_all")]
    tokens: ActsOn,
    #[serde(flatten)]
    other: OtherFields,
}

/// The factors of a projection.
#[derive(Debug)]
struct Factors {
    module: String,
    scales_input: bool,
}

impl TensorMethod for Ia3Config {
    const DECLARATION: &'static MethodDeclaration = &IA3;
    type Constants = Factors;

    fn decide(_: &str, options: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        use Component::{Down, Key, QueryKeyValue, Value};
        // one projection for queries, keys and values, or separate ones: whichever the model has
        let targets = || TargetModules::of(&[QueryKeyValue, Key, Value, Down], model);
        let tokens: ActsOn = options.get(&TOKENS).unwrap_or_default();
        Ok(Self {
            target_modules: TargetModules::given(options, model)?.unwrap_or_else(targets),
            exclude_modules: None,
            feedforward_modules: options
                .get(&FEEDFORWARD_MODULES)
                .unwrap_or_else(|| TargetModules::of(&[Down], model)),
            tokens,
            other: OtherFields::of(
                &tokens.peft_type("IA3"),
                model,
                json!({ "fan_in_fan_out": false, "init_ia3_weights": true, "modules_to_save": null }),
            ),
        })
    }

    fn other(&self) -> Option<(&'static Fields, &OtherFields)> {
        Some((&peft_fields::IA3, &self.other))
    }

    fn target_modules(&mut self) -> Option<&mut TargetModules> {
        Some(&mut self.target_modules)
    }

    fn acts_on(&self) -> ActsOn {
        self.tokens
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<Factors>>> {
        let feedforward = match &self.feedforward_modules {
            TargetModules::Names(names) if names.is_empty() => Vec::new(),
            modules => modules.select(model, None, None)?,
        };
        let excluded = self.exclude_modules.as_ref();
        let selected = self.target_modules.select(model, None, excluded)?;
        for p in &feedforward {
            let is_excluded = excluded.map_or(Ok(false), |excluded| excluded.means(&p.module))?;
            if selected.contains(p) || is_excluded {
                continue;
            }
            let module = &p.module;
            let reason = format!(
                "feedforward_modules means {module}, target_modules does not; name it there too"
            );
            return Err(Error::Adapter { reason }.into());
        }
        let part = |p: Projection| {
            let scales_input = feedforward.contains(&p);
            // PEFT's shapes: the factors are a row or a column of the weight
            let shape = if scales_input { [1, p.in_features] } else { [p.out_features, 1] };
            let name = format!("base_model.model.{}.ia3_l", p.module);
            let tensors = vec![TensorSpec::new(name, shape, Start::Ones).without_decay()];
            let constants = Factors { module: p.module, scales_input };
            let numbers = if scales_input { p.in_features } else { p.out_features };
            Part { site: Some(p.site), constants, tensors, keeps: Keeps { input: 0, numbers } }
        };
        Ok(selected.into_iter().map(part).collect())
    }

    fn hooks<'a>(&'a self, table: &'a Table<Factors>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        Ok(Box::new(Ia3Hooks(table)))
    }

    fn merge(
        &self,
        constants: &Factors,
        tensors: &[Tensor],
        weights: &MergedWeights,
    ) -> crate::Result<()> {
        let (Factors { module, scales_input }, l) = (constants, &tensors[0]);
        weights.change(&format!("{module}.weight"), |w| w.to_kind(Kind::Float) * l)?;
        if *scales_input {
            return Ok(());
        }
        weights.change_bias(module, |bias| bias.to_kind(Kind::Float) * l.flatten(0, 1))
    }
}

/// Multiplies factors, each at its strength: `1 + s (l − 1)`.
fn join(joint: &Joint, output: &Path) -> crate::Result<Joined> {
    const FACTORS: &str = "ia3_l";
    joint.takes_no_rank(IA3.name)?;
    let parts = joint.modules::<Ia3Config>(&[FACTORS], &[])?;
    let (mut tensors, mut feedforward) = (Vec::new(), Vec::new());
    let modules = all_modules(&parts);
    for module in &modules {
        let own = parts
            .iter()
            .filter_map(|part| Some((part.strength, &part.modules.get(module)?[FACTORS])));
        // [1, in] rescales the input, [out, 1] the output: one adapter does one of the two
        check_sizes(module, &own.clone().map(|(_, l)| l.size()).collect::<Vec<_>>())?;
        let at_strength = own.map(|(s, l)| (l - 1.0) * s + 1.0);
        let Some(product) = at_strength.reduce(|product, l| product * l) else { continue };
        if product.size()[0] == 1 {
            feedforward.push(module.clone());
        }
        tensors.push((format!("{OF_PEFT}{module}.{FACTORS}"), product));
    }
    let first = &parts[0].config;
    let is_same = |part: &ModulePart<Ia3Config>| {
        (
            &part.config.target_modules,
            &part.config.exclude_modules,
            &part.config.feedforward_modules,
        ) == (&first.target_modules, &first.exclude_modules, &first.feedforward_modules)
    };
    let config = match parts.iter().all(is_same) {
        true => first.clone(),
        false => Ia3Config {
            target_modules: TargetModules::Names(modules.into_iter().collect()),
            exclude_modules: None,
            feedforward_modules: TargetModules::Names(feedforward),
            tokens: first.tokens,
            other: first.other.clone(),
        },
    };
    joint.write(&config, &tensors, output)
}

/// The factors in one forward.
struct Ia3Hooks<'a>(&'a Table<Factors>);

impl Hooks for Ia3Hooks<'_> {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        matches!(point, HookPoint::Input(site) | HookPoint::Output(site, ..) if self.0.at(site).is_some())
    }

    fn visit(&mut self, point: HookPoint, x: Tensor, _span: &Span) -> Result<Tensor> {
        let (site, is_input) = match point {
            HookPoint::Input(site) => (site, true),
            HookPoint::Output(site, ..) => (site, false),
            _ => return Ok(x),
        };
        let own = self.0.at(site).filter(|(factors, _)| factors.scales_input == is_input);
        let Some((_, tensors)) = own else { return Ok(x) };
        Ok((&x * tensors[0].flatten(0, 1)).to_kind(x.kind())) // l ⊙ x [b, t, ..]
    }
}
