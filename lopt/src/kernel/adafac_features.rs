//! One tensor's accumulators and features in [`super::AdafacKernel`].

use crate::features::adafac::{column_count, FACTOR_EPSILON};
use crate::features::factored::{Axes, Factored, EPSILON, SQUARE_EPSILON};
use outerloop_core::simd::{load, store};
use pulp::Simd;
use std::ops::Range;

/// Added to RMS averages under the root, and to second moments of vectors under momenta.
const RMS_EPSILON: f32 = 1e-6;

/// Where the elements of a tensor `[outer, axis, inner]` lie in an array `[outer, inner]`, by runs.
#[derive(Clone, Copy)]
struct Reduced {
    axis: usize,
    inner: usize,
    /// Length of a run: `axis` elements at one place, or `inner` elements one after the other.
    run: usize,
}

impl Reduced {
    fn new([_, axis, inner]: [usize; 3]) -> Self {
        Reduced { axis, inner, run: if inner == 1 { axis } else { inner } }
    }

    /// The place of a run's first element, and whether the others follow it (else all share it).
    #[inline(always)]
    fn place(self, run: usize) -> (usize, bool) {
        match self.inner {
            1 => (run, false),
            inner => (run / self.axis * inner, true),
        }
    }

    /// Repeats `from` along the missing axis, for the elements from `start` on.
    #[inline(always)]
    fn expand(self, from: &[f32], start: usize, to: &mut [f32]) {
        let mut i = 0;
        while i < to.len() {
            let (run, within) = ((start + i) / self.run, (start + i) % self.run);
            let end = to.len().min(i + self.run - within);
            match self.place(run) {
                (first, true) => to[i..end].copy_from_slice(&from[first + within..][..end - i]),
                (place, false) => to[i..end].fill(from[place]),
            }
            i = end;
        }
    }

    /// Adds the squares of `x` to `sums` without the missing axis.
    #[inline(always)]
    fn add_squares<S: Simd>(self, s: S, x: &[f32], sums: &mut [f32]) {
        for (run, x) in x.chunks(self.run).enumerate() {
            match self.place(run) {
                (first, true) => {
                    let sums = &mut sums[first..first + self.run];
                    for (sums, x) in sums.chunks_mut(S::F32_LANES).zip(x.chunks(S::F32_LANES)) {
                        let x = load(s, x);
                        let sum = s.mul_add_e_f32s(x, x, load(s, sums));
                        store(s, sums, sum);
                    }
                }
                (place, false) => {
                    let mut sum = s.splat_f32s(0.0);
                    for x in x.chunks(S::F32_LANES) {
                        let x = load(s, x);
                        sum = s.mul_add_e_f32s(x, x, sum);
                    }
                    sums[place] += s.reduce_sum_f32s(sum);
                }
            }
        }
    }
}

/// One tensor of the update.
pub(super) struct Tensor<'a> {
    pub(super) range: Range<usize>,
    /// Numbers of decays: momenta, RMS averages, factored second moments.
    pub(super) counts: [usize; 3],
    pub(super) grad: &'a [f32],
    pub(super) params: &'a [f32],
    pub(super) momentum: &'a [f32],
    pub(super) rms: &'a [f32],
    /// This tensor's row and column accumulators, decay major.
    pub(super) row: &'a [f32],
    pub(super) col: &'a [f32],
    /// Of a factored tensor `[decays, 2, length]`: reciprocal root and factor of row and column.
    pub(super) row_parts: &'a [f32],
    pub(super) col_parts: &'a [f32],
    pub(super) factored: &'a Factored,
}

/// Lengths of the scratch that [`update_factored`] needs: rows and columns, means included.
pub(super) fn parts_lens(factored: &Factored, decays: usize) -> [usize; 2] {
    match factored.axes() {
        Some(_) => factored.lens().map(|len| (2 * decays + 1) * len),
        None => [0, 0],
    }
}

