//! Iterative inference: λ starts at the prior and is moved by a network that sees how good it is.
//!
//! What the network sees ([`Encoding`]) is the gradient of the bound, or errors: data minus reconstruction, sample minus
//! prior mean. How far gradients flow back ([`Flow`]) has three grades: the published programs differentiate every
//! iteration alone (first order, horizon 1); through λ (first order); through the encoded gradient, too (second order,
//! by [`outerloop_core::ops::gradient`]).
//!
//! Reference: Marino, Yue, Mandt 2018, arXiv:1807.09356.

use super::elbo::{elbo, split, Elbo, Likelihood};
use super::encoding;
use super::update::UpdateNet;
use crate::problem::Rows;
use outerloop_core::ops::{self, stop_gradient, Through};
use outerloop_core::tensor::{
    Backend, DynParams, DynTree, Float, HasShape, Mode, ParamTree, PutTape, Rec, SplitTape, Tensor,
};

/// What the network sees of the state of inference; data minus ½ comes first, the rest in the order given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// `μ, ln σ², ln(|g| + 10⁻⁵), sign g`, with `g` the gradient of the negative bound.
    #[default]
    Gradient,
    /// [`Self::Gradient`] and the number of iterations done, over 10: the step may depend on the time.
    IndexedGradient,
    /// [`Self::Gradient`] and `ln(|g| + 10⁻⁵), sign g` of the iteration before (of 0 at the first): what momentum is made of.
    TwoGradients,
    /// `μ, ln σ², g`, the gradient as it is.
    RawGradient,
    /// `μ, ln σ², g`, all standardized over features.
    NormGradient,
    /// `x − p̄, z̄, μ, ln σ²`: reconstruction and sample averaged over samples.
    Error,
    /// [`Self::Error`], the first divided by the Bernoulli variance `p̄ (1 − p̄)` plus 10⁻⁵ each, which reaches 10⁵ where
    /// `p̄` saturates.
    VarianceError,
    /// [`Self::Error`] and `ln(|g| + 10⁻⁵), sign g`.
    ErrorAndGradient,
}

impl Encoding {
    /// Length of the encoding of data of `P` and latents of `Z` numbers.
    pub fn len(self, data: usize, latent: usize) -> usize {
        match self {
            Encoding::Gradient => data + 6 * latent,
            Encoding::IndexedGradient => data + 6 * latent + 1,
            Encoding::TwoGradients => data + 10 * latent,
            Encoding::RawGradient | Encoding::NormGradient => data + 4 * latent,
            Encoding::Error | Encoding::VarianceError => 2 * data + 3 * latent,
            Encoding::ErrorAndGradient => 2 * data + 7 * latent,
        }
    }
    /// Whether gradients of the bound are needed.
    pub fn needs_gradient(self) -> bool {
        !matches!(self, Encoding::Error | Encoding::VarianceError)
    }
}

/// Whose gradient is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// Every example's own: what an example is inferred to does not depend on its batch. The default.
    #[default]
    PerExample,
    /// That of the batch mean, `1/N` of it, as the published programs have it: a model sees other inputs at another
    /// batch size.
    BatchMean,
}

/// Where gradients of the loss flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// Every iteration alone: the λ before it and the encoded gradient or reconstruction are constants. The sample in an
    /// encoded error is not, as in the published program (a leak through earlier iterations).
    Iteration,
    /// [`Self::Iteration`] with the sample constant, too. The default.
    #[default]
    Horizon1,
    /// Through λ; encoded gradients and errors are constants.
    Lambda,
    /// Through everything: unbiased for the unrolled loss.
    Full,
}

/// One bound on the way.
#[derive(Clone, Debug)]
pub struct Visit<E: Float, B: Backend<E>, M: Mode<E, B>> {
    /// `[μ, ln σ²]`, `[N, 2 Z]`.
    pub lambda: Rows<E, B, M>,
    /// The bound there.
    pub elbo: Elbo<E, B, M>,
    /// The encoding made there, `[N, I]`; none at the last.
    pub encoding: Option<Rows<E, B, M>>,
}

/// Settings of iterative inference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Iterative {
    /// The network.
    pub net: UpdateNet,
    /// Default: logarithm and sign of the gradient.
    pub encoding: Encoding,
    /// Default: per example.
    pub share: Share,
    /// Default: every iteration alone.
    pub flow: Flow,
    /// The density of data.
    pub likelihood: Likelihood,
}

/// The parameters of an inference: of the network and of the decoder.
pub struct Parts<'a, E: Float, B: Backend<E>, D> {
    /// The buffer of all parameters.
    pub params: &'a DynParams<E, B>,
    /// The buffer that bounds before the last, and the gradients, take the decoder from: the same, or a copy of it,
    /// through which no gradient flows, so that the decoder learns from the last bound alone.
    pub early: &'a DynParams<E, B>,
    /// Position of the network's first tensor.
    pub first: usize,
    /// Maps samples `[N S, Z]` to logits `[N S, P]`: `decode.run(params, z)`.
    pub decode: D,
}

