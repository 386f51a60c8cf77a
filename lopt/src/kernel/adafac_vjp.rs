//! The derivative of [`AdafacKernel`]'s update, tensor by tensor.
//!
//! With normalized features `x = s f`, `s = (ε + mean f²)^-½`, and `x̄` from [`super::net_vjp`]:
//! `f̄ = s x̄ − s³ f mean(f x̄)`. Blocks of features are made anew in every pass: for their normalizers,
//! for the network, and for the adjoints of what they are made of. A feature `y = u w^-½` gives
//! `w̄ = −½ y ȳ / w`; an average `a ← (1 − r) a + r x` gives `ā = (1 − r) ā′`, `x̄ = r ā′` and
//! `r̄ = Σ ā′ (x − a)`. The means of rows and columns: see [`super::adafac_factored_vjp`].

use super::adafac_average::{loaded, mul_add, sums, Average, Sums};
use super::adafac_factored::{table_lens, FactoredTensor, Table, Walk};
use super::adafac_factored_vjp::{AllFeatures, MeansVjp};
use super::adafac_features::{
    load_row, products, row, row_mut, rsqrts, store_row, update_moments, vector_rows, Tensor, VectorTensor,
    RMS_EPSILON,
};
use super::adafac_step::{self, average, AdafacKernel, Passes};
use super::net::MAX_LANES;
use super::net_vjp::{NetVjp, BLOCK};
use crate::features::adafac::column_count;
use crate::features::factored::{Factored, EPSILON, SQUARE_EPSILON};
use outerloop_core::simd::with_scratch;
use outerloop_core::{Entry, Key, OptState, UpdateAdjoint, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

impl UpdateVjp<f32> for AdafacKernel {
    fn vjp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        _loss: f32,
        _key: Key,
        after: &OptState<f32>,
        theta: &mut [f32],
    ) -> UpdateAdjoint<f32> {
        let counts = self.counts();
        let [momenta, rms, decays] = counts;
        let features = column_count(counts);
        let vectors = BLOCK.max(adafac_step::BLOCK);
        let entries = before.layout.entries();
        let tables = table_lens(&before.layout, decays, decays);
        let lens = [
            NetVjp::scratch(&self.net).iter().sum(),
            MAX_LANES * vectors * vector_rows(counts),
            MAX_LANES * vectors * (features + 2 * decays + rms),
            MAX_LANES * features,
            2 * features,
            (MAX_LANES + 1) * (momenta + rms + decays),
            FactoredTensor::expanded_len(decays, 2 * decays, vectors),
            tables[0],
            tables[1],
            // More than three arrays of a table.
            tables[0].max(tables[1]),
            features * entries.iter().map(Entry::numel).max().unwrap_or(0),
            before.slots.iter().map(|slot| slot.data.len()).sum(),
        ];
        let mut adjoint = UpdateAdjoint { state: after.clone(), grad: vec![0.0; grad.len()], loss: 0.0 };
        adjoint.state.step = before.step;
        let rule = self.twin.rule();
        with_scratch(lens.iter().sum(), |mut scratch| {
            let mut next = |i: usize| {
                let (part, rest) = std::mem::take(&mut scratch).split_at_mut(lens[i]);
                scratch = rest;
                part
            };
            let net = NetVjp::new(&self.net, [rule.exp_mult, rule.step_mult], before.step, next(0));
            let (block, adjoints, parts) = (next(1), next(2), next(3));
            let (scales, slopes) = next(4).split_at_mut(features);
            let (rate_parts, rates) = next(5).split_at_mut(MAX_LANES * (momenta + rms + decays));
            rates.fill(0.0);
            let [expanded, row_table, col_table, sums] = [6, 7, 8, 9].map(&mut next);
            let mut accumulators = next(11);
            let slots = [0, 1, 2, 3].map(|i| {
                let old = &before.slots[i].data;
                let (slot, rest) = std::mem::take(&mut accumulators).split_at_mut(old.len());
                accumulators = rest;
                slot.copy_from_slice(old);
                slot
            });
            let passes = Passes { kernel: self, block, squares: parts, scales };
            self.path.run(Vjp {
                tensors: TensorVjp {
                    passes,
                    net,
                    before,
                    state: &mut adjoint.state,
                    grad: &mut adjoint.grad,
                    features: next(10),
                    adjoints,
                    slopes,
                    rates: Sums { parts: rate_parts, totals: rates, added: 0 },
                },
                slots,
                grad,
                expanded,
                tables: [row_table, col_table],
                sums,
                theta,
            });
        });
        adjoint
    }
}

