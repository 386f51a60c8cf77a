//! The features of one tensor in [`super::AdafacKernel`] before normalization: [`Tensor`], and
//! [`VectorTensor`] for tensors of rank 0 and 1, whose second moments are kept per element.

use crate::features::adafac::{column_count, FACTOR_EPSILON};
use crate::features::factored::{EPSILON, SQUARE_EPSILON};
use crate::kernel::{apart, dot::SUM};
use outerloop_core::simd::{load, parts, store, total, LANES, MAX_PARTS};
use pulp::bytemuck::cast_slice_mut;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Added to RMS averages under the root, and, in [`super::AdafacKernel`], to second moments of vectors under momenta.
pub(crate) const RMS_EPSILON: f32 = 1e-6;

/// Vectors per block of [`normalizers`].
const BLOCK: usize = 6;

/// A tensor whose features are made block by block.
pub(crate) trait Tensor {
    /// Number of features.
    fn features(&self) -> usize;

    /// Numbers of decays: momenta, RMS averages, factored second moments.
    fn counts(&self) -> [usize; 3];

    /// Writes the features of V vectors of the tensor's `params`, from element `start` on, to `x`
    /// `[features, V]`, zeros past their end; for the network also what the first layer's `units`
    /// `[.., V]` start from, if that is not the bias. Blocks come in order.
    fn load<S: Simd, const V: usize>(
        &mut self,
        s: S,
        params: &[f32],
        start: usize,
        x: &mut [S::f32s],
        units: Option<&mut [S::f32s]>,
    );
}

/// [`Tensor::load`], in a function of its own.
#[inline(always)]
pub(crate) fn load_block<S: Simd, T: Tensor, const V: usize>(
    s: S,
    tensor: &mut T,
    params: &[f32],
    start: usize,
    x: &mut [S::f32s],
    units: Option<&mut [S::f32s]>,
) {
    let (x, units) = (cast_slice_mut(x), units.map(cast_slice_mut));
    apart(s, Load::<T, V> { tensor, params, start, x, units });
}

/// [`load_block`] with all numbers of the vectors.
struct Load<'a, T, const V: usize> {
    tensor: &'a mut T,
    params: &'a [f32],
    start: usize,
    x: &'a mut [f32],
    units: Option<&'a mut [f32]>,
}

impl<T: Tensor, const V: usize> WithSimd for Load<'_, T, V> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Load { tensor, params, start, x, units } = self;
        let units = units.map(|units| S::as_mut_simd_f32s(units).0);
        tensor.load::<S, V>(s, params, start, S::as_mut_simd_f32s(x).0, units);
    }
}

/// Makes the normalizers `(mean(f²) + ε)^-½` of a tensor's features.
pub(crate) struct Normalizer<'a> {
    /// Scratch: as [`Tensor::load`] needs it for blocks of 6 vectors.
    pub(crate) block: &'a mut [f32],
    /// Scratch: [`LANES`] numbers for every feature.
    pub(crate) squares: &'a mut [f32],
    /// The normalizers.
    pub(crate) scales: &'a mut [f32],
    /// ε
    pub(crate) epsilon: f64,
}

impl Normalizer<'_> {
    /// Over the elements from `start` to the end of `params`. `TINY`: whether remainders of one or two vectors
    /// are blocks of their own, for speed.
    #[inline(always)]
    pub(crate) fn run<S: Simd, T: Tensor, const TINY: bool>(
        &mut self,
        s: S,
        tensor: &mut T,
        params: &[f32],
        start: usize,
    ) {
        let count = params.len() - start;
        let (x, _) = S::as_mut_simd_f32s(self.block);
        let squares = &mut S::as_mut_simd_f32s(self.squares).0[..tensor.features() * parts::<S>()];
        let scales = &mut self.scales[..tensor.features()];
        squares.fill(s.splat_f32s(0.0));
        scales.fill(0.0);
        let (mut start, mut summed) = (start, 0);
        while start < params.len() {
            let vectors = match (params.len() - start).div_ceil(S::F32_LANES) {
                1 if TINY => add_squares::<S, T, 1>(s, tensor, params, [start, summed], x, squares),
                2 if TINY => add_squares::<S, T, 2>(s, tensor, params, [start, summed], x, squares),
                _ => add_squares::<S, T, BLOCK>(s, tensor, params, [start, summed], x, squares),
            };
            start += vectors * S::F32_LANES;
            summed += vectors * S::F32_LANES;
            if summed >= SUM || start >= params.len() {
                summed = 0;
                for (scale, sum) in scales.iter_mut().zip(squares.chunks_exact_mut(parts::<S>())) {
                    *scale += total(s, sum);
                    sum.fill(s.splat_f32s(0.0));
                }
            }
        }
        for scale in scales {
            *scale = (*scale / count as f32 + self.epsilon as f32).sqrt().recip();
        }
    }
}

