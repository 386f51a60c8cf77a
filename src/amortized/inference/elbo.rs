//! The evidence lower bound of a Gaussian posterior, row by row.
//!
//! `ELBO = E log p(x|z) − KL(N(μ, σ²) ‖ N(0, I))`, the expectation by `S` reparametrized samples
//! `z = μ + σ ε`; the divergence in closed form, `½ Σ (μ² + σ² − 1 − ln σ²)`. Unbiased; its variance is that of the
//! samples. With fixed noise it is a smooth function that an optimizer can overfit: the optimum overstates the
//! expected bound.

use crate::problem::Rows;
use crate::rows;
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Rank0, Tensor};
use std::f64::consts::PI;

/// The density of data given a decoder's outputs, `[N, P]` each where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Likelihood {
    /// Bernoulli from logits `o`, also of grey values: `x o − softplus(o)`. Finite for every finite logit.
    #[default]
    Bernoulli,
    /// Bernoulli from probabilities with a floor, `x ln(p + c) + (1 − x) ln(1 − p + c)`, as some programs have it. For
    /// parity only: the floor matters as soon as `p` saturates.
    BernoulliFloor(f64),
    /// Gaussian of this log-variance: `−½ (ln 2π + v + (x − o)² e^{−v})`.
    Gaussian(f64),
    /// Gaussian of which the outputs are mean and log-variance `[o, v]`, `[N, 2 P]`, `v` clamped to ±[`CLAMP`]: the noise is
    /// learned, as a function of the state, or as one number or one per pixel by
    /// [`Decoder::Noisy`](super::decoder::Decoder::Noisy). Its density has no upper bound but by the clamp: constant data
    /// drives `v` there.
    LearnedGaussian,
    /// Logistic of this log-scale, integrated over the bin of 1/255 around the value, the outer bins to infinity: for
    /// bytes scaled to `[0, 1]`.
    DiscretizedLogistic(f64),
}

/// Learned log-variances of data are clamped to this, both ways.
pub const CLAMP: f64 = 10.0;

impl Likelihood {
    /// Numbers that a decoder has to give for data of `P` numbers.
    pub fn outputs(self, dim: usize) -> usize {
        if self == Likelihood::LearnedGaussian {
            2 * dim
        } else {
            dim
        }
    }

    /// What the data is expected to be: probabilities of Bernoulli outputs, the outputs themselves of others.
    pub fn mean<E: Float, B: Backend<E>, M: Mode<E, B>>(self, o: Rows<E, B, M>) -> Rows<E, B, M> {
        match self {
            Likelihood::Bernoulli | Likelihood::BernoulliFloor(_) => ops::sigmoid(o),
            Likelihood::Gaussian(_) | Likelihood::DiscretizedLogistic(_) => o,
            Likelihood::LearnedGaussian => ops::columns(o.clone(), 0, o.shape().1 / 2),
        }
    }

    /// `log p(x|o)` of every row, `[N]`.
    pub fn log_density<E: Float, B: Backend<E>, M: Mode<E, B>>(
        self,
        x: &Rows<E, B>,
        o: Rows<E, B, M>,
    ) -> Tensor<(usize,), E, B, M> {
        let each = match self {
            Likelihood::Bernoulli => return rows::bernoulli(o, x),
            Likelihood::BernoulliFloor(c) => {
                let p = ops::sigmoid(o);
                let white = ops::mul(ops::ln(ops::shift(p.clone(), c)), x);
                let black = ops::ln(ops::affine(p, -1.0, 1.0 + c));
                ops::add(white, &ops::mul(black, &ops::affine(x.clone(), -1.0, 1.0)))
            }
            Likelihood::Gaussian(v) => {
                ops::affine(ops::square(ops::sub(o, x)), -0.5 * (-v).exp(), -0.5 * ((2.0 * PI).ln() + v))
            }
            Likelihood::LearnedGaussian => {
                let [o, v] = split(&o);
                let v = ops::clip(v, -CLAMP, CLAMP);
                let fit = ops::mul(ops::square(ops::sub(o, x)), &ops::exp(ops::neg(v.clone())));
                ops::scale(ops::shift(ops::add(fit, &v), (2.0 * PI).ln()), -0.5)
            }
            Likelihood::DiscretizedLogistic(log_scale) => discretized_logistic(x, o, log_scale),
        };
        ops::sum_axis1(each)
    }
}

/// The Gaussian's log density where the log-variance is a parameter: one number for all, or one per column.
pub fn gaussian_log_density<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: &Rows<E, B>,
    o: Rows<E, B, M>,
    log_variance: &Tensor<(usize,), E, B>,
) -> Tensor<(usize,), E, B, M> {
    // The parameter as a matrix, so that its sum over rows is taken by the tape.
    let zeros = ops::scale(o.clone(), 0.0);
    let lifted = match log_variance.shape().0 {
        1 => ops::add(zeros, &ops::reshape(log_variance.clone(), ())),
        _ => ops::add(zeros, log_variance),
    }; // [N, P]
    let fit = ops::mul(ops::square(ops::sub(o, x)), &ops::exp(ops::neg(lifted.clone())));
    ops::scale(ops::sum_axis1(ops::shift(ops::add(fit, &lifted), (2.0 * PI).ln())), -0.5)
}

