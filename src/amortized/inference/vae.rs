//! The variational autoencoder as a problem: contexts are images, solutions posteriors, the decoder the problem's own.
//!
//! A direct encoder is a [`Full`](crate::model::Full) model of it; SVI is any optimizer on its
//! [`ContextTask`](crate::problem::ContextTask); semi-amortized inference is a [`Semi`](crate::model::Semi) model or
//! [`IterativeTask`].

use super::decoder::{Decoder, DecoderAt};
use super::elbo::{divergence_per_dim, elbo, split, Likelihood, CLAMP};
use super::iterative::{prior, Iterative, Parts, Visit};
use super::update::UpdateNet;
use crate::net::{Act, Mlp};
use crate::problem::{Own, Problem, Query, Rows};
use outerloop_core::ops;
use outerloop_core::tensor::{
    Backend, Cpu, DynParams, DynTree, Float, HasShape, Host, Mode, NoneTape, ParamTree, PutTape, Rank0,
    Tensor, TensorFromVec,
};
use outerloop_core::{BatchKey, Error, Key, Layout, Result, Split, Task};
use outerloop_tasks::data::{ImageData, Splits};
use std::sync::Arc;

/// How grey pixels become data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pixels {
    /// As they are, in `[0, 1]`. The default.
    #[default]
    Grey,
    /// 1 with the grey value as probability, drawn anew at every visit from the batch's key.
    Binarized,
}

/// A variational autoencoder on images.
///
/// `f(λ; x) = −E log p(x|z) + β Σ max(KLᵢ, free)` in nats, with `samples` reparametrized samples from the query's key; at
/// `β = 1` and no free nats the negative bound.
#[derive(Clone, Debug)]
pub struct Vae {
    /// Images for training.
    pub train: Splits,
    /// Images for the test.
    pub test: Splits,
    /// From latents to logits (or means).
    pub decoder: Decoder,
    /// Default: Bernoulli. One that wants other outputs of the decoder: by [`Self::with_likelihood`].
    pub likelihood: Likelihood,
    /// Default: grey.
    pub pixels: Pixels,
    /// Samples per evaluation; default 1.
    pub samples: usize,
    /// Weight of the divergence; default 1.
    pub beta: f64,
    /// Nats per latent dimension that cost nothing; default 0.
    pub free_nats: f64,
}

impl Vae {
    /// A VAE on images of which the first `train` are for training and the rest for the test.
    ///
    /// # Errors
    /// A division that leaves one part empty, a decoder that does not give as many pixels as there are.
    pub fn new(images: &ImageData, train: usize, decoder: impl Into<Decoder>) -> Result<Self> {
        Self::with_likelihood(images, train, decoder, Likelihood::Bernoulli)
    }

    /// [`Self::new`] with another density of the pixels.
    ///
    /// # Errors
    /// As there; a decoder must give as many numbers as [`Likelihood::outputs`] says.
    pub fn with_likelihood(
        images: &ImageData,
        train: usize,
        decoder: impl Into<Decoder>,
        likelihood: Likelihood,
    ) -> Result<Self> {
        let (n, decoder) = (images.len(), decoder.into());
        if train == 0 || train >= n {
            let why = format!("must be from 1 to {} of {n} images, got {train}", n - 1);
            return Err(Error::invalid("vae: number of images for training", why));
        }
        let (wanted, outputs) = (likelihood.outputs(images.features()), decoder.outputs());
        if outputs != wanted {
            return Err(Error::mismatch("vae: outputs of the decoder", wanted, outputs));
        }
        let part = |range: std::ops::Range<usize>| -> Result<Splits> {
            let pixels: Vec<f32> = range.clone().flat_map(|i| images.image(i).to_vec()).collect();
            let labels = images.labels[range].to_vec();
            let sizes = [images.height, images.width, images.channels];
            Ok(Splits::undivided(ImageData::new(images.name.clone(), pixels, labels, sizes, images.classes)?))
        };
        Ok(Vae {
            train: part(0..train)?,
            test: part(train..n)?,
            decoder,
            likelihood,
            pixels: Pixels::Grey,
            samples: 1,
            beta: 1.0,
            free_nats: 0.0,
        })
    }

