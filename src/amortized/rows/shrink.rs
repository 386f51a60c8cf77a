//! Soft thresholds.

use super::vectorized;
use crate::problem::Rows;
use outerloop_core::ops::{apply, handle, Primal, RawOp, Tangent};
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Tensor};

/// Inputs: one or two matrices `[N, D]` whose sum is shrunk, and thresholds `[D]`, which come last.
struct Shrink;

/// `[1, sign]` outside of the dead zone, else 0: derivatives by the number and (negated) by the threshold.
#[inline(always)]
fn slopes<E: Float>(v: E, b: E) -> [E; 2] {
    let (zero, one) = (E::of(0.0), E::of(1.0));
    let (above, below) = (if v > b { one } else { zero }, if v < -b { one } else { zero });
    [above + below, above - below]
}

/// What is shrunk, as two matrices (the same one twice where there is one), the thresholds, and their number.
struct Parts<'a, E> {
    v: &'a [E],
    w: &'a [E],
    is_sum: bool,
    beta: &'a [E],
    columns: usize,
}

impl<'a, E: Float> Parts<'a, E> {
    fn new(x: &[&'a [E]]) -> Self {
        let beta = x[x.len() - 1];
        Parts { v: x[0], w: x[x.len() - 2], is_sum: x.len() == 3, beta, columns: beta.len().max(1) }
    }
    fn at(&self, i: usize) -> E {
        if self.is_sum {
            self.v[i] + self.w[i]
        } else {
            self.v[i]
        }
    }
    /// Calls `f(number of out, slopes, what is shrunk, threshold)` along rows.
    #[inline(always)]
    fn along(&self, out: &mut [E], f: impl Fn(&mut E, [E; 2], E, E)) {
        let d = self.columns;
        let rows = out.chunks_exact_mut(d).zip(self.v.chunks_exact(d)).zip(self.w.chunks_exact(d));
        // One loop for each case, so that both vectorize.
        if self.is_sum {
            for ((out, v), w) in rows {
                for (((o, v), w), b) in out.iter_mut().zip(v).zip(w).zip(self.beta) {
                    f(o, slopes(*v + *w, *b), *v + *w, *b);
                }
            }
        } else {
            for ((out, v), _) in rows {
                for ((o, v), b) in out.iter_mut().zip(v).zip(self.beta) {
                    f(o, slopes(*v, *b), *v, *b);
                }
            }
        }
    }
}

impl Shrink {
    /// `dx += Jᵀ dy`
    fn adjoint<E: Float>(x: &[&[E]], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let Some((thresholds, numbers)) = dx.split_last_mut() else { return };
        let parts = Parts::new(x);
        // dy where something passes, then its negative sum with the sign.
        let passed = |index: usize| {
            let mut d = dy.to_vec();
            vectorized(
                #[inline(always)]
                || parts.along(&mut d, |d, slopes, _, _| *d *= slopes[index]),
            );
            d
        };
        if numbers.iter().any(|d| d.is_some()) {
            let passed = passed(0);
            for d in numbers.iter_mut().flatten() {
                E::add_scaled(E::of(1.0), &passed, d);
            }
        }
        if let Some(d) = thresholds {
            passed(1).chunks_exact(parts.columns).for_each(|row| E::add_scaled(E::of(-1.0), row, d));
        }
    }
}

impl<E: Float> RawOp<E> for Shrink {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let parts = Parts::new(x);
        vectorized(
            #[inline(always)]
            || parts.along(y, |y, [outside, sign], v, b| *y = outside * v - sign * b),
        );
    }
    fn vjp(&self, x: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        Self::adjoint(x, dy, dx);
    }
    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let parts = Parts::new(x);
        let d = parts.columns;
        for (i, ty) in ty.iter_mut().enumerate() {
            let [outside, sign] = slopes(parts.at(i), parts.beta[i % d]);
            for (input, t) in tx.iter().enumerate() {
                let Some(t) = t else { continue };
                *ty += if input + 1 == x.len() { -sign * t[i % d] } else { outside * t[i] };
            }
        }
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        Self::adjoint(p.x, t.ddy, ddx);
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [false, false]
    }
}

/// `h_β(v + w) = sign(v + w) max(|v + w| − β, 0)`, one threshold per column; derivative 0 inside the dead zone. Shapes: `v`,
/// and `w` if there is one, `[N, D]`, `beta` `[D]`. Parameters and computed tensors in second place keep their gradient.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn shrink<E: Float, B: Backend<E>, M: Mode<E, B>>(
    v: Rows<E, B, M>,
    w: Option<&Rows<E, B, M>>,
    beta: &Tensor<(usize,), E, B>,
) -> Rows<E, B, M> {
    let shape = *v.shape();
    assert_eq!(shape.1, beta.shape().0, "shrink: one threshold per column");
    assert!(w.is_none_or(|w| *w.shape() == shape), "shrink: shapes of the summands");
    let mut inputs = vec![handle(&v)];
    inputs.extend(w.map(handle));
    inputs.push(handle(beta));
    apply(Shrink, inputs, shape, M::default())
}
