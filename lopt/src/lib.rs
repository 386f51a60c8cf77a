//! Hand-designed and learned optimizers.

pub mod features;
pub mod kernel;
#[cfg(test)]
mod learned_golden;
mod mlp;
mod mlp_lopt;
mod tape;
mod taped;

pub use mlp_lopt::MlpLopt;
pub use tape::{Tape, Var};
pub use taped::{StepVars, Taped, Theta, UpdateRule};
