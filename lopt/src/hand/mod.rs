//! Hand-designed optimizers, learning rate schedules and wrappers.
//!
//! A rule that treats every parameter alone is an [`Elementwise`], one that looks at a whole tensor a
//! [`Tensorwise`]: written once, either gives the update and its exact derivative. Every learning
//! rate is a [`Schedule`]; a number converts.
//!
//! Unless a field says otherwise, rates, weight decays and ε are finite and not negative, decays and momenta
//! in `[0, 1)`, bounds positive. [`Optimizer::validate`] checks it, and
//! the [registry](crate::registry) refuses the rest. An ε of 0 works: where 0 is divided by 0, the step is 0.
//!
//! Rules that square gradients see them limited to ±1e15, so that one of 1e20 leaves no infinite average behind;
//! a gradient that is no number stays visible in its parameter.
//!
//! ```
//! use outerloop_core::Optimizer;
//! use outerloop_lopt::hand::{Adam, Clip, ClipRule, Cosine};
//!
//! let adam = Adam::new(Cosine { peak: 3e-3, ..Cosine::default() });
//! let clipped: Box<dyn Optimizer> = Box::new(Clip::new(ClipRule::GlobalNorm(1.0), Box::new(adam)));
//! assert_eq!(clipped.name(), "norm_clip(adam)");
//! ```

mod accumulate;
mod adafactor;
mod adam;
mod adam_kin;
mod clip;
mod eigen;
pub mod elementwise;
mod graft;
pub mod graph;
mod layerwise;
mod lion;
mod muon;
mod nadamw;
mod rmsprop;
mod schedule;
mod schedule_free;
mod sgd;
mod shampoo;
mod sm3;
pub mod tensorwise;
mod weight_decay;

pub use accumulate::Accumulate;
pub use adafactor::{Adafactor, Factoring, StepSize};
pub(crate) use adam::{adam_coeffs, adam_direction};
pub use adam::{Adam, AdamW};
pub use adam_kin::{AdaBelief, AdaGrad, RAdam, Yogi};
pub use clip::{Clip, ClipRule};
pub use elementwise::{Array, At, Elementwise, Initial};
pub use graft::Graft;
pub use layerwise::{Fromage, Lamb, Lars};
pub use lion::Lion;
pub use muon::Muon;
pub use nadamw::{L2Sign, NAdamW};
pub use rmsprop::RmsProp;
pub use schedule::{Cosine, Schedule, WarmUp};
pub use schedule_free::ScheduleFreeAdamW;
pub use sgd::{Momentum, MomentumKind, Sgd};
pub use shampoo::Shampoo;
pub use sm3::Sm3;
pub use tensorwise::Tensorwise;
pub use weight_decay::{LossTerm, WeightDecay};

use outerloop_core::{Float, Optimizer, UpdateVjp};

/// The inner optimizer's derivative; a wrapper offers its own only if there is one.
pub(crate) fn vjp_of<E: Float>(inner: &dyn Optimizer<E>) -> &dyn UpdateVjp<E> {
    inner.update_vjp().expect("a wrapper's `update_vjp` is `None` if the inner optimizer's is")
}

/// Makes an [`Optimizer`](outerloop_core::Optimizer) and its [`UpdateVjp`](outerloop_core::UpdateVjp) of a
/// rule that implements the trait `$kind`, with the functions of the module `$driver` and the methods `$further`.
#[doc(hidden)]
#[macro_export]
macro_rules! optimizer_of_rule {
    ($rule:ty, $kind:ident, $driver:ident, { $($further:tt)* }) => {
        impl<E: outerloop_core::Float> outerloop_core::Optimizer<E> for $rule {
            fn name(&self) -> String {
                $crate::hand::$kind::name(self)
            }
            fn describe(&self) -> String {
                format!("{self:?}")
            }
            fn init(
                &self,
                params: &outerloop_core::Params<E>,
                num_steps: Option<u64>,
                _key: outerloop_core::Key,
            ) -> outerloop_core::OptState<E> {
                $crate::hand::$driver::init(self, params, num_steps)
            }
            fn validate(&self) -> outerloop_core::Result<()> {
                $crate::hand::$kind::validate(self)
            }
            fn update(
                &self,
                state: &mut outerloop_core::OptState<E>,
                grad: &[E],
                _loss: E,
                _key: outerloop_core::Key,
            ) {
                $crate::hand::$driver::update(self, state, grad)
            }
            fn evaluation_params<'a>(
                &self,
                state: &'a outerloop_core::OptState<E>,
            ) -> std::borrow::Cow<'a, [E]> {
                $crate::hand::$kind::evaluation_params(self, state)
            }
            fn update_vjp(&self) -> Option<&dyn outerloop_core::UpdateVjp<E>> {
                Some(self)
            }
            $($further)*
        }
        impl<E: outerloop_core::Float> outerloop_core::UpdateVjp<E> for $rule {
            fn vjp(
                &self,
                before: &outerloop_core::OptState<E>,
                grad: &[E],
                _loss: E,
                _key: outerloop_core::Key,
                after: &outerloop_core::OptState<E>,
                theta: &mut [E],
            ) -> outerloop_core::UpdateAdjoint<E> {
                $crate::hand::$driver::vjp(self, before, grad, after, theta)
            }
        }
    };
}
