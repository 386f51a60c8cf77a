//! The derivative of [`Celo2Kernel`]'s update, tensor by tensor.
//!
//! A matrix whose step d the network gives: with `x = d / (‖d‖ + 1e-8)`, orthogonalized y, and
//! `p ← p − lr (s y + weight_decay p)`, `s = (mean y² + ε)^-½`: `ȳ = −lr s (p̄ − s² y mean(y p̄))`, x̄ by
//! [`crate::kernel::newton_schulz_vjp`], `d̄ = (x̄ − d (x̄ · x) / ‖d‖) / (‖d‖ + 1e-8)`. The rest is done by
//! [`crate::kernel::net_vjp`], [`crate::learned::adafac_mlp::tensor_vjp`] and [`crate::learned::adafac_mlp::factored_vjp`].

use super::step::{clip_all, matrix, Celo2Kernel, MAX_GRAD};
use super::{Orthogonalize, EPSILON, SMALL};
use crate::features::factored::SQUARE_EPSILON;
use crate::kernel::dot::{dot, mean_square};
use crate::kernel::net_vjp::BLOCK;
use crate::kernel::newton_schulz_vjp::Iterates;
use crate::learned::adafac_mlp::accumulators::{cut, Accumulators, Means, Visit};
use crate::learned::adafac_mlp::average::{loaded, mul_add, sums, Average};
use crate::learned::adafac_mlp::backward::{Backward, Wanted};
use crate::learned::adafac_mlp::clipped::Clipped;
use crate::learned::adafac_mlp::factored::FactoredTensor;
use crate::learned::adafac_mlp::factored_vjp::AllFeatures;
use crate::learned::adafac_mlp::features::{store_row, VectorTensor, RMS_EPSILON};
use crate::learned::adafac_mlp::tensor_vjp::TensorVjp;
use outerloop_core::simd::{load, store, with_scratch, MAX_PARTS};
use outerloop_core::{Entry, Key, OptState, UpdateAdjoint, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

impl UpdateVjp<f32> for Celo2Kernel {
    fn vjp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        _loss: f32,
        _key: Key,
        after: &OptState<f32>,
        theta: &mut [f32],
    ) -> UpdateAdjoint<f32> {
        let rule = self.twin.rule();
        let learned = before.layout.entries().iter().filter(|e| !rule.uses_adam(e)).map(|e| matrix(&e.shape));
        let matrices = learned.map(|extents| match rule.orthogonalize {
            Orthogonalize::Off => [0, 0],
            Orthogonalize::NewtonSchulz(n) => [extents[0] * extents[1], Iterates::scratch(extents, n)],
        });
        let [matrix, iterates] = matrices.fold([0, 0], |a, b| [a[0].max(b[0]), a[1].max(b[1])]);
        // The network's step is added, not subtracted.
        let (net, mults) = (&self.net, [rule.exp_mult, -1.0]);
        let epsilons = [SMALL as f32, RMS_EPSILON];
        let wanted = Wanted { net, mults, rates: &self.rates, epsilons, before };
        let passes = wanted.scratch().iter().sum();
        let lens = [passes, grad.len(), self.block_len(), matrix, iterates, self.places.len()];
        let mut adjoint = wanted.adjoint(after);
        with_scratch(lens.iter().sum(), |mut scratch| {
            let [passes, clipped, block, direction, iterates, weights] =
                lens.map(|len| cut(&mut scratch, len));
            let (accumulators, backward) = wanted.passes(clip_all(grad, clipped), &mut adjoint, passes);
            weights.fill(0.0);
            let lr = rule.learning_rate(before.step, before.num_steps);
            let passes = Passes { kernel: self, lr, backward, block, direction, iterates };
            self.path.run(Vjp { accumulators, passes, weights });
            for (place, adjoint) in self.places.iter().zip(&*weights) {
                theta[*place] += *adjoint;
            }
        });
        for (adjoint, _) in adjoint.grad.iter_mut().zip(grad).filter(|(_, g)| g.abs() > MAX_GRAD) {
            *adjoint = 0.0;
        }
        adjoint
    }
}

struct Vjp<'a> {
    accumulators: Accumulators<'a>,
    passes: Passes<'a>,
    /// The adjoint of the network's weights, at [`Celo2Kernel::places`].
    weights: &'a mut [f32],
}

impl WithSimd for Vjp<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Vjp { accumulators, mut passes, weights } = self;
        passes.backward.start(s);
        accumulators.run(s, &passes.backward.tensors.before.layout, &mut passes);
        passes.backward.net.add_theta(s, weights);
    }
}

