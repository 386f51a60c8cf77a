//! [`Clipped`]: the two features that VeLO's family has besides those of [`super::AdafacKernel`].

use super::average::mul_add;
use super::factored::FactoredTensor;
use super::features::{products, row, row_mut, Tensor};
use super::tensor_vjp::TensorAdjoint;
use crate::features::adafac::column_count;
use outerloop_core::nan;
use pulp::Simd;
use std::ops::Range;

/// The clipped gradient among the features is in ± this.
const MAX_GRAD_FEATURE: f32 = 0.1;

/// A tensor's features, then the clipped gradient and gradient·rsqrt.
pub(crate) struct Clipped<T>(pub(crate) T);

/// Rows of a block for [`Clipped::load`], besides those that the tensor needs.
pub(crate) fn more_rows([_, rms, _]: [usize; 3]) -> usize {
    1 + rms
}

impl<T: Tensor> Tensor for Clipped<T> {
    fn features(&self) -> usize {
        self.0.features() + more_rows(self.0.counts())
    }
    fn counts(&self) -> [usize; 3] {
        self.0.counts()
    }

    /// After the features also the factors.
    #[inline(always)]
    fn load<S: Simd, const V: usize>(
        &mut self,
        s: S,
        params: &[f32],
        start: usize,
        x: &mut [S::f32s],
        units: Option<&mut [S::f32s]>,
    ) {
        self.0.load::<S, V>(s, params, start, x, units);
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

impl<T: TensorAdjoint> TensorAdjoint for Clipped<T> {
    const FACTORED: bool = T::FACTORED;

    fn moment_epsilon(&self) -> f32 {
        self.0.moment_epsilon()
    }

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

/// The network's input that feature `i` of a [`Clipped`] tensor with all features is: the reference has the
/// clipped gradient after the gradient, and gradient·rsqrt before the rows.
fn network_input(counts: [usize; 3], i: usize) -> usize {
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

/// Where the weights of a network of `sizes` (inputs first) lie in theta in the order of these features, and, in this
/// order, where each layer's weights and biases are. The third output is left out: nothing reads it. `range`: of
/// the tensors `w0__0` to `w0__13`, `w{i}` and `b{i}` in theta.
pub(crate) fn network_places(
    sizes: &[usize],
    counts: [usize; 3],
    range: &dyn Fn(&str) -> Range<usize>,
) -> (Vec<usize>, Vec<[Range<usize>; 2]>) {
    let first: Vec<usize> = (0..14).flat_map(|j| range(&format!("w0__{j}"))).collect();
    let (mut places, mut ranges) = (Vec::new(), Vec::new());
    for (i, size) in sizes.windows(2).enumerate() {
        let [inputs, outputs] = [size[0], size[1]];
        let used = if i + 2 == sizes.len() { 2 } else { outputs };
        let start = places.len();
        for input in 0..inputs {
            let row = match i {
                0 => first[network_input(counts, input) * outputs..].to_vec(),
                _ => range(&format!("w{i}")).skip(input * outputs).collect(),
            };
            places.extend_from_slice(&row[..used]);
        }
        let bias = places.len();
        places.extend(range(&format!("b{i}")).take(used));
        ranges.push([start..bias, bias..places.len()]);
    }
    (places, ranges)
}

/// `x`, at most `±limit`; NaN stays.
#[inline(always)]
fn clip<S: Simd>(s: S, x: S::f32s, limit: f32) -> S::f32s {
    nan::at_most(s, nan::at_least(s, x, s.splat_f32s(-limit)), s.splat_f32s(limit))
}

/// `adjoint`, or 0 where [`clip`] changes `x`.
#[inline(always)]
fn unclipped<S: Simd>(s: S, x: S::f32s, limit: f32, adjoint: S::f32s) -> S::f32s {
    let (low, high, zero) = (s.splat_f32s(-limit), s.splat_f32s(limit), s.splat_f32s(0.0));
    let adjoint = s.select_f32s(s.less_than_f32s(x, low), zero, adjoint);
    s.select_f32s(s.less_than_f32s(high, x), zero, adjoint)
}
