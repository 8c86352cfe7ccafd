//! Products of a matrix with few vectors on a CPU, at the speed of memory. A language model spends most of its generation time on them.
//!
//! [`attention`], [`rms_norm`], [`rotate_halves`] and [`silu_gate`] compute the steps between the products, for a few rows.
//!
//! [`largest_products`] finds the likeliest tokens of a head. [`token_weights`] computes the weights that tokens are drawn by. [`expand`]
//! writes the numbers of a matrix, for products with many rows.
//!
//! The matrix is read once, in its stored form ([`Rows`]): f32, bf16, f16, or blocks of small integers. The numbers are expanded in registers
//! if the CPU has AVX2 and the vectors are few, else in the cache. Sums are computed in f32. [`Vectors::Int8`] rounds vectors, and integers are
//! multiplied. The instructions are chosen at run time: AVX-512, AVX2, or the compiler's default for the same code. Tests have run with AVX2
//! and, except those of 32 and more vectors and of rounded ones, with AVX-512. They have not run on ARM (NEON).
//!
//! ```
//! use reft_kernels::{Rows, Vectors, product};
//!
//! let matrix = Rows::F32(&[1.0, 2.0, 3.0, 4.0]); // [2, 2]
//! let mut y = [0.0; 4];
//! product(matrix, 2, Vectors::Exact(&[1.0, 0.0, 1.0, 1.0]), &mut y, 1);
//! assert_eq!(y, [1.0, 3.0, 3.0, 7.0]);
//! ```

mod attention;
mod elementwise;
mod expand;
mod exponential;
#[cfg(test)]
mod noise;
mod product;
mod rows;
mod threads;
mod token_weights;

pub use attention::{KeysAndValues, attention};
pub use elementwise::{rms_norm, rotate_halves, round_to_bf16, silu_gate};
pub use expand::{NumbersMut, expand, round_to_f16};
pub use product::{Largest, Precision, Vectors, largest_products, product};
pub use rows::{Offsets, Rows};
pub use threads::release_threads;
pub use token_weights::{Drawing, drawn, token_weights};
