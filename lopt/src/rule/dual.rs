//! Forward-mode numbers: an update rule written once over [`Scalar`] runs on f32 and f64 and, on
//! [`Dual`] numbers, yields its exact derivatives.

use super::MAX_GRADIENT;
use outerloop_core::{nan, Float};
use std::cmp::Ordering;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// What an update rule computes with: f32, f64, or [`Dual`] numbers over them.
///
/// Choices (`max`, `min`, `select`) go by value; at a tie the first argument is taken, and its
/// derivative with it. NaN is never chosen away ([`outerloop_core::nan`]).
pub trait Scalar:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A constant, rounded from f64.
    fn of(x: f64) -> Self;
    /// The value, without derivatives.
    fn value(self) -> f64;
    /// e to the power of `self`.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root; its derivative at 0 (where it is infinite) is defined as 0.
    fn sqrt(self) -> Self;
    /// `self` to a constant power.
    fn powf(self, n: f64) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// `a` if `condition`, else `b`.
    fn select(condition: bool, a: Self, b: Self) -> Self;

    /// Absolute value; derivative 1 at 0.
    #[inline(always)]
    fn abs(self) -> Self {
        Self::select(self >= Self::of(0.0), self, -self)
    }
    /// The larger of two.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self::select(nan::is_max(&self, &other), self, other)
    }
    /// The smaller of two.
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self::select(nan::is_min(&self, &other), self, other)
    }
    /// -1, 0 or 1, a constant.
    fn sign(self) -> Self;
    /// `self / divisor`, a constant 0 where the divisor is 0: a step where nothing but zeros has come and ε
    /// is 0.
    #[inline(always)]
    fn over(self, divisor: Self) -> Self {
        Self::select(divisor == Self::of(0.0), Self::of(0.0), self / divisor)
    }
    /// `self` as rules that square it see it: limited to ±1e15, a constant beyond; ∞ and NaN stay.
    #[inline(always)]
    fn limited(self) -> Self {
        let (bound, infinity) = (Self::of(MAX_GRADIENT), Self::of(f64::INFINITY));
        Self::select(self.abs() >= infinity, self, self.max(-bound).min(bound))
    }
    /// `self * self`.
    #[inline(always)]
    fn square(self) -> Self {
        self * self
    }
}

impl<E: Float> Scalar for E {
    #[inline(always)]
    fn of(x: f64) -> Self {
        <E as Float>::of(x)
    }
    #[inline(always)]
    fn value(self) -> f64 {
        self.f64()
    }
    #[inline(always)]
    fn exp(self) -> Self {
        num_traits::Float::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        num_traits::Float::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        num_traits::Float::sqrt(self)
    }
    #[inline(always)]
    fn powf(self, n: f64) -> Self {
        num_traits::Float::powf(self, <E as Float>::of(n))
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        num_traits::Float::tanh(self)
    }
    #[inline(always)]
    fn sign(self) -> Self {
        nan::sign(self)
    }
    #[inline(always)]
    fn select(condition: bool, a: Self, b: Self) -> Self {
        if condition {
            a
        } else {
            b
        }
    }
}

/// A value with its derivatives along `N` directions. Comparisons are of values.
#[derive(Clone, Copy, Debug)]
pub struct Dual<E, const N: usize> {
    /// The value.
    pub value: E,
    /// The directional derivatives.
    pub d: [E; N],
}

impl<E: Float, const N: usize> Dual<E, N> {
    /// A constant: all derivatives are 0.
    #[inline(always)]
    pub fn constant(value: E) -> Self {
        Dual { value, d: [<E as Float>::of(0.0); N] }
    }
    /// The variable of direction `i`; a constant if `i` is not below `N`.
    #[inline(always)]
    pub fn variable(value: E, i: usize) -> Self {
        let [one, zero] = [<E as Float>::of(1.0), <E as Float>::of(0.0)];
        Dual { value, d: std::array::from_fn(|j| if i == j { one } else { zero }) }
    }
    /// `f(self)`, given the value and the slope there.
    #[inline(always)]
    fn chain(self, value: E, slope: E) -> Self {
        Dual { value, d: self.d.map(|d| d * slope) }
    }
    /// `f(self, b)`, given the value and both slopes there.
    #[inline(always)]
    fn chain2(self, b: Self, value: E, slope: E, slope_b: E) -> Self {
        Dual { value, d: std::array::from_fn(|i| self.d[i] * slope + b.d[i] * slope_b) }
    }
}

