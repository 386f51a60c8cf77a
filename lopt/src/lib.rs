//! Optimizers of outerloop, hand-designed and learned.
//!
//! | module | owns |
//! |---|---|
//! | [`hand`] | SGD, momentum, Adam and their kin; schedules; wrappers |
//! | [`learnable`] | learned optimizers whose theta is an optimizer's hyperparameters |
//! | [`registry`] | optimizers by name and JSON hyperparameters |
//! | [`theta`] | theta as a file |
//! | [`dual`] | numbers that carry derivatives, for update rules written once |

pub mod dual;
pub mod hand;
pub mod learnable;
pub mod registry;
pub mod theta;

pub use learnable::{HandAsLearned, LearnableAdam, LearnableSgd, LearnableSgdm};
