//! Matrices with orthonormal columns: trainable parametrisations and principal components.

pub(crate) mod householder;
pub(crate) mod orthonormal;
pub(crate) mod principal_components;
pub(crate) mod qr;
