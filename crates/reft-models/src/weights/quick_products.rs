//! Products for which libtorch is slow on a CPU: with few rows, as in decoding; with packed matrices; and in bf16 on CPUs without bf16 units.

use std::borrow::Cow;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use reft_kernels::{
    Largest, NumbersMut, Precision, Rows, Vectors, expand, largest_products, product,
    round_to_bf16, round_to_f16,
};
use tch::{Device, Kind, Tensor};

use crate::Weight;

/// Most rows for which the kernels are as fast as libtorch's product with a matrix that is not packed: measured, see docs/performance.md.
const MOST_ROWS: i64 = 128;

/// `x Wᵀ + b` on a CPU without autograd: for up to [`MOST_ROWS`] rows, in f32 if they are one token of each row of a batch; for any number if
/// the matrix is packed. `None`: libtorch must compute it.
///
/// Packed numbers are expanded in registers or in the cache. Sums are computed in f32 for every kind of model.
pub(crate) fn by_kernels(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Option<Tensor> {
    let matrix = for_kernels(x, weight, bias)?;
    let mut size = x.size();
    let columns = usize::try_from(*size.last()?).ok()?;
    let x = x.contiguous();
    let own = read(&x)?;
    let bias = match bias {
        Some(bias) => Some(read(bias)?),
        None => None,
    };
    *size.last_mut()? = weight.size()[0];
    Some(written(&size, x.kind(), |y| {
        product(matrix, columns, vectors(&own, weight), y, threads());
        if let Some(bias) = bias {
            y.chunks_exact_mut(bias.len()).for_each(|y| {
                y.iter_mut().zip(&*bias).for_each(|(y, b)| *y += b);
            });
        }
    }))
}

/// The largest number of each row of `x Wᵀ`, and its column, as [`by_kernels`] computes them; the numbers are not kept.
pub(crate) fn largest_by_kernels(x: &Tensor, weight: &Weight) -> Option<Vec<Largest>> {
    let matrix = for_kernels(x, weight, None)?;
    let (rows, columns) = (weight.size()[0] as usize, *x.size().last()? as usize);
    let (x, kind) = (x.contiguous(), x.kind());
    let own = read(&x)?;
    let precision = match kind {
        Kind::BFloat16 => Precision::Bf16,
        Kind::Half => Precision::F16,
        _ => Precision::F32,
    };
    Some(largest_products(matrix, (rows, columns), vectors(&own, weight), precision, threads()))
}

/// The numbers of vectors, and how they are multiplied with a weight.
fn vectors<'x>(numbers: &'x [f32], weight: &Weight) -> Vectors<'x> {
    match weight {
        Weight::Quantised(blocks) if blocks.int8_products() => Vectors::Int8(numbers),
        Weight::Quantised(_) | Weight::Dense(_) => Vectors::Exact(numbers),
    }
}

/// The numbers of a matrix as a tensor of this size and kind: f32, bf16 or f16.
pub(crate) fn expanded(matrix: Rows, size: &[i64], kind: Kind) -> Tensor {
    let to = |y: NumbersMut| expand(matrix, size[1] as usize, y, threads());
    match kind {
        Kind::Float => filled(size, kind, |y| to(NumbersMut::F32(y))),
        Kind::BFloat16 => filled(size, kind, |y| to(NumbersMut::Bf16(y))),
        _ => filled(size, kind, |y| to(NumbersMut::F16(y))),
    }
}

/// The matrix for the kernels, if they compute `x Wᵀ + b` and are faster: on a CPU, and no gradient is recorded.
fn for_kernels<'w>(x: &Tensor, weight: &'w Weight, bias: Option<&Tensor>) -> Option<Rows<'w>> {
    let size = x.size();
    let columns = *size.last()?;
    let is_of_one_token = matches!(size[..], [_, 1, _] | [_, _]);
    let rows = size[..size.len() - 1].iter().product::<i64>();
    let most = match weight.tensor().map(Tensor::kind) {
        Some(Kind::Float) if is_of_one_token => MOST_ROWS,
        // libtorch's sums of prompts have the order of the reference implementations'
        Some(Kind::Float) => return None,
        // a CPU with bf16 units is faster with libtorch's product
        Some(Kind::BFloat16) if has_bf16() => return None,
        Some(_) => MOST_ROWS,
        None => i64::MAX,
    };
    let is_faster = columns > 0 && (1..=most).contains(&rows);
    if !is_faster || x.device() != Device::Cpu || wants_gradient(x, weight, bias) {
        return None;
    }
    match weight {
        Weight::Dense(tensor) if tensor.kind() == x.kind() => dense(tensor),
        Weight::Dense(_) => None,
        Weight::Quantised(blocks) => blocks.as_rows(),
    }
}

