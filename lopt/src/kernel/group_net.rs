//! A learned optimizer's network at several thetas at once: one theta per element of a vector.
//!
//! [`super::net`] has parameters along the vectors, which a handful of them does not fill. A group of
//! optimizers has as many thetas as a vector has elements, so nothing is left empty, and no sum crosses
//! a vector. Sums run in the same order: the same bits.

use super::dense::relu;
use super::net::time_features;
use crate::features::time;
use crate::rule::mlp::MlpShape;
use outerloop_core::simd::{with_scratch, Path, Simd, WithSimd};
use outerloop_core::Layout;

/// The weights of a group of thetas: `[weight, member]`, members padded with zeros to a vector.
pub(crate) struct GroupNet {
    weights: Vec<f32>,
    /// Where they begin: at a cache line.
    start: usize,
    /// The time features' part of the first layer, then the layers without it.
    layers: Vec<Panels>,
}

/// One layer in [`GroupNet::weights`]: the bias, then panels of `TILE` outputs, each
/// `[inputs, outputs of panel]`.
#[derive(Clone, Copy)]
struct Panels {
    inputs: usize,
    outputs: usize,
    /// Where the bias begins, in vectors; the time part has the first layer's, which has none.
    bias: usize,
    /// Where the panels begin, in vectors.
    panels: usize,
    /// Where bias and weight begin in theta.
    theta: [usize; 2],
}

/// Outputs per tile. With `PLACES` places it holds 10 sums and 2 weights in the 16 registers of AVX2.
const TILE: usize = 2;
/// Places per tile.
const PLACES: usize = 5;

/// Numbers in a cache line.
const LINE: usize = 16;

impl GroupNet {
    /// Packs the network `shape`, whose last 11 inputs are the time features, at each of `thetas`.
    ///
    /// # Panics
    /// If there are more thetas than a vector of `path` has elements.
    pub(crate) fn new(shape: &MlpShape, layout: &Layout, thetas: &[Vec<f32>], path: Path) -> Self {
        let mut layers = Vec::new();
        let mut at = 0;
        for (inputs, outputs, w, b) in shape.layers() {
            let offset = |name| layout.get(name).expect("theta holds the network").offset;
            let bias = at;
            at += outputs;
            // The time features come last, but the others are added to their sum.
            let own = if bias == 0 { inputs - time::COUNT } else { inputs };
            for inputs in [own..inputs, 0..own].into_iter().filter(|i| !i.is_empty()) {
                let theta = [offset(b), offset(w) + inputs.start * outputs];
                layers.push(Panels { inputs: inputs.len(), outputs, bias, panels: at, theta });
                at += inputs.len() * outputs;
            }
        }
        let lanes = path.lanes();
        let mut net = GroupNet { weights: vec![0.0; at * lanes + LINE], start: 0, layers };
        net.start = net.weights.as_ptr().align_offset(LINE * size_of::<f32>());
        with_scratch(layout.len() * lanes, |rows| {
            rows.fill(0.0);
            for (m, theta) in thetas.iter().enumerate() {
                rows.chunks_exact_mut(lanes).zip(theta).for_each(|(row, weight)| row[m] = *weight);
            }
            path.run(Pack { rows, layers: &net.layers, weights: &mut net.weights[net.start..] });
        });
        net
    }

    /// Vectors of scratch for [`Self::forward`] with `n` parameters.
    pub(crate) fn scratch(&self, n: usize) -> usize {
        self.layers[0].outputs + 2 * n * self.layers.iter().map(|l| l.outputs).max().unwrap_or(0)
    }

    /// The outputs `[outputs, n]` for the tensor features `x` `[.., n]`; `steps` are the members'.
    #[inline(always)]
    pub(crate) fn forward<'a, S: Simd>(
        &self,
        s: S,
        steps: &[u64],
        x: &[S::f32s],
        n: usize,
        scratch: &'a mut [S::f32s],
    ) -> &'a [S::f32s] {
        let weights = S::as_simd_f32s(&self.weights[self.start..]).0;
        let (time_part, layers) = self.layers.split_first().expect("a network has layers");
        let (bias, units) = scratch.split_at_mut(time_part.outputs);
        time_part.forward(s, weights, &weights[time_part.bias..], &group_time(s, steps), 1, bias, false);
        let half = units.len() / 2;
        let (mut from, mut to) = units.split_at_mut(half);
        for (l, layer) in layers.iter().enumerate() {
            let (bias, x) = if l == 0 { (&*bias, x) } else { (&weights[layer.bias..], &*from) };
            layer.forward(s, weights, bias, x, n, to, l + 1 < layers.len());
            std::mem::swap(&mut from, &mut to);
        }
        from
    }
}

