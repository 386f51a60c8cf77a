//! Adjoints of one tensor's parameters, gradient, momenta and averages from that of what a network gives,
//! shared by the derivatives of the kernels on these features.
//!
//! With normalized features `x = s f`, `s = (ε + mean f²)^-½`, and `x̄` from [`crate::kernel::net_vjp`]:
//! `f̄ = s x̄ − s³ f mean(f x̄)`. Blocks of features are made anew in every pass: for their normalizers,
//! for the network, and for the adjoints of what they are made of. A feature `y = u w^-½` gives
//! `w̄ = −½ y ȳ / w`; an average `a ← (1 − r) a + r x` gives `ā = (1 − r) ā′`, `x̄ = r ā′` and
//! `r̄ = Σ ā′ (x − a)`. The means of rows and columns: see [`super::factored_vjp`].

use super::accumulators::cut;
use super::average::{loaded, mul_add, sums, Average, Sums};
use super::features::{
    load_block, load_row, products, row, row_mut, rsqrts, store_row, Normalizer, Tensor, VectorTensor,
    RMS_EPSILON,
};
use super::step;
use crate::features::factored::{EPSILON, SQUARE_EPSILON};
use crate::kernel::net::MAX_LANES;
use crate::kernel::net_vjp::{NetVjp, BLOCK};
use outerloop_core::simd::parts;
use outerloop_core::{Entry, Layout, OptState};
use pulp::Simd;
use std::ops::Range;

/// Vectors per block in any pass.
pub(super) const MOST: usize = if BLOCK > step::BLOCK { BLOCK } else { step::BLOCK };

/// A tensor whose features have adjoints. After its features [`Tensor::load`] writes `decays` rows of scratch,
/// of a factored tensor the second moments' factors.
pub(crate) trait TensorAdjoint: Tensor {
    /// Whether its second moments are kept as means of rows and columns.
    const FACTORED: bool;

    /// Of a vector: [`VectorTensor::moment_epsilon`].
    fn moment_epsilon(&self) -> f32 {
        RMS_EPSILON
    }

    /// Brings the adjoints among `y` of features past the common ones to those of what they are made of.
    /// `x` and `y` `[.., V]`.
    #[inline(always)]
    fn fold<S: Simd, const V: usize>(&self, s: S, x: &[S::f32s], y: &mut [S::f32s]) {
        let _ = (s, x, y);
    }
}

impl TensorAdjoint for VectorTensor<'_> {
    const FACTORED: bool = false;

    fn moment_epsilon(&self) -> f32 {
        self.moment_epsilon
    }
}

/// The passes over a tensor. Its elements may be normalized in parts.
pub(crate) struct TensorVjp<'a> {
    /// Of momenta, RMS averages and factored second moments.
    pub(crate) rates: &'a [Vec<f32>; 3],
    pub(crate) before: &'a OptState<f32>,
    /// The adjoint after the update; becomes that before it.
    pub(crate) state: &'a mut OptState<f32>,
    /// The gradient's adjoint.
    pub(crate) grad: &'a mut [f32],
    /// Features of one block.
    pub(crate) block: &'a mut [f32],
    /// Adjoints of one block.
    adjoints: &'a mut [f32],
    /// Sums over vectors, per feature.
    partial: &'a mut [f32],
    /// The features' normalizers s.
    pub(crate) scales: &'a mut [f32],
    /// `−s³ mean(f x̄)` of the features.
    slopes: &'a mut [f32],
    /// The rates' adjoints.
    pub(crate) rate_sums: Sums<'a>,
    /// The adjoint of the network's negative step for one tensor, `[length]`.
    pub(crate) step: &'a mut [f32],
    /// The adjoint of one tensor's normalized features, `[features, length]`. Of a factored tensor that of
    /// what it repeats of rows and columns, in their rows, and in those of the factored gradients the
    /// products that [`super::factored_vjp`] sums.
    pub(crate) features: &'a mut [f32],
}

