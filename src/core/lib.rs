//! The nouns of outerloop, in reading order:
//!
//! | module | owns | to change it |
//! |---|---|---|
//! | [`key`](Key) | randomness as a value | leave it: every stream is pinned by tests |
//! | [`layout`](Layout) | what a flat buffer means | leave it: files on disk hold it |
//! | [`evaluator`](Evaluator) | which batch, and loss and derivatives on it | implement it where a hand-written kernel is worth it |
//! | [`task`](Task) | what is trained: parameters, batches, a loss over dfdx tensors | implement it, in your crate |
//! | [`flat`](FlatTask) | the same task as one flat buffer: what optimizers and trainers see | implement it for what dfdx cannot express |
//! | [`hyper`](HyperTask) | a task whose training loss has hyperparameters, judged by a validation loss | implement it, in your crate |
//! | [`optimizer`](Optimizer) | update rules, their derivatives and their state | implement it, in your crate |
//! | [`interval`](Interval) | ranges of settings | use it in `validate` |
//! | [`group`](OptimizerGroup) | optimizers that step together because that is faster | implement it for a rule with a kernel over several thetas |
//! | [`learned_optimizer`](LearnedOptimizer) | optimizers indexed by theta | implement it, in your crate |
//! | [`float`](Float), `math` | f32 and f64, and exponentials that vectorize | leave it: results depend on every bit |
//! | [`activation`](ops::Activation) | activations that fuse with a linear map | add one, with its derivatives |
//! | [`device`] | which device a task computes on, and whether it is there | add a device here and a [`Backend`](tensor::Backend) for it |
//! | [`tensor`] | the glue to dfdx: devices, the recording tape, parameter trees | add a [`Backend`](tensor::Backend) for a device; leave the tape |
//! | [`ops`] | differentiable operations with exact second derivatives | add one: a file and a row in its tests |
//! | [`nn`] | layers made of them | add one freely |
//! | [`nan`] | comparisons that keep NaN | use it |
//! | [`simd`] | vector instructions for kernels, one path per process | use it; leave the paths |
//! | [`atomic`] | files that are whole or not there | use it |
//! | [`npy`] | headers of NumPy's array files | use it |
//! | [`contract`] | checks that every implementor's tests call | add a check when a trait gains an invariant |
//!
//! Users write a [`Task`] with shapes checked at compile time; everything else works on one flat
//! buffer plus a [`Layout`].

mod activation;
pub mod atomic;
pub mod contract;
pub mod device;
mod error;
mod evaluator;
mod flat;
mod float;
mod group;
mod hyper;
mod interval;
mod key;
mod layout;
mod learned_optimizer;
mod math;
pub mod nan;
pub mod nn;
mod normal;
pub mod npy;
pub mod ops;
mod optimizer;
pub mod simd;
mod task;
pub mod tensor;

pub use device::{AnyDevice, Device, FamilyOn};
pub use error::{Error, Result};
pub use evaluator::{in_f32, BatchKey, Evaluator, LayerCurvature, Linearization, Split};
pub use flat::{FlatFamily, FlatTask, SingleTask, Typed};
pub use float::{same, Float};
pub use group::{MemberUpdate, OptimizerGroup};
pub use hyper::{HyperProblem, HyperTask};
pub use interval::{check_settings, Interval};
pub use key::Key;
pub use layout::{Entry, Layout, Params};
pub use learned_optimizer::LearnedOptimizer;
pub use optimizer::{OptState, Optimizer, Slot, UpdateAdjoint, UpdateJvp, UpdateTangent, UpdateVjp};
pub use task::{Metric, Task, TaskFamily};
