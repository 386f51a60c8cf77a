//! The derivative of [`AdafacKernel`]'s update, tensor by tensor: the network by [`crate::kernel::net_vjp`], what it
//! reads by [`super::tensor_vjp`], the means of rows and columns by [`super::factored_vjp`].

use super::accumulators::{Accumulators, Means, Visit};
use super::backward::{Backward, Wanted};
use super::factored::FactoredTensor;
use super::factored_vjp::AllFeatures;
use super::features::{VectorTensor, RMS_EPSILON};
use super::step::AdafacKernel;
use super::tensor_vjp::TensorAdjoint;
use crate::features::normalize;
use crate::rule::limit;
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
        let limited = limit(grad);
        let (raw, grad) = (grad, &*limited);
        let rule = self.twin.rule();
        let mults = [rule.exp_mult, rule.step_mult];
        let epsilons = [RMS_EPSILON; 2];
        let wanted = Wanted { net: &self.net, mults, rates: &self.rates, epsilons, before };
        let mut adjoint = wanted.adjoint(after);
        with_scratch(wanted.scratch().iter().sum(), |scratch| {
            let (accumulators, backward) = wanted.passes(grad, &mut adjoint, scratch);
            self.path.run(Vjp { kernel: self, accumulators, backward, theta });
        });
        // The update does not depend on what was cut off.
        let is_beyond = |(raw, g): (&f32, &f32)| g.abs() < raw.abs();
        for (a, _) in adjoint.grad.iter_mut().zip(raw.iter().zip(grad)).filter(|(_, g)| is_beyond(*g)) {
            *a = 0.0;
        }
        adjoint
    }
}

struct Vjp<'a> {
    kernel: &'a AdafacKernel,
    accumulators: Accumulators<'a>,
    backward: Backward<'a>,
    theta: &'a mut [f32],
}

impl WithSimd for Vjp<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Vjp { kernel, accumulators, mut backward, theta } = self;
        backward.start(s);
        accumulators.run(s, &backward.tensors.before.layout, &mut backward);
        backward.net.add_theta(s, theta);
        let rates = &backward.tensors.rate_sums;
        let slopes = kernel.rate_slopes.iter().flatten();
        for ((place, slope), sum) in kernel.rate_places().zip(slopes).zip(&*rates.totals) {
            theta[place] += slope * sum;
        }
    }
}

impl Visit for Backward<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&mut self, s: S, mut tensor: VectorTensor<'_>, moments: Range<usize>) {
        let range = tensor.range.clone();
        self.pull_back(s, &mut tensor, &range, moments);
    }

    #[inline(always)]
    fn factored<S: Simd>(&mut self, s: S, _: &Entry, tensor: FactoredTensor<'_>, means: Means<'_>) {
        let range = tensor.range.clone();
        let mut tensor = AllFeatures::new(tensor, &means);
        self.pull_back(s, &mut tensor, &range, 0..0);
        self.means::<S, true>(s, &mut tensor, &means);
    }
}

impl Backward<'_> {
    /// The adjoints of one tensor's elements; second moments of a vector lie at `moments`.
    #[inline(always)]
    fn pull_back<S: Simd, T: TensorAdjoint>(
        &mut self,
        s: S,
        tensor: &mut T,
        range: &Range<usize>,
        moments: Range<usize>,
    ) {
        let (tensors, all) = (&mut self.tensors, 0..range.len());
        tensors.step[all.clone()].copy_from_slice(&tensors.state.params[range.clone()]);
        tensors.normalizers(s, tensor, range, all.clone(), normalize::EPSILON);
        tensors.network(s, &mut self.net, tensor, range, all.clone());
        tensors.elements(s, tensor, range, all, moments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Path;
    use crate::learned::adafac_mlp::DECAY_NAMES;
    use crate::learned::derivative::check;
    use crate::learned::AdafacMlp;
    use crate::rule::{Taped, UpdateRule};
    use outerloop_core::{contract::awkward_layout, Optimizer, Params};

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for rule in crate::learned::adafac_mlp::step::tests::rules() {
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
