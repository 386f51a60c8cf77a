//! An exponential moving average of parameters.

use crate::hand::vjp_of;
use outerloop_core::{
    Error, Float, Key, OptState, Optimizer, Params, Result, Slot, UpdateAdjoint, UpdateVjp,
};
use std::borrow::Cow;

/// Averages the parameters of another optimizer, whose training it leaves as it is:
/// `aₜ = Σₛ βᵗ⁻ˢ pₛ / Σₛ βᵗ⁻ˢ` over the updates `s = 1, ..., t`. The average is what to evaluate
/// ([`Optimizer::evaluation_params`]).
///
/// Computed as `a ← a + w (p − a)` with `w = (1−β)/(1−βᵗ)`, where `1−βᵗ` corrects the bias towards the start:
/// without it, `a` would hold on to the initial parameters for about `1/(1−β)` updates.
/// Reference: Kingma and Ba 2015, arXiv:1412.6980, section 7.2.
///
/// ```
/// use outerloop_core::Optimizer;
/// use outerloop_lopt::{hand::Adam, wrap::ParamsEma};
///
/// let opt = ParamsEma::<f32>::new(0.999, Box::new(Adam::new(1e-3)))?;
/// assert_eq!(opt.name(), "params_ema(adam)");
/// # outerloop_core::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct ParamsEma<E: Float = f32> {
    decay: f64,
    inner: Box<dyn Optimizer<E>>,
}

/// The wrapper's slot, behind the inner optimizer's.
const SLOT: &str = "params_ema";

impl<E: Float> ParamsEma<E> {
    /// Averages with the decay β; 0: the last parameters alone.
    ///
    /// # Errors
    /// Unless `0 <= decay < 1`.
    pub fn new(decay: f64, inner: Box<dyn Optimizer<E>>) -> Result<Self> {
        if !(0.0..1.0).contains(&decay) {
            return Err(Error::invalid("ParamsEma: decay", format!("expected 0 <= decay < 1, got {decay}")));
        }
        Ok(ParamsEma { decay, inner })
    }

    /// w at update number `t`, counted from 1.
    fn weight(&self, t: u64) -> f64 {
        (1.0 - self.decay) / (1.0 - self.decay.powf(t as f64))
    }

    /// Takes the average off, leaving the state that the inner optimizer knows.
    fn split(state: &mut OptState<E>) -> Slot<E> {
        state.slots.pop().expect("a state made by `init` has the wrapper's slot")
    }
}

impl<E: Float> Optimizer<E> for ParamsEma<E> {
    fn name(&self) -> String {
        format!("params_ema({})", self.inner.name())
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self) -> Result<()> {
        self.inner.validate()
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        let mut state = self.inner.init(params, num_steps, key);
        state.slots.push(Slot { name: SLOT.into(), data: params.data.clone() });
        state
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let mut average = Self::split(state);
        self.inner.update(state, grad, loss, key);
        let w = E::of(self.weight(state.step));
        average.data.iter_mut().zip(&state.params).for_each(|(a, p)| *a += w * (*p - *a));
        state.slots.push(average);
    }
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        let average = Self::split(state);
        self.inner.observe_validation(state, loss);
        state.slots.push(average);
    }
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        Cow::Borrowed(&state.slots.last().expect("a state made by `init` has the wrapper's slot").data)
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.inner.update_vjp().map(|_| self as _)
    }
}

impl<E: Float> UpdateVjp<E> for ParamsEma<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let (mut before, mut after) = (before.clone(), after.clone());
        Self::split(&mut before);
        let mut average = Self::split(&mut after);
        // a' = (1−w) a + w p'
        let w = E::of(self.weight(before.step + 1));
        for (p, a) in after.params.iter_mut().zip(&mut average.data) {
            *p += w * *a;
            *a = (E::ONE - w) * *a;
        }
        let mut adjoint = vjp_of(&*self.inner).vjp(&before, grad, loss, key, &after, theta);
        adjoint.state.slots.push(average);
        adjoint
    }

    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        let (mut start, mut adjoint) = (start.clone(), adjoint.clone());
        Self::split(&mut start);
        Self::split(&mut adjoint);
        vjp_of(&*self.inner).init_vjp(&start, &adjoint, theta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::{Accumulate, Adam, Clip, ClipRule, LossTerm, ScheduleFreeAdamW, Sgd, WeightDecay};
    use crate::wrap::{GroupRule, Grouped, SumOptimizer};
    use outerloop_core::{contract::awkward_params, LearnedOptimizer};

    /// A few steps with gradients that do not depend on the parameters.
    fn run(opt: &dyn Optimizer<f64>, steps: u64) -> OptState<f64> {
        let key = Key::new(1);
        let params = awkward_params::<f64>(key);
        let mut state = opt.init(&params, None, key);
        for t in 0..steps {
            let mut grad = vec![0.0; params.data.len()];
            key.fold_in(t).fill_normal(&mut grad);
            opt.update(&mut state, &grad, 1.0, key);
        }
        state
    }

    fn near(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?}, not {b:?}");
    }

    #[test]
    fn the_average_is_the_weighted_mean_and_training_is_the_inner_ones() {
        for decay in [0.0, 0.5, 0.999] {
            let opt = ParamsEma::new(decay, Box::new(Adam::new(0.1))).unwrap();
            let (mut sum, mut weights) = (vec![0.0; awkward_params::<f64>(Key::new(1)).data.len()], 0.0);
            for t in 1..=6 {
                let (state, plain) = (run(&opt, t), run(&Adam::new(0.1), t));
                assert_eq!(state.params, plain.params);
                sum.iter_mut().zip(&plain.params).for_each(|(s, p)| *s = decay * *s + p);
                weights = decay * weights + 1.0;
                let want: Vec<f64> = sum.iter().map(|s| s / weights).collect();
                near(&opt.evaluation_params(&state), &want);
            }
        }
    }

    #[test]
    fn the_decay_is_checked() {
        for decay in [-0.1, 1.0, f64::NAN] {
            let error = ParamsEma::<f32>::new(decay, Box::new(Sgd::new(0.1))).err().unwrap().to_string();
            assert!(error.contains("0 <= decay < 1"), "{error}");
        }
    }

    /// Every wrapper evaluates where the optimizer inside would.
    #[test]
    fn averages_are_seen_through_wrappers() {
        let free = || -> Box<dyn Optimizer<f64>> {
            Box::new(ScheduleFreeAdamW { learning_rate: 0.1, ..ScheduleFreeAdamW::default() })
        };
        let want = free().evaluation_params(&run(&*free(), 4)).into_owned();
        assert_ne!(want, run(&*free(), 4).params);
        let wrapped: Vec<Box<dyn Optimizer<f64>>> = vec![
            Box::new(Clip::new(ClipRule::Value(1e9), free())),
            Box::new(WeightDecay::new(0.0, LossTerm::None, free())),
            Box::new(Accumulate::new(1, free())),
            Box::new(SumOptimizer::new(vec![free()])),
            Box::new(SumOptimizer::new(vec![free(), Box::new(Sgd::new(0.0))])),
            Box::new(Grouped::new(GroupRule::matrices_and_vectors(), vec![free(), free()]).unwrap()),
            Box::new(crate::hand::Graft::new(free(), free())),
            Box::new(crate::wrap::WidthScaled::new(free(), Default::default())),
            crate::HandAsLearned::from(free()).opt_fn(&[]),
        ];
        for opt in wrapped {
            let state = run(&*opt, 4);
            let got = opt.evaluation_params(&state);
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-12), "{}", opt.name());
        }
    }
}
