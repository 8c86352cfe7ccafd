mod few;
#[cfg(target_arch = "x86_64")]
mod in_registers;
mod many;
#[cfg(target_arch = "x86_64")]
mod nibbles;
#[cfg(target_arch = "x86_64")]
mod rounded;

use std::cell::Cell;
use std::sync::Mutex;

use pulp::Arch;

use self::few::Few;
#[cfg(target_arch = "x86_64")]
use self::in_registers::{InRegisters, in_registers};
use self::many::{MANY, Many};
#[cfg(target_arch = "x86_64")]
use self::rounded::{ByIntegers, Rounded};
use crate::elementwise::round_to_bf16;
use crate::expand::round_to_f16;
use crate::rows::{Rows, Scratch, bf16_to, halves_to};
use crate::threads::share_out;

/// Rows that a thread takes at a time: a whole number of times the rows that are computed together.
const CHUNK: usize = 24;
/// Most products for which a thread keeps memory.
const MOST_KEPT: usize = 1 << 21;
/// Vectors whose products a thread puts in order at a time.
const TURNED: usize = 8;
/// Most numbers, in all vectors together, that are multiplied with a whole matrix at once. More do not stay in a CPU's cache from one chunk
/// of rows to the next.
const NUMBERS_AT_ONCE: usize = 1 << 19;

/// `y = W x`: a matrix `[rows, columns]` times `n` vectors `[n, columns]`, into `[n, rows]`, in f32.
///
/// Each number of the matrix is read once for as many vectors as stay in the cache together. The order of the sums does not depend on the number
/// of threads. It depends on the number of vectors only in that 32 and more have another one than fewer, and so have up to three with numbers in four
/// bits.
///
/// # Panics
/// If the lengths do not fit together.
pub fn product(matrix: Rows, columns: usize, vectors: Vectors, y: &mut [f32], threads: usize) {
    let x = vectors.numbers();
    assert!(columns > 0 && x.len().is_multiple_of(columns), "x is no whole number of vectors");
    let n = x.len() / columns;
    assert!(n > 0 && y.len().is_multiple_of(n), "y is no whole number of vectors");
    let rows = y.len() / n;
    assert!(matrix.holds(rows, columns), "the matrix is not of this size");
    let panel = many::panel(many::lanes());
    let at_once = (NUMBERS_AT_ONCE / columns).next_multiple_of(panel).max(panel);
    let mut kept = KEPT.take();
    let Kept { ordered, products } = &mut kept;
    for (x, y) in x.chunks(at_once * columns).zip(y.chunks_mut(at_once * rows)) {
        ordered.put(vectors.with(x), columns, &matrix, threads);
        if ordered.n == 1 {
            by_chunks(matrix, ordered, y, threads);
        } else {
            if products.len() < y.len() {
                products.resize(y.len(), 0.0);
            }
            let products = &mut products[..y.len()];
            by_chunks(matrix, ordered, products, threads);
            match ordered.rows() {
                4 => put_in_order::<4>(products, ordered.n, y, threads),
                6 => put_in_order::<6>(products, ordered.n, y, threads),
                _ => unreachable!("invariant: four or six rows are computed together"),
            }
        }
    }
    if kept.products.len() <= MOST_KEPT {
        KEPT.set(kept);
    }
}

/// Vectors `[n, columns]`, and how they are multiplied.
#[derive(Debug, Clone, Copy)]
pub enum Vectors<'a> {
    /// As they are, in f32.
    Exact(&'a [f32]),
    /// Rounded to integers of eight bits with a scale for each 32 numbers, if the matrix has four-bit integers ([`Rows::Q4K`], or
    /// [`Rows::Nibbles`] without fifth bits) and the CPU has AVX2. The error of a number is at most a 254th of the largest of its 32. Sums of eight
    /// and more vectors have another order than those of fewer. Anything else is multiplied exactly.
    Int8(&'a [f32]),
}

impl<'a> Vectors<'a> {
    fn numbers(self) -> &'a [f32] {
        match self {
            Self::Exact(x) | Self::Int8(x) => x,
        }
    }

    /// Other vectors that are multiplied in the same way.
    fn with(self, x: &[f32]) -> Vectors<'_> {
        match self {
            Self::Exact(_) => Vectors::Exact(x),
            Self::Int8(_) => Vectors::Int8(x),
        }
    }
}

/// Memory that a thread keeps for its next product: new memory costs the time to clear it.
#[derive(Debug, Default)]
struct Kept {
    ordered: Ordered,
    products: Vec<f32>,
}

thread_local! {
    static KEPT: Cell<Kept> = Cell::default();
}

