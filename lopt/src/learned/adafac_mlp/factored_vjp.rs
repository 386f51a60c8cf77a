//! Tensors of rank 2 and more in [`super::tensor_vjp`]: all their features, and the adjoint of the means
//! of rows and columns.
//!
//! The factor of an element is `A B`, with `A = (row / (mean(row) + 1e-9))^-½` and `B = col^-½`. With U the
//! sum over a row or column of the products of what contains the factor and its adjoint:
//! `c̄ol = −½ U / col`, `r̄ow = −½ (U / row − mean(U) / (mean(row) + 1e-9))`; nothing where a root's argument
//! is clipped.

use super::accumulators::Means;
use super::factored::{array, FactoredTensor};
use super::features::{clear_tail, row_mut, Tensor};
use super::tensor_vjp::{TensorAdjoint, TensorVjp};
use super::walk::{Reduced, Walk};
use crate::features::adafac::column_count;
use crate::features::factored::{Axes, EPSILON, SQUARE_EPSILON};
use outerloop_core::simd::{load, parts, store, total, LANES, MAX_PARTS};
use pulp::Simd;
use std::ops::Range;

/// A factored tensor with all features made per element. Its tables' units are the means.
pub(crate) struct AllFeatures<'a>(FactoredTensor<'a>);

/// What the adjoint of one tensor's row or column means is made of.
pub(crate) struct MeansVjp<'a> {
    /// See [`TensorVjp::features`].
    features: &'a [f32],
    rates: &'a [f32],
    rate_adjoints: &'a mut [f32],
    /// Scratch of three arrays.
    sums: &'a mut [f32],
    /// The means `[decays, len]` before and after the update.
    old: &'a [f32],
    new: &'a [f32],
    /// The adjoint after the update; becomes that before it.
    adjoint: &'a mut [f32],
}

impl<'a> MeansVjp<'a> {
    /// Of the row means (`which` = 0) or the column means (1).
    pub(crate) fn new(
        tensors: &'a mut TensorVjp<'_>,
        means: &'a Means<'_>,
        which: usize,
        sums: &'a mut [f32],
    ) -> Self {
        let at = means.at[which].clone();
        let [momenta, rms, _] = [0, 1, 2].map(|i: usize| tensors.rates[i].len());
        MeansVjp {
            features: tensors.features,
            rates: &tensors.rates[2],
            rate_adjoints: &mut tensors.rate_sums.totals[momenta + rms..],
            sums,
            old: &tensors.before.slots[2 + which].data[at.clone()],
            new: means.new[which],
            adjoint: &mut tensors.state.slots[2 + which].data[at],
        }
    }
}

impl<'a> AllFeatures<'a> {
    /// With the new means of rows and columns, `[decays, len]` each.
    pub(crate) fn new(mut tensor: FactoredTensor<'a>, means: &Means<'_>) -> Self {
        for (table, new) in tensor.tables.iter_mut().zip(means.new) {
            table.data[new.len()..2 * new.len()].copy_from_slice(new);
        }
        AllFeatures(tensor)
    }

    /// Where the next block begins, for [`Self::set_walk`].
    pub(crate) fn walk(&self) -> Walk {
        self.0.walk
    }

    /// Where it lies among the parameters.
    pub(crate) fn range(&self) -> Range<usize> {
        self.0.range.clone()
    }

    /// Goes back to a place.
    pub(crate) fn set_walk(&mut self, walk: Walk) {
        self.0.walk = walk;
    }