/// `x Wᵀ + b` in bf16 through f32, on a CPU without bf16 units and without autograd: libtorch's product in bf16 takes three times as long
/// there. `None`: libtorch must compute it. Sums are made in f32 either way, and rounded once.
pub(crate) fn through_f32(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Option<Tensor> {
    let tensor = weight.tensor()?;
    let is_one_row = Some(&(x.numel() as i64)) == x.size().last();
    let all = [Some(x), Some(tensor), bias];
    if is_one_row || tensor.kind() != x.kind() || !is_slow_in_bf16(all.into_iter().flatten()) {
        return None;
    }
    let f32 = |tensor: &Tensor| tensor.to_kind(Kind::Float);
    let y = f32(x).linear(&f32(tensor), bias.map(f32).as_ref());
    Some(y.to_kind(Kind::BFloat16))
}

/// Whether tensors are in bf16 on a CPU without bf16 units, and no gradient is recorded: libtorch is slower there than in f32, and rounds more often.
pub(crate) fn is_slow_in_bf16<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    !has_bf16()
        && tensors.into_iter().all(|x| {
            let is_bf16 = x.kind() == Kind::BFloat16 && x.device() == Device::Cpu;
            is_bf16 && !has_its_products_recorded(x)
        })
}

/// Whether autograd records a product.
fn wants_gradient(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> bool {
    [Some(x), weight.tensor(), bias].into_iter().flatten().any(has_its_products_recorded)
}

/// Whether autograd records operations on a tensor: it requires a gradient, and gradients are enabled.
///
/// Whether they are enabled shows in the result of an operation that makes a new tensor. A view would not do: a view of a tensor that requires
/// a gradient claims to require one even where gradients are disabled.
pub(crate) fn has_its_products_recorded(tensor: &Tensor) -> bool {
    tensor.requires_grad() && (tensor.as_strided([0], [1], None) + 0.0).requires_grad()
}

/// Whether the CPU has instructions for products in bf16.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// A dense matrix for the kernels, if they support its kind.
fn dense(tensor: &Tensor) -> Option<Rows<'_>> {
    match tensor.kind() {
        Kind::Float => Some(Rows::F32(memory(tensor)?)),
        Kind::BFloat16 => Some(Rows::Bf16(memory(tensor)?)),
        Kind::Half => Some(Rows::F16(memory(tensor)?)),
        _ => None,
    }
}

/// The first columns `[b, n, t, d]` of buffers `[.., n, capacity, d]` as one matrix of rows of `d`, without a copy, if the kernels know their
/// kind: column `j` of head `i` of row `r` is row `(r·n + i)·capacity + j`. Returns the capacity, too.
pub(crate) fn buffers(tensor: &Tensor) -> Option<(Rows<'_>, usize)> {
    let (&[b, n, t, d], &[of_row, of_head, of_column, 1]) =
        (&tensor.size()[..], &tensor.stride()[..])
    else {
        return None;
    };
    let is_so = of_column == d && of_head % d == 0 && of_head >= t * d && of_row == n * of_head;
    if !is_so || tensor.device() != Device::Cpu || tensor.numel() == 0 {
        return None;
    }
    let length = ((b * n - 1) * of_head + t * d) as usize;
    let rows = match tensor.kind() {
        Kind::Float => Rows::F32(numbers(tensor, length)),
        Kind::BFloat16 => Rows::Bf16(numbers(tensor, length)),
        Kind::Half => Rows::F16(numbers(tensor, length)),
        _ => return None,
    };
    Some((rows, (of_head / d) as usize))
}

/// The threads that kernels may compute with.
pub(crate) fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Types as which a tensor's memory may be read: every bit pattern is a valid value.
pub(crate) trait Plain: Copy {
    /// The tensor kinds that may be read as this type; f16 and bf16 are read as their bits.
    const KINDS: &'static [Kind];
}

impl Plain for f32 {
    const KINDS: &'static [Kind] = &[Kind::Float];
}

impl Plain for u16 {
    const KINDS: &'static [Kind] = &[Kind::BFloat16, Kind::Half];
}

impl Plain for u8 {
    const KINDS: &'static [Kind] = &[Kind::Uint8];
}

impl Plain for i8 {
    const KINDS: &'static [Kind] = &[Kind::Int8];
}

/// The numbers of a tensor in order, without a copy; `None` if it is of another kind, on another device, or not in order.
pub(crate) fn memory<T: Plain>(tensor: &Tensor) -> Option<&[T]> {
    let is_here = tensor.device() == Device::Cpu && tensor.is_contiguous();
    let length = tensor.numel();
    (is_here && T::KINDS.contains(&tensor.kind()) && length > 0).then(|| numbers(tensor, length))
}

