//! A learned optimizer's network for few parameters: units along the vectors.
//!
//! [`super::net`] has parameters along the vectors, which a handful of them does not fill. Here a
//! layer's units fill them, and the parameters take turns. Sums run in the same order: the same bits.

use super::dense::relu;
use super::net::time_features;
use crate::features::time;
use crate::rule::mlp::MlpShape;
use outerloop_core::simd::{Path, Simd};
use outerloop_core::Layout;

/// The weights of one theta, rows padded with zeros to whole vectors.
pub(crate) struct UnitNet {
    /// All layers' rows.
    weights: Vec<f32>,
    /// Where they begin: at a cache line.
    start: usize,
    layers: Vec<Rows>,
}

/// One layer's rows in [`UnitNet::weights`]: the bias, then one per input.
struct Rows {
    inputs: usize,
    outputs: usize,
    /// Numbers per row.
    stride: usize,
    /// Where the bias begins.
    at: usize,
}

/// Numbers in a cache line.
const LINE: usize = 16;

impl UnitNet {
    /// Packs the network `shape`, whose last 11 inputs are the time features, for a path's vectors.
    pub(crate) fn new(shape: &MlpShape, layout: &Layout, theta: &[f32], path: Path) -> Self {
        let mut layers: Vec<Rows> = Vec::new();
        let mut len = 0;
        for (inputs, outputs, ..) in shape.layers() {
            let stride = outputs.next_multiple_of(path.lanes());
            layers.push(Rows { inputs, outputs, stride, at: len });
            len += (1 + inputs) * stride;
        }
        let mut weights = vec![0.0; len + LINE];
        let start = weights.as_ptr().align_offset(LINE * size_of::<f32>());
        for (rows, (.., w, b)) in layers.iter().zip(shape.layers()) {
            let range = |name| layout.get(name).expect("theta holds the network").range();
            let (bias, to) = weights[start + rows.at..].split_at_mut(rows.stride);
            bias[..rows.outputs].copy_from_slice(&theta[range(b)]);
            let from = theta[range(w)].chunks_exact(rows.outputs);
            for (to, from) in to.chunks_exact_mut(rows.stride).zip(from) {
                to[..rows.outputs].copy_from_slice(from);
            }
        }
        UnitNet { weights, start, layers }
    }

    /// Numbers of scratch for [`Self::forward`] with `n` parameters.
    pub(crate) fn scratch(&self, n: usize) -> usize {
        (1 + 2 * n) * self.widest()
    }

    fn widest(&self) -> usize {
        self.layers.iter().map(|l| l.stride).max().unwrap_or(0)
    }

    /// The outputs of `n` parameters at `step`, in rows of the returned length. `x` holds the tensor
    /// features, `[.., width]`, one column per parameter; `scratch` begins at a cache line.
    #[inline(always)]
    pub(crate) fn forward<'a, S: Simd>(
        &self,
        s: S,
        step: u64,
        x: &[f32],
        width: usize,
        n: usize,
        scratch: &'a mut [f32],
    ) -> (&'a [f32], usize) {
        let widest = self.widest();
        let (time_bias, units) = scratch.split_at_mut(widest);
        let (mut from, mut to) = units.split_at_mut(n * widest);
        let mut before = 0;
        for (l, rows) in self.layers.iter().enumerate() {
            let weights = &self.weights[self.start + rows.at..][..(1 + rows.inputs) * rows.stride];
            let (mut start, mut weight) = weights.split_at(rows.stride);
            let mut left = Left::Rows(from, before);
            if l == 0 {
                // The time features are the same for all parameters.
                let (own, time_weight) = weight.split_at((rows.inputs - time::COUNT) * rows.stride);
                let features = time_features(s, step);
                let bias = &mut time_bias[..rows.stride];
                let product = Product { start, weight: time_weight, relu: false };
                product.run(s, Left::Rows(&features, time::COUNT), 1, bias);
                (start, weight, left) = (bias, own, Left::Columns(x, width));
            }
            Product { start, weight, relu: l + 1 < self.layers.len() }.run(s, left, n, to);
            before = rows.stride;
            std::mem::swap(&mut from, &mut to);
        }
        (from, before)
    }
}

