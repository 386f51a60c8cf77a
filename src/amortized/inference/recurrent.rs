//! Amortized variational filtering of a recurrent latent variable model (VRNN), as a task.
//!
//! With a state `h` that remembers the past: `z_t ~ N(m(h), e^{s(h)})`, `x_t ~ p(x|z_t, h)`, and then
//! `h ← GRU([x_t, z_t], h)`, or without the observation ([`Memory`]). The filtering bound is the sum over steps of
//! `E_q log p(x_t|z_t, h) − KL(q(z_t) ‖ N(m, e^s))`, with one reparametrized sample that is carried on.
//!
//! Latents are seen from the prediction: `z = m + e^{s/2} u`, `u ~ N(0, I)`. The divergence is the same, inference of a step
//! starts at the prediction as `λ = 0`, and [`Iterative`] does it as for a single picture.
//!
//! References: Chung et al. 2015, arXiv:1506.02216; Marino, Cvitkovic, Yue 2018, arXiv:1811.05090.

use super::elbo::{elbo, Elbo, Likelihood};
use super::iterative::{prior, Decode, Iterative, Parts};
use super::sequences::SequenceSource;
use super::update::UpdateNet;
use crate::net::{linear, Act, Init, Mlp};
use crate::problem::Rows;
use outerloop_core::ops;
use outerloop_core::tensor::{
    host_data, Backend, Cpu, DynParams, DynTree, Float, HasShape, Host, Mode, NoneTape, PutTape, Rank0,
    SplitTape, Tensor,
};
use outerloop_core::{BatchKey, Error, Key, Layout, Result, Split, Task};
use std::sync::Arc;

/// How `λ` of a step is inferred.
#[derive(Clone, Debug, PartialEq)]
pub enum Inference {
    /// By an encoder of `[x_t, h]`, as in the VRNN, with these hidden layers.
    Encoder(Vec<usize>),
    /// From the prediction, in so many iterations.
    Iterations(Iterative, usize),
}

/// A model, its inference and its data as a task: parameters are prediction, decoder, GRU and inference.
///
/// Loss: the negative filtering bound per step in nats, averaged over the batch, over time, and over the iterations of a
/// step (the first, at the prediction, is left out). Both parts learn from all of it.
#[derive(Clone, Debug)]
pub struct SequenceTask {
    train: Arc<dyn SequenceSource>,
    test: Arc<dyn SequenceSource>,
    likelihood: Likelihood,
    inference: Inference,
    batch_size: usize,
    latent: usize,
    hidden: usize,
    memory: Memory,
}

/// What the state is made of, beside the state before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// Observation and latents, as in the VRNN. Where the past alone predicts observations as well as they can be, the
    /// latents stay unused, and inference has nothing to do. The default.
    #[default]
    Observations,
    /// Latents alone, a state space model: what is to be known of the past must have been inferred.
    Latents,
}

/// Sizes of a [`SequenceTask`], and what it remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Latents per step; default 4.
    pub latent: usize,
    /// Width of the state, and of the networks' hidden layers; default 32.
    pub hidden: usize,
    /// Sequences per batch; default 32.
    pub batch_size: usize,
    /// Default: observations, too.
    pub memory: Memory,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { latent: 4, hidden: 32, batch_size: 32, memory: Memory::Observations }
    }
}

/// The decoder of one step: the state and the prediction are given.
#[derive(Clone)]
struct StepDecoder<E: Float, B: Backend<E>> {
    net: Mlp,
    first: usize,
    /// `[N, H]`, `[N, Z]`, `[N, Z]`: state, mean and standard deviation of the prediction.
    known: [Rows<E, B>; 3],
}

impl<E: Float, B: Backend<E>> StepDecoder<E, B> {
    /// `z = m + e^{s/2} u`
    fn latent<M: Mode<E, B>>(&self, u: Rows<E, B, M>) -> Rows<E, B, M> {
        ops::add(ops::mul(u, &self.known[2]), &self.known[1])
    }
}

