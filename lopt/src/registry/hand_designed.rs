//! Hand-designed optimizers by name.

use super::hyper::{self, piecewise_linear, single_entry, Hyper};
use super::unknown;
use crate::baselines::opt_list;
use crate::hand::*;
use crate::kernel::is_f32;
use crate::wrap::ParamsEma;
use outerloop_core::{same, Error, Float, Optimizer, Result};
use serde_json::{json, Value};

type Boxed<E> = Box<dyn Optimizer<E>>;

/// The class names that [`hand_designed`] knows.
pub const HAND_DESIGNED: [&str; 28] = [
    "AdaBelief",
    "AdaGrad",
    "Adafactor",
    "Adam",
    "AdamExpDecayLR",
    "AdamSqrtDecayLR",
    "AdamW",
    "Fromage",
    "GradientAccumulator",
    "GradientClipOptimizer",
    "GraftedOptimizer",
    "Lamb",
    "Lars",
    "Lion",
    "Muon",
    "NAdamW",
    "OptList",
    "ParamsEma",
    "PiecewiseLinearAdam",
    "RAdam",
    "RMSProp",
    "SGD",
    "SGDM",
    "SM3",
    "ScheduleFreeAdamW",
    "Shampoo",
    "WeightDecayWrapper",
    "Yogi",
];

/// A hand-designed optimizer. Missing hyperparameters have the library's defaults; a wrapper's
/// class may carry its argument, `GradientClipOptimizer(SGDM)`, and has the hyperparameter
/// `inner: {class: {...}}`.
///
/// ```
/// use outerloop_core::Optimizer;
/// use outerloop_lopt::registry::hand_designed;
/// use serde_json::json;
///
/// let opt = hand_designed::<f32>("Adam", &json!({"learning_rate": 3e-4, "beta1": 0.8}))?;
/// assert_eq!(opt.name(), "adam");
/// let error = hand_designed::<f32>("Adam", &json!({"lr": 3e-4})).err().expect("lr is no such key");
/// assert!(error.to_string().contains("learning_rate"));
/// # Ok::<(), outerloop_core::Error>(())
/// ```
///
/// # Errors
/// Unknown classes and hyperparameters; the message lists the known ones. Hyperparameters out of their range
/// ([`Optimizer::validate`]); the message gives the range.
pub fn hand_designed<E: Float>(class: &str, hyper: &Value) -> Result<Boxed<E>> {
    if const { is_f32::<E>() } {
        Ok(same(hand_designed_f32(class, hyper)?).unwrap_or_else(|_| unreachable!("E is f32")))
    } else {
        build(class, hyper)
    }
}

/// [`hand_designed`] in f32: compiled once, here, not again in every crate that asks for one.
#[inline(never)]
fn hand_designed_f32(class: &str, hyper: &Value) -> Result<Boxed<f32>> {
    build(class, hyper)
}

