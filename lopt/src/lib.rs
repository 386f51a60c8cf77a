//! Optimizers of outerloop, hand-designed and learned.
//!
//! | module | owns | a newcomer may |
//! |---|---|---|
//! | [`hand`] | SGD, momentum, Adam and their kin; schedules | add a file per optimizer |
//! | [`learned`] | learned optimizers: each its rule, and beside it its kernels | add a file or folder per optimizer ([`guide`]) |
//! | [`wrap`] | sums of optimizers, an optimizer per group of tensors, steps scaled by width | add a wrapper |
//! | [`features`] | what networks in learned optimizers read | add a feature |
//! | [`baselines`] | hand-designed optimizers as opponents, with their sweeps | add an opponent |
//! | [`registry`] | optimizers by name and JSON hyperparameters | add a row |
//! | [`theta`] | theta as a file, and weights of other libraries | add a format |
//! | [`rule`] | how a rule is written once and differentiated: over arrays, tensors or dual numbers | use it |
//! | [`kernel`] | vectorized building blocks that the kernels of several optimizers share | leave it: `unsafe`, tested against the rules |
//! | [`guide`] | how to write a learned optimizer | start here |
//!
#![doc = include_str!("../OPTIMIZERS.md")]

pub mod baselines;
pub mod features;
pub mod guide;
pub mod hand;
pub mod kernel;
pub mod learned;
pub mod registry;
pub mod rule;
pub mod theta;
pub mod wrap;

pub use learned::learnable;
pub use learned::{
    AdafacMlp, Celo, Celo2, Celo2Form, Celo2Published, CeloAdam, ControlledAdam, HandAsLearned,
    LearnableAdam, LearnableSgd, LearnableSgdm, MlpActivation, MlpLopt, NnAdam, NominalGradient, NominalMlp,
    Orthogonalize, RnnMlp, Velo,
};
#[doc(hidden)]
pub use outerloop_core;
pub use rule::dual;
pub use rule::{
    FlatTensor, Slots, StepVars, Tape, Taped, TensorRule, TensorRuleOptimizer, TensorStep, Theta, UpdateRule,
    Var,
};
