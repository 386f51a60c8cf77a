//! Tensors of rank 2 and more in [`super::AdafacKernel`].
//!
//! Most features of such a tensor depend on the row or the column only. What they give the first layer
//! is computed once per row and column and added to its bias; blocks repeat these sums and the
//! factors of the second moments along their lines of elements, and make the other features.

use super::features::{clear_tail, load_row, products, row, row_mut, rsqrt, rsqrts, Tensor};
use super::walk::{Reduced, Walk};
use crate::features::adafac::FACTOR_EPSILON;
use crate::features::factored::{Axes, Factored, EPSILON, SQUARE_EPSILON};
use crate::features::normalize;
use crate::kernel::dot::mean_square;
use crate::kernel::net::MAX_LANES;
use outerloop_core::simd::{load, store};
use outerloop_core::{nan, Layout};
use pulp::Simd;
use std::ops::Range;

/// What a factored tensor's rows or columns give, in arrays of one number per row or column: for every
/// decay the reciprocal root of the second moment's factor; for every unit of the first layer what the
/// row or column adds to it; for every decay the reciprocal root of the mean; scratch.
pub(crate) struct Table<'a> {
    pub(crate) len: usize,
    decays: usize,
    units: usize,
    pub(crate) data: &'a mut [f32],
}

impl<'a> Table<'a> {
    /// Numbers that a table needs: its arrays, and a vector, for loads past the end.
    pub(crate) fn numbers(len: usize, decays: usize, units: usize) -> usize {
        (2 * decays + units + 1) * len + MAX_LANES
    }

    pub(crate) fn new(len: usize, decays: usize, units: usize, scratch: &'a mut [f32]) -> Self {
        Table { len, decays, units, data: &mut scratch[..Table::numbers(len, decays, units)] }
    }

    /// Updates the accumulator `slot` `[decays, len]`, the means over `axis`, with a gradient; makes the
    /// roots.
    #[inline(always)]
    fn update<S: Simd>(&mut self, s: S, axis: [usize; 3], grad: &[f32], rates: &[f32], slot: &mut [f32]) {
        let len = self.len;
        let (factors, rest) = self.data.split_at_mut(self.decays * len);
        let (roots, rest) = rest[self.units * len..].split_at_mut(self.decays * len);
        let sums = &mut rest[..len];
        sums.fill(0.0);
        Reduced::new(axis).add::<S, true>(s, grad, sums);
        let by = s.splat_f32s(1.0 / axis[1] as f32);
        let arrays =
            slot.chunks_exact_mut(len).zip(factors.chunks_exact_mut(len)).zip(roots.chunks_exact_mut(len));
        for (((slot, factors), roots), rate) in arrays.zip(rates) {
            let (keep, rate) = (s.splat_f32s(1.0 - rate), s.splat_f32s(*rate));
            for i in (0..len).step_by(S::F32_LANES) {
                let mean = s.mul_add_e_f32s(load(s, &sums[i..]), by, s.splat_f32s(SQUARE_EPSILON as f32));
                let v = s.mul_add_e_f32s(rate, mean, s.mul_f32s(keep, load(s, &slot[i..])));
                store(s, &mut slot[i..], v);
                store(s, &mut factors[i..], safe_rsqrt(s, v));
                store(s, &mut roots[i..], rsqrt(s, s.add_f32s(v, s.splat_f32s(FACTOR_EPSILON as f32))));
            }
        }
    }

    /// Of rows: the factors `(row / (mean(row) + 1e-9))^-½`, the means over `d1` `[outer, axis, inner]`.
    #[inline(always)]
    fn divide_by_mean<S: Simd>(&mut self, s: S, [_, axis, inner]: [usize; 3], slot: &[f32]) {
        let part = axis * inner;
        let by = 1.0 / axis as f32;
        for (row, factors) in slot.chunks_exact(part).zip(self.data.chunks_exact_mut(part)) {
            if inner == 1 {
                let mean = row.iter().sum::<f32>() * by + EPSILON as f32;
                for (row, factors) in row.chunks(S::F32_LANES).zip(factors.chunks_mut(S::F32_LANES)) {
                    let ratio = s.div_f32s(load(s, row), s.splat_f32s(mean));
                    store(s, factors, safe_rsqrt(s, ratio));
                }
                continue;
            }
            for i in (0..inner).step_by(S::F32_LANES) {
                let end = inner.min(i + S::F32_LANES);
                let mut sum = s.splat_f32s(0.0);
                for row in row.chunks_exact(inner) {
                    sum = s.add_f32s(sum, load(s, &row[i..end]));
                }
                let mean = s.mul_add_e_f32s(sum, s.splat_f32s(by), s.splat_f32s(EPSILON as f32));
                for (row, factors) in row.chunks_exact(inner).zip(factors.chunks_exact_mut(inner)) {
                    let ratio = s.div_f32s(load(s, &row[i..end]), mean);
                    store(s, &mut factors[i..end], safe_rsqrt(s, ratio));
                }
            }
        }
    }