/// Adds the squares of V vectors of features, from element `start` on, to `squares` `[features, parts]`, which
/// hold those of `summed` elements before; returns V.
#[inline(always)]
fn add_squares<S: Simd, T: Tensor, const V: usize>(
    s: S,
    tensor: &mut T,
    params: &[f32],
    [start, summed]: [usize; 2],
    x: &mut [S::f32s],
    squares: &mut [S::f32s],
) -> usize {
    load_block::<S, T, V>(s, tensor, params, start, x, None);
    // The part of the first vector; always the first one of vectors that are long enough.
    let first = if const { BLOCK * S::F32_LANES % LANES == 0 } { 0 } else { summed / S::F32_LANES };
    let parts = parts::<S>();
    for (sums, x) in squares.chunks_exact_mut(parts).zip(x.chunks_exact(V)) {
        let x: &[S::f32s; V] = x.first_chunk().expect("chunks of a block");
        let mut own = [s.splat_f32s(0.0); MAX_PARTS];
        own[..parts].copy_from_slice(sums);
        for v in 0..V {
            own[(first + v) % parts] = s.mul_add_e_f32s(x[v], x[v], own[(first + v) % parts]);
        }
        sums.copy_from_slice(&own[..parts]);
    }
    V
}

/// A tensor of rank 0 or 1. All its features are made per element.
pub(crate) struct VectorTensor<'a> {
    pub(crate) range: Range<usize>,
    /// Numbers of decays: momenta, RMS averages, second moments.
    pub(crate) counts: [usize; 3],
    pub(crate) grad: &'a [f32],
    pub(crate) momentum: &'a [f32],
    pub(crate) rms: &'a [f32],
    /// This tensor's second moments, `[decays, length]`.
    pub(crate) moments: &'a [f32],
    /// Added to them under the root where momenta are divided by them.
    pub(crate) moment_epsilon: f32,
}

/// Updates the second moments `[decays, length]`.
#[inline(always)]
pub(crate) fn update_moments<S: Simd>(s: S, grad: &[f32], rates: &[f32], moments: &mut [f32]) {
    for (v, rate) in moments.chunks_exact_mut(grad.len()).zip(rates) {
        let (keep, rate) = (s.splat_f32s(1.0 - rate), s.splat_f32s(*rate));
        for (v, g) in v.chunks_mut(S::F32_LANES).zip(grad.chunks(S::F32_LANES)) {
            let g = load(s, g);
            let square = s.mul_add_e_f32s(g, g, s.splat_f32s(SQUARE_EPSILON as f32));
            let next = s.mul_add_e_f32s(rate, square, s.mul_f32s(keep, load(s, v)));
            store(s, v, next);
        }
    }
}

/// Rows of a block that [`VectorTensor::load`] writes: the features and scratch.
pub(crate) fn vector_rows(counts: [usize; 3]) -> usize {
    column_count(counts) + counts[2]
}

