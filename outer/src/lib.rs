//! The outer loop: truncated unrolls, gradient estimators, the learner, checkpoints and evaluation.
//!
//! | module | owns |
//! |---|---|
//! | [`truncation`] | how long inner training runs last |
//! | [`objective`] | on which scale losses count, and when |
//! | [`unroll`] | trajectories and windows of inner steps |
//! | [`adjoint`] | the exact gradient of an unroll |
//! | [`estimator`] | meta-gradient estimators, one file each |
//! | [`learner`] | the outer update of theta |
//! | [`validation`] | which theta of a run to keep |
//! | [`workers`] | threads; results do not depend on their number |
//! | [`benchmark`] | optimizers compared: sweeps, metrics with intervals, the report |
//! | [`eval`] | training curves of any optimizer on any task |
//! | [`guard`] | guard rails for optimizers in use |
//! | [`run`] | a whole run on disk: metrics, checkpoints, stop and resume |
//! | [`checkpoint`], [`metrics`], [`plot`], [`progress`], [`interrupt`] | what a run writes and shows |
//!
//! Nothing here knows tensors or tapes: tasks are flat buffers ([`outerloop_core::FlatTask`]).

pub mod adjoint;
pub mod benchmark;
pub mod checkpoint;
pub mod estimator;
pub mod eval;
pub mod guard;
pub mod interrupt;
pub mod learner;
pub mod metrics;
pub mod objective;
pub mod plot;
pub mod progress;
pub mod run;
mod together;
pub mod truncation;
pub mod unroll;
pub mod validation;
pub mod workers;

pub use estimator::{
    Estimate, EstimatorState, FullEs, FullGrad, GradientEstimator, PesAnalytic, TruncatedEs, TruncatedGrad,
    TruncatedPes,
};
pub use learner::{GradientLearner, LearnerState};
pub use objective::{Emphasis, LossScale, Objective};
pub use truncation::TruncationSchedule;
pub use unroll::{InitialOffset, MetaLoss, TruncatedStep};
pub use validation::Validation;
pub use workers::Workers;
