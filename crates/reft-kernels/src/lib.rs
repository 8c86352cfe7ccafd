//! Products of a matrix with few vectors on a CPU, at the speed of memory: what a language model does for each token that it generates.
//!
//! What a model does between products is here, too, for a few rows ([`rms_norm`], [`rotate_halves`]).
//!
//! The matrix is read once, as it is stored ([`Rows`]): f32, bf16, f16, or blocks of small integers. These are expanded in registers where the
//! CPU has AVX2 and vectors are few, else in the cache. Sums are made in f32. The instructions are chosen at run time: AVX-512, AVX2, or what
//! the compiler makes of the same code.
//!
//! ```
//! use reft_kernels::{Rows, product};
//!
//! let matrix = Rows::F32(&[1.0, 2.0, 3.0, 4.0]); // [2, 2]
//! let mut y = [0.0; 4];
//! product(matrix, 2, &[1.0, 0.0, 1.0, 1.0], &mut y, 1);
//! assert_eq!(y, [1.0, 3.0, 3.0, 7.0]);
//! ```

mod elementwise;
#[cfg(target_arch = "x86_64")]
mod in_registers;
mod product;
mod rows;
mod threads;

pub use elementwise::{rms_norm, rotate_halves};
pub use product::product;
pub use rows::{Offsets, Rows};
