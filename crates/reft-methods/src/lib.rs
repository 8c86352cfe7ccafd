//! Every method that changes a frozen model, one file each: ReFT, LoRA and its variants, prefix and prompt tuning, (IA)³, RED, bottleneck
//! adapters and full fine-tuning. Their files are in PEFT's and pyreft's formats.
//!
//! The rest of the workspace knows a method by its [`MethodDeclaration`] alone. Adapters work through the public hooks of
//! `reft-models`, so the one trainer, generator and evaluator serve all of them.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use reft_methods::{MethodOptions, RANK, load_adapters, merge_adapter, resolve};
//! use reft_models::{Decoder, Model};
//!
//! # fn main() -> reft_methods::Result<()> {
//! let model = Decoder::open(Path::new("models/SmolLM2-135M-Instruct"), tch::Kind::Float, tch::Device::Cpu)?;
//! let options = MethodOptions::default().with(&RANK, 4);
//! let lora = resolve("lora", &options, model.description())?.build(&model, "SmolLM2-135M-Instruct")?;
//! // … train it, and:
//! let directory = Path::new("runs/lora");
//! lora[0].save(directory)?; // PEFT reads it
//! let again = load_adapters(directory, &model)?;
//! merge_adapter(directory, &model)?; // the model alone now computes the same
//! # Ok(())
//! # }
//! ```

mod acts_on;
mod declaration;
mod error;
mod options;
mod registry;

mod reft;

mod methods;
mod target_modules;
mod trained;

mod files;
mod joined_tables;
mod joining;
mod joint;
mod merge;
mod pyreft;
mod summary;

pub use acts_on::ActsOn;
pub use declaration::{AdapterFiles, Merging, Method, MethodDeclaration};
pub use error::{Error, Result};
pub use files::control_vector::{export_control_vector, import_control_vector};
pub use files::exported::export_peft;
pub(crate) use files::exported::{Form, adapter_of_form};
pub use files::head_file::HeadSummary;
pub(crate) use files::peft_fields::OtherFields;
pub use files::peft_fields::PEFT_FILES;
pub(crate) use joined_tables::{all_modules, check_sizes};
pub use joining::join_adapters;
pub(crate) use joint::ONE_PLACE;
pub use joint::{JoinOptions, JoinPart, Joined, JoinedModule, Joining, Joint};
pub(crate) use merge::MergedWeights;
pub use merge::{MERGED_ADAPTER, MERGED_BASE_MODEL, export_model};
pub use methods::steering::{SteeringEdit, steering_adapter};
pub use methods::{METHODS, SPECIAL_METHODS};
pub use options::{
    ACT_FN, ADD_BIAS, ALPHA, BOTTLENECK_SIZE, COMPONENT, COMPONENTS, DROPOUT, ENCODER_HIDDEN_SIZE,
    FEEDFORWARD_MODULES, INIT, INIT_TOKENS, LAYERS, MAX_EDIT_NORM, MethodOption, MethodOptions,
    N_VIRTUAL_TOKENS, ORTHONORMAL_MAP, POSITION_RULE, POSITIONS, RANK, SHARE_WEIGHTS,
    TARGET_MODULES, TOKENS, ValueKind,
};
pub use pyreft::export::export_pyreft;
pub use pyreft::import::{PYREFT_FILE, PyreftImport, import_pyreft};
pub use pyreft::torch_pickle::load_torch_pickle;
pub use reft::adapter::{ReftAdapter, ReftHooks};
pub use reft::config::ReftConfig;
pub use registry::{
    Methods, adapter_bytes, adapter_files, adapters_in, all_options, check_adapter,
    check_mergeable, declaration, declarations, has_head, is_adapter_file, is_in_weights,
    load_adapters, load_trainable_adapters, merge_adapter, method_names, numel, only_steers,
    options_of, read_head, remove_adapter, resolve, trained_text,
};
pub use summary::AdapterSummary;
pub use target_modules::TargetModules;
pub(crate) use trained::{
    Keeps, MadeHooks, Part, Start, Table, TensorMethod, TensorSpec, check_positive, read_config,
    read_own, resolve_config,
};