impl<E: Float, B: Backend<E>> Decode<E, B> for StepDecoder<E, B> {
    fn run<M: Mode<E, B>>(&self, params: &DynParams<E, B>, u: Rows<E, B, M>) -> Rows<E, B, M> {
        self.net.forward(params, self.first, ops::concat(self.latent(u), &self.known[0]))
    }
}

/// Log-variances of predictions are clamped to this, both ways.
const CLAMP: f64 = 10.0;

impl SequenceTask {
    /// A task on sequences of `train`, and of `test` for the other splits.
    ///
    /// # Errors
    /// Sources of other sizes, no latents, no iterations, an empty batch.
    pub fn new(
        [train, test]: [Arc<dyn SequenceSource>; 2],
        likelihood: Likelihood,
        inference: Inference,
        sizes: Sizes,
    ) -> Result<Self> {
        let shape = |s: &dyn SequenceSource| [s.steps(), s.dim()];
        if shape(&*train) != shape(&*test) {
            let what = "sequence task: steps and numbers of the test sequences";
            return Err(Error::mismatch(what, shape(&*train), shape(&*test)));
        }
        let iterations = if let Inference::Iterations(_, n) = &inference { *n } else { 1 };
        let Sizes { latent, hidden, batch_size, memory } = sizes;
        if shape(&*train).contains(&0) || [latent, hidden, batch_size, iterations].contains(&0) {
            let got = format!("{sizes:?}, {iterations} iterations, sequences {:?}", shape(&*train));
            return Err(Error::invalid("sequence task: sizes", format!("must be at least 1, got {got}")));
        }
        let mut task =
            SequenceTask { train, test, likelihood, inference, batch_size, latent, hidden, memory };
        let dim = task.dim();
        if let Inference::Iterations(i, _) = &mut task.inference {
            i.likelihood = likelihood;
            i.net.latent = latent;
            i.net.inputs = i.encoding.len(dim, latent);
        }
        Ok(task)
    }

    fn dim(&self) -> usize {
        self.train.dim()
    }
    fn net(&self, widths: [usize; 3]) -> Mlp {
        Mlp { widths: widths.to_vec(), act: Act::Tanh, init: Init::Glorot }
    }
    fn prediction(&self) -> Mlp {
        self.net([self.hidden, self.hidden, 2 * self.latent])
    }
    fn decoder(&self) -> Mlp {
        self.net([self.latent + self.hidden, self.hidden, self.likelihood.outputs(self.dim())])
    }
    fn encoder(&self) -> Option<Mlp> {
        let Inference::Encoder(hidden) = &self.inference else { return None };
        let mut widths = vec![self.dim() + self.hidden];
        widths.extend(hidden);
        widths.push(2 * self.latent);
        Some(Mlp { widths, act: Act::Tanh, init: Init::Glorot })
    }
    /// `[inputs, outputs]` of the GRU's gates and of its candidate.
    fn gru(&self) -> [[usize; 2]; 2] {
        let seen = if self.memory == Memory::Observations { self.dim() } else { 0 };
        let inputs = seen + self.latent + self.hidden;
        [[inputs, 2 * self.hidden], [inputs, self.hidden]]
    }
    /// Positions of the decoder, the GRU and the inference.
    fn places(&self) -> [usize; 3] {
        let decoder = self.prediction().tensors();
        let gru = decoder + self.decoder().tensors();
        [decoder, gru, gru + 4]
    }

