//! The comparison and its tasks, on a model of four layers.

mod heads;
mod keeping;
mod pairs;
mod recipes;
mod refused;
mod run;
mod scoring;
mod sweep;
mod tiny_model;
mod version_1;