    /// Latent dimensions Z.
    pub fn latent(&self) -> usize {
        self.decoder.latent()
    }
    /// Height, width and channels of an image.
    pub fn shape(&self) -> [usize; 3] {
        let images = self.train.data();
        [images.height, images.width, images.channels]
    }
    /// What is expected of the pixels at latents `[N, Z]`, `[N, P]`; `own`: the decoder's parameters.
    ///
    /// # Panics
    /// If there are other numbers of parameters than the decoder has.
    pub fn decoded(&self, own: &[f32], z: &[f32]) -> Vec<f32> {
        self.likelihood.mean(self.output(own, z)).as_vec()
    }
    /// Means and log-variances of the pixels at latents `[N, Z]`, `[N, P]` each; none of the latter but of
    /// [`Likelihood::LearnedGaussian`], whose clamp they have.
    ///
    /// # Panics
    /// As [`Self::decoded`].
    pub fn outputs(&self, own: &[f32], z: &[f32]) -> [Vec<f32>; 2] {
        let output = self.output(own, z);
        let noise = match self.likelihood {
            Likelihood::LearnedGaussian => ops::clip(split(&output)[1].clone(), -CLAMP, CLAMP).as_vec(),
            _ => Vec::new(),
        };
        [self.likelihood.mean(output).as_vec(), noise]
    }
    fn output(&self, own: &[f32], z: &[f32]) -> Rows<f32, Cpu> {
        let dev = Cpu::default();
        let params = DynParams::<f32, Cpu>::new(&dev, Arc::new(self.own_layout()), own);
        let z: Rows<f32, Cpu> = dev.tensor_from_vec(z.to_vec(), (z.len() / self.latent(), self.latent()));
        self.decoder.forward(&params, 0, z)
    }
    /// [`Self::decoded`] at the means of posteriors `λ = [μ, ln σ²]` `[N, 2 Z]`: reconstructions.
    pub fn reconstructed(&self, own: &[f32], lambda: &[f32]) -> Vec<f32> {
        let z = self.latent();
        let means: Vec<f32> = lambda.chunks(2 * z).flat_map(|row| &row[..z]).copied().collect();
        self.decoded(own, &means)
    }
    /// [`Self::decoded`] at `n` draws from the prior of the latents.
    pub fn samples(&self, own: &[f32], n: usize, key: Key) -> Vec<f32> {
        let mut z = vec![0.0; n * self.latent()];
        key.fill_normal(&mut z);
        self.decoded(own, &z)
    }
    /// Number of images for training and for the test.
    pub fn len(&self) -> [usize; 2] {
        [self.train.data().len(), self.test.data().len()]
    }
    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.train.data().is_empty()
    }
    /// Pixels of image `i` of the test split, shown `visit` times: binarized anew each time where that is asked for.
    pub fn test_image(&self, i: usize, visit: u64, out: &mut [f64]) {
        self.show(self.test.data().image(i), Key::new(97).fold_in(visit).fold_in(i as u64), out);
    }
    fn show(&self, image: &[f32], key: Key, out: &mut [f64]) {
        match self.pixels {
            Pixels::Grey => out.iter_mut().zip(image).for_each(|(o, p)| *o = f64::from(*p)),
            Pixels::Binarized => {
                let mut rng = key.rng();
                for (o, p) in out.iter_mut().zip(image) {
                    *o = f64::from(u8::from(rand::Rng::gen::<f64>(&mut rng) < f64::from(*p)));
                }
            }
        }
    }

    /// The whole test split, each image shown `visits` times, `[N, P]`.
    pub fn test_set(&self, visits: u64) -> Vec<f64> {
        let (n, p) = (self.test.data().len(), self.context_dim());
        let mut all = vec![0.0; n * visits as usize * p];
        for (row, out) in all.chunks_mut(p).enumerate() {
            self.test_image(row % n, (row / n) as u64, out);
        }
        all
    }

    /// Noise of a key, `[N S, Z]`.
    pub fn noise<E: Float, B: Backend<E>>(&self, dev: &B, rows: usize, key: Key) -> Rows<E, B> {
        dev.normal_like((rows * self.samples, self.latent()), key)
    }
}