    /// Names and shapes of the parameters.
    pub fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        self.prediction().push(&mut layout, "prediction/");
        self.decoder().push(&mut layout, "decoder/");
        for (name, [inputs, outputs]) in ["gates", "candidate"].into_iter().zip(self.gru()) {
            layout.push(format!("gru/{name}/w"), vec![inputs, outputs]);
            layout.push(format!("gru/{name}/b"), vec![outputs]);
        }
        match (&self.inference, self.encoder()) {
            (Inference::Iterations(i, _), _) => i.net.push(&mut layout, "net/"),
            (_, Some(encoder)) => encoder.push(&mut layout, "encoder/"),
            (Inference::Encoder(_), None) => unreachable!("an encoder has a network"),
        }
        layout
    }

    /// `h ← (1 − u) tanh(W [x, z, r h]) + u h`, with gates `r, u = σ(W [x, z, h])`; without `x` where only latents are
    /// remembered.
    fn remember<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        (x, z): (&Rows<E, B>, Rows<E, B, M>),
        h: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        let first = self.places()[1];
        let bare = |t: Rows<E, B, M>| t.split_tape().0;
        let seen = if self.memory == Memory::Observations { ops::concat(z, x) } else { z };
        let both = ops::concat(seen.clone(), &bare(h.clone()));
        let gates = ops::sigmoid(linear(params, first, both, 2 * self.hidden, Act::Identity));
        let gate = |i: usize| ops::columns(gates.clone(), i * self.hidden, self.hidden);
        let kept = ops::concat(seen, &bare(ops::mul(gate(0), &bare(h.clone()))));
        let new = linear(params, first + 2, kept, self.hidden, Act::Tanh);
        ops::add(new.clone(), &bare(ops::mul(gate(1), &bare(ops::sub(h, &bare(new))))))
    }

    /// Bounds of every step: `[T]` lists, at the prediction and after each iteration (an encoder's has one entry).
    fn steps<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        (xs, key): (&[Rows<E, B>], Key),
        iterations: usize,
    ) -> Vec<Vec<Elbo<E, B, M>>> {
        let (dev, n) = (xs[0].device().clone(), xs[0].shape().0);
        let [decoder, _, inference] = self.places();
        let mut h: Rows<E, B, M> = dev.filled((n, self.hidden), |_| ()).put_tape(M::default());
        let mut all = Vec::with_capacity(xs.len());
        for (t, x) in xs.iter().enumerate() {
            let noise = |i: usize| dev.normal_like((n, self.latent), key.fold_in(t as u64).fold_in(i as u64));
            let predicted = self.prediction().forward(params, 0, h.clone());
            let part = |i: usize| ops::columns(predicted.clone(), i * self.latent, self.latent);
            let spread = ops::exp(ops::scale(ops::clip(part(1), -CLAMP, CLAMP), 0.5));
            let known = [h.clone(), part(0), spread].map(|t| t.split_tape().0);
            let decode = StepDecoder { net: self.decoder(), first: decoder, known };
            let bounds = match (&self.inference, self.encoder()) {
                (Inference::Iterations(i, _), _) => {
                    let eps: Vec<Rows<E, B>> = (0..=iterations).map(noise).collect();
                    let parts = Parts { params, early: params, first: inference, decode: decode.clone() };
                    let visits = i.run(x, prior(x, self.latent), &eps, &parts);
                    visits.into_iter().map(|v| v.elbo).collect::<Vec<_>>()
                }
                (_, encoder) => {
                    let encoder = encoder.expect("an encoder has a network");
                    let lambda = encoder.forward(params, inference, ops::concat(h.clone(), x));
                    let run = |u| decode.run(params, u);
                    vec![elbo(x, &lambda, &noise(0), run, |x, o| self.likelihood.log_density(x, o))]
                }
            };
            let u = bounds.last().expect("at least one bound").z.clone();
            h = self.remember(params, (x, decode.latent(u)), h);
            all.push(bounds);
        }
        all
    }

    /// Mean bounds of `n` test sequences of a key, `[T]` lists at the prediction and after each of `iterations`, nats. An
    /// encoder's lists have one entry.
    pub fn bounds(&self, theta: &[f32], n: usize, iterations: usize, key: Key) -> Vec<Vec<f64>> {
        let mean = |b: Vec<f64>| b.iter().sum::<f64>() / b.len() as f64;
        let all = self.bounds_of(theta, &drawn(&*self.test, n, key), iterations, key.named("samples"));
        all.into_iter().map(|visits| visits.into_iter().map(mean).collect()).collect()
    }

    /// Bounds of sequences `[N][T, dim]`: for every step, at the prediction and after each of `iterations` (an encoder has
    /// one entry alone), those of the sequences, `[N]`, nats.
    ///
    /// # Panics
    /// If a sequence is not of the task's length, or there is none.
    pub fn bounds_of(
        &self,
        theta: &[f32],
        sequences: &[Vec<f64>],
        iterations: usize,
        key: Key,
    ) -> Vec<Vec<Vec<f64>>> {
        let of = |e: &Elbo<f32, Cpu, NoneTape>| numbers(&e.value);
        let steps = self.evaluated(theta, sequences, iterations, key);
        steps.iter().map(|bounds| bounds.iter().map(of).collect()).collect()
    }

    /// What a sequence `[T, dim]` is filtered to, from `samples` runs with noise of their own.
    ///
    /// # Panics
    /// If the sequence is not of the task's length, or there are no samples.
    pub fn filter(
        &self,
        theta: &[f32],
        sequence: &[f64],
        (samples, iterations): (usize, usize),
        key: Key,
    ) -> FilteredSequence {
        let runs = vec![sequence.to_vec(); samples];
        let steps = self.evaluated(theta, &runs, iterations, key);
        let dim = self.dim();
        let moments = |e: &Elbo<f32, Cpu, NoneTape>| {
            let x = numbers(&self.likelihood.mean(e.output.clone()));
            let over = |f: &dyn Fn(f64, usize) -> f64| -> Vec<f64> {
                (0..dim)
                    .map(|c| x.iter().skip(c).step_by(dim).map(|x| f(*x, c)).sum::<f64>() / samples as f64)
                    .collect()
            };
            let mean = over(&|x, _| x);
            let std = over(&|x, c| (x - mean[c]).powi(2)).into_iter().map(f64::sqrt).collect();
            (mean, std)
        };
        let last = |bounds: &Vec<Elbo<f32, Cpu, NoneTape>>| moments(&bounds[bounds.len() - 1]);
        let (mean, std) = steps.iter().map(last).unzip();
        let predicts = matches!(self.inference, Inference::Iterations(..));
        let predicted = predicts.then(|| steps.iter().map(|bounds| moments(&bounds[0]).0).collect());
        FilteredSequence { mean, std, predicted }
    }

    fn evaluated(
        &self,
        theta: &[f32],
        sequences: &[Vec<f64>],
        iterations: usize,
        key: Key,
    ) -> Vec<Vec<Elbo<f32, Cpu, NoneTape>>> {
        let len = self.train.steps() * self.dim();
        assert!(
            !sequences.is_empty() && sequences.iter().all(|s| s.len() == len),
            "sequences of {len} numbers"
        );
        let dev = Cpu::default();
        let params = DynParams::<f32, Cpu>::new(&dev, Arc::new(self.layout()), theta);
        self.steps(&params, (&by_step(&dev, sequences, self.dim()), key), iterations)
    }
}