struct Vjp<'a> {
    tensors: TensorVjp<'a>,
    /// The accumulators; become those after the update.
    slots: [&'a mut [f32]; 4],
    grad: &'a [f32],
    expanded: &'a mut [f32],
    /// Scratch of [`Table`]s.
    tables: [&'a mut [f32]; 2],
    /// Scratch of [`MeansVjp`].
    sums: &'a mut [f32],
    theta: &'a mut [f32],
}

impl WithSimd for Vjp<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let kernel = self.tensors.passes.kernel;
        let [momentum, rms, ..] = &mut self.slots;
        average::<S, false>(s, momentum, self.grad, &kernel.rates[0]);
        average::<S, true>(s, rms, self.grad, &kernel.rates[1]);
        self.tensors.net.start(s);
        self.tensors.rates.clear(s);
        let layout = &self.tensors.before.layout;
        let mut starts = [0, 0];
        for entry in layout.entries().iter().filter(|e| e.numel() > 0) {
            self.tensor(s, entry, &mut starts);
        }
        let TensorVjp { mut net, mut rates, .. } = self.tensors;
        net.add_theta(s, self.theta);
        rates.finish(s);
        let slopes = kernel.rate_slopes.iter().flatten();
        for ((place, slope), sum) in kernel.rate_places().zip(slopes).zip(&*rates.totals) {
            self.theta[place] += slope * sum;
        }
    }
}

impl Vjp<'_> {
    /// One tensor; `starts`: where its row and column accumulators lie.
    #[inline(always)]
    fn tensor<S: Simd>(&mut self, s: S, entry: &Entry, starts: &mut [usize; 2]) {
        let kernel = self.tensors.passes.kernel;
        let (counts, rates) = (kernel.counts(), &kernel.rates[2]);
        let (range, grad) = (entry.range(), self.grad);
        let factored = Factored::new(&entry.shape);
        let lens = factored.lens();
        let at = [0, 1].map(|i| starts[i]..starts[i] + counts[2] * lens[i]);
        *starts = [at[0].end, at[1].end];
        let [momentum, rms, row, col] = &mut self.slots;
        let (row, col) = (&mut row[at[0].clone()], &mut col[at[1].clone()]);
        let (momentum, rms) = (&**momentum, &**rms);
        let Some(axes) = factored.axes() else {
            update_moments(s, &grad[range.clone()], rates, row);
            let mut tensor = VectorTensor { range: range.clone(), counts, grad, momentum, rms, moments: row };
            self.tensors.network(s, &mut tensor, range.clone());
            self.tensors.elements::<S, _, false>(s, &mut tensor, range, at[0].clone());
            return;
        };
        let [row_table, col_table] = &mut self.tables;
        let tables = [(lens[0], row_table), (lens[1], col_table)];
        let tables = tables.map(|(len, scratch)| Table::new(len, counts[2], counts[2], scratch));
        let (walk, expanded, rms_epsilon) = (Walk::new(axes), &mut *self.expanded, RMS_EPSILON);
        let tensor = FactoredTensor {
            range: range.clone(),
            counts,
            grad,
            momentum,
            rms,
            rms_epsilon,
            tables,
            walk,
            expanded,
        };
        let mut tensor = AllFeatures::new(s, tensor, axes, rates, [&mut *row, &mut *col]);
        self.tensors.network(s, &mut tensor, range.clone());
        self.tensors.elements::<S, _, true>(s, &mut tensor, range.clone(), 0..0);

        let TensorVjp { passes, state, before, features, slopes, rates: sums, .. } = &mut self.tensors;
        let [momenta, rms, _] = counts;
        for (i, (slot, at)) in [row, col].into_iter().zip(at).enumerate() {
            let means = MeansVjp {
                features,
                scales: passes.scales,
                slopes,
                rates,
                rate_adjoints: &mut sums.totals[momenta + rms..],
                sums: self.sums,
                old: &before.slots[2 + i].data[at.clone()],
                new: slot,
                adjoint: &mut state.slots[2 + i].data[at],
            };
            tensor.pull_back_means(s, i, axes, means);
        }
        tensor.add_to_gradient(s, &mut self.tensors.grad[range]);
    }
}

