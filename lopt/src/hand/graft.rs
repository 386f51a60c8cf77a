//! Grafting: the direction of one optimizer, the step length of another.

use super::elementwise::sum_f64;
use crate::wrap::{named_slots, part_state};
use outerloop_core::{Float, Key, OptState, Optimizer, Params, Result, Slot, UpdateAdjoint, UpdateVjp};
use std::borrow::Cow;

/// Both optimizers step from the same parameters; `p ← p + d |m|/|d|` with the steps d of
/// `direction` and m of `magnitude`, 2-norms over all tensors. No step if `|d| = 0`.
///
/// Reference: Agarwal et al. 2020, arXiv:2002.11803.
#[derive(Debug)]
pub struct Graft<E: Float = f32> {
    magnitude: Box<dyn Optimizer<E>>,
    direction: Box<dyn Optimizer<E>>,
}

/// What the slots of the two begin with.
const PREFIXES: [&str; 2] = ["magnitude/", "direction/"];

impl<E: Float> Graft<E> {
    /// The length of `magnitude`'s step along `direction`'s.
    pub fn new(magnitude: Box<dyn Optimizer<E>>, direction: Box<dyn Optimizer<E>>) -> Self {
        Graft { magnitude, direction }
    }

    /// The states that the two optimizers know.
    fn split(state: &OptState<E>) -> [OptState<E>; 2] {
        PREFIXES.map(|prefix| part_state(state, prefix))
    }

    fn join(states: [OptState<E>; 2]) -> Vec<Slot<E>> {
        let named = |(prefix, state): (&str, OptState<E>)| named_slots(prefix, state.slots);
        PREFIXES.into_iter().zip(states).flat_map(named).collect()
    }

    /// The two states after their updates, and their steps.
    fn inner(&self, state: &OptState<E>, grad: &[E], loss: E, key: Key) -> ([OptState<E>; 2], [Vec<E>; 2]) {
        let mut states = Self::split(state);
        self.magnitude.update(&mut states[0], grad, loss, key);
        self.direction.update(&mut states[1], grad, loss, key);
        let steps = [0, 1].map(|i| {
            states[i].params.iter().zip(&state.params).map(|(new, old)| *new - *old).collect::<Vec<E>>()
        });
        (states, steps)
    }
}

fn dot<E: Float>(a: &[E], b: &[E]) -> f64 {
    let products: Vec<f64> = a.iter().zip(b).map(|(a, b)| a.f64() * b.f64()).collect();
    sum_f64(&products)
}

/// `|m|/|d|`, 0 if `|d| = 0`, and both norms.
fn ratio<E: Float>([m, d]: &[Vec<E>; 2]) -> (f64, [f64; 2]) {
    let norms = [dot(m, m).sqrt(), dot(d, d).sqrt()];
    (if norms[1] == 0.0 { 0.0 } else { norms[0] / norms[1] }, norms)
}

impl<E: Float> Optimizer<E> for Graft<E> {
    fn name(&self) -> String {
        format!("graft({}, {})", self.magnitude.name(), self.direction.name())
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        let states =
            [self.magnitude.init(params, num_steps, key), self.direction.init(params, num_steps, key)];
        OptState { slots: Self::join(states), ..OptState::new(params, num_steps) }
    }
    fn validate(&self) -> Result<()> {
        self.magnitude.validate()?;
        self.direction.validate()
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let (states, steps) = self.inner(state, grad, loss, key);
        let (wide, _) = ratio(&steps);
        let ratio = E::of(wide);
        for (p, d) in state.params.iter_mut().zip(&steps[1]) {
            // One step 1e38 times as long as the other: the product may be a number where the ratio is none.
            *p += if num_traits::Float::is_finite(ratio) { *d * ratio } else { E::of(d.f64() * wide) };
        }
        state.slots = Self::join(states);
        state.step += 1;
    }
    /// Those of `direction`.
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        let [_, direction] = Self::split(state);
        Cow::Owned(self.direction.evaluation_params(&direction).into_owned())
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        self.magnitude.update_vjp().and(self.direction.update_vjp()).map(|_| self as _)
    }
}

impl<E: Float> UpdateVjp<E> for Graft<E> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let (_, steps) = self.inner(before, grad, loss, key);
        let (ratio, [m_norm, d_norm]) = ratio(&steps);
        let a = &after.params;
        // p' = p + d r with r = |m|/|d|: ā_r = a·d, m̄ = ā_r m/(|m||d|), d̄ = r a − ā_r r d/|d|².
        let of_ratio = dot(a, &steps[1]);
        let of_m = if m_norm * d_norm == 0.0 { 0.0 } else { of_ratio / (m_norm * d_norm) };
        let of_d = if d_norm == 0.0 { 0.0 } else { of_ratio * ratio / (d_norm * d_norm) };
        let mut after = Self::split(after);
        after[0].params = steps[0].iter().map(|m| E::of(of_m * m.f64())).collect();
        after[1].params =
            a.iter().zip(&steps[1]).map(|(a, d)| E::of(ratio * a.f64() - of_d * d.f64())).collect();
        let inner_before = Self::split(before);
        let inner = [&*self.magnitude, &*self.direction];
        let mut total =
            UpdateAdjoint { state: before.zeros_like(), grad: vec![E::of(0.0); a.len()], loss: E::of(0.0) };
        total.state.params.copy_from_slice(a);
        let states = [0, 1].map(|i| {
            let part = super::vjp_of(inner[i]).vjp(&inner_before[i], grad, loss, key, &after[i], theta);
            for ((to, x), step) in total.state.params.iter_mut().zip(&part.state.params).zip(&after[i].params)
            {
                // The step is new minus old parameters.
                *to += *x - *step;
            }
            total.grad.iter_mut().zip(&part.grad).for_each(|(to, x)| *to += *x);
            total.loss += part.loss;
            part.state
        });
        total.state.slots = Self::join(states);
        total
    }
}
