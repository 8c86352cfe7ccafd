//! Tests of what a seed decides. They are a test crate of their own, one test at a time: libtorch's generator is one per process.

mod frozen_work;
mod random_numbers;
mod timing;
mod tiny_model;
