//! Linear-Gaussian state space models: exact filter, smoother and likelihood, and the bounds of filtering.
//!
//! `z₀ ~ N(m₀, P₀)` (no transition before the first observation), `z_t = A z_{t−1} + N(0, Q)`, `x_t = C z_t + N(0, R)`.
//!
//! A filtering bound is exact only in its marginal form. With the factorization `q(z_t | x_{≤t}, z_{t−1})` of amortized
//! variational filtering even the best posterior of every step stays below `log p(x)`, because it does not see the
//! future; with `p(z_t | z_{t−1}, x_{t:T})` the bound is the likelihood.
//!
//! References: Särkkä 2013, Bayesian Filtering and Smoothing; Marino, Cvitkovic, Yue 2018, arXiv:1811.05090.

use crate::matrix::{dot, Matrix};
use outerloop_core::{Float, Key};
use std::f64::consts::PI;

/// A model.
#[derive(Clone, Debug)]
pub struct LinearGaussian<E = f64> {
    /// Transition, `[n, n]`.
    pub a: Matrix<E>,
    /// Observation, `[m, n]`.
    pub c: Matrix<E>,
    /// Covariance of the transition, `[n, n]`.
    pub q: Matrix<E>,
    /// Covariance of the observation, `[m, m]`.
    pub r: Matrix<E>,
    /// Mean of the first state, `[n]`.
    pub m0: Vec<E>,
    /// Covariance of the first state, `[n, n]`.
    pub p0: Matrix<E>,
}

/// A mean and a covariance.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian<E = f64> {
    /// `[n]`
    pub mean: Vec<E>,
    /// `[n, n]`
    pub cov: Matrix<E>,
}

/// One step of the filter.
#[derive(Clone, Debug)]
pub struct Filtered<E = f64> {
    /// Before the observation.
    pub predicted: Gaussian<E>,
    /// After it.
    pub filtered: Gaussian<E>,
    /// `C P Cᵀ + R`, `[m, m]`.
    pub innovation: Matrix<E>,
    /// `[n, m]`
    pub gain: Matrix<E>,
    /// `log p(x_t | x_{<t})`, nats.
    pub log_likelihood: E,
}

/// A posterior of a step given the state before it, `N(G z_{t−1} + g, S)`.
#[derive(Clone, Debug)]
pub struct Conditional {
    /// `[n, n]`; not used at the first step.
    pub gain: Matrix,
    /// `[n]`
    pub offset: Vec<f64>,
    /// `[n, n]`
    pub cov: Matrix,
}

fn minus<E: Float>(a: &[E], b: &[E]) -> Vec<E> {
    a.iter().zip(b).map(|(a, b)| *a - *b).collect()
}

fn plus<E: Float>(a: &[E], b: &[E]) -> Vec<E> {
    a.iter().zip(b).map(|(a, b)| *a + *b).collect()
}

/// `log N(x; mean, cov)`
fn log_normal<E: Float>(gap: &[E], cov: &Matrix<E>) -> E {
    let (whitened, log_det) = cov.solve(&Matrix::column(gap));
    let n = E::of(gap.len() as f64 * (2.0 * PI).ln());
    E::of(-0.5) * (dot(gap, &whitened.data) + log_det + n)
}

/// `KL(q ‖ p)`
pub fn divergence<E: Float>(q: &Gaussian<E>, p: &Gaussian<E>) -> E {
    let (ratio, log_p) = p.cov.solve(&q.cov);
    let gap = minus(&q.mean, &p.mean);
    let spread = p.cov.solve(&Matrix::column(&gap)).0.data;
    let n = E::of(gap.len() as f64);
    E::of(0.5) * (ratio.trace() + dot(&gap, &spread) - n + log_p - q.cov.log_det())
}

impl<E: Float> LinearGaussian<E> {
    /// Updates a prediction by an observation, in Joseph's form.
    fn observe(&self, predicted: Gaussian<E>, x: &[E]) -> Filtered<E> {
        let innovation = predicted.cov.congruent(&self.c).plus(1.0, &self.r);
        let gain = innovation.solve(&self.c.mul(&predicted.cov)).0.t();
        let gap = minus(x, &self.c.apply(&predicted.mean));
        let keep = Matrix::identity(self.a.rows).plus(-1.0, &gain.mul(&self.c));
        let cov = predicted.cov.congruent(&keep).plus(1.0, &self.r.congruent(&gain));
        let mean = plus(&predicted.mean, &gain.apply(&gap));
        let log_likelihood = log_normal(&gap, &innovation);
        Filtered { predicted, filtered: Gaussian { mean, cov }, innovation, gain, log_likelihood }
    }

