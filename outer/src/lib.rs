//! The outer loop: truncated unrolls, gradient estimators, the learner, checkpoints and evaluation.
//!
//! | module | owns | to change it |
//! |---|---|---|
//! | [`truncation`] | how long inner training runs last | add a schedule, with its range |
//! | [`objective`] | on which scale losses count, and when | add a scale, with its slope |
//! | [`episode`] | one inner training run: keys, task, clock, trajectory | leave it: keys are streams, and checkpoints hold clock and trajectory |
//! | [`unroll`] | windows of inner steps of a lane | with care: every estimator's bits depend on it |
//! | `grouped` | the same for lanes whose optimizers update as one group | only to the same bits |
//! | [`adjoint`] | the exact gradient of an unroll | only against its tests by differences |
//! | [`estimator`] | meta-gradient estimators, one file each | add one: a file, and a row in its tests of expectations |
//! | [`lab`] | estimators measured and chosen | add measures and oracles freely |
//! | [`learner`] | the outer update of theta | freely; what [`LearnerState`] holds is in checkpoints |
//! | [`diagnostics`] | noise of meta-gradients, horizons, staleness | freely; what it keeps is in checkpoints |
//! | [`health`] | signs that a run learns nothing | freely; its counts are in checkpoints |
//! | [`implicit`] | hypergradients by implicit differentiation, one way to invert a Hessian per file | add a method: a file, and a row in its tests |
//! | `fingerprint` | what a resumed run is recognized by | freely: runs of before are then refused |
//! | [`validation`] | which theta of a run to keep | freely |
//! | [`workers`] | threads; results do not depend on their number | leave it |
//! | [`benchmark`] | optimizers compared: sweeps, metrics with intervals, the report | add metrics, tables and pictures freely |
//! | [`eval`] | training curves of any optimizer on any task | freely |
//! | [`guard`] | guard rails for optimizers in use | freely |
//! | [`run`] | a whole run on disk: metrics, checkpoints, stop and resume | freely; resumed runs must stay exact |
//! | [`checkpoint`] | the file of a state | only with a new version of the format |
//! | [`metrics`], [`plot`], [`page`], [`progress`], [`interrupt`] | what a run writes and shows | freely |
//!
//! Nothing here knows tensors or tapes: tasks are flat buffers ([`outerloop_core::FlatTask`]).

pub mod adjoint;
pub mod benchmark;
pub mod checkpoint;
pub mod diagnostics;
pub mod episode;
pub mod estimator;
pub mod eval;
mod fingerprint;
mod forward;
mod grouped;
pub mod guard;
pub mod health;
pub mod implicit;
pub mod interrupt;
pub mod lab;
pub mod learner;
pub mod metrics;
pub mod objective;
pub mod page;
pub mod plot;
pub mod progress;
pub mod run;
pub mod truncation;
pub mod unroll;
pub mod validation;
pub mod workers;

pub use estimator::{
    Estimate, EstimatorState, FinalPes, ForwardGrad, FullEs, FullGrad, GeneralizedPes, GradientEstimator,
    GuidedEs, MeasureValued, Mixed, NoiseReuseEs, PesAnalytic, TruncatedEs, TruncatedGrad, TruncatedPes,
};
pub use learner::{GradientLearner, LearnerState};
pub use objective::{Emphasis, LossScale, Objective};
pub use truncation::{ToldLength, TruncationSchedule};
pub use unroll::{InitialOffset, MetaLoss, TruncatedStep};
pub use validation::Validation;
pub use workers::Workers;
