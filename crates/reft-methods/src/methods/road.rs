use std::borrow::Borrow;
use std::path::Path;

use reft_models::{
    Error, Fields, HookPoint, Hooks, Layout, Mode, ModelDescription, Projection, Result, Span,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::files::adapter_file::OF_PEFT;
use crate::files::peft_fields;
use crate::target_modules::or_default;
use crate::{
    ActsOn, AdapterFiles, Joined, Joining, Joint, Keeps, MadeHooks, MergedWeights, Merging,
    MethodDeclaration, MethodOption, MethodOptions, OtherFields, Part, Start, TARGET_MODULES,
    TOKENS, Table, TargetModules, TensorMethod, TensorSpec, ValueKind, all_modules, check_sizes,
    read_config, resolve_config,
};

/// RoAd: the outputs of projections are rotated and scaled in planes.
///
/// Liao and Monz 2024 (arXiv:2409.00119). A group of `G` coordinates has `G/2` planes; coordinate `j` turns with coordinate `j + G/2`:
///
/// ```text
/// y = W x + b,   [y₁; y₂] ← [c₁ ⊙ y₁ − s₁ ⊙ y₂; s₂ ⊙ y₁ + c₂ ⊙ y₂],   c = α cos θ,   s = α sin θ
/// ```
///
/// road_1 has one `θ` and one `α` for a plane, road_2 one for each of its two coordinates, road_4 one for each of its four numbers.
/// `θ` starts at 0 and `α` at 1, so training begins from the base model.
pub(crate) const ROAD: MethodDeclaration = MethodDeclaration {
    name: "road",
    title: "RoAd",
    equation: "y = R(θ, α) (W x + b), R of rotations in planes",
    source: "Liao and Monz 2024, arXiv:2409.00119",
    options: &[&TARGET_MODULES, &VARIANT, &GROUP_SIZE, &TOKENS],
    files: AdapterFiles::Peft("ROAD"),
    merging: Merging::IntoWeights,
    joining: Joining::Exactly {
        with: &["road"],
        how: "the matrices of planes are multiplied",
        needs_weights: false,
        join,
    },
    acts_on_generated: true,
    per_row: true,
    usual_lr: 1e-3,
    resolve: resolve_config::<RoadConfig>,
    read: read_config::<RoadConfig>,
};

const HEADING: &str = "Method: RoAd";

static VARIANT: MethodOption = MethodOption {
    name: "variant",
    value: ValueKind::Name(&["road_1", "road_2", "road_4"]),
    value_name: "NAME",
    heading: HEADING,
    help: "Trained parameters of a plane: road_1 = 2, road_2 = 4, road_4 = 8",
    default: "road_1",
    alias: None,
};

static GROUP_SIZE: MethodOption = MethodOption {
    name: "group_size",
    value: ValueKind::Count,
    value_name: "G",
    heading: HEADING,
    help: "Coordinates of a group: each turns with the one half a group further",
    default: "64, or the largest power of two below it that divides every output",
    alias: None,
};

/// How many angles and scales a plane has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Variant {
    #[serde(rename = "road_1")]
    Road1,
    #[serde(rename = "road_2")]
    Road2,
    #[serde(rename = "road_4")]
    Road4,
}

/// RoAd as `adapter_config.json` says it (`peft_type` ROAD).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RoadConfig {
    variant: Variant,
    group_size: i64,
    #[serde(default, deserialize_with = "or_default")]
    target_modules: TargetModules,
    #[serde(default, skip_serializing_if = "ActsOn::is_all")]
    tokens: ActsOn,
    #[serde(flatten)]
    other: OtherFields,
}

