//! [`Layer`]: a dense layer for one column, with its derivative.

use crate::kernel::dot::dot;
use crate::kernel::Path;
use outerloop_core::simd::{load, store};
use outerloop_core::Layout;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// One dense layer, `[inputs, outputs]` and `[outputs]`.
pub(super) struct Layer {
    w: Vec<f32>,
    b: Vec<f32>,
    /// Where both lie in theta.
    ranges: [Range<usize>; 2],
}

impl Layer {
    pub(super) fn new(layout: &Layout, theta: &[f32], name: &str) -> Self {
        let ranges = ["w", "b"]
            .map(|tensor| layout.get(&format!("{name}/{tensor}")).expect("theta holds the schedule").range());
        let [w, b] = ranges.clone().map(|range| theta[range].to_vec());
        Layer { w, b, ranges }
    }

    /// `Wᵀ x + b`; the sum begins with the first input and ends with the bias, as on the tape.
    pub(super) fn forward(&self, path: Path, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; self.b.len()];
        path.run(Forward { layer: self, x, y: &mut y });
        y
    }

    /// Given `adjoint` of the outputs at `x`: adds theta's to `theta` and that of x to `x_adjoint`.
    pub(super) fn backward(
        &self,
        path: Path,
        x: &[f32],
        adjoint: &[f32],
        theta: &mut [f32],
        x_adjoint: &mut [f32],
    ) {
        path.run(Backward { layer: self, x, adjoint, theta, x_adjoint });
    }
}

struct Forward<'a> {
    layer: &'a Layer,
    x: &'a [f32],
    y: &'a mut [f32],
}

/// Vectors of outputs whose sums are in registers at once.
const TILE: usize = 8;

impl WithSimd for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (outputs, mut at) = (self.y.len(), 0);
        while outputs - at >= TILE * S::F32_LANES {
            self.layer.tile(s, self.x, at, &mut self.y[at..]);
            at += TILE * S::F32_LANES;
        }
        for (i, y) in self.y[at..].chunks_mut(S::F32_LANES).enumerate() {
            let (from, len) = (at + i * S::F32_LANES, y.len());
            let mut sum = s.splat_f32s(0.0);
            for (x, w) in self.x.iter().zip(self.layer.w.chunks_exact(outputs)) {
                sum = s.add_f32s(sum, s.mul_f32s(load(s, &w[from..][..len]), s.splat_f32s(*x)));
            }
            store(s, y, s.add_f32s(sum, load(s, &self.layer.b[from..])));
        }
    }
}

impl Layer {
    /// [`TILE`] vectors of outputs, from output `at` on.
    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, x: &[f32], at: usize, y: &mut [f32]) {
        let mut sums = [s.splat_f32s(0.0); TILE];
        for (x, w) in x.iter().zip(self.w.chunks_exact(self.b.len())) {
            let (x, w) = (s.splat_f32s(*x), S::as_simd_f32s(&w[at..]).0);
            let w: &[S::f32s; TILE] = w.first_chunk().expect("a vector per sum");
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = s.add_f32s(*sum, s.mul_f32s(*w, x));
            }
        }
        let (b, y) = (S::as_simd_f32s(&self.b[at..]).0, S::as_mut_simd_f32s(y).0);
        for ((y, b), sum) in y.iter_mut().zip(b).zip(sums) {
            *y = s.add_f32s(sum, *b);
        }
    }
}

struct Backward<'a> {
    layer: &'a Layer,
    x: &'a [f32],
    adjoint: &'a [f32],
    theta: &'a mut [f32],
    x_adjoint: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Backward { layer: Layer { w, b, ranges: [w_range, b_range] }, x, adjoint, theta, x_adjoint } =
            self;
        for (to, a) in theta[b_range.clone()].iter_mut().zip(adjoint) {
            *to += a;
        }
        let rows = w.chunks_exact(b.len()).zip(theta[w_range.clone()].chunks_exact_mut(b.len()));
        for ((x, x_adjoint), (w, theta)) in x.iter().zip(x_adjoint).zip(rows) {
            *x_adjoint += dot(s, w, adjoint);
            let x = s.splat_f32s(*x);
            for (to, a) in theta.chunks_mut(S::F32_LANES).zip(adjoint.chunks(S::F32_LANES)) {
                let sum = s.mul_add_e_f32s(x, load(s, a), load(s, to));
                store(s, to, sum);
            }
        }
    }
}
