use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{Adapter, BaseModel, Component, Model, ModelDescription, TrainedText};
use tch::Tensor;

use crate::files::adapter_file::{self, Shapes};
use crate::methods::weights::in_weights::InWeights;
use crate::{AdapterFiles, Joining, Merging, Method, MethodDeclaration, MethodOptions};

/// Full fine-tuning: every weight of the model is trained.
///
/// The file is a checkpoint, `model.safetensors` with the base model's names.
pub(crate) const FULL: MethodDeclaration = MethodDeclaration {
    name: "full",
    title: "full fine-tuning",
    equation: "every weight is trained",
    source: "",
    options: &[],
    files: AdapterFiles::Weights,
    merging: Merging::IntoWeights,
    joining: Joining::Never(
        "it is the model's weights themselves, with no base model beside them that a change could be told from",
    ),
    acts_on_generated: true,
    per_row: false,
    usual_lr: 2e-5,
    resolve: |_, _, _| Ok(Box::new(Full)),
    read: |_| Ok(Box::new(Full)),
};

/// Full fine-tuning, which leaves nothing to decide.
#[derive(Debug)]
struct Full;

impl Full {
    /// The file's tensors, which are exactly the model's.
    fn read(dir: &Path, model: &ModelDescription) -> crate::Result<BTreeMap<String, Tensor>> {
        let tensors = model.tensors.iter();
        let shapes: Shapes = tensors.map(|t| (t.name.clone(), t.shape.clone())).collect();
        Ok(adapter_file::read_tensors(FULL.files, dir, &shapes, &|_| false, model)?)
    }
}

impl Method for Full {
    fn merging(&self) -> Merging {
        FULL.merging
    }

    fn name(&self) -> &str {
        FULL.name
    }

    fn options(&self) -> MethodOptions {
        MethodOptions::default()
    }

    fn build(&self, model: &dyn Model, base_model: &str) -> crate::Result<Box<dyn Adapter>> {
        let base_model = BaseModel::of(model.description(), base_model);
        Ok(Box::new(InWeights::of(&FULL, model, &|_| true, base_model, None)?))
    }

    fn load(&self, dir: &Path, model: &dyn Model) -> crate::Result<Box<dyn Adapter>> {
        let tensors = Self::read(dir, model.description())?;
        let name = adapter_file::base_model(FULL.files, dir)?.and_then(|model| model.name);
        let mut full = self.build(model, &name.unwrap_or_default())?;
        full.load_state(&tensors)?;
        if let Some(text) = TrainedText::read(&dir.join(FULL.files.tensors()))? {
            full.keep_trained_text(text);
        }
        Ok(full)
    }

    fn check_files(&self, dir: &Path, model: &ModelDescription) -> crate::Result<()> {
        Self::read(dir, model).map(drop)
    }

    fn merge(&self, dir: &Path, model: &dyn Model) -> crate::Result<()> {
        self.load(dir, model).map(drop)
    }

    fn kept_per_token(&self, model: &ModelDescription, kind_bytes: f64) -> crate::Result<Vec<f64>> {
        use Component::{Down, Gate, GateUp, Output, Query, QueryKeyValue, Up};
        // the factors of the norms' weights, and one input of each group of projections
        let norms = model.norms_of_block() as f64;
        let mut bytes =
            vec![norms * kind_bytes * model.hidden_size as f64; model.num_hidden_layers];
        let projections = model.projections();
        let has_gate = projections.iter().any(|projection| projection.site.component == Gate);
        let of_mlp = if has_gate { Gate } else { Up };
        let first = [Query, QueryKeyValue, Output, of_mlp, GateUp, Down];
        for projection in projections {
            if first.contains(&projection.site.component) {
                bytes[projection.site.layer] += kind_bytes * projection.in_features as f64;
            }
        }
        Ok(bytes)
    }
}
