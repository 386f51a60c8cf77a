//! Gradients that rules square. One of 1e20, whose square leaves the range of f32, would make an average of squares
//! infinite for good, and a mean over the tensor with it.

use outerloop_core::simd::{load, Path, Simd, WithSimd};
use outerloop_core::{nan, Float};
use std::borrow::Cow;

/// Rules that square gradients see none beyond ± this: squares, and their sums over 1e8 parameters, stay in the
/// range of f32. The same in f64, so that both take the same steps.
pub(crate) const MAX_GRADIENT: f64 = 1e15;

/// `x` limited to ±[`MAX_GRADIENT`]; NaN and ∞ stay, to be seen.
#[inline(always)]
pub(crate) fn limited<E: Float>(x: E) -> E {
    if num_traits::Float::is_infinite(x) {
        x
    } else {
        nan::clamp(x, E::of(-MAX_GRADIENT), E::of(MAX_GRADIENT))
    }
}

/// All elements [`limited`]; no copy if they are.
pub(crate) fn limit(grad: &[f32]) -> Cow<'_, [f32]> {
    match Path::best().run(AnyBeyond(grad)) {
        true => grad.iter().map(|g| limited(*g)).collect(),
        false => Cow::Borrowed(grad),
    }
}

/// Whether an element is finite and beyond ± [`MAX_GRADIENT`].
struct AnyBeyond<'a>(&'a [f32]);

impl WithSimd for AnyBeyond<'_> {
    type Output = bool;
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> bool {
        let [zero, one, bound, infinity] =
            [0.0, 1.0, MAX_GRADIENT as f32, f32::INFINITY].map(|x| s.splat_f32s(x));
        let mut beyond = zero;
        for g in self.0.chunks(S::F32_LANES) {
            let size = s.abs_f32s(load(s, g));
            let is = s.and_m32s(s.less_than_f32s(bound, size), s.less_than_f32s(size, infinity));
            beyond = s.select_f32s(is, one, beyond);
        }
        s.reduce_max_f32s(beyond) > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_stays() {
        let all = [1e20f32, -1e20, 1e15, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let want = [1e15f32, -1e15, 1e15, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&limit(&all)), bits(&want));
        assert!(matches!(limit(&want), Cow::Borrowed(_)));
    }
}