impl RoadConfig {
    /// `c` and `s` of `θ` and `α`, `[d/G, 1 or 2, G/2]` each.
    fn cosines_and_sines(&self, tensors: &[impl Borrow<Tensor>]) -> (Tensor, Tensor) {
        let (of_each, halves) = match self.variant {
            Variant::Road1 => (1, 1),
            Variant::Road2 => (1, 2),
            Variant::Road4 => (2, 2),
        };
        // [d/G, 1 for both c and s or 2 for each, halves, G/2]
        let shaped = |x: &Tensor| x.view([-1, of_each, halves, self.group_size / 2]);
        let (theta, alpha) = (shaped(tensors[0].borrow()), shaped(tensors[1].borrow()));
        let cosines = theta.select(1, 0).cos() * alpha.select(1, 0);
        (cosines, theta.select(1, -1).sin() * alpha.select(1, -1))
    }

    /// Rotates and scales the last dimension of `y` `[.., d]`, in f32.
    fn rotated(&self, y: &Tensor, tensors: &[Tensor]) -> Tensor {
        let (cosines, sines) = self.cosines_and_sines(tensors);
        let mut shape = y.size();
        shape.pop();
        shape.extend([-1, 2, self.group_size / 2]);
        let halves = y.to_kind(Kind::Float).reshape(&shape); // [.., d/G, 2, G/2]
        let (first, second) = (halves.select(-2, 0), halves.select(-2, 1));
        let turned = Tensor::stack(&[second.neg(), first], -2);
        (halves * cosines + turned * sines).reshape(y.size())
    }
}

impl TensorMethod for RoadConfig {
    const DECLARATION: &'static MethodDeclaration = &ROAD;
    type Constants = String; // the module

    fn decide(_: &str, options: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        let all = || TargetModules::all(model);
        let target_modules = TargetModules::given(options, model)?.unwrap_or_else(all);
        let outputs = target_modules.select(model, None, None)?.into_iter().map(|p| p.out_features);
        let shift = outputs.map(i64::trailing_zeros).min().unwrap_or(0).min(6);
        let tokens: ActsOn = options.get(&TOKENS).unwrap_or_default();
        Ok(Self {
            variant: options.get(&VARIANT).unwrap_or(Variant::Road1),
            group_size: options.get(&GROUP_SIZE).unwrap_or(1 << shift),
            target_modules,
            tokens,
            other: OtherFields::of(
                &tokens.peft_type("ROAD"),
                model,
                json!({ "init_weights": true, "modules_to_save": null }),
            ),
        })
    }

    fn other(&self) -> Option<(&'static Fields, &OtherFields)> {
        Some((&peft_fields::ROAD, &self.other))
    }

    fn target_modules(&mut self) -> Option<&mut TargetModules> {
        Some(&mut self.target_modules)
    }

    fn acts_on(&self) -> ActsOn {
        self.tokens
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<String>>> {
        let group = self.group_size;
        let part = |Projection { site, module, out_features: d, .. }: Projection| {
            if group < 2 || group % 2 != 0 || d % group != 0 {
                let reason = format!(
                    "group_size is {group}, expected an even size that divides {d}, the outputs of {module}"
                );
                return Err(Error::Adapter { reason }.into());
            }
            let n = match self.variant {
                Variant::Road1 => d / 2,
                Variant::Road2 => d,
                Variant::Road4 => 2 * d,
            };
            let name = |tensor: &str| format!("base_model.model.{module}.{tensor}");
            let theta = TensorSpec::new(name("road_theta"), [n], Start::Zeros);
            let alpha = TensorSpec::new(name("road_alpha"), [n], Start::Ones).without_decay();
            // the factors of cosines and sines
            let keeps = Keeps { input: 0, numbers: 2 * d };
            Ok(Part { site: Some(site), constants: module, tensors: vec![theta, alpha], keeps })
        };
        self.target_modules.select(model, None, None)?.into_iter().map(part).collect()
    }

    fn hooks<'a>(&'a self, table: &'a Table<String>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        Ok(Box::new(RoadHooks { config: self, table }))
    }

    fn merge(
        &self,
        module: &String,
        tensors: &[Tensor],
        weights: &MergedWeights,
    ) -> crate::Result<()> {
        // merging rotates the columns of W like outputs
        let turned = |w: &Tensor| self.rotated(&w.tr(), tensors).tr();
        weights.change(&format!("{module}.weight"), turned)?;
        weights.change_bias(module, |bias| self.rotated(bias, tensors))
    }
}