/// A filtered sequence, in units of the observations.
#[derive(Clone, Debug, PartialEq)]
pub struct FilteredSequence {
    /// What is expected of every observation given all up to it, `[T][dim]`: the decoder's mean, averaged over samples.
    pub mean: Vec<Vec<f64>>,
    /// Standard deviation of the decoder's mean over samples: what is not known of the state, without the noise of the
    /// observation.
    pub std: Vec<Vec<f64>>,
    /// What was expected of every observation before it was seen; an encoder says nothing about it.
    pub predicted: Option<Vec<Vec<f64>>>,
}

/// Sequences of a key's children, `[N][T, dim]`.
pub fn drawn(source: &dyn SequenceSource, n: usize, key: Key) -> Vec<Vec<f64>> {
    let one = |i: usize| {
        let mut out = vec![0.0; source.steps() * source.dim()];
        source.sequence(key.fold_in(i as u64), &mut out);
        out
    };
    (0..n).map(one).collect()
}

fn numbers<S: outerloop_core::tensor::Shape>(t: &Tensor<S, f32, Cpu>) -> Vec<f64> {
    host_data(t).iter().map(|x| f64::from(*x)).collect()
}

/// Sequences as the rows of every step.
fn by_step<E: Float, B: Backend<E>>(dev: &B, sequences: &[Vec<f64>], dim: usize) -> Vec<Rows<E, B>> {
    let at = |t: usize| {
        let rows = sequences.iter().flat_map(move |s| &s[t * dim..(t + 1) * dim]);
        dev.tensor_from_vec(rows.map(|x| E::of(*x)).collect::<Vec<E>>(), (sequences.len(), dim))
    };
    (0..sequences[0].len() / dim).map(at).collect()
}