    fn predict(&self, state: &Gaussian<E>) -> Gaussian<E> {
        Gaussian { mean: self.a.apply(&state.mean), cov: state.cov.congruent(&self.a).plus(1.0, &self.q) }
    }

    /// The Kalman filter over observations `[T][m]`.
    pub fn filter(&self, xs: &[Vec<E>]) -> Vec<Filtered<E>> {
        let mut steps: Vec<Filtered<E>> = Vec::with_capacity(xs.len());
        for x in xs {
            let predicted = match steps.last() {
                None => Gaussian { mean: self.m0.clone(), cov: self.p0.clone() },
                Some(before) => self.predict(&before.filtered),
            };
            steps.push(self.observe(predicted, x));
        }
        steps
    }

    /// The Rauch-Tung-Striebel smoother: the states given all observations.
    pub fn smooth(&self, filtered: &[Filtered<E>]) -> Vec<Gaussian<E>> {
        let mut out: Vec<Gaussian<E>> = Vec::with_capacity(filtered.len());
        for t in (0..filtered.len()).rev() {
            let here = &filtered[t].filtered;
            let Some(after) = out.last() else {
                out.push(here.clone());
                continue;
            };
            let predicted = &filtered[t + 1].predicted;
            // J = P Aᵀ P̂⁻¹
            let j = predicted.cov.solve(&self.a.mul(&here.cov)).0.t();
            let mean = plus(&here.mean, &j.apply(&minus(&after.mean, &predicted.mean)));
            let cov = here.cov.plus(1.0, &after.cov.plus(-1.0, &predicted.cov).congruent(&j));
            out.push(Gaussian { mean, cov });
        }
        out.reverse();
        out
    }

    /// `E_q log p(x|z)`.
    fn expected_log_density(&self, x: &[E], q: &Gaussian<E>) -> E {
        let gap = minus(x, &self.c.apply(&q.mean));
        let spread = self.r.solve(&q.cov.congruent(&self.c)).0.trace();
        log_normal(&gap, &self.r) - E::of(0.5) * spread
    }

    /// The marginal filtering bound of a step: `E_q log p(x|z) − KL(q ‖ prediction)`, its two parts, and its gradient by
    /// mean and log-variances of a diagonal `q`.
    pub fn marginal_bound(&self, x: &[E], q: &Gaussian<E>, predicted: &Gaussian<E>) -> MarginalBound<E> {
        let (fit, kl) = (self.expected_log_density(x, q), divergence(q, predicted));
        let gap = minus(x, &self.c.apply(&q.mean));
        let from_data = self.c.t().apply(&self.r.solve(&Matrix::column(&gap)).0.data);
        let off = minus(&q.mean, &predicted.mean);
        let from_prior = predicted.cov.solve(&Matrix::column(&off)).0.data;
        let data_precision = self.c.t().mul(&self.r.solve(&self.c).0);
        let precision = predicted.cov.inverse().plus(1.0, &data_precision);
        let by_spread = |i: usize| E::of(0.5) * (E::of(1.0) - precision.at(i, i) * q.cov.at(i, i));
        MarginalBound {
            expected_log_density: fit,
            divergence: kl,
            value: fit - kl,
            grad_mean: minus(&from_data, &from_prior),
            grad_log_variance: (0..off.len()).map(by_spread).collect(),
        }
    }
}

/// What [`LinearGaussian::marginal_bound`] finds.
#[derive(Clone, Debug)]
pub struct MarginalBound<E = f64> {
    /// `E_q log p(x|z)`
    pub expected_log_density: E,
    /// `KL(q ‖ prediction)`
    pub divergence: E,
    /// Their difference.
    pub value: E,
    /// By the mean, `[n]`.
    pub grad_mean: Vec<E>,
    /// By the log-variances, `[n]`.
    pub grad_log_variance: Vec<E>,
}

/// A diagonal Gaussian.
pub fn diagonal<E: Float>(mean: &[E], log_variance: &[E]) -> Gaussian<E> {
    let variance: Vec<E> = log_variance.iter().map(|v| v.exp()).collect();
    Gaussian { mean: mean.to_vec(), cov: Matrix::diagonal(&variance) }
}

