//! Guard rails for optimizers in use: horizons and inputs unlike those of meta-training are flagged,
//! divergence is detected, and another optimizer takes over if wanted.

mod ranges;

pub use ranges::{input_ranges, InputRanges, Range};

use outerloop_core::{Float, Key, OptState, Optimizer, Params, Result, Slot};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::RangeInclusive;

/// Decay of the average of losses that is watched.
const LOSS_DECAY: f64 = 0.9;
/// Losses above the average by more than so many times what alarms count as if they were there.
const OUTLIER: f64 = 4.0;
/// Begins the names of the slots behind the inner optimizer's; once more for every guard inside.
const GUARD: &str = "guard/";
const WATCH: &str = "watch";
const BEST: &str = "best_params";
const FALLBACK: &str = "fallback/";

/// When to be alarmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardConfig {
    /// Run lengths of meta-training. Default: all.
    pub horizons: RangeInclusive<u64>,
    /// Inputs seen in meta-training, from [`input_ranges`]. Default: unknown, nothing is counted.
    pub ranges: Option<InputRanges>,
    /// A run has diverged when its loss (averaged with decay 0.9) is above the best so far by more than
    /// this part of the initial loss, or of the progress made, whichever is larger. A single loss moves the
    /// average by at most 0.4 of that, so that one odd batch alarms nobody and three do. Not negative;
    /// infinite: only non-finite numbers count. Default 0.5.
    pub tolerance: f64,
}

impl Default for GuardConfig {
    fn default() -> Self {
        GuardConfig { horizons: 0..=u64::MAX, ranges: None, tolerance: 0.5 }
    }
}

/// What the guard has seen in a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardReport {
    /// Whether the planned number of steps is unknown or outside meta-training's, or the run is longer
    /// than planned or than meta-training's longest.
    pub unusual_horizon: bool,
    /// The update at which the run was found to diverge (a non-finite loss or gradient, or a loss far
    /// above the best), if it was. From there on the fallback trains, if there is one.
    pub diverged_at: Option<u64>,
    /// Tensors, summed over steps, whose gradient had a root mean square outside meta-training's.
    pub unusual_gradients: u64,
    /// Tensors, summed over steps, whose parameters had one.
    pub unusual_parameters: u64,
    /// Steps with a loss outside meta-training's.
    pub unusual_losses: u64,
}

/// An optimizer that is watched; its updates are the inner optimizer's, bit for bit, until it
/// diverges.
///
/// With a fallback (e.g. Adam) a diverged run goes back to its best parameters, where the averaged
/// loss was lowest, and the fallback continues from there in the same state. Costs one pass over
/// gradient and parameters per step if ranges are known, and a copy of the parameters whenever the loss
/// is a new best if there is a fallback.
///
/// ```
/// use outerloop_core::{contract::check_optimizer, Optimizer};
/// use outerloop_lopt::hand::Adam;
/// use outerloop_outer::guard::{GuardConfig, Guarded};
///
/// let config = GuardConfig { horizons: 50..=500, ..GuardConfig::default() };
/// let opt: Guarded = Guarded::new(Box::new(Adam::new(1.0)), config).with_fallback(Box::new(Adam::new(1e-3)));
/// check_optimizer(&opt)?;
/// # Ok::<(), outerloop_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Guarded<E: Float = f32> {
    inner: Box<dyn Optimizer<E>>,
    fallback: Option<Box<dyn Optimizer<E>>>,
    config: GuardConfig,
}

/// The numbers in the slot [`WATCH`].
#[derive(Clone, Copy)]
enum Watch {
    /// The first loss.
    First,
    /// Averaged loss.
    Loss,
    /// The lowest averaged loss.
    Best,
    /// 1 + the step of divergence; 0 before.
    Diverged,
    Gradients,
    Parameters,
    Losses,
}

const WATCHED: usize = Watch::Losses as usize + 1;

impl<E: Float> Guarded<E> {
    /// Watches `inner`, without a fallback.
    ///
    /// # Panics
    /// If the tolerance is negative or NaN, or the range of horizons is empty.
    #[track_caller]
    pub fn new(inner: Box<dyn Optimizer<E>>, config: GuardConfig) -> Self {
        assert!(config.tolerance >= 0.0, "guard: expected a tolerance >= 0, got {}", config.tolerance);
        assert!(!config.horizons.is_empty(), "guard: expected low <= high, got {:?}", config.horizons);
        Guarded { inner, fallback: None, config }
    }

