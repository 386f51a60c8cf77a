//! Gradients projected on a few random directions.

use super::modify_gradient::{dot, GradientMap};
use outerloop_core::{Error, Float, Key, Result};

/// `Σᵢ dᵢ (dᵢ·g)`, or `Σᵢ dᵢ sign(dᵢ·g)`, with `n` random unit vectors `dᵢ` over all parameters
/// together, drawn anew for every batch. As in the reference there is no factor for `n` or the number
/// of parameters `P`: the expectation is `n/P` times the gradient.
#[derive(Clone, Copy, Debug)]
pub struct SubsampleDirections {
    directions: u32,
    projection: Projection,
}

/// What remains of the gradient along a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Projection {
    Length,
    Sign,
}

impl SubsampleDirections {
    /// Keeps the gradient's length along `directions` directions, at least 1.
    pub fn new(directions: u32) -> Result<Self> {
        Self::with(directions, Projection::Length)
    }
    /// Keeps only its sign along each; the derivative is taken as 0.
    pub fn signs(directions: u32) -> Result<Self> {
        Self::with(directions, Projection::Sign)
    }
    fn with(directions: u32, projection: Projection) -> Result<Self> {
        if directions == 0 {
            return Err(Error::invalid(
                "subsample directions",
                "there must be at least one direction, got 0",
            ));
        }
        Ok(SubsampleDirections { directions, projection })
    }

    /// `out += Σᵢ dᵢ f(dᵢ·x)`
    fn project<E: Float>(&self, x: &[E], key: Key, f: impl Fn(E) -> E, out: &mut [E]) {
        let mut d = vec![E::of(0.0); x.len()];
        for i in 0..self.directions {
            key.fold_in(i.into()).fill_normal(&mut d);
            // d = z / ‖z‖:  d f(d·x)
            let norm = num_traits::Float::sqrt(dot(&d, &d));
            let along = f(dot(&d, x) / norm) / norm;
            out.iter_mut().zip(&d).for_each(|(out, d)| *out += *d * along);
        }
    }
}

impl<E: Float> GradientMap<E> for SubsampleDirections {
    fn name(&self) -> String {
        let sign = if self.projection == Projection::Sign { "_sign" } else { "" };
        format!("directions{}{sign}", self.directions)
    }
    fn apply(&self, grad: &mut [E], key: Key) {
        let mut out = vec![E::of(0.0); grad.len()];
        match self.projection {
            Projection::Length => self.project(grad, key, |x| x, &mut out),
            Projection::Sign => {
                let sign = |x: E| if x == E::of(0.0) { x } else { num_traits::Float::signum(x) };
                self.project(grad, key, sign, &mut out);
            }
        }
        grad.copy_from_slice(&out);
    }
    fn pull_back(&self, _: &[E], key: Key, v: &[E], out: &mut [E]) {
        out.fill(E::of(0.0));
        if self.projection == Projection::Length {
            self.project(v, key, |x| x, out);
        }
    }
}
