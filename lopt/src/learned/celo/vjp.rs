//! The derivative of [`CeloKernel`]'s update: the network and what it reads tensor by tensor, the schedule as
//! [`super::packed`] has it.
//!
//! With `p′ = p − c u`, `c = step_mult l S`, the network gives u and sees the adjoint `−c p̄′`. Its gain
//! `G = −c Σ p̄′ u` is the adjoint of `ln c`: `l̄ = Σ G / l` over the tensors, and through the size
//! `S = (mean p² + ε)^½` `p̄ += G p / (n S²)`.

use super::step::{size, CeloKernel};
use super::RMS_EPSILON;
use crate::features::normalize;
use crate::kernel::dot::mean_square;
use crate::learned::adafac_mlp::accumulators::{cut, Accumulators, Means, Visit};
use crate::learned::adafac_mlp::backward::{Backward, Wanted};
use crate::learned::adafac_mlp::clipped::Clipped;
use crate::learned::adafac_mlp::factored::FactoredTensor;
use crate::learned::adafac_mlp::factored_vjp::AllFeatures;
use crate::learned::adafac_mlp::features::VectorTensor;
use crate::learned::adafac_mlp::tensor_vjp::TensorAdjoint;
use crate::learned::celo2::step::{clip_all, MAX_GRAD};
use outerloop_core::simd::with_scratch;
use outerloop_core::{Entry, Key, OptState, UpdateAdjoint, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The accumulators' slots; the schedule's come after them.
const FIRST: usize = 4;

impl UpdateVjp<f32> for CeloKernel {
    fn vjp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        loss: f32,
        _key: Key,
        after: &OptState<f32>,
        theta: &mut [f32],
    ) -> UpdateAdjoint<f32> {
        let rule = self.twin.rule();
        let schedule = self.schedule.record(before, loss);
        let l = if rule.train_phase == 1 { 1.0 } else { schedule.rate() };

        let (net, mults) = (&self.net, [rule.exp_mult, 1.0]);
        let epsilons = [RMS_EPSILON as f32, 0.0];
        let wanted = Wanted { net, mults, rates: &self.rates, epsilons, before };
        let lens = [wanted.scratch().iter().sum(), grad.len(), self.places.len()];
        let mut adjoint = wanted.adjoint(after);
        let mut gain = 0.0;
        with_scratch(lens.iter().sum(), |mut scratch| {
            let [passes, clipped, weights] = lens.map(|len| cut(&mut scratch, len));
            let (accumulators, backward) = wanted.passes(clip_all(grad, clipped), &mut adjoint, passes);
            weights.fill(0.0);
            let factor = rule.step_mult as f32 * l;
            let passes = Passes { kernel: self, factor, backward, gain: &mut gain };
            self.path.run(Vjp { accumulators, passes, weights: &mut *weights });
            for (place, adjoint) in self.places.iter().zip(&*weights) {
                theta[*place] += *adjoint;
            }
        });
        for (adjoint, _) in adjoint.grad.iter_mut().zip(grad).filter(|(_, g)| g.abs() > MAX_GRAD) {
            *adjoint = 0.0;
        }

        // A factor that has underflowed to 0 has no slope left; that of the first phase has none at all.
        let has_slope = rule.train_phase != 1 && l != 0.0;
        let seed = if has_slope { (gain / f64::from(l)) as f32 } else { 0.0 };
        let (loss, slots) = schedule.pull_back(seed, &after.slots[FIRST..], theta);
        adjoint.loss = loss;
        for (slot, data) in adjoint.state.slots[FIRST..].iter_mut().zip(slots) {
            slot.data = data;
        }
        adjoint
    }

    fn init_vjp(&self, start: &OptState<f32>, adjoint: &OptState<f32>, theta: &mut [f32]) {
        self.twin.init_vjp(start, adjoint, theta);
    }
}

struct Vjp<'a> {
    accumulators: Accumulators<'a>,
    passes: Passes<'a>,
    /// The adjoint of the network's weights, at [`CeloKernel::places`].
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

/// The passes over a tensor.
struct Passes<'a> {
    kernel: &'a CeloKernel,
    /// `step_mult l`
    factor: f32,
    backward: Backward<'a>,
    /// Of all tensors so far.
    gain: &'a mut f64,
}

impl Visit for Passes<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&mut self, s: S, tensor: VectorTensor<'_>, moments: Range<usize>) {
        let range = tensor.range.clone();
        self.pull_back(s, &mut Clipped(tensor), &range, moments);
    }

    #[inline(always)]
    fn factored<S: Simd>(&mut self, s: S, _: &Entry, tensor: FactoredTensor<'_>, means: Means<'_>) {
        let range = tensor.range.clone();
        let mut tensor = Clipped(AllFeatures::new(tensor, &means));
        self.pull_back(s, &mut tensor, &range, 0..0);
        self.backward.means::<S, true>(s, &mut tensor.0, &means);
    }
}