/// [`time_features`] of every member.
#[inline(always)]
fn group_time<S: Simd>(s: S, steps: &[u64]) -> [S::f32s; time::COUNT] {
    let mut all = [s.splat_f32s(0.0); time::COUNT];
    let mut last = None;
    for (m, &step) in steps.iter().enumerate() {
        let (_, features) = match last {
            Some(known @ (at, _)) if at == step => known,
            _ => (step, time_features(s, step)),
        };
        last = Some((step, features));
        for (f, all) in features.iter().zip(&mut all) {
            pulp::bytemuck::cast_slice_mut::<S::f32s, f32>(std::slice::from_mut(all))[m] = *f;
        }
    }
    all
}

/// Copies the rows of theta, `[theta, member]`, to their places.
struct Pack<'a> {
    rows: &'a [f32],
    layers: &'a [Panels],
    weights: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (rows, weights) = (S::as_simd_f32s(self.rows).0, S::as_mut_simd_f32s(self.weights).0);
        for l in self.layers {
            let [bias, weight] = l.theta;
            weights[l.bias..][..l.outputs].copy_from_slice(&rows[bias..][..l.outputs]);
            let panels = weights[l.panels..][..l.inputs * l.outputs].chunks_mut(TILE * l.inputs);
            for (panel, to) in panels.enumerate() {
                let outputs = TILE.min(l.outputs - panel * TILE);
                let from = rows[weight + panel * TILE..].chunks(l.outputs);
                for (to, from) in to.chunks_exact_mut(outputs).zip(from) {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                }
            }
        }
    }
}

impl Panels {
    /// `y ← Wᵀ x + bias` for `n` places, then `max(y, 0)` if `is_rectified`. `x` `[inputs, n]`,
    /// `y` `[outputs, n]` or longer.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // a product and what surrounds it
    fn forward<S: Simd>(
        &self,
        s: S,
        weights: &[S::f32s],
        bias: &[S::f32s],
        x: &[S::f32s],
        n: usize,
        y: &mut [S::f32s],
        is_rectified: bool,
    ) {
        let panels = weights[self.panels..][..self.inputs * self.outputs].chunks(TILE * self.inputs);
        let (x, bias) = (&x[..self.inputs * n], &bias[..self.outputs]);
        for ((w, b), y) in panels.zip(bias.chunks(TILE)).zip(y.chunks_mut(TILE * n)) {
            match b.len() {
                1 => panel::<S, 1>(s, w, b, x, n, y, is_rectified),
                _ => panel::<S, TILE>(s, w, b, x, n, y, is_rectified),
            }
        }
    }
}

/// J outputs at `n` places, in tiles of places as even as can be. `w` `[inputs, J]`, `y` `[J, n]`.
#[inline(always)]
fn panel<S: Simd, const J: usize>(
    s: S,
    w: &[S::f32s],
    b: &[S::f32s],
    x: &[S::f32s],
    n: usize,
    y: &mut [S::f32s],
    is_rectified: bool,
) {
    let even = n.div_ceil(n.div_ceil(PLACES));
    let mut at = 0;
    while at < n {
        let places = even.min(n - at);
        match places {
            1 => tile::<S, J, 1>(s, w, b, x, n, y, at, is_rectified),
            2 => tile::<S, J, 2>(s, w, b, x, n, y, at, is_rectified),
            3 => tile::<S, J, 3>(s, w, b, x, n, y, at, is_rectified),
            4 => tile::<S, J, 4>(s, w, b, x, n, y, at, is_rectified),
            _ => tile::<S, J, PLACES>(s, w, b, x, n, y, at, is_rectified),
        }
        at += places;
    }
}

/// J outputs at P places from `at` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // as `Panels::forward`
fn tile<S: Simd, const J: usize, const P: usize>(
    s: S,
    w: &[S::f32s],
    b: &[S::f32s],
    x: &[S::f32s],
    n: usize,
    y: &mut [S::f32s],
    at: usize,
    is_rectified: bool,
) {
    let mut sums = [[s.splat_f32s(0.0); P]; J];
    for j in 0..J {
        sums[j] = [b[j]; P];
    }
    for (w, x) in w.chunks_exact(J).zip(x.chunks_exact(n)) {
        let x: &[S::f32s; P] = x[at..].first_chunk().expect("a place per sum");
        for j in 0..J {
            for p in 0..P {
                sums[j][p] = s.mul_add_e_f32s(x[p], w[j], sums[j][p]);
            }
        }
    }
    for j in 0..J {
        let y: &mut [S::f32s; P] = y[j * n + at..].first_chunk_mut().expect("a place per sum");
        for p in 0..P {
            y[p] = if is_rectified { relu(s, sums[j][p]) } else { sums[j][p] };
        }
    }
}
