//! Sums, means and maxima.

use super::raw::{apply_built, built, flat, Affine, AffineOp};
use super::KnownOp;
use crate::nan;
use crate::tensor::{Backend, Dim, Float, Mode, Rank0, Shape, Tensor};
use dfdx::prelude::HasShape;

/// `y[o, i] = c Σ_k x[o, k, i]`: `x` is `[outer, n, inner]`.
struct Sum<E> {
    n: usize,
    inner: usize,
    c: E,
}

impl<E: Float> AffineOp<E> for Sum<E> {
    fn known(&self) -> Option<KnownOp<'_, E>> {
        let Sum { n, inner, c } = *self;
        Some(KnownOp::Sum { n, inner, c })
    }
    fn add(&self, _: usize, x: &[E], y: &mut [E]) {
        let row = (self.n * self.inner).max(1);
        for (x, y) in x.chunks_exact(row).zip(y.chunks_exact_mut(self.inner.max(1))) {
            if let [y] = y {
                *y += self.c * pairwise_sum(x);
                continue;
            }
            for x in x.chunks_exact(self.inner) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += self.c * *x);
            }
        }
    }
    fn add_adjoint(&self, _: usize, dy: &[E], dx: &mut [E]) {
        let row = (self.n * self.inner).max(1);
        for (dx, dy) in dx.chunks_exact_mut(row).zip(dy.chunks_exact(self.inner.max(1))) {
            for dx in dx.chunks_exact_mut(self.inner.max(1)) {
                dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += self.c * *dy);
            }
        }
    }
}

/// The sum in a fixed tree order: its rounding error grows with the logarithm of the length.
pub(crate) fn pairwise_sum<E: Float>(x: &[E]) -> E {
    if x.len() <= 64 {
        return x.iter().copied().sum();
    }
    let (a, b) = x.split_at(x.len() / 2);
    pairwise_sum(a) + pairwise_sum(b)
}

/// `y[o, i] = max_k x[o, k, i]`; where several are largest they share the gradient equally.
struct Max<E> {
    n: usize,
    inner: usize,
    /// Weight of each element in the output.
    share: Vec<E>,
}

impl<E: Float> AffineOp<E> for Max<E> {
    fn value(&mut self, x: &[&[E]], y: &mut [E]) {
        let x = x[0];
        self.share = vec![E::of(0.0); x.len()];
        for (o, y) in y.chunks_exact_mut(self.inner.max(1)).enumerate() {
            for (i, y) in y.iter_mut().enumerate() {
                let at = |k: usize| (o * self.n + k) * self.inner + i;
                let mut max = x[at(0)];
                for k in 1..self.n {
                    max = nan::max(max, x[at(k)]);
                }
                let count = (0..self.n).filter(|&k| x[at(k)] == max).count();
                for k in (0..self.n).filter(|&k| x[at(k)] == max) {
                    self.share[at(k)] = E::of(1.0 / count as f64);
                }
                *y = max;
            }
        }
    }
    fn add(&self, _: usize, x: &[E], y: &mut [E]) {
        let row = (self.n * self.inner).max(1);
        for (o, y) in y.chunks_exact_mut(self.inner.max(1)).enumerate() {
            for (x, s) in x[o * row..][..row]
                .chunks_exact(self.inner)
                .zip(self.share[o * row..][..row].chunks_exact(self.inner))
            {
                for ((y, x), s) in y.iter_mut().zip(x).zip(s) {
                    *y += *s * *x;
                }
            }
        }
    }
    fn add_adjoint(&self, _: usize, dy: &[E], dx: &mut [E]) {
        let row = (self.n * self.inner).max(1);
        for (o, dy) in dy.chunks_exact(self.inner.max(1)).enumerate() {
            for (dx, s) in dx[o * row..][..row]
                .chunks_exact_mut(self.inner)
                .zip(self.share[o * row..][..row].chunks_exact(self.inner))
            {
                for ((dx, s), dy) in dx.iter_mut().zip(s).zip(dy) {
                    *dx += *s * *dy;
                }
            }
        }
    }
}

/// Sums the middle axis of `[outer, n, inner]`, times `c`.
pub(crate) fn sum_axis<S: Shape, D: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    [n, inner]: [usize; 2],
    c: f64,
    shape: D,
) -> Tensor<D, E, B, M> {
    let op = built!(Affine(Sum { n, inner, c: E::of(c) }), Affine<Sum<f32>>, Affine<Sum<f64>>);
    apply_built(op, vec![flat(x)], shape, M::default())
}

/// Maximum over the middle axis of `[outer, n, inner]`, `n > 0`.
pub(crate) fn max_axis<S: Shape, D: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    [n, inner]: [usize; 2],
    shape: D,
) -> Tensor<D, E, B, M> {
    assert!(n > 0, "the maximum of nothing");
    let op = Affine(Max::<E> { n, inner, share: Vec::new() });
    let op = built!(op, Affine<Max<f32>>, Affine<Max<f64>>);
    apply_built(op, vec![flat(x)], shape, M::default())
}

/// Sum of all elements.
pub fn sum<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
) -> Tensor<Rank0, E, B, M> {
    let n = x.shape().num_elements();
    sum_axis(x, [n, 1], 1.0, ())
}

/// Mean of all elements; NaN if there are none.
pub fn mean<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
) -> Tensor<Rank0, E, B, M> {
    let n = x.shape().num_elements();
    if n == 0 {
        return super::shift(sum(x), f64::NAN);
    }
    sum_axis(x, [n, 1], 1.0 / n as f64, ())
}

macro_rules! axis {
    ($($(#[$m:meta])* $name:ident($x:ident, $r:ident, $c:ident) -> $out:ident: $body:expr;)+) => {$(
        $(#[$m])*
        pub fn $name<R: Dim, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
            $x: Tensor<(R, C), E, B, M>,
        ) -> Tensor<($out,), E, B, M> {
            let ($r, $c) = *$x.shape();
            $body
        }
    )+};
}

axis! {
    /// Sums over the rows of `[R, C]`: result `[C]`.
    sum_axis0(x, r, c) -> C: sum_axis(x, [r.size(), c.size()], 1.0, (c,));
    /// Sums each row of `[R, C]`: result `[R]`.
    sum_axis1(x, r, c) -> R: sum_axis(x, [c.size(), 1], 1.0, (r,));
    /// Means over the rows of `[R, C]`: result `[C]`.
    mean_axis0(x, r, c) -> C: sum_axis(x, [r.size(), c.size()], 1.0 / r.size() as f64, (c,));
    /// Mean of each row of `[R, C]`: result `[R]`.
    mean_axis1(x, r, c) -> R: sum_axis(x, [c.size(), 1], 1.0 / c.size() as f64, (r,));
    /// Largest element of each row of `[R, C]`: result `[R]`. Equal ones share the gradient.
    max_axis1(x, r, c) -> R: max_axis(x, [c.size(), 1], (r,));
}
