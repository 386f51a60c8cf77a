//! How an update rule is written once, run, and differentiated: over arrays ([`Taped`], on a [`Tape`]), in
//! dfdx operations ([`TensorRule`]), or over numbers that carry derivatives ([`dual`]).

pub mod dual;
mod limit;
pub(crate) mod lstm;
pub(crate) mod mlp;
mod tape;
pub(crate) mod taped;
mod tensor_rule;

pub(crate) use limit::{limit, limited, MAX_GRADIENT};
pub use tape::{Tape, Var};
pub use taped::{Slots, StepVars, Taped, Theta, UpdateRule};
pub use tensor_rule::{FlatTensor, TensorRule, TensorRuleOptimizer, TensorStep};

use serde::Serialize;

/// The text that [`LearnedOptimizer::architecture`](outerloop_core::LearnedOptimizer::architecture) gives: class
/// and hyperparameters, as `MlpLopt {"exp_mult":0.001,...}`; [`crate::registry::from_architecture`] reads it back.
pub(crate) fn architecture(class: &str, config: &impl Serialize) -> String {
    let hyper = serde_json::to_string(config).expect("plain numbers have a JSON form");
    format!("{class} {hyper}")
}
