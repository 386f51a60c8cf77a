//! The tensor features of [`crate::MlpLopt`], shared by its update and its derivative.

use super::{DECAYS, TENSOR_FEATURES};
use crate::features::normalize;
use outerloop_core::simd::{load, parts, store, totals, LANES, MAX_PARTS};
use outerloop_core::Layout;
use pulp::Simd;
use std::ops::Range;

/// Numbers that are summed before the sum is added to those of the numbers before, which bounds the rounding
/// error.
const CHUNK: usize = 128 * LANES;

/// Where a block starts, and the tensor that holds its first element.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) start: usize,
    tensor: usize,
}

impl Position {
    /// The first element.
    pub(super) const FIRST: Position = Position { start: 0, tensor: 0 };
}

/// What the features of one update are made of.
pub(super) struct Features<'a> {
    pub(super) layout: &'a Layout,
    pub(super) params: &'a [f32],
    pub(super) grad: &'a [f32],
    /// `[6, n]`; before [`Self::accumulate`] the old ones, after it the new ones.
    pub(super) momentum: &'a mut [f32],
    /// `[tensors, 8]`, the normalizers: made by [`Self::accumulate`].
    pub(super) scales: &'a mut [f32],
}

impl Features<'_> {
    /// Updates the momenta and makes the normalizers.
    #[inline(always)]
    pub(super) fn accumulate<S: Simd>(&mut self, s: S) {
        let layout = self.layout;
        for (t, entry) in layout.entries().iter().enumerate() {
            let range = entry.range();
            let numel = range.len().max(1) as f32;
            let squares = self.accumulate_tensor(s, range);
            // As long as an array, so that the compiler vectorizes it.
            let scales = self.scales[t * TENSOR_FEATURES..].first_chunk_mut::<TENSOR_FEATURES>();
            let scales = scales.expect("eight normalizers per tensor");
            for (scale, sum) in scales.iter_mut().zip(squares) {
                *scale = (sum / numel + normalize::EPSILON as f32).sqrt().recip();
            }
        }
    }

    /// Updates one tensor's momenta; the sum of squares of each of its features.
    #[inline(always)]
    fn accumulate_tensor<S: Simd>(&mut self, s: S, range: Range<usize>) -> [f32; TENSOR_FEATURES] {
        let n = self.params.len();
        let mut total = [0.0; TENSOR_FEATURES];
        for start in range.clone().step_by(CHUNK) {
            let mut sums = [[s.splat_f32s(0.0); TENSOR_FEATURES]; MAX_PARTS];
            let end = range.end.min(start + CHUNK);
            for (part, to) in sums.iter_mut().enumerate().take(parts::<S>()) {
                let mut own = *to;
                for i in (start + part * S::F32_LANES..end).step_by(LANES) {
                    let g = load(s, &self.grad[i..end]);
                    let p = load(s, &self.params[i..end]);
                    own[0] = s.mul_add_e_f32s(g, g, own[0]);
                    own[1] = s.mul_add_e_f32s(p, p, own[1]);
                    for (k, d) in DECAYS.iter().enumerate() {
                        let m = &mut self.momentum[k * n..][i..end];
                        let kept = s.mul_f32s(s.splat_f32s(*d as f32), load(s, m));
                        let next = s.mul_add_e_f32s(s.splat_f32s((1.0 - d) as f32), g, kept);
                        store(s, m, next);
                        own[2 + k] = s.mul_add_e_f32s(next, next, own[2 + k]);
                    }
                }
                *to = own;
            }
            for (t, sum) in total.iter_mut().zip(totals(s, &sums)) {
                *t += sum;
            }
        }
        total
    }

    /// Feature `f` before normalization, for all parameters.
    #[inline(always)]
    pub(super) fn raw(&self, f: usize) -> &[f32] {
        let n = self.params.len();
        match f {
            0 => self.grad,
            1 => self.params,
            k => &self.momentum[(k - 2) * n..(k - 1) * n],
        }
    }

    /// Writes the normalized features of V vectors of parameters to `x` `[8, V]`, zeros past the
    /// last one; moves `at` behind them and returns their range.
    #[inline(always)]
    pub(super) fn load<S: Simd, const V: usize>(
        &self,
        s: S,
        at: &mut Position,
        x: &mut [S::f32s],
    ) -> Range<usize> {
        let range = at.start..self.params.len().min(at.start + V * S::F32_LANES);
        let end = range.end;
        let entries = self.layout.entries();
        while entries[at.tensor].range().end <= at.start {
            at.tensor += 1;
        }
        let one_tensor = entries[at.tensor].range().end >= end;
        for (f, x) in x.chunks_exact_mut(V).enumerate() {
            let raw = &self.raw(f)[..end];
            if one_tensor {
                let scale = s.splat_f32s(self.scales[at.tensor * TENSOR_FEATURES + f]);
                if let Some(raw) = S::as_simd_f32s(&raw[at.start..]).0.first_chunk::<V>() {
                    for (x, raw) in x.iter_mut().zip(raw) {
                        *x = s.mul_f32s(scale, *raw);
                    }
                    continue;
                }
                for (v, x) in x.iter_mut().enumerate() {
                    *x = s.mul_f32s(scale, load(s, &raw[end.min(at.start + v * S::F32_LANES)..]));
                }
            } else {
                let x = pulp::bytemuck::cast_slice_mut::<S::f32s, f32>(x);
                let (mut tensor, mut from) = (at.tensor, at.start);
                while from < end {
                    let to = entries[tensor].range().end.min(end);
                    let scale = self.scales[tensor * TENSOR_FEATURES + f];
                    for (x, raw) in x[from - at.start..to - at.start].iter_mut().zip(&raw[from..to]) {
                        *x = raw * scale;
                    }
                    (tensor, from) = (tensor + 1, to);
                }
                x[range.len()..].fill(0.0);
            }
        }
        at.start = end;
        range
    }
}
