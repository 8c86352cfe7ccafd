//! Exports adapters that add a constant to the output of blocks, as llama.cpp's control vectors, and imports these.

use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Method as EditMethod;
use reft_models::{BaseModel, Component, ControlVector, ModelDescription, Site};
use tch::Kind;

use crate::methods::steering::{KeptDirections, kept_directions, write_steering};
use crate::registry::adapters_in;
use crate::{AdapterFiles, Error, ReftAdapter, Result};

/// Writes the adapter in a directory as a control vector; `model_hint` is the architecture's name. Returns notes for its user.
///
/// Exact are directions that are added at block outputs from block 1 on, at every token, and the edits of lobireft at `all` positions.
///
/// # Errors
/// [`Error::NotAControlVector`] with the part that a control vector cannot express; errors of reading it; as
/// [`ControlVector::write`].
pub fn export_control_vector(
    dir: &Path,
    output: &Path,
    model_hint: Option<&str>,
) -> Result<Vec<String>> {
    let adapters = adapters_in(dir)?;
    let refuse = |method: &str, reason: String| {
        let (path, method) = (dir.to_owned(), method.to_owned());
        Error::NotAControlVector { path, method, reason }
    };
    let [(directory, declared)] = &adapters[..] else {
        return Err(refuse(
            "several",
            "it is several adapters; write one, or join them first".to_owned(),
        ));
    };
    let mut notes = Vec::new();
    let (directions, base_model) = match declared.files {
        AdapterFiles::Reft => {
            notes.push(
                "the edits of ReFT change the prompt's tokens alone, and a control vector changes the reply's too".to_owned(),
            );
            lobireft(directory).map_err(|reason| refuse(declared.name, reason))?
        }
        AdapterFiles::Own if declared.name == "steering" => match kept_directions(directory)? {
            Ok(found) => found,
            Err(reason) => return Err(refuse(declared.name, reason)),
        },
        _ => {
            let reason = "its edit depends on the hidden states, and a control vector adds the same everywhere";
            return Err(refuse(declared.name, reason.to_owned()));
        }
    };
    let mut by_block = BTreeMap::new();
    for (Site { layer, component }, v) in directions {
        if component != Component::BlockOutput {
            return Err(refuse(
                declared.name,
                format!("it adds to {component}, a control vector to block_output"),
            ));
        }
        by_block.insert(layer, v);
    }
    let hint = model_hint.map(str::to_owned).or(base_model.model_type);
    ControlVector { model_hint: hint, directions: by_block }.write(output)?;
    Ok(notes)
}

/// The vectors `Rᵀ b` that lobireft adds, by site; the error says why it is no control vector.
fn lobireft(dir: &Path) -> Result<KeptDirections, String> {
    let adapter = ReftAdapter::load_alone(dir).map_err(|error| error.to_string())?;
    let config = adapter.config();
    if config.method != EditMethod::Lobireft {
        return Err(
            "its edit depends on the hidden states, and a control vector adds the same everywhere"
                .to_owned(),
        );
    }
    if !config.positions.is_all() {
        return Err(format!(
            "it edits the positions {}, and a control vector every token; train it with --positions all",
            config.positions
        ));
    }
    if let Some(bound) = config.max_edit_norm {
        return Err(format!(
            "its edits are bounded by the hidden states' norm (max_edit_norm {bound})"
        ));
    }
    let mut directions = BTreeMap::new();
    for ((site, _), tensors) in config.sites().into_iter().zip(adapter.interventions().tensors()) {
        let tensor = |name: &str| tensors[name].to_kind(Kind::Double);
        let v = tensor("rotation").mv(&tensor("learned_source.bias")); // Rᵀ b [d]
        directions.insert(site, v.to_kind(Kind::Float));
    }
    Ok((directions, config.base_model.clone()))
}

/// Makes an adapter of a control vector, in an existing empty directory. `model` is its base model; without it only the hidden size is kept.
///
/// # Errors
/// A hidden size or a layer that the model does not have; a directory that cannot be written.
pub fn import_control_vector(
    vector: &ControlVector,
    model: Option<(&ModelDescription, &str)>,
    dir: &Path,
) -> Result<()> {
    let d = vector.directions.values().next().map_or(0, |v| v.size()[0]);
    let base_model = match model {
        Some((model, name)) => BaseModel::of(model, name),
        None => BaseModel {
            name: None,
            model_type: None,
            hidden_size: d,
            num_hidden_layers: None,
            vocab_size: None,
        },
    };
    if base_model.hidden_size != d {
        let own = base_model.hidden_size;
        let reason =
            format!("its directions have {d} numbers, the model's hidden states have {own}");
        return Err(reft_models::Error::Adapter { reason }.into());
    }
    let last = vector.directions.keys().next_back().copied().unwrap_or(0);
    if let Some(layers) = base_model.num_hidden_layers.filter(|layers| last >= *layers) {
        let reason = format!("it steers block {last}, the model has blocks 0 to {}", layers - 1);
        return Err(reft_models::Error::Adapter { reason }.into());
    }
    write_steering(&vector.directions, base_model, dir)
}
