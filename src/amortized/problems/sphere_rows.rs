//! The objective of [`Sphere`](super::sphere::Sphere) as one operation.

use super::sphere::half_squared_distance;
use crate::problem::Rows;
use outerloop_core::ops::{apply, handle, Primal, RawOp, Tangent};
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Tensor};

/// `f(y) = −γ ln Σₖ exp(−cₖ/γ)` with `cₖ = c(tₖ) + αₖ`, `tₖ = zₖ·y`; input `y` `[N, 3]`, output `[N]`.
///
/// Gradient `Σ wₖ c'ₖ zₖ` with the softmax `w` of `−c/γ`; its change along `v`, with `τₖ = zₖ·v`, is
/// `Σ (wₖ c''ₖ τₖ + ẇₖ c'ₖ) zₖ`, `ẇₖ = wₖ (Σⱼ wⱼ c'ⱼ τⱼ − c'ₖ τₖ)/γ`.
struct SoftMinRows<E> {
    /// Components and offsets, `[N, 3 K + K]`.
    contexts: Vec<E>,
    components: usize,
    gamma: E,
    /// `wₖ` and `wₖ c'ₖ` where the value was computed, `[N, K]` each.
    weights: Vec<E>,
    slopes: Vec<E>,
}

fn dot<E: Float>(a: &[E], b: &[E]) -> E {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

impl<E: Float> SoftMinRows<E> {
    /// Components of row `i`, 3 numbers each, and offsets.
    fn row(&self, i: usize) -> (&[E], &[E]) {
        let k = self.components;
        self.contexts[4 * k * i..][..4 * k].split_at(3 * k)
    }
    /// `Σ sₖ zₖ · a` for every row.
    fn slope(&self, a: &[E], out: &mut [E]) {
        for (i, (out, a)) in out.iter_mut().zip(a.chunks_exact(3)).enumerate() {
            let slopes = &self.slopes[self.components * i..][..self.components];
            *out += self.row(i).0.chunks_exact(3).zip(slopes).map(|(z, s)| *s * dot(z, a)).sum::<E>();
        }
    }
    /// `d += dy Σ sₖ zₖ`
    fn adjoint(&self, dy: &[E], d: &mut [E]) {
        for (i, (d, dy)) in d.chunks_exact_mut(3).zip(dy).enumerate() {
            let slopes = &self.slopes[self.components * i..][..self.components];
            for (z, s) in self.row(i).0.chunks_exact(3).zip(slopes) {
                d.iter_mut().zip(z).for_each(|(d, z)| *d += *dy * *s * *z);
            }
        }
    }
}

impl<E: Float> RawOp<E> for SoftMinRows<E> {
    fn forward(&mut self, x: &[&[E]], out: &mut [E]) {
        let k = self.components;
        let mut weights = vec![E::of(0.0); out.len() * k];
        let mut slopes = weights.clone();
        for (i, (out, y)) in out.iter_mut().zip(x[0].chunks_exact(3)).enumerate() {
            let (z, alpha) = self.row(i);
            let (weights, slopes) = (&mut weights[k * i..][..k], &mut slopes[k * i..][..k]);
            for (j, z) in z.chunks_exact(3).enumerate() {
                let [c, slope, _] = half_squared_distance(dot(z, y));
                (weights[j], slopes[j]) = (c + alpha[j], slope);
            }
            let least = weights.iter().copied().fold(weights[0], |a, b| if b < a { b } else { a });
            weights.iter_mut().for_each(|w| *w = ((least - *w) / self.gamma).exp());
            let sum = weights.iter().copied().sum::<E>();
            *out = least - self.gamma * sum.ln();
            for (w, s) in weights.iter_mut().zip(slopes) {
                *w /= sum;
                *s *= *w;
            }
        }
        (self.weights, self.slopes) = (weights, slopes);
    }
    fn vjp(&self, _: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        if let Some(d) = &mut dx[0] {
            self.adjoint(dy, d);
        }
    }
    fn jvp(&self, _: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        if let Some(tx) = tx[0] {
            self.slope(tx, ty);
        }
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let Some(d) = &mut ddx[0] else { return };
        self.adjoint(t.ddy, d);
        let Some(tx) = t.tx[0] else { return };
        let k = self.components;
        for (i, (d, dy)) in d.chunks_exact_mut(3).zip(p.dy).enumerate() {
            let ((z, _), y, v) = (self.row(i), &p.x[0][3 * i..][..3], &tx[3 * i..][..3]);
            let (weights, slopes) = (&self.weights[k * i..][..k], &self.slopes[k * i..][..k]);
            let all = z.chunks_exact(3).zip(slopes).map(|(z, s)| *s * dot(z, v)).sum::<E>();
            for ((z, w), s) in z.chunks_exact(3).zip(weights).zip(slopes) {
                let ([_, c1, c2], tau) = (half_squared_distance(dot(z, y)), dot(z, v));
                let moved = *w * c2 * tau + *s * (all - c1 * tau) / self.gamma;
                d.iter_mut().zip(z).for_each(|(d, z)| *d += *dy * moved * *z);
            }
        }
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }
}

/// The objective at unit vectors `y` `[N, 3]` for contexts `x` `[N, 4 K]`, which are data.
pub fn soft_min<E: Float, B: Backend<E>, M: Mode<E, B>>(
    y: Rows<E, B, M>,
    x: &Rows<E, B>,
    gamma: f64,
) -> Tensor<(usize,), E, B, M> {
    let (n, width) = *x.shape();
    let (weights, slopes) = (Vec::new(), Vec::new());
    let (contexts, gamma) = (B::host(x).to_vec(), E::of(gamma));
    let op = SoftMinRows { contexts, components: width / 4, gamma, weights, slopes };
    apply(op, vec![handle(&y)], (n,), M::default())
}
