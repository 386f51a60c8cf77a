//! Amortized filtering: one step of inference in a linear-Gaussian model as a problem.
//!
//! The context is the prediction of the past and an observation, the solution a diagonal posterior `[μ, ln σ²]`, the
//! objective the negative filtering bound of the step, `KL(q ‖ prediction) − E_q log p(x|z)`, in closed form. The best
//! diagonal posterior is known ([`mean_field`]). A model of this problem, used again and again with its own posterior
//! carried on, is an amortized filter.
//!
//! Reference: Marino, Cvitkovic, Yue 2018, arXiv:1811.05090.

use super::kalman::{diagonal, mean_field, Gaussian, LinearGaussian};
use crate::matrix::Matrix;
use crate::problem::{Optimum, Own, Problem, Query, Rows};
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Tensor};
use outerloop_core::Key;
use std::f64::consts::PI;

/// A step of filtering.
///
/// Context: the prediction's mean `[n]`, precision `[n, n]` and log determinant of the covariance, the observation
/// `[m]`; drawn from sequences of the model at random times, with the exact filter's predictions.
#[derive(Clone, Debug)]
pub struct FilterStep {
    /// The model.
    pub model: LinearGaussian,
    /// Longest sequence that contexts are drawn from; default 20.
    pub steps: usize,
}

impl FilterStep {
    /// The context of a prediction and an observation.
    pub fn context_of(&self, predicted: &Gaussian, x: &[f64]) -> Vec<f64> {
        let precision = predicted.cov.inverse();
        let mut out = predicted.mean.clone();
        out.extend(precision.data);
        out.push(predicted.cov.log_det());
        out.extend(x);
        out
    }
    /// The prediction and the observation of a context.
    pub fn parts(&self, context: &[f64]) -> (Gaussian, Vec<f64>) {
        let n = self.model.a.rows;
        let cov = Matrix::new(n, n, context[n..n + n * n].to_vec()).inverse();
        (Gaussian { mean: context[..n].to_vec(), cov }, context[n + n * n + 1..].to_vec())
    }
    /// Filters observations with posteriors that `infer` gives for contexts, each carried on to the next prediction.
    /// Returns posteriors and bounds.
    pub fn run(&self, xs: &[Vec<f64>], mut infer: impl FnMut(&[f64]) -> Vec<f64>) -> Vec<(Gaussian, f64)> {
        let n = self.model.a.rows;
        let mut out: Vec<(Gaussian, f64)> = Vec::with_capacity(xs.len());
        for x in xs {
            let predicted = match out.last() {
                None => Gaussian { mean: self.model.m0.clone(), cov: self.model.p0.clone() },
                Some((q, _)) => Gaussian {
                    mean: self.model.a.apply(&q.mean),
                    cov: q.cov.congruent(&self.model.a).plus(1.0, &self.model.q),
                },
            };
            let lambda = infer(&self.context_of(&predicted, x));
            let q = diagonal(&lambda[..n], &lambda[n..]);
            let bound = self.model.marginal_bound(x, &q, &predicted).value;
            out.push((q, bound));
        }
        out
    }
}