    /// The adjoint of the row means (`which` = 0) or the column means (1); keeps that of the squared
    /// gradients for [`Self::add_to_gradient`]. `USED`: whether features depend on them.
    #[inline(always)]
    pub(crate) fn pull_back_means<S: Simd, const USED: bool>(
        &mut self,
        s: S,
        which: usize,
        axes: &Axes,
        vjp: MeansVjp<'_>,
    ) {
        let [momenta, rms, decays] = self.0.counts;
        let n = self.0.range.len();
        let axis = if which == 0 { axes.d0 } else { axes.d1 };
        let table = &mut self.0.tables[which];
        let len = table.len;
        let (squares_adjoint, rest) = table.data.split_at_mut(decays * len);
        let (roots, squares) = rest[decays * len..].split_at(decays * len);
        let squares_adjoint = &mut squares_adjoint[..len];
        squares_adjoint.fill(0.0);
        let sums = &mut vjp.sums[..3 * len];
        sums.fill(0.0);
        let grad_row = 2 + 2 * momenta + 2 * rms;
        let by = 1.0 / axis[1] as f32;
        for k in 0..decays {
            let part = k * len..(k + 1) * len;
            if USED {
                sums.fill(0.0);
                for (i, sums) in [0, 1 + which, 3 + which].into_iter().zip(sums.chunks_exact_mut(len)) {
                    let f = grad_row + i * decays + k;
                    Reduced::new(axis).add::<S, false>(s, &vjp.features[f * n..(f + 1) * n], sums);
                }
                let (factor, sums) = sums.split_at_mut(len);
                let new = &vjp.new[part.clone()];
                if which == 0 {
                    pull_back_ratios(s, axes.d1_of_row, new, factor);
                } else {
                    pull_back_roots(s, new, factor);
                }
                add_direct(s, &roots[part.clone()], sums, factor);
            }
            let (rate, keep) = (s.splat_f32s(vjp.rates[k]), s.splat_f32s(1.0 - vjp.rates[k]));
            let mut rate_adjoint = [s.splat_f32s(0.0); MAX_PARTS];
            for (v, start) in (0..len).step_by(S::F32_LANES).enumerate() {
                let i = start..len.min(start + S::F32_LANES);
                let at = part.start + i.start..part.start + i.end;
                let adjoint = &mut vjp.adjoint[at.clone()];
                let a = s.add_f32s(load(s, adjoint), load(s, &sums[i.clone()]));
                store(s, adjoint, s.mul_f32s(keep, a));
                let square = load(s, &squares[i.clone()]);
                let square = s.mul_add_e_f32s(square, s.splat_f32s(by), s.splat_f32s(SQUARE_EPSILON as f32));
                let sum = &mut rate_adjoint[v % parts::<S>()];
                *sum = s.mul_add_e_f32s(a, s.sub_f32s(square, load(s, &vjp.old[at])), *sum);
                let to = &mut squares_adjoint[i];
                let sum = s.mul_add_e_f32s(s.mul_f32s(rate, s.splat_f32s(by)), a, load(s, to));
                store(s, to, sum);
            }
            vjp.rate_adjoints[k] += total(s, &rate_adjoint);
        }
    }

    /// Adds what comes through the means to the gradient's adjoint.
    #[inline(always)]
    pub(crate) fn add_to_gradient<S: Simd>(&mut self, s: S, adjoint: &mut [f32]) {
        const V: usize = 4;
        let grad = &self.0.grad[self.0.range.clone()];
        let stride = (V + 1) * S::F32_LANES;
        for start in (0..grad.len()).step_by(V * S::F32_LANES) {
            let at = start..grad.len().min(start + V * S::F32_LANES);
            self.0.expand(s, start, at.len(), 1, stride);
            let (rows, cols) = self.0.expanded.split_at(stride);
            let vectors = adjoint[at.clone()].chunks_mut(S::F32_LANES).zip(grad[at].chunks(S::F32_LANES));
            let sums = array::<S, V>(s, rows, 0).iter().zip(array::<S, V>(s, cols, 0));
            for ((adjoint, g), (row, col)) in vectors.zip(sums) {
                let g = load(s, g);
                let sum = s.mul_add_e_f32s(s.add_f32s(g, g), s.add_f32s(*row, *col), load(s, adjoint));
                store(s, adjoint, sum);
            }
        }
    }
}

/// Adds to `adjoint` that of the means as features and, by their roots `q = (v + ε)^-½`, as roots, `−½ q³ q̄`:
/// `sums` `[2, len]`.
#[inline(always)]
fn add_direct<S: Simd>(s: S, roots: &[f32], sums: &[f32], adjoint: &mut [f32]) {
    let len = adjoint.len();
    for i in (0..len).step_by(S::F32_LANES) {
        let i = i..len.min(i + S::F32_LANES);
        let (root, to) = (load(s, &roots[i.clone()]), &mut adjoint[i.clone()]);
        let direct = s.add_f32s(load(s, to), load(s, &sums[i.clone()]));
        let cube = s.mul_f32s(root, s.mul_f32s(root, root));
        let of_root = load(s, &sums[len + i.start..len + i.end]);
        let sum = s.mul_add_e_f32s(s.mul_f32s(s.splat_f32s(-0.5), cube), of_root, direct);
        store(s, to, sum);
    }
}

/// From U to the adjoint of `col`, in place.
#[inline(always)]
fn pull_back_roots<S: Simd>(s: S, col: &[f32], u: &mut [f32]) {
    let (zero, half) = (s.splat_f32s(0.0), s.splat_f32s(-0.5));
    for (u, col) in u.chunks_mut(S::F32_LANES).zip(col.chunks(S::F32_LANES)) {
        let col = load(s, col);
        let adjoint = s.div_f32s(s.mul_f32s(half, load(s, u)), col);
        let is_clipped = s.less_than_f32s(col, s.splat_f32s(EPSILON as f32));
        store(s, u, s.select_f32s(is_clipped, zero, adjoint));
    }
}