impl<E: Float, B: Backend<E>> Task<E, B> for SequenceTask
where
    Cpu: Host<E>,
{
    type Params = DynParams<E, B>;
    type Batch = (Vec<Rows<E, B>>, Key);
    fn name(&self) -> String {
        let inference = match &self.inference {
            Inference::Encoder(_) => "encoder".into(),
            Inference::Iterations(i, n) => format!("{n}x{:?}", i.encoding).to_lowercase(),
        };
        format!("filter_{}_{inference}", self.train.name())
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let layout = self.layout();
        let mut flat = vec![0.0; layout.len()];
        let mut rest = &mut flat[..];
        let mut fill = |net: &Mlp, name: &str| {
            let (own, tail) = std::mem::take(&mut rest).split_at_mut(net.len());
            net.fill(key.named(name), own);
            rest = tail;
        };
        fill(&self.prediction(), "prediction");
        fill(&self.decoder(), "decoder");
        for (name, widths) in ["gates", "candidate"].into_iter().zip(self.gru()) {
            fill(&Mlp { widths: widths.to_vec(), act: Act::Identity, init: Init::Glorot }, name);
        }
        if let Some(encoder) = self.encoder() {
            fill(&encoder, "inference");
        }
        if let Inference::Iterations(i, _) = &self.inference {
            i.net.fill(key.named("inference"), rest);
        }
        DynParams::<E, B>::new(dev, Arc::new(layout), &flat.into_iter().map(E::of).collect::<Vec<E>>())
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let source = if at.split == Split::Train { &self.train } else { &self.test };
        let key = at.noise();
        let sequences = drawn(&**source, self.batch_size, key.named("sequences"));
        (by_step(dev, &sequences, self.dim()), key.named("samples"))
    }
    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, (xs, key): &Self::Batch, _: M) -> Tensor<Rank0, E, B, M> {
        let iterations = if let Inference::Iterations(_, n) = &self.inference { *n } else { 0 };
        let steps: Vec<Vec<Elbo<E, B, M>>> = self.steps(p, (xs, *key), iterations);
        let learned = steps.iter().flat_map(|bounds| &bounds[usize::from(iterations > 0)..]);
        let (mut sum, mut count) = (None, 0.0);
        for bound in learned {
            let mean = bound.mean();
            sum = Some(match sum {
                None => mean,
                Some(sum) => ops::add(sum, &mean),
            });
            count += 1.0;
        }
        ops::scale(sum.expect("at least one step"), -1.0 / count)
    }
}

/// The network of a step's inference, for [`Inference::Iterations`]; inputs and latents are the task's.
pub fn step_net(hidden: usize) -> UpdateNet {
    UpdateNet::new(0, hidden, 0)
}

#[cfg(test)]
mod tests {
    use super::super::iterative::{Encoding, Flow, Share};
    use super::super::kalman::LinearGaussian;
    use super::super::sequences::{LinearSequences, NoisyPendulum};
    use super::*;
    use crate::matrix::Matrix;
    use crate::train::{task_learner, train_task};
    use outerloop_core::contract::check_task;
    use outerloop_core::Typed;
    use outerloop_lopt::hand::Adam;
    use outerloop_outer::Workers;

    fn iterative(encoding: Encoding) -> Inference {
        let (share, flow) = (Share::PerExample, Flow::Horizon1);
        let likelihood = Likelihood::Gaussian(0.0);
        Inference::Iterations(Iterative { net: step_net(16), encoding, share, flow, likelihood }, 1)
    }