impl<E: Float, const N: usize> PartialEq for Dual<E, N> {
    #[inline(always)]
    fn eq(&self, b: &Self) -> bool {
        self.value == b.value
    }
}
impl<E: Float, const N: usize> PartialOrd for Dual<E, N> {
    #[inline(always)]
    fn partial_cmp(&self, b: &Self) -> Option<Ordering> {
        self.value.partial_cmp(&b.value)
    }
    // By the instruction, not by `partial_cmp`: loops over these vectorize.
    #[inline(always)]
    fn ge(&self, b: &Self) -> bool {
        self.value >= b.value
    }
    #[inline(always)]
    fn le(&self, b: &Self) -> bool {
        self.value <= b.value
    }
}
impl<E: Float, const N: usize> Add for Dual<E, N> {
    type Output = Self;
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Dual { value: self.value + b.value, d: std::array::from_fn(|i| self.d[i] + b.d[i]) }
    }
}
impl<E: Float, const N: usize> Sub for Dual<E, N> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Dual { value: self.value - b.value, d: std::array::from_fn(|i| self.d[i] - b.d[i]) }
    }
}
impl<E: Float, const N: usize> Mul for Dual<E, N> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.chain2(b, self.value * b.value, b.value, self.value)
    }
}
impl<E: Float, const N: usize> Div for Dual<E, N> {
    type Output = Self;
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        let (q, r) = (self.value / b.value, <E as Float>::of(1.0) / b.value);
        self.chain2(b, q, r, -q * r)
    }
}
impl<E: Float, const N: usize> Neg for Dual<E, N> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Dual { value: -self.value, d: self.d.map(|d| -d) }
    }
}

impl<E: Float, const N: usize> Scalar for Dual<E, N> {
    #[inline(always)]
    fn of(x: f64) -> Self {
        Self::constant(<E as Float>::of(x))
    }
    #[inline(always)]
    fn value(self) -> f64 {
        self.value.f64()
    }
    #[inline(always)]
    fn exp(self) -> Self {
        let y = Scalar::exp(self.value);
        self.chain(y, y)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        self.chain(Scalar::ln(self.value), <E as Float>::of(1.0) / self.value)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        let y = Scalar::sqrt(self.value);
        let [half, zero] = [<E as Float>::of(0.5), <E as Float>::of(0.0)];
        self.chain(y, if y > zero { half / y } else { zero })
    }
    #[inline(always)]
    fn powf(self, n: f64) -> Self {
        let slope = <E as Float>::of(n) * Scalar::powf(self.value, n - 1.0);
        self.chain(Scalar::powf(self.value, n), slope)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        let y = Scalar::tanh(self.value);
        self.chain(y, <E as Float>::of(1.0) - y * y)
    }
    #[inline(always)]
    fn sign(self) -> Self {
        Self::constant(nan::sign(self.value))
    }
    #[inline(always)]
    fn select(condition: bool, a: Self, b: Self) -> Self {
        let d = std::array::from_fn(|i| Scalar::select(condition, a.d[i], b.d[i]));
        Dual { value: Scalar::select(condition, a.value, b.value), d }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f<S: Scalar>(x: S, y: S) -> S {
        let bounded = (x.tanh() * y).max(S::of(-0.4)).min(x * x + y.abs());
        (x * y).exp() / (y.square() + x).sqrt() - y.powf(1.7).ln() * bounded + (-x).sign() * y
    }

    #[test]
    fn derivatives_match_differences() {
        for (x, y) in [(0.3, 0.8), (1.2, 0.5), (0.7, 2.0), (-0.2, 1.4)] {
            let got = f(Dual::<f64, 2>::variable(x, 0), Dual::variable(y, 1));
            assert_eq!(got.value, f(x, y));
            let h = 1e-6;
            let slopes = [f(x + h, y) - f(x - h, y), f(x, y + h) - f(x, y - h)].map(|d| d / (2.0 * h));
            for (got, want) in got.d.iter().zip(slopes) {
                assert!((got - want).abs() < 1e-8 * (1.0 + want.abs()), "at {x}, {y}: {got}, {want}");
            }
        }
    }

    #[test]
    fn the_root_of_zero_has_slope_zero_and_ties_take_the_first() {
        assert_eq!(Dual::<f64, 1>::variable(0.0, 0).sqrt().d, [0.0]);
        let (a, b) = (Dual::<f64, 2>::variable(1.0, 0), Dual::variable(1.0, 1));
        assert_eq!((a.max(b).d, a.min(b).d), ([1.0, 0.0], [1.0, 0.0]));
        assert_eq!(Scalar::sign(-0.0f64), 0.0);
    }

    #[test]
    fn over_zero_is_zero() {
        let (x, zero) = (Dual::<f32, 2>::variable(0.0, 0), Dual::variable(0.0, 1));
        assert_eq!((x.over(zero).value, x.over(zero).d), (0.0, [0.0; 2]));
        assert_eq!((3.0f64.over(2.0), 3.0f64.over(0.0)), (1.5, 0.0));
        assert!(f64::NAN.over(1.0).is_nan() && 1.0f64.over(f64::NAN).is_nan());
    }

    #[test]
    fn choices_keep_nan() {
        let (nan, one) = (Dual::<f32, 1>::variable(f32::NAN, 0), Dual::constant(1.0));
        for x in [nan.max(one), one.max(nan), nan.min(one), one.min(nan), nan.sign(), nan.abs()] {
            assert!(x.value.is_nan());
        }
    }
}
