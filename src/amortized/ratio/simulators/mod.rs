//! Simulators with known answers.
//!
//! | simulator | parameters | numbers | what is known |
//! |---|---|---|---|
//! | [`Slcp`] | 5 | 8 | likelihood; posterior by quadrature ([`super::exact`]) |
//! | [`TwoMoons`] | 2 | 2 | likelihood; two crescents |
//! | [`GaussianLinear`] | any | the same | posterior in closed form |
//! | [`LotkaVolterra`] | 4 | 20 | an oscillator seen through noise |
//! | [`Sir`] | 2 | 10 | an epidemic, counted by samples |

mod gaussian_linear;
mod lotka_volterra;
mod sir;
mod slcp;
mod two_moons;

pub use gaussian_linear::GaussianLinear;
pub use lotka_volterra::LotkaVolterra;
pub use sir::Sir;
pub use slcp::{Slcp, SlcpMoments};
pub use two_moons::TwoMoons;
