//! What to meta-train on, and what to measure on, kept apart by construction.
//!
//! | item | owns |
//! |---|---|
//! | [`TaskConfig`] | a task as plain data: a problem and its augmentations |
//! | [`Training`], [`TrainingOn`] | a mixture that [`is_held_out`] rejects nothing of |
//! | [`held_out`] | the named tasks of the benchmark, all of them held out |
//! | [`foreign`] | named tasks on data that meta-training never sees |
//! | [`evaluation_key`] | initial parameters and batches that meta-training does not see |
//!
//! ```
//! use outerloop_core::Key;
//! use outerloop_tasks::suite;
//! assert!(!suite::is_held_out(&suite::training().sample(Key::new(0))));
//! assert!(suite::held_out().iter().all(|t| suite::is_held_out(&t.config)));
//! ```

mod config;
mod held_out;
mod training;

pub use config::{Problem, QuadraticConfig, Reparam, Scarce, TaskConfig};
pub use held_out::{
    evaluation_key, foreign, held_out, is_held_out, HeldOutTask, HELD_OUT_CODES, HELD_OUT_DEPTH,
    HELD_OUT_DIMENSIONS, HELD_OUT_NOISE, HELD_OUT_NONLINEARITIES, HELD_OUT_SPREAD, HELD_OUT_WIDTHS,
};
pub use training::{training, Training, TrainingOn};

#[cfg(test)]
mod tests;
