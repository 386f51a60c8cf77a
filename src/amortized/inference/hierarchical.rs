//! A variational autoencoder with two levels of latents, as a problem.
//!
//! `z₂ ~ N(0, I)`, `z₁ ~ N(m(z₂), e^{s(z₂)})`, `x ~ p(x|z₁)`. The solution is `λ = (μ₂, ln σ₂², μ₁, ln σ₁²)` of a Gaussian
//! posterior of both levels, the objective the negative bound
//! `KL(q(z₂) ‖ N(0, I)) + E_{q(z₂)} KL(q(z₁) ‖ N(m, e^s)) − E_{q(z₁)} log p(x|z₁)`, both divergences in closed form, the
//! expectations by one reparametrized sample. Unbiased.
//!
//! Any model of the crate infers it: a direct encoder ([`crate::model::Full`]) must know both levels from the data alone, a
//! semi-amortized one ([`crate::model::Semi`]) sees through the gradient what the upper level expects of the lower.
//!
//! Reference: Marino, Yue, Mandt 2018, arXiv:1807.09356, section 4.2.

use super::elbo::split;
use super::vae::Vae;
use crate::net::Mlp;
use crate::problem::{Own, Problem, Query, Rows};
use crate::rows::{divergence, sample};
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Tensor};
use outerloop_core::{BatchKey, Error, Key, Layout, Result};

/// The problem; images, pixels, likelihood and decoder (from `z₁`) are those of a [`Vae`], whose β, free nats and number of
/// samples must be the defaults.
#[derive(Clone, Debug)]
pub struct HierarchicalVae {
    vae: Vae,
    prior: Mlp,
}

impl HierarchicalVae {
    /// With the network `prior` from `z₂` to mean and log-variance of `z₁`.
    ///
    /// # Errors
    /// A prior whose outputs are not two per latent of the decoder; a VAE with other settings than the defaults.
    pub fn new(vae: Vae, prior: Mlp) -> Result<Self> {
        let outputs = prior.widths.last().copied().unwrap_or(0);
        if prior.widths.len() < 2 || outputs != 2 * vae.latent() {
            return Err(Error::mismatch("hierarchical vae: outputs of the prior", 2 * vae.latent(), outputs));
        }
        if (vae.beta, vae.free_nats, vae.samples) != (1.0, 0.0, 1) {
            let got = format!("beta {}, free nats {}, samples {}", vae.beta, vae.free_nats, vae.samples);
            return Err(Error::mismatch("hierarchical vae", "beta 1, no free nats, 1 sample", got));
        }
        Ok(HierarchicalVae { vae, prior })
    }
    /// The images and their decoder.
    pub fn vae(&self) -> &Vae {
        &self.vae
    }
    /// Latents of the upper level.
    fn upper(&self) -> usize {
        self.prior.widths[0]
    }
}

/// `KL(N(μ, e^v) ‖ N(m, e^s))` of every row, `[N]`; λ and prior are `[μ, v]` and `[m, s]`, `[N, 2 Z]`.
pub fn divergence_from<E: Float, B: Backend<E>, M: Mode<E, B>>(
    lambda: &Rows<E, B, M>,
    prior: &Rows<E, B, M>,
) -> Tensor<(usize,), E, B, M> {
    let ([mu, v], [m, s]) = (split(lambda), split(prior));
    let bare = |t: Rows<E, B, M>| outerloop_core::tensor::SplitTape::split_tape(t).0;
    // ½ Σ (s − v − 1 + (e^v + (μ − m)²) e^{−s})
    let off = ops::square(ops::sub(mu, &bare(m)));
    let spread = ops::add(ops::exp(v.clone()), &bare(off));
    let scaled = ops::mul(spread, &bare(ops::exp(ops::neg(s.clone()))));
    let each = ops::add(ops::sub(s, &bare(v)), &bare(scaled));
    ops::scale(ops::sum_axis1(ops::shift(each, -1.0)), 0.5)
}

