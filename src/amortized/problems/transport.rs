//! Optimal transport between images: a model predicts a dual potential, Sinkhorn's iteration finishes (Meta OT).
//!
//! Histograms `a`, `b` `[D]` on a grid of pixels, cost `C` the squared distance of pixels in the unit square, entropic
//! regularization ε. The solution is the potential `f` of `a`; that of `b` follows from it,
//! `g_j(f) = −ε ln Σᵢ aᵢ exp((fᵢ − C_ij)/ε)`, and the objective is the negative dual, `−⟨f, a⟩ − ⟨g(f), b⟩`: convex, with
//! the row marginals' error as gradient. Potentials are defined up to a constant. Pixels get a little mass everywhere
//! ([`DigitTransport::FLOOR`]), so that all potentials are finite.
//!
//! References: Amos, Cohen, Luise, Redko 2022, *Meta Optimal Transport*, arXiv:2206.05262; Cuturi 2013, arXiv:1306.0895.

use crate::matrix::{dot, Matrix};
use crate::problem::{Optimum, Own, Problem, Query, Rows};
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, Mode, Tensor};
use outerloop_core::{BatchKey, Error, Key, Result, Split};
use outerloop_tasks::data::ImageData;
use std::sync::Arc;

/// Pairs of images as histograms.
///
/// Context: `[a, b]`; the model sees `D` times that, so that features are about 1. Training pairs come from the first
/// `train` images, those of other splits from the others.
#[derive(Clone, Debug)]
pub struct DigitTransport {
    /// `[images][D]`, each of sum 1.
    histograms: Arc<Vec<Vec<f64>>>,
    train: usize,
    cost: Arc<Matrix>,
    /// Regularization ε; 0.02 by [`Self::new`].
    pub epsilon: f64,
}

/// One state of Sinkhorn's iteration.
#[derive(Clone, Debug)]
pub struct Sinkhorn {
    /// The potential of `a`, `[D]`.
    pub f: Vec<f64>,
    /// `Σᵢ |Σⱼ plan − aᵢ|` of `f` and its `g`, before each iteration and after the last.
    pub errors: Vec<f64>,
}

impl Sinkhorn {
    /// Iterations until the marginals' error was at most `tolerance`; none if never.
    pub fn iterations_to(&self, tolerance: f64) -> Option<usize> {
        self.errors.iter().position(|e| *e <= tolerance)
    }
}

impl DigitTransport {
    /// The mass that all pixels of an image share evenly.
    pub const FLOOR: f64 = 1e-2;

    /// The pairs of a data set of grey images.
    ///
    /// # Errors
    /// If there is no image beside those for training, or one of them.
    pub fn new(images: &ImageData, train: usize) -> Result<Self> {
        let n = images.len();
        if train == 0 || train >= n {
            let why = format!("must be from 1 to {} of {n} images, got {train}", n.saturating_sub(1));
            return Err(Error::invalid("transport: number of images for training", why));
        }
        let d = images.features();
        let histogram = |i: usize| -> Vec<f64> {
            let image: Vec<f64> = images.image(i).iter().map(|p| f64::from(*p).max(0.0)).collect();
            let mass = image.iter().sum::<f64>().max(1e-12);
            image.iter().map(|p| (1.0 - Self::FLOOR) * p / mass + Self::FLOOR / d as f64).collect()
        };
        let place = |i: usize| {
            let [y, x] = [i / images.channels / images.width, i / images.channels % images.width];
            let unit = |k: usize, n: usize| k as f64 / (n.max(2) - 1) as f64;
            [unit(y, images.height), unit(x, images.width)]
        };
        let cost = |i: usize, j: usize| {
            let ([a, b], [c, e]) = (place(i), place(j));
            (a - c).powi(2) + (b - e).powi(2)
        };
        let cost = (0..d).flat_map(|i| (0..d).map(move |j| cost(i, j))).collect();
        Ok(DigitTransport {
            histograms: Arc::new((0..n).map(histogram).collect()),
            train,
            cost: Arc::new(Matrix::new(d, d, cost)),
            epsilon: 0.02,
        })
    }

    /// `−ε ln Σᵢ wᵢ exp((fᵢ − C_ij)/ε)` for every j: the potential that fits to `f`.
    fn other(&self, f: &[f64], w: &[f64]) -> Vec<f64> {
        let d = f.len();
        let one = |j: usize| {
            // The cost is symmetric: its rows are its columns.
            let row = &self.cost.data[j * d..][..d];
            let most = f.iter().zip(row).fold(f64::NEG_INFINITY, |m, (f, c)| m.max(f - c));
            let sum: f64 =
                f.iter().zip(row).zip(w).map(|((f, c), w)| w * ((f - c - most) / self.epsilon).exp()).sum();
            -most - self.epsilon * sum.ln()
        };
        (0..d).map(one).collect()
    }