impl Problem for Vae {
    fn name(&self) -> String {
        format!("vae_{}", self.train.data().name)
    }
    fn dim(&self) -> usize {
        2 * self.latent()
    }
    fn context_dim(&self) -> usize {
        self.train.data().features()
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        self.contexts(BatchKey { split: Split::Train, step: 0, key }, out);
    }
    /// Batches go through the images in epochs; every split but [`Split::Train`] is the test images.
    fn contexts(&self, at: BatchKey, out: &mut [f64]) {
        let p = self.context_dim();
        let images = if at.split == Split::Train { &self.train } else { &self.test };
        let picks = images.indices(at, out.len() / p);
        for (row, (i, out)) in picks.into_iter().zip(out.chunks_mut(p)).enumerate() {
            let key = at.noise().named("binarize").fold_in(row as u64);
            self.show(images.data().image(i as usize), key, out);
        }
    }
    fn own_layout(&self) -> Layout {
        let mut layout = Layout::default();
        self.decoder.push(&mut layout, "decoder/");
        layout
    }
    fn own_init(&self, key: Key, out: &mut [f64]) {
        self.decoder.fill(key, out);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        own: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let eps = self.noise(&at.x.device().clone(), y.shape().0, at.key);
        let decode = |z| self.decoder.forward(own.params, own.first, z);
        let bound = elbo(at.x, &y, &eps, decode, |x, o| self.likelihood.log_density(x, o));
        if self.beta == 1.0 && self.free_nats == 0.0 {
            return ops::neg(bound.value);
        }
        let [mu, v] = split(&y);
        let nats = ops::scale(divergence_per_dim(mu, v), 0.5);
        // max(KL, free) = relu(KL − free) + free
        let paid = ops::shift(ops::relu(ops::shift(nats, -self.free_nats)), self.free_nats);
        let fit = ops::mean_axis1(bound.log_likelihood);
        ops::sub(ops::scale(ops::sum_axis1(paid), self.beta), &fit)
    }
}

/// Which bounds the decoder learns from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecoderBounds {
    /// The last alone, as the published programs have it. The default.
    #[default]
    Last,
    /// All that the network learns from.
    All,
}

/// Iterative inference on a [`Vae`] as a task: parameters are the networks', those of the start, then the decoder's.
///
/// Loss: the mean over iterations `1..=T` (from 0 where the start is learned) of the mean negative bound.
#[derive(Clone, Debug)]
pub struct IterativeTask {
    /// The problem.
    pub vae: Vae,
    /// What is inferred with.
    pub inference: Iterative,
    /// Iterations T.
    pub iterations: usize,
    /// Images per batch.
    pub batch_size: usize,
    /// An encoder from data to the first λ (a hybrid of direct and iterative inference); default none: the prior.
    pub start: Option<Mlp>,
    /// Networks: iteration `t` has number `min(t, copies − 1)`. Default 1: all share one.
    pub copies: usize,
    /// Default: the last.
    pub decoder_bounds: DecoderBounds,
}

