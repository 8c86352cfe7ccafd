use std::fmt::Write as _;
use std::path::Path;

use reft_core::{Activation, InterventionTensors, Method, PositionRule};
use reft_models::{BaseModel, Component, write_json_in_order, write_text};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::pyreft::saved_form::{BASE, CLASSES, MODULE, RAW, SIZES};
use crate::pyreft::torch_save::save_torch_pickle;
use crate::{Error, Form, ReftAdapter, ReftConfig, Result, adapter_of_form};

/// The families that pyvene 0.1.8 supports, and whether all components are the same hidden states there: pyvene reads the branches of Gemma 2
/// before their norm.
const FAMILIES: [(&str, bool); 4] =
    [("llama", true), ("mistral", true), ("qwen2", true), ("gemma2", false)];

/// Nulls after the first five values of a representation: ReFT does not use them.
const UNUSED_OF_REPRESENTATION: usize = 9;

/// Writes the ReFT adapter of a directory as pyreft's `ReftModel.save` would: `config.json` and a file of tensors for each intervention. A
/// `README.md` beside them gives the positions, and describes how to load and call the adapter.
///
/// Returns notes for the files' user.
///
/// # Errors
/// [`Error::NotExportable`] with the part that pyreft has no place for; a file that cannot be read or written.
pub fn export_pyreft(dir: &Path, output: &Path) -> Result<Vec<String>> {
    let (own, _) = adapter_of_form(dir, Form::Pyreft)?;
    let adapter = ReftAdapter::load_alone(&own)?;
    let config = adapter.config();
    check(config).map_err(|reason| {
        let (path, what) = (dir.to_owned(), config.method.to_string());
        Error::NotExportable { path, what, form: Form::Pyreft.name(), reason }
    })?;
    let keys = keys(config);
    let tensors = adapter.interventions().tensors();
    for (key, own) in keys.iter().zip(&tensors) {
        let saved = saved_tensors(config, own);
        save_torch_pickle(&output.join(format!("intkey_{key}.bin")), &saved)?;
    }
    write_json_in_order(&output.join("config.json"), &configuration(config, &keys))?;
    write_text(&output.join("README.md"), &readme(config))?;
    Ok(notes(config))
}

/// Refuses a configuration that pyreft's loader would misread, with the reason.
fn check(config: &ReftConfig) -> std::result::Result<(), String> {
    if config.method.has_affine_source() && config.act_fn != Activation::Linear {
        return Err(format!(
            "its learned source has the activation {}, for which the files have no place, and pyreft would take a linear one; train it with --act-fn linear",
            config.act_fn
        ));
    }
    if let Some(bound) = config.max_edit_norm {
        return Err(format!(
            "its edits are bounded (max_edit_norm {bound}), which pyreft does not do; train it without --max-edit-norm"
        ));
    }
    if config.positions.is_all() {
        return Err(
            "it edits all of a prompt's tokens, and pyreft knows first and last ones; train it at f7+l7 or the like"
                .to_owned(),
        );
    }
    let is_of_block = matches!(config.component, Component::BlockInput | Component::BlockOutput);
    let family = config.base_model.model_type.as_deref();
    let has_all = |family: &str| FAMILIES.iter().any(|(name, has_all)| *name == family && *has_all);
    if let (Some(family), false) = (family, is_of_block)
        && !has_all(family)
    {
        return Err(format!(
            "pyvene does not find {} of {family}, or takes what is before a norm; train it at block_output",
            config.component
        ));
    }
    Ok(())
}

/// Steps that the user of the exported files must take.
fn notes(config: &ReftConfig) -> Vec<String> {
    let mut notes = vec![format!(
        "pyreft's files do not hold the positions ({}): README.md says how they are given",
        config.positions
    )];
    if let Some(family) = &config.base_model.model_type
        && FAMILIES.iter().all(|(name, _)| name != family)
    {
        notes.push(format!(
            "pyvene 0.1.8 does not know models of the type {family}: pyreft refuses to load the adapter until it does; other readers of its files may take it"
        ));
    }
    notes
}

/// The key of each intervention, which is part of its file's name; interventions of one site are counted.
fn keys(config: &ReftConfig) -> Vec<String> {
    let sites = config.sites();
    let key = |i: usize| {
        let site = sites[i].0;
        let nth = sites[..i].iter().filter(|(earlier, _)| *earlier == site).count();
        format!("layer_{}_comp_{}_unit_pos_nunit_1#{nth}", site.layer, site.component)
    };
    (0..sites.len()).map(key).collect()
}

/// `config.json`, with pyvene's fields in pyvene's order.
fn configuration(config: &ReftConfig, keys: &[String]) -> Value {
    let class = format!("<class '{MODULE}.{}'>", class_of(config.method));
    let representation = |layer: usize| {
        let mut values = vec![
            json!(layer),
            json!(config.component),
            json!("pos"),
            json!(1),
            json!(config.low_rank_dimension),
        ];
        values.resize(values.len() + UNUSED_OF_REPRESENTATION, Value::Null);
        values
    };
    let sites = config.sites();
    json!({
        "intervention_constant_sources": vec![true; keys.len()],
        "intervention_dimensions": vec![config.base_model.hidden_size; keys.len()],
        "intervention_types": vec![class; keys.len()],
        "mode": "parallel",
        "representations": sites.iter().map(|(site, _)| representation(site.layer)).collect::<Vec<_>>(),
        "sorted_keys": keys,
    })
}

