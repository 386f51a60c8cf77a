//! [`Optimizer`], its derivative and its state.

use crate::{Error, Float, Key, Layout, Params, Result};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, sync::Arc};

/// A named buffer of an optimizer: momentum, an accumulator, a scalar (length 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot<E = f32> {
    /// What it holds, e.g. `"momentum"`; unique within a state.
    pub name: String,
    /// The elements; any length.
    pub data: Vec<E>,
}

/// The whole state of one inner training run as its optimizer sees it: parameters and slots.
///
/// One concrete struct for every optimizer, so cloning, saving, perturbing and differentiating are
/// each written once. The number and lengths of the slots are fixed by `init` and never change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptState<E = f32> {
    /// Names and shapes of the parameters.
    pub layout: Arc<Layout>,
    /// The parameters, in layout order.
    pub params: Vec<E>,
    /// The optimizer's own buffers.
    pub slots: Vec<Slot<E>>,
    /// Updates done so far.
    pub step: u64,
    /// The planned number of updates, if known.
    pub num_steps: Option<u64>,
}

impl<E: Float> OptState<E> {
    /// A state at step 0 without slots.
    pub fn new(params: &Params<E>, num_steps: Option<u64>) -> Self {
        OptState {
            layout: params.layout.clone(),
            params: params.data.clone(),
            slots: Vec::new(),
            step: 0,
            num_steps,
        }
    }

    /// Adds a slot of `len` elements, all equal to `value`.
    #[must_use]
    pub fn with_slot(mut self, name: impl Into<String>, len: usize, value: E) -> Self {
        self.slots.push(Slot { name: name.into(), data: vec![value; len] });
        self
    }

    /// Adds a slot of zeros with one element per parameter.
    #[must_use]
    pub fn with_zeros(self, name: impl Into<String>) -> Self {
        let n = self.params.len();
        self.with_slot(name, n, E::of(0.0))
    }

    /// The slot of this name.
    pub fn slot(&self, name: &str) -> Result<&[E]> {
        self.slots.iter().find(|s| s.name == name).map(|s| &s.data[..]).ok_or_else(|| Error::Unknown {
            what: "optimizer slot",
            got: name.to_string(),
            allowed: self.slots.iter().map(|s| s.name.clone()).collect(),
        })
    }

    /// A zero adjoint of the same shape: what [`UpdateVjp`] reads and writes.
    pub fn zeros_like(&self) -> Self {
        let zero = E::of(0.0);
        let mut z = self.clone();
        z.params.fill(zero);
        for s in &mut z.slots {
            s.data.fill(zero);
        }
        z
    }

    /// Bytes per state, slots included, parameters excluded.
    pub fn slot_bytes(&self) -> usize {
        self.slots.iter().map(|s| s.data.len() * size_of::<E>()).sum()
    }
}

