//! Vectorized elementary functions, for use inside kernels.

use crate::nan;
use pulp::Simd;

/// 1.5 · 2²³: adding it rounds to an integer and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `2^n` for integral `|n| ≤ 126`, given `n + ROUND`.
#[inline(always)]
fn power_of_two<S: Simd>(s: S, n_plus_round: S::f32s) -> S::f32s {
    let bits = s.wrapping_dyn_shl_u32s(s.transmute_u32s_f32s(n_plus_round), s.splat_u32s(23));
    s.transmute_f32s_u32s(s.add_u32s(bits, s.splat_u32s(127 << 23)))
}

/// `exp(x)` within 2 units in the last place (4 where the result is subnormal), on every path.
/// NaN stays NaN, overflow gives ∞, underflow 0.
///
/// `x = n ln 2 + r`, `|r| ≤ ln 2 / 2`; `exp(r)` by the polynomial of Cephes' `expf`; `2ⁿ` as two
/// factors, so that the ends of the range need no special case.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let x = nan::at_most(s, nan::at_least(s, x, s.splat_f32s(-104.0)), s.splat_f32s(89.0));
    let round = s.splat_f32s(ROUND);
    let n = s.sub_f32s(s.mul_add_e_f32s(x, s.splat_f32s(std::f32::consts::LOG2_E), round), round);
    // ln 2 in two parts; n times the first is exact.
    let r = s.mul_add_e_f32s(n, s.splat_f32s(-0.693_359_4), x);
    let r = s.mul_add_e_f32s(n, s.splat_f32s(2.121_944_4e-4), r);
    let mut poly = s.splat_f32s(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        poly = s.mul_add_e_f32s(poly, r, s.splat_f32s(c));
    }
    let exp_r = s.add_f32s(s.mul_add_e_f32s(poly, s.mul_f32s(r, r), r), s.splat_f32s(1.0));
    let half = s.mul_add_e_f32s(n, s.splat_f32s(0.5), round);
    let rest = s.add_f32s(s.sub_f32s(n, s.sub_f32s(half, round)), round);
    s.mul_f32s(s.mul_f32s(exp_r, power_of_two(s, half)), power_of_two(s, rest))
}

/// `ln(x)` within 2 units in the last place, on every path, subnormal arguments included. NaN and negative
/// arguments give NaN, ±0 gives −∞, ∞ gives ∞.
///
/// `x = 2ⁿ m`, `√½ ≤ m < √2`; `ln(m)` by the polynomial of Cephes' `logf` in `m − 1`.
#[inline(always)]
pub fn ln<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let (zero, smallest) = (s.splat_f32s(0.0), s.splat_f32s(f32::MIN_POSITIVE));
    let is_subnormal = s.less_than_f32s(x, smallest);
    let scaled = s.select_f32s(is_subnormal, s.mul_f32s(x, s.splat_f32s(33_554_432.0)), x); // 2²⁵
                                                                                            // Moves √½ to 1, so that the exponent field splits there.
    const ROOT: u32 = 0x3f35_04f3;
    let bits = s.add_u32s(s.transmute_u32s_f32s(scaled), s.splat_u32s(0x3f80_0000 - ROOT));
    let field = s.wrapping_dyn_shr_u32s(bits, s.splat_u32s(23));
    // 2²³ + field as a number.
    let shifted = s.transmute_f32s_u32s(s.add_u32s(field, s.splat_u32s(0x4b00_0000)));
    let bias =
        s.select_f32s(is_subnormal, s.splat_f32s(8_388_608.0 + 152.0), s.splat_f32s(8_388_608.0 + 127.0));
    let n = s.sub_f32s(shifted, bias);
    let m = s.add_u32s(s.and_u32s(bits, s.splat_u32s(0x007f_ffff)), s.splat_u32s(ROOT));
    let r = s.sub_f32s(s.transmute_f32s_u32s(m), s.splat_f32s(1.0));
    let mut poly = s.splat_f32s(7.037_683_6e-2);
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        0.333_333_3,
    ] {
        poly = s.mul_add_e_f32s(poly, r, s.splat_f32s(c));
    }
    let square = s.mul_f32s(r, r);
    // ln 2 in two parts; n times the first is exact.
    let low = s.mul_add_e_f32s(n, s.splat_f32s(-2.121_944_4e-4), s.mul_f32s(s.mul_f32s(poly, r), square));
    let low = s.mul_add_e_f32s(square, s.splat_f32s(-0.5), low);
    let y = s.mul_add_e_f32s(n, s.splat_f32s(0.693_359_4), s.add_f32s(r, low));
    // ∞ and NaN stay; 0 and what is below it.
    let y = s.select_f32s(s.less_than_f32s(x, s.splat_f32s(f32::INFINITY)), y, x);
    let y = s.select_f32s(s.equal_f32s(x, zero), s.splat_f32s(f32::NEG_INFINITY), y);
    s.select_f32s(s.less_than_f32s(x, zero), s.splat_f32s(f32::NAN), y)
}