/// A decoder, in every mode.
pub trait Decode<E: Float, B: Backend<E>>: Clone + 'static {
    /// Outputs of samples.
    fn run<M: Mode<E, B>>(&self, params: &DynParams<E, B>, z: Rows<E, B, M>) -> Rows<E, B, M>;
}

/// What an iteration knows beside λ and its bound.
struct Known<'a, E: Float, B: Backend<E>, M: Mode<E, B>> {
    /// Iterations done.
    iteration: usize,
    /// Of the negative bound, and the one before it.
    gradients: [Option<&'a Rows<E, B, M>>; 2],
}

impl Iterative {
    /// Bounds at `start` and after each of `eps.len() − 1` iterations; `eps[t]` `[N S, Z]` is the noise of visit `t`.
    pub fn run<E: Float, B: Backend<E>, M: Mode<E, B>, D: Decode<E, B>>(
        &self,
        x: &Rows<E, B>,
        start: Rows<E, B, M>,
        eps: &[Rows<E, B>],
        parts: &Parts<'_, E, B, D>,
    ) -> Vec<Visit<E, B, M>> {
        self.run_with(x, start, eps, parts, |_| parts.first)
    }

    /// The same with a network for each iteration: `place` gives the position of its first tensor.
    pub fn run_with<E: Float, B: Backend<E>, M: Mode<E, B>, D: Decode<E, B>>(
        &self,
        x: &Rows<E, B>,
        start: Rows<E, B, M>,
        eps: &[Rows<E, B>],
        parts: &Parts<'_, E, B, D>,
        place: impl Fn(usize) -> usize,
    ) -> Vec<Visit<E, B, M>> {
        let mut lambda = start;
        let mut before = None;
        let mut visits: Vec<Visit<E, B, M>> = Vec::with_capacity(eps.len());
        let last = eps.len() - 1;
        for (t, eps) in eps.iter().enumerate() {
            let is_last = t == last;
            let bound =
                self.bound(x, &lambda, eps, (if is_last { parts.params } else { parts.early }, parts));
            if is_last {
                visits.push(Visit { lambda: lambda.clone(), elbo: bound, encoding: None });
                break;
            }
            let alone = matches!(self.flow, Flow::Iteration | Flow::Horizon1);
            let held = if alone { stop_gradient(lambda.clone()) } else { lambda.clone() };
            let gradient = self.needs_gradient().then(|| self.gradient(x, &held, eps, parts));
            let known = Known { iteration: t, gradients: [gradient.as_ref(), before.as_ref()] };
            let encoding = self.encode(x, &held, &bound, &known);
            before = gradient;
            visits.push(Visit { lambda, elbo: bound, encoding: Some(encoding.clone()) });
            let gradient = before.as_ref().map(split);
            let [mu, v] = self.net.update(parts.params, place(t), encoding, split(&held), gradient);
            lambda = ops::concat(mu, &v.split_tape().0);
        }
        visits
    }

    fn needs_gradient(&self) -> bool {
        self.encoding.needs_gradient() || self.net.rule == super::update::Rule::LearnedSgd
    }