    /// Sinkhorn's iteration in the log domain from a potential `f`, until the marginals' error is at most `tolerance`, or
    /// for `most` iterations. One iteration is `g ← g(f)`, `f ← f(g)`.
    pub fn sinkhorn(&self, context: &[f64], f: &[f64], tolerance: f64, most: usize) -> Sinkhorn {
        let (a, b) = context.split_at(self.dim());
        let mut state = Sinkhorn { f: f.to_vec(), errors: Vec::new() };
        for t in 0..=most {
            let g = self.other(&state.f, a);
            let next = self.other(&g, b);
            // The plan's row i has mass aᵢ exp((fᵢ − nextᵢ)/ε).
            let off = |((a, f), n): ((&f64, &f64), &f64)| a * (((f - n) / self.epsilon).exp() - 1.0).abs();
            state.errors.push(a.iter().zip(&state.f).zip(&next).map(off).sum());
            if t == most || state.errors[t] <= tolerance {
                break;
            }
            state.f = next;
        }
        state
    }

    /// `⟨f, a⟩ + ⟨g(f), b⟩`.
    pub fn dual(&self, context: &[f64], f: &[f64]) -> f64 {
        let (a, b) = context.split_at(self.dim());
        dot(f, a) + dot(&self.other(f, a), b)
    }
}

impl Problem for DigitTransport {
    fn name(&self) -> String {
        "transport".into()
    }
    fn dim(&self) -> usize {
        self.cost.rows
    }
    fn context_dim(&self) -> usize {
        2 * self.cost.rows
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        self.contexts(BatchKey::train(0, key), out);
    }
    fn contexts(&self, at: BatchKey, out: &mut [f64]) {
        let d = self.dim();
        let part = match at.split {
            Split::Train => &self.histograms[..self.train],
            _ => &self.histograms[self.train..],
        };
        for (i, side) in out.chunks_mut(d).enumerate() {
            let pick = at.noise().fold_in(i as u64).bits() as usize % part.len();
            side.copy_from_slice(&part[pick]);
        }
    }
    fn features<E: Float, B: Backend<E>>(&self, x: &Rows<E, B>) -> Rows<E, B> {
        ops::scale(x.clone(), self.dim() as f64)
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let (d, eps) = (self.dim(), self.epsilon);
        let kernel = self.cost.data.iter().map(|c| E::of((-c / eps).exp())).collect();
        let kernel: Rows<E, B> = at.x.device().tensor_from_vec(kernel, (d, d));
        let (a, b) = (ops::columns(at.x.clone(), 0, d), ops::columns(at.x.clone(), d, d));
        // Relative to the largest potential of the row, so that exponentials stay in range; every pixel's own mass keeps
        // the sums positive.
        let z = ops::transpose(ops::scale(y.clone(), 1.0 / eps)); // [D, N]
        let most = ops::stop_gradient(ops::max_axis1(ops::transpose(z.clone()))); // [N]
        let scaled = ops::exp(ops::transpose(ops::sub(z, &most)));
        let sums = ops::ln(ops::shift(ops::matmul(ops::mul(scaled, &a), &kernel), 1e-36)); // [N, D]
                                                                                           // −⟨g, b⟩ = ε (⟨ln sums, b⟩ + most), since b has mass 1
        let by_g = ops::add(ops::sum_axis1(ops::mul(sums, &b)), &most);
        ops::sub(ops::scale(by_g, eps), &ops::sum_axis1(ops::mul(y, &a)))
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        let f = self.sinkhorn(context, &vec![0.0; self.dim()], 1e-9, 20_000).f;
        Some(Optimum { value: -self.dual(context, &f), y: f })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ContextTask;
    use outerloop_core::{FlatTask, Typed};
    use outerloop_tasks::data::digits;

    #[test]
    fn the_dual_is_largest_at_sinkhorns_fixed_point_and_its_gradient_is_the_marginals_error() {
        let problem =
            DigitTransport { epsilon: 0.1, ..DigitTransport::new(&digits(), 1500).expect("enough images") };
        let mut x = vec![0.0; 128];
        problem.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1) }, &mut x);
        let best = problem.optimum(&x).expect("always");
        let task =
            ContextTask { problem: problem.clone(), contexts: x.clone(), own: Vec::new(), start: Vec::new() };
        assert!((task.values(&best.y, Key::new(0))[0] - best.value).abs() < 1e-9);
        // Away from it the value is larger, and |gradient|₁ is what Sinkhorn reports.
        let mut f = best.y.clone();
        f.iter_mut().enumerate().for_each(|(i, f)| *f += 0.02 * (i as f64).sin());
        let flat: Box<dyn FlatTask<f64>> = Box::new(Typed::new(task));
        let mut grad = vec![0.0; 64];
        let value = flat.evaluator().loss_and_grad(&f, &mut [], BatchKey::train(0, Key::new(0)), &mut grad);
        let error = problem.sinkhorn(&x, &f, 0.0, 0).errors[0];
        let norm: f64 = grad.iter().map(|g| g.abs()).sum();
        assert!(value > best.value + 1e-4 && (norm - error).abs() < 1e-9, "{norm}, not {error}");
        let finished = problem.sinkhorn(&x, &f, 1e-6, 5000);
        assert!(finished.iterations_to(1e-6).is_some() && finished.errors[1] < finished.errors[0]);
        assert!(DigitTransport::new(&digits(), 0).is_err());
    }
}
