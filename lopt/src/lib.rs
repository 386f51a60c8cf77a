//! Optimizers of outerloop, hand-designed and learned.
//!
//! | module | owns |
//! |---|---|
//! | [`hand`] | SGD, momentum, Adam and their kin; schedules; wrappers |
//! | [`learnable`] | learned optimizers whose theta is an optimizer's hyperparameters |
//! | [`MlpLopt`], ... | learned optimizers with a network per parameter |
//! | [`features`] | what such networks read |
//! | [`wrap`] | sums of optimizers, an optimizer per group of tensors, steps scaled by width |
//! | [`Taped`] | an update rule written once over arrays, with its derivative for free |
//! | [`TensorRule`] | the same in dfdx tensor operations |
//! | [`kernel`] | fused, vectorized twins of the rules |
//! | [`registry`] | optimizers by name and JSON hyperparameters |
//! | [`theta`] | theta as a file |
//! | [`dual`] | numbers that carry derivatives, for elementwise rules written once |
//!
//! What the learned ones cost on a 64-32-10 network in f32 on one AVX2 thread of a busy machine, by
//! `cargo run --release -p outerloop-lopt --example cost_of_learned_optimizers`. `AdafacMlp` and `MlpLopt` have
//! kernels, the learnable ones are elementwise, the others run on the tape.
//!
//! | optimizer | weights | state bytes per parameter | ns per parameter and step | of its derivative |
//! |---|---|---|---|---|
//! | AdafacMlp | 197 | 16.9 | 40.1 | 882.3 |
//! | Celo2 | 347 | 16.9 | 659.5 | 1764.4 |
//! | Velo | 162305 | 18.6 | 846.9 | 2795.7 |
//! | learnable_adam | 4 | 8.0 | 2.2 | 15.4 |
//! | learnable_sgd | 1 | 0.0 | 0.5 | 1.9 |
//! | learnable_sgdm | 2 | 4.0 | 1.2 | 5.5 |
//! | MlpLopt | 1762 | 24.0 | 35.3 | 148.9 |
//! | NominalMlp | 207 | 16.9 | 300.4 | 927.3 |
//! | NnAdam | 6856 | 8.5 | 64.6 | 234.4 |
//! | RnnMlp | 35799 | 41.0 | 1147.9 | 5005.1 |

mod adafac_mlp;
mod celo2;
pub mod dual;
pub mod features;
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
