//! Vectorized elementary functions, for use inside kernels.

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
    // Selects, not min and max: those drop NaN.
    let (lo, hi) = (s.splat_f32s(-104.0), s.splat_f32s(89.0));
    let x = s.select_f32s(s.less_than_f32s(x, lo), lo, x);
    let x = s.select_f32s(s.less_than_f32s(hi, x), hi, x);
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

/// `tanh(x)` within 2e-7 absolute. NaN stays NaN.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    // 1 − 2 / (exp(2x) + 1)
    let one = s.splat_f32s(1.0);
    let e = exp(s, s.add_f32s(x, x));
    s.sub_f32s(one, s.div_f32s(s.splat_f32s(2.0), s.add_f32s(e, one)))
}

#[cfg(test)]
mod tests {
    use super::super::{load, store, Path};
    use super::*;

    struct Map<'a>(&'a [f32], &'a mut [f32], bool);
    impl pulp::WithSimd for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(S::F32_LANES).zip(self.1.chunks_mut(S::F32_LANES)) {
                let v = load(s, x);
                store(s, y, if self.2 { exp(s, v) } else { tanh(s, v) });
            }
        }
    }
    fn map(path: Path, x: &[f32], is_exp: bool) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        path.run(Map(x, &mut y, is_exp));
        y
    }

    #[test]
    fn exp_is_close_over_the_whole_range() {
        // Every 1009th bit pattern of both signs: 4.2 million arguments, subnormal to infinite.
        let x: Vec<f32> = (0..=u32::MAX).step_by(1009).map(f32::from_bits).collect();
        for path in Path::available() {
            for (x, y) in x.iter().zip(map(path, &x, true)) {
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
    fn special_values() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 88.9, -104.5];
        for path in Path::available() {
            let y = map(path, &x, true);
            assert!(y[0].is_nan());
            assert_eq!(y[1..], [f32::INFINITY, 0.0, 1.0, 1.0, f32::INFINITY, 0.0]);
            let y = map(path, &x, false);
            assert!(y[0].is_nan());
            assert_eq!(y[1..4], [1.0, -1.0, 0.0]);
        }
    }

    #[test]
    fn tanh_is_close() {
        let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 1e-3).collect();
        for path in Path::available() {
            for (x, y) in x.iter().zip(map(path, &x, false)) {
                assert!((f64::from(y) - f64::from(*x).tanh()).abs() < 2e-7, "tanh({x}) = {y}");
            }
        }
    }
}
