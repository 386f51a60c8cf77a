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
    for (x, y) in x.chunks(SUM).zip(y.chunks(SUM)) {
        let mut sums = [s.splat_f32s(0.0); MAX_PARTS];
        for (part, to) in sums.iter_mut().enumerate().take(parts::<S>()) {
            let mut own = *to;
            let from = x.len().min(part * S::F32_LANES);
            for (x, y) in x[from..].chunks(LANES).zip(y[from..].chunks(LANES)) {
                own = s.mul_add_e_f32s(load(s, x), load(s, y), own);
            }
            *to = own;
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