/// The inputs of a layer's places.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// A row of this many numbers per place.
    Rows(&'a [f32], usize),
    /// A row of this many numbers per input.
    Columns(&'a [f32], usize),
}

/// `y ← start + Wᵀ x` per place, `max(y, 0)` if `relu`.
struct Product<'a> {
    /// `[stride]`
    start: &'a [f32],
    /// `[inputs, stride]`
    weight: &'a [f32],
    relu: bool,
}

/// Places per tile of V vectors: sums, weights and an input fit into the 16 registers of AVX2.
const fn most(vectors: usize) -> usize {
    match vectors {
        1 | 2 => 6,
        _ => 3,
    }
}

impl Product<'_> {
    /// For places `0..n`; `y` `[n, stride]` or longer.
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, left: Left<'_>, n: usize, y: &mut [f32]) {
        let vectors = self.start.len() / S::F32_LANES;
        let mut from = 0;
        while from < vectors {
            from += match vectors - from {
                4.. if n < 4 => self.columns::<S, 4>(s, left, n, from, y),
                2.. => self.columns::<S, 2>(s, left, n, from, y),
                _ => self.columns::<S, 1>(s, left, n, from, y),
            };
        }
    }

    /// V vectors of units from vector `from` on, in tiles of places as even as can be; returns V.
    #[inline(always)]
    fn columns<S: Simd, const V: usize>(
        &self,
        s: S,
        left: Left<'_>,
        n: usize,
        from: usize,
        y: &mut [f32],
    ) -> usize {
        let most = most(V);
        let mut at = 0;
        while at < n {
            let places = match n - at {
                rest if rest <= most => rest,
                rest if rest <= 2 * most => rest.div_ceil(2),
                _ => most,
            };
            match places {
                1 => self.tile::<S, 1, V>(s, left, at, from, y),
                2 => self.tile::<S, 2, V>(s, left, at, from, y),
                3 => self.tile::<S, 3, V>(s, left, at, from, y),
                4 => self.tile::<S, 4, V>(s, left, at, from, y),
                5 => self.tile::<S, 5, V>(s, left, at, from, y),
                _ => self.tile::<S, 6, V>(s, left, at, from, y),
            }
            at += places;
        }
        V
    }

    /// P places from `at` on.
    #[inline(always)]
    fn tile<S: Simd, const P: usize, const V: usize>(
        &self,
        s: S,
        left: Left<'_>,
        at: usize,
        from: usize,
        y: &mut [f32],
    ) {
        if P > most(V) {
            return; // no code for what the caller does not ask for
        }
        let vectors = self.start.len() / S::F32_LANES;
        let start = &S::as_simd_f32s(self.start).0[from..from + V];
        let weight = S::as_simd_f32s(self.weight).0.chunks_exact(vectors);
        let mut sums = [[s.splat_f32s(0.0); V]; P];
        for sum in &mut sums {
            sum.copy_from_slice(start);
        }
        match left {
            Left::Rows(x, place) => {
                let mut rows = [x; P];
                for (p, row) in rows.iter_mut().enumerate() {
                    *row = &x[(at + p) * place..][..weight.len()];
                }
                for (i, w) in weight.enumerate() {
                    // SAFETY: every row is as long as there are rows of weights.
                    let x = |p: usize| unsafe { *rows[p].get_unchecked(i) };
                    add(s, x, &w[from..from + V], &mut sums);
                }
            }
            Left::Columns(x, width) => {
                for (x, w) in x.chunks_exact(width).zip(weight) {
                    let x: &[f32; P] = x[at..].first_chunk().expect("a column per place");
                    add(s, |p| x[p], &w[from..from + V], &mut sums);
                }
            }
        }
        let y = S::as_mut_simd_f32s(y).0;
        for (y, sum) in y[at * vectors..].chunks_exact_mut(vectors).zip(&sums) {
            for (y, sum) in y[from..from + V].iter_mut().zip(sum) {
                *y = if self.relu { relu(s, *sum) } else { *sum };
            }
        }
    }
}

/// `sums += x wᵀ`
#[inline(always)]
fn add<S: Simd, const P: usize, const V: usize>(
    s: S,
    x: impl Fn(usize) -> f32,
    w: &[S::f32s],
    sums: &mut [[S::f32s; V]; P],
) {
    for (p, sums) in sums.iter_mut().enumerate() {
        let x = s.splat_f32s(x(p));
        for v in 0..V {
            sums[v] = s.mul_add_e_f32s(x, w[v], sums[v]);
        }
    }
}