/// Lengths of the parts of the scratch.
fn lens(counts: [usize; 3], features: usize, layout: &Layout) -> [usize; 9] {
    let [momenta, rms, decays] = counts;
    let longest = layout.entries().iter().map(Entry::numel).max().unwrap_or(0);
    let rates = momenta + rms + decays;
    [
        MAX_LANES * MOST * (features + decays),
        MAX_LANES * MOST * (features + 2 * decays + rms),
        MAX_LANES * features,
        MAX_LANES * rates,
        features,
        features,
        rates,
        longest,
        features * longest,
    ]
}

impl<'a> TensorVjp<'a> {
    /// Numbers of scratch for a network on this many features.
    pub(crate) fn scratch(counts: [usize; 3], features: usize, layout: &Layout) -> usize {
        lens(counts, features, layout).iter().sum()
    }

    /// With `scratch` as long as [`Self::scratch`] says, and the adjoints of the state, which is that after the
    /// update so far, and of the gradient.
    pub(crate) fn new(
        rates: &'a [Vec<f32>; 3],
        features: usize,
        before: &'a OptState<f32>,
        (state, grad): (&'a mut OptState<f32>, &'a mut [f32]),
        mut scratch: &'a mut [f32],
    ) -> Self {
        let counts = [0, 1, 2].map(|i: usize| rates[i].len());
        let [block, adjoints, partial, rate_partial, scales, slopes, totals, step, features] =
            lens(counts, features, &before.layout).map(|len| cut(&mut scratch, len));
        totals.fill(0.0);
        let rate_sums = Sums { partial: rate_partial, totals, added: 0 };
        TensorVjp {
            rates,
            before,
            state,
            grad,
            block,
            adjoints,
            partial,
            scales,
            slopes,
            rate_sums,
            step,
            features,
        }
    }

    /// Makes the normalizers of `part` of the tensor at `range`.
    #[inline(always)]
    pub(crate) fn normalizers<S: Simd, T: Tensor>(
        &mut self,
        s: S,
        tensor: &mut T,
        range: &Range<usize>,
        part: Range<usize>,
        epsilon: f64,
    ) {
        let params = &self.before.params[range.clone()][..part.end];
        let mut normalizer =
            Normalizer { block: self.block, squares: self.partial, scales: self.scales, epsilon };
        normalizer.run::<S, T, false>(s, tensor, params, part.start);
    }

    /// From the adjoint of the step to those of normalized features and theta.
    #[inline(always)]
    pub(crate) fn network<S: Simd, T: Tensor>(
        &mut self,
        s: S,
        net: &mut NetVjp<'_>,
        tensor: &mut T,
        range: &Range<usize>,
        part: Range<usize>,
    ) {
        let params = &self.before.params[range.clone()][..part.end];
        let n = range.len();
        let step = &self.step[..n];
        let mut dots = Sums { partial: self.partial, totals: self.slopes, added: 0 };
        dots.totals.fill(0.0);
        dots.clear(s);
        for start in part.clone().step_by(BLOCK * S::F32_LANES) {
            let at = start..part.end.min(start + BLOCK * S::F32_LANES);
            let (x, _) = S::as_mut_simd_f32s(self.block);
            load_block::<S, T, BLOCK>(s, tensor, params, start, x, None);
            let to = net.features(s).chunks_exact_mut(BLOCK);
            for ((to, x), scale) in to.zip(x.chunks_exact(BLOCK)).zip(&*self.scales) {
                for (to, x) in to.iter_mut().zip(x) {
                    *to = s.mul_f32s(s.splat_f32s(*scale), *x);
                }
            }
            net.block(s, at.clone(), step, self.features);
            let sums = dots.vectors(s).chunks_exact_mut(parts::<S>()).zip(x.chunks_exact(BLOCK));
            for ((sums, x), adjoint) in sums.zip(self.features.chunks_exact(n)) {
                let adjoint = loaded::<S, BLOCK>(s, &adjoint[at.clone()]);
                let x: &[S::f32s; BLOCK] = x.first_chunk().expect("chunks of a block");
                for (part, sum) in sums.iter_mut().enumerate() {
                    let mut own = *sum;
                    for turn in 0..BLOCK / parts::<S>() {
                        let v = turn * parts::<S>() + part;
                        own = s.mul_add_e_f32s(x[v], adjoint[v], own);
                    }
                    *sum = own;
                }
            }
            dots.added_block(s);
        }
        dots.finish(s);
        for (slope, scale) in self.slopes.iter_mut().zip(&*self.scales) {
            *slope *= -scale.powi(3) / part.len() as f32;
        }
    }