impl Passes<'_> {
    /// The adjoints of one tensor's elements; second moments of a vector lie at `moments`.
    #[inline(always)]
    fn pull_back<S: Simd, T: TensorAdjoint>(
        &mut self,
        s: S,
        tensor: &mut T,
        range: &Range<usize>,
        moments: Range<usize>,
    ) {
        let (all, n) = (0..range.len(), range.len());
        let Backward { net, tensors, .. } = &mut self.backward;
        let before = tensors.before;
        let params = &before.params[range.clone()];
        let (size, is_constant) = size(self.kernel.twin.rule(), mean_square(s, params), n);
        let c = self.factor * size;
        for (step, p) in tensors.step[all.clone()].iter_mut().zip(&tensors.state.params[range.clone()]) {
            *step = c * p;
        }
        tensors.normalizers(s, tensor, range, all.clone(), normalize::EPSILON);
        tensors.network(s, net, tensor, range, all.clone());
        let gain = net.take_gain(s);
        tensors.elements(s, tensor, range, all, moments);
        *self.gain += f64::from(gain);
        if !is_constant {
            let slope = gain / (n as f32 * size * size);
            for (a, p) in tensors.state.params[range.clone()].iter_mut().zip(params) {
                *a += slope * p;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::step::tests::{rules, theta};
    use super::*;
    use crate::kernel::Path;
    use crate::learned::derivative::{check, check_on};
    use crate::learned::golden::warm_state;
    use crate::learned::Celo;
    use outerloop_core::contract::awkward_layout;
    use outerloop_core::{Layout, Optimizer, Params};
    use std::sync::Arc;

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for rule in rules() {
            check(&rule, 2e-3, |path, theta| Box::new(CeloKernel::new(rule.clone(), theta, path)));
        }
    }

    #[test]
    fn agrees_where_gradients_are_clipped() {
        let tensors = [("a", vec![5, 4]), ("w", vec![3, 3, 5, 7]), ("z", vec![7])];
        let layouts = tensors.map(|(name, shape)| Arc::new(Layout::new([(name, shape)])));
        for rule in rules() {
            check_on(&layouts, 1e4, &rule, 2e-3, |path, theta| {
                Box::new(CeloKernel::new(rule.clone(), theta, path))
            });
        }
    }

    #[test]
    fn adjoints_of_loss_and_initial_state_are_the_twins() {
        let rule = &rules()[3];
        let theta = theta(rule);
        let theta64: Vec<f64> = theta.iter().map(|t| f64::from(*t)).collect();
        let twin = crate::rule::Taped::<_, f64>::new(rule.clone(), &theta64);
        let state = warm_state(rule, &theta64);
        let mut after = state.zeros_like();
        after.params.fill(0.3);
        after.slots.iter_mut().for_each(|slot| slot.data.fill(0.2));
        let grad = vec![0.1; state.params.len()];
        let mut want_theta = vec![0.0; theta.len()];
        let want = UpdateVjp::vjp(&twin, &state, &grad, 0.4, Key::new(0), &after, &mut want_theta);
        let narrow = crate::learned::derivative::converted::<f64, f32>;
        let opt = CeloKernel::new(rule.clone(), &theta, Path::best());
        let mut got_theta = vec![0.0; theta.len()];
        let grad: Vec<f32> = vec![0.1; grad.len()];
        let got = opt.vjp(&narrow(&state), &grad, 0.4, Key::new(0), &narrow(&after), &mut got_theta);
        let gap = (f64::from(got.loss) - want.loss).abs();
        assert!(want.loss != 0.0 && gap < 1e-3 * want.loss.abs(), "{} {}", got.loss, want.loss);
        let [mut got, mut want] = [vec![0.0f32; theta.len()], vec![0.0; theta.len()]];
        opt.init_vjp(&narrow(&state), &narrow(&after), &mut got);
        let mut wide = vec![0.0f64; theta.len()];
        UpdateVjp::init_vjp(&twin, &state, &after, &mut wide);
        want.copy_from_slice(&got);
        assert!(want.iter().zip(&wide).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
        assert!(wide.iter().any(|a| *a != 0.0));
    }

    #[test]
    fn is_finite_at_zero() {
        let rule = Celo::published();
        let theta = theta(&rule);
        let layout = awkward_layout();
        for path in Path::available() {
            let opt = CeloKernel::new(rule.clone(), &theta, path);
            let state = opt.init(&Params::zeros(layout.clone()), Some(10), Key::new(0));
            let mut after = state.zeros_like();
            after.params.fill(1.0);
            let mut adjoint = vec![0.0; theta.len()];
            let a = opt.vjp(&state, &vec![0.0; layout.len()], 1.0, Key::new(0), &after, &mut adjoint);
            assert!(a.grad.iter().chain(&a.state.params).chain(&adjoint).all(|a| a.is_finite()), "{path:?}");
        }
    }
}
