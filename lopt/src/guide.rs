//! Write your own learned optimizer in one page.
//!
//! A learned optimizer is an [`UpdateRule`](crate::UpdateRule): a configuration that says which
//! tensors theta has, which slots a training run keeps, and how one update computes the next
//! parameters and slots from [`StepVars`](crate::StepVars). It is written once in
//! [`Var`](crate::Var) operations, for f32 and f64, for values and for derivatives;
//! [`learned_optimizer!`](crate::learned_optimizer) makes it a
//! [`LearnedOptimizer`](outerloop_core::LearnedOptimizer) that every estimator can meta-train, by
//! evolution strategies and by unrolled gradients alike. A complete one:
//!
//! ```
#![doc = include_str!("../guide/gated_momentum.rs")]
//!
//! // Any learned optimizer is checked against the traits' invariants and against differences.
//! use outerloop_core::contract::{check_learned_optimizer, check_update_vjp};
//! use outerloop_core::LearnedOptimizer;
//! # fn main() -> outerloop_core::Result<()> {
//! let lopt = GatedMomentum { learning_rate: 0.1, hidden_size: 4 };
//! check_learned_optimizer::<f32>(&lopt)?;
//! let lopt: &dyn LearnedOptimizer<f64> = &lopt;
//! check_update_vjp(|theta| lopt.opt_fn(theta), &lopt.init(Key::new(0)))?;
//! # Ok(())
//! # }
//! ```
//!
//! Rules of the page:
//! - Arrays are flat; matrices are `[rows, n]` with the parameters' index last, so a network's inputs
//!   are features one after the other ([`Var::concat`](crate::Var::concat)).
//! - Ready parts: [`features`](crate::features) (momenta, RMS and factored second moments, time, loss,
//!   normalization). A new feature is a function from `Var` to `Var`.
//! - Divide features by their scale: losses and gradients of other tasks differ by orders of magnitude.
//! - Start near a rule that works. Here an untrained gate is about 1; others multiply the network's
//!   output by 1e-3.
//! - `sqrt`, `rsqrt` and `ln` need an ε: a fresh accumulator is 0.
//! - [`UpdateRule::optimizer`](crate::UpdateRule::optimizer) may return a hand-written kernel later;
//!   the rule stays its specification.
