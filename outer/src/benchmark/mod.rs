//! An honest benchmark of optimizers: sweeps, failures counted, intervals, every number in a table.
//!
//! | item | owns |
//! |---|---|
//! | [`Contest`] | tasks, contestants, horizon and seeds; [`Contest::run`] trains everything |
//! | [`metrics`] | smoothing, envelopes, speed-ups, ratios, performance profiles |
//! | [`statistics`] | interquartile means, stratified bootstrap |
//! | [`Scores`] | the comparison with the swept reference, per task and in sum |
//! | [`time_steps`] | wall-clock time per step: the only numbers that do not repeat |
//! | [`Receipt`] | what is needed to repeat the rest bit for bit |
//! | [`Report`] | CSV, JSON and one HTML page |
//!
//! What is compared: a contestant is one optimizer or a sweep. A sweep is represented on each task by
//! its best variant at the horizon, chosen on the very runs that are scored: in favour of the sweep. One
//! sweep, usually Adam's, is the reference; it runs several times longer than the others, so that it
//! can be asked how many steps it needs for their loss.
//!
//! A run with a non-finite loss has failed: it wins nothing, reaches no target and has an infinite ratio.
//! Where losses are not all positive, ratios are of distances from a zero below the lowest loss
//! ([`metrics::RatioScale`]), so that they agree with the win rate.
//!
//! A training loss is smoothed (EMA 0.95). Conventions and their sources stand with each metric.

mod charts;
mod contest;
mod duel;
mod files;
mod html;
pub mod metrics;
mod receipt;
mod report;
mod scores;
pub mod statistics;
mod tables;
mod timing;

pub use contest::{Contest, ContestConfig, ContestTask, Contestant, Results, Role, Run, Sweep, Variant};
pub use receipt::Receipt;
pub use report::Report;
pub use scores::{ContestantScore, HorizonScore, Scores, TaskScore, MAX_TAU, TARGET_FRACTION};
pub use timing::{time_steps, StepTime};

#[cfg(test)]
mod tests;
