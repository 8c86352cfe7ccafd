//! Tests of seeded random numbers. They are a separate test crate and run one at a time, since libtorch has one generator per process.

mod frozen_work;
mod random_numbers;
mod timing;
mod tiny_model;