    /// Makes the biases: `start` plus what the normalized means and their roots give the first layer, whose
    /// weights for them are `w` `[2, decays, units]`.
    #[inline(always)]
    fn biases<S: Simd>(&mut self, s: S, slot: &[f32], start: Option<&[f32]>, w: [&[f32]; 2]) {
        let (len, units) = (self.len, self.units);
        let (biases, rest) = self.data[self.decays * len..].split_at_mut(units * len);
        for (o, bias) in biases.chunks_exact_mut(len).enumerate() {
            bias.fill(start.map_or(0.0, |b| b[o]));
        }
        for (arrays, w) in [slot, &*rest].into_iter().zip(w) {
            for (x, w) in arrays.chunks_exact(len).zip(w.chunks_exact(units)) {
                let scale = normalizer(s, x);
                for (bias, w) in biases.chunks_exact_mut(len).zip(w) {
                    let w = s.splat_f32s(w * scale);
                    for (b, x) in bias.chunks_mut(S::F32_LANES).zip(x.chunks(S::F32_LANES)) {
                        let sum = s.mul_add_e_f32s(load(s, x), w, load(s, b));
                        store(s, b, sum);
                    }
                }
            }
        }
    }
}

/// `(mean(x²) + ε)^-½`.
#[inline(always)]
fn normalizer<S: Simd>(s: S, x: &[f32]) -> f32 {
    (mean_square(s, x) + normalize::EPSILON as f32).sqrt().recip()
}

/// `max(x, 1e-9)^-½`; NaN stays NaN.
#[inline(always)]
fn safe_rsqrt<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    rsqrt(s, nan::at_least(s, x, s.splat_f32s(EPSILON as f32)))
}

/// The scratch of the largest row and column [`Table`]s of these tensors.
pub(crate) fn table_lens(layout: &Layout, decays: usize, units: usize) -> [usize; 2] {
    let mut tables = [0, 0];
    for entry in layout.entries() {
        let factored = Factored::new(&entry.shape);
        if factored.is_factored() {
            for (most, len) in tables.iter_mut().zip(factored.lens()) {
                *most = Table::numbers(len, decays, units).max(*most);
            }
        }
    }
    tables
}

/// One factored tensor of the update.
pub(crate) struct FactoredTensor<'a> {
    pub(crate) range: Range<usize>,
    /// Numbers of decays: momenta, RMS averages, factored second moments.
    pub(crate) counts: [usize; 3],
    pub(crate) grad: &'a [f32],
    pub(crate) momentum: &'a [f32],
    pub(crate) rms: &'a [f32],
    /// Added to RMS averages under the root.
    pub(crate) rms_epsilon: f32,
    /// Of rows and columns.
    pub(crate) tables: [Table<'a>; 2],
    pub(crate) walk: Walk,
    /// Scratch: what a block repeats of the tables.
    pub(crate) expanded: &'a mut [f32],
}