    fn linear(steps: usize) -> LinearSequences {
        let model = LinearGaussian {
            a: Matrix::new(1, 1, vec![0.9]),
            c: Matrix::new(1, 1, vec![1.0]),
            q: Matrix::new(1, 1, vec![0.5]),
            r: Matrix::new(1, 1, vec![0.2]),
            m0: vec![0.0],
            p0: Matrix::new(1, 1, vec![1.0]),
        };
        LinearSequences { model, steps }
    }

    fn task(
        source: impl SequenceSource + 'static,
        inference: Inference,
        likelihood: Likelihood,
    ) -> SequenceTask {
        let source: Arc<dyn SequenceSource> = Arc::new(source);
        let sizes = Sizes { latent: 2, hidden: 12, batch_size: 8, ..Sizes::default() };
        SequenceTask::new([source.clone(), source], likelihood, inference, sizes).expect("valid sizes")
    }

    #[test]
    fn filters_are_tasks() {
        for (inference, likelihood) in [
            (Inference::Encoder(vec![5]), Likelihood::LearnedGaussian),
            (iterative(Encoding::NormGradient), Likelihood::Gaussian(-4.0)),
        ] {
            let memory = match inference {
                Inference::Encoder(_) => Memory::Latents,
                Inference::Iterations(..) => Memory::Observations,
            };
            let t = SequenceTask { memory, ..task(NoisyPendulum::new(3), inference, likelihood) };
            check_task(&Typed::new(t.clone()), &Typed::new(t)).unwrap_or_else(|e| panic!("{e}"));
        }
        let sources: [Arc<dyn SequenceSource>; 2] = [Arc::new(NoisyPendulum::new(3)), Arc::new(linear(3))];
        let error = SequenceTask::new(
            sources,
            Likelihood::Gaussian(0.0),
            Inference::Encoder(Vec::new()),
            Sizes::default(),
        );
        assert!(error.unwrap_err().to_string().contains("expected [3, 2], got [3, 1]"));
    }

    /// A trained filter's bound comes near the likelihood, which it cannot exceed.
    #[test]
    fn a_trained_filter_stays_below_the_exact_likelihood_and_comes_near() {
        let source = linear(4);
        let t = task(source.clone(), iterative(Encoding::Error), Likelihood::Gaussian(0.2f64.ln()));
        let adam = Box::new(Adam { epsilon_root: 0.0, ..Adam::new(1e-2) });
        let learner = task_learner(Arc::new(Typed::new(t.clone())), adam, 300, 1).expect("valid settings");
        let state = train_task(&learner, Key::new(1), &Workers::new(1).expect("a thread"), |_, _| ());
        let theta = state.expect("a run").theta.params;
        let (n, key) = (1000, Key::new(9));
        let bounds = t.bounds(&theta, n, 1, key);
        let exact: f64 = (0..n)
            .map(|i| {
                let (_, xs) = source.model.simulate(4, key.fold_in(i as u64));
                source.model.filter(&xs).iter().map(|s| s.log_likelihood).sum::<f64>()
            })
            .sum::<f64>()
            / n as f64;
        let after: f64 = bounds.iter().map(|b| b[1]).sum();
        let before: f64 = bounds.iter().map(|b| b[0]).sum();
        // What it takes the state for is nearer to Kalman's than to the observation itself.
        let (mut off, mut raw) = (0.0, 0.0);
        for i in 0..20 {
            let mut x = vec![0.0; 4];
            source.sequence(Key::new(10).fold_in(i), &mut x);
            let kalman = source.model.filter(&x.iter().map(|x| vec![*x]).collect::<Vec<_>>());
            let filtered = t.filter(&theta, &x, (50, 1), Key::new(11));
            assert!(filtered.std.iter().flatten().all(|s| *s > 0.0) && filtered.predicted.is_some());
            for (s, (k, x)) in kalman.iter().zip(&x).enumerate() {
                off += (filtered.mean[s][0] - k.filtered.mean[0]).abs();
                raw += (x - k.filtered.mean[0]).abs();
            }
        }
        assert!(off < raw, "{off} {raw}");
        assert!(after < exact + 0.05, "{after} {exact}");
        assert!(after > exact - 0.6 && after > before + 1.0, "{before} {after} {exact}");
    }
}