/// From U to the adjoint of `row`, in place; the mean is over `d1` `[outer, axis, inner]`.
#[inline(always)]
fn pull_back_ratios<S: Simd>(s: S, [_, axis, inner]: [usize; 3], row: &[f32], u: &mut [f32]) {
    let epsilon = EPSILON as f32;
    let by = 1.0 / axis as f32;
    let part = axis * inner;
    for (row, u) in row.chunks_exact(part).zip(u.chunks_exact_mut(part)) {
        if inner > 1 {
            for i in (0..inner).step_by(S::F32_LANES) {
                let i = i..inner.min(i + S::F32_LANES);
                let mut sum = s.splat_f32s(0.0);
                for row in row.chunks_exact(inner) {
                    sum = s.add_f32s(sum, load(s, &row[i.clone()]));
                }
                let mean = s.mul_add_e_f32s(sum, s.splat_f32s(by), s.splat_f32s(epsilon));
                let mut sum = s.splat_f32s(0.0);
                for (row, u) in row.chunks_exact(inner).zip(u.chunks_exact(inner)) {
                    sum =
                        s.add_f32s(sum, unclipped(s, load(s, &row[i.clone()]), mean, load(s, &u[i.clone()])));
                }
                let through_mean = s.div_f32s(s.mul_f32s(sum, s.splat_f32s(by)), mean);
                for (row, u) in row.chunks_exact(inner).zip(u.chunks_exact_mut(inner)) {
                    pull_back_ratio(s, &row[i.clone()], mean, through_mean, &mut u[i.clone()]);
                }
            }
            continue;
        }
        let mean = s.splat_f32s(row.iter().sum::<f32>() * by + epsilon);
        let mut sums = [s.splat_f32s(0.0); MAX_PARTS];
        for (part, to) in sums.iter_mut().enumerate().take(parts::<S>()) {
            let mut own = *to;
            let from = row.len().min(part * S::F32_LANES);
            for (row, u) in row[from..].chunks(LANES).zip(u[from..].chunks(LANES)) {
                own = s.add_f32s(own, unclipped(s, load(s, row), mean, load(s, u)));
            }
            *to = own;
        }
        let through_mean = s.div_f32s(s.splat_f32s(total(s, &sums) * by), mean);
        for (row, u) in row.chunks(S::F32_LANES).zip(u.chunks_mut(S::F32_LANES)) {
            pull_back_ratio(s, row, mean, through_mean, u);
        }
    }
}

/// One vector of [`pull_back_ratios`], given `mean(U) / (mean(row) + 1e-9)`.
#[inline(always)]
fn pull_back_ratio<S: Simd>(s: S, row: &[f32], mean: S::f32s, through_mean: S::f32s, u: &mut [f32]) {
    let row = load(s, row);
    let own = unclipped(s, row, mean, s.div_f32s(load(s, u), row));
    store(s, u, s.mul_f32s(s.splat_f32s(-0.5), s.sub_f32s(own, through_mean)));
}

/// `x`, or 0 where the root of `row / mean` is clipped.
#[inline(always)]
fn unclipped<S: Simd>(s: S, row: S::f32s, mean: S::f32s, x: S::f32s) -> S::f32s {
    let is_clipped = s.less_than_f32s(s.div_f32s(row, mean), s.splat_f32s(EPSILON as f32));
    s.select_f32s(is_clipped, s.splat_f32s(0.0), x)
}

impl Tensor for AllFeatures<'_> {
    fn features(&self) -> usize {
        column_count(self.0.counts)
    }
    fn counts(&self) -> [usize; 3] {
        self.0.counts
    }

    /// After the features also the factors.
    #[inline(always)]
    fn load<S: Simd, const V: usize>(
        &mut self,
        s: S,
        params: &[f32],
        start: usize,
        x: &mut [S::f32s],
        _: Option<&mut [S::f32s]>,
    ) {
        let decays = self.0.counts[2];
        let count = (params.len() - start).min(V * S::F32_LANES);
        let [before, _] = FactoredTensor::parts(self.0.counts);
        let (quantities, features) = (3 * decays, self.features());
        self.0.expand(s, start, count, quantities, (V + 1) * S::F32_LANES);
        let places = [before + 4 * decays, features];
        self.0.elements::<S, V>(s, params, start..start + count, quantities, places, x);
        let (rows, cols) = self.0.expanded.split_at(quantities * (V + 1) * S::F32_LANES);
        for k in 0..2 * decays {
            // Means, then roots, of rows and columns in turn.
            let to = before + k + k / decays * decays;
            *row_mut(x, to) = *array::<S, V>(s, rows, decays + k);
            *row_mut(x, to + decays) = *array::<S, V>(s, cols, decays + k);
        }
        clear_tail::<S, V>(x, features + decays, count);
    }
}

impl TensorAdjoint for AllFeatures<'_> {
    const FACTORED: bool = true;
}