impl Tensor for VectorTensor<'_> {
    fn features(&self) -> usize {
        column_count(self.counts)
    }
    fn counts(&self) -> [usize; 3] {
        self.counts
    }

    #[inline(always)]
    fn load<S: Simd, const V: usize>(
        &mut self,
        s: S,
        params: &[f32],
        start: usize,
        x: &mut [S::f32s],
        _: Option<&mut [S::f32s]>,
    ) {
        let n = self.grad.len();
        let [momenta, rms, decays] = self.counts;
        let numel = self.range.len();
        let count = (numel - start).min(V * S::F32_LANES);
        // First rows of the groups, in their order.
        let m_row = 2;
        let rms_row = m_row + momenta;
        let adam_row = rms_row + rms;
        let rsqrt_row = adam_row + momenta;
        let grad_row = rsqrt_row + rms;
        let [row_row, col_row, row_root, col_root] = [1, 2, 3, 4].map(|i| grad_row + i * decays);
        let m_factored = grad_row + 5 * decays;
        let factor_row = m_factored + momenta;

        let i = start..start + count;
        let at = self.range.start + i.start..self.range.start + i.end;
        load_row::<S, V>(s, &self.grad[at.clone()], row_mut(x, 0));
        load_row::<S, V>(s, &params[i.clone()], row_mut(x, 1));
        for k in 0..rms {
            load_row::<S, V>(s, &self.rms[k * n..][at.clone()], row_mut(x, rms_row + k));
            let value = *row::<_, V>(x, rms_row + k);
            *row_mut(x, rsqrt_row + k) = rsqrts::<S, V>(s, value, RMS_EPSILON);
        }
        let g = *row::<_, V>(x, 0);
        for k in 0..decays {
            load_row::<S, V>(s, &self.moments[k * numel..][i.clone()], row_mut(x, row_row + k));
            let value = *row::<_, V>(x, row_row + k);
            *row_mut(x, col_row + k) = value;
            let root = rsqrts::<S, V>(s, value, FACTOR_EPSILON as f32);
            *row_mut(x, row_root + k) = root;
            *row_mut(x, col_root + k) = root;
            *row_mut(x, factor_row + k) = rsqrts::<S, V>(s, value, self.moment_epsilon);
            // Moments are not negative: max(v + ε, ε) = v + ε.
            *row_mut(x, grad_row + k) = products::<S, V>(s, &g, &rsqrts::<S, V>(s, value, EPSILON as f32));
        }
        for k in 0..momenta {
            load_row::<S, V>(s, &self.momentum[k * n..][at.clone()], row_mut(x, m_row + k));
            let m = *row::<_, V>(x, m_row + k);
            *row_mut(x, adam_row + k) = products(s, &m, row::<_, V>(x, rsqrt_row + k.min(rms - 1)));
            *row_mut(x, m_factored + k) = products(s, &m, row::<_, V>(x, factor_row + k.min(decays - 1)));
        }
        clear_tail::<S, V>(x, column_count(self.counts), count);
    }
}

/// Row `r` of `x` `[.., V]`.
#[inline(always)]
pub(crate) fn row<T, const V: usize>(x: &[T], r: usize) -> &[T; V] {
    x[r * V..].first_chunk().expect("x has this row")
}

/// Row `r` of `x` `[.., V]`.
#[inline(always)]
pub(crate) fn row_mut<T, const V: usize>(x: &mut [T], r: usize) -> &mut [T; V] {
    x[r * V..].first_chunk_mut().expect("x has this row")
}

/// Loads at most V vectors; zeros after the end.
#[inline(always)]
pub(crate) fn load_row<S: Simd, const V: usize>(s: S, from: &[f32], to: &mut [S::f32s; V]) {
    let (full, rest) = S::as_simd_f32s(from);
    match full.first_chunk::<V>() {
        Some(full) => *to = *full,
        None => {
            *to = [s.splat_f32s(0.0); V];
            to[..full.len()].copy_from_slice(full);
            to[full.len()] = s.partial_load_f32s(rest);
        }
    }
}

/// Writes the first elements of V vectors.
#[inline(always)]
pub(crate) fn store_row<S: Simd, const V: usize>(s: S, x: &[S::f32s; V], to: &mut [f32]) {
    for (to, x) in to.chunks_mut(S::F32_LANES).zip(x) {
        store(s, to, *x);
    }
}

/// `(x + ε)^-½`.
#[inline(always)]
pub(crate) fn rsqrts<S: Simd, const V: usize>(s: S, mut x: [S::f32s; V], epsilon: f32) -> [S::f32s; V] {
    for x in &mut x {
        *x = rsqrt(s, s.add_f32s(*x, s.splat_f32s(epsilon)));
    }
    x
}

#[inline(always)]
pub(crate) fn products<S: Simd, const V: usize>(s: S, x: &[S::f32s; V], y: &[S::f32s; V]) -> [S::f32s; V] {
    let mut out = *x;
    for (out, y) in out.iter_mut().zip(y) {
        *out = s.mul_f32s(*out, *y);
    }
    out
}

/// Zeros all but the first `count` elements of each row of `x` `[rows, V]`.
#[inline(always)]
pub(crate) fn clear_tail<S: Simd, const V: usize>(x: &mut [S::f32s], rows: usize, count: usize) {
    if count < V * S::F32_LANES {
        for row in x.chunks_exact_mut(V).take(rows) {
            pulp::bytemuck::cast_slice_mut::<S::f32s, f32>(row)[count..].fill(0.0);
        }
    }
}

#[inline(always)]
pub(crate) fn rsqrt<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    s.div_f32s(s.splat_f32s(1.0), s.sqrt_f32s(x))
}
