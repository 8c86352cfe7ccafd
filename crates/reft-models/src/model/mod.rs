//! The interface of a model: its description, a forward through hooks, and the layout of tokens in columns.

pub(crate) mod attention_weights;
pub(crate) mod collect;
pub(crate) mod context;
pub(crate) mod description;
pub(crate) mod frozen_model;
pub(crate) mod hooks;
pub(crate) mod kv_cache;
pub(crate) mod kv_pool;
pub(crate) mod layout;
pub(crate) mod placement;
pub(crate) mod task_head_form;
