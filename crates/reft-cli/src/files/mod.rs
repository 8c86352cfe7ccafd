//! Adapters and models in other forms.

pub mod export;
pub mod import;
