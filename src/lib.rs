//! outerloop meta-trains optimizers: it learns update rules by training them over distributions of
//! tasks, then uses, measures and exports them.
//!
//! This crate only re-exports the parts; [`prelude`] holds what most programs need.
//!
//! | crate | owns |
//! |---|---|
//! | [`core`] | tasks, optimizers, keys, differentiable operations |
//! | [`tasks`] | quadratics, image tasks, data sets |
//! | [`lopt`] | hand-designed and learned optimizers |
//! | [`outer`] | unrolls, gradient estimators, the learner, runs, evaluation |
//! | [`amortized`] | learning to solve and to infer |
//!
#![doc = include_str!("../README.md")]

pub use outerloop_amortized as amortized;
pub use outerloop_core as core;
pub use outerloop_lopt as lopt;
pub use outerloop_outer as outer;
pub use outerloop_tasks as tasks;

pub mod pretrained;

/// What most programs need: `use outerloop::prelude::*;`.
pub mod prelude {
    pub use outerloop_core::atomic::write_atomic;
    pub use outerloop_core::nn::Dense;
    pub use outerloop_core::ops::{self, linear, mse, softmax_cross_entropy, Activation};
    pub use outerloop_core::tensor::{
        Backend, Const, Cpu, DynParams, DynTree, Mode, ParamTree, PutTape, Rank0, Rank1, Rank2, Rank3, Rank4,
        Tensor,
    };
    pub use outerloop_core::{
        collection, AnyDevice, BatchKey, Device, Error, Evaluator, FamilyOn, FlatFamily, FlatTask, Float,
        HyperProblem, HyperTask, Key, Layout, LearnedOptimizer, Metric, OptState, Optimizer, Params, Result,
        SingleTask, Split, Task, TaskFamily, Typed,
    };
    pub use outerloop_lopt::hand::{
        Adam, AdamW, Clip, ClipRule, Cosine, Momentum, Muon, NAdamW, RmsProp, Schedule, Sgd,
    };
    pub use outerloop_lopt::{
        kernel, registry, theta, AdafacMlp, ControlledAdam, HandAsLearned, LearnableAdam, LearnableSgd,
        LearnableSgdm, MlpLopt,
    };
    pub use outerloop_outer::adjoint::{Memory, StepWeights, SweepConfig};
    pub use outerloop_outer::estimator::{Antithetic, FullLoss};
    pub use outerloop_outer::eval::{
        fit, training_curve, training_curves, Curve, EvalConfig, EvalPoint, Fit, ToldSteps,
    };
    pub use outerloop_outer::implicit::{
        ConjugateGradient, HyperConfig, HyperLearner, Implicit, MinRes, Neumann, Unrolled,
    };
    pub use outerloop_outer::objective::{Emphasis, LossScale, Objective};
    pub use outerloop_outer::plot::{Plot, Scale, Series, Style};
    pub use outerloop_outer::run::{meta_train, train, RunConfig, RunDir};
    pub use outerloop_outer::{
        FinalPes, ForwardGrad, FullEs, FullGrad, GeneralizedPes, GradientEstimator, GradientLearner,
        InitialOffset, LearnerState, MetaLoss, NoiseReuseEs, ToldLength, TruncatedEs, TruncatedGrad,
        TruncatedPes, TruncatedStep, TruncationSchedule, Validation, Workers,
    };
    pub use outerloop_tasks::data::{digits, Cifar100Labels, EmnistSplit, ImageData, ImageFiles, Splits};
    pub use outerloop_tasks::image::{ImageMlp, ImageMlpFamily, MlpConfig, MlpTask};
    pub use outerloop_tasks::quadratics::{FixedDimQuadraticFamily, QuadraticTask};
}
