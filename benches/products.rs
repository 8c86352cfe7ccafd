//! Products of a matrix with few and with many vectors on the CPU, by libtorch and by `reft-kernels`, in turns: microseconds for each matrix.
//!
//!     cargo bench --workspace --profile dev --bench products -- [ROWS] [COLUMNS] [THREADS]
//!
//! Matrices are read one after the other, and all of them do not fit into a CPU's cache, like those of a model. libtorch multiplies bf16
//! through f32, and a packed matrix after it is expanded and copied into a tensor.

use std::io::Write;
use std::time::Instant;

use reft_kernels::{NumbersMut, Offsets, Rows, Vectors, expand, product};
use tch::{Device, Kind, Tensor};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Numbers of all matrices.
const NUMBERS: usize = 40_000_000;
/// Operations of a turn at least, so that it is long enough to be timed.
const OPERATIONS: usize = 1_000_000_000;
const VECTORS: [usize; 9] = [1, 4, 8, 16, 32, 64, 120, 400, 1000];
const TURNS: usize = 7;

/// The same matrices in several kinds, and vectors to multiply them with.
struct Products {
    rows: usize,
    columns: usize,
    threads: usize,
    f32: Vec<Tensor>,
    bf16: Vec<Tensor>,
    /// The numbers of all matrices, and their bits in bf16.
    numbers: Vec<f32>,
    bits: Vec<u16>,
    /// Blocks of all matrices, in eight and in four bits.
    scales: Vec<u16>,
    integers: Vec<i8>,
    nibbles: Vec<u8>,
    x: Tensor,
    vectors: Vec<f32>,
    y: Vec<f32>,
    expanded: Vec<f32>,
}

/// Multiplies one of the matrices.
type Multiply = fn(&mut Products, usize);

const KINDS: [(&str, Option<Multiply>, Multiply); 4] = [
    ("f32", Some(Products::f32_by_libtorch), Products::f32_by_kernels),
    ("bf16", Some(Products::bf16_by_libtorch), Products::bf16_by_kernels),
    ("Q8_0", Some(Products::q8_0_by_libtorch), Products::q8_0_by_kernels),
    ("Q4_0", None, Products::q4_0_by_kernels),
];

impl Products {
    fn new(rows: usize, columns: usize, threads: usize) -> Outcome<Self> {
        let count = NUMBERS.div_ceil(rows * columns);
        let size = [count as i64, rows as i64, columns as i64];
        let all = Tensor::randn(size, (Kind::Float, Device::Cpu));
        let numbers: Vec<f32> = all.flatten(0, -1).try_into()?;
        let f32 = all.unbind(0);
        let integers: Vec<i8> = numbers.iter().map(|x| (x * 20.0) as i8).collect();
        Ok(Self {
            rows,
            columns,
            threads,
            bf16: f32.iter().map(|matrix| matrix.to_kind(Kind::BFloat16)).collect(),
            f32,
            bits: numbers.iter().map(|x| (x.to_bits() >> 16) as u16).collect(),
            scales: vec![0x2000; numbers.len() / 32], // 2⁻⁷ in f16
            nibbles: integers.iter().step_by(2).map(|q| q.cast_unsigned()).collect(),
            integers,
            numbers,
            x: Tensor::new(),
            vectors: Vec::new(),
            y: Vec::new(),
            expanded: vec![0.0; rows * columns],
        })
    }

    fn draw_vectors(&mut self, n: usize) -> Outcome {
        self.x = Tensor::randn([n as i64, self.columns as i64], (Kind::Float, Device::Cpu));
        self.vectors = self.x.flatten(0, -1).try_into()?;
        self.y = vec![0.0; n * self.rows];
        Ok(())
    }

    fn f32_by_libtorch(&mut self, i: usize) {
        drop(self.x.linear::<Tensor>(&self.f32[i], None));
    }

    fn bf16_by_libtorch(&mut self, i: usize) {
        drop(self.x.linear::<Tensor>(&self.bf16[i].to_kind(Kind::Float), None));
    }

