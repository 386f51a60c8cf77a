//! Operations on each element, and on pairs of elements.

use super::Var;
use crate::rule::limited;
use outerloop_core::{nan, Float};
use std::ops;

impl<E: Float> Var<E> {
    /// `exp(x)`.
    pub fn exp(&self) -> Self {
        self.map(|x| x.exp(), |_, y| y)
    }
    /// `ln(x)`.
    pub fn ln(&self) -> Self {
        self.map(|x| x.ln(), |x, _| x.recip())
    }
    /// `tanh(x)`.
    pub fn tanh(&self) -> Self {
        self.map(|x| x.tanh(), |_, y| E::ONE - y * y)
    }
    /// `1/(1 + exp(-x))`.
    pub fn sigmoid(&self) -> Self {
        self.map(|x| ((-x).exp() + E::ONE).recip(), |_, y| y * (E::ONE - y))
    }
    /// `max(x, 0)`; NaN stays NaN; slope 0 at 0.
    pub fn relu(&self) -> Self {
        let zero = E::of(0.0);
        self.map(move |x| nan::max(x, zero), move |x, _| if x <= zero { zero } else { E::ONE })
    }
    /// `x²`.
    pub fn square(&self) -> Self {
        self.map(|x| x * x, |x, _| x + x)
    }
    /// `√x`; slope 0 at 0, as for [`Self::norm`].
    pub fn sqrt(&self) -> Self {
        let zero = E::of(0.0);
        self.map(|x| x.sqrt(), move |_, y| if y == zero { zero } else { E::of(0.5) / y })
    }
    /// `x^-½`.
    ///
    /// The slope `-½ x^-³⁄²` alone leaves the range of f32 below x = 1e-25, where the adjoint is 0 or
    /// tiny (a second moment before the first gradient); so the adjoint is multiplied first.
    pub fn rsqrt(&self) -> Self {
        let value: Vec<E> = self.value.iter().map(|x| x.sqrt().recip()).collect();
        let (x, y) = (self.value.clone(), value.clone());
        self.elementwise(value, move |adj, out| {
            for (i, o) in out.iter_mut().enumerate() {
                *o += E::of(-0.5) * (adj[i] * y[i]) / x[i];
            }
        })
    }
    /// `|x|`; slope 0 at 0.
    pub fn abs(&self) -> Self {
        self.map(|x| num_traits::Float::abs(x), |x, _| nan::sign(x))
    }
    /// -1, 0 or 1; no adjoint.
    pub fn sign(&self) -> Self {
        Var::constant(self.value.iter().map(|x| nan::sign(*x)).collect())
    }
    /// `x` limited to `[lo, hi]`; slope 0 outside. NaN stays NaN.
    pub fn clip(&self, lo: f64, hi: f64) -> Self {
        let (lo, hi) = (E::of(lo), E::of(hi));
        self.map(
            move |x| nan::clamp(x, lo, hi),
            move |x, _| if x < lo || x > hi { E::of(0.0) } else { E::ONE },
        )
    }
    /// `x` as rules that square it see it: limited to ±1e15, slope 0 beyond; ∞ and NaN stay.
    pub fn limited(&self) -> Self {
        let size = |x: E| num_traits::Float::abs(x);
        self.map(limited, move |x, y| if size(y) < size(x) { E::of(0.0) } else { E::ONE })
    }
    /// `x · c`.
    pub fn scale(&self, c: f64) -> Self {
        let c = E::of(c);
        self.map(move |x| x * c, move |_, _| c)
    }
    /// `x + c`.
    pub fn shift(&self, c: f64) -> Self {
        let c = E::of(c);
        self.map(move |x| x + c, |_, _| E::ONE)
    }
    /// `1 / (1 − decayˣ + ε)`: what an average from 0 over x values is multiplied by. Computed in f64,
    /// because in f32 it would be ∞ at x = 0 for a small ε.
    pub fn bias_correction(&self, decay: f64, epsilon: f64) -> Self {
        let power = move |x: E| decay.powf(x.f64());
        self.map(
            move |x| E::of(1.0 / (1.0 - power(x) + epsilon)),
            move |x, y| y * y * E::of(power(x) * decay.ln()),
        )
    }
    /// The elementwise larger one, NaN if one is NaN; a tie belongs to `self`.
    pub fn max(&self, other: &Self) -> Self {
        let slope = |is_taken| if is_taken { E::ONE } else { E::of(0.0) };
        let of_first = move |a, b| slope(nan::is_max(&a, &b));
        self.zip(other, nan::max, of_first, move |a, b| slope(!nan::is_max(&a, &b)))
    }
    /// The elementwise smaller one, NaN if one is NaN; a tie belongs to `self`.
    pub fn min(&self, other: &Self) -> Self {
        -(-self).max(&-other)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $f:expr, $da:expr, $db:expr) => {
        impl<E: Float> ops::$trait<&Var<E>> for &Var<E> {
            type Output = Var<E>;
            fn $method(self, other: &Var<E>) -> Var<E> {
                self.zip(other, $f, $da, $db)
            }
        }
        impl<E: Float> ops::$trait<Var<E>> for &Var<E> {
            type Output = Var<E>;
            fn $method(self, other: Var<E>) -> Var<E> {
                ops::$trait::$method(self, &other)
            }
        }
        impl<E: Float> ops::$trait<&Var<E>> for Var<E> {
            type Output = Var<E>;
            fn $method(self, other: &Var<E>) -> Var<E> {
                ops::$trait::$method(&self, other)
            }
        }
        impl<E: Float> ops::$trait<Var<E>> for Var<E> {
            type Output = Var<E>;
            fn $method(self, other: Var<E>) -> Var<E> {
                ops::$trait::$method(&self, &other)
            }
        }
    };
}
operator!(Add, add, |a, b| a + b, |_, _| E::ONE, |_, _| E::ONE);
operator!(Sub, sub, |a, b| a - b, |_, _| E::ONE, |_, _| E::of(-1.0));
operator!(Mul, mul, |a, b| a * b, |_, b| b, |a, _| a);
operator!(Div, div, |a, b| a / b, |_, b| b.recip(), |a: E, b: E| -a / (b * b));

impl<E: Float> ops::Neg for &Var<E> {
    type Output = Var<E>;
    fn neg(self) -> Var<E> {
        self.scale(-1.0)
    }
}
impl<E: Float> ops::Neg for Var<E> {
    type Output = Var<E>;
    fn neg(self) -> Var<E> {
        self.scale(-1.0)
    }
}