impl Visit for Passes<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&mut self, s: S, tensor: VectorTensor<'_>, moments: Range<usize>) {
        let averages = [tensor.momentum, tensor.rms];
        self.adam(s, tensor.grad, averages, &tensor.range, Some(moments));
    }

    #[inline(always)]
    fn factored<S: Simd>(&mut self, s: S, entry: &Entry, tensor: FactoredTensor<'_>, means: Means<'_>) {
        let (grad, averages, range) = (tensor.grad, [tensor.momentum, tensor.rms], tensor.range.clone());
        let mut tensor = Clipped(AllFeatures::new(tensor, &means));
        if self.kernel.twin.rule().uses_adam(entry) {
            self.adam(s, grad, averages, &range, None);
            self.backward.means::<S, false>(s, &mut tensor.0, &means);
        } else {
            self.matrices(s, &mut tensor, &range, matrix(&entry.shape));
            self.backward.means::<S, true>(s, &mut tensor.0, &means);
        }
    }
}

/// The passes over a tensor.
struct Passes<'a> {
    kernel: &'a Celo2Kernel,
    /// Of this update.
    lr: f64,
    backward: Backward<'a>,
    /// Scratch of [`Celo2Kernel::directions`].
    block: &'a mut [f32],
    /// Of one matrix.
    direction: &'a mut [f32],
    /// Scratch of [`Iterates`].
    iterates: &'a mut [f32],
}