    /// From the adjoint of the normalized features to those of parameters, gradient, momenta and RMS
    /// averages; of a vector also to that of its second moments, which lie at `moments`. Of a factored
    /// tensor the rest is left in [`Self::features`].
    #[inline(always)]
    pub(crate) fn elements<S: Simd, T: TensorAdjoint>(
        &mut self,
        s: S,
        tensor: &mut T,
        range: &Range<usize>,
        part: Range<usize>,
        moments: Range<usize>,
    ) {
        let features = tensor.features();
        let [momenta, rms, decays] = [0, 1, 2].map(|i: usize| self.rates[i].len());
        let (total, n) = (self.before.params.len(), range.len());
        let tensor_params = &self.before.params[range.clone()][..part.end];
        // First rows of the groups, in their order.
        let m_row = 2;
        let rms_row = m_row + momenta;
        let adam_row = rms_row + rms;
        let rsqrt_row = adam_row + momenta;
        let grad_row = rsqrt_row + rms;
        let [row_row, col_row, row_root, col_root] = [1, 2, 3, 4].map(|i| grad_row + i * decays);
        let m_factored = grad_row + 5 * decays;
        let factor_row = features;
        // Rows of products of a feature and its adjoint, summed over the features with the same root.
        let [grad_product, m_product, rms_product] = [0, 1, 2].map(|i| features + i * decays);
        let half = s.splat_f32s(-0.5);
        let moment_epsilon = s.splat_f32s(tensor.moment_epsilon());

        for start in part.clone().step_by(BLOCK * S::F32_LANES) {
            let at = start..part.end.min(start + BLOCK * S::F32_LANES);
            let here = range.start + at.start..range.start + at.end;
            let (x, _) = S::as_mut_simd_f32s(self.block);
            let (y, _) = S::as_mut_simd_f32s(self.adjoints);
            load_block::<S, T, BLOCK>(s, tensor, tensor_params, start, x, None);
            let (momentum_rates, rates) = self.rate_sums.vectors(s).split_at_mut(momenta * parts::<S>());
            let (rms_rates, moment_rates) = rates.split_at_mut(rms * parts::<S>());
            for f in 0..features {
                let (scale, slope) = (s.splat_f32s(self.scales[f]), s.splat_f32s(self.slopes[f]));
                let (x, y) = (row::<_, BLOCK>(x, f), row_mut::<_, BLOCK>(y, f));
                load_row::<S, BLOCK>(s, &self.features[f * n..][at.clone()], y);
                for v in 0..BLOCK {
                    y[v] = s.mul_add_e_f32s(slope, x[v], s.mul_f32s(scale, y[v]));
                }
            }
            tensor.fold::<S, BLOCK>(s, x, y);
            let g = *row::<_, BLOCK>(x, 0);
            let mut square = g;
            for g in &mut square {
                *g = s.mul_f32s(*g, *g);
            }
            let mut grad = *row::<_, BLOCK>(y, 0);
            // The adjoint of g²; of all its averages.
            let mut square_adjoint = [s.splat_f32s(0.0); BLOCK];
            let params = &mut self.state.params[here.clone()];
            store_row(s, &sums(s, &loaded::<S, BLOCK>(s, params), row::<_, BLOCK>(y, 1)), params);

            for k in 0..decays {
                let adjoint = *row::<_, BLOCK>(y, grad_row + k);
                let factor = match T::FACTORED {
                    true => *row::<_, BLOCK>(x, factor_row + k),
                    false => rsqrts::<S, BLOCK>(s, *row(x, row_row + k), EPSILON as f32),
                };
                grad = mul_add(s, &adjoint, &factor, &grad);
                *row_mut(y, grad_product + k) = products::<S, BLOCK>(s, &adjoint, row(x, grad_row + k));
                *row_mut(y, m_product + k) = [s.splat_f32s(0.0); BLOCK];
            }
            for j in 0..rms {
                *row_mut(y, rms_product + j) =
                    products::<S, BLOCK>(s, row(x, rsqrt_row + j), row(y, rsqrt_row + j));
            }
            for (k, rate) in momentum_rates.chunks_exact_mut(parts::<S>()).enumerate() {
                let (j, d) = (k.min(rms - 1), k.min(decays - 1));
                let (adam, factored) =
                    (*row::<_, BLOCK>(y, adam_row + k), *row::<_, BLOCK>(y, m_factored + k));
                let product = mul_add(s, &adam, row(x, adam_row + k), row(y, rms_product + j));
                *row_mut(y, rms_product + j) = product;
                let product = mul_add(s, &factored, row(x, m_factored + k), row(y, m_product + d));
                *row_mut(y, m_product + d) = product;
                let mut a = mul_add(s, &adam, row(x, rsqrt_row + j), row(y, m_row + k));
                a = mul_add(s, &factored, row(x, factor_row + d), &a);
                let place = k * total + here.start..k * total + here.end;
                let mut average = Average {
                    rate: self.rates[0][k],
                    old: &self.before.slots[0].data[place.clone()],
                    adjoint: &mut self.state.slots[0].data[place],
                };
                average.pull_back(s, &a, &g, &mut grad, rate);
            }
            for (j, rate) in rms_rates.chunks_exact_mut(parts::<S>()).enumerate() {
                let q = row::<_, BLOCK>(x, rsqrt_row + j);
                let product = products::<S, BLOCK>(s, q, &products(s, q, row(y, rms_product + j)));
                let a = mul_add(s, &[half; BLOCK], &product, row(y, rms_row + j));
                let place = j * total + here.start..j * total + here.end;
                let mut average = Average {
                    rate: self.rates[1][j],
                    old: &self.before.slots[1].data[place.clone()],
                    adjoint: &mut self.state.slots[1].data[place],
                };
                average.pull_back(s, &a, &square, &mut square_adjoint, rate);
            }
            for (k, rate) in moment_rates.chunks_exact_mut(parts::<S>()).enumerate() {
                let product = (row::<_, BLOCK>(y, grad_product + k), row::<_, BLOCK>(y, m_product + k));
                if T::FACTORED {
                    *row_mut(y, grad_row + k) = sums::<S, BLOCK>(s, product.0, product.1);
                    for f in [grad_row, row_row, col_row, row_root, col_root].map(|f| f + k) {
                        store_row(s, row::<_, BLOCK>(y, f), &mut self.features[f * n..][at.clone()]);
                    }
                    continue;
                }
                let value = row::<_, BLOCK>(x, row_row + k);
                let root = row::<_, BLOCK>(x, row_root + k);
                let mut a = *value;
                for v in 0..BLOCK {
                    let roots =
                        s.add_f32s(row::<_, BLOCK>(y, row_root + k)[v], row::<_, BLOCK>(y, col_root + k)[v]);
                    let through_roots = s.mul_f32s(s.mul_f32s(root[v], root[v]), s.mul_f32s(root[v], roots));
                    let through_grad =
                        s.div_f32s(product.0[v], s.add_f32s(value[v], s.splat_f32s(EPSILON as f32)));
                    let through_m = s.div_f32s(product.1[v], s.add_f32s(value[v], moment_epsilon));
                    let through = s.add_f32s(through_roots, s.add_f32s(through_grad, through_m));
                    let direct =
                        s.add_f32s(row::<_, BLOCK>(y, row_row + k)[v], row::<_, BLOCK>(y, col_row + k)[v]);
                    a[v] = s.mul_add_e_f32s(half, through, direct);
                }
                let mut shifted = square;
                for x in &mut shifted {
                    *x = s.add_f32s(*x, s.splat_f32s(SQUARE_EPSILON as f32));
                }
                let place = moments.start + k * n + at.start..moments.start + k * n + at.end;
                let mut average = Average {
                    rate: self.rates[2][k],
                    old: &self.before.slots[2].data[place.clone()],
                    adjoint: &mut self.state.slots[2].data[place],
                };
                average.pull_back(s, &a, &shifted, &mut square_adjoint, rate);
            }
            let twice = sums::<S, BLOCK>(s, &g, &g);
            store_row(s, &mul_add(s, &twice, &square_adjoint, &grad), &mut self.grad[here]);
            self.rate_sums.added_block(s);
        }
        self.rate_sums.finish(s);
    }
}
