//! [`Accumulators`]: the averages that kernels on these features keep. One driver brings them up to date and
//! shows every tensor to what a kernel does with it, its update or its derivative.

use super::factored::{table_lens, FactoredTensor, Table};
use super::features::{update_moments, VectorTensor};
use super::walk::Walk;
use crate::features::factored::{Axes, Factored};
use outerloop_core::simd::{load, store};
use outerloop_core::{Entry, Layout, Slot};
use pulp::Simd;
use std::ops::Range;

/// What a rule averages, and how a kernel reads it.
#[derive(Clone, Copy)]
pub(crate) struct Averages<'a> {
    /// Rates of momenta, RMS averages and factored second moments.
    pub(crate) rates: &'a [Vec<f32>; 3],
    /// Added to RMS averages under the root.
    pub(crate) rms_epsilon: f32,
    /// Added to second moments of vectors under the root where momenta are divided by them.
    pub(crate) moment_epsilon: f32,
    /// What blocks repeat of rows and columns besides the factors.
    pub(crate) repeated: Repeated,
    /// Vectors per block, at most.
    pub(crate) vectors: usize,
}

/// What blocks of a factored tensor repeat of rows and columns besides the factors.
#[derive(Clone, Copy)]
pub(crate) enum Repeated {
    /// What they add to the first layer, of so many units.
    Biases(usize),
    /// The means and their roots.
    Means,
}

impl Averages<'_> {
    /// Numbers of decays: momenta, RMS averages, factored second moments.
    fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.rates[i].len())
    }

    /// Arrays of this kind in a table.
    fn units(&self) -> usize {
        match self.repeated {
            Repeated::Biases(units) => units,
            Repeated::Means => self.rates[2].len(),
        }
    }

    /// Lengths of the scratch for tensors of this layout: what blocks repeat, and two tables.
    pub(crate) fn scratch(&self, layout: &Layout) -> [usize; 3] {
        let decays = self.rates[2].len();
        let arrays = match self.repeated {
            Repeated::Biases(units) => units,
            Repeated::Means => 2 * decays,
        };
        let [row, col] = table_lens(layout, decays, self.units());
        [FactoredTensor::expanded_len(decays, arrays, self.vectors), row, col]
    }
}

/// Takes the first `len` numbers of `scratch`.
pub(crate) fn cut<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (part, rest) = std::mem::take(scratch).split_at_mut(len);
    *scratch = rest;
    part
}

/// The four slots of a state.
pub(crate) fn four(slots: &mut [Slot<f32>]) -> [&mut [f32]; 4] {
    let [momentum, rms, row, col] = slots else { unreachable!("four slots") };
    [momentum, rms, row, col].map(|slot| &mut slot.data[..])
}

/// The accumulators of one update, and scratch.
pub(crate) struct Accumulators<'a> {
    pub(crate) averages: Averages<'a>,
    pub(crate) grad: &'a [f32],
    /// Momenta, RMS averages, means of rows or second moments of vectors, means of columns: before the update,
    /// then after it.
    pub(crate) slots: [&'a mut [f32]; 4],
    /// Scratch as long as [`Averages::scratch`] says: what blocks repeat, and tables.
    pub(crate) scratch: [&'a mut [f32]; 3],
}

/// A tensor's new means of rows and columns, `[decays, len]` each.
pub(crate) struct Means<'a> {
    pub(crate) axes: &'a Axes,
    pub(crate) new: [&'a [f32]; 2],
    /// Where they lie in their slots.
    pub(crate) at: [Range<usize>; 2],
}

/// What a kernel does with a tensor whose accumulators are up to date.
pub(crate) trait Visit {
    /// Of rank 0 or 1; its second moments lie at `moments` in their slot.
    fn vector<S: Simd>(&mut self, s: S, tensor: VectorTensor<'_>, moments: Range<usize>);

    /// Of rank 2 or more.
    fn factored<S: Simd>(&mut self, s: S, entry: &Entry, tensor: FactoredTensor<'_>, means: Means<'_>);
}

impl Accumulators<'_> {
    /// Updates everything and shows all tensors with elements to `visit`.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(self, s: S, layout: &Layout, visit: &mut impl Visit) {
        let Accumulators { averages, grad, slots: [momentum, rms, rows, cols], scratch } = self;
        let [expanded, row_table, col_table] = scratch;
        let (counts, units, rates) = (averages.counts(), averages.units(), averages.rates);
        average::<S, false>(s, momentum, grad, &rates[0]);
        average::<S, true>(s, rms, grad, &rates[1]);
        let (momentum, rms) = (&*momentum, &*rms);
        let Averages { rms_epsilon, moment_epsilon, .. } = averages;
        let mut starts = [0, 0];
        for entry in layout.entries().iter().filter(|e| e.numel() > 0) {
            let range = entry.range();
            let factored = Factored::new(&entry.shape);
            let lens = factored.lens();
            let at = [0, 1].map(|i| starts[i]..starts[i] + counts[2] * lens[i]);
            starts = [at[0].end, at[1].end];
            let (row, col) = (&mut rows[at[0].clone()], &mut cols[at[1].clone()]);
            let Some(axes) = factored.axes() else {
                update_moments(s, &grad[range.clone()], &rates[2], row);
                let [moments, _] = at;
                let tensor =
                    VectorTensor { range, counts, grad, momentum, rms, moments: row, moment_epsilon };
                visit.vector(s, tensor, moments);
                continue;
            };
            let tables = [(lens[0], &mut *row_table), (lens[1], &mut *col_table)];
            let tables = tables.map(|(len, scratch)| Table::new(len, counts[2], units, scratch));
            let (walk, expanded) = (Walk::new(axes), &mut *expanded);
            let mut tensor =
                FactoredTensor { range, counts, grad, momentum, rms, rms_epsilon, tables, walk, expanded };
            tensor.update_slots(s, axes, &rates[2], [&mut *row, &mut *col]);
            visit.factored(s, entry, tensor, Means { axes, new: [row, col], at });
        }
    }
}

/// `a ← (1 − r) a + r x` for every rate; x is the gradient or its square.
#[inline(always)]
fn average<S: Simd, const SQUARE: bool>(s: S, slot: &mut [f32], grad: &[f32], rates: &[f32]) {
    for (slot, rate) in slot.chunks_exact_mut(grad.len().max(1)).zip(rates) {
        let (keep, rate) = (s.splat_f32s(1.0 - rate), s.splat_f32s(*rate));
        for (a, g) in slot.chunks_mut(S::F32_LANES).zip(grad.chunks(S::F32_LANES)) {
            let g = load(s, g);
            let x = if SQUARE { s.mul_f32s(g, g) } else { g };
            let next = s.mul_add_e_f32s(rate, x, s.mul_f32s(keep, load(s, a)));
            store(s, a, next);
        }
    }
}
