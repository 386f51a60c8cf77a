//! The features of a matrix in [`super::Celo2Kernel`]: [`Celo2Features`].

use crate::features::adafac::column_count;
use crate::learned::adafac_mlp::average::mul_add;
use crate::learned::adafac_mlp::factored::FactoredTensor;
use crate::learned::adafac_mlp::factored_vjp::AllFeatures;
use crate::learned::adafac_mlp::features::{products, row, row_mut, Tensor};
use crate::learned::adafac_mlp::tensor_vjp::TensorAdjoint;
use outerloop_core::nan;
use pulp::Simd;

/// The clipped gradient among the features is in ± this.
const MAX_GRAD_FEATURE: f32 = 0.1;

/// All features of a factored tensor, then the clipped gradient and gradient·rsqrt.
pub(super) struct Celo2Features<'a>(pub(super) AllFeatures<'a>);

impl Tensor for Celo2Features<'_> {
    fn features(&self) -> usize {
        self.0.features() + 1 + self.0.counts()[1]
    }

    /// After the features also the factors.
    #[inline(always)]
    fn load<S: Simd, const V: usize>(
        &mut self,
        s: S,
        params: &[f32],
        start: usize,
        x: &mut [S::f32s],
        _: Option<&mut [S::f32s]>,
    ) {
        self.0.load::<S, V>(s, params, start, x, None);
        let [momenta, rms, decays] = self.0.counts();
        let columns = self.0.features();
        x.copy_within(columns * V..(columns + decays) * V, self.features() * V);
        let g = *row::<_, V>(x, 0);
        let mut clipped = g;
        for g in &mut clipped {
            *g = clip(s, *g, MAX_GRAD_FEATURE);
        }
        *row_mut(x, columns) = clipped;
        let rsqrt_row = rsqrt_row(momenta, rms);
        for k in 0..rms {
            *row_mut(x, columns + 1 + k) = products::<S, V>(s, &g, row(x, rsqrt_row + k));
        }
    }
}

impl TensorAdjoint for Celo2Features<'_> {
    const FACTORED: bool = true;

    #[inline(always)]
    fn fold<S: Simd, const V: usize>(&self, s: S, x: &[S::f32s], y: &mut [S::f32s]) {
        let [momenta, rms, _] = self.0.counts();
        let columns = self.0.features();
        let g = row::<_, V>(x, 0);
        let mut grad = *row::<_, V>(y, 0);
        for (v, to) in grad.iter_mut().enumerate() {
            *to = s.add_f32s(*to, unclipped(s, g[v], MAX_GRAD_FEATURE, row::<_, V>(y, columns)[v]));
        }
        for k in 0..rms {
            let (adjoint, rsqrt) = (*row::<_, V>(y, columns + 1 + k), rsqrt_row(momenta, rms) + k);
            grad = mul_add(s, &adjoint, row(x, rsqrt), &grad);
            *row_mut(y, rsqrt) = mul_add(s, &adjoint, g, row(y, rsqrt));
        }
        *row_mut(y, 0) = grad;
    }
}

/// Where the reciprocal roots of the RMS averages are among the features.
fn rsqrt_row(momenta: usize, rms: usize) -> usize {
    2 + 2 * momenta + rms
}

/// The network's input that feature `i` of [`Celo2Features`] is: the reference has the clipped gradient
/// after the gradient, and gradient·rsqrt before the rows.
pub(super) fn network_input(counts: [usize; 3], i: usize) -> usize {
    let [rows, _] = FactoredTensor::parts(counts);
    let (columns, rms) = (column_count(counts), counts[1]);
    match i {
        0 => 0,
        i if i < rows => i + 1,
        i if i < columns => i + 1 + rms,
        i if i == columns => 1,
        i => rows + i - columns,
    }
}

/// `x`, at most `±limit`; NaN stays.
#[inline(always)]
pub(super) fn clip<S: Simd>(s: S, x: S::f32s, limit: f32) -> S::f32s {
    nan::at_most(s, nan::at_least(s, x, s.splat_f32s(-limit)), s.splat_f32s(limit))
}

/// `adjoint`, or 0 where [`clip`] changes `x`.
#[inline(always)]
pub(super) fn unclipped<S: Simd>(s: S, x: S::f32s, limit: f32, adjoint: S::f32s) -> S::f32s {
    let (low, high, zero) = (s.splat_f32s(-limit), s.splat_f32s(limit), s.splat_f32s(0.0));
    let adjoint = s.select_f32s(s.less_than_f32s(x, low), zero, adjoint);
    s.select_f32s(s.less_than_f32s(high, x), zero, adjoint)
}