impl Passes<'_> {
    /// The learned update of the tensor at `range`, one matrix after the other.
    #[inline(always)]
    fn matrices<S: Simd>(
        &mut self,
        s: S,
        tensor: &mut Clipped<AllFeatures<'_>>,
        range: &Range<usize>,
        extents: [usize; 2],
    ) {
        let numel = extents[0] * extents[1];
        let decay = self.kernel.twin.rule().weight_decay;
        for start in (0..range.len()).step_by(numel) {
            let part = start..start + numel;
            let walk = tensor.0.walk();
            self.backward.tensors.normalizers(s, tensor, range, part.clone(), EPSILON);
            tensor.0.set_walk(walk);
            let TensorVjp { before, scales, step, .. } = &mut self.backward.tensors;
            let params = &before.params[range.clone()][..part.end];
            let step = &mut step[part.clone()];
            self.kernel.directions(s, tensor, (params, start), scales, self.block, step);
            tensor.0.set_walk(walk);
            self.pull_back_step(s, extents, start, range.start + start);
            self.backward.tensors.network(s, &mut self.backward.net, tensor, range, part.clone());
            tensor.0.set_walk(walk);
            let params = &mut self.backward.tensors.state.params[range.start + start..][..numel];
            scale(s, (1.0 - self.lr * decay) as f32, params);
            self.backward.tensors.elements(s, tensor, range, part, 0..0);
        }
    }

    /// From the adjoint of the parameters of a matrix, which begin at `at`, to that of the network's step, in
    /// place of the step, which begins at `start`.
    #[inline(always)]
    fn pull_back_step<S: Simd>(&mut self, s: S, extents: [usize; 2], start: usize, at: usize) {
        let numel = extents[0] * extents[1];
        let params = &self.backward.tensors.state.params[at..at + numel];
        let d = &mut self.backward.tensors.step[start..start + numel];
        let Orthogonalize::NewtonSchulz(iterations) = self.kernel.twin.rule().orthogonalize else {
            normalize(s, self.lr, params, d);
            return;
        };
        let y = &mut self.direction[..numel];
        let norm = dot(s, d, d).sqrt();
        let by = (norm + SMALL as f32).recip();
        y.copy_from_slice(d);
        scale(s, by, y);
        let mut iterates = Iterates::new(extents, iterations, self.iterates);
        iterates.forward(s, y);
        normalize(s, self.lr, params, y);
        iterates.pull_back(s, y);
        // The norm has no slope at 0.
        let slope = if norm == 0.0 { 0.0 } else { -by * by * dot(s, d, y) / norm };
        let (by, slope) = (s.splat_f32s(by), s.splat_f32s(slope));
        for (d, y) in d.chunks_mut(S::F32_LANES).zip(y.chunks(S::F32_LANES)) {
            let adjoint = s.mul_add_e_f32s(slope, load(s, d), s.mul_f32s(by, load(s, y)));
            store(s, d, adjoint);
        }
    }

    /// AdamW on the tensor at `range`, with the new averages `[decays, n]`; second moments of a vector lie at
    /// `moments`.
    #[inline(always)]
    fn adam<S: Simd>(
        &mut self,
        s: S,
        grad: &[f32],
        [momentum, rms]: [&[f32]; 2],
        range: &Range<usize>,
        moments: Option<Range<usize>>,
    ) {
        let (kernel, before) = (self.kernel, self.backward.tensors.before);
        let rule = kernel.twin.rule();
        let lr = rule.adam_lr_mult * self.lr;
        let [m_scale, v_scale] = rule.adam_corrections(before.step).map(|c| s.splat_f32s(c as f32));
        let keep = s.splat_f32s((1.0 - lr * rule.weight_decay) as f32);
        let lr = s.splat_f32s(-lr as f32);
        let (zero, half) = (s.splat_f32s(0.0), s.splat_f32s(-0.5));
        let (total, last) = (before.params.len(), kernel.rates[1].len() - 1);
        // What the averages' adjoints get from the parameters, if they get anything.
        let none = [zero; BLOCK];
        for start in range.clone().step_by(BLOCK * S::F32_LANES) {
            let at = start..range.end.min(start + BLOCK * S::F32_LANES);
            let m = loaded::<S, BLOCK>(s, &momentum[at.clone()]);
            let v = loaded::<S, BLOCK>(s, &rms[last * total..][at.clone()]);
            let to_params = &mut self.backward.tensors.state.params[at.clone()];
            let mut params = loaded::<S, BLOCK>(s, to_params);
            let (mut to_m, mut to_v) = (none, none);
            for i in 0..BLOCK {
                // p ← p − lr (c m / (√(c′ v) + ε) + weight_decay p); the root has no slope at 0.
                let root = s.sqrt_f32s(s.mul_f32s(v_scale, v[i]));
                let by = s.div_f32s(m_scale, s.add_f32s(root, s.splat_f32s(SMALL as f32)));
                to_m[i] = s.mul_f32s(s.mul_f32s(lr, params[i]), by);
                let of_root = s.mul_f32s(s.mul_f32s(to_m[i], m[i]), s.div_f32s(by, m_scale));
                let of_v = s.div_f32s(s.mul_f32s(half, s.mul_f32s(of_root, v_scale)), root);
                to_v[i] = s.select_f32s(s.equal_f32s(root, zero), zero, of_v);
                params[i] = s.mul_f32s(keep, params[i]);
            }
            store_row(s, &params, to_params);
            let g = loaded::<S, BLOCK>(s, &grad[at.clone()]);
            let (mut square, mut shifted) = (g, g);
            for (square, shifted) in square.iter_mut().zip(&mut shifted) {
                *square = s.mul_f32s(*square, *square);
                *shifted = s.add_f32s(*square, s.splat_f32s(SQUARE_EPSILON as f32));
            }
            let (mut to_g, mut to_square) = (none, none);
            for k in 0..kernel.rates[0].len() {
                let more = if k == 0 { &to_m } else { &none };
                let place = k * total + at.start..k * total + at.end;
                self.average(s, [0, k], place, more, (&g, &mut to_g));
            }
            for k in 0..=last {
                let more = if k == last { &to_v } else { &none };
                let place = k * total + at.start..k * total + at.end;
                self.average(s, [1, k], place, more, (&square, &mut to_square));
            }
            for k in 0..kernel.rates[2].len() {
                let Some(moments) = &moments else { break };
                let first = moments.start + k * range.len() + start - range.start;
                self.average(s, [2, k], first..first + at.len(), &none, (&shifted, &mut to_square));
            }
            let adjoint = mul_add(s, &sums::<S, BLOCK>(s, &g, &g), &to_square, &to_g);
            store_row(s, &adjoint, &mut self.backward.tensors.grad[at]);
        }
    }

    /// The adjoint of average k of a slot, at `place` there, from what else it has and to that of the values
    /// averaged. The rates are fixed.
    #[inline(always)]
    fn average<S: Simd>(
        &mut self,
        s: S,
        [slot, k]: [usize; 2],
        place: Range<usize>,
        more: &[S::f32s; BLOCK],
        (value, value_adjoint): (&[S::f32s; BLOCK], &mut [S::f32s; BLOCK]),
    ) {
        let TensorVjp { before, state, .. } = &mut self.backward.tensors;
        let mut average = Average {
            rate: self.kernel.rates[slot][k],
            old: &before.slots[slot].data[place.clone()],
            adjoint: &mut state.slots[slot].data[place],
        };
        average.pull_back(s, more, value, value_adjoint, &mut [s.splat_f32s(0.0); MAX_PARTS]);
    }
}

