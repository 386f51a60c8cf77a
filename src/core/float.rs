//! The numbers that everything computes with: f32, and f64 as its oracle.

use crate::math;
use dfdx::prelude::Dtype;
use std::any::Any;

/// A floating dtype: f32 in use, f64 as the oracle.
pub trait Float:
    Dtype
    + num_traits::Float
    + rand::distributions::uniform::SampleUniform
    + std::iter::Sum
    + std::fmt::LowerExp
    + std::fmt::Display
    + serde::Serialize
    + serde::de::DeserializeOwned
{
    /// Rounds an f64 to this dtype.
    fn of(x: f64) -> Self;
    /// Widens to f64.
    fn f64(self) -> f64;
    /// `e^x`: for f32 a polynomial that vectorizes, within 2e-7 relative; for f64 libm's.
    fn fast_exp(self) -> Self;
    /// `tanh x`, likewise.
    fn fast_tanh(self) -> Self;
    /// `1 / (1 + e^-x)`, likewise.
    fn fast_sigmoid(self) -> Self;
    /// `y ← y + c x`. Like [`Float::dot`] compiled once, and not in every crate that calls.
    fn add_scaled(c: Self, x: &[Self], y: &mut [Self]);
    /// `Σ x y`, in eight partial sums so that it vectorizes.
    fn dot(x: &[Self], y: &[Self]) -> Self;
}

macro_rules! float {
    ($t:ty, $exp:expr, $tanh:expr, $sigmoid:expr) => {
        impl Float for $t {
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn fast_exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn fast_tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn fast_sigmoid(self) -> Self {
                $sigmoid(self)
            }
            fn add_scaled(c: Self, x: &[Self], y: &mut [Self]) {
                for (y, x) in y.iter_mut().zip(x) {
                    *y += c * *x;
                }
            }
            fn dot(x: &[Self], y: &[Self]) -> Self {
                let (x, y) = (x.chunks_exact(8), y.chunks_exact(8));
                let rest: Self = x.remainder().iter().zip(y.remainder()).map(|(x, y)| *x * *y).sum();
                let mut sums = [0.0; 8];
                for (x, y) in x.zip(y) {
                    for (s, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
                        *s += *x * *y;
                    }
                }
                sums.into_iter().sum::<Self>() + rest
            }
        }
    };
}
float!(f32, math::exp_f32, math::tanh_f32, math::sigmoid_f32);
float!(f64, f64::exp, f64::tanh, |x: f64| 1.0 / (1.0 + (-x).exp()));

/// `x` as a `B`, if that is its type; otherwise `x` as it is. With it a function that is generic over the dtype
/// leaves the work to functions of one dtype, which are compiled once and not in every crate that calls.
pub fn same<A: 'static, B: 'static>(x: A) -> Result<B, A> {
    let mut x = Some(x);
    match (&mut x as &mut dyn Any).downcast_mut::<Option<B>>() {
        Some(b) => Ok(b.take().expect("it was just put there")),
        None => Err(x.expect("nobody took it")),
    }
}