/// The diagonal Gaussian with the least divergence `KL(q ‖ posterior)`: the same mean, and the inverse diagonal of the
/// precision as variances.
pub fn mean_field(posterior: &Gaussian) -> Gaussian {
    let precision = posterior.cov.inverse();
    let variance: Vec<f64> = (0..posterior.mean.len()).map(|i| 1.0 / precision.at(i, i)).collect();
    Gaussian { mean: posterior.mean.clone(), cov: Matrix::diagonal(&variance) }
}

impl LinearGaussian<f64> {
    /// Filtering with the best diagonal posterior of every step, which is carried on: posteriors, bounds and predictive
    /// log densities. The bounds' sum need not bound `log p(x)`.
    pub fn assumed_density(&self, xs: &[Vec<f64>]) -> Vec<(Gaussian, f64, f64)> {
        let mut out: Vec<(Gaussian, f64, f64)> = Vec::with_capacity(xs.len());
        for x in xs {
            let predicted = match out.last() {
                None => Gaussian { mean: self.m0.clone(), cov: self.p0.clone() },
                Some((q, ..)) => self.predict(q),
            };
            let step = self.observe(predicted, x);
            let q = mean_field(&step.filtered);
            let bound = self.marginal_bound(x, &q, &step.predicted).value;
            out.push((q, bound, step.log_likelihood));
        }
        out
    }

    /// The best posterior of every step given the state before: `p(z_t | z_{t−1}, x_t)`.
    pub fn greedy(&self, xs: &[Vec<f64>]) -> Vec<Conditional> {
        let n = self.a.rows;
        let step = |(t, x): (usize, &Vec<f64>)| {
            let cov = if t == 0 { self.p0.clone() } else { self.q.clone() };
            let seen = self.observe(Gaussian { mean: vec![0.0; n], cov }, x);
            let keep = Matrix::identity(n).plus(-1.0, &seen.gain.mul(&self.c));
            if t == 0 {
                let offset = plus(&keep.apply(&self.m0), &seen.gain.apply(x));
                return Conditional { gain: Matrix::zeros(n, n), offset, cov: seen.filtered.cov };
            }
            Conditional { gain: keep.mul(&self.a), offset: seen.gain.apply(x), cov: seen.filtered.cov }
        };
        xs.iter().enumerate().map(step).collect()
    }

    /// `p(z_t | z_{t−1}, x_{t:T})`, by the backward information filter.
    pub fn smoothing(&self, xs: &[Vec<f64>]) -> Vec<Conditional> {
        let n = self.a.rows;
        let (ct_r, q_inv) = (self.r.solve(&self.c).0.t(), self.q.inverse());
        let data = ct_r.mul(&self.c);
        // p(x_{t:T} | z_t) ∝ exp(−½ zᵀ Λ z + ηᵀ z)
        let (mut lambda, mut eta) = (Matrix::zeros(n, n), vec![0.0; n]);
        let mut out = Vec::with_capacity(xs.len());
        for t in (0..xs.len()).rev() {
            lambda = lambda.plus(1.0, &data);
            eta = plus(&eta, &ct_r.apply(&xs[t]));
            let prior = if t == 0 { self.p0.inverse() } else { q_inv.clone() };
            let cov = prior.plus(1.0, &lambda).inverse();
            if t == 0 {
                let offset = cov.apply(&plus(&prior.apply(&self.m0), &eta));
                out.push(Conditional { gain: Matrix::zeros(n, n), offset, cov });
                break;
            }
            let gain = cov.mul(&q_inv).mul(&self.a);
            out.push(Conditional { gain: gain.clone(), offset: cov.apply(&eta), cov: cov.clone() });
            // Back through the transition: Λ ← Aᵀ(Q⁻¹ − Q⁻¹ Σ Q⁻¹) A,  η ← Aᵀ Q⁻¹ Σ η
            eta = gain.t().apply(&eta);
            let kept = q_inv.plus(-1.0, &cov.congruent(&q_inv));
            lambda = kept.congruent(&self.a.t()).symmetric();
        }
        out.reverse();
        out
    }

