//! Softmax, layer norm and batch norm: written once over any scalar, tangents by dual numbers.

use super::dual::{ByDuals, Scalar, ScalarOp};
use super::raw::{apply_built, built, flat};
use crate::tensor::{Backend, Dim, Float, Mode, Shape, Tensor};
use dfdx::prelude::HasShape;

struct Softmax {
    classes: usize,
}

impl ScalarOp for Softmax {
    fn value<T: Scalar>(&self, x: &[&[T]], y: &mut [T]) {
        let c = self.classes.max(1);
        for (x, y) in x[0].chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            let max = x.iter().fold(x[0], |m, &v| if m.less(v) { v } else { m });
            let mut sum = T::of(0.0);
            for (y, x) in y.iter_mut().zip(x) {
                *y = (*x - max).exp();
                sum += *y;
            }
            y.iter_mut().for_each(|y| *y = *y / sum);
        }
    }
    fn adjoint<T: Scalar>(&self, _: &[&[T]], y: &[T], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let c = self.classes.max(1);
        for ((dx, y), dy) in dx.chunks_exact_mut(c).zip(y.chunks_exact(c)).zip(dy.chunks_exact(c)) {
            // dx = y ⊙ (dy − y·dy)
            let mut dot = T::of(0.0);
            y.iter().zip(dy).for_each(|(y, dy)| dot += *y * *dy);
            for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx += *y * (*dy - dot);
            }
        }
    }
}

/// Softmax over the last axis.
///
/// # Panics
/// If `x` has no axis.
pub fn softmax<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
) -> Tensor<S, E, B, M> {
    let shape = *x.shape();
    let classes = shape.concrete().into_iter().last().expect("softmax needs an axis");
    apply_built(built!(ByDuals(Softmax { classes }), ByDuals<Softmax>), vec![flat(x)], shape, M::default())
}

/// `y = (x − mean) / √(var + eps) · scale + offset`, with statistics over the middle axis of `x`
/// `[outer, n, inner]`; `scale` and `offset` belong to the last axis of the tensor.
struct Normalize {
    n: usize,
    inner: usize,
    eps: f64,
}

impl Normalize {
    /// Calls `f(places of the group's elements, mean, variance)` per group.
    fn groups<T: Scalar>(&self, x: &[T], mut f: impl FnMut(std::iter::StepBy<std::ops::Range<usize>>, T, T)) {
        let inv = T::of(1.0 / self.n as f64);
        let (n, inner) = (self.n, self.inner);
        let size = (n * inner).max(1);
        for g in 0..x.len() / size * inner {
            let start = g / inner * size + g % inner;
            let places = (start..start + n * inner).step_by(inner);
            let mut mean = T::of(0.0);
            places.clone().for_each(|i| mean += x[i]);
            mean = mean * inv;
            let mut var = T::of(0.0);
            for i in places.clone() {
                let d = x[i] - mean;
                var += d * d;
            }
            f(places, mean, var * inv);
        }
    }
}

impl ScalarOp for Normalize {
    fn value<T: Scalar>(&self, x: &[&[T]], y: &mut [T]) {
        let &[x, scale, offset] = x else { unreachable!("normalization has three inputs") };
        self.groups(x, |places, mean, var| {
            let r = (var + T::of(self.eps)).rsqrt();
            for i in places {
                let c = i % scale.len();
                y[i] = (x[i] - mean) * r * scale[c] + offset[c];
            }
        });
    }
    fn adjoint<T: Scalar>(&self, x: &[&[T]], _: &[T], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let &[x, scale, _] = x else { unreachable!("normalization has three inputs") };
        let [dx, dscale, doffset] = dx else { unreachable!("normalization has three inputs") };
        let inv = T::of(1.0 / self.n as f64);
        self.groups(x, |places, mean, var| {
            let r = (var + T::of(self.eps)).rsqrt();
            // h = (x − mean) r;  dx = r (dh − mean(dh) − h mean(dh h)),  dh = dy scale
            let (mut dh_mean, mut dhh_mean) = (T::of(0.0), T::of(0.0));
            for i in places.clone() {
                let c = i % scale.len();
                let h = (x[i] - mean) * r;
                let dh = dy[i] * scale[c];
                dh_mean += dh;
                dhh_mean += dh * h;
                if let Some(d) = dscale {
                    d[c] += dy[i] * h;
                }
                if let Some(d) = doffset {
                    d[c] += dy[i];
                }
            }
            let (dh_mean, dhh_mean) = (dh_mean * inv, dhh_mean * inv);
            if let Some(dx) = dx {
                for i in places {
                    let h = (x[i] - mean) * r;
                    dx[i] += r * (dy[i] * scale[i % scale.len()] - dh_mean - h * dhh_mean);
                }
            }
        });
    }
}

/// The epsilon of [`layer_norm`] and [`batch_norm`], haiku's default.
pub const NORM_EPS: f64 = 1e-5;

/// Layer norm over the last axis, with biased variance and eps [`NORM_EPS`]. Shapes: `x` `[.., C]`,
/// `scale` and `offset` `[C]`.
///
/// # Panics
/// If the last axis of `x` is not as long as `scale`.
#[track_caller]
pub fn layer_norm<S: Shape, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    scale: &Tensor<(C,), E, B>,
    offset: &Tensor<(C,), E, B>,
) -> Tensor<S, E, B, M> {
    let n = scale.shape().0.size();
    normalize("layer_norm", Normalize { n, inner: 1, eps: NORM_EPS }, x, scale, offset)
}

/// Batch norm with the batch's own statistics over all axes but the last, biased variance, eps
/// [`NORM_EPS`]. Also returns the means and variances `[C]` as data, for running averages in the
/// model state. Shapes: `x` `[.., C]`, `scale` and `offset` `[C]`.
///
/// # Panics
/// If the last axis of `x` is not as long as `scale`.
#[track_caller]
#[allow(clippy::type_complexity)]
pub fn batch_norm<S: Shape, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    scale: &Tensor<(C,), E, B>,
    offset: &Tensor<(C,), E, B>,
) -> (Tensor<S, E, B, M>, Vec<E>, Vec<E>) {
    let inner = scale.shape().0.size();
    let op = Normalize { n: x.shape().num_elements() / inner.max(1), inner, eps: NORM_EPS };
    let (mut mean, mut var) = (Vec::with_capacity(inner), Vec::with_capacity(inner));
    op.groups(&B::host(&flat(x.clone())), |_, m, v| {
        mean.push(m);
        var.push(v);
    });
    (normalize("batch_norm", op, x, scale, offset), mean, var)
}

#[track_caller]
fn normalize<S: Shape, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    name: &str,
    op: Normalize,
    x: Tensor<S, E, B, M>,
    scale: &Tensor<(C,), E, B>,
    offset: &Tensor<(C,), E, B>,
) -> Tensor<S, E, B, M> {
    let c = scale.shape().0.size();
    assert_eq!(
        [x.shape().concrete().into_iter().last(), Some(c)],
        [Some(c), Some(offset.shape().0.size())],
        "{name}: last axis of x, and offset, as long as scale"
    );
    let shape = *x.shape();
    let op = built!(ByDuals(op), ByDuals<Normalize>);
    apply_built(op, vec![flat(x), flat(scale.clone()), flat(offset.clone())], shape, M::default())
}
