//! Perturbed optimizers: the mean of a discrete solver under noise, with a derivative.
//!
//! `ȳ(θ) = E y(θ + σ Z)` is smooth where `y` (an argmax, a ranking, a shortest path) is piecewise constant. Forward is
//! a mean over keyed noise; backward is the score-function estimate with the same noise,
//! `J = 1/(n σ) Σ y(θ + σ Z) ν(Z)ᵀ` with `ν = −∇ ln density`. The mean is unbiased, and so is `J` for every
//! [`Variance`]; its variance is of order `1/(n σ²)`.
//!
//! The Fenchel-Young loss `F(θ) − ⟨θ, y⟩`, `F(θ) = E⟨θ + σZ, y*(θ + σZ)⟩`, is convex, its gradient `ȳ(θ) − y` needs no
//! Jacobian: prefer it where targets are known. Value and gradient here belong together (in some libraries the value
//! shown is another one).
//!
//! Reference: Berthet et al. 2020, arXiv:2002.08676; multiplicative noise: Dalle et al. 2022, arXiv:2207.13513.

pub mod oracle;

use crate::problem::Rows;
use outerloop_core::ops::{apply, handle, Primal, RawOp, Tangent};
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Rank0, Tensor};
use outerloop_core::{Error, Key, Result};
use rand::Rng;
use std::sync::Arc;

/// What is perturbed: maps the `[D]` numbers of a row to a solution of any fixed length.
pub type Oracle = Arc<dyn Fn(&[f64]) -> Vec<f64> + Send + Sync>;

/// The distribution of the noise `Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noise {
    /// Standard normal; `ν = z`.
    #[default]
    Normal,
    /// Gumbel, `−ln(−ln u)`; `ν = 1 − e^{−z}`. Makes the perturbed argmax the softmax of `θ/σ`.
    Gumbel,
}

impl Noise {
    /// Independent numbers of a key.
    pub fn fill(self, key: Key, out: &mut [f64]) {
        match self {
            Noise::Normal => key.fill_normal(out),
            Noise::Gumbel => {
                let mut rng = key.rng();
                // The open interval: 53 bits and a half.
                let mut unit = || ((rng.gen::<u64>() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
                out.iter_mut().for_each(|x| *x = -(-unit().ln()).ln());
            }
        }
    }
    /// `−d ln density/dz`.
    pub fn score(self, z: f64) -> f64 {
        match self {
            Noise::Normal => z,
            Noise::Gumbel => 1.0 - (-z).exp(),
        }
    }
}

/// How noise enters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// `θ + σ Z`
    #[default]
    Additive,
    /// `θ exp(σ Z − σ²/2)`, of normal noise: the mean is θ and signs stay, as costs of paths need. A θ of 0 stays
    /// unperturbed.
    Multiplicative,
}

/// How the variance of the Jacobian is reduced; none of them biases it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variance {
    /// Not at all.
    #[default]
    None,
    /// `y(θ)` is subtracted: one more call of the oracle.
    Baseline,
    /// The mean of the other samples is subtracted; needs two samples.
    LeaveOneOut,
    /// Every draw is used with both signs; of normal noise, needs an even number of samples.
    Antithetic,
}

/// Settings of a perturbed optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perturbed {
    /// Default: standard normal.
    pub noise: Noise,
    /// Scale of the noise, positive. Default 0.1.
    pub sigma: f64,
    /// Calls of the oracle per row, at least 1. Default 1000.
    pub samples: usize,
    /// Default: additive.
    pub kind: Kind,
    /// Default: none.
    pub variance: Variance,
}

impl Default for Perturbed {
    fn default() -> Self {
        let (noise, kind, variance) = (Noise::Normal, Kind::Additive, Variance::None);
        Perturbed { noise, sigma: 0.1, samples: 1000, kind, variance }
    }
}

