//! Activations that fuse with the linear map before them.

use crate::Float;
use serde::{Deserialize, Serialize};

/// An activation whose derivatives are functions of its value, so that it can be fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// `z`
    Identity,
    /// `max(z, 0)`; NaN stays NaN; derivative 0 at 0.
    Relu,
    /// `tanh z`
    Tanh,
    /// `1 / (1 + e^-z)`
    Sigmoid,
}

impl Activation {
    /// The value.
    #[inline(always)]
    pub fn value<E: Float>(self, z: E) -> E {
        match self {
            Activation::Identity => z,
            Activation::Relu => {
                let y = if z < E::of(0.0) { E::of(0.0) } else { z };
                // Else a loop in place stores only where z < 0, by masked stores: 10x slower.
                y + E::of(0.0)
            }
            Activation::Tanh => z.fast_tanh(),
            Activation::Sigmoid => z.fast_sigmoid(),
        }
    }
    /// First derivative, from the value `y`.
    #[inline(always)]
    pub fn d1<E: Float>(self, y: E) -> E {
        match self {
            Activation::Identity => E::of(1.0),
            Activation::Relu => {
                if y > E::of(0.0) {
                    E::of(1.0)
                } else {
                    E::of(0.0)
                }
            }
            Activation::Tanh => E::of(1.0) - y * y,
            Activation::Sigmoid => y * (E::of(1.0) - y),
        }
    }
    /// `act''/act'`, from the value `y`; 0 for ReLU.
    #[inline(always)]
    pub(crate) fn ratio<E: Float>(self, y: E) -> E {
        match self {
            Activation::Identity | Activation::Relu => E::of(0.0),
            Activation::Tanh => E::of(-2.0) * y,
            Activation::Sigmoid => E::of(1.0) - y - y,
        }
    }
    /// Second derivative, from the value `y`.
    #[inline(always)]
    pub fn d2<E: Float>(self, y: E) -> E {
        self.d1(y) * self.ratio(y)
    }
}