impl Problem for HierarchicalVae {
    fn name(&self) -> String {
        format!("hierarchical_{}", self.vae.name())
    }
    fn dim(&self) -> usize {
        2 * (self.upper() + self.vae.latent())
    }
    fn context_dim(&self) -> usize {
        self.vae.context_dim()
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        self.vae.context(key, out);
    }
    fn contexts(&self, at: BatchKey, out: &mut [f64]) {
        self.vae.contexts(at, out);
    }
    fn own_layout(&self) -> Layout {
        let mut layout = self.vae.own_layout();
        self.prior.push(&mut layout, "prior/");
        layout
    }
    fn own_init(&self, key: Key, out: &mut [f64]) {
        let (decoder, prior) = out.split_at_mut(self.vae.decoder.len());
        self.vae.decoder.fill(key, decoder);
        self.prior.fill(key.named("prior"), prior);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        own: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let (n, top, low) = (y.shape().0, self.upper(), self.vae.latent());
        let dev = at.x.device().clone();
        let noise = |name: &str, z: usize| dev.normal_like((n, z), at.key.named(name));
        let (upper, lower) = (ops::columns(y.clone(), 0, 2 * top), ops::columns(y, 2 * top, 2 * low));
        let z2 = sample(&upper, &noise("upper", top));
        let prior = self.prior.forward(own.params, own.first + self.vae.decoder.tensors(), z2);
        let z1 = sample(&lower, &noise("lower", low));
        let output = self.vae.decoder.forward(own.params, own.first, z1);
        let fit = self.vae.likelihood.log_density(at.x, output);
        let nats = ops::add(divergence(&upper), &divergence_from(&lower, &prior));
        ops::sub(nats, &fit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ContextTask;
    use outerloop_tasks::data::digits;

    #[test]
    fn the_objective_is_the_negative_bound() {
        let vae = Vae::new(&digits(), 1500, Mlp::new([3, 8, 64])).unwrap();
        assert!(HierarchicalVae::new(vae.clone(), Mlp::new([2, 5])).is_err());
        let doubled = Vae { beta: 2.0, ..vae.clone() };
        assert!(HierarchicalVae::new(doubled, Mlp::new([2, 6])).unwrap_err().to_string().contains("beta 2"));
        let problem = HierarchicalVae::new(vae.clone(), Mlp::new([2, 6])).unwrap();
        let mut own = vec![0.0; problem.own_layout().len()];
        problem.own_init(Key::new(1), &mut own);
        let x = vae.test_set(1)[..64].to_vec();
        let mut y = vec![0.0; 10];
        Key::new(2).fill_normal(&mut y);
        let key = Key::new(3);
        let task = ContextTask { problem, contexts: x.clone(), own: own.clone(), start: Vec::new() };
        // By hand: y = [μ₂, v₂, μ₁, v₁], the prior's map z₂ W + b.
        let (mut e2, mut e1) = ([0.0; 2], [0.0; 3]);
        key.named("upper").fill_normal(&mut e2);
        key.named("lower").fill_normal(&mut e1);
        let z2: Vec<f64> = (0..2).map(|i| y[i] + (0.5f64 * y[2 + i]).exp() * e2[i]).collect();
        let z1: Vec<f64> = (0..3).map(|i| y[4 + i] + (0.5f64 * y[7 + i]).exp() * e1[i]).collect();
        let (decoder, prior) = own.split_at(vae.decoder.len());
        let map = |j: usize| prior[12 + j] + (0..2).map(|i| z2[i] * prior[i * 6 + j]).sum::<f64>();
        let mut value = (0..2).map(|i| 0.5 * (y[i].powi(2) + y[2 + i].exp() - 1.0 - y[2 + i])).sum::<f64>();
        for i in 0..3 {
            let (m, s, v) = (map(i), map(3 + i), y[7 + i]);
            value += 0.5 * (s - v - 1.0 + (v.exp() + (y[4 + i] - m).powi(2)) * (-s).exp());
        }
        let hidden: Vec<f64> = (0..8)
            .map(|j| (decoder[24 + j] + (0..3).map(|i| z1[i] * decoder[i * 8 + j]).sum::<f64>()).max(0.0))
            .collect();
        for (p, x) in x.iter().enumerate() {
            let o = decoder[32 + 512 + p] + (0..8).map(|j| hidden[j] * decoder[32 + j * 64 + p]).sum::<f64>();
            value -= x * o - o.exp().ln_1p();
        }
        let got = task.values(&y, key)[0];
        assert!((got - value).abs() < 1e-9, "{got} {value}");
    }
}
