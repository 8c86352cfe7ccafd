use super::bert::{self, BERT, add_positions_and_types};
use super::{NOT_BY_LAYER, OF_ENCODERS, WITH_TYPES, as_encoder};
use crate::transformer::families::family::Family;
use crate::{Field, Fields, ModuleNames, TaskHeadForm};

/// RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT with positions that begin after the padding position.
pub(crate) const ROBERTA: Family = Family {
    model_type: "roberta",
    fields: Fields {
        file: "`config.json` of RoBERTa, XLM-RoBERTa and CamemBERT, beside the fields of every model",
        groups: &[
            OF_ENCODERS,
            WITH_TYPES,
            NOT_BY_LAYER,
            &[Field::applied(&["pad_token_id"]).with_note(
                "positions begin behind it, and a token of this id takes none, wherever it stands",
            )],
        ],
    },
    options: |file, config| {
        as_encoder(file, config, &NAMES, file.layer_norm_eps)?;
        let padding = file.pad_token_id.unwrap_or(1);
        if !(0..file.vocab_size).contains(&padding) {
            return Err(format!("pad_token_id is {padding}, expected a token of the vocabulary"));
        }
        add_positions_and_types(file, config, Some(padding))
    },
    ..BERT
};

/// XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116).
pub(crate) const XLM_ROBERTA: Family = Family { model_type: "xlm-roberta", ..ROBERTA };

/// CamemBERT (Martin et al. 2019, arXiv:1911.03894).
pub(crate) const CAMEMBERT: Family = Family { model_type: "camembert", ..ROBERTA };

/// RoBERTa's names of its modules.
const NAMES: ModuleNames =
    ModuleNames { prefix: Some("roberta"), task_head: TaskHeadForm::Dense, ..bert::NAMES };