/// Products `[n, ROWS]` of each `ROWS` rows to `y` `[n, rows]`.
fn put_in_order<const ROWS: usize>(products: &[f32], n: usize, y: &mut [f32], threads: usize) {
    let rows = y.len() / n;
    let of_rows = products.chunks(ROWS * n);
    let results = y.chunks_mut(TURNED * rows).enumerate();
    share_out(
        to_copy(products.len(), threads),
        &Mutex::new(results),
        || (),
        |(), (group, y)| {
            for (i, y) in y.chunks_exact_mut(rows).enumerate() {
                let (whole, rest) = y.as_chunks_mut::<ROWS>();
                let i = group * TURNED + i;
                for (y, of_rows) in whole.iter_mut().zip(of_rows.clone()) {
                    *y = of_rows.as_chunks().0[i];
                }
                if let Some(of_rows) = of_rows.clone().nth(whole.len()) {
                    rest.copy_from_slice(&of_rows[i * rest.len()..][..rest.len()]);
                }
            }
        },
    );
}

/// The number of threads for copying this many numbers: for few numbers, waking other threads takes longer than copying.
pub(crate) fn to_copy(numbers: usize, threads: usize) -> usize {
    const FEW: usize = 1 << 14;
    if numbers <= FEW { 1 } else { threads }
}

/// The products `[n, rows]` of the rows that are computed together: the threads share the chunks of rows.
fn by_chunks(matrix: Rows, x: &Ordered, y: &mut [f32], threads: usize) {
    let work = y.chunks_mut(CHUNK * x.n).enumerate();
    let chunks = work.len();
    share_out(threads.min(chunks), &Mutex::new(work), Scratches::default, |scratch, (chunk, y)| {
        Chunk { matrix, first: chunk * CHUNK, x, y, scratch }.compute()
    });
}

/// The largest of a vector's products with the rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Largest {
    /// The product; NaN if one of the products is.
    pub value: f32,
    /// Its row, the first of equal ones.
    pub row: usize,
}

impl Largest {
    const NONE: Self = Self { value: f32::NEG_INFINITY, row: 0 };

    /// Replaces it by one of a later row, if that is larger or NaN.
    #[inline(always)]
    fn meet(&mut self, later: Self) {
        if later.value > self.value || (later.value.is_nan() && !self.value.is_nan()) {
            *self = later;
        }
    }
}

/// The numbers that products are rounded to before they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Not rounded.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// Rounded to f16.
    F16,
}

impl Precision {
    /// Rounds numbers in place; `bits` is a buffer.
    fn round(self, numbers: &mut [f32], bits: &mut Vec<u16>) {
        match self {
            Self::F32 => (),
            Self::Bf16 => {
                bits.resize(numbers.len(), 0);
                round_to_bf16(numbers, bits);
                bf16_to(bits, numbers);
            }
            Self::F16 => {
                bits.resize(numbers.len(), 0);
                round_to_f16(numbers, bits);
                halves_to(bits, numbers);
            }
        }
    }
}

/// `max W x` and its row, for each of `n` vectors `[n, columns]`. The products equal the products of [`product`], but are not written to memory.
///
/// # Panics
/// If the lengths do not fit together.
pub fn largest_products(
    matrix: Rows,
    (rows, columns): (usize, usize),
    vectors: Vectors,
    precision: Precision,
    threads: usize,
) -> Vec<Largest> {
    let x = vectors.numbers();
    assert!(columns > 0 && x.len().is_multiple_of(columns), "x is no whole number of vectors");
    assert!(matrix.holds(rows, columns), "the matrix is not of this size");
    let mut ordered = Ordered::default();
    ordered.put(vectors, columns, &matrix, threads);
    let x = &ordered;
    let (n, together) = (x.n, x.rows());
    assert!(n > 0, "there is no vector");
    let chunks = rows.div_ceil(CHUNK);
    let mut of_chunks = vec![Largest::NONE; chunks * n];
    share_out(
        threads.min(chunks),
        &Mutex::new(of_chunks.chunks_exact_mut(n).enumerate()),
        <(Vec<f32>, Vec<u16>, Scratches)>::default,
        |(y, bits, scratch), (chunk, largest)| {
            let first = chunk * CHUNK;
            y.resize(CHUNK.min(rows - first) * n, 0.0);
            Chunk { matrix, first, x, y, scratch }.compute();
            precision.round(y, bits);
            for (i, y) in y.chunks(together * n).enumerate() {
                for (largest, y) in largest.iter_mut().zip(y.chunks_exact(y.len() / n)) {
                    for (row, value) in y.iter().enumerate() {
                        largest.meet(Largest { value: *value, row: first + i * together + row });
                    }
                }
            }
        },
    );
    let mut all = vec![Largest::NONE; n];
    for of_chunk in of_chunks.chunks_exact(n) {
        all.iter_mut().zip(of_chunk).for_each(|(largest, later)| largest.meet(*later));
    }
    all
}