    /// What trains on after a divergence.
    #[must_use]
    pub fn with_fallback(mut self, fallback: Box<dyn Optimizer<E>>) -> Self {
        self.fallback = Some(fallback);
        self
    }

    /// What was seen so far in the run of this state.
    ///
    /// # Panics
    /// If the state is not of a guarded optimizer.
    pub fn report(&self, state: &OptState<E>) -> GuardReport {
        let watch = &state.slots[Self::own(&state.slots)].data;
        let count = |w: Watch| watch[w as usize].f64() as u64;
        let horizons = &self.config.horizons;
        let planned = state.num_steps.is_some_and(|n| horizons.contains(&n) && state.step <= n);
        GuardReport {
            unusual_horizon: !planned || state.step > *horizons.end(),
            diverged_at: count(Watch::Diverged).checked_sub(1),
            unusual_gradients: count(Watch::Gradients),
            unusual_parameters: count(Watch::Parameters),
            unusual_losses: count(Watch::Losses),
        }
    }

    /// Whether the run diverges with this loss; keeps the average and the best parameters.
    fn diverges(&self, own: &mut [Slot<E>], state: &OptState<E>, grad: &[E], loss: E) -> bool {
        let finite = |x: &E| x.f64().is_finite();
        if !finite(&loss) || !grad.iter().all(finite) {
            return true;
        }
        let [watch, rest @ ..] = own else { return false };
        let mut at = |w: Watch, value: Option<f64>| {
            if let Some(value) = value {
                watch.data[w as usize] = E::of(value);
            }
            watch.data[w as usize].f64()
        };
        let loss = loss.f64();
        if state.step == 0 {
            for w in [Watch::First, Watch::Loss, Watch::Best] {
                at(w, Some(loss));
            }
            return false;
        }
        let (first, best, before) = (at(Watch::First, None), at(Watch::Best, None), at(Watch::Loss, None));
        let alarm = self.config.tolerance * first.abs().max(first - best);
        let averaged = LOSS_DECAY * before + (1.0 - LOSS_DECAY) * loss.min(before + OUTLIER * alarm);
        at(Watch::Loss, Some(averaged));
        if averaged < best {
            at(Watch::Best, Some(averaged));
            if let [best_params, ..] = rest {
                best_params.data.copy_from_slice(&state.params);
            }
        }
        averaged - best > alarm
    }

    /// Counts inputs outside meta-training's.
    fn count(&self, watch: &mut [E], state: &OptState<E>, grad: &[E], loss: E) {
        let Some(ranges) = &self.config.ranges else { return };
        let mut add = |w: Watch, n: usize| watch[w as usize] += E::of(n as f64);
        let outside = |range: &Range, x: &[E]| {
            let tensors = state.layout.entries().iter();
            tensors.filter(|e| !range.contains(ranges::rms(&x[e.range()]))).count()
        };
        add(Watch::Gradients, outside(&ranges.gradient, grad));
        add(Watch::Parameters, outside(&ranges.parameter, &state.params));
        add(Watch::Losses, usize::from(!ranges.loss.contains(loss.f64())));
    }

    /// One update of the fallback, or its start from the best parameters.
    fn fall_back(&self, own: &mut [Slot<E>], state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let (Some(fallback), [watch, best, slots @ ..]) = (&self.fallback, own) else { return };
        let began = watch.data[Watch::Diverged as usize].f64() as u64 - 1;
        let left = state.num_steps.map(|n| n.saturating_sub(began));
        if state.step == began {
            // The gradient belongs to parameters that are given up: this step only goes back.
            state.params.copy_from_slice(&best.data);
            let params = Params { layout: state.layout.clone(), data: best.data.clone() };
            let fresh = fallback.init(&params, left, key).slots;
            slots.iter_mut().zip(fresh).for_each(|(slot, fresh)| slot.data = fresh.data);
        } else if grad.iter().all(|g| g.f64().is_finite()) {
            let prefix = format!("{}{FALLBACK}", watch.name.trim_end_matches(WATCH));
            let take = |s: &mut Slot<E>| Slot {
                name: s.name.strip_prefix(&prefix).unwrap_or(&s.name).into(),
                data: std::mem::take(&mut s.data),
            };
            let mut part = OptState {
                layout: state.layout.clone(),
                params: std::mem::take(&mut state.params),
                slots: slots.iter_mut().map(take).collect(),
                step: state.step - began - 1,
                num_steps: left,
            };
            fallback.update(&mut part, grad, loss, key);
            state.params = part.params;
            slots.iter_mut().zip(part.slots).for_each(|(slot, part)| slot.data = part.data);
        }
        state.step += 1;
    }

