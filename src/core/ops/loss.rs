//! Losses over pairs of equally shaped tensors.

use super::dual::{ByDuals, Scalar, ScalarOp};
use super::raw::{apply, flat};
use crate::tensor::{Backend, Float, Mode, Rank0, Shape, Tensor};
use dfdx::prelude::{HasShape, Merge};

/// Mean of `f(aᵢ, bᵢ)`, summed in blocks to keep f32 rounding small.
fn mean_pairs<T: Scalar>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut sum = T::of(0.0);
    for (x, y) in a.chunks(64).zip(b.chunks(64)) {
        let mut block = T::of(0.0);
        x.iter().zip(y).for_each(|(x, y)| block += f(*x, *y));
        sum += block;
    }
    sum / T::of(a.len() as f64)
}

/// Mean of `(a − b)²`.
struct Mse;

impl ScalarOp for Mse {
    const IS_LOSS: bool = true;
    fn value<T: Scalar>(&self, x: &[&[T]], y: &mut [T]) {
        y[0] = mean_pairs(x[0], x[1], |a, b| {
            let d = a - b;
            d * d
        });
    }
    fn adjoint<T: Scalar>(&self, x: &[&[T]], _: &[T], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let c = T::of(2.0 / x[0].len() as f64) * dy[0];
        let [da, db] = dx else { unreachable!("mse has two inputs") };
        for (sign, d) in [(T::of(1.0), da), (T::of(-1.0), db)] {
            let Some(d) = d else { continue };
            for ((d, a), b) in d.iter_mut().zip(x[0]).zip(x[1]) {
                *d += sign * c * (*a - *b);
            }
        }
    }
}

/// Mean of `−t ln σ(z) − (1 − t) ln(1 − σ(z))`.
struct SigmoidXent;

impl ScalarOp for SigmoidXent {
    const IS_LOSS: bool = true;
    fn value<T: Scalar>(&self, x: &[&[T]], y: &mut [T]) {
        let zero = T::of(0.0);
        y[0] = mean_pairs(x[0], x[1], |z, t| {
            // max(z, 0) − z t + ln(1 + e^−|z|)
            let (max, minus_abs) = if z.less(zero) { (zero, z) } else { (z, -z) };
            max - z * t + minus_abs.exp().ln_1p()
        });
    }
    fn adjoint<T: Scalar>(&self, x: &[&[T]], _: &[T], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let c = dy[0] / T::of(x[0].len() as f64);
        let one = T::of(1.0);
        let [dz, dt] = dx else { unreachable!("sigmoid cross entropy has two inputs") };
        if let Some(dz) = dz {
            for ((d, &z), &t) in dz.iter_mut().zip(x[0]).zip(x[1]) {
                // e^−|z| cannot overflow.
                let sigmoid = if z.less(T::of(0.0)) {
                    let e = z.exp();
                    e / (one + e)
                } else {
                    one / (one + (-z).exp())
                };
                *d += c * (sigmoid - t);
            }
        }
        if let Some(dt) = dt {
            for (d, &z) in dt.iter_mut().zip(x[0]) {
                *d += -(c * z);
            }
        }
    }
}

/// Mean over all elements of `(a − b)²`.
#[track_caller]
pub fn mse<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
    a: Tensor<S, E, B, M>,
    b: &Tensor<S, E, B, R>,
) -> Tensor<Rank0, E, B, M> {
    assert_eq!(a.shape().concrete(), b.shape().concrete(), "mse: shapes");
    apply(ByDuals(Mse), vec![flat(a), flat(b.clone())], (), M::default())
}

/// Mean over all elements of the cross entropy in nats between `targets` in `[0, 1]` and
/// `sigmoid(logits)`.
#[track_caller]
pub fn sigmoid_cross_entropy<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
    logits: Tensor<S, E, B, M>,
    targets: &Tensor<S, E, B, R>,
) -> Tensor<Rank0, E, B, M> {
    assert_eq!(logits.shape().concrete(), targets.shape().concrete(), "sigmoid_cross_entropy: shapes");
    apply(ByDuals(SigmoidXent), vec![flat(logits), flat(targets.clone())], (), M::default())
}