/// Updates one tensor's row and column accumulators and makes their reciprocal roots and factors.
#[inline(always)]
pub(super) fn update_factored<S: Simd>(
    s: S,
    factored: &Factored,
    grad: &[f32],
    rates: &[f32],
    [row, col]: [&mut [f32]; 2],
    [row_parts, col_parts]: [&mut [f32]; 2],
) {
    let lens = factored.lens();
    let Some(axes) = factored.axes() else {
        for (v, rate) in row.chunks_exact_mut(lens[0]).zip(rates) {
            let (keep, rate) = (s.splat_f32s(1.0 - rate), s.splat_f32s(*rate));
            for (v, g) in v.chunks_mut(S::F32_LANES).zip(grad.chunks(S::F32_LANES)) {
                let g = load(s, g);
                let square = s.mul_add_e_f32s(g, g, s.splat_f32s(SQUARE_EPSILON as f32));
                let next = s.mul_add_e_f32s(rate, square, s.mul_f32s(keep, load(s, v)));
                store(s, v, next);
            }
        }
        return;
    };
    for (axis, len, slot, parts) in
        [(axes.d0, lens[0], &mut *row, &mut *row_parts), (axes.d1, lens[1], col, col_parts)]
    {
        let (parts, sums) = parts.split_at_mut(2 * rates.len() * len);
        sums.fill(0.0);
        Reduced::new(axis).add_squares(s, grad, sums);
        let by = 1.0 / axis[1] as f32;
        for ((v, parts), rate) in slot.chunks_exact_mut(len).zip(parts.chunks_exact_mut(2 * len)).zip(rates) {
            let (roots, factors) = parts.split_at_mut(len);
            for (((v, sum), root), factor) in v.iter_mut().zip(&*sums).zip(roots).zip(factors) {
                *v = (1.0 - rate) * *v + rate * (sum * by + SQUARE_EPSILON as f32);
                *root = (*v + FACTOR_EPSILON as f32).sqrt().recip();
                *factor = safe_rsqrt(*v);
            }
        }
    }
    let parts = row_parts.chunks_exact_mut(2 * lens[0]);
    for (v, parts) in row.chunks_exact(lens[0]).zip(parts) {
        divide_by_mean(axes, v, &mut parts[lens[0]..]);
    }
}

/// The rows' factors `(row / (mean(row) + 1e-9))^-½`, the mean over `d1`.
#[inline(always)]
fn divide_by_mean(axes: &Axes, row: &[f32], factors: &mut [f32]) {
    let [outer, axis, inner] = axes.d1_of_row;
    for first in (0..outer).flat_map(|o| (0..inner).map(move |i| o * axis * inner + i)) {
        let places = || (0..axis).map(|a| first + a * inner);
        let mean = places().map(|p| row[p]).sum::<f32>() / axis as f32 + EPSILON as f32;
        for p in places() {
            factors[p] = safe_rsqrt(row[p] / mean);
        }
    }
}

/// `max(x, 1e-9)^-½`; NaN stays NaN.
#[inline(always)]
fn safe_rsqrt(x: f32) -> f32 {
    let floor = EPSILON as f32;
    (if x < floor { floor } else { x }).sqrt().recip()
}