/// An update rule. Stateless: everything that changes lives in [`OptState`].
///
/// Invariants, checked by [`crate::contract::check_optimizer`]:
/// - `init` keeps the parameters bit for bit and starts at step 0;
/// - `update` adds 1 to `step`, keeps the number and lengths of slots, and is a pure function of
///   its arguments: same inputs, same bits, on any thread;
/// - a non-finite gradient may spoil the state but never panics;
/// - `evaluation_params` are the initial parameters before the first update, and a pure function of the
///   state.
///
/// ```
/// use outerloop_core::{Float, Key, OptState, Optimizer, Params};
///
/// /// v ← μ v + g;  p ← p − lr v
/// #[derive(Debug)]
/// struct Momentum { lr: f64, mu: f64 }
///
/// impl<E: Float> Optimizer<E> for Momentum {
///     fn name(&self) -> String { "momentum".into() }
///     fn describe(&self) -> String { format!("{self:?}") }
///     fn init(&self, params: &Params<E>, num_steps: Option<u64>, _key: Key) -> OptState<E> {
///         OptState::new(params, num_steps).with_zeros("momentum")
///     }
///     fn update(&self, state: &mut OptState<E>, grad: &[E], _loss: E, _key: Key) {
///         let v = &mut state.slots[0].data;
///         for ((p, v), &g) in state.params.iter_mut().zip(v).zip(grad) {
///             *v = E::of(self.mu) * *v + g;
///             *p -= E::of(self.lr) * *v;
///         }
///         state.step += 1;
///     }
/// }
/// ```
pub trait Optimizer<E: Float = f32>: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;

    /// The whole configuration, with inner optimizers and theta, if there are any: two optimizers of the same
    /// description do the same. A resumed run is recognized by it. All of the library's say everything; by
    /// default it is the name alone, so a rule with settings should return its derived `Debug` form here.
    fn describe(&self) -> String {
        self.name()
    }

    /// The state before the first update. `num_steps`: planned number of updates, if known.
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E>;

    /// Whether every hyperparameter is in its range. Structs with public fields can hold any number: who
    /// builds an optimizer from settings asks this before the first update. `Ok` by default.
    ///
    /// # Errors
    /// The first hyperparameter that is out of its range, with the range.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// One update in place. `loss`: the loss that `grad` belongs to. `key`: the training run's key,
    /// the same at every step; a rule that draws numbers folds in `state.step`.
    ///
    /// # Panics
    /// If `grad` and `state.params` differ in length.
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key);

    /// The parameters that the rule means, `[params]`: where to evaluate and what to keep of a run. By default
    /// those where gradients are taken; rules that average their iterates mean the average.
    fn evaluation_params<'a>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        Cow::Borrowed(&state.params)
    }

    /// What the user should know of a run that came to this state, in sentences: that it was rescued, or is
    /// of a kind that the rule was not made for. Nothing by default.
    fn remarks(&self, state: &OptState<E>) -> Vec<String> {
        let _ = state;
        Vec::new()
    }

    /// Tells the rule a validation loss at the current parameters. Ignored by default.
    fn observe_validation(&self, state: &mut OptState<E>, loss: E) {
        let _ = (state, loss);
    }

    /// The part of a gradient's elements, 0 to 1, that `update` limits before it uses them, for reports: what
    /// a wrapper clips. 0 by default.
    fn clipped(&self, grad: &[E]) -> f64 {
        let _ = grad;
        0.0
    }

    /// The derivative of `update`, if it is known. Needed by unrolled gradients only.
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        None
    }

    /// The same derivative in forward mode, if it is known. Needed by forward gradients only.
    fn update_jvp(&self) -> Option<&dyn UpdateJvp<E>> {
        None
    }
}

/// By its description, so that the derived form of a wrapper shows what is inside.
impl<E: Float> fmt::Debug for dyn Optimizer<E> + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Adjoints of the arguments of one update.
#[derive(Clone, Debug)]
pub struct UpdateAdjoint<E> {
    /// Adjoint of the state before the update (same slots as the state).
    pub state: OptState<E>,
    /// Adjoint of the gradient, `[params]`.
    pub grad: Vec<E>,
    /// Adjoint of the loss.
    pub loss: E,
}

/// The vector-Jacobian product of one update: from the adjoint of the next state to the adjoints of
/// state, gradient, loss and theta.
pub trait UpdateVjp<E: Float>: Send + Sync {
    /// Given the state *before* the update, the update's arguments and the adjoint of the state
    /// *after* it, returns the adjoints before it and **adds** theta's adjoint to `theta`
    /// (length of theta; empty for an optimizer without theta).
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E>;

    /// **Adds** to `theta` its adjoint through [`Optimizer::init`]: `start` is the state that `init`
    /// gave, `adjoint` the adjoint of its slots. By default nothing: most optimizers start from slots
    /// that do not depend on theta.
    fn init_vjp(&self, start: &OptState<E>, adjoint: &OptState<E>, theta: &mut [E]) {
        let _ = (start, adjoint, theta);
    }
}

/// A direction in which the arguments of one update move.
#[derive(Clone, Copy, Debug)]
pub struct UpdateTangent<'a, E> {
    /// Of the state before the update (same slots as the state).
    pub state: &'a OptState<E>,
    /// Of the gradient, `[params]`.
    pub grad: &'a [E],
    /// Of the loss.
    pub loss: E,
    /// Of theta, `[theta]`; empty for an optimizer without theta.
    pub theta: &'a [E],
}

/// The Jacobian-vector product of one update: how the next state moves when the arguments do. The transpose of
/// [`UpdateVjp`]; [`crate::contract::check_update_vjp`] holds one against the other.
pub trait UpdateJvp<E: Float>: Send + Sync {
    /// The direction in which the state *after* the update moves, given the state *before* it, the update's
    /// arguments and their direction.
    fn jvp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        tangent: UpdateTangent<'_, E>,
    ) -> OptState<E>;

    /// The direction in which the state that [`Optimizer::init`] gave, `start`, moves with theta. By default none:
    /// most optimizers start from slots that do not depend on theta.
    fn init_jvp(&self, start: &OptState<E>, theta: &[E]) -> OptState<E> {
        let _ = theta;
        start.zeros_like()
    }
}
