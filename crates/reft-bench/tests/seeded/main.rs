//! What follows a seed. A test crate of its own, one test at a time: libtorch's generator is one per process.

mod frozen_work;
mod random_numbers;
mod timing;
mod tiny_model;