/// The passes over a tensor.
struct TensorVjp<'a> {
    passes: Passes<'a>,
    net: NetVjp<'a>,
    before: &'a OptState<f32>,
    /// The adjoint after the update; becomes that before it.
    state: &'a mut OptState<f32>,
    grad: &'a mut [f32],
    /// The adjoint of one tensor's normalized features, `[features, length]`.
    features: &'a mut [f32],
    /// Adjoints of one block.
    adjoints: &'a mut [f32],
    /// `−s³ mean(f x̄)` of the features.
    slopes: &'a mut [f32],
    /// The rates' adjoints.
    rates: Sums<'a>,
}

impl TensorVjp<'_> {
    /// Normalizers and network.
    #[inline(always)]
    fn network<S: Simd, T: Tensor>(&mut self, s: S, tensor: &mut T, range: Range<usize>) {
        let (params, adjoint) = (&self.before.params[range.clone()], &self.state.params[range]);
        let n = params.len();
        self.passes.sum_squares::<S, T, false>(s, tensor, params);
        let Passes { block, squares, scales, .. } = &mut self.passes;
        let mut dots = Sums { parts: squares, totals: self.slopes, added: 0 };
        dots.totals.fill(0.0);
        dots.clear(s);
        for start in (0..n).step_by(BLOCK * S::F32_LANES) {
            let at = start..n.min(start + BLOCK * S::F32_LANES);
            let (x, _) = S::as_mut_simd_f32s(block);
            tensor.load::<S, BLOCK>(s, params, start, x, None);
            let to = self.net.features(s).chunks_exact_mut(BLOCK);
            for ((to, x), scale) in to.zip(x.chunks_exact(BLOCK)).zip(&**scales) {
                for (to, x) in to.iter_mut().zip(x) {
                    *to = s.mul_f32s(s.splat_f32s(*scale), *x);
                }
            }
            self.net.block(s, at.clone(), adjoint, self.features);
            let sums = dots.vectors(s).iter_mut().zip(x.chunks_exact(BLOCK));
            for ((sum, x), adjoint) in sums.zip(self.features.chunks_exact(n)) {
                for (x, a) in x.iter().zip(loaded::<S, BLOCK>(s, &adjoint[at.clone()])) {
                    *sum = s.mul_add_e_f32s(*x, a, *sum);
                }
            }
            dots.added(s, BLOCK);
        }
        dots.finish(s);
        for (slope, scale) in self.slopes.iter_mut().zip(&**scales) {
            *slope *= -scale.powi(3) / n as f32;
        }
    }

    /// From the adjoint of the normalized features to those of parameters, gradient, momenta and RMS
    /// averages. Of a vector also to that of its second moments, which lie at `moments`. Of a factored
    /// tensor every product of a factored gradient or momentum and its adjoint is left in the rows of the
    /// factored gradients.
    #[inline(always)]
    fn elements<S: Simd, T: Tensor, const FACTORED: bool>(
        &mut self,
        s: S,
        tensor: &mut T,
        range: Range<usize>,
        moments: Range<usize>,
    ) {
        let kernel = self.passes.kernel;
        let counts = kernel.counts();
        let [momenta, rms, decays] = counts;
        let features = column_count(counts);
        let (total, n) = (self.before.params.len(), range.len());
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

        for start in (0..n).step_by(BLOCK * S::F32_LANES) {
            let at = start..n.min(start + BLOCK * S::F32_LANES);
            let here = range.start + at.start..range.start + at.end;
            let (x, _) = S::as_mut_simd_f32s(self.passes.block);
            let (y, _) = S::as_mut_simd_f32s(self.adjoints);
            tensor.load::<S, BLOCK>(s, &self.before.params[range.clone()], start, x, None);
            let (momentum_rates, rates) = self.rates.vectors(s).split_at_mut(momenta);
            let (rms_rates, moment_rates) = rates.split_at_mut(rms);
            for f in 0..features {
                let (scale, slope) = (s.splat_f32s(self.passes.scales[f]), s.splat_f32s(self.slopes[f]));
                let (x, y) = (row::<_, BLOCK>(x, f), row_mut::<_, BLOCK>(y, f));
                load_row::<S, BLOCK>(s, &self.features[f * n..][at.clone()], y);
                for v in 0..BLOCK {
                    y[v] = s.mul_add_e_f32s(slope, x[v], s.mul_f32s(scale, y[v]));
                }
            }
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
                let factor = match FACTORED {
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
            for (k, rate) in momentum_rates.iter_mut().enumerate() {
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
                    rate: kernel.rates[0][k],
                    old: &self.before.slots[0].data[place.clone()],
                    adjoint: &mut self.state.slots[0].data[place],
                };
                average.pull_back(s, &a, &g, &mut grad, rate);
            }
            for (j, rate) in rms_rates.iter_mut().enumerate() {
                let q = row::<_, BLOCK>(x, rsqrt_row + j);
                let product = products::<S, BLOCK>(s, q, &products(s, q, row(y, rms_product + j)));
                let a = mul_add(s, &[half; BLOCK], &product, row(y, rms_row + j));
                let place = j * total + here.start..j * total + here.end;
                let mut average = Average {
                    rate: kernel.rates[1][j],
                    old: &self.before.slots[1].data[place.clone()],
                    adjoint: &mut self.state.slots[1].data[place],
                };
                average.pull_back(s, &a, &square, &mut square_adjoint, rate);
            }
            for (k, rate) in moment_rates.iter_mut().enumerate() {
                let product = (row::<_, BLOCK>(y, grad_product + k), row::<_, BLOCK>(y, m_product + k));
                if FACTORED {
                    let to = &mut self.features[(grad_row + k) * n..][at.clone()];
                    store_row(s, &sums::<S, BLOCK>(s, product.0, product.1), to);
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
                    let through_m = s.div_f32s(product.1[v], s.add_f32s(value[v], s.splat_f32s(RMS_EPSILON)));
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
                    rate: kernel.rates[2][k],
                    old: &self.before.slots[2].data[place.clone()],
                    adjoint: &mut self.state.slots[2].data[place],
                };
                average.pull_back(s, &a, &shifted, &mut square_adjoint, rate);
            }
            let twice = sums::<S, BLOCK>(s, &g, &g);
            store_row(s, &mul_add(s, &twice, &square_adjoint, &grad), &mut self.grad[here]);
            self.rates.added(s, BLOCK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mlp_vjp::tests::check;
    use super::*;
    use crate::adafac_mlp::DECAY_NAMES;
    use crate::kernel::Path;
    use crate::{AdafacMlp, Taped, UpdateRule};
    use outerloop_core::{contract::awkward_layout, Optimizer, Params};

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for rule in super::super::adafac_step::tests::rules() {
            check(&rule, 1e-3, |path: Path, theta| Box::new(AdafacKernel::new(rule.clone(), theta, path)));
        }
    }

    /// The adjoints of gradient and theta of a first update with this gradient, for the adjoint 1 of all
    /// parameters and slots.
    fn first_adjoints(opt: &dyn Optimizer<f32>, theta: usize, grad: f32) -> [Vec<f32>; 2] {
        let layout = awkward_layout();
        let state = opt.init(&Params::zeros(layout.clone()), None, Key::new(0));
        let mut after = state.zeros_like();
        after.params.fill(1.0);
        after.slots.iter_mut().for_each(|s| s.data.fill(1.0));
        let mut theta = vec![0.0; theta];
        let vjp = opt.update_vjp().expect("it has a derivative");
        let grad = vec![grad; layout.len()];
        let adjoint = vjp.vjp(&state, &grad, 0.0, Key::new(0), &after, &mut theta);
        [adjoint.grad, theta]
    }

    #[test]
    fn derivatives_at_zero_are_finite() {
        let rule = AdafacMlp::default();
        let theta: Vec<f32> = rule.init_theta(Key::new(6));
        for path in Path::available() {
            let opt = AdafacKernel::new(rule.clone(), &theta, path);
            let adjoints = first_adjoints(&opt, theta.len(), 0.0);
            assert!(adjoints.iter().flatten().all(|a| a.is_finite()), "{path:?}");
        }
    }

    #[test]
    fn a_clipped_rate_has_no_slope() {
        let rule = AdafacMlp::default();
        let mut theta: Vec<f32> = rule.init_theta(Key::new(6));
        let layout = rule.theta_layout();
        // Rates of 0.1, 0.01 and 0.001 times e⁵.
        let places = DECAY_NAMES.map(|name| layout.get(name).unwrap().range());
        places.iter().for_each(|range| theta[range.clone()].fill(0.5));
        let [_, want] = first_adjoints(&Taped::<_, f32>::new(rule.clone(), &theta), theta.len(), 0.3);
        for path in Path::available() {
            let opt = AdafacKernel::new(rule.clone(), &theta, path);
            let [_, got] = first_adjoints(&opt, theta.len(), 0.3);
            for i in places.iter().cloned().flatten() {
                assert!((got[i] - want[i]).abs() <= 1e-3 * want[i].abs(), "{path:?} {i}: {got:?}");
            }
            let is_clipped = |i: usize| got[places[2].start + i] == 0.0;
            assert_eq!([0, 1, 2].map(is_clipped), [true, true, false], "{path:?}");
        }
    }
}
