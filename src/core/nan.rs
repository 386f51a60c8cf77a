//! Maximum, minimum, clamp and sign that keep NaN: the only ones that update rules, operations and kernels use.
//!
//! `f32::max`, a comparison with a choice, and the maximum of some vector instructions turn NaN into the other
//! argument, an ordinary number; a parameter whose gradient was NaN would then walk on as if nothing had
//! happened. Here NaN comes out wherever it went in; of equal numbers the first argument is taken.
//!
//! ```
//! use outerloop_core::nan;
//! assert!(nan::max(f32::NAN, 1.0).is_nan() && nan::min(1.0, f64::NAN).is_nan());
//! assert!(nan::clamp(f32::NAN, -1.0, 1.0).is_nan() && nan::sign(f32::NAN).is_nan());
//! ```

use crate::Float;
use pulp::Simd;

/// Whether the maximum of two is the first: what [`max`] decides by, for numbers that carry more than a value.
#[inline(always)]
pub fn is_max<T: PartialOrd>(a: &T, b: &T) -> bool {
    a >= b || is_nan(a)
}

/// Whether the minimum of two is the first: what [`min`] decides by.
#[inline(always)]
pub fn is_min<T: PartialOrd>(a: &T, b: &T) -> bool {
    a <= b || is_nan(a)
}

/// NaN alone is not equal to itself.
#[inline(always)]
fn is_nan<T: PartialOrd>(x: &T) -> bool {
    !x.ge(x)
}

/// The larger of two.
#[inline(always)]
pub fn max<E: Float>(a: E, b: E) -> E {
    if is_max(&a, &b) {
        a
    } else {
        b
    }
}

/// The smaller of two.
#[inline(always)]
pub fn min<E: Float>(a: E, b: E) -> E {
    if is_min(&a, &b) {
        a
    } else {
        b
    }
}

/// `x` limited to `[low, high]`, which are numbers.
#[inline(always)]
pub fn clamp<E: Float>(x: E, low: E, high: E) -> E {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// -1, 0 or 1.
#[inline(always)]
pub fn sign<E: Float>(x: E) -> E {
    let zero = E::of(0.0);
    if x > zero {
        E::of(1.0)
    } else if x < zero {
        E::of(-1.0)
    } else if x == zero {
        zero
    } else {
        x
    }
}

/// `x`, at least `low`, which is a number.
///
/// On x86 one instruction: the maximum of vectors is their second argument unless the first one is larger. The
/// maximum of single numbers drops NaN, and that of ARM gives max(0, −0) another sign.
#[inline(always)]
pub fn at_least<S: Simd>(s: S, x: S::f32s, low: S::f32s) -> S::f32s {
    if const { S::F32_LANES < 8 } {
        s.select_f32s(s.less_than_f32s(x, low), low, x)
    } else {
        s.max_f32s(low, x)
    }
}

/// `x`, at most `high`, which is a number; see [`at_least`].
#[inline(always)]
pub fn at_most<S: Simd>(s: S, x: S::f32s, high: S::f32s) -> S::f32s {
    if const { S::F32_LANES < 8 } {
        s.select_f32s(s.less_than_f32s(high, x), high, x)
    } else {
        s.min_f32s(high, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{load, store, Path, WithSimd};

    const VALUES: [f64; 7] = [f64::NEG_INFINITY, -2.0, -0.0, 0.0, 0.5, f64::INFINITY, f64::NAN];

    fn check_numbers<E: Float>() {
        let same = |got: E, want: f64| got.f64() == want || got.is_nan() && want.is_nan();
        for a in VALUES {
            for b in VALUES {
                let (x, y) = (E::of(a), E::of(b));
                let or_nan = |want: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { want };
                assert!(same(max(x, y), or_nan(a.max(b))), "max({a}, {b})");
                assert!(same(min(x, y), or_nan(a.min(b))), "min({a}, {b})");
            }
            assert!(same(clamp(E::of(a), E::of(-1.0), E::of(0.25)), a.clamp(-1.0, 0.25)), "clamp({a})");
            let want = if a == 0.0 { 0.0 } else { a.signum() };
            assert!(same(sign(E::of(a)), want), "sign({a})");
        }
    }

    #[test]
    fn nan_comes_out_wherever_it_goes_in() {
        check_numbers::<f32>();
        check_numbers::<f64>();
    }

    struct Limit<'a>(&'a mut [f32]);
    impl WithSimd for Limit<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for x in self.0.chunks_mut(S::F32_LANES) {
                let y = at_least(s, load(s, x), s.splat_f32s(-1.0));
                store(s, x, at_most(s, y, s.splat_f32s(0.25)));
            }
        }
    }

    #[test]
    fn vectors_are_limited_as_numbers_are() {
        let x: Vec<f32> = VALUES.iter().cycle().take(40).map(|x| *x as f32).collect();
        for path in Path::available() {
            let mut y = x.clone();
            path.run(Limit(&mut y));
            for (x, y) in x.iter().zip(&y) {
                assert_eq!(y.to_bits(), clamp(*x, -1.0, 0.25).to_bits(), "{path:?}: {x} became {y}");
            }
        }
    }
}