/// The samples of one row: what the mean and its derivative are made of.
#[derive(Clone, Debug)]
pub struct Draws {
    /// Perturbed inputs, `[S][D]`.
    pub eta: Vec<Vec<f64>>,
    /// The oracle's answers, `[S][O]`.
    pub y: Vec<Vec<f64>>,
    /// The scores `∂ ln density(η)/∂θ`, `[S][D]`, with which an answer counts in the Jacobian.
    score: Vec<Vec<f64>>,
    /// What each answer is reduced by, `[O]`, and the divisor of the sum.
    baseline: Vec<f64>,
    divisor: f64,
}

impl Perturbed {
    /// Errors on numbers out of range, and on combinations that have no meaning.
    pub fn validate(&self) -> Result<()> {
        let refuse = |what: &str, why: String| Err(Error::invalid(format!("perturbed: {what}"), why));
        if !(self.sigma > 0.0 && self.sigma.is_finite()) {
            return refuse("sigma", format!("must be positive and finite, got {}", self.sigma));
        }
        if self.samples == 0 {
            return refuse("samples", "must be at least 1, got 0".into());
        }
        if self.noise != Noise::Normal && self.kind == Kind::Multiplicative {
            return refuse("kind", "multiplicative noise is normal".into());
        }
        match self.variance {
            Variance::LeaveOneOut if self.samples < 2 => {
                refuse("samples", format!("leaving one out needs at least 2, got {}", self.samples))
            }
            Variance::Antithetic if self.noise != Noise::Normal || self.samples % 2 == 1 => {
                let why =
                    format!("pairs need normal noise and an even number of samples, got {}", self.samples);
                refuse("variance", why)
            }
            _ => Ok(()),
        }
    }

    /// The noise of a key, `[S][D]`.
    pub fn noise(&self, dim: usize, key: Key) -> Vec<Vec<f64>> {
        let draw = |s: usize| {
            let mut z = vec![0.0; dim];
            self.noise.fill(key.fold_in(s as u64), &mut z);
            z
        };
        match self.variance {
            Variance::Antithetic => {
                let half: Vec<_> = (0..self.samples / 2).map(draw).collect();
                let minus = half.iter().map(|z| z.iter().map(|z| -z).collect()).collect::<Vec<_>>();
                half.into_iter().chain(minus).collect()
            }
            _ => (0..self.samples).map(draw).collect(),
        }
    }