/// The first `length` numbers of a tensor's memory, up to its last number at most.
fn numbers<T: Plain>(tensor: &Tensor, length: usize) -> &[T] {
    let there = if tensor.is_contiguous() {
        tensor.numel() as i64
    } else {
        let size = tensor.size().into_iter().zip(tensor.stride());
        size.map(|(n, stride)| (n - 1) * stride).sum::<i64>() + 1
    };
    let is_here = tensor.device() == Device::Cpu && T::KINDS.contains(&tensor.kind());
    assert!(is_here && tensor.numel() > 0 && length as i64 <= there, "no such numbers");
    // SAFETY: a tensor on the CPU has its first number at `data_ptr`, aligned for its kind, and its last number `there - 1` numbers later
    // (strides are not negative); both are in one allocation. Its kind has the size of `T`, for which every bit pattern is valid. The borrowed
    // tensor keeps the allocation alive. Only frozen weights, caches and tensors that a forward has just computed on this thread are read:
    // nothing writes to any of them meanwhile.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts(tensor.data_ptr().cast::<T>().cast_const(), length)
    }
}

/// The numbers of a contiguous tensor on the CPU in f32: its memory, or a copy of f16 or bf16.
pub(crate) fn read(tensor: &Tensor) -> Option<Cow<'_, [f32]>> {
    let widened = |bits: &u16| f32::from_bits(u32::from(*bits) << 16);
    Some(match tensor.kind() {
        Kind::Float => Cow::Borrowed(memory(tensor)?),
        Kind::BFloat16 => Cow::Owned(memory::<u16>(tensor)?.iter().map(widened).collect()),
        Kind::Half => {
            Cow::Owned(memory::<u16>(tensor)?.reinterpret_cast::<half::f16>().to_f32_vec())
        }
        _ => return None,
    })
}

/// A tensor on the CPU in f32, bf16 or f16. `fill` computes its numbers in f32, where they are 0 at first; they are rounded once.
pub(crate) fn written(size: &[i64], kind: Kind, fill: impl FnOnce(&mut [f32])) -> Tensor {
    if kind == Kind::Float {
        return filled(size, kind, fill);
    }
    let mut numbers = vec![0.0; size.iter().product::<i64>() as usize];
    fill(&mut numbers);
    filled(size, kind, |y: &mut [u16]| match kind {
        Kind::BFloat16 => round_to_bf16(&numbers, y),
        _ => round_to_f16(&numbers, y),
    })
}

