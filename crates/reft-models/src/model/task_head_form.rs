/// The form of a family's head in transformers' `…ForSequenceClassification`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskHeadForm {
    /// `S h` of the last token: `score`, of decoders.
    Score,
    /// `C tanh(P h + p) + c` of the first token: BERT's `classifier` on its pooler, which belongs to the base model and stays frozen.
    Pooled,
    /// `O tanh(D h + d) + o` of the first token: RoBERTa's `classifier.dense` and `classifier.out_proj`.
    Dense,
    /// `C relu(P h + p) + c` of the first token: DistilBERT's `pre_classifier` and `classifier`.
    PreClassifier,
    /// Another form, which is not supported.
    Other,
}

impl TaskHeadForm {
    /// The trained tensors of a head with `k` outputs, as transformers names them, and their shapes.
    pub(crate) fn tensors(self, d: i64, k: i64) -> Vec<(&'static str, Vec<i64>)> {
        let last = |weight, bias| vec![(weight, vec![k, d]), (bias, vec![k])];
        let both = |weight, bias, last: Vec<_>| {
            [vec![(weight, vec![d, d]), (bias, vec![d])], last].concat()
        };
        match self {
            Self::Score => vec![("score.weight", vec![k, d])],
            Self::Pooled => last("classifier.weight", "classifier.bias"),
            Self::Dense => both(
                "classifier.dense.weight",
                "classifier.dense.bias",
                last("classifier.out_proj.weight", "classifier.out_proj.bias"),
            ),
            Self::PreClassifier => both(
                "pre_classifier.weight",
                "pre_classifier.bias",
                last("classifier.weight", "classifier.bias"),
            ),
            Self::Other => Vec::new(),
        }
    }
}