    /// Asks the oracle at every perturbation of `theta` `[D]` by the noise `z` `[S][D]`.
    pub fn draw(&self, theta: &[f64], z: &[Vec<f64>], oracle: &Oracle) -> Draws {
        let s = self.sigma;
        let perturb = |z: &Vec<f64>| -> Vec<f64> {
            let one = |(t, z): (&f64, &f64)| match self.kind {
                Kind::Additive => t + s * z,
                Kind::Multiplicative => t * (s * z - 0.5 * s * s).exp(),
            };
            theta.iter().zip(z).map(one).collect()
        };
        let score = |z: &Vec<f64>| -> Vec<f64> {
            let one = |(t, z): (&f64, &f64)| match self.kind {
                Kind::Additive => self.noise.score(*z) / s,
                Kind::Multiplicative if *t == 0.0 => 0.0,
                Kind::Multiplicative => z / (s * t),
            };
            theta.iter().zip(z).map(one).collect()
        };
        let eta: Vec<Vec<f64>> = z.iter().map(perturb).collect();
        let y: Vec<Vec<f64>> = eta.iter().map(|e| oracle(e)).collect();
        let n = z.len() as f64;
        let (baseline, divisor) = match self.variance {
            Variance::None | Variance::Antithetic => (vec![0.0; y[0].len()], n),
            Variance::Baseline => (oracle(theta), n),
            // 1/n Σ (yₛ − mean of the others) νₛ = 1/(n − 1) Σ (yₛ − ȳ) νₛ
            Variance::LeaveOneOut => (mean(&y), n - 1.0),
        };
        Draws { score: z.iter().map(score).collect(), eta, y, baseline, divisor }
    }
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let sum = |i: usize| rows.iter().map(|r| r[i]).sum::<f64>();
    (0..rows[0].len()).map(|i| sum(i) / rows.len() as f64).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Draws {
    /// `ȳ`, the perturbed output, `[O]`.
    pub fn mean(&self) -> Vec<f64> {
        mean(&self.y)
    }
    /// `Jᵀ v`, `[D]`, of `v` `[O]`.
    pub fn vjp(&self, v: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.eta[0].len()];
        for (y, score) in self.y.iter().zip(&self.score) {
            let c = (dot(y, v) - dot(&self.baseline, v)) / self.divisor;
            out.iter_mut().zip(score).for_each(|(o, s)| *o += c * s);
        }
        out
    }
    /// `J t`, `[O]`, of `t` `[D]`.
    pub fn jvp(&self, t: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.baseline.len()];
        for (y, score) in self.y.iter().zip(&self.score) {
            let c = dot(score, t) / self.divisor;
            out.iter_mut().zip(y).zip(&self.baseline).for_each(|((o, y), b)| *o += c * (y - b));
        }
        out
    }
    /// `F = E⟨η, y(η)⟩`, the perturbed maximum of `⟨η, y⟩`; the oracle's answers must be as long as its inputs.
    pub fn max(&self) -> f64 {
        self.eta.iter().zip(&self.y).map(|(e, y)| dot(e, y)).sum::<f64>() / self.y.len() as f64
    }
    /// The gradient of [`Self::max`]: `ȳ`, for multiplicative noise weighted by `η/θ`.
    pub fn max_grad(&self, theta: &[f64], kind: Kind) -> Vec<f64> {
        match kind {
            Kind::Additive => self.mean(),
            Kind::Multiplicative => {
                let weighted = |(e, y): (&Vec<f64>, &Vec<f64>)| -> Vec<f64> {
                    let one = |((e, y), t): ((&f64, &f64), &f64)| if *t == 0.0 { *y } else { e / t * y };
                    e.iter().zip(y).zip(theta).map(one).collect()
                };
                mean(&self.eta.iter().zip(&self.y).map(weighted).collect::<Vec<_>>())
            }
        }
    }
}

/// What an operation of this module gives for a row.
enum Gives {
    /// The perturbed output.
    Mean,
    /// The perturbed maximum.
    Max,
}

/// Rows `[N, D]` to rows `[N, O]`, or to `[N]`.
struct Op {
    settings: Perturbed,
    oracle: Oracle,
    key: Key,
    rows: usize,
    gives: Gives,
    draws: Vec<Draws>,
    theta: Vec<Vec<f64>>,
}

impl Op {
    fn back(&self, row: usize, dy: &[f64]) -> Vec<f64> {
        match self.gives {
            Gives::Mean => self.draws[row].vjp(dy),
            Gives::Max => {
                let grad = self.draws[row].max_grad(&self.theta[row], self.settings.kind);
                grad.iter().map(|g| g * dy[0]).collect()
            }
        }
    }
    fn along(&self, row: usize, t: &[f64]) -> Vec<f64> {
        match self.gives {
            Gives::Mean => self.draws[row].jvp(t),
            Gives::Max => vec![dot(&self.draws[row].max_grad(&self.theta[row], self.settings.kind), t)],
        }
    }
}

fn wide<E: Float>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| x.f64()).collect()
}