/// The vectors, in the order in which they are multiplied with few of them or many.
#[derive(Debug, Default)]
pub(crate) struct Ordered {
    pub(crate) n: usize,
    pub(crate) columns: usize,
    pub(crate) numbers: Vec<f32>,
    /// `Σ x` of each block of a vector, `[n, blocks]`, for few vectors and matrices whose blocks have offsets.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "read in AVX2's registers")
    )]
    pub(crate) sums: Vec<f32>,
    /// The vectors as integers, if they are rounded.
    #[cfg(target_arch = "x86_64")]
    pub(crate) rounded: Rounded,
}

impl Ordered {
    /// Puts vectors `[n, columns]` in order, in the memory of `self`.
    fn put(&mut self, vectors: Vectors, columns: usize, matrix: &Rows, threads: usize) {
        let x = vectors.numbers();
        let n = x.len() / columns;
        let threads = to_copy(x.len(), threads);
        (self.n, self.columns) = (n, columns);
        self.sums.clear();
        #[cfg(target_arch = "x86_64")]
        if self.rounded.round(vectors, columns, matrix, threads) {
            return;
        }
        if n < MANY {
            few::interleave(x, columns, threads, &mut self.numbers);
            self.sums = few::block_sums(x, columns, matrix);
        } else {
            many::pack(x, columns, many::lanes(), threads, &mut self.numbers);
        }
    }

    /// Rows of the matrix that are computed together.
    fn rows(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.rounded.simd.is_some() {
            return rounded::ROWS;
        }
        if self.n < MANY { few::ROWS } else { many::ROWS }
    }
}

/// Rows from `first` on, as many as `y` `[.., n]` has.
pub(crate) struct Chunk<'a> {
    pub(crate) matrix: Rows<'a>,
    pub(crate) first: usize,
    pub(crate) x: &'a Ordered,
    /// The products `[n, rows]` of the rows that are computed together.
    pub(crate) y: &'a mut [f32],
    pub(crate) scratch: &'a mut Scratches,
}

/// Memory of a thread, for one chunk after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratches {
    pub(crate) rows: [Scratch; CHUNK],
    /// Sums of many vectors.
    pub(crate) sums: Vec<f32>,
}

impl Chunk<'_> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.y.len() / self.x.n
    }

    /// Computes the products, with the best instructions of this CPU.
    fn compute(self) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = self.x.rounded.simd
            && self.x.n >= rounded::FEW
        {
            return simd.vectorize(ByIntegers { simd, chunk: self });
        }
        if self.x.n >= MANY {
            return Arch::new().dispatch(Many(self));
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = in_registers(&self) {
            return simd.vectorize(InRegisters { simd, chunk: self });
        }
        Arch::new().dispatch(Few(self));
    }
}

#[cfg(test)]
mod tests {
    use super::few::VECTORS;
    use super::*;
    use crate::noise::noise;
    use crate::rows::BLOCK;
    use crate::{NumbersMut, Offsets, expand};

    fn bytes(seed: u32, n: usize) -> Vec<u8> {
        noise(seed).take(n).map(|x| ((x + 1.0) * 127.9) as u8).collect()
    }

    fn halves(seed: u32, n: usize) -> Vec<u16> {
        noise(seed).take(n).map(|x| half::f16::from_f32(x).to_bits()).collect()
    }

