//! Networks between latents and images: decoders, fully connected or convolutional, and the convolutional encoder.
//!
//! The convolutional pair halves and doubles the picture: an encoder's convolution has stride 2, a decoder doubles rows and
//! columns by repeating pixels and convolves then. (A transposed convolution would do both at once, and leaves a
//! checkerboard: Odena, Dumoulin, Olah 2016.) All windows are 3 x 3 with zeros around the picture, all layers but the last
//! have ReLU. After Burgess et al. 2018, arXiv:1804.03599, whose windows are 4 x 4.

use super::iterative::Decode;
use crate::model::Model;
use crate::net::{linear, Act, Init, Mlp};
use crate::problem::{Problem, Query, Rows};
use outerloop_core::ops::{self, Activation, Padding};
use outerloop_core::tensor::{
    Backend, DynParams, DynTree, Float, HasShape, Mode, PutTape, SplitTape, Tensor,
};
use outerloop_core::{Error, Key, Layout, Result};

/// Height and width of all windows.
const WINDOW: usize = 3;

/// Feature maps, `[N, H, W, C]`.
type Maps<E, B, M> = Tensor<(usize, usize, usize, usize), E, B, M>;

/// From latents to logits (or means) of pixels; for
/// [`Likelihood::LearnedGaussian`](super::elbo::Likelihood::LearnedGaussian) all means and then all log-variances.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoder {
    /// Fully connected; its first width is the number of latents.
    Mlp(Mlp),
    /// Convolutional.
    Conv(ConvDecoder),
    /// A decoder of means, with log-variances behind them that are parameters and no functions of the latents.
    Noisy(Box<Decoder>, Noise),
}

/// How many log-variances a [`Decoder::Noisy`] learns. Parameter: `noise`, a tenth of them, since Adam moves all parameters
/// alike and these have farther to go; initially -0.2, a variance of `e⁻²`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// One for all pixels.
    Shared,
    /// One for each.
    PerPixel,
}

/// Log-variance per unit of the parameter.
const NOISE_SCALE: f64 = 10.0;

impl Noise {
    fn len(self, pixels: usize) -> usize {
        match self {
            Noise::Shared => 1,
            Noise::PerPixel => pixels,
        }
    }
    /// Log-variances behind the means `[N, P]`; `index`: position of the parameter.
    fn append<E: Float, B: Backend<E>, M: Mode<E, B>>(
        self,
        (params, index): (&DynParams<E, B>, usize),
        means: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        let (n, p) = *means.shape();
        let v = ops::scale(params.traced(index, (self.len(p),), M::default()), NOISE_SCALE);
        let row = match self {
            Noise::Shared => ops::reshape(ops::repeat_row(v, p), (p,)),
            Noise::PerPixel => v,
        };
        ops::concat(means, &ops::repeat_row(row, n).split_tape().0)
    }
}

impl From<Mlp> for Decoder {
    fn from(net: Mlp) -> Self {
        Decoder::Mlp(net)
    }
}

impl From<ConvDecoder> for Decoder {
    fn from(net: ConvDecoder) -> Self {
        Decoder::Conv(net)
    }
}

