//! Learned optimizers: a folder where a rule has kernels of its own beside it, a file where it has none.

pub(crate) mod adafac_mlp;
pub(crate) mod celo;
pub(crate) mod celo2;
mod celo2_published;
mod controlled_adam;
#[cfg(test)]
mod derivative;
#[cfg(test)]
pub(crate) mod golden;
pub mod learnable;
pub(crate) mod mixed_net;
pub(crate) mod mlp_lopt;
mod nn_adam;
mod nominal_mlp;
mod rnn_mlp;
pub(crate) mod velo;

pub use adafac_mlp::AdafacMlp;
pub use celo::{Celo, CeloAdam};
pub use celo2::{Celo2, Orthogonalize};
pub use celo2_published::{Celo2Form, Celo2Published, MlpActivation};
pub use controlled_adam::{ControlledAdam, Horizon};
pub use learnable::{HandAsLearned, LearnableAdam, LearnableSgd, LearnableSgdm};
pub use mlp_lopt::MlpLopt;
pub use nn_adam::NnAdam;
pub use nominal_mlp::{NominalGradient, NominalMlp};
pub use rnn_mlp::RnnMlp;
pub use velo::Velo;
