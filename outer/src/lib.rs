//! outerloop: outer

pub mod checkpoint;
pub mod interrupt;
pub mod metrics;
pub mod plot;
pub mod progress;