fn build<E: Float>(class: &str, hyper: &Value) -> Result<Boxed<E>> {
    let class = class.split_once('(').map_or(class, |(class, _)| class);
    let mut h = Hyper::new(class, hyper)?;
    let opt: Boxed<E> = match class {
        "SGD" => Box::new(Sgd { learning_rate: h.schedule("learning_rate", 0.01)? }),
        "SGDM" => Box::new(Momentum {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            momentum: h.num("momentum", 0.9)?,
            kind: MomentumKind::Polyak,
        }),
        "Adam" => {
            let learning_rate = h.schedule("learning_rate", 0.01)?;
            Box::new(adam(&mut h, learning_rate)?)
        }
        "PiecewiseLinearAdam" => {
            let learning_rate = piecewise_linear(h.numbers("times")?, h.numbers("lrs")?)?;
            Box::new(adam(&mut h, learning_rate)?)
        }
        "AdamSqrtDecayLR" => Box::new(Adam::new(Schedule::RampUpSqrtDecay {
            peak: h.num("learning_rate", 0.01)?,
            warmup_steps: 1000.0,
        })),
        "AdamExpDecayLR" => {
            Box::new(Adam::new(Schedule::Exponential { initial: h.num("learning_rate", 0.01)?, decay: 7e-5 }))
        }
        "AdamW" => Box::new(AdamW {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            beta1: h.num("b1", 0.9)?,
            beta2: h.num("b2", 0.999)?,
            epsilon: h.num("eps", 1e-8)?,
            epsilon_root: h.num("eps_root", 0.0)?,
            weight_decay: h.num("weight_decay", 1e-4)?,
        }),
        "RMSProp" => Box::new(RmsProp {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            decay: h.num("decay", 0.9)?,
            epsilon: h.num("epsilon", 1e-8)?,
            momentum: h.num("momentum", 0.0)?,
            kind: h.momentum_kind("nesterov", false)?,
        }),
        "NAdamW" => {
            // The library sets bias correction whatever this says; `num_steps` belongs to `init`.
            h.flag("use_bias_correction", true)?;
            h.get("num_steps");
            let learning_rate = h.schedule("learning_rate", 1e-4)?;
            Box::new(nadamw(&mut h, learning_rate)?)
        }
        "OptList" => {
            let idx = h.get("idx").map(|_| h.count("idx", 0)).transpose()?;
            h.get("num_steps");
            // A configuration that is given, or one of the list.
            let config = match (h.get("config"), idx) {
                (None, Some(i)) => opt_list::configuration(usize::try_from(i).unwrap_or(usize::MAX))?,
                _ => h.required("config")?,
            };
            Box::new(opt_list_config(config)?)
        }
        "AdaBelief" => {
            let (learning_rate, [beta1, beta2]) = rate_and_betas(&mut h)?;
            let (epsilon, epsilon_root) = (h.num("eps", 1e-16)?, h.num("eps_root", 1e-16)?);
            Box::new(AdaBelief { learning_rate, beta1, beta2, epsilon, epsilon_root })
        }
        "Yogi" => {
            let (learning_rate, [beta1, beta2]) = rate_and_betas(&mut h)?;
            Box::new(Yogi { learning_rate, beta1, beta2, epsilon: h.num("eps", 1e-3)? })
        }
        "RAdam" => {
            let (learning_rate, [beta1, beta2]) = rate_and_betas(&mut h)?;
            let (epsilon, epsilon_root) = (h.num("eps", 1e-8)?, h.num("eps_root", 0.0)?);
            let threshold = h.num("threshold", 5.0)?;
            Box::new(RAdam { learning_rate, beta1, beta2, epsilon, epsilon_root, threshold })
        }
        "Lamb" => {
            let (learning_rate, [beta1, beta2]) = rate_and_betas(&mut h)?;
            let (epsilon, epsilon_root) = (h.num("eps", 1e-6)?, h.num("eps_root", 0.0)?);
            let weight_decay = h.num("weight_decay", 0.0)?;
            Box::new(Lamb { learning_rate, beta1, beta2, epsilon, epsilon_root, weight_decay })
        }
        "Lars" => Box::new(Lars {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            weight_decay: h.num("weight_decay", 0.0)?,
            trust_coefficient: h.num("trust_coefficient", 0.001)?,
            epsilon: h.num("eps", 0.0)?,
            momentum: h.num("momentum", 0.9)?,
            kind: h.momentum_kind("nesterov", false)?,
        }),
        "Fromage" => Box::new(Fromage {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            min_norm: h.num("min_norm", 1e-6)?,
        }),
        "AdaGrad" => Box::new(AdaGrad {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            initial_accumulator: h.num("initial_accumulator_value", 0.1)?,
            epsilon: h.num("eps", 1e-7)?,
        }),
        "SM3" => Box::new(Sm3 {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            momentum: h.num("momentum", 0.9)?,
            beta2: h.num("b2", 1.0)?,
        }),
        "Adafactor" => Box::new(adafactor(&mut h)?),
        "Shampoo" => Box::new(Shampoo {
            learning_rate: h.schedule("learning_rate", 0.01)?,
            block_size: h.count("block_size", 128)? as usize,
            beta1: h.num("beta1", 0.9)?,
            beta2: h.num("beta2", 0.999)?,
            matrix_epsilon: h.num("matrix_epsilon", 1e-6)?,
            weight_decay: h.num("weight_decay", 0.0)?,
            start_preconditioning_step: h.count("start_preconditioning_step", 5)?,
            preconditioning_compute_steps: h.count("preconditioning_compute_steps", 1)?,
            kind: h.momentum_kind("nesterov", true)?,
            skip_dim_above: h.count("skip_preconditioning_dim_size_gt", 4096)? as usize,
            ..Shampoo::default()
        }),
        // Newer than the library: their own fields, learning rates as numbers.
        "Lion" => {
            let d = Lion::default();
            Box::new(Lion {
                learning_rate: h.schedule("learning_rate", 1e-4)?,
                beta1: h.num("beta1", d.beta1)?,
                beta2: h.num("beta2", d.beta2)?,
                weight_decay: h.num("weight_decay", d.weight_decay)?,
            })
        }
        "Muon" => {
            let d = Muon::default();
            Box::new(Muon {
                learning_rate: h.schedule("learning_rate", 0.02)?,
                momentum: h.num("momentum", d.momentum)?,
                kind: h.momentum_kind("nesterov", true)?,
                iterations: h.count("iterations", d.iterations as u64)? as usize,
                weight_decay: h.num("weight_decay", d.weight_decay)?,
                adam_learning_rate: h.schedule("adam_learning_rate", 3e-4)?,
                ..d
            })
        }
        "ScheduleFreeAdamW" => {
            let d = ScheduleFreeAdamW::default();
            Box::new(ScheduleFreeAdamW {
                learning_rate: h.num("learning_rate", d.learning_rate)?,
                beta1: h.num("beta1", d.beta1)?,
                beta2: h.num("beta2", d.beta2)?,
                epsilon: h.num("epsilon", d.epsilon)?,
                weight_decay: h.num("weight_decay", d.weight_decay)?,
                warmup_steps: h.count("warmup_steps", d.warmup_steps)?,
            })
        }
        "GraftedOptimizer" => Box::new(Graft::new(inner(&mut h, "magnitude")?, inner(&mut h, "direction")?)),
        "GradientClipOptimizer" => {
            Box::new(Clip::new(ClipRule::Value(h.num("grad_clip", 3.0)?), inner(&mut h, "inner")?))
        }
        "GradientAccumulator" => {
            let num_average = h.count("num_average", 1)?;
            if num_average == 0 {
                return Err(Error::invalid("GradientAccumulator: num_average", "must be positive"));
            }
            Box::new(Accumulate::new(num_average, inner(&mut h, "inner")?))
        }
        "ParamsEma" => Box::new(ParamsEma::new(h.num("decay", 0.999)?, inner(&mut h, "inner")?)?),
        "WeightDecayWrapper" => {
            let loss_term = if h.flag("add_to_loss", true)? { LossTerm::Reference } else { LossTerm::None };
            Box::new(WeightDecay::new(h.num("weight_decay", 0.0)?, loss_term, inner(&mut h, "inner")?))
        }
        _ => return Err(unknown("optimizer", class, &HAND_DESIGNED)),
    };
    h.finish()?;
    opt.validate()?;
    Ok(opt)
}