    fn q8_0_by_libtorch(&mut self, i: usize) {
        let n = self.expanded.len();
        let matrix = q8_0(&self.scales, &self.integers, i, n);
        expand(matrix, self.columns, NumbersMut::F32(&mut self.expanded), self.threads);
        let expanded = Tensor::from_slice(&self.expanded).view_as(&self.f32[i]);
        drop(self.x.linear::<Tensor>(&expanded, None));
    }

    fn f32_by_kernels(&mut self, i: usize) {
        let n = self.expanded.len();
        let matrix = Rows::F32(&self.numbers[i * n..][..n]);
        product(matrix, self.columns, Vectors::Exact(&self.vectors), &mut self.y, self.threads);
    }

    fn bf16_by_kernels(&mut self, i: usize) {
        let n = self.expanded.len();
        let matrix = Rows::Bf16(&self.bits[i * n..][..n]);
        product(matrix, self.columns, Vectors::Exact(&self.vectors), &mut self.y, self.threads);
    }

    fn q8_0_by_kernels(&mut self, i: usize) {
        let n = self.expanded.len();
        let matrix = q8_0(&self.scales, &self.integers, i, n);
        product(matrix, self.columns, Vectors::Exact(&self.vectors), &mut self.y, self.threads);
    }

    fn q4_0_by_kernels(&mut self, i: usize) {
        let n = self.expanded.len();
        let matrix = Rows::Nibbles {
            scales: &self.scales[i * n / 32..][..n / 32],
            offsets: Offsets::Zero(8),
            fifth_bits: None,
            quants: &self.nibbles[i * n / 2..][..n / 2],
        };
        product(matrix, self.columns, Vectors::Exact(&self.vectors), &mut self.y, self.threads);
    }

    /// Microseconds for each matrix: as many of them, from the first on, as a turn takes.
    fn time(&mut self, multiply: Multiply) -> f64 {
        let each = 2 * self.expanded.len() * (self.y.len() / self.rows);
        let count = OPERATIONS.div_ceil(each).min(self.f32.len());
        let started = Instant::now();
        (0..count).for_each(|i| multiply(self, i));
        started.elapsed().as_secs_f64() * 1e6 / count as f64
    }
}

/// Matrix `i` of those in eight bits, of `n` numbers.
fn q8_0<'a>(scales: &'a [u16], integers: &'a [i8], i: usize, n: usize) -> Rows<'a> {
    Rows::Q8_0 { scales: &scales[i * n / 32..][..n / 32], quants: &integers[i * n..][..n] }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Outcome {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let number = |i: usize, otherwise| numbers.get(i).copied().unwrap_or(otherwise);
    let (rows, columns, threads) = (number(0, 1536), number(1, 576), number(2, 2));
    if !columns.is_multiple_of(32) {
        return Err(format!("{columns} columns: give a multiple of 32").into());
    }
    tch::set_num_threads(i32::try_from(threads)?);
    let _guard = tch::no_grad_guard();
    let mut products = Products::new(rows, columns, threads)?;
    let mut out = std::io::stdout().lock();
    let kinds = KINDS.map(|(name, ..)| format!(" {name} |")).concat();
    writeln!(out, "{rows} × {columns}, {threads} threads, µs: libtorch, kernels\n")?;
    writeln!(out, "| vectors |{kinds}\n| ---: |{}", " ---: |".repeat(KINDS.len()))?;
    for vectors in VECTORS {
        products.draw_vectors(vectors)?;
        let mut times = [const { (Vec::new(), Vec::new()) }; KINDS.len()];
        for _ in 0..TURNS {
            for ((_, by_libtorch, by_kernels), times) in KINDS.iter().zip(&mut times) {
                times.0.extend(by_libtorch.map(|multiply| products.time(multiply)));
                times.1.push(products.time(*by_kernels));
            }
        }
        write!(out, "| {vectors} |")?;
        for (by_libtorch, by_kernels) in times {
            if !by_libtorch.is_empty() {
                write!(out, " {:.0},", median(by_libtorch))?;
            }
            write!(out, " {:.0} |", median(by_kernels))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