/// `ln (σ((x − o + h)/s) − σ((x − o − h)/s))` with half a bin `h = 1/510`; the outer bins reach to infinity.
fn discretized_logistic<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: &Rows<E, B>,
    o: Rows<E, B, M>,
    log_scale: f64,
) -> Rows<E, B, M> {
    let (half, c) = (1.0 / 510.0, (-log_scale).exp());
    let dev = x.device().clone();
    let of = |f: &dyn Fn(f64) -> f64| -> Rows<E, B> {
        dev.filled(*x.shape(), |out| {
            out.iter_mut().zip(B::host(x).iter()).for_each(|(o, x)| *o = E::of(f(x.f64())));
        })
    };
    let (first, last) =
        (of(&|x| f64::from(u8::from(x < half))), of(&|x| f64::from(u8::from(x > 1.0 - half))));
    let inner = of(&|x| f64::from(u8::from(x >= half && x <= 1.0 - half)));
    let up = ops::scale(ops::add(ops::neg(o.clone()), &ops::shift(x.clone(), half)), c);
    let down = ops::scale(ops::add(ops::neg(o), &ops::shift(x.clone(), -half)), c);
    // ln σ(a) = −softplus(−a);  ln(σ(a) − σ(b)) = −softplus(−a) − softplus(b) + ln(1 − e^{b − a}), b − a constant
    let log_up = ops::neg(ops::softplus(ops::neg(up)));
    let log_not_down = ops::neg(ops::softplus(down));
    let width = (1.0 - (-2.0 * half * c).exp()).ln();
    let between = ops::shift(ops::add(log_up.clone(), &log_not_down), width);
    let ends = ops::add(ops::mul(log_up, &first), &ops::mul(log_not_down, &last));
    ops::add(ops::mul(between, &inner), &ends)
}

/// Twice the divergence of every latent dimension, `[N, Z]`: `μ² + e^v − 1 − v`.
pub fn divergence_per_dim<E: Float, B: Backend<E>, M: Mode<E, B>>(
    mu: Rows<E, B, M>,
    log_variance: Rows<E, B, M>,
) -> Rows<E, B, M> {
    let spread = ops::sub(ops::exp(log_variance.clone()), &log_variance);
    ops::shift(ops::add(ops::square(mu), &spread), -1.0)
}

/// Every row `samples` times, one after the other.
pub fn repeat_rows<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Rows<E, B, M>,
    samples: usize,
) -> Rows<E, B, M> {
    if samples == 1 {
        return x;
    }
    let ids: Vec<u32> = (0..x.shape().0 as u32).flat_map(|i| std::iter::repeat_n(i, samples)).collect();
    ops::embedding(x, &ids)
}

/// `μ` and `ln σ²` of rows `λ` `[N, 2 Z]`.
pub fn split<E: Float, B: Backend<E>, M: Mode<E, B>>(lambda: &Rows<E, B, M>) -> [Rows<E, B, M>; 2] {
    let z = lambda.shape().1 / 2;
    [0, z].map(|at| ops::columns(lambda.clone(), at, z))
}

/// The parts of a bound.
#[derive(Clone, Debug)]
pub struct Elbo<E: Float, B: Backend<E>, M: Mode<E, B>> {
    /// Samples, `[N S, Z]`.
    pub z: Rows<E, B, M>,
    /// The decoder's outputs, `[N S, P]`.
    pub output: Rows<E, B, M>,
    /// `log p(x|z)` of every sample, `[N, S]`.
    pub log_likelihood: Rows<E, B, M>,
    /// `[N]`
    pub divergence: Tensor<(usize,), E, B, M>,
    /// The bound, `[N]`.
    pub value: Tensor<(usize,), E, B, M>,
}

impl<E: Float, B: Backend<E>, M: Mode<E, B>> Elbo<E, B, M> {
    /// The mean over rows.
    pub fn mean(&self) -> Tensor<Rank0, E, B, M> {
        ops::mean(self.value.clone())
    }
}

/// The bound at `λ` `[N, 2 Z]` with noise `eps` `[N S, Z]`: `decode` maps samples to outputs, `log_density` data and
/// outputs to `log p(x|z)`.
pub fn elbo<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: &Rows<E, B>,
    lambda: &Rows<E, B, M>,
    eps: &Rows<E, B>,
    decode: impl FnOnce(Rows<E, B, M>) -> Rows<E, B, M>,
    log_density: impl FnOnce(&Rows<E, B>, Rows<E, B, M>) -> Tensor<(usize,), E, B, M>,
) -> Elbo<E, B, M> {
    let n = lambda.shape().0;
    let samples = eps.shape().0 / n.max(1);
    let z = rows::sample(lambda, eps);
    let output = decode(z.clone());
    let log_likelihood = log_density(&repeat_rows(x.clone(), samples), output.clone());
    let log_likelihood = ops::reshape(log_likelihood, (n, samples));
    let divergence = rows::divergence(lambda);
    let value = ops::sub(ops::mean_axis1(log_likelihood.clone()), &divergence);
    Elbo { z, output, log_likelihood, divergence, value }
}
