//! Inner products in the kernels' order.

use outerloop_core::simd::{load, parts, total, LANES, MAX_PARTS};
use pulp::Simd;

/// Numbers that are summed before the sum is added to those of the numbers before, which bounds the rounding
/// error. Blocks of 2, 4, 6 and 12 vectors of every path end there.
pub(crate) const SUM: usize = 120 * LANES;

/// `Σ x y`
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    let mut sum = 0.0;
    for start in (0..x.len()).step_by(SUM) {
        let end = x.len().min(start + SUM);
        let mut sums = [s.splat_f32s(0.0); MAX_PARTS];
        for part in 0..parts::<S>() {
            let mut own = sums[part];
            for i in (start + part * S::F32_LANES..end).step_by(LANES) {
                own = s.mul_add_e_f32s(load(s, &x[i..end]), load(s, &y[i..end]), own);
            }
            sums[part] = own;
        }
        sum += total(s, &sums);
    }
    sum
}

/// `mean(x²)`
#[inline(always)]
pub(crate) fn mean_square<S: Simd>(s: S, x: &[f32]) -> f32 {
    dot(s, x, x) / x.len() as f32
}
