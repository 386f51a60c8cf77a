//! Losses over pairs of equally shaped tensors.

use super::dual::{ByDuals, Scalar, ScalarOp};
use super::raw::{apply_built, built, flat, Primal, RawOp, Tangent};
use super::KnownOp;
use crate::math::vectorize;
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
    fn known<E: Float>(&self) -> Option<KnownOp<'_, E>> {
        Some(KnownOp::Mse)
    }
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
struct SigmoidXent<E> {
    /// `σ(z)`; filled by `forward`.
    sigmoid: Vec<E>,
}

/// Numbers that are summed, or multiplied, before the sums are: of 64 factors between 1 and 2, the product is
/// finite in f32.
const BLOCK: usize = 64;

impl<E: Float> RawOp<E> for SigmoidXent<E> {
    fn is_loss(&self) -> bool {
        true
    }

    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let (one, zero) = (E::of(1.0), E::of(0.0));
        self.sigmoid.clear();
        self.sigmoid.extend(x[0].iter().map(|z| if *z < zero { *z } else { -*z }));
        let sigmoid = &mut self.sigmoid;
        let mut sum = zero;
        vectorize(
            #[inline(always)]
            || {
                let blocks = x[0].chunks(BLOCK).zip(x[1].chunks(BLOCK)).zip(sigmoid.chunks_mut(BLOCK));
                for ((z, t), e) in blocks {
                    // e^−|z| cannot overflow.
                    e.iter_mut().for_each(|e| *e = e.fast_exp());
                    // max(z, 0) − z t + ln(1 + e^−|z|), with one logarithm per block.
                    let (mut linear, mut product) = (zero, one);
                    for ((z, t), e) in z.iter().zip(t).zip(e.iter_mut()) {
                        let more = one + *e;
                        let (max, numerator) = if *z < zero { (zero, *e) } else { (*z, one) };
                        linear += max - *z * *t;
                        product *= more;
                        *e = numerator / more;
                    }
                    sum += linear + num_traits::Float::ln(product);
                }
            },
        );
        y[0] = sum / E::of(x[0].len() as f64);
    }

    fn vjp(&self, x: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let c = dy[0] / E::of(x[0].len() as f64);
        let [dz, dt] = dx else { unreachable!("sigmoid cross entropy has two inputs") };
        if let Some(dz) = dz {
            for ((d, s), t) in dz.iter_mut().zip(&self.sigmoid).zip(x[1]) {
                *d += c * (*s - *t);
            }
        }
        if let Some(dt) = dt {
            dt.iter_mut().zip(x[0]).for_each(|(d, z)| *d -= c * *z);
        }
    }

    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let c = E::of(1.0 / x[0].len() as f64);
        if let Some(tz) = tx[0] {
            let slopes = self.sigmoid.iter().zip(x[1]).zip(tz);
            ty[0] += c * slopes.map(|((s, t), tz)| (*s - *t) * *tz).sum::<E>();
        }
        if let Some(tt) = tx[1] {
            ty[0] -= c * x[0].iter().zip(tt).map(|(z, tt)| *z * *tt).sum::<E>();
        }
    }

    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        let c = p.dy[0] / E::of(p.x[0].len() as f64);
        let [ddz, ddt] = ddx else { unreachable!("sigmoid cross entropy has two inputs") };
        if let (Some(dd), Some(tz)) = (ddz.as_mut(), t.tx[0]) {
            for ((d, s), tz) in dd.iter_mut().zip(&self.sigmoid).zip(tz) {
                *d += c * *s * (E::of(1.0) - *s) * *tz;
            }
        }
        if let (Some(dd), Some(tt)) = (ddz, t.tx[1]) {
            dd.iter_mut().zip(tt).for_each(|(d, tt)| *d -= c * *tt);
        }
        if let (Some(dd), Some(tz)) = (ddt, t.tx[0]) {
            dd.iter_mut().zip(tz).for_each(|(d, tz)| *d -= c * *tz);
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
    apply_built(built!(ByDuals(Mse), ByDuals<Mse>), vec![flat(a), flat(b.clone())], (), M::default())
}

/// Mean over all elements of the cross entropy in nats between `targets` in `[0, 1]` and
/// `sigmoid(logits)`.
#[track_caller]
pub fn sigmoid_cross_entropy<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
    logits: Tensor<S, E, B, M>,
    targets: &Tensor<S, E, B, R>,
) -> Tensor<Rank0, E, B, M> {
    assert_eq!(logits.shape().concrete(), targets.shape().concrete(), "sigmoid_cross_entropy: shapes");
    let op = SigmoidXent::<E> { sigmoid: Vec::new() };
    apply_built(
        built!(op, SigmoidXent<f32>, SigmoidXent<f64>),
        vec![flat(logits), flat(targets.clone())],
        (),
        M::default(),
    )
}