/// A tensor on the CPU whose memory, 0 at first, is written by `fill`.
fn filled<T: Plain>(size: &[i64], kind: Kind, fill: impl FnOnce(&mut [T])) -> Tensor {
    assert!(T::KINDS.contains(&kind), "memory of another kind");
    let tensor = Tensor::zeros(size, (kind, Device::Cpu));
    // SAFETY: a new tensor on the CPU is contiguous and holds `numel` numbers of its kind, which has the size of `T`; they are initialised with
    // 0, and every bit pattern is valid. Nothing else refers to the tensor yet.
    #[allow(unsafe_code)]
    let memory =
        unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) };
    fill(memory);
    tensor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: i64, columns: i64, kind: Kind) -> Tensor {
        let x = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
        ((&x * 0.7).sin() * (&x * 0.013).cos()).view([rows, columns]).to_kind(kind)
    }

    /// Both are f32 sums of the same products, rounded once to the kind at the end, so they differ by at most two of its rounding steps.
    #[test]
    fn products_by_kernels_are_libtorchs() {
        for (kind, step) in
            [(Kind::Float, 2e-6), (Kind::BFloat16, 2f64.powi(-8)), (Kind::Half, 2f64.powi(-11))]
        {
            let weight = Weight::Dense(numbers(70, 96, kind));
            let bias = numbers(1, 70, kind).squeeze();
            for (n, bias) in [(1, None), (3, Some(&bias)), (8, None)] {
                let x = numbers(n, 96, kind).unsqueeze(1);
                let Some(found) = by_kernels(&x, &weight, bias) else {
                    let is_libtorchs = kind == Kind::BFloat16 && has_bf16();
                    assert!(is_libtorchs, "{kind:?} × {n} has no kernel");
                    continue;
                };
                assert_eq!((found.size(), found.kind()), (vec![n, 1, 70], kind));
                let expected = x.linear(&weight.dense(), bias).to_kind(Kind::Double);
                let error = (found.to_kind(Kind::Double) - &expected).abs().max().double_value(&[]);
                let largest = expected.abs().max().double_value(&[]);
                assert!(
                    error <= 2.0 * step * largest && largest > 1.0,
                    "{kind:?} × {n}: {error} of {largest}"
                );
            }
        }
    }

    /// The numbers are the same; bf16 and f16 have equal ones among them.
    #[test]
    fn the_largest_products_are_those_of_all_products() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let weight = Weight::Dense(numbers(700, 96, kind));
            for n in [1, 5, 20] {
                let x = numbers(n, 96, kind);
                let largest = largest_by_kernels(&x, &weight);
                assert_eq!(largest.is_none(), kind == Kind::BFloat16 && has_bf16());
                let (Some(largest), Some(all)) = (largest, by_kernels(&x, &weight, None)) else {
                    continue;
                };
                for (row, largest) in largest.into_iter().enumerate() {
                    let all = Vec::<f32>::try_from(all.get(row as i64).to_kind(Kind::Float));
                    let all = all.expect("numbers of one row");
                    assert_eq!(all.iter().position(|y| *y == largest.value), Some(largest.row));
                    assert!(all.iter().all(|y| *y <= largest.value), "{kind:?}");
                }
            }
        }
    }

    /// The same numbers are multiplied; sums of f32 have another order, and results are rounded once.
    #[test]
    fn many_rows_are_multiplied_with_a_packed_matrix_by_the_kernels() {
        let (rows, columns) = (70, 512);
        let packed = crate::Quantised::packed_for_tests(&numbers(rows, columns, Kind::Float));
        let weight = Weight::Quantised(packed);
        let bias = numbers(1, rows, Kind::Float).squeeze();
        for (kind, step) in [(Kind::Float, 2e-6), (Kind::BFloat16, 2f64.powi(-8))] {
            let x = numbers(2 * MOST_ROWS, columns, kind).view([2, MOST_ROWS, columns]);
            for bias in [None, Some(&bias)] {
                let found = by_kernels(&x, &weight, bias).expect("it is on a CPU");
                assert_eq!((found.size(), found.kind()), (vec![2, MOST_ROWS, rows], kind));
                let f64 = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                let expected = f64(&x).linear(&f64(&weight.dense()), bias.map(f64).as_ref());
                let error = (f64(&found) - &expected).abs().max().double_value(&[]);
                let largest = expected.abs().max().double_value(&[]);
                assert!(error <= step * largest && largest > 1.0, "{kind:?}: {error} of {largest}");
            }
        }
        let x = numbers(90, columns, Kind::Float).set_requires_grad(true);
        assert!(by_kernels(&x, &weight, None).is_none());
    }

    /// Both round an f32 sum to bf16, so they differ by at most one rounding step of bf16.
    #[test]
    fn many_rows_of_bf16_are_multiplied_in_f32() {
        let weight = Weight::Dense(numbers(70, 96, Kind::BFloat16));
        let bias = numbers(1, 70, Kind::BFloat16).squeeze();
        let x = numbers(90, 96, Kind::BFloat16).view([3, 30, 96]);
        assert_eq!(through_f32(&x, &weight, Some(&bias)).is_none(), has_bf16());
        let Some(found) = through_f32(&x, &weight, Some(&bias)) else { return };
        assert_eq!((found.size(), found.kind()), (vec![3, 30, 70], Kind::BFloat16));
        let f64 = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        let expected = f64(&x).linear(&f64(&weight.dense()), Some(&f64(&bias)));
        let error = (f64(&found) - &expected).abs() / expected.abs().clamp_min(0.1);
        let worst = error.max().double_value(&[]);
        assert!(worst > 0.0 && worst <= 2f64.powi(-8), "{worst}");
        let trained = Weight::Dense(weight.dense().set_requires_grad(true));
        assert!(through_f32(&x, &trained, None).is_none());
        assert!(through_f32(&x.narrow(0, 0, 1).narrow(1, 0, 1), &weight, None).is_none());
        let of_f32 = Weight::Dense(numbers(70, 96, Kind::Float));
        assert!(through_f32(&x.to_kind(Kind::Float), &of_f32, None).is_none());
    }

    #[test]
    fn what_wants_a_gradient_and_what_has_many_rows_is_left_to_libtorch() {
        let x = numbers(2, 32, Kind::Float);
        let trained = Weight::Dense(numbers(4, 32, Kind::Float).set_requires_grad(true));
        assert!(by_kernels(&x, &trained, None).is_none());
        assert!(tch::no_grad(|| by_kernels(&x, &trained, None)).is_some());
        let frozen = Weight::Dense(numbers(4, 32, Kind::Float));
        assert!(by_kernels(&x, &frozen, None).is_some());
        assert!(by_kernels(&x.set_requires_grad(true), &frozen, None).is_none());
        let many = numbers(MOST_ROWS + 2, 32, Kind::Float);
        assert!(by_kernels(&many, &frozen, None).is_none());
        let prompts = numbers(4, 32, Kind::Float).view([2, 2, 32]);
        assert!(by_kernels(&prompts, &frozen, None).is_none());
        let in_f16 = Weight::Dense(frozen.dense().to_kind(Kind::Half));
        assert!(by_kernels(&prompts.to_kind(Kind::Half), &in_f16, None).is_some());
    }
}
