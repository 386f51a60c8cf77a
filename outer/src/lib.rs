//! outerloop: outer

pub mod checkpoint;
