use crate::Fields;
use crate::gguf::fields::GGUF;
use crate::text::tokenizer_config::{GENERATION_CONFIG, TOKENIZER_CONFIG};
use crate::transformer::config::config_file::CONFIG;
use crate::transformer::config::text_part::MULTIMODAL;
use crate::transformer::families::FAMILIES;

/// The fields of all model files that this crate reads.
pub fn model_files() -> Vec<&'static Fields> {
    let of_family = FAMILIES.iter().map(|family| &family.fields);
    let of_family = of_family.filter(|fields| !fields.groups.is_empty());
    let mut of_family: Vec<&Fields> = of_family.collect();
    of_family.dedup_by_key(|fields| fields.file); // of families under several names
    let others = [&MULTIMODAL, &GENERATION_CONFIG, &TOKENIZER_CONFIG, &GGUF];
    [&CONFIG].into_iter().chain(of_family).chain(others).collect()
}
