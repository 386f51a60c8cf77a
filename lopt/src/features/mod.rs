//! What learned optimizers see of a parameter: accumulators and their normalization.
//!
//! | module | features | count |
//! |---|---|---|
//! | [`averages`] | momenta and RMS averages | one per decay |
//! | [`factored`] | Adafactor's row and column means | three per decay |
//! | [`adafac`] | all accumulators of the Adafactor family | [`adafac::column_count`] |
//! | [`time`] | the step number, squashed at eleven time scales | [`time::COUNT`] |
//! | [`loss`] | averages of the loss against their own past | [`loss::COUNT`] |
//! | [`stats`] | logarithmic magnitudes and signs of a tensor's mean and variance | as many as asked for |
//! | [`normalize`] | scales a feature by its second moment over the tensor | as many as given |

pub mod adafac;
pub mod averages;
pub mod factored;
pub mod loss;
pub mod normalize;
pub mod stats;
pub mod time;