/// From the adjoint p̄ of the parameters to that of y, in place of y: `ȳ = −lr s (p̄ − s² y mean(y p̄))`.
#[inline(always)]
fn normalize<S: Simd>(s: S, lr: f64, params: &[f32], y: &mut [f32]) {
    let square = (mean_square(s, y) + EPSILON as f32).recip();
    let mean = s.splat_f32s(-square * dot(s, y, params) / y.len() as f32);
    let by = s.splat_f32s(-lr as f32 * square.sqrt());
    for (y, p) in y.chunks_mut(S::F32_LANES).zip(params.chunks(S::F32_LANES)) {
        let adjoint = s.mul_f32s(by, s.mul_add_e_f32s(mean, load(s, y), load(s, p)));
        store(s, y, adjoint);
    }
}

/// `x ← by · x`
#[inline(always)]
fn scale<S: Simd>(s: S, by: f32, x: &mut [f32]) {
    let by = s.splat_f32s(by);
    for x in x.chunks_mut(S::F32_LANES) {
        let scaled = s.mul_f32s(by, load(s, x));
        store(s, x, scaled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Path;
    use crate::learned::celo2::step::tests::rules;
    use crate::learned::derivative::{check, check_on};
    use crate::learned::Celo2;
    use crate::rule::UpdateRule;
    use outerloop_core::contract::awkward_layout;
    use outerloop_core::{Layout, Optimizer, Params};
    use std::sync::Arc;

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for rule in rules() {
            check(&rule, 1e-3, |path, theta| Box::new(Celo2Kernel::new(rule.clone(), theta, path)));
        }
    }

    #[test]
    fn agrees_where_gradients_are_clipped_and_embeddings_go_by_adamw() {
        let tensors = [("a", vec![5, 4]), ("embed/w", vec![9, 4]), ("w", vec![3, 3, 5, 7]), ("z", vec![7])];
        let layouts = tensors.map(|(name, shape)| Arc::new(Layout::new([(name, shape)])));
        for rule in rules() {
            check_on(&layouts, 1e4, &rule, 1e-3, |path, theta| {
                Box::new(Celo2Kernel::new(rule.clone(), theta, path))
            });
        }
    }

    /// The adjoints of gradient and theta of a first update, for the adjoint 1 of all parameters.
    fn first_adjoints(opt: &dyn Optimizer<f32>, layout: &Arc<Layout>, theta: &mut [f32]) -> Vec<f32> {
        let state = opt.init(&Params::zeros(layout.clone()), None, Key::new(0));
        let mut after = state.zeros_like();
        after.params.fill(1.0);
        let vjp = opt.update_vjp().expect("it has a derivative");
        vjp.vjp(&state, &vec![0.0; layout.len()], 0.0, Key::new(0), &after, theta).grad
    }

    #[test]
    fn adds_to_theta_and_is_finite_at_zero() {
        let rule = Celo2::default();
        let weights: Vec<f32> = rule.init_theta(Key::new(6));
        let layout = awkward_layout();
        for path in Path::available() {
            let opt = Celo2Kernel::new(rule.clone(), &weights, path);
            let [mut zero, mut two] = [0.0, 2.0].map(|x| vec![x; weights.len()]);
            let grad = first_adjoints(&opt, &layout, &mut zero);
            assert!(grad.iter().chain(&zero).all(|a| a.is_finite()), "{path:?}");
            first_adjoints(&opt, &layout, &mut two);
            for (zero, two) in zero.iter().zip(&two) {
                assert_eq!(2.0 + zero, *two, "{path:?}");
            }
        }
    }

    #[test]
    fn nan_spreads_in_its_own_matrix_only() {
        let rule = Celo2::default();
        let theta: Vec<f32> = rule.init_theta(Key::new(6));
        let layout = Arc::new(Layout::new([("a", vec![5, 4]), ("b", vec![30]), ("c", vec![6, 9])]));
        for path in Path::available() {
            let opt = Celo2Kernel::new(rule.clone(), &theta, path);
            let state = opt.init(&Params::zeros(layout.clone()), None, Key::new(0));
            let mut after = state.zeros_like();
            after.params.fill(1.0);
            let mut grad = vec![1.0; layout.len()];
            grad[2] = f32::NAN;
            let mut theta = theta.clone();
            let adjoint = opt.vjp(&state, &grad, 0.0, Key::new(0), &after, &mut theta);
            assert!(adjoint.state.params[..20].iter().all(|p| p.is_nan()), "{path:?}");
            assert!(adjoint.grad[..20].iter().all(|p| p.is_nan()), "{path:?}");
            assert!(adjoint.state.params[20..].iter().all(|p| p.is_finite()), "{path:?}");
            assert!(adjoint.grad[20..].iter().all(|p| p.is_finite()), "{path:?}");
            assert!(theta.iter().any(|t| t.is_nan()), "{path:?}");
        }
    }
}
