//! outerloop: lopt