impl Decoder {
    /// Number of latents.
    pub fn latent(&self) -> usize {
        match self {
            Decoder::Mlp(net) => net.widths[0],
            Decoder::Conv(net) => net.latent,
            Decoder::Noisy(net, _) => net.latent(),
        }
    }
    /// Numbers that come out for an image; 0 for a network without layers.
    pub fn outputs(&self) -> usize {
        match self {
            Decoder::Mlp(net) if net.widths.len() < 2 => 0,
            Decoder::Mlp(net) => net.widths[net.widths.len() - 1],
            Decoder::Conv(net) => net.numbers * net.maps.pixels(),
            Decoder::Noisy(net, _) => 2 * net.outputs(),
        }
    }
    /// How initial weights are drawn.
    pub fn init(&self) -> Init {
        match self {
            Decoder::Mlp(net) => net.init,
            Decoder::Conv(net) => net.maps.init,
            Decoder::Noisy(net, _) => net.init(),
        }
    }
    /// Appends the parameters, names after a prefix.
    pub fn push(&self, layout: &mut Layout, prefix: &str) {
        match self {
            Decoder::Mlp(net) => net.push(layout, prefix),
            Decoder::Conv(net) => push(&net.layers(), layout, prefix),
            Decoder::Noisy(net, noise) => {
                net.push(layout, prefix);
                layout.push(format!("{prefix}noise"), vec![noise.len(net.outputs())]);
            }
        }
    }
    /// Number of parameter tensors.
    pub fn tensors(&self) -> usize {
        match self {
            Decoder::Mlp(net) => net.tensors(),
            Decoder::Conv(net) => 2 * net.layers().len(),
            Decoder::Noisy(net, _) => net.tensors() + 1,
        }
    }
    /// Number of parameters.
    pub fn len(&self) -> usize {
        match self {
            Decoder::Mlp(net) => net.len(),
            Decoder::Conv(net) => net.layers().iter().map(Layer::len).sum(),
            Decoder::Noisy(net, noise) => net.len() + noise.len(net.outputs()),
        }
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Writes initial values, [`Self::len`] of them.
    pub fn fill(&self, key: Key, out: &mut [f64]) {
        match self {
            Decoder::Mlp(net) => net.fill(key, out),
            Decoder::Conv(net) => fill(&net.layers(), net.maps.init, key, out),
            Decoder::Noisy(net, _) => {
                let (means, noise) = out.split_at_mut(net.len());
                net.fill(key, means);
                noise.fill(-2.0 / NOISE_SCALE);
            }
        }
    }
    /// The outputs `[N, P]` for latents `[N, Z]`; `first` is the position of the first tensor.
    pub fn forward<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        first: usize,
        z: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        match self {
            Decoder::Mlp(net) => net.forward(params, first, z),
            Decoder::Conv(net) => net.forward(params, first, z),
            Decoder::Noisy(net, noise) => {
                noise.append((params, first + net.tensors()), net.forward(params, first, z))
            }
        }
    }
}

/// A decoder among other parameters.
#[derive(Clone, Debug)]
pub struct DecoderAt {
    /// The network.
    pub net: Decoder,
    /// Position of its first tensor.
    pub first: usize,
}

impl<E: Float, B: Backend<E>> Decode<E, B> for DecoderAt {
    fn run<M: Mode<E, B>>(&self, params: &DynParams<E, B>, z: Rows<E, B, M>) -> Rows<E, B, M> {
        self.net.forward(params, self.first, z)
    }
}

/// The pictures of a convolutional network, and the sizes of its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Maps2d {
    /// Height, width and channels of a picture.
    pub shape: [usize; 3],
    /// Channels of the feature maps, from the picture's side on; every next map has half the rows and columns, rounded up.
    /// Default 16, 32.
    pub channels: Vec<usize>,
    /// Units between the smallest map and the latents; default 128.
    pub hidden: usize,
    /// Default: torch's.
    pub init: Init,
}

impl Maps2d {
    /// With the defaults.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn new(shape: [usize; 3]) -> Result<Self> {
        Self::with_channels(shape, &[16, 32], 128)
    }
    /// With other sizes.
    ///
    /// # Errors
    /// A picture without pixels, no maps, a size of 0.
    pub fn with_channels(shape: [usize; 3], channels: &[usize], hidden: usize) -> Result<Self> {
        if channels.is_empty() || shape.iter().chain(channels).any(|n| *n == 0) || hidden == 0 {
            let got = format!("picture {shape:?}, channels {channels:?}, hidden {hidden}");
            return Err(Error::invalid(
                "convolutional network",
                format!("sizes must be at least 1, got {got}"),
            ));
        }
        Ok(Maps2d { shape, channels: channels.to_vec(), hidden, init: Init::Torch })
    }
    fn pixels(&self) -> usize {
        self.shape.iter().product()
    }
    /// Height and width of the picture (0) and of every map.
    fn size(&self, map: usize) -> [usize; 2] {
        [0, 1].map(|axis| (0..map).fold(self.shape[axis], |n, _| n.div_ceil(2)))
    }
    /// Channels of the picture (0) and of every map.
    fn depth(&self, map: usize) -> usize {
        if map == 0 {
            self.shape[2]
        } else {
            self.channels[map - 1]
        }
    }
    /// Numbers in the smallest map.
    fn smallest(&self) -> usize {
        let [h, w] = self.size(self.channels.len());
        h * w * self.depth(self.channels.len())
    }
}

