use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{Adapter, BaseModel, Model, ModelDescription, TrainedText};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::files::adapter_file::{self, Shapes};
use crate::files::own_config::{FORMAT_VERSION, check_version};
use crate::methods::weights::in_weights::InWeights;
use crate::{AdapterFiles, Joining, Merging, Method, MethodDeclaration, MethodOptions, Result};

/// BitFit: every bias of the model is trained, and nothing else.
///
/// Ben Zaken et al. 2022 (arXiv:2106.10199). The biases are the model's own tensors, biases of norms included. The pooler of BERT's head is
/// no part of the model and stays as it is. BitFit is not among [`METHODS`](crate::METHODS): many decoders have no bias.
pub(crate) const BITFIT: MethodDeclaration = MethodDeclaration {
    name: "bitfit",
    title: "BitFit",
    equation: "every bias is trained",
    source: "Ben Zaken et al. 2022, arXiv:2106.10199",
    options: &[],
    files: AdapterFiles::Own,
    merging: Merging::IntoWeights,
    joining: Joining::Never("it is the model's own biases, and only one adapter can be that"),
    acts_on_generated: true,
    per_row: false,
    usual_lr: 1e-3,
    resolve: |_, _, model| {
        biases(model)?;
        let (format_version, method) = (FORMAT_VERSION, BITFIT.name.to_owned());
        Ok(Box::new(BitfitConfig { format_version, method, base_model: BaseModel::of(model, "") }))
    },
    read: |dir| {
        let config: BitfitConfig =
            reft_models::read_json(&dir.join(AdapterFiles::Own.configuration()))?;
        check_version(config.format_version)?;
        Ok(Box::new(config))
    },
};

/// `baseline_config.json` of BitFit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BitfitConfig {
    format_version: u32,
    method: String,
    base_model: BaseModel,
}

/// The biases of a model, by name and shape.
///
/// # Errors
/// If it has none.
fn biases(model: &ModelDescription) -> Result<Shapes> {
    let all = model.tensors.iter().filter(|tensor| tensor.name.ends_with(".bias"));
    let biases: Shapes = all.map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    if biases.is_empty() {
        let reason = format!(
            "{} has no bias that BitFit could train; take a model that has some, such as BERT, RoBERTa or Qwen2, or another method",
            model.model_type
        );
        return Err(reft_models::Error::Adapter { reason }.into());
    }
    Ok(biases)
}

impl BitfitConfig {
    /// The file's tensors, which are exactly the model's biases.
    fn read(&self, dir: &Path, model: &ModelDescription) -> Result<BTreeMap<String, Tensor>> {
        self.base_model.check(model)?;
        Ok(adapter_file::read_tensors(BITFIT.files, dir, &biases(model)?, &|_| false, model)?)
    }
}

impl Method for BitfitConfig {
    fn merging(&self) -> Merging {
        BITFIT.merging
    }

    fn name(&self) -> &str {
        BITFIT.name
    }

    fn options(&self) -> MethodOptions {
        MethodOptions::default()
    }

    fn build(&self, model: &dyn Model, base_model: &str) -> Result<Box<dyn Adapter>> {
        let biases = biases(model.description())?;
        let is_bias = |name: &str| biases.iter().any(|(bias, _)| bias == name);
        let base_model = BaseModel::of(model.description(), base_model);
        let config = Self { base_model: base_model.clone(), ..self.clone() };
        let config = serde_json::to_value(config)
            .map_err(reft_models::json_error(Path::new(AdapterFiles::Own.configuration())))?;
        Ok(Box::new(InWeights::of(&BITFIT, model, &is_bias, base_model, Some(config))?))
    }

    fn load(&self, dir: &Path, model: &dyn Model) -> Result<Box<dyn Adapter>> {
        let tensors = self.read(dir, model.description())?;
        let name = self.base_model.name.clone().unwrap_or_default();
        let mut bitfit = self.build(model, &name)?;
        bitfit.load_state(&tensors)?;
        if let Some(text) = TrainedText::read(&dir.join(BITFIT.files.tensors()))? {
            bitfit.keep_trained_text(text);
        }
        Ok(bitfit)
    }

    fn check_files(&self, dir: &Path, model: &ModelDescription) -> Result<()> {
        self.read(dir, model).map(drop)
    }

    fn merge(&self, dir: &Path, model: &dyn Model) -> Result<()> {
        self.load(dir, model).map(drop)
    }
}