    /// Splits off the guard's slots, so that `state` is the inner optimizer's.
    fn split(state: &mut OptState<E>) -> Vec<Slot<E>> {
        state.slots.split_off(Self::own(&state.slots))
    }

    /// Where the guard's slots begin: behind those of all guards inside.
    fn own(slots: &[Slot<E>]) -> usize {
        slots.iter().rposition(|s| is_watch(&s.name)).expect("a state that `init` made")
    }
}

/// Whether a slot is a guard's own numbers; those of a fallback's guard have another name.
fn is_watch(name: &str) -> bool {
    name.strip_suffix(WATCH).is_some_and(|guards| guards.trim_start_matches(GUARD).is_empty())
        && name.starts_with(GUARD)
}

impl<E: Float> Optimizer<E> for Guarded<E> {
    fn name(&self) -> String {
        match &self.fallback {
            Some(fallback) => format!("guarded({}, else {})", self.inner.name(), fallback.name()),
            None => format!("guarded({})", self.inner.name()),
        }
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }

    fn validate(&self) -> Result<()> {
        self.inner.validate()?;
        self.fallback.as_ref().map_or(Ok(()), |fallback| fallback.validate())
    }

    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        let inner = self.inner.init(params, num_steps, key);
        let guards = 1 + inner.slots.iter().filter(|s| is_watch(&s.name)).count();
        let name = |of: &str| format!("{}{of}", GUARD.repeat(guards));
        let mut state = inner.with_slot(name(WATCH), WATCHED, E::of(0.0));
        if let Some(fallback) = &self.fallback {
            state.slots.push(Slot { name: name(BEST), data: params.data.clone() });
            let slots = fallback.init(params, num_steps, key).slots;
            let named = |s: Slot<E>| Slot { name: name(&format!("{FALLBACK}{}", s.name)), ..s };
            state.slots.extend(slots.into_iter().map(named));
        }
        state
    }

    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        let mut own = Self::split(state);
        self.count(&mut own[0].data, state, grad, loss);
        let diverged = |own: &[Slot<E>]| own[0].data[Watch::Diverged as usize].f64() > 0.0;
        if !diverged(&own) && self.diverges(&mut own, state, grad, loss) {
            own[0].data[Watch::Diverged as usize] = E::of((state.step + 1) as f64);
        }
        if diverged(&own) && self.fallback.is_some() {
            self.fall_back(&mut own, state, grad, loss, key);
        } else {
            self.inner.update(state, grad, loss, key);
        }
        state.slots.extend(own);
    }

    fn remarks(&self, state: &OptState<E>) -> Vec<String> {
        let GuardReport { unusual_horizon, diverged_at, .. } = self.report(state);
        let mut remarks = Vec::new();
        if let Some(step) = diverged_at {
            let then = match &self.fallback {
                Some(fallback) => format!("{} went on from the best parameters before", fallback.name()),
                None => "there is no fallback".into(),
            };
            remarks.push(format!("{} diverged at step {step}; {then}", self.inner.name()));
        }
        if unusual_horizon {
            let (horizons, planned) = (&self.config.horizons, state.num_steps);
            let planned =
                planned.map_or("no number of steps was planned".into(), |n| format!("planned were {n}"));
            remarks.push(format!(
                "{} is made for runs of {} to {} steps; {planned}, {} were done",
                self.inner.name(),
                horizons.start(),
                horizons.end(),
                state.step
            ));
        }
        remarks
    }

    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        let own = Self::split(state);
        self.inner.observe_validation(state, loss);
        state.slots.extend(own);
    }

    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        let mut inner = state.clone();
        let own = Self::split(&mut inner);
        let began = (own[0].data[Watch::Diverged as usize].f64() as u64).checked_sub(1);
        let opt = match (&self.fallback, began) {
            (Some(fallback), Some(began)) => {
                let prefix = format!("{}{FALLBACK}", own[0].name.trim_end_matches(WATCH));
                let slots = own.into_iter().filter_map(|s| {
                    let name = s.name.strip_prefix(&prefix)?.to_string();
                    Some(Slot { name, data: s.data })
                });
                inner.slots = slots.collect();
                // The first step of a fallback only goes back.
                inner.step = state.step.saturating_sub(began + 1);
                inner.num_steps = state.num_steps.map(|n| n.saturating_sub(began));
                fallback
            }
            _ => &self.inner,
        };
        Cow::Owned(opt.evaluation_params(&inner).into_owned())
    }
}

#[cfg(test)]
mod tests;
