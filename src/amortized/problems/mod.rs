//! Problems with known solutions, each with its source.

pub mod equilibria;
pub mod lqr;
pub mod lqr_policies;
pub mod maml;
pub mod maml_implicit;
pub mod pendulum;
pub mod qp;
pub mod sparse;
pub mod sphere;
mod sphere_rows;
pub mod sphere_tutorial;
pub mod transport;
