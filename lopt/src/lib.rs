//! Optimizers of outerloop, hand-designed and learned.
//!
//! | module | owns |
//! |---|---|
//! | [`hand`] | SGD, momentum, Adam and their kin; schedules; wrappers |
//! | [`baselines`] | hand-designed optimizers as opponents, with their sweeps |
//! | [`learnable`] | learned optimizers whose theta is an optimizer's hyperparameters |
//! | [`MlpLopt`], ... | learned optimizers with a network per parameter |
//! | [`features`] | what such networks read |
//! | [`wrap`] | sums of optimizers, an optimizer per group of tensors, steps scaled by width |
//! | [`Taped`] | an update rule written once over arrays, with its derivative for free |
//! | [`TensorRule`] | the same in dfdx tensor operations |
//! | [`kernel`] | fused, vectorized twins of the rules |
//! | [`registry`] | optimizers by name and JSON hyperparameters |
//! | [`theta`] | theta as a file |
//! | [`guide`] | how to write a learned optimizer |
//! | [`dual`] | numbers that carry derivatives, for elementwise rules written once |
//!
#![doc = include_str!("../OPTIMIZERS.md")]

mod adafac_mlp;
pub mod baselines;
mod celo2;
mod controlled_adam;
pub mod dual;
pub mod features;
pub mod guide;
pub mod hand;
pub mod kernel;
pub mod learnable;
#[cfg(test)]
mod learned_golden;
mod lstm;
mod mlp;
mod mlp_lopt;
mod nn_adam;
mod nominal_mlp;
pub mod registry;
mod rnn_mlp;
mod tape;
mod taped;
mod tensor_rule;
pub mod theta;
mod velo;
pub mod wrap;

pub use adafac_mlp::AdafacMlp;
pub use celo2::{Celo2, Orthogonalize};
pub use controlled_adam::ControlledAdam;
pub use learnable::{HandAsLearned, LearnableAdam, LearnableSgd, LearnableSgdm};
pub use mlp_lopt::MlpLopt;
pub use nn_adam::NnAdam;
pub use nominal_mlp::{NominalGradient, NominalMlp};
#[doc(hidden)]
pub use outerloop_core;
pub use rnn_mlp::RnnMlp;
pub use tape::{Tape, Var};
pub use taped::{Slots, StepVars, Taped, Theta, UpdateRule};
pub use tensor_rule::{FlatTensor, TensorRule, TensorRuleOptimizer, TensorStep};
pub use velo::Velo;
