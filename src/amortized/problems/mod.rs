//! Problems with known solutions, each with its source.

pub mod lqr;
pub mod maml;
pub mod pendulum;
pub mod sparse;
pub mod sphere;
