//! Optimizers by name: from the class names and hyperparameters of learned_optimization, as in its
//! configurations and in the golden cases, with that library's conventions and defaults.

mod hand_designed;
mod hyper;

pub use hand_designed::{example_hyperparameters, hand_designed, HAND_DESIGNED};
pub use hyper::schedule;

use crate::kernel::{is_f32, same};
use crate::learned::learnable::{LearnableAdam, LearnableSgd, LearnableSgdm};
use crate::{AdafacMlp, Celo2, ControlledAdam, MlpLopt, NnAdam, NominalMlp, RnnMlp, Velo};
use outerloop_core::{Error, Float, LearnedOptimizer, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The class names that [`learned`] knows; our own names of the same things work too.
pub const LEARNED: [&str; 11] = [
    "AdafacMLPLOpt",
    "Celo2",
    "ControlledAdam",
    "HyperV2",
    "LearnableAdam",
    "LearnableSGD",
    "LearnableSGDM",
    "MLPLOpt",
    "MLPNomLOpt",
    "NNAdam",
    "RNNMLPLOpt",
];

fn unknown(what: &'static str, class: &str, known: &[&str]) -> Error {
    Error::Unknown { what, got: class.into(), allowed: known.iter().map(|c| c.to_string()).collect() }
}

/// A learned optimizer; theta comes from its `init` or from a file.
///
/// # Errors
/// Unknown classes and hyperparameters; the message lists the known ones.
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
    build(class, hyper)
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
        "Celo2" => configured::<Celo2, E>(class, hyper)?,
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
}