    fn bound<E: Float, B: Backend<E>, M: Mode<E, B>, D: Decode<E, B>>(
        &self,
        x: &Rows<E, B>,
        lambda: &Rows<E, B, M>,
        eps: &Rows<E, B>,
        (params, parts): (&DynParams<E, B>, &Parts<'_, E, B, D>),
    ) -> Elbo<E, B, M> {
        let decode = |z| parts.decode.run(params, z);
        elbo(x, lambda, eps, decode, |x, o| self.likelihood.log_density(x, o))
    }

    /// The gradient of the negative bound at λ, `[N, 2 Z]`.
    pub fn gradient<E: Float, B: Backend<E>, M: Mode<E, B>, D: Decode<E, B>>(
        &self,
        x: &Rows<E, B>,
        lambda: &Rows<E, B, M>,
        eps: &Rows<E, B>,
        parts: &Parts<'_, E, B, D>,
    ) -> Rows<E, B, M> {
        let through = if self.flow == Flow::Full { Through::Exact } else { Through::Stopped };
        let depends = match through {
            Through::Exact => handles(parts.early),
            Through::Stopped => Vec::new(),
        };
        let share = match self.share {
            Share::PerExample => -1.0,
            Share::BatchMean => -1.0 / x.shape().0 as f64,
        };
        let (x, eps, likelihood) = (x.clone(), eps.clone(), self.likelihood);
        let (params, decode) = (parts.early.clone(), parts.decode.clone());
        ops::gradient(lambda.clone(), depends, through, move |lambda: Rows<E, B, Rec>, _| {
            let run = |z| decode.run(&params, z);
            let bound = elbo(&x, &lambda, &eps, run, |x, o| likelihood.log_density(x, o));
            ops::scale(ops::sum(bound.value), share)
        })
    }

    /// What the network sees. `held`: λ as the update sees it.
    fn encode<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        x: &Rows<E, B>,
        held: &Rows<E, B, M>,
        bound: &Elbo<E, B, M>,
        known: &Known<'_, E, B, M>,
    ) -> Rows<E, B, M> {
        let bare = |t: Rows<E, B, M>| t.split_tape().0;
        let data = traced(ops::shift(x.clone(), -0.5));
        let join = |parts: Vec<Rows<E, B, M>>| {
            parts.into_iter().fold(data.clone(), |all, part| ops::concat(all, &bare(part)))
        };
        let g = || known.gradients[0].cloned().expect("computed for this encoding");
        let shown = |g: Rows<E, B, M>| [encoding::log(g.clone()), encoding::sign(g)];
        let join_gradients = |more: Vec<Rows<E, B, M>>| {
            let [size, sign] = shown(g());
            join([vec![held.clone(), size, sign], more].concat())
        };
        match self.encoding {
            Encoding::Gradient => join_gradients(Vec::new()),
            Encoding::IndexedGradient => {
                let index = E::of(known.iteration as f64 / 10.0);
                let column = x.device().filled((x.shape().0, 1usize), |y| y.fill(index));
                join_gradients(vec![traced(column)])
            }
            Encoding::TwoGradients => {
                let before = known.gradients[1].cloned().unwrap_or_else(|| ops::scale(g(), 0.0));
                join_gradients(shown(before).to_vec())
            }
            Encoding::RawGradient => join(vec![held.clone(), g()]),
            Encoding::NormGradient => {
                let [mu, v] = split(held).map(encoding::layer_norm);
                let [a, b] = split(&g()).map(encoding::layer_norm);
                join(vec![mu, v, a, b])
            }
            Encoding::Error | Encoding::VarianceError | Encoding::ErrorAndGradient => {
                let (p, z) = self.means(bound);
                let p = if self.flow == Flow::Full { p } else { stop_gradient(p) };
                let held_sample = matches!(self.flow, Flow::Horizon1 | Flow::Lambda);
                let z = if held_sample { stop_gradient(z) } else { z };
                let error = ops::sub(data.clone(), &bare(ops::shift(p.clone(), -0.5)));
                if self.encoding == Encoding::Error {
                    return join(vec![error, z, held.clone()]);
                }
                if self.encoding == Encoding::ErrorAndGradient {
                    let [size, sign] = shown(g());
                    return join(vec![error, z, held.clone(), size, sign]);
                }
                let log_white = ops::ln(ops::shift(p.clone(), 1e-5));
                let log_black = ops::ln(ops::affine(p, -1.0, 1.0 + 1e-5));
                let scaled = ops::mul(error, &bare(ops::exp(ops::neg(ops::add(log_white, &log_black)))));
                join(vec![scaled, ops::scale(z, (-1e-7f64).exp()), held.clone()])
            }
        }
    }

    /// Expected data and samples, averaged over the samples of a row.
    fn means<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        bound: &Elbo<E, B, M>,
    ) -> (Rows<E, B, M>, Rows<E, B, M>) {
        let (n, samples) = *bound.log_likelihood.shape();
        let p = self.likelihood.mean(bound.output.clone());
        (mean_of_samples(p, n, samples), mean_of_samples(bound.z.clone(), n, samples))
    }
}

/// `[N S, D]` to `[N, D]`.
fn mean_of_samples<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Rows<E, B, M>,
    n: usize,
    samples: usize,
) -> Rows<E, B, M> {
    let d = x.shape().1;
    if samples == 1 {
        return x;
    }
    // [N, S, D] as [S, N D], summed over rows.
    let by_sample: Vec<u32> =
        (0..samples).flat_map(|s| (0..n).map(move |i| (i * samples + s) as u32)).collect();
    let ordered = ops::reshape(ops::embedding(x, &by_sample), (samples, n * d));
    ops::reshape(ops::mean_axis0(ordered), (n, d))
}

/// Data in mode `M`.
fn traced<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Rows<E, B>) -> Rows<E, B, M> {
    x.put_tape(M::default())
}

/// Every tensor of a buffer, for [`outerloop_core::ops::gradient`].
pub fn handles<E: Float, B: Backend<E>>(params: &DynParams<E, B>) -> Vec<Tensor<(usize,), E, B>> {
    let layout = params.layout();
    let entries = layout.entries().iter().enumerate();
    entries.map(|(i, e)| params.get(i, (e.numel(),))).collect()
}

/// λ of the prior, 0, as data.
pub fn prior<E: Float, B: Backend<E>, M: Mode<E, B>>(x: &Rows<E, B>, latent: usize) -> Rows<E, B, M> {
    traced(x.device().filled((x.shape().0, 2 * latent), |_| ()))
}
