use reft_models::{BaseModel, Layout, Mode, ModelDescription, NoHooks};
use serde::{Deserialize, Serialize};

use crate::files::own_config::{FORMAT_VERSION, check_version};
use crate::{
    AdapterFiles, Joining, MadeHooks, Merging, MethodDeclaration, MethodOptions, Part, Table,
    TensorMethod, read_config, resolve_config,
};

/// No change of the model: an objective trains its head on the unchanged model.
///
/// Its adapter is a place for the head. It is not among [`METHODS`](crate::METHODS): without an objective with a head it trains nothing.
pub(crate) const HEAD_ALONE: MethodDeclaration = MethodDeclaration {
    name: "head",
    title: "the head alone",
    equation: "h ← h",
    source: "",
    options: &[],
    files: AdapterFiles::Own,
    merging: Merging::Never("it changes nothing in the model"),
    joining: Joining::Never("it changes nothing in the model"),
    acts_on_generated: false,
    per_row: true,
    usual_lr: 1e-2,
    resolve: resolve_config::<HeadAloneConfig>,
    read: read_config::<HeadAloneConfig>,
};

/// `baseline_config.json` of a head alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadAloneConfig {
    format_version: u32,
    method: String,
    base_model: BaseModel,
}

impl TensorMethod for HeadAloneConfig {
    const DECLARATION: &'static MethodDeclaration = &HEAD_ALONE;
    type Constants = ();

    fn decide(_: &str, _: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        Ok(Self {
            format_version: FORMAT_VERSION,
            method: HEAD_ALONE.name.to_owned(),
            base_model: BaseModel::of(model, ""),
        })
    }

    fn base_model(&mut self) -> Option<&mut BaseModel> {
        Some(&mut self.base_model)
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<()>>> {
        check_version(self.format_version)?;
        self.base_model.check(model)?;
        Ok(Vec::new())
    }

    fn hooks<'a>(&'a self, _: &'a Table<()>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        Ok(Box::new(NoHooks))
    }
}