/// Multiplies the matrices `[[c₁, −s₁], [s₂, c₂]]` of planes, each at its strength. road_2 expresses any product, by an angle and a scale for
/// each row. Products of road_1's rotations and scalings are road_1's.
fn join(joint: &Joint, output: &Path) -> crate::Result<Joined> {
    let [theta, alpha] = ["road_theta", "road_alpha"];
    joint.takes_no_rank(ROAD.name)?;
    let parts = joint.modules::<RoadConfig>(&[theta, alpha], &[])?;
    let first = &parts[0].config;
    let group = first.group_size;
    if let Some(other) = parts.iter().map(|part| part.config.group_size).find(|g| *g != group) {
        let reason = format!(
            "the adapters turn planes of groups of {group} and of {other} coordinates, and those are different planes; use them as a stack"
        );
        return Err(Error::Adapter { reason }.into());
    }
    let is_first = parts.iter().all(|part| part.config.variant == Variant::Road1);
    let variant = if is_first { Variant::Road1 } else { Variant::Road2 };
    let modules = all_modules(&parts);
    let mut tensors = Vec::new();
    for module in &modules {
        let mut product: Option<[Tensor; 4]> = None; // c₁, −s₁, s₂, c₂: [d/G, G/2] each
        for part in &parts {
            let Some(own) = part.modules.get(module) else { continue };
            let (c, s) = part.config.cosines_and_sines(&[&own[theta], &own[alpha]]); // [d/G, 1 or 2, G/2]
            let half = |x: &Tensor, at: i64| x.select(1, at.min(x.size()[1] - 1)) * part.strength;
            let rest = 1.0 - part.strength; // s R + (1 − s)
            let next = [half(&c, 0) + rest, half(&s, 0).neg(), half(&s, 1), half(&c, 1) + rest];
            product = Some(match product {
                None => next,
                Some(last) => {
                    check_sizes(module, &[last[0].size(), next[0].size()])?;
                    let cell = |row: usize, column: usize| {
                        &next[2 * row] * &last[column] + &next[2 * row + 1] * &last[2 + column]
                    };
                    [cell(0, 0), cell(0, 1), cell(1, 0), cell(1, 1)]
                }
            });
        }
        let Some([c1, minus_s1, s2, c2]) = product else { continue };
        let rows = [(minus_s1.neg(), c1), (s2, c2)];
        let rows = &rows[..if is_first { 1 } else { 2 }];
        let of_rows = |number: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
            let rows: Vec<Tensor> = rows.iter().map(|(s, c)| number(s, c)).collect();
            Tensor::stack(&rows, 1).flatten(0, -1) // [d/G, rows, G/2] as the file has it
        };
        tensors.push((format!("{OF_PEFT}{module}.{theta}"), of_rows(&|s, c| s.atan2(c))));
        tensors.push((format!("{OF_PEFT}{module}.{alpha}"), of_rows(&|s, c| s.hypot(c))));
    }
    let is_same = parts.iter().all(|part| part.config.target_modules == first.target_modules);
    let all = || TargetModules::Names(modules.into_iter().collect());
    let target_modules = if is_same { first.target_modules.clone() } else { all() };
    let config = RoadConfig { variant, target_modules, ..first.clone() };
    joint.write(&config, &tensors, output)
}

/// The rotations in one forward.
struct RoadHooks<'a> {
    config: &'a RoadConfig,
    table: &'a Table<String>,
}

impl Hooks for RoadHooks<'_> {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        matches!(point, HookPoint::Output(site, ..) if self.table.at(site).is_some())
    }

    fn visit(&mut self, point: HookPoint, y: Tensor, _span: &Span) -> Result<Tensor> {
        let HookPoint::Output(site, ..) = point else { return Ok(y) };
        let Some((_, tensors)) = self.table.at(site) else { return Ok(y) };
        Ok(self.config.rotated(&y, tensors).to_kind(y.kind()))
    }
}
