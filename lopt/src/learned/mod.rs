//! Learned optimizers: a folder where a rule has kernels of its own beside it, a file where it has none.

pub(crate) mod adafac_mlp;
pub(crate) mod celo2;
mod controlled_adam;
#[cfg(test)]
mod derivative;
#[cfg(test)]
mod golden;
pub mod learnable;
pub(crate) mod mlp_lopt;
mod nn_adam;
mod nominal_mlp;
mod rnn_mlp;
mod velo;

pub use adafac_mlp::AdafacMlp;
pub use celo2::{Celo2, Orthogonalize};
pub use controlled_adam::{ControlledAdam, Horizon};
pub use learnable::{HandAsLearned, LearnableAdam, LearnableSgd, LearnableSgdm};
pub use mlp_lopt::MlpLopt;
pub use nn_adam::NnAdam;
pub use nominal_mlp::{NominalGradient, NominalMlp};
pub use rnn_mlp::RnnMlp;
pub use velo::Velo;
