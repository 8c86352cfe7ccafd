//! Work of the frozen model that is done once: what lies before the lowest point a method touches is computed once and cached.

pub(crate) mod frozen_row;
pub(crate) mod frozen_store;
pub(crate) mod groups;
pub(crate) mod reference;
pub(crate) mod spill_file;