/// One layer's weights: their shape, outputs last, and biases behind them.
struct Layer {
    name: String,
    shape: Vec<usize>,
}

impl Layer {
    fn dense(name: &str, inputs: usize, outputs: usize) -> Self {
        Layer { name: name.into(), shape: vec![inputs, outputs] }
    }
    fn conv(map: usize, inputs: usize, outputs: usize) -> Self {
        Layer { name: format!("conv{map}"), shape: vec![WINDOW, WINDOW, inputs, outputs] }
    }
    fn outputs(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }
    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() + self.outputs()
    }
}

fn push(layers: &[Layer], layout: &mut Layout, prefix: &str) {
    for l in layers {
        layout.push(format!("{prefix}{}/w", l.name), l.shape.clone());
        layout.push(format!("{prefix}{}/b", l.name), vec![l.outputs()]);
    }
}

fn fill(layers: &[Layer], init: Init, key: Key, out: &mut [f64]) {
    let mut rest = out;
    for (i, l) in layers.iter().enumerate() {
        let (w, tail) = rest.split_at_mut(l.len() - l.outputs());
        let (b, tail) = tail.split_at_mut(l.outputs());
        init.fill([w.len() / l.outputs(), l.outputs()], key.fold_in(i as u64), w, b);
        rest = tail;
    }
}

fn convolve<E: Float, B: Backend<E>, M: Mode<E, B>>(
    (params, index): (&DynParams<E, B>, usize),
    x: Maps<E, B, M>,
    outputs: usize,
    (stride, act): (usize, Activation),
) -> Maps<E, B, M> {
    let inputs = x.shape().3;
    let w = params.get(index, (WINDOW, WINDOW, inputs, outputs));
    ops::conv2d(x, &w, &params.get(index + 1, (outputs,)), [stride, stride], Padding::Same, act)
}

/// Maps of height and width `[h, w]`, every pixel from the one at half its place.
fn doubled<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Maps<E, B, M>, [h, w]: [usize; 2]) -> Maps<E, B, M> {
    let (n, from_h, from_w, c) = *x.shape();
    let mut ids = Vec::with_capacity(n * h * w);
    for row in (0..n).flat_map(|i| (0..h).map(move |y| i * from_h + y / 2)) {
        ids.extend((0..w).map(|x| (row * from_w + x / 2) as u32));
    }
    let pixels = ops::reshape(x, (n * from_h * from_w, c));
    ops::reshape(ops::embedding(pixels, &ids), (n, h, w, c))
}

/// Latents, two dense layers, then maps from the smallest on: doubled and convolved.
///
/// Parameters: `in`, `out` (dense), then `convK` down to `conv0`, which gives the picture; each `w`, outputs last, and `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvDecoder {
    /// Number of latents.
    pub latent: usize,
    /// Pictures and sizes.
    pub maps: Maps2d,
    /// Numbers per pixel and channel: 1, or 2, the mean and the log-variance.
    pub numbers: usize,
}

impl ConvDecoder {
    /// One number per pixel and channel.
    pub fn new(latent: usize, maps: Maps2d) -> Self {
        ConvDecoder { latent, maps, numbers: 1 }
    }
    fn layers(&self) -> Vec<Layer> {
        let m = &self.maps;
        let dense = [Layer::dense("in", self.latent, m.hidden), Layer::dense("out", m.hidden, m.smallest())];
        let conv = (0..m.channels.len()).rev().map(|i| Layer::conv(i, m.depth(i + 1), self.depth(i)));
        dense.into_iter().chain(conv).collect()
    }
    /// Channels that come out at a map.
    fn depth(&self, map: usize) -> usize {
        self.maps.depth(map) * if map == 0 { self.numbers } else { 1 }
    }
    fn forward<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        first: usize,
        z: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        let (m, n) = (&self.maps, z.shape().0);
        let h = linear(params, first, z, m.hidden, Act::Relu);
        let h = linear(params, first + 2, h, m.smallest(), Act::Relu);
        let last = m.channels.len();
        let [height, width] = m.size(last);
        let mut x = ops::reshape(h, (n, height, width, m.depth(last))); // [N, H, W, C]
        for (k, map) in (0..last).rev().enumerate() {
            let act = if map == 0 { Activation::Identity } else { Activation::Relu };
            x = convolve((params, first + 4 + 2 * k), doubled(x, m.size(map)), self.depth(map), (1, act));
        }
        if self.numbers == 1 {
            return ops::reshape(x, (n, m.pixels()));
        }
        // From a pixel's numbers side by side to pictures side by side.
        let c = m.depth(0);
        let pixels = ops::reshape(x, (n * m.pixels() / c, self.numbers * c));
        let picture = |i: usize| ops::reshape(ops::columns(pixels.clone(), i * c, c), (n, m.pixels()));
        (1..self.numbers).fold(picture(0), |all, i| ops::concat(all, &picture(i).split_tape().0))
    }
}