/// `tanh(x)` within 4 units in the last place, on every path; ±0 gives 0. NaN stays
/// NaN.
///
/// Up to 0.625 by the polynomial of Cephes' `tanhf`, above as `1 − 2 / (exp(2x) + 1)`.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let one = s.splat_f32s(1.0);
    let square = s.mul_f32s(x, x);
    let mut poly = s.splat_f32s(-5.704_988_7e-3);
    for c in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -0.333_332_8] {
        poly = s.mul_add_e_f32s(poly, square, s.splat_f32s(c));
    }
    let small = s.mul_add_e_f32s(s.mul_f32s(poly, square), x, x);
    let e = exp(s, s.add_f32s(x, x));
    let large = s.sub_f32s(one, s.div_f32s(s.splat_f32s(2.0), s.add_f32s(e, one)));
    s.select_f32s(s.less_than_f32s(s.abs_f32s(x), s.splat_f32s(0.625)), small, large)
}

#[cfg(test)]
mod tests {
    use super::super::{load, store, Path};
    use super::*;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Ln,
        Tanh,
    }
    use Function::{Exp, Ln, Tanh};

    struct Map<'a>(&'a [f32], &'a mut [f32], Function);
    impl pulp::WithSimd for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(S::F32_LANES).zip(self.1.chunks_mut(S::F32_LANES)) {
                let v = load(s, x);
                let v = match self.2 {
                    Exp => exp(s, v),
                    Ln => ln(s, v),
                    Tanh => tanh(s, v),
                };
                store(s, y, v);
            }
        }
    }
    fn map(path: Path, x: &[f32], f: Function) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        path.run(Map(x, &mut y, f));
        y
    }

    /// Every 1009th bit pattern of both signs: 4.2 million arguments, subnormal to infinite, and NaN.
    fn whole_range() -> Vec<f32> {
        (0..=u32::MAX).step_by(1009).map(f32::from_bits).collect()
    }

    /// The distance between neighbouring f32 at `x`.
    fn unit(x: f64) -> f64 {
        let x = (x.abs() as f32).max(f32::MIN_POSITIVE);
        2f64.powi((x.to_bits() >> 23) as i32 - 150)
    }

    #[test]
    fn exp_is_close_over_the_whole_range() {
        let x = whole_range();
        for path in Path::available() {
            for (x, y) in x.iter().zip(map(path, &x, Exp)) {
                let want = f64::from(*x).exp();
                if x.is_nan() {
                    assert!(y.is_nan());
                } else if want > f64::from(f32::MAX) {
                    assert!(y == f32::INFINITY || y > 3.4e38, "exp({x}) = {y}");
                } else {
                    let unit = (want * 2f64.powi(-23)).max(f64::from(f32::from_bits(1)));
                    let bound = if want < f64::from(f32::MIN_POSITIVE) { 4.0 } else { 2.0 };
                    assert!((f64::from(y) - want).abs() <= bound * unit, "exp({x}) = {y}, not {want}");
                }
            }
        }
    }

    #[test]
    fn ln_is_close_over_the_whole_range() {
        let mut x = whole_range();
        x.extend((1..=u32::from(u16::MAX)).map(|i| 0.5 + i as f32 * 2f32.powi(-15)));
        for path in Path::available() {
            for (x, y) in x.iter().zip(map(path, &x, Ln)) {
                let want = f64::from(*x).ln();
                if want.is_finite() {
                    assert!((f64::from(y) - want).abs() <= 2.0 * unit(want), "ln({x:e}) = {y}, not {want}");
                } else {
                    assert!(y.is_nan() && want.is_nan() || f64::from(y) == want, "ln({x}) = {y}, not {want}");
                }
            }
        }
    }

    #[test]
    fn tanh_is_close_over_the_whole_range() {
        let mut x = whole_range();
        x.extend((-40_000..40_000).map(|i| i as f32 * 1e-3));
        for path in Path::available() {
            for (x, y) in x.iter().zip(map(path, &x, Tanh)) {
                let want = f64::from(*x).tanh();
                let close = (f64::from(y) - want).abs() <= 4.0 * unit(want);
                assert!(close || x.is_nan() && y.is_nan(), "tanh({x:e}) = {y}, not {want}");
            }
        }
    }

    #[test]
    fn every_path_computes_the_same_bits() {
        let x = whole_range();
        for f in [Exp, Ln, Tanh] {
            let want = map(Path::available()[0], &x, f);
            for path in &Path::available()[1..] {
                for (x, (got, want)) in x.iter().zip(map(*path, &x, f).iter().zip(&want)) {
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same, "{}: {got} != {want} at {x:e}", path.name());
                }
            }
        }
    }

    #[test]
    fn special_values() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 88.9, -104.5];
        for path in Path::available() {
            let y = map(path, &x, Exp);
            assert!(y[0].is_nan());
            assert_eq!(y[1..], [f32::INFINITY, 0.0, 1.0, 1.0, f32::INFINITY, 0.0]);
            let y = map(path, &x, Tanh);
            assert!(y[0].is_nan());
            assert_eq!(y[1..4], [1.0, -1.0, 0.0]);
            assert_eq!(y[4], 0.0);
            let y = map(path, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0], Ln);
            assert!(y[0].is_nan() && y[2].is_nan() && y[6].is_nan());
            assert_eq!([y[1], y[3], y[4], y[5]], [f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]);
        }
    }
}
