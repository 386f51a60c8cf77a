//! Exponentials for f32 that the compiler can vectorize, and the dispatch to the machine's widest
//! vectors. They are branch-free sequences of exact IEEE operations (with fused multiply-add), so
//! every path gives the same bits.

use crate::nan;

/// Runs a loop compiled for the widest vectors of this machine. Keep the body inlinable, and sums
/// sequential: then the result does not depend on the machine.
#[inline(always)]
pub(crate) fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `e^x` within 2 units in the last place; 0, ∞ and NaN as usual, gradual underflow included.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    // Beyond these bounds the result is 0 or ∞ anyway.
    let x = nan::clamp(x, -104.0, 89.0);
    // x = n ln 2 + r, |r| ≤ ln 2 / 2; adding 1.5·2²³ rounds to the nearest integer.
    const MAGIC: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    // Cephes' polynomial.
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ in two factors, each a normal number.
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    let pow2 = |k: i32| f32::from_bits((k.wrapping_add(127) as u32) << 23);
    y * pow2(half) * pow2(n.wrapping_sub(half))
}

/// `tanh x` within 4 units in the last place.
#[inline(always)]
pub(crate) fn tanh_f32(x: f32) -> f32 {
    let a = x.abs();
    // Near 0, Cephes' polynomial keeps the relative precision.
    let s = x * x;
    let p = -5.704_988_7e-3f32;
    let p = p.mul_add(s, 2.063_908_8e-2);
    let p = p.mul_add(s, -5.373_971_6e-2);
    let p = p.mul_add(s, 1.333_144_2e-1);
    let p = p.mul_add(s, -3.333_328e-1);
    let near = (p * s).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp_f32(a + a) + 1.0);
    // The sign of zero counts too.
    (if a < 0.625 { near } else { far }).copysign(x)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid_f32(x: f32) -> f32 {
    1.0 / (1.0 + exp_f32(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 997th float of all bit patterns.
    fn all() -> impl Iterator<Item = f32> {
        (0..u32::MAX).step_by(997).map(f32::from_bits).filter(|x| !x.is_nan())
    }

    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let error = |x: f32| {
            let (y, e) = (f64::from(f(x)), exact(f64::from(x)));
            if (e as f32).is_infinite() || (e as f32) == 0.0 {
                // Rounds to the limit; the neighbour is as good at the edge.
                let same = y == f64::from(e as f32) || (y - e).abs() < 2e-45 || y > 3.4e38;
                return if same { 0.0 } else { f64::INFINITY };
            }
            // Denormals: absolute.
            (y - e).abs() / e.abs().max(f64::from(f32::MIN_POSITIVE))
        };
        all().map(error).fold(0.0, f64::max)
    }

    #[test]
    fn polynomials_are_accurate_everywhere() {
        assert!(worst(exp_f32, f64::exp) < 2e-7, "{}", worst(exp_f32, f64::exp));
        assert!(worst(tanh_f32, f64::tanh) < 3e-7, "{}", worst(tanh_f32, f64::tanh));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        // e^-x overflows f32 below -88.7, where the result is 0 within 1e-38.
        assert!(
            worst(
                |x| if x < -88.0 { 0.0 } else { sigmoid_f32(x) },
                |x| if x < -88.0 { 0.0 } else { 1.0 / (1.0 + (-x).exp()) }
            ) < 3e-7
        );
        for x in [-1e4f32, -100.0, -89.0] {
            assert!(f64::from(sigmoid_f32(x)) - sigmoid(x.into()) < 1e-38 && sigmoid_f32(x) >= 0.0);
        }
    }

    #[test]
    fn special_values() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!([tanh_f32(f32::INFINITY), tanh_f32(f32::NEG_INFINITY)], [1.0, -1.0]);
        assert_eq!(tanh_f32(-0.0).to_bits(), (-0.0f32).to_bits());
        assert!(exp_f32(f32::NAN).is_nan() && tanh_f32(f32::NAN).is_nan() && sigmoid_f32(f32::NAN).is_nan());
    }

    #[test]
    fn vector_and_scalar_paths_give_the_same_bits() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.193).collect();
        let mut y = x.clone();
        vectorize(
            #[inline(always)]
            || {
                for v in &mut y {
                    *v = tanh_f32(exp_f32(*v));
                }
            },
        );
        for (x, y) in x.iter().zip(&y) {
            let scalar = std::hint::black_box(tanh_f32(exp_f32(std::hint::black_box(*x))));
            assert_eq!(scalar.to_bits(), y.to_bits());
        }
    }
}