/// The convolutional encoder as a model: convolutions of stride 2, then two dense layers.
///
/// For problems whose features are the pixels of a picture, row by row, channels last. Parameters: `conv0` and on, `in`,
/// `out`; each `w`, outputs last, and `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvEncoder(pub Maps2d);

impl ConvEncoder {
    fn layers(&self, outputs: usize) -> Vec<Layer> {
        let m = &self.0;
        let conv = (0..m.channels.len()).map(|i| Layer::conv(i, m.depth(i), m.depth(i + 1)));
        let dense = [Layer::dense("in", m.smallest(), m.hidden), Layer::dense("out", m.hidden, outputs)];
        conv.chain(dense).collect()
    }
}

impl Model for ConvEncoder {
    fn name(&self) -> String {
        let channels: Vec<String> = self.0.channels.iter().map(usize::to_string).collect();
        format!("conv{}", channels.join("-"))
    }
    fn check<P: Problem>(&self, problem: &P) -> Result<()> {
        let (expected, got) = (self.0.pixels(), problem.features_dim());
        if expected != got {
            let what = format!("convolutional encoder: features, pixels of {:?}", self.0.shape);
            return Err(Error::mismatch(what, expected, got));
        }
        Ok(())
    }
    fn layout<P: Problem>(&self, problem: &P) -> Layout {
        let mut layout = Layout::default();
        push(&self.layers(problem.dim()), &mut layout, "");
        layout
    }
    fn init<P: Problem>(&self, problem: &P, key: Key, out: &mut [f64]) {
        fill(&self.layers(problem.dim()), self.0.init, key, out);
    }
    fn predict<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        problem: &P,
        at: &Query<'_, E, B>,
        params: &DynParams<E, B>,
        m: M,
    ) -> Vec<Rows<E, B, M>> {
        let (maps, n) = (&self.0, at.x.shape().0);
        let [h, w, c] = maps.shape;
        let mut x = ops::reshape(problem.features(at.x), (n, h, w, c)).put_tape(m);
        let last = maps.channels.len();
        for map in 0..last {
            x = convolve((params, 2 * map), x, maps.depth(map + 1), (2, Activation::Relu));
        }
        let h = ops::reshape(x, (n, maps.smallest()));
        let h = linear(params, 2 * last, h, maps.hidden, Act::Relu);
        vec![linear(params, 2 * last + 2, h, problem.dim(), Act::Identity)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::elbo::Likelihood;
    use crate::inference::vae::Vae;
    use crate::problem::ContextTask;
    use crate::task::{AmortizedTask, Training};
    use outerloop_core::contract::check_task;
    use outerloop_core::tensor::{host_data, Cpu, TensorFromVec};
    use outerloop_core::{BatchKey, FlatTask, Typed};
    use outerloop_tasks::data::{digits, ImageData};
    use std::sync::Arc;

    /// Pictures of odd sizes and two channels.
    fn odd() -> ImageData {
        let mut pixels = vec![0.0; 6 * 5 * 7 * 2];
        Key::new(4).fill_normal(&mut pixels);
        pixels.iter_mut().for_each(|p| *p = 1.0 / (1.0 + f32::exp(-*p)));
        ImageData::new("odd", pixels, vec![0; 6], [5, 7, 2], 1).expect("valid sizes")
    }

    fn maps(images: &ImageData, channels: &[usize]) -> Maps2d {
        let shape = [images.height, images.width, images.channels];
        Maps2d::with_channels(shape, channels, 6).expect("valid sizes")
    }

    fn task(decoder: impl Into<Decoder>, likelihood: Likelihood) -> AmortizedTask<Vae, ConvEncoder> {
        let vae = Vae::with_likelihood(&odd(), 4, decoder, likelihood).expect("valid sizes");
        let training = Training { batch_size: 2, ..Training::default() };
        AmortizedTask::new(vae, ConvEncoder(maps(&odd(), &[2, 3])), training).expect("valid settings")
    }

    fn check_slopes(task: AmortizedTask<Vae, ConvEncoder>) {
        check_task(&Typed::new(task.clone()), &Typed::new(task.clone())).unwrap_or_else(|e| panic!("{e}"));
        let flat: Arc<dyn FlatTask<f64>> = Arc::new(Typed::new(task));
        let mut p = flat.init(Key::new(1)).data;
        let mut aside = vec![0.0; p.len()];
        Key::new(2).fill_normal(&mut aside);
        p.iter_mut().zip(&aside).for_each(|(p, a)| *p += 0.1 * a);
        let (mut evaluator, at) = (flat.evaluator(), BatchKey::train(0, Key::new(3)));
        let mut grad = vec![0.0; p.len()];
        evaluator.loss_and_grad(&p, &mut [], at, &mut grad);
        let size = grad.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        // Small against the distance to most kinks of ReLU, large against the rounding of f64 losses near 50.
        let h = 1e-6;
        let mut near = 0;
        for i in 0..p.len() {
            let mut at_step = |h: f64| {
                let mut q = p.clone();
                q[i] += h;
                evaluator.loss(&q, &[], at)
            };
            let slope = (at_step(h) - at_step(-h)) / (2.0 * h);
            near += usize::from((slope - grad[i]).abs() < 1e-6 * size);
        }
        // A kink between the two points is allowed to one parameter in a hundred.
        assert!(100 * near >= 99 * p.len(), "{near} of {}", p.len());
        for e in flat.layout().entries() {
            assert!(grad[e.range()].iter().any(|g| *g != 0.0), "{} learns nothing", e.name);
        }
    }

    #[test]
    fn every_gradient_is_the_slope_of_the_loss() {
        check_slopes(task(ConvDecoder::new(2, maps(&odd(), &[2, 3])), Likelihood::Bernoulli));
        let twice = ConvDecoder { numbers: 2, ..ConvDecoder::new(2, maps(&odd(), &[2])) };
        check_slopes(task(twice, Likelihood::LearnedGaussian));
        for noise in [Noise::Shared, Noise::PerPixel] {
            let noisy = Decoder::Noisy(Box::new(Mlp::new([2, 4, 70]).into()), noise);
            check_slopes(task(noisy, Likelihood::LearnedGaussian));
        }
    }

    /// The negative bound by hand, for a decoder of one layer `z W + b`; gradient by the log-variances
    /// `½ Σ (1 − (x − o)² e^{−v})`, zero where a variance is the mean squared error.
    #[test]
    fn learned_variances_are_those_of_a_gaussian() {
        let images = odd();
        let (p, z, key) = (70, 2, Key::new(3));
        for (noise, len) in [(Noise::Shared, 1), (Noise::PerPixel, p)] {
            let decoder = Decoder::Noisy(Box::new(Mlp::new([z, p]).into()), noise);
            assert_eq!([decoder.outputs(), decoder.len(), decoder.tensors()], [2 * p, (z + 1) * p + len, 3]);
            let vae = Vae::with_likelihood(&images, 4, decoder, Likelihood::LearnedGaussian).unwrap();
            let mut own = vec![0.0; vae.own_layout().len()];
            vae.own_init(Key::new(1), &mut own);
            let first = own.len() - len;
            assert!(own[first..].iter().all(|v| *v == -0.2));
            own[first..].iter_mut().enumerate().for_each(|(i, v)| *v += 0.01 * i as f64);
            let (x, mut y) = (vae.test_set(1), vec![0.0; 2 * 2 * z]);
            Key::new(2).fill_normal(&mut y);
            let mut eps = vec![0.0; 2 * z];
            key.fill_normal(&mut eps);
            let error = |own: &[f64], n: usize, j: usize| {
                let latent = |k: usize| y[4 * n + k] + (0.5f64 * y[4 * n + 2 + k]).exp() * eps[2 * n + k];
                let o = own[z * p + j] + (0..z).map(|k| latent(k) * own[k * p + j]).sum::<f64>();
                (x[n * p + j] - o).powi(2)
            };
            let log_variance = |own: &[f64], j: usize| 10.0 * own[first + j.min(len - 1)];
            let task = |own: &[f64]| ContextTask {
                problem: vae.clone(),
                contexts: x.clone(),
                own: own.to_vec(),
                start: Vec::new(),
            };
            for (n, got) in task(&own).values(&y, key).into_iter().enumerate() {
                let row = &y[4 * n..][..4];
                let kl = |k: usize| 0.5 * (row[k].powi(2) + row[2 + k].exp() - 1.0 - row[2 + k]);
                let nats = |j: usize| {
                    let v = log_variance(&own, j);
                    0.5 * ((2.0 * std::f64::consts::PI).ln() + v + error(&own, n, j) * (-v).exp())
                };
                let want = (0..z).map(kl).sum::<f64>() + (0..p).map(nats).sum::<f64>();
                assert!((got - want).abs() < 1e-9, "{noise:?}: {got} {want}");
            }
            // The best variances are the mean squared errors: any other is worse.
            let pixels = |i: usize| if len == 1 { 0..p } else { i..i + 1 };
            let mut best = own.clone();
            for i in 0..len {
                let all: Vec<f64> = pixels(i).flat_map(|j| [error(&own, 0, j), error(&own, 1, j)]).collect();
                best[first + i] = 0.1 * (all.iter().sum::<f64>() / all.len() as f64).ln();
            }
            let total = |own: &[f64]| task(own).values(&y, key).iter().sum::<f64>();
            let lowest = total(&best);
            for (i, step) in [(first, 1e-3), (first, -1e-3), (own.len() - 1, 1e-3)] {
                let mut moved = best.clone();
                moved[i] += step;
                assert!(total(&moved) > lowest, "{noise:?}: {i} {step}");
            }
        }
    }

    #[test]
    fn pictures_of_another_size_are_refused() {
        let vae = Vae::new(&digits(), 9, Mlp::new([2, 64])).expect("valid sizes");
        let encoder = ConvEncoder(Maps2d::new([8, 7, 1]).expect("valid sizes"));
        let error = AmortizedTask::new(vae, encoder, Training::default()).unwrap_err().to_string();
        assert!(error.contains("[8, 7, 1]: expected 56, got 64"), "{error}");
    }

    #[test]
    fn parameters_have_their_names_and_maps_their_sizes() {
        let t = task(ConvDecoder::new(2, maps(&odd(), &[2, 3])), Likelihood::Bernoulli);
        let layout = FlatTask::<f32>::layout(&Typed::new(t.clone()));
        let shapes: Vec<(String, Vec<usize>)> =
            layout.entries().iter().map(|e| (e.name.clone(), e.shape.clone())).collect();
        let shape = |name: &str| shapes.iter().find(|s| s.0 == name).map(|s| s.1.clone()).unwrap_or_default();
        assert_eq!(shape("conv0/w"), [3, 3, 2, 2]);
        assert_eq!(shape("in/w"), [2 * 2 * 3, 6]); // 5 x 7, 3 x 4, 2 x 2
        assert_eq!(shape("problem/decoder/out/w"), [6, 12]);
        assert_eq!(shape("problem/decoder/conv0/w"), [3, 3, 2, 2]);
        assert_eq!(t.problem.decoder.tensors(), 8);
        let error = Maps2d::with_channels([8, 8, 1], &[], 4).unwrap_err().to_string();
        assert!(error.contains("at least 1, got picture [8, 8, 1], channels []"), "{error}");
        let wrong = ConvDecoder::new(2, Maps2d::new([8, 7, 1]).expect("valid sizes"));
        let error = Vae::new(&digits(), 9, wrong).unwrap_err().to_string();
        assert!(error.contains("expected 64, got 56"), "{error}");
    }

    #[test]
    fn doubling_repeats_pixels() {
        let x: Maps<f64, Cpu, outerloop_core::tensor::NoneTape> =
            Cpu::default().tensor_from_vec(vec![1.0, 2.0, 3.0, 4.0], (1, 2, 2, 1));
        let y = doubled(x, [3, 4]);
        assert_eq!(host_data(&y).to_vec(), [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
    }
}