impl IterativeTask {
    /// A task with a network of `hidden` units.
    pub fn new(vae: Vae, mut inference: Iterative, iterations: usize, batch_size: usize) -> Self {
        inference.likelihood = vae.likelihood;
        inference.net.latent = vae.latent();
        inference.net.inputs = inference.encoding.len(vae.context_dim(), vae.latent());
        let (start, decoder_bounds) = (None, DecoderBounds::Last);
        IterativeTask { vae, inference, iterations, batch_size, start, copies: 1, decoder_bounds }
    }
    /// The encoder of a hybrid with these hidden layers.
    #[must_use]
    pub fn started(self, hidden: &[usize], act: Act) -> Self {
        let mut widths = vec![self.vae.context_dim()];
        widths.extend(hidden);
        widths.push(2 * self.vae.latent());
        let start = Some(Mlp { widths, act, init: self.vae.decoder.init() });
        IterativeTask { start, ..self }
    }
    /// Position of the start's first tensor, and of the decoder's.
    fn places(&self) -> [usize; 2] {
        let start = self.copies * UpdateNet::TENSORS;
        [start, start + self.start.as_ref().map_or(0, Mlp::tensors)]
    }
    fn decoder(&self) -> DecoderAt {
        DecoderAt { net: self.vae.decoder.clone(), first: self.places()[1] }
    }
    /// Names and shapes of the parameters.
    pub fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        for i in 0..self.copies {
            let prefix = if i == 0 { "net/".into() } else { format!("net{i}/") };
            self.inference.net.push(&mut layout, &prefix);
        }
        if let Some(start) = &self.start {
            start.push(&mut layout, "start/");
        }
        self.vae.decoder.push(&mut layout, "decoder/");
        layout
    }
    /// Parameters before the decoder's.
    fn inference_len(&self) -> [usize; 2] {
        [self.copies * self.inference.net.len(), self.start.as_ref().map_or(0, Mlp::len)]
    }
    /// The decoder's part of a flat buffer.
    pub fn own<'a, E>(&self, theta: &'a [E]) -> &'a [E] {
        &theta[self.inference_len().iter().sum()..]
    }

    fn visits<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        (x, key): (&Rows<E, B>, Key),
        iterations: usize,
        (params, early): (&DynParams<E, B>, &DynParams<E, B>),
    ) -> Vec<Visit<E, B, M>> {
        let (dev, n) = (x.device().clone(), x.shape().0);
        let eps: Vec<_> = (0..=iterations).map(|t| self.vae.noise(&dev, n, key.fold_in(t as u64))).collect();
        let parts = Parts { params, early, first: 0, decode: self.decoder() };
        let start = match &self.start {
            None => prior(x, self.vae.latent()),
            Some(encoder) => encoder.forward(params, self.places()[0], x.clone().put_tape(M::default())),
        };
        let place = |t: usize| t.min(self.copies - 1) * UpdateNet::TENSORS;
        self.inference.run_with(x, start, &eps, &parts, place)
    }

    /// Mean bounds at the prior and after each iteration on data `[N][P]`, in nats.
    pub fn bounds(&self, theta: &[f32], data: &[f64], iterations: usize, key: Key) -> Vec<f64> {
        let mean = |b: &[f32]| b.iter().map(|b| f64::from(*b)).sum::<f64>() / b.len() as f64;
        self.infer(theta, data, iterations, key).iter().map(|i| mean(&i.bounds)).collect()
    }

    /// Posteriors of data `[N][P]` at the start and after each iteration.
    pub fn infer(&self, theta: &[f32], data: &[f64], iterations: usize, key: Key) -> Vec<Inferred> {
        let dev = Cpu::default();
        let params = DynParams::<f32, Cpu>::new(&dev, Arc::new(self.layout()), theta);
        let p = self.vae.context_dim();
        let x =
            dev.tensor_from_vec(data.iter().map(|x| *x as f32).collect::<Vec<f32>>(), (data.len() / p, p));
        let visits: Vec<Visit<f32, Cpu, NoneTape>> = self.visits((&x, key), iterations, (&params, &params));
        visits.iter().map(|v| Inferred { lambda: v.lambda.as_vec(), bounds: v.elbo.value.as_vec() }).collect()
    }
}

/// What iterative inference has come to for a batch of data.
#[derive(Clone, Debug, PartialEq)]
pub struct Inferred {
    /// `[μ, ln σ²]`, `[N, 2 Z]`.
    pub lambda: Vec<f32>,
    /// The bound of every row with one draw of the noise, nats, `[N]`.
    pub bounds: Vec<f32>,
}

