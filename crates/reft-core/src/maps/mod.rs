//! Matrices with orthonormal columns: how they are kept so while they train, and how they are found.

pub(crate) mod householder;
pub(crate) mod orthonormal;
pub(crate) mod principal_components;
pub(crate) mod qr;
