//! What learned optimizers see of a parameter: accumulators and their normalization.
//!
//! | module | features | count |
//! |---|---|---|
//! | [`momenta`] | running averages of the gradient | one per decay |
//! | [`time`] | the step number, squashed at eleven time scales | [`time::COUNT`] |
//! | [`normalize`] | scales a feature by its second moment over the tensor | as many as given |

pub mod momenta;
pub mod normalize;
pub mod time;
