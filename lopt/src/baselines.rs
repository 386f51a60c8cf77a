//! What a learned optimizer has to beat: hand-designed optimizers with swept learning rates, and ordered lists of
//! configurations: our own [`nadamw_list`], and the published one, [`opt_list()`].

pub(crate) mod opt_list;

pub use opt_list::{opt_list, OPT_LIST_LEN};

use crate::hand::{
    Adafactor, Adam, AdamW, Cosine, Lion, Momentum, Muon, NAdamW, RmsProp, ScheduleFreeAdamW, Sgd,
};
use crate::wrap::ParamsEma;
use outerloop_core::Optimizer;

/// A hand-designed optimizer as a function of its learning rate.
#[derive(Clone, Copy)]
pub struct Baseline {
    /// Usual name.
    pub name: &'static str,
    /// Builds it; everything but the learning rate is at its default.
    pub make: fn(f64) -> Box<dyn Optimizer>,
}

/// SGD, momentum 0.9, Adam, AdamW, NAdamW, RMSProp, Lion and Adafactor; Schedule-Free AdamW and Adam with an
/// exponential average of its parameters (decay 0.99), both evaluated at their averages; and Muon, whose
/// rate for scalars and vectors is a tenth of that for matrices.
pub const BASELINES: [Baseline; 11] = [
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
    Baseline {
        name: "Schedule-Free",
        make: |lr| Box::new(ScheduleFreeAdamW { learning_rate: lr, ..ScheduleFreeAdamW::default() }),
    },
    Baseline {
        name: "Adam averaged",
        make: |lr| Box::new(ParamsEma::new(EMA_DECAY, Box::new(Adam::new(lr))).expect("a decay below 1")),
    },
    Baseline {
        name: "Muon",
        make: |lr| {
            let adam_learning_rate = (0.1 * lr).into();
            Box::new(Muon { learning_rate: lr.into(), adam_learning_rate, ..Muon::default() })
        },
    },
];

/// Of the average of parameters in [`BASELINES`]: the last hundred steps.
const EMA_DECAY: f64 = 0.99;

/// The usual sweep, 15 half decades: 1e-7, 3.2e-7, 1e-6, ..., 1.
///
/// Reference: `baselines/hparam_sets.py` of google/learned_optimization.
pub fn learning_rates() -> Vec<f64> {
    (-14..=0).map(|i| 10f64.powf(0.5 * f64::from(i))).collect()
}

/// [`NAdamW`] with a cosine schedule from the start to 0: one entry of [`nadamw_list`] or a candidate
/// for it.
pub fn nadamw_cosine(peak: f64, beta1: f64, beta2: f64, weight_decay: f64) -> NAdamW {
    let cosine = Cosine { peak, constant_fraction: 0.0, warmup_fraction: WARMUP, ..Cosine::default() };
    NAdamW { learning_rate: cosine.into(), beta1, beta2, weight_decay, ..NAdamW::default() }
}

/// Weight decays of [`nadamw_decays`], in units of the learning rate.
pub const DECAYS: [f64; 5] = [0.0, 0.03, 0.1, 0.3, 1.0];

/// What a careful user would tune for tasks that overfit: [`nadamw_cosine`] with beta 0.9 and 0.99, at these
/// peak rates and all [`DECAYS`], with a label each.
pub fn nadamw_decays(peaks: &[f64]) -> Vec<(String, NAdamW)> {
    let of = |peak: f64| DECAYS.map(|d| (format!("{peak:.1e} decay {d}"), nadamw_cosine(peak, 0.9, 0.99, d)));
    peaks.iter().flat_map(|peak| of(*peak)).collect()
}

/// Fraction of the run in which the rate of [`nadamw_cosine`] rises.
const WARMUP: f64 = 0.02;

/// Peak rate, beta1, beta2 and weight decay, in the order of trying.
const LIST: [(f64, f64, f64, f64); 10] = [
    (1e-1, 0.9, 0.95, 0.0),
    (3e-2, 0.9, 0.95, 0.0),
    (3e-2, 0.5, 0.999, 0.0),
    (3e-1, 0.95, 0.95, 0.0),
    (1e-1, 0.95, 0.95, 0.0),
    (1e-2, 0.95, 0.95, 1e-2),
    (3e-1, 0.95, 0.999, 0.0),
    (3e-2, 0.5, 0.95, 0.0),
    (1e-1, 0.5, 0.99, 0.0),
    (3e-2, 0.9, 0.99, 1e-2),
];

/// NAdamW configurations in the order in which one would try them. They need the planned number of
/// steps.
///
/// Each is the candidate that, added to those before it, most lowers the mean over tasks of the log of
/// the best final training loss: 40 draws of the suite's training mixture, 500 steps. The candidates
/// are a grid, in [`nadamw_candidates`]. `cargo run --release --example order_nadamw` chooses them;
/// kernels that round otherwise may order close ones otherwise.
///
/// After the ordered list of Metz et al. 2020, arXiv:2002.11887 (1000 entries, from 1000 tasks): [`opt_list()`].
pub fn nadamw_list() -> Vec<NAdamW> {
    LIST.map(|(peak, beta1, beta2, decay)| nadamw_cosine(peak, beta1, beta2, decay)).into()
}

/// What [`nadamw_list`] was chosen from, as peak rate, beta1, beta2, weight decay: 8 x 3 x 3 x 2.
pub fn nadamw_candidates() -> Vec<(f64, f64, f64, f64)> {
    let mut all = Vec::new();
    for peak in [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1] {
        for beta1 in [0.5, 0.9, 0.95] {
            for beta2 in [0.95, 0.99, 0.999] {
                all.extend([0.0, 1e-2].map(|decay| (peak, beta1, beta2, decay)));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_has_half_decades_from_1e_minus_7_to_1() {
        let rates = learning_rates();
        assert_eq!(rates.len(), 15);
        assert!((rates[0] / 1e-7 - 1.0).abs() < 1e-12 && rates[14] == 1.0);
        assert!(rates.windows(2).all(|w| (w[1] / w[0] - 10f64.sqrt()).abs() < 1e-12));
    }

    #[test]
    fn the_list_is_of_distinct_candidates() {
        let candidates = nadamw_candidates();
        assert_eq!(candidates.len(), 144);
        for (i, entry) in LIST.iter().enumerate() {
            assert!(candidates.contains(entry), "{entry:?}");
            assert!(!LIST[..i].contains(entry), "{entry:?} twice");
        }
        assert_eq!(nadamw_list().len(), 10);
    }
}