impl Problem for FilterStep {
    fn name(&self) -> String {
        format!("filter{}", self.model.a.rows)
    }
    fn dim(&self) -> usize {
        2 * self.model.a.rows
    }
    fn context_dim(&self) -> usize {
        let n = self.model.a.rows;
        n + n * n + 1 + self.model.c.rows
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        let t = 1 + key.named("time").bits() as usize % self.steps.max(1);
        let (_, xs) = self.model.simulate(t, key.named("sequence"));
        let steps = self.model.filter(&xs);
        out.copy_from_slice(&self.context_of(&steps[t - 1].predicted, &xs[t - 1]));
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let (rows, n, m) = (y.shape().0, self.model.a.rows, self.model.c.rows);
        let dev = at.x.device().clone();
        let matrix = |a: &Matrix| -> Rows<E, B> {
            dev.filled((a.rows, a.cols), |o| o.iter_mut().zip(&a.data).for_each(|(o, a)| *o = E::of(*a)))
        };
        let (mu, v) = (ops::columns(y.clone(), 0, n), ops::columns(y, n, n));
        let precision = ops::columns(at.x.clone(), n, n * n);
        let diagonal: Vec<u32> = (0..rows * n).map(|i| (i / n * n * n + i % n * (n + 1)) as u32).collect();
        let diagonal = ops::embedding(ops::reshape(precision.clone(), (rows * n * n, 1)), &diagonal);
        let diagonal = ops::reshape(diagonal, (rows, n));
        let log_det = ops::reshape(ops::columns(at.x.clone(), n + n * n, 1), (rows,));
        // E log p(x|z) = −½ (eᵀ R⁻¹ e + ln |R| + m ln 2π + Σ (Cᵀ R⁻¹ C)ᵢᵢ σᵢ²),  e = x − C μ
        let r_inv = self.model.r.inverse();
        let seen = ops::columns(at.x.clone(), n + n * n + 1, m);
        let e = ops::sub(ops::matmul(mu.clone(), &matrix(&self.model.c.t())), &seen);
        let fit = ops::sum_axis1(ops::mul(ops::matmul(e.clone(), &matrix(&r_inv)), &e));
        let data = r_inv.congruent(&self.model.c.t());
        let data: Vec<f64> = (0..n).map(|i| data.at(i, i)).collect();
        // KL = ½ (Σ Λᵢᵢ σᵢ² + (μ − m)ᵀ Λ (μ − m) − n + ln |P| − Σ vᵢ)
        let weight = ops::add(diagonal, &ops::reshape(matrix(&Matrix::column(&data)), (n,)));
        let spread = ops::sum_axis1(ops::sub(ops::mul(ops::exp(v.clone()), &weight), &v));
        let off = ops::reshape(ops::sub(mu, &ops::columns(at.x.clone(), 0, n)), (rows, 1usize, n));
        let lifted = ops::batch_matmul(off.clone(), &ops::reshape(precision, (rows, n, n)));
        let apart = ops::sum_axis1(ops::reshape(ops::mul(lifted, &off), (rows, n)));
        let constant = self.model.r.log_det() + m as f64 * (2.0 * PI).ln() - n as f64;
        let sum = ops::add(ops::add(fit, &spread), &ops::add(apart, &log_det));
        ops::scale(ops::shift(sum, constant), 0.5)
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        let (predicted, x) = self.parts(context);
        let precision = predicted.cov.inverse();
        let data = self.model.c.t().mul(&self.model.r.inverse());
        let cov = precision.plus(1.0, &data.mul(&self.model.c)).inverse();
        let pull: Vec<f64> =
            precision.apply(&predicted.mean).iter().zip(data.apply(&x)).map(|(a, b)| a + b).collect();
        let q = mean_field(&Gaussian { mean: cov.apply(&pull), cov });
        let value = -self.model.marginal_bound(&x, &q, &predicted).value;
        let logs = (0..q.mean.len()).map(|i| q.cov.at(i, i).ln());
        Some(Optimum { y: q.mean.iter().copied().chain(logs).collect(), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ContextTask;

    #[test]
    fn the_objective_is_the_negative_bound() {
        let model = LinearGaussian {
            a: Matrix::new(2, 2, vec![0.8, 0.3, -0.2, 0.9]),
            c: Matrix::new(3, 2, vec![1.0, -0.5, 0.2, 0.7, 0.0, 1.0]),
            q: Matrix::new(2, 2, vec![0.3, 0.1, 0.1, 0.2]),
            r: Matrix::diagonal(&[0.4, 0.3, 0.6]),
            m0: vec![0.2, -0.1],
            p0: Matrix::diagonal(&[0.5, 0.7]),
        };
        let problem = FilterStep { model, steps: 5 };
        let mut x = vec![0.0; problem.context_dim()];
        problem.context(Key::new(3), &mut x);
        let (predicted, seen) = problem.parts(&x);
        let task =
            ContextTask { problem: problem.clone(), contexts: x.clone(), own: Vec::new(), start: Vec::new() };
        let y = [0.3, -0.8, -1.0, 0.4];
        let bound = problem.model.marginal_bound(&seen, &diagonal(&y[..2], &y[2..]), &predicted).value;
        assert!((task.values(&y, Key::new(0))[0] + bound).abs() < 1e-10);
        let best = problem.optimum(&x).expect("it is known");
        assert!((task.values(&best.y, Key::new(0))[0] - best.value).abs() < 1e-10);
        for i in 0..4 {
            for h in [-1e-3, 1e-3] {
                let mut y = best.y.clone();
                y[i] += h;
                assert!(task.values(&y, Key::new(0))[0] > best.value);
            }
        }
    }
}