fn class_of(method: Method) -> &'static str {
    let class = CLASSES.iter().find(|(_, own)| *own == method).map(|(class, _)| *class);
    class.expect("invariant: every edit has a class")
}

/// The tensors of an intervention under pyreft's names, in its order. Only pyreft's LoReFT keeps the rotation itself, and its source without
/// a prefix; other edits keep the two matrices of torch's orthogonal parametrisation.
fn saved_tensors<'a>(config: &ReftConfig, own: &InterventionTensors) -> Vec<(&'a str, Tensor)> {
    let of = |name: &str| own.get(name).map(Tensor::shallow_clone);
    let named = |name: &'a str, tensor: Option<Tensor>| tensor.map(|tensor| (name, tensor));
    let source = [of("learned_source.weight"), of("learned_source.bias")];
    if config.method == Method::Loreft {
        let [weight, bias] = source;
        let all =
            [named("weight", weight), named("bias", bias), named("rotate_layer", of("rotation"))];
        return all.into_iter().flatten().collect();
    }
    let size = Tensor::from(config.base_model.hidden_size);
    let mut all: Vec<_> = SIZES.iter().map(|name| Some((*name, size.shallow_clone()))).collect();
    let [weight, bias] = source;
    if config.method.has_affine_source() {
        all.extend([named("learned_source.weight", weight), named("learned_source.bias", bias)]);
    } else {
        all.push(named("learned_source", bias));
    }
    if let Some(rotation) = of("rotation") {
        let [raw, base] = parametrised(&rotation);
        all.extend([Some((RAW, raw)), Some((BASE, base))]);
    }
    all.extend(["proj_layer.weight", "proj_layer.bias"].map(|name| named(name, of(name))));
    all.into_iter().flatten().collect()
}

/// The matrices from which torch's parametrisation computes `Rᵀ` `[d, r]`: −I, where its map is the identity, and an orthogonal matrix
/// `[d, d]` that begins with the columns of `Rᵀ`.
fn parametrised(rotation: &Tensor) -> [Tensor; 2] {
    let [d, r] = rotation.size()[..] else { unreachable!("invariant: a rotation is [d, r]") };
    let (complete, _) = Tensor::linalg_qr(&rotation.to_kind(Kind::Double), "complete");
    let rest = complete.narrow(1, r, d - r).to_kind(Kind::Float);
    let base = Tensor::cat(&[rotation.shallow_clone(), rest], 1);
    [-Tensor::eye_m(d, r, (Kind::Float, Device::Cpu)), base]
}

/// How to load and call the adapter: its files do not say it.
fn readme(config: &ReftConfig) -> String {
    let ReftConfig { method, positions, component, layers, .. } = config;
    let BaseModel { name, .. } = &config.base_model;
    // an absolute path is given by its last part alone
    let own_name = |name: &str| match Path::new(name) {
        path if path.is_absolute() => Some(path.file_name()?.to_string_lossy().into_owned()),
        _ => Some(name.to_owned()).filter(|name| !name.is_empty()),
    };
    let base = name.as_deref().and_then(own_name).unwrap_or_else(|| "its base model".to_owned());
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    let (first, last) = (positions.first(), positions.last());
    let class = class_of(*method);
    let groups = positions.groups(config.share_weights);
    let share = if groups.len() == 1 { " --share-weights" } else { "" };
    let (first_of_short, last_of_short) = match config.position_rule {
        PositionRule::Paper => (
            format!("{first} if n >= {first} + {last} else min({first}, n // 2)"),
            format!("{last} if n >= {first} + {last} else min({last}, (n + 1) // 2)"),
        ),
        PositionRule::Pyreft => (format!("min({first}, n // 2)"), format!("min({last}, n // 2)")),
    };
    let at_layers = match &groups[..] {
        [_] => format!("[first + last] * {}", layers.len()),
        _ => format!("[first] * {0} + [last] * {0}", layers.len()),
    };
    let mut out = String::new();
    let _ = write!(
        out,
        "# A `{method}` adapter for pyreft

It belongs to **{base}** and edits `{component}` of layers {layers}, at the positions `{positions}` of each prompt. The files are those that
`ReftModel.save` of pyreft 0.1.0 writes. They do not hold the positions, and its `load` makes learned sources in bfloat16 and
leaves `add_bias` open. This does it all:

```python
import pyreft
import torch

made = pyreft.{class}.__init__
extra = {{\"dtype\": torch.float32, \"add_bias\": {add_bias}}}
pyreft.{class}.__init__ = lambda self, **given: made(self, **{{**extra, **given}})


def load(directory, model):
    return pyreft.ReftModel.load(directory, model)


def unit_locations(n):
    \"\"\"Of one prompt of n tokens; prompts of a batch need as many positions as each other.\"\"\"
    first = list(range({first_of_short}))
    last = list(range(n - ({last_of_short}), n))
    return {{\"sources->base\": (None, [[positions] for positions in {at_layers}])}}
```

`load(\"DIR\", model)(inputs, unit_locations=unit_locations(n))` runs it: the second of what comes back is the model's output. In `generate` the
same locations go with `intervene_on_prompt=True`. With a model in bfloat16, `\"dtype\": torch.bfloat16` rounds the learned source.

Back again: `reft import --from pyreft DIR --positions {positions}{share} --model MODEL --output ADAPTER`
",
        layers = layers.join(", "),
        add_bias = if config.add_bias { "True" } else { "False" },
    );
    out
}
