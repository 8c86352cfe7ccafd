use crate::{Component, NormPlaces, TaskHeadForm};

/// A family's module names in checkpoints, as in transformers.
#[derive(Debug, PartialEq, Eq)]
pub struct ModuleNames {
    /// The prefix of all these names in a checkpoint of the model with a task head, such as `bert`; `None` if there is no prefix.
    pub prefix: Option<&'static str>,
    /// The token embeddings.
    pub embeddings: &'static str,
    /// The position embeddings, if it has them.
    pub positions: &'static str,
    /// The embeddings of the types of tokens, if it has them.
    pub token_types: &'static str,
    /// The norm of the embeddings, if it has one.
    pub embedding_norm: &'static str,
    /// The blocks, without their numbers.
    pub layers: &'static str,
    /// The projections of a block.
    pub projections: &'static [(Component, &'static str)],
    /// The norms of attention and of the MLP; `None`: the decoders' names, which depend on the position of the norms.
    pub norms: Option<[&'static str; 2]>,
    /// The norm after the blocks, if it has one.
    pub final_norm: Option<&'static str>,
    /// The head, if it has one.
    pub head: Option<&'static str>,
    /// The family's task head, which replaces the language model's head.
    pub task_head: TaskHeadForm,
}

/// The names of decoders' modules.
pub(crate) const DECODER: ModuleNames = ModuleNames {
    prefix: None,
    embeddings: "model.embed_tokens",
    positions: "",
    token_types: "",
    embedding_norm: "",
    layers: "model.layers",
    projections: &[
        (Component::QueryKeyValue, "self_attn.qkv_proj"),
        (Component::Query, "self_attn.q_proj"),
        (Component::Key, "self_attn.k_proj"),
        (Component::Value, "self_attn.v_proj"),
        (Component::Output, "self_attn.o_proj"),
        (Component::GateUp, "mlp.gate_up_proj"),
        (Component::Gate, "mlp.gate_proj"),
        (Component::Up, "mlp.up_proj"),
        (Component::Down, "mlp.down_proj"),
    ],
    norms: None,
    final_norm: Some("model.norm"),
    head: Some("lm_head"),
    task_head: TaskHeadForm::Score,
};

/// The norms of a branch by the names of their modules.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BranchNorms {
    /// Of its input.
    pub(crate) before: Option<&'static str>,
    /// Of its output, which is added to the residual stream.
    pub(crate) after: Option<&'static str>,
    /// Of the residual stream after it.
    pub(crate) stream: Option<&'static str>,
}

impl BranchNorms {
    /// All of them.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        [self.before, self.after, self.stream].into_iter().flatten()
    }
}

impl ModuleNames {
    /// The module of a projection in its block.
    pub(crate) fn projection(&self, component: Component) -> &'static str {
        let own = self.projections.iter().find(|(named, _)| *named == component);
        own.map_or(component.name(), |(_, module)| module)
    }

    /// The norms of attention and of the MLP.
    pub(crate) fn branch_norms(&self, places: NormPlaces) -> [BranchNorms; 2] {
        const BEFORE_ATTENTION: &str = "input_layernorm";
        const AFTER_ATTENTION: &str = "post_attention_layernorm";
        const BEFORE_MLP: &str = "pre_feedforward_layernorm";
        const AFTER_MLP: &str = "post_feedforward_layernorm";
        let [attention, mlp] = self.norms.unwrap_or(match places {
            NormPlaces::Pre => [BEFORE_ATTENTION, AFTER_ATTENTION],
            NormPlaces::Post | NormPlaces::Both | NormPlaces::Stream => {
                [AFTER_ATTENTION, AFTER_MLP]
            }
        });
        let [first, second] = [attention, mlp].map(Some);
        match places {
            NormPlaces::Pre => {
                [first, second].map(|before| BranchNorms { before, ..BranchNorms::default() })
            }
            NormPlaces::Post => {
                [first, second].map(|after| BranchNorms { after, ..BranchNorms::default() })
            }
            NormPlaces::Both => [(BEFORE_ATTENTION, first), (BEFORE_MLP, second)]
                .map(|(before, after)| BranchNorms { before: Some(before), after, stream: None }),
            NormPlaces::Stream => {
                [first, second].map(|stream| BranchNorms { stream, ..BranchNorms::default() })
            }
        }
    }
}
