//! Optimizers by name: from the class names and hyperparameters of learned_optimization, as in its
//! configurations and in the golden cases, with that library's conventions and defaults.

mod hand_designed;
mod hyper;
mod own;

pub(crate) use hand_designed::opt_list_config;
pub use hand_designed::{example_hyperparameters, hand_designed, HAND_DESIGNED};
pub use hyper::schedule;
pub use own::{register, Make};

use crate::kernel::is_f32;
use crate::learned::learnable::{LearnableAdam, LearnableSgd, LearnableSgdm};
use crate::rule::UpdateRule;
use crate::{
    AdafacMlp, Celo, Celo2, Celo2Form, Celo2Published, CeloAdam, ControlledAdam, MlpLopt, NnAdam, NominalMlp,
    RnnMlp, Velo,
};
use outerloop_core::{same, Error, Float, LearnedOptimizer, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The class names that [`learned`] knows; our own names of the same things work too.
pub const LEARNED: [&str; 16] = [
    "AdafacMLPLOpt",
    "Celo",
    "Celo2",
    "CeloAdam",
    "ControlledAdam",
    "HyperV2",
    "LearnableAdam",
    "LearnableSGD",
    "LearnableSGDM",
    "MLPLOpt",
    "MLPNomLOpt",
    "NNAdam",
    "RNNMLPLOpt",
    "celo2.Celo2",
    "celo2.Celo2Base",
    "celo2.OptaxRecipe",
];

fn unknown(what: &'static str, class: &str, known: &[&str]) -> Error {
    Error::Unknown { what, got: class.into(), allowed: known.iter().map(|c| c.to_string()).collect() }
}

/// A learned optimizer; theta comes from its `init` or from a file. In f32 it may be one that the program
/// [`register`]ed.
///
/// # Errors
/// As of [`hand_designed`].
pub fn learned<E: Float>(class: &str, hyper: &Value) -> Result<Box<dyn LearnedOptimizer<E>>> {
    if const { is_f32::<E>() } {
        Ok(same(learned_f32(class, hyper)?).unwrap_or_else(|_| unreachable!("E is f32")))
    } else {
        build(class, hyper)
    }
}

/// [`learned`] in f32: compiled once, here, not again in every crate that asks for one.
#[inline(never)]
fn learned_f32(class: &str, hyper: &Value) -> Result<Box<dyn LearnedOptimizer>> {
    match own::find(class) {
        Some(make) => make(hyper),
        None => build(class, hyper),
    }
}

/// Whether [`learned`] knows the class by itself.
fn is_built_in(class: &str) -> bool {
    !matches!(build::<f32>(class, &Value::Object(Default::default())), Err(Error::Unknown { .. }))
}

fn build<E: Float>(class: &str, hyper: &Value) -> Result<Box<dyn LearnedOptimizer<E>>> {
    Ok(match class {
        "LearnableSGD" => configured::<LearnableSgd, E>(class, hyper)?,
        "LearnableSGDM" => configured::<LearnableSgdm, E>(class, hyper)?,
        "LearnableAdam" => configured::<LearnableAdam, E>(class, hyper)?,
        "MLPLOpt" | "MlpLopt" => configured::<MlpLopt, E>(class, hyper)?,
        "AdafacMLPLOpt" | "AdafacMlp" => configured::<AdafacMlp, E>(class, hyper)?,
        "MLPNomLOpt" | "NominalMlp" => configured::<NominalMlp, E>(class, hyper)?,
        "NNAdam" | "NnAdam" => configured::<NnAdam, E>(class, hyper)?,
        "HyperV2" | "Velo" => configured::<Velo, E>(class, hyper)?,
        "RNNMLPLOpt" | "RnnMlp" => configured::<RnnMlp, E>(class, hyper)?,
        "Celo" => configured::<Celo, E>(class, &without(hyper, &["reparam_decay"]))?,
        "CeloAdam" => configured::<CeloAdam, E>(class, &without(hyper, &CeloAdam::IDLE))?,
        "Celo2" => configured::<Celo2, E>(class, hyper)?,
        "celo2.Celo2Base" => published(Celo2Form::Base, hyper)?,
        "celo2.Celo2" => published(Celo2Form::Regex, hyper)?,
        "celo2.OptaxRecipe" => published(Celo2Form::Recipe, hyper)?,
        "ControlledAdam" => configured::<ControlledAdam, E>(class, hyper)?,
        _ => return Err(unknown("learned optimizer", class, &LEARNED)),
    })
}

/// A learned optimizer whose fields are its hyperparameters.
fn configured<L, E: Float>(class: &str, hyper: &Value) -> Result<Box<dyn LearnedOptimizer<E>>>
where
    L: LearnedOptimizer<E> + DeserializeOwned + 'static,
{
    let lopt: L = serde_json::from_value(hyper.clone()).map_err(|e| Error::invalid(class, e.to_string()))?;
    lopt.validate()?;
    Ok(Box::new(lopt))
}

/// Hyperparameters without those of the library's arguments that have no effect there.
fn without(hyper: &Value, idle: &[&str]) -> Value {
    let mut hyper = hyper.clone();
    if let Value::Object(all) = &mut hyper {
        all.retain(|name, _| !idle.contains(&&name[..]));
    }
    hyper
}

/// One of the authors' classes of Celo2.
fn published<E: Float>(form: Celo2Form, hyper: &Value) -> Result<Box<dyn LearnedOptimizer<E>>> {
    let lopt = Celo2Published::from_hyperparameters(form, hyper)?;
    UpdateRule::validate(&lopt)?;
    Ok(Box::new(lopt))
}

/// The learned optimizer that an architecture's text describes, e.g. that of a theta file.
///
/// ```
/// use outerloop_core::LearnedOptimizer;
/// use outerloop_lopt::{registry::from_architecture, MlpLopt};
/// let small = MlpLopt { hidden_size: 4, ..MlpLopt::default() };
/// let text = LearnedOptimizer::<f32>::architecture(&small);
/// assert_eq!(from_architecture::<f32>(&text)?.architecture(), text);
/// # Ok::<(), outerloop_core::Error>(())
/// ```
///
/// # Errors
/// Those of [`learned`], and text of another form.
pub fn from_architecture<E: Float>(text: &str) -> Result<Box<dyn LearnedOptimizer<E>>> {
    let (class, hyper) = text.split_once(' ').unwrap_or((text, "{}"));
    let hyper = serde_json::from_str(hyper)
        .map_err(|e| Error::invalid(format!("architecture `{text}`"), e.to_string()))?;
    learned(class, &hyper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn known_names_are_known_and_unknown_ones_list_them() {
        for class in HAND_DESIGNED {
            let built = hand_designed::<f32>(class, &json!({}));
            assert!(!matches!(built, Err(Error::Unknown { .. })), "{class}");
        }
        for class in LEARNED {
            learned::<f64>(class, &json!({})).unwrap();
        }
        let error = hand_designed::<f32>("Adamax", &json!({})).err().unwrap().to_string();
        assert!(error.contains("Adamax") && error.contains("NAdamW"), "{error}");
        assert!(learned::<f32>("Lstm", &json!({})).is_err());
    }

    #[test]
    fn bad_values_name_their_key() {
        let message = |class: &str, hyper| hand_designed::<f32>(class, &hyper).err().unwrap().to_string();
        assert!(message("SGD", json!({"learning_rate": "big"})).contains("learning_rate"));
        assert!(message("RMSProp", json!({"nesterov": 1})).contains("nesterov"));
        let ema = json!({"decay": 1.0, "inner": {"SGD": {}}});
        assert!(message("ParamsEma", ema).contains("decay"));
        assert!(message("GradientClipOptimizer", json!({"grad_clip": 1.0})).contains("inner"));
        assert!(
            message("PiecewiseLinearAdam", json!({"times": [2.0, 1.0], "lrs": [1.0, 1.0]})).contains("rise")
        );
    }

    #[test]
    fn impossible_hyperparameters_are_refused() {
        for (class, hyper, range) in [
            ("Adam", json!({"beta2": 1.0}), "beta2: expected a number in [0, 1), got 1"),
            ("Adam", json!({"beta1": 1.5}), "beta1: expected a number in [0, 1), got 1.5"),
            ("Adam", json!({"epsilon": -1.0}), "epsilon: expected a number in [0, ∞), got -1"),
            ("Adam", json!({"epsilon_root": -1.0}), "epsilon_root"),
            ("Adam", json!({"learning_rate": -1.0}), "learning_rate: expected a number in [0, ∞), got -1"),
            ("AdamExpDecayLR", json!({"learning_rate": -1.0}), "initial"),
            ("AdamSqrtDecayLR", json!({"learning_rate": -1.0}), "peak"),
            ("PiecewiseLinearAdam", json!({"times": [], "lrs": []}), "at least one point"),
            ("PiecewiseLinearAdam", json!({"times": [1.0], "lrs": [-1.0]}), "value"),
            ("SGD", json!({"learning_rate": {"PiecewiseLinear": {"times": [], "vals": []}}}), "at least one"),
            (
                "SGD",
                json!({"learning_rate": {"LinearRampupSqrtDecay": {"warmup_steps": -1.0}}}),
                "warmup_steps",
            ),
            ("SGD", json!({"learning_rate": {"ExponentialDecay": {"decay_amount": 2.0}}}), "decay"),
            (
                "SGD",
                json!({"learning_rate": {"CosineLearningRateSchedule": {"warmup_fraction": 2.0}}}),
                "[0, 1]",
            ),
            ("SGDM", json!({"momentum": 1.0}), "momentum"),
            ("AdamW", json!({"b2": 1.0}), "beta2"),
            ("AdamW", json!({"weight_decay": -1.0}), "weight_decay"),
            ("NAdamW", json!({"l2_weight_decay": -1.0}), "l2"),
            ("OptList", json!({"config": {"beta1": 1.0}}), "beta1"),
            ("Lamb", json!({"b2": 1.0}), "beta2"),
            ("Lars", json!({"trust_coefficient": -1.0}), "trust_coefficient"),
            ("Fromage", json!({"min_norm": -1.0}), "min_norm"),
            ("RMSProp", json!({"decay": 1.5}), "decay"),
            ("RMSProp", json!({"momentum": 1.0}), "momentum"),
            ("RAdam", json!({"threshold": 2.0}), "threshold: expected a number in [4, ∞), got 2"),
            ("AdaBelief", json!({"b1": -0.1}), "beta1"),
            ("Yogi", json!({"eps": -0.1}), "epsilon"),
            ("AdaGrad", json!({"initial_accumulator_value": -0.1}), "initial_accumulator"),
            ("SM3", json!({"b2": 1.1}), "beta2: expected a number in [0, 1], got 1.1"),
            ("Adafactor", json!({"decay_rate": -0.8}), "decay_rate"),
            ("Adafactor", json!({"decay_offset": -1.0}), "decay_offset"),
            (
                "Adafactor",
                json!({"clipping_threshold": 0.0}),
                "clipping_threshold: expected a number in (0, ∞)",
            ),
            ("Adafactor", json!({"momentum": 1.0}), "momentum"),
            ("Shampoo", json!({"block_size": 0}), "block_size: expected a number in [1, ∞), got 0"),
            ("Shampoo", json!({"preconditioning_compute_steps": 0}), "preconditioning_compute_steps"),
            ("Shampoo", json!({"matrix_epsilon": 0.0}), "matrix_epsilon"),
            ("Lion", json!({"beta2": 1.0}), "beta2"),
            ("Muon", json!({"iterations": 0}), "iterations"),
            ("Muon", json!({"adam_learning_rate": -1.0}), "adam_learning_rate"),
            ("ScheduleFreeAdamW", json!({"learning_rate": -1.0}), "learning_rate"),
            ("GradientClipOptimizer", json!({"grad_clip": -1.0, "inner": {"SGD": {}}}), "bound"),
            ("GradientClipOptimizer", json!({"inner": {"SGD": {"learning_rate": -1.0}}}), "learning_rate"),
            ("GradientAccumulator", json!({"num_average": 0, "inner": {"SGD": {}}}), "num_average"),
            ("WeightDecayWrapper", json!({"weight_decay": -1.0, "inner": {"SGD": {}}}), "weight_decay"),
        ] {
            let error = hand_designed::<f32>(class, &hyper).err();
            let error = error.unwrap_or_else(|| panic!("{class} {hyper} is accepted")).to_string();
            assert!(error.contains(range), "{class} {hyper}: {error}");
        }
        for (class, hyper, range) in [
            ("LearnableSGD", json!({"initial_lr": 0.0}), "initial_lr: expected a number in (0, ∞), got 0"),
            ("LearnableSGDM", json!({"initial_momentum": 1.0}), "initial_momentum"),
            ("LearnableAdam", json!({"initial_beta2": 1.0}), "initial_beta2"),
            ("MlpLopt", json!({"hidden_size": 0}), "hidden_size: expected a number in [1, ∞), got 0"),
            ("MlpLopt", json!({"step_mult": -1.0}), "step_mult"),
            ("AdafacMlp", json!({"hidden_size": 0}), "hidden_size"),
            ("AdafacMlp", json!({"initial_momentum_decays": []}), "at least one number in [0, 1)"),
            ("AdafacMlp", json!({"initial_rms_decays": [0.9, 0.99]}), "expected 1 or 3 decays, got 2"),
            ("NominalMlp", json!({"initial_adafactor_decays": [1.5]}), "initial_adafactor_decays[0]"),
            ("NominalMlp", json!({"nominal_stepsize": -1.0}), "nominal_stepsize"),
            ("NnAdam", json!({"initial_beta1": 1.0}), "initial_beta1"),
            ("NnAdam", json!({"lstm_hidden_size": 0}), "lstm_hidden_size"),
            ("Velo", json!({"param_inits": 0}), "param_inits"),
            ("Velo", json!({"initial_rms_decays": []}), "initial_rms_decays"),
            ("RnnMlp", json!({"from_mlp_size": 0}), "from_mlp_size"),
            ("RnnMlp", json!({"decays": [1.0]}), "decays[0]"),
            ("Celo2", json!({"warmup_fraction": 1.5}), "warmup_fraction"),
            ("Celo2", json!({"orthogonalize": {"NewtonSchulz": 0}}), "orthogonalize"),
            ("Celo", json!({"train_phase": 0}), "train_phase"),
            ("Celo", json!({"param_inits": 0}), "param_inits"),
            ("CeloAdam", json!({"initial_rms_decays": []}), "initial_rms_decays"),
            ("celo2.Celo2", json!({"regex_1d": "("}), "regex_1d"),
            ("celo2.OptaxRecipe", json!({"learning_rate": -1.0}), "step_mult"),
            ("ControlledAdam", json!({"initial_momentum_decays": []}), "initial_momentum_decays"),
            ("ControlledAdam", json!({"initial_square_decay": 1.0}), "initial_square_decay"),
        ] {
            let error = learned::<f32>(class, &hyper).err();
            let error = error.unwrap_or_else(|| panic!("{class} {hyper} is accepted")).to_string();
            assert!(error.contains(range), "{class} {hyper}: {error}");
        }
    }
}