impl<E: Float> RawOp<E> for Op {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let (d, o) = (x[0].len() / self.rows.max(1), y.len() / self.rows.max(1));
        for (i, (x, y)) in x[0].chunks_exact(d).zip(y.chunks_exact_mut(o)).enumerate() {
            let theta = wide(x);
            let noise = self.settings.noise(d, self.key.fold_in(i as u64));
            let draws = self.settings.draw(&theta, &noise, &self.oracle);
            let value = match self.gives {
                Gives::Mean => draws.mean(),
                Gives::Max => vec![draws.max()],
            };
            y.iter_mut().zip(value).for_each(|(y, v)| *y = E::of(v));
            self.draws.push(draws);
            self.theta.push(theta);
        }
    }
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let (d, o) = (x[0].len() / self.rows.max(1), y.len() / self.rows.max(1));
        for (i, (dx, dy)) in dx.chunks_exact_mut(d).zip(dy.chunks_exact(o)).enumerate() {
            dx.iter_mut().zip(self.back(i, &wide(dy))).for_each(|(dx, b)| *dx += E::of(b));
        }
    }
    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let Some(tx) = tx[0] else { return };
        let (d, o) = (x[0].len() / self.rows.max(1), y.len() / self.rows.max(1));
        for (i, (ty, tx)) in ty.chunks_exact_mut(o).zip(tx.chunks_exact(d)).enumerate() {
            ty.iter_mut().zip(self.along(i, &wide(tx))).for_each(|(t, a)| *t = E::of(a));
        }
    }
    /// With the noise fixed, the answers are constant almost everywhere: the estimate's own change is that of the
    /// output's adjoint, and for the maximum the Jacobian of its gradient.
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        let (Gives::Max, Some(tx), Some(ddx)) = (&self.gives, t.tx[0], &mut ddx[0]) else { return };
        let d = p.x[0].len() / self.rows.max(1);
        for (i, (ddx, tx)) in ddx.chunks_exact_mut(d).zip(tx.chunks_exact(d)).enumerate() {
            let change = self.draws[i].jvp(&wide(tx));
            ddx.iter_mut().zip(change).for_each(|(x, c)| *x += E::of(c) * p.dy[i]);
        }
    }
}

impl Perturbed {
    fn op(&self, rows: usize, oracle: &Oracle, key: Key, gives: Gives) -> Op {
        let (draws, theta) = (Vec::new(), Vec::new());
        Op { settings: *self, oracle: oracle.clone(), key, rows, gives, draws, theta }
    }

    /// The perturbed output of every row of `theta`, `[N, D]` to `[N, O]`, on the tape. Row `i` draws from
    /// `key.fold_in(i)`: the same noise forward and backward, and the same for the same key.
    ///
    /// # Panics
    /// If [`Self::validate`] fails.
    #[track_caller]
    pub fn output<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        theta: Rows<E, B, M>,
        oracle: &Oracle,
        key: Key,
    ) -> Rows<E, B, M> {
        self.validate().unwrap_or_else(|e| panic!("{e}"));
        let (n, d) = *theta.shape();
        let outputs = oracle(&vec![1.0; d]).len();
        apply(self.op(n, oracle, key, Gives::Mean), vec![handle(&theta)], (n, outputs), M::default())
    }

    /// The perturbed maximum `E max_y ⟨η, y⟩` of every row, `[N]`, on the tape; its gradient is the perturbed output.
    ///
    /// # Panics
    /// If [`Self::validate`] fails.
    #[track_caller]
    pub fn max<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        theta: Rows<E, B, M>,
        oracle: &Oracle,
        key: Key,
    ) -> Tensor<(usize,), E, B, M> {
        self.validate().unwrap_or_else(|e| panic!("{e}"));
        let n = theta.shape().0;
        apply(self.op(n, oracle, key, Gives::Max), vec![handle(&theta)], (n,), M::default())
    }

    /// The Fenchel-Young loss against solutions `y` `[N, D]`, averaged over rows: `F(θ) − ⟨θ, y⟩`, without the constant
    /// that depends on `y` alone. Its gradient is `ȳ(θ) − y`, over N: unbiased.
    #[track_caller]
    pub fn fenchel_young<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        theta: Rows<E, B, M>,
        y: &Rows<E, B>,
        oracle: &Oracle,
        key: Key,
    ) -> Tensor<Rank0, E, B, M> {
        use outerloop_core::ops::{mean, mul, sub, sum_axis1};
        let along = sum_axis1(mul(theta.clone(), y));
        mean(sub(self.max(theta, oracle, key), &along))
    }
}

#[cfg(test)]
mod tests;
