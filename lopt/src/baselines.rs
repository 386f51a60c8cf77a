//! What a learned optimizer has to beat: hand-designed optimizers with swept learning rates, and an
//! ordered list of configurations.

use crate::hand::{Adafactor, Adam, AdamW, Lion, Momentum, NAdamW, RmsProp, Sgd};
use outerloop_core::Optimizer;

/// A hand-designed optimizer as a function of its learning rate.
#[derive(Clone, Copy)]
pub struct Baseline {
    /// Usual name.
    pub name: &'static str,
    /// Builds it; everything but the learning rate is at its default.
    pub make: fn(f64) -> Box<dyn Optimizer>,
}

/// SGD, momentum 0.9, Adam, AdamW, NAdamW, RMSProp, Lion and Adafactor.
pub const BASELINES: [Baseline; 8] = [
    Baseline { name: "Adam", make: |lr| Box::new(Adam::new(lr)) },
    Baseline { name: "SGD", make: |lr| Box::new(Sgd::new(lr)) },
    Baseline { name: "Momentum", make: |lr| Box::new(Momentum::new(lr, 0.9)) },
    Baseline { name: "AdamW", make: |lr| Box::new(AdamW { learning_rate: lr.into(), ..AdamW::default() }) },
    Baseline {
        name: "NAdamW",
        make: |lr| Box::new(NAdamW { learning_rate: lr.into(), ..NAdamW::default() }),
    },
    Baseline {
        name: "RMSProp",
        make: |lr| Box::new(RmsProp { learning_rate: lr.into(), ..RmsProp::default() }),
    },
    Baseline { name: "Lion", make: |lr| Box::new(Lion { learning_rate: lr.into(), ..Lion::default() }) },
    Baseline {
        name: "Adafactor",
        make: |lr| Box::new(Adafactor { learning_rate: lr.into(), ..Adafactor::default() }),
    },
];

/// The usual sweep, 15 half decades: 1e-7, 3.2e-7, 1e-6, ..., 1.
///
/// Reference: `baselines/hparam_sets.py` of google/learned_optimization.
pub fn learning_rates() -> Vec<f64> {
    (-14..=0).map(|i| 10f64.powf(0.5 * f64::from(i))).collect()
}