impl Tensor<'_> {
    /// Rows that [`Self::load`] writes: the features of
    /// [`TensorFeatures::columns`](crate::features::adafac::TensorFeatures::columns), then scratch.
    pub(super) fn rows(counts: [usize; 3]) -> usize {
        column_count(counts) + 2 * counts[2]
    }

    /// Writes the features before normalization of V vectors of parameters, from element `start` of the
    /// tensor on, to `x` `[rows, V]`; zeros past the tensor's end.
    #[inline(always)]
    pub(super) fn load<S: Simd, const V: usize>(&self, s: S, start: usize, x: &mut [S::f32s]) {
        let n = self.params.len();
        let [momenta, rms, decays] = self.counts;
        let numel = self.range.len();
        let count = (numel - start).min(V * S::F32_LANES);
        let at = self.range.start + start..self.range.start + start + count;
        let lanes = S::F32_LANES;
        // First rows of the groups, in their order.
        let m_row = 2;
        let rms_row = m_row + momenta;
        let adam_row = rms_row + rms;
        let rsqrt_row = adam_row + momenta;
        let grad_row = rsqrt_row + rms;
        let [row, col, row_root, col_root] = [1, 2, 3, 4].map(|i| grad_row + i * decays);
        let m_factored = grad_row + 5 * decays;
        let [row_factor, col_factor] = [0, 1].map(|i| m_factored + momenta + i * decays);

        for v in 0..V {
            let part = |x: &'_ [f32]| load(s, &x[count.min(v * lanes)..]);
            x[v] = part(&self.grad[at.clone()]);
            x[V + v] = part(&self.params[at.clone()]);
            for k in 0..momenta {
                x[(m_row + k) * V + v] = part(&self.momentum[k * n..][at.clone()]);
            }
            for k in 0..rms {
                let value = part(&self.rms[k * n..][at.clone()]);
                x[(rms_row + k) * V + v] = value;
                x[(rsqrt_row + k) * V + v] = rsqrt(s, s.add_f32s(value, s.splat_f32s(RMS_EPSILON)));
            }
            for k in 0..momenta {
                let r = x[(rsqrt_row + k.min(rms - 1)) * V + v];
                x[(adam_row + k) * V + v] = s.mul_f32s(x[(m_row + k) * V + v], r);
            }
        }
        match self.factored.axes() {
            Some(axes) => {
                let reduced = [axes.d0, axes.d1].map(Reduced::new);
                let lens = self.factored.lens();
                for k in 0..decays {
                    let row_parts = self.row_parts[2 * k * lens[0]..].split_at(lens[0]);
                    let col_parts = self.col_parts[2 * k * lens[1]..].split_at(lens[1]);
                    for (to, along, from) in [
                        (row, 0, &self.row[k * lens[0]..]),
                        (col, 1, &self.col[k * lens[1]..]),
                        (row_root, 0, row_parts.0),
                        (col_root, 1, col_parts.0),
                        (row_factor, 0, row_parts.1),
                        (col_factor, 1, col_parts.1),
                    ] {
                        let to = pulp::bytemuck::cast_slice_mut(&mut x[(to + k) * V..(to + k + 1) * V]);
                        reduced[along].expand(from, start, &mut to[..count]);
                    }
                }
                for v in 0..V {
                    for k in 0..decays {
                        let factor = s.mul_f32s(x[(row_factor + k) * V + v], x[(col_factor + k) * V + v]);
                        x[(row_factor + k) * V + v] = factor;
                        x[(grad_row + k) * V + v] = s.mul_f32s(x[v], factor);
                    }
                }
            }
            None => {
                for k in 0..decays {
                    let slot = &self.row[k * numel + start..k * numel + start + count];
                    for v in 0..V {
                        let value = load(s, &slot[count.min(v * lanes)..]);
                        let root = rsqrt(s, s.add_f32s(value, s.splat_f32s(FACTOR_EPSILON as f32)));
                        let floor = s.splat_f32s(EPSILON as f32);
                        let sum = s.add_f32s(value, floor);
                        let sum = s.select_f32s(s.less_than_f32s(sum, floor), floor, sum);
                        for (to, value) in [(row, value), (col, value), (row_root, root), (col_root, root)] {
                            x[(to + k) * V + v] = value;
                        }
                        x[(grad_row + k) * V + v] = s.mul_f32s(x[v], rsqrt(s, sum));
                        x[(row_factor + k) * V + v] = rsqrt(s, s.add_f32s(value, s.splat_f32s(RMS_EPSILON)));
                    }
                }
            }
        }
        for v in 0..V {
            for k in 0..momenta {
                let factor = x[(row_factor + k.min(decays - 1)) * V + v];
                x[(m_factored + k) * V + v] = s.mul_f32s(x[(m_row + k) * V + v], factor);
            }
        }
        if count < V * lanes {
            for row in x.chunks_exact_mut(V) {
                pulp::bytemuck::cast_slice_mut::<S::f32s, f32>(row)[count..].fill(0.0);
            }
        }
    }
}

#[inline(always)]
fn rsqrt<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    s.div_f32s(s.splat_f32s(1.0), s.sqrt_f32s(x))
}
