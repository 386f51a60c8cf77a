//! A learned optimizer's network, packed for the kernels: the time features are the same for all
//! parameters, so their rows of the first layer are kept apart and added to its bias once per step.

use super::dense::{After, Dense};
use crate::features::time;
use crate::rule::mlp::MlpShape;
use outerloop_core::simd::{exp, load, store};
use outerloop_core::Layout;
use pulp::Simd;
use std::ops::Range;
use std::sync::OnceLock;

/// Vectors of parameters that go through the network together: the tile of [`super::dense`].
pub(crate) const COLUMNS: usize = 6;

/// f32 numbers in the widest vector of any path.
pub(crate) const MAX_LANES: usize = 16;

/// The packed weights of one theta.
pub(crate) struct Net {
    /// The layers; the first without the time features' rows.
    pub(crate) layers: Vec<Dense>,
    /// The layers backwards, made when a derivative first asks for them.
    back: OnceLock<Vec<Dense>>,
    /// The time features' rows of the first layer, `[11, outputs]`.
    time_weight: Vec<f32>,
    /// Where each layer's weight and bias lie in theta.
    pub(crate) ranges: Vec<[Range<usize>; 2]>,
}

impl Net {
    /// Packs the network `shape`, whose last 11 inputs are the time features.
    pub(crate) fn new(shape: &MlpShape, layout: &Layout, theta: &[f32]) -> Self {
        let range = |name| layout.get(name).expect("theta holds the network").range();
        let mut net =
            Net { layers: Vec::new(), back: OnceLock::new(), time_weight: Vec::new(), ranges: Vec::new() };
        for (inputs, outputs, w, b) in shape.layers() {
            net.ranges.push([range(w), range(b)]);
            let (w, b) = (&theta[range(w)], &theta[range(b)]);
            let mut inputs = inputs;
            if net.layers.is_empty() {
                inputs -= time::COUNT;
                net.time_weight = w[inputs * outputs..].to_vec();
            }
            net.layers.push(Dense::new(inputs, b.to_vec(), |i, o| w[i * outputs + o]));
        }
        net
    }

    /// Packs a network without time features, whose layers' weights and biases lie at `ranges` of `weights`.
    pub(crate) fn without_time(ranges: Vec<[Range<usize>; 2]>, weights: &[f32]) -> Self {
        let layers = ranges.iter().map(|[w, b]| {
            let (w, b) = (&weights[w.clone()], weights[b.clone()].to_vec());
            let outputs = b.len();
            Dense::new(w.len() / outputs, b, |i, o| w[i * outputs + o])
        });
        Net { layers: layers.collect(), back: OnceLock::new(), time_weight: Vec::new(), ranges }
    }

    /// The layers backwards, without biases.
    pub(crate) fn back(&self) -> &[Dense] {
        self.back.get_or_init(|| self.layers.iter().map(Dense::transposed).collect())
    }

    /// Units of the widest layer.
    pub(crate) fn widest(&self) -> usize {
        self.layers.iter().map(|l| l.outputs).max().unwrap_or(0)
    }

    /// The first layer's bias plus its time part, at `step`.
    #[inline(always)]
    pub(crate) fn time_bias<S: Simd>(&self, s: S, step: u64, bias: &mut [f32]) {
        let features = time_features(s, step);
        bias.copy_from_slice(&self.layers[0].bias);
        let units = bias.len();
        for (f, w) in features.iter().zip(self.time_weight.chunks_exact(units)) {
            let f = s.splat_f32s(*f);
            for (b, w) in bias.chunks_mut(S::F32_LANES).zip(w.chunks(S::F32_LANES)) {
                let sum = s.mul_add_e_f32s(f, load(s, w), load(s, b));
                store(s, b, sum);
            }
        }
    }

    /// The outputs `[outputs, V]` for V vectors of columns `x` `[inputs, V]`. `bias`: from
    /// [`Self::time_bias`]; `units`: two layers of [`Self::widest`] rows.
    #[inline(always)]
    pub(crate) fn forward<'a, S: Simd, const V: usize>(
        &self,
        s: S,
        bias: &[f32],
        x: &[S::f32s],
        units: &'a mut [S::f32s],
    ) -> &'a [S::f32s] {
        self.layers[0].forward::<S, V, V>(s, Some(bias), x, units, After::of(0, self.layers.len()));
        self.finish::<S, V, V>(s, units)
    }

    /// The outputs from the first layer's units, which are in the first half of `units`, for rows of ROW
    /// vectors, V at a time.
    #[inline(always)]
    pub(crate) fn finish<'a, S: Simd, const V: usize, const ROW: usize>(
        &self,
        s: S,
        units: &'a mut [S::f32s],
    ) -> &'a [S::f32s] {
        let depth = self.layers.len();
        let (mut from, mut to) = units.split_at_mut(units.len() / 2);
        for (i, layer) in self.layers.iter().enumerate().skip(1) {
            let x = &from[..layer.inputs * ROW];
            layer.forward::<S, V, ROW>(s, Some(&layer.bias), x, to, After::of(i, depth));
            std::mem::swap(&mut from, &mut to);
        }
        from
    }
}

/// [`stepped`] for the first elements of `params`, with the two rows of V vectors `out`; `mults`: exp_mult
/// and step_mult.
#[inline(always)]
pub(crate) fn apply_step<S: Simd, const V: usize>(
    s: S,
    out: &[S::f32s],
    mults: [f64; 2],
    params: &mut [f32],
) {
    for (v, p) in params.chunks_mut(S::F32_LANES).enumerate() {
        let next = stepped(s, load(s, p), [out[v], out[V + v]], mults);
        store(s, p, next);
    }
}

/// `p − step_mult · direction · exp(exp_mult · magnitude)`
#[inline(always)]
pub(crate) fn stepped<S: Simd>(
    s: S,
    p: S::f32s,
    [direction, magnitude]: [S::f32s; 2],
    [exp_mult, step_mult]: [f64; 2],
) -> S::f32s {
    let (exp_mult, step_mult) = (s.splat_f32s(exp_mult as f32), s.splat_f32s(step_mult as f32));
    let factor = exp(s, s.mul_f32s(exp_mult, magnitude));
    s.sub_f32s(p, s.mul_f32s(s.mul_f32s(direction, step_mult), factor))
}

/// [`time::features`] in f32, within 2e-7.
#[inline(always)]
pub(crate) fn time_features<S: Simd>(s: S, step: u64) -> [f32; time::COUNT] {
    let mut features = [0.0; time::COUNT];
    for (f, c) in features.iter_mut().zip(time::SCALES) {
        *f = (step as f64 / c - 1.0) as f32;
    }
    let one = s.splat_f32s(1.0);
    for f in features.chunks_mut(S::F32_LANES) {
        let x = load(s, f);
        // tanh(x); a relative bound is not needed.
        let e = exp(s, s.add_f32s(x, x));
        store(s, f, s.sub_f32s(one, s.div_f32s(s.splat_f32s(2.0), s.add_f32s(e, one))));
    }
    features
}
