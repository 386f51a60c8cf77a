//! outerloop: lopt

pub mod theta;
