//! outerloop: outer

pub mod checkpoint;
pub mod metrics;
pub mod plot;