    /// The terms of the joint bound `Σ E log p(x_t|z_t) − E KL(q(z_t|z_{t−1}) ‖ p(z_t|z_{t−1}))` of posteriors.
    pub fn joint_bound(&self, xs: &[Vec<f64>], q: &[Conditional]) -> Vec<f64> {
        let mut terms = Vec::with_capacity(xs.len());
        let mut marginal: Option<Gaussian> = None;
        for (x, q) in xs.iter().zip(q) {
            let (next, kl) = match &marginal {
                None => {
                    let next = Gaussian { mean: q.offset.clone(), cov: q.cov.clone() };
                    let kl = divergence(&next, &Gaussian { mean: self.m0.clone(), cov: self.p0.clone() });
                    (next, kl)
                }
                Some(before) => {
                    let mean = plus(&q.gain.apply(&before.mean), &q.offset);
                    let cov = before.cov.congruent(&q.gain).plus(1.0, &q.cov);
                    // The means differ by (G − A) z + g: its mean in the divergence, its spread beside it.
                    let off = q.gain.plus(-1.0, &self.a);
                    let gap = plus(&off.apply(&before.mean), &q.offset);
                    let at_mean = Gaussian { mean: gap.clone(), cov: q.cov.clone() };
                    let zero = Gaussian { mean: vec![0.0; gap.len()], cov: self.q.clone() };
                    let spread = self.q.solve(&before.cov.congruent(&off)).0.trace();
                    (Gaussian { mean, cov }, divergence(&at_mean, &zero) + 0.5 * spread)
                }
            };
            terms.push(self.expected_log_density(x, &next) - kl);
            marginal = Some(next);
        }
        terms
    }

    /// States and observations of a key, `[T][n]` and `[T][m]`.
    pub fn simulate(&self, steps: usize, key: Key) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let (lp, lq, lr) = (self.p0.cholesky(), self.q.cholesky(), self.r.cholesky());
        let noise = |l: &Matrix, key: Key| {
            let mut e = vec![0.0; l.rows];
            key.fill_normal(&mut e);
            l.apply(&e)
        };
        let (mut zs, mut xs): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
        for t in 0..steps {
            let [state, seen] = key.fold_in(t as u64).split();
            let z = match zs.last() {
                None => plus(&self.m0, &noise(&lp, state)),
                Some(z) => plus(&self.a.apply(z), &noise(&lq, state)),
            };
            xs.push(plus(&self.c.apply(&z), &noise(&lr, seen)));
            zs.push(z);
        }
        (zs, xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> LinearGaussian {
        LinearGaussian {
            a: Matrix::new(2, 2, vec![0.8, 0.3, -0.2, 0.9]),
            c: Matrix::new(1, 2, vec![1.0, -0.5]),
            q: Matrix::new(2, 2, vec![0.3, 0.1, 0.1, 0.2]),
            r: Matrix::new(1, 1, vec![0.4]),
            m0: vec![0.2, -0.1],
            p0: Matrix::diagonal(&[0.5, 0.7]),
        }
    }

    #[test]
    fn the_likelihood_is_that_of_the_joint_gaussian() {
        let m = model();
        let (_, xs) = m.simulate(4, Key::new(1));
        let total: f64 = m.filter(&xs).iter().map(|s| s.log_likelihood).sum();
        // Mean and covariance of all observations: Cov(x_s, x_t) = C A^{t−s} P_s Cᵀ for s ≤ t, plus R if equal.
        let (mut mean, mut cov) = (m.m0.clone(), m.p0.clone());
        let (mut means, mut all) = (Vec::new(), Matrix::zeros(4, 4));
        for s in 0..4 {
            means.push(m.c.apply(&mean)[0]);
            let mut back = cov.clone();
            for t in s..4 {
                let c = m.c.mul(&back).mul(&m.c.t()).at(0, 0) + if s == t { 0.4 } else { 0.0 };
                (all.data[4 * s + t], all.data[4 * t + s]) = (c, c);
                back = m.a.mul(&back);
            }
            mean = m.a.apply(&mean);
            cov = cov.congruent(&m.a).plus(1.0, &m.q);
        }
        let gap = minus(&xs.concat(), &means);
        assert!((total - log_normal(&gap, &all)).abs() < 1e-12);
    }

    #[test]
    fn bounds_have_their_order() {
        let m = model();
        let (_, xs) = m.simulate(6, Key::new(2));
        let steps = m.filter(&xs);
        let exact: f64 = steps.iter().map(|s| s.log_likelihood).sum();
        let total = |q: &[Conditional]| m.joint_bound(&xs, q).iter().sum::<f64>();
        assert!((total(&m.smoothing(&xs)) - exact).abs() < 1e-11);
        assert!(total(&m.greedy(&xs)) < exact - 1e-3);
        for (s, x) in steps.iter().zip(&xs) {
            let bound = m.marginal_bound(x, &s.filtered, &s.predicted);
            assert!((bound.value - s.log_likelihood).abs() < 1e-12);
        }
    }
}
