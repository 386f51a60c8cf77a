//! The accumulators of the Adafactor family ([`crate::AdafacMlp`], [`crate::NominalMlp`],
//! [`crate::Velo`], [`crate::Celo2`]): momenta, RMS averages and factored second moments at several decays.
//!
//! Slots: `momentum` `[decays, n]`, `rms` `[decays, n]`, and `row` and `col` with
//! `[decays, length]` per tensor, one tensor after the other ([`Factored::lens`]).

use super::factored::{Factored, FactoredFeatures};
use super::{averages, normalize};
use crate::rule::{StepVars, Var};
use outerloop_core::{Float, Layout};
use std::ops::Range;

/// Added to row and column means under the root.
pub(crate) const FACTOR_EPSILON: f64 = 1e-8;

/// The accumulators' rates, one per decay.
pub struct Adafac<E> {
    /// Of the momenta.
    pub momentum: Vec<Var<E>>,
    /// Of the RMS averages.
    pub rms: Vec<Var<E>>,
    /// Of the factored second moments.
    pub factored: Vec<Var<E>>,
    /// Added to RMS averages under the root: 1e-6, in [`crate::Celo2`] 1e-8.
    pub rms_epsilon: f64,
    /// Added under the root where momenta are divided by the second moments of tensors of rank 0 and
    /// 1: 1e-6 in [`crate::AdafacMlp`], 0 in [`crate::Velo`].
    pub vector_epsilon: f64,
}

/// One tensor's parameters, gradient and accumulators, every array of the tensor's length.
pub struct TensorFeatures<E> {
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Its place in the flat buffer.
    pub range: Range<usize>,
    /// Gradient.
    pub grad: Var<E>,
    /// Parameters.
    pub param: Var<E>,
    /// Momenta, one per decay.
    pub momenta: Vec<Var<E>>,
    /// RMS averages, one per decay.
    pub rms: Vec<Var<E>>,
    /// `(rms + ε)^-½`, one per decay.
    pub rsqrt: Vec<Var<E>>,
    /// Gradient over the root of the factored second moment, one per decay.
    pub factored_grad: Vec<Var<E>>,
    /// Row means, one per decay.
    pub row: Vec<Var<E>>,
    /// Column means, one per decay.
    pub col: Vec<Var<E>>,
    /// Momenta over the root of the factored second moments.
    pub factored_momenta: Vec<Var<E>>,
}

/// Names and lengths of the slots for `[momentum, rms, factored]` numbers of decays.
pub fn slots(layout: &Layout, decays: [usize; 3]) -> Vec<(&'static str, usize)> {
    let n = layout.len();
    let lens = layout.entries().iter().filter(|e| e.numel() > 0).map(|e| Factored::new(&e.shape).lens());
    let [row, col] = lens.fold([0, 0], |[r, c], [row, col]| [r + row, c + col]);
    let [momentum, rms, factored] = decays;
    vec![("momentum", momentum * n), ("rms", rms * n), ("row", factored * row), ("col", factored * col)]
}

impl<E: Float> Adafac<E> {
    /// Updates the four slots `slots` with a gradient; the tensors' features and the next slots.
    pub fn update(
        &self,
        now: &StepVars<E>,
        slots: &[Var<E>],
        grad: &Var<E>,
    ) -> (Vec<TensorFeatures<E>>, Vec<Var<E>>) {
        let clipped: Vec<Var<E>> = self.rms.iter().map(|r| r.clip(0.0, 1.0)).collect();
        let momentum = averages::update(&slots[0], grad, &self.momentum);
        let rms = averages::update(&slots[1], &grad.square(), &clipped);
        let (mut rows, mut cols) = (Vec::new(), Vec::new());
        let mut starts = [0, 0];
        let mut tensors = Vec::new();
        for (shape, range) in now.tensors() {
            let factored = Factored::new(shape);
            let lens = factored.lens();
            let grad = grad.slice(range.clone());
            let mut features = Vec::new();
            for rate in &self.factored {
                let old = [0, 1].map(|i| slots[2 + i].slice(starts[i]..starts[i] + lens[i]));
                starts = [starts[0] + lens[0], starts[1] + lens[1]];
                let [row, col] = factored.update(&old[0], &old[1], &grad, rate);
                features.push(factored.features(&row, &col));
                rows.push(row);
                cols.push(col);
            }
            let param = now.params.slice(range.clone());
            let momenta = tensor_rows(&momentum, self.momentum.len(), &range);
            let rms = tensor_rows(&rms, self.rms.len(), &range);
            let rsqrt = rms.iter().map(|v| v.shift(self.rms_epsilon).rsqrt()).collect();
            let factor = |f: &FactoredFeatures<E>| match factored.is_factored() {
                true => f.factor.clone(),
                false => f.row.shift(self.vector_epsilon).rsqrt(),
            };
            let pairs = momenta.iter().enumerate().map(|(i, m)| (m, paired(&features, i)));
            tensors.push(TensorFeatures {
                shape: shape.to_vec(),
                factored_grad: features.iter().map(|f| &grad * &f.factor).collect(),
                factored_momenta: pairs.map(|(m, f)| m * factor(f)).collect(),
                row: features.iter().map(|f| f.row.clone()).collect(),
                col: features.iter().map(|f| f.col.clone()).collect(),
                range,
                grad,
                param,
                momenta,
                rms,
                rsqrt,
            });
        }
        (tensors, vec![momentum, rms, Var::concat(&rows), Var::concat(&cols)])
    }
}