    /// One matrix of each kind, with its numbers computed from the definition.
    pub(crate) fn each_kind(
        rows: usize,
        columns: usize,
        mut check: impl FnMut(&str, Rows, Vec<f32>),
    ) {
        let n = rows * columns;
        let float = |bits: &[u16], i: usize| half::f16::from_bits(bits[i]).to_f32();
        let numbers: Vec<f32> = noise(1).take(n).collect();
        check("f32", Rows::F32(&numbers), numbers.clone());
        let bf16: Vec<u16> = numbers.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
        let values = bf16.iter().map(|bits| half::bf16::from_bits(*bits).to_f32());
        check("bf16", Rows::Bf16(&bf16), values.collect());
        let f16 = halves(2, n);
        check("f16", Rows::F16(&f16), (0..n).map(|i| float(&f16, i)).collect());
        if columns.is_multiple_of(32) {
            let (d, m) = (halves(3, n / 32), halves(4, n / 32));
            let quants: Vec<i8> = bytes(5, n).into_iter().map(u8::cast_signed).collect();
            let values = (0..n).map(|i| float(&d, i / 32) * f32::from(quants[i])).collect();
            check("q8_0", Rows::Q8_0 { scales: &d, quants: &quants }, values);
            let (quants, fifth) = (bytes(6, n / 2), bytes(7, n / 8));
            for (is_five, is_offset) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let zero = if is_five { 16 } else { 8 };
                let value = |i: usize| {
                    let (block, j) = (i / 32, i % 32);
                    let byte = quants[16 * block + j % 16];
                    let low = if j < 16 { byte & 15 } else { byte >> 4 };
                    let bit = (fifth[4 * block + j / 8] >> (j % 8)) & 1;
                    let q = f32::from(low + if is_five { 16 * bit } else { 0 });
                    let d = float(&d, block);
                    if is_offset { q * d + float(&m, block) } else { (q - f32::from(zero)) * d }
                };
                let offsets = if is_offset { Offsets::Each(&m) } else { Offsets::Zero(zero) };
                let fifth_bits = is_five.then_some(&fifth[..]);
                let matrix = Rows::Nibbles { scales: &d, offsets, fifth_bits, quants: &quants };
                let name = format!("{} bits, offsets {is_offset}", if is_five { 5 } else { 4 });
                check(&name, matrix, (0..n).map(value).collect());
            }
        }
        if columns.is_multiple_of(256) {
            let (d, m) = (halves(8, n / 256), halves(9, n / 256));
            let (s, e) = (bytes(10, n / 32), bytes(11, n / 32));
            let quants = bytes(12, n / 2);
            let value = |i: usize| {
                let byte = quants[i / 64 * 32 + i % 32];
                let q = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
                float(&d, i / 256) * f32::from(s[i / 32]) * f32::from(q)
                    - float(&m, i / 256) * f32::from(e[i / 32])
            };
            let values = (0..n).map(value).collect();
            let (scales, offsets) = (&d[..], &m[..]);
            let (inner_scales, inner_offsets, quants) = (&s[..], &e[..], &quants[..]);
            check(
                "q4_k",
                Rows::Q4K { scales, offsets, inner_scales, inner_offsets, quants },
                values,
            );
            let signed = |seed, n| bytes(seed, n).into_iter().map(u8::cast_signed).collect();
            let (s, quants): (Vec<i8>, Vec<i8>) = (signed(13, n / 16), signed(14, n));
            let value = |i: usize| float(&d, i / 256) * f32::from(s[i / 16]) * f32::from(quants[i]);
            let values = (0..n).map(value).collect();
            check("q6_k", Rows::Q6K { scales, inner_scales: &s, quants: &quants }, values);
        }
    }

    /// The f32 error of a sum of `n` products, in any order, is at most `n` roundings of the sum of their absolute values. Roundings go up and
    /// down equally often, so the error stays within a few times `√n` roundings. A number that is rounded to eight bits is off by at
    /// most a 254th of the largest of its block.
    #[test]
    fn products_are_those_of_the_numbers_that_are_stored() {
        for (rows, columns) in [(1, 32), (3, 256), (4, 96), (37, 288), (70, 512), (5, 7), (33, 50)]
        {
            each_kind(rows, columns, |name, matrix, values| {
                for threads in [1, 2] {
                    let mut all = vec![f32::NAN; rows * columns];
                    expand(matrix, columns, NumbersMut::F32(&mut all), threads);
                    assert_eq!(all, values, "{name}");
                }
                for n in (1..=17).chain([31, 32, 33, 41, 49]) {
                    for is_rounded in [false, true] {
                        check_products(name, matrix, &values, (rows, columns, n), is_rounded);
                    }
                }
            });
        }
    }

    fn check_products(
        name: &str,
        matrix: Rows,
        values: &[f32],
        (rows, columns, n): (usize, usize, usize),
        is_rounded: bool,
    ) {
        let vectors = |x| if is_rounded { Vectors::Int8(x) } else { Vectors::Exact(x) };
        let products = |x: Vectors, threads| {
            let mut y = vec![f32::NAN; x.numbers().len() / columns * rows];
            product(matrix, columns, x, &mut y, threads);
            y
        };
        let x: Vec<f32> = noise(20).take(n * columns).collect();
        let found = products(vectors(&x), 1);
        let name = format!("{name} [{rows}, {columns}] × {n} rounded: {is_rounded}");
        assert_eq!(found, products(vectors(&x), 2), "{name}: threads change the result");
        let has_another_order = name.starts_with("4 bits") || name.starts_with("q4_k");
        if n <= VECTORS || n >= MANY || !has_another_order {
            // rounded vectors are put in panels from 8 on
            let panels = if is_rounded && matrix.has_four_bits() { 8 } else { MANY };
            let fewest = if n < panels { 1 } else { panels };
            let alone = products(vectors(&x[..fewest * columns]), 1);
            assert_eq!(found[..rows], alone[..rows], "{name}: other vectors change the result");
        }
        for threads in [1, 2] {
            let largest =
                largest_products(matrix, (rows, columns), vectors(&x), Precision::F32, threads);
            let expected: Vec<Largest> = found.chunks(rows).map(first_largest).collect();
            assert_eq!(largest, expected, "{name}");
        }
        for (i, y) in found.iter().enumerate() {
            let x = &x[i / rows * columns..][..columns];
            let w = &values[i % rows * columns..][..columns];
            let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let (sum, sizes) =
                products.fold((0.0, 0.0), |(sum, sizes), p| (sum + p, sizes + p.abs()));
            let blocks = x.chunks(BLOCK).zip(w.chunks(BLOCK)).map(|(x, w)| {
                let largest = x.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
                f64::from(largest) / 254.0 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
            });
            let is_rounded = is_rounded && matrix.has_four_bits();
            let rounding = if is_rounded { blocks.sum() } else { 0.0 };
            let in_f32 = 4.0 * f64::from(f32::EPSILON) * (columns as f64).sqrt() * sizes;
            let error = (f64::from(*y) - sum).abs();
            assert!(error <= in_f32 + rounding + 1e-12, "{name}: {y} {sum} at {i}");
        }
    }

    /// Vectors are taken in groups; each has the sums that it has among fewer.
    #[test]
    fn vectors_beyond_the_cache_have_the_same_products() {
        let (rows, columns) = (5, 1 << 15);
        let group = many::panel(many::lanes());
        assert!(group * columns >= NUMBERS_AT_ONCE, "there are no groups");
        let numbers: Vec<f32> = noise(1).take(rows * columns).collect();
        let x: Vec<f32> = noise(2).take((2 * group + 3) * columns).collect();
        let of = |x: &[f32], threads| {
            let mut y = vec![f32::NAN; x.len() / columns * rows];
            product(Rows::F32(&numbers), columns, Vectors::Exact(x), &mut y, threads);
            y
        };
        let each: Vec<f32> = x.chunks(group * columns).flat_map(|x| of(x, 1)).collect();
        for threads in [1, 2] {
            assert_eq!(of(&x, threads), each);
        }
    }

    fn first_largest(products: &[f32]) -> Largest {
        let mut largest = Largest { value: products[0], row: 0 };
        for (row, value) in products.iter().copied().enumerate() {
            if value > largest.value {
                largest = Largest { value, row };
            }
        }
        largest
    }

    /// Rows 1 to 79 are equal, 80 is a little larger: rounded, it is not.
    #[test]
    fn the_first_of_equal_products_is_the_largest_and_nan_is_told() {
        let mut matrix = vec![1.0; 100];
        matrix[0] = 0.5;
        matrix[80] = 1.0001;
        let x = [2.0, -2.0, f32::NEG_INFINITY];
        for threads in [1, 2] {
            let of = |matrix: &[f32], precision| {
                largest_products(
                    Rows::F32(matrix),
                    (100, 1),
                    Vectors::Exact(&x),
                    precision,
                    threads,
                )
            };
            let at = |value, row| Largest { value, row };
            let none = f32::NEG_INFINITY;
            let exact = of(&matrix, Precision::F32);
            assert_eq!(exact, [at(2.0002, 80), at(-1.0, 0), at(none, 0)]);
            for precision in [Precision::Bf16, Precision::F16] {
                let rounded = of(&matrix, precision);
                assert_eq!(rounded, [at(2.0, 1), at(-1.0, 0), at(none, 0)]);
            }
            let mut broken = matrix.clone();
            broken[40] = f32::NAN;
            let broken = of(&broken, Precision::F32);
            assert!(broken.iter().all(|one| one.value.is_nan() && one.row == 40));
        }
    }

    #[test]
    #[should_panic(expected = "the matrix is not of this size")]
    fn parts_of_the_wrong_length_are_refused() {
        let (scales, quants) = ([0; 2], [0; 32]);
        let matrix = Rows::Q8_0 { scales: &scales, quants: &quants };
        product(matrix, 32, Vectors::Exact(&[0.0; 32]), &mut [0.0], 1);
    }
}