impl FactoredTensor<'_> {
    /// The numbers of features made per element that come, in the order of
    /// [`columns`](crate::features::adafac::TensorFeatures::columns), before and after those of rows and
    /// columns.
    pub(crate) fn parts([momenta, rms, decays]: [usize; 3]) -> [usize; 2] {
        [2 + 2 * momenta + 2 * rms + decays, momenta]
    }

    /// Length of [`Self::expanded`] for blocks of this many vectors.
    pub(crate) fn expanded_len(decays: usize, units: usize, vectors: usize) -> usize {
        2 * (decays + units) * (vectors + 1) * MAX_LANES
    }

    /// Updates rows and columns, `slots` `[decays, len]` each.
    #[inline(always)]
    pub(crate) fn update_slots<S: Simd>(&mut self, s: S, axes: &Axes, rates: &[f32], slots: [&mut [f32]; 2]) {
        let grad = &self.grad[self.range.clone()];
        let [row, col] = slots;
        self.tables[0].update(s, axes.d0, grad, rates, row);
        self.tables[1].update(s, axes.d1, grad, rates, col);
        self.tables[0].divide_by_mean(s, axes.d1_of_row, row);
    }

    /// Repeats the first `quantities` arrays of the tables for `count` elements from `start` on.
    #[inline(always)]
    pub(crate) fn expand<S: Simd>(
        &mut self,
        s: S,
        start: usize,
        count: usize,
        quantities: usize,
        stride: usize,
    ) {
        if start == 0 {
            self.walk.rewind();
        }
        let [row, col] = &self.tables;
        self.walk.expand(s, count, quantities, [row, col], self.expanded, stride);
    }

    /// Writes the features made per element `at`, the products of momenta and factors to the rows from
    /// `m_factored` on, the factors to those from `factor` on. The tables' first `quantities` arrays are
    /// expanded.
    #[inline(always)]
    pub(crate) fn elements<S: Simd, const V: usize>(
        &self,
        s: S,
        params: &[f32],
        at: Range<usize>,
        quantities: usize,
        [m_factored, factor]: [usize; 2],
        x: &mut [S::f32s],
    ) {
        let n = self.grad.len();
        let [momenta, rms, decays] = self.counts;
        let (rows, cols) = self.expanded.split_at(quantities * (V + 1) * S::F32_LANES);
        // First rows of the groups, in their order.
        let m_row = 2;
        let rms_row = m_row + momenta;
        let adam_row = rms_row + rms;
        let rsqrt_row = adam_row + momenta;
        let grad_row = rsqrt_row + rms;
        load_row::<S, V>(s, &params[at.clone()], row_mut(x, 1));
        let at = self.range.start + at.start..self.range.start + at.end;
        load_row::<S, V>(s, &self.grad[at.clone()], row_mut(x, 0));
        for k in 0..rms {
            load_row::<S, V>(s, &self.rms[k * n..][at.clone()], row_mut(x, rms_row + k));
            let value = *row::<_, V>(x, rms_row + k);
            *row_mut(x, rsqrt_row + k) = rsqrts::<S, V>(s, value, self.rms_epsilon);
        }
        let g = *row::<_, V>(x, 0);
        for k in 0..decays {
            let product = products::<S, V>(s, array(s, rows, k), array(s, cols, k));
            *row_mut(x, grad_row + k) = products(s, &g, &product);
            *row_mut(x, factor + k) = product;
        }
        for k in 0..momenta {
            load_row::<S, V>(s, &self.momentum[k * n..][at.clone()], row_mut(x, m_row + k));
            let m = *row::<_, V>(x, m_row + k);
            // Momenta are paired with decays; a single one serves all of them.
            *row_mut(x, adam_row + k) = products(s, &m, row::<_, V>(x, rsqrt_row + k.min(rms - 1)));
            *row_mut(x, m_factored + k) = products(s, &m, row::<_, V>(x, factor + k.min(decays - 1)));
        }
    }

    /// Makes the biases from the first layer's bias and its weights `[4, decays, units]` for rows, columns
    /// and their roots.
    #[inline(always)]
    pub(crate) fn biases<S: Simd>(&mut self, s: S, slots: [&[f32]; 2], bias: &[f32], w: &[f32]) {
        let part = w.len() / 4;
        let w = |i: usize| &w[i * part..(i + 1) * part];
        self.tables[0].biases(s, slots[0], Some(bias), [w(0), w(2)]);
        self.tables[1].biases(s, slots[1], None, [w(1), w(3)]);
    }
}

impl Tensor for FactoredTensor<'_> {
    fn features(&self) -> usize {
        Self::parts(self.counts).iter().sum()
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
        units: Option<&mut [S::f32s]>,
    ) {
        let [momenta, _, decays] = self.counts;
        let count = (params.len() - start).min(V * S::F32_LANES);
        let quantities = decays + if units.is_some() { self.tables[0].units } else { 0 };
        self.expand(s, start, count, quantities, (V + 1) * S::F32_LANES);
        let m_factored = Self::parts(self.counts)[0];
        let features = m_factored + momenta;
        self.elements::<S, V>(s, params, start..start + count, quantities, [m_factored, features], x);
        if let Some(units) = units {
            let (rows, cols) = self.expanded.split_at(quantities * (V + 1) * S::F32_LANES);
            for o in 0..self.tables[0].units {
                let (row, col) = (array::<S, V>(s, rows, decays + o), array::<S, V>(s, cols, decays + o));
                let sums: &mut [S::f32s; V] = row_mut(units, o);
                for v in 0..V {
                    sums[v] = s.add_f32s(row[v], col[v]);
                }
            }
        }
        clear_tail::<S, V>(x, features, count);
    }
}

/// The first V of the V + 1 vectors of array `q`.
#[inline(always)]
pub(crate) fn array<S: Simd, const V: usize>(_: S, arrays: &[f32], q: usize) -> &[S::f32s; V] {
    let stride = (V + 1) * S::F32_LANES;
    S::as_simd_f32s(&arrays[q * stride..][..stride]).0.first_chunk().expect("arrays have V + 1 vectors")
}
