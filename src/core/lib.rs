//! The nouns of outerloop, in reading order:
//!
//! | module | owns |
//! |---|---|
//! | [`key`](Key) | randomness as a value |
//! | [`layout`](Layout) | what a flat buffer means |
//! | [`task`](Task) | what is trained: parameters, batches, a loss over dfdx tensors |
//! | [`flat`](FlatTask) | the same task as one flat buffer: what optimizers and trainers see |
//! | [`optimizer`](Optimizer) | update rules, learned ones, and their state |
//! | [`group`](OptimizerGroup) | optimizers that step together because that is faster |
//! | [`ops`] | differentiable operations with exact second derivatives |
//! | [`nn`] | layers made of them |
//! | [`simd`] | vector instructions for kernels, one path per process |
//! | [`tensor`] | the glue to dfdx: dtypes, devices, tapes, parameter trees |
//! | [`atomic`] | files that are whole or not there |
//! | [`contract`] | checks that every implementor's tests call |
//!
//! Users write a [`Task`] with shapes checked at compile time; everything else works on one flat
//! buffer plus a [`Layout`].

pub mod atomic;
pub mod contract;
mod error;
mod flat;
mod group;
mod key;
mod layout;
pub mod nn;
mod normal;
pub mod ops;
mod optimizer;
pub mod simd;
mod task;
pub mod tensor;

pub use error::{Error, Result};
pub use flat::{in_f32, Evaluator, FlatFamily, FlatTask, SingleTask, Typed};
pub use group::{OptimizerGroup, Turn};
pub use key::Key;
pub use layout::{Entry, Layout, Params};
pub use optimizer::{LearnedOptimizer, OptState, Optimizer, Slot, UpdateAdjoint, UpdateVjp};
pub use task::{BatchKey, Split, Task, TaskFamily};
pub use tensor::Float;