/// One tensor's part of each decay in a slot `[decays, n]`.
pub fn tensor_rows<E: Float>(slot: &Var<E>, decays: usize, range: &Range<usize>) -> Vec<Var<E>> {
    let n = slot.len() / decays.max(1);
    (0..decays).map(|k| slot.slice(k * n + range.start..k * n + range.end)).collect()
}

/// Element `i`, or the last one where there are fewer: one RMS decay serves all momenta.
fn paired<T>(items: &[T], i: usize) -> &T {
    &items[i.min(items.len() - 1)]
}

impl<E: Float> TensorFeatures<E> {
    /// Momenta over the root of the RMS averages, one per momentum.
    pub fn adam(&self) -> Vec<Var<E>> {
        self.momenta.iter().enumerate().map(|(i, m)| m * paired(&self.rsqrt, i)).collect()
    }

    /// `(mean + 1e-8)^-½` of row or column means.
    pub fn factor_rsqrt(means: &[Var<E>]) -> Vec<Var<E>> {
        means.iter().map(|v| v.shift(FACTOR_EPSILON).rsqrt()).collect()
    }

    /// The features of small_fc_lopt before normalization, in its order: gradient, parameter, momenta,
    /// rms, momenta·rsqrt, rsqrt, factored gradients, rows, columns, their reciprocal roots, factored
    /// momenta.
    pub fn columns(&self) -> Vec<Var<E>> {
        let mut all = vec![self.grad.clone(), self.param.clone()];
        for group in [&self.momenta, &self.rms, &self.adam(), &self.rsqrt, &self.factored_grad] {
            all.extend_from_slice(group);
        }
        let roots = [Self::factor_rsqrt(&self.row), Self::factor_rsqrt(&self.col)];
        for group in [&self.row, &self.col, &roots[0], &roots[1], &self.factored_momenta] {
            all.extend_from_slice(group);
        }
        all
    }

    /// The features of VeLO before normalization, in its order: those of [`Self::columns`], with the
    /// clipped gradient after the gradient and gradient·rsqrt after the factored gradients.
    pub fn velo_columns(&self) -> Vec<Var<E>> {
        let mut all = self.columns();
        let scaled = self.rsqrt.iter().map(|r| &self.grad * r);
        let at = all.len() - self.factored_momenta.len() - 2 * (self.row.len() + self.col.len());
        all.splice(at..at, scaled);
        all.insert(1, self.grad.clip(-0.1, 0.1));
        all
    }

    /// [`Self::columns`] normalized, then `extra` repeated for every parameter: `[features, n]`.
    pub fn normalized_with(&self, extra: &[f64]) -> Var<E> {
        let n = self.param.len();
        let mut rows: Vec<Var<E>> = self.columns().iter().map(normalize::second_moment).collect();
        rows.extend(extra.iter().map(|t| Var::constant(vec![E::of(*t); n])));
        Var::concat(&rows)
    }
}

/// Sizes of the groups that [`TensorFeatures::velo_columns`] consists of.
pub fn velo_groups([momentum, rms, factored]: [usize; 3]) -> [usize; 14] {
    let [m, r, f] = [momentum, rms, factored];
    [1, 1, 1, m, r, m, r, f, r, f, f, f, f, m]
}

/// Number of [`TensorFeatures::columns`] for `[momentum, rms, factored]` numbers of decays.
pub fn column_count([momentum, rms, factored]: [usize; 3]) -> usize {
    2 + 3 * momentum + 2 * rms + 5 * factored
}
