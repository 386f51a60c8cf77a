//! outerloop: outer