impl<E: Float, B: Backend<E>> Task<E, B> for IterativeTask {
    type Params = DynParams<E, B>;
    type Batch = (Rows<E, B>, Key);
    fn name(&self) -> String {
        format!("iterative_{:?}_{}", self.inference.encoding, self.vae.name()).to_lowercase()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let layout = self.layout();
        let mut flat = vec![0.0; layout.len()];
        let [nets, start] = self.inference_len();
        let (net, rest) = flat.split_at_mut(nets);
        let (encoder, decoder) = rest.split_at_mut(start);
        for (i, net) in net.chunks_mut(self.inference.net.len()).enumerate() {
            let key = key.named("net");
            self.inference.net.fill(if i == 0 { key } else { key.fold_in(i as u64) }, net);
        }
        if let Some(start) = &self.start {
            start.fill(key.named("start"), encoder);
        }
        self.vae.decoder.fill(key.named("decoder"), decoder);
        DynParams::<E, B>::new(dev, Arc::new(layout), &flat.into_iter().map(E::of).collect::<Vec<E>>())
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let p = self.vae.context_dim();
        let mut x = vec![0.0; self.batch_size * p];
        self.vae.contexts(at, &mut x);
        let x = dev.tensor_from_vec(x.into_iter().map(E::of).collect::<Vec<E>>(), (self.batch_size, p));
        (x, at.noise().named("samples"))
    }
    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, (x, key): &Self::Batch, _: M) -> Tensor<Rank0, E, B, M> {
        let visits: Vec<Visit<E, B, M>> = match self.decoder_bounds {
            DecoderBounds::All => self.visits((x, *key), self.iterations, (p, p)),
            DecoderBounds::Last => {
                let layout = Arc::new(self.layout());
                let mut flat = vec![E::of(0.0); layout.len()];
                p.write_flat(&mut flat);
                let early = DynParams::<E, B>::new(&x.device().clone(), layout, &flat);
                self.visits((x, *key), self.iterations, (p, &early))
            }
        };
        let learned = &visits[usize::from(self.start.is_none())..];
        let bounds = learned.iter().map(|v| v.elbo.mean());
        let sum = bounds.reduce(|a, b| ops::add(a, &b)).expect("at least one iteration");
        ops::scale(sum, -1.0 / learned.len() as f64)
    }
}

/// The mean importance-weighted bound `log 1/K Σ p(x, zₖ)/q(zₖ|x)` of λ `[N, 2 Z]`, nats: at K = 1 the bound, and tighter
/// with every sample (Burda et al. 2016, arXiv:1509.00519). In f64.
pub fn importance_weighted(
    vae: &Vae,
    own: &[f64],
    data: &[f64],
    lambda: &[f64],
    samples: usize,
    key: Key,
) -> f64
where
    Cpu: Host<f64>,
{
    let (dev, z, p) = (Cpu::default(), vae.latent(), vae.context_dim());
    let n = data.len() / p;
    let params = DynParams::<f64, Cpu>::new(&dev, Arc::new(vae.own_layout()), own);
    let x: Rows<f64, Cpu> = dev.tensor_from_vec(data.to_vec(), (n, p));
    let lambda: Rows<f64, Cpu> = dev.tensor_from_vec(lambda.to_vec(), (n, 2 * z));
    let [_, v] = split(&lambda);
    let v = v.as_vec();
    let mut logs = vec![Vec::with_capacity(samples); n];
    for s in 0..samples {
        let eps: Rows<f64, Cpu> = dev.normal_like((n, z), key.fold_in(s as u64));
        let bound = elbo(
            &x,
            &lambda,
            &eps,
            |z| vae.decoder.forward(&params, 0, z),
            |x, o| vae.likelihood.log_density(x, o),
        );
        let (fit, zs, e) = (bound.log_likelihood.as_vec(), bound.z.as_vec(), eps.as_vec());
        for i in 0..n {
            // log p(z) − log q(z|x) = Σ ½ (ε² + v − z²)
            let ratio = (0..z).map(|k| 0.5 * (e[i * z + k].powi(2) + v[i * z + k] - zs[i * z + k].powi(2)));
            logs[i].push(fit[i] + ratio.sum::<f64>());
        }
    }
    let one = |l: &Vec<f64>| {
        let most = l.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most + (l.iter().map(|l| (l - most).exp()).sum::<f64>() / samples as f64).ln()
    };
    logs.iter().map(one).sum::<f64>() / n as f64
}