/// The hyperparameters without defaults of a hand-designed class, filled with something that works, so
/// that every name of [`HAND_DESIGNED`] can be built. Empty for most.
///
/// ```
/// use outerloop_lopt::registry::{example_hyperparameters, hand_designed, HAND_DESIGNED};
/// for class in HAND_DESIGNED {
///     hand_designed::<f32>(class, &example_hyperparameters(class))?;
/// }
/// # Ok::<(), outerloop_core::Error>(())
/// ```
pub fn example_hyperparameters(class: &str) -> Value {
    let adam = json!({"Adam": {"learning_rate": 1e-3}});
    match class {
        "GradientAccumulator" => json!({"inner": adam, "num_average": 4}),
        "GradientClipOptimizer" | "ParamsEma" | "WeightDecayWrapper" => json!({"inner": adam}),
        "GraftedOptimizer" => json!({"magnitude": {"SGD": {}}, "direction": adam}),
        "OptList" => json!({"idx": 0}),
        "PiecewiseLinearAdam" => json!({"times": [10.0, 40.0], "lrs": [1e-4, 1e-3]}),
        _ => json!({}),
    }
}

fn inner<E: Float>(h: &mut Hyper, key: &'static str) -> Result<Boxed<E>> {
    let v = h.required(key)?;
    let (class, hyper) = single_entry(v).ok_or_else(|| Error::mismatch(key, "{class: {...}}", v))?;
    hand_designed(class, hyper)
}

fn adam(h: &mut Hyper, learning_rate: Schedule) -> Result<Adam> {
    Ok(Adam {
        learning_rate,
        beta1: h.num("beta1", 0.9)?,
        beta2: h.num("beta2", 0.999)?,
        epsilon: h.num("epsilon", 1e-8)?,
        epsilon_root: h.num("epsilon_root", 1e-8)?,
    })
}

fn nadamw(h: &mut Hyper, learning_rate: Schedule) -> Result<NAdamW> {
    Ok(NAdamW {
        learning_rate,
        beta1: h.num("beta1", 0.9)?,
        beta2: h.num("beta2", 0.999)?,
        epsilon: h.num("epsilon", 1e-8)?,
        weight_decay: h.num("adamw_weight_decay", 0.0)?,
        l2: h.num("l2_weight_decay", 0.0)?,
        l2_sign: L2Sign::Reference,
        kind: h.momentum_kind("use_nesterov", true)?,
    })
}

fn rate_and_betas(h: &mut Hyper) -> Result<(Schedule, [f64; 2])> {
    Ok((h.schedule("learning_rate", 0.01)?, [h.num("b1", 0.9)?, h.num("b2", 0.999)?]))
}

/// One configuration of the ordered list: NAdamW whose rate is a cosine over the run.
pub(crate) fn opt_list_config(config: &Value) -> Result<NAdamW> {
    let mut h = Hyper::new("OptList: config", config)?;
    let learning_rate = hyper::cosine(&mut h)?.into();
    let opt = nadamw(&mut h, learning_rate)?;
    h.finish()?;
    Ok(opt)
}

fn adafactor(h: &mut Hyper) -> Result<Adafactor> {
    let least = h.count("min_dim_size_to_factor", 128)? as usize;
    let relative = h.flag("multiply_by_parameter_scale", true)?;
    Ok(Adafactor {
        learning_rate: h.schedule("learning_rate", 0.01)?,
        factoring: if h.flag("factored", true)? { Factoring::From(least) } else { Factoring::Never },
        decay_rate: h.num("decay_rate", 0.8)?,
        decay_offset: h.num("decay_offset", 0.0)?,
        step_size: if relative { StepSize::Relative } else { StepSize::Absolute },
        clipping_threshold: h.optional_num("clipping_threshold", Some(1.0))?,
        momentum: h.optional_num("momentum", None)?,
        weight_decay_rate: h.optional_num("weight_decay_rate", None)?,
        epsilon: h.num("eps", 1e-30)?,
    })
}
