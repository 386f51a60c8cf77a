//! Hand-designed and learned optimizers.

mod adafac_mlp;
mod celo2;
pub mod features;
pub mod kernel;
#[cfg(test)]
mod learned_golden;
mod lstm;
mod mlp;
mod mlp_lopt;
mod nn_adam;
mod nominal_mlp;
mod rnn_mlp;
mod tape;
mod taped;
mod velo;

pub use adafac_mlp::AdafacMlp;
pub use celo2::{Celo2, Orthogonalize};
pub use mlp_lopt::MlpLopt;
pub use nn_adam::NnAdam;
pub use nominal_mlp::{NominalGradient, NominalMlp};
#[doc(hidden)]
pub use outerloop_core;
pub use rnn_mlp::RnnMlp;
pub use tape::{Tape, Var};
pub use taped::{Slots, StepVars, Taped, Theta, UpdateRule};
pub use velo::Velo;
