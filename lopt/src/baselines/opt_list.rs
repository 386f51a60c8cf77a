//! The ordered list of 1,000 NAdamW configurations of learned_optimization.

use crate::hand::NAdamW;
use flate2::read::GzDecoder;
use outerloop_core::{Error, Result};
use serde_json::Value;
use std::io::Read;
use std::sync::OnceLock;

/// Number of configurations.
pub const OPT_LIST_LEN: usize = 1000;

/// `opt_list.json` of google/learned_optimization 32186aa, Copyright Google LLC, Apache License 2.0, packed and
/// otherwise unchanged.
const PACKED: &[u8] = include_bytes!("opt_list.json.gz");

/// The hyperparameters of all configurations.
fn configurations() -> &'static [Value] {
    static LIST: OnceLock<Vec<Value>> = OnceLock::new();
    LIST.get_or_init(|| {
        let mut text = String::new();
        GzDecoder::new(PACKED).read_to_string(&mut text).expect("the file is part of the program");
        serde_json::from_str(&text).expect("the file is part of the program")
    })
}

/// The hyperparameters of configuration `i`.
///
/// # Errors
/// If `i` is not below [`OPT_LIST_LEN`].
pub(crate) fn configuration(i: usize) -> Result<&'static Value> {
    let last = OPT_LIST_LEN - 1;
    configurations()
        .get(i)
        .ok_or_else(|| Error::invalid("OptList: idx", format!("expected 0 to {last}, got {i}")))
}

/// Configuration `i`, from 0, of the list that Metz et al. ordered so that the first ones together do best on 1,000
/// tasks: NAdamW with a warm-up and a cosine schedule. It needs the planned number of steps.
///
/// The first is the one to try, the first ten are a budget of ten runs. The list with its numbers is
/// learned_optimization's (Apache License 2.0), with that library's sign of the L2 term.
/// Reference: Metz et al. 2020, arXiv:2002.11887.
///
/// ```
/// let first = outerloop_lopt::baselines::opt_list(0)?;
/// assert!(first.beta1 < 1.0);
/// assert!(outerloop_lopt::baselines::opt_list(1000).is_err());
/// # Ok::<(), outerloop_core::Error>(())
/// ```
///
/// # Errors
/// If `i` is not below [`OPT_LIST_LEN`].
pub fn opt_list(i: usize) -> Result<NAdamW> {
    crate::registry::opt_list_config(configuration(i)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::hand_designed;
    use serde_json::json;

    #[test]
    fn all_configurations_are_there_and_valid() {
        assert_eq!(configurations().len(), OPT_LIST_LEN);
        for i in 0..OPT_LIST_LEN {
            let named = hand_designed::<f64>("OptList", &json!({ "idx": i })).unwrap();
            let listed: Box<dyn outerloop_core::Optimizer<f64>> = Box::new(opt_list(i).unwrap());
            assert_eq!(named.describe(), listed.describe());
        }
        let error = hand_designed::<f64>("OptList", &json!({"idx": 1000})).err().unwrap().to_string();
        assert!(error.contains("expected 0 to 999, got 1000"), "{error}");
    }

    /// The golden cases have the configurations that they ran.
    #[test]
    fn configurations_are_those_of_the_golden_runs() {
        for i in [0, 1, 7] {
            let path =
                format!("{}/../outer/tests/golden/cases/B_opt_opt_list_{i}.json", env!("CARGO_MANIFEST_DIR"));
            let case: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            let hyper = &case["hyperparameters"];
            let want = hand_designed::<f64>("OptList", hyper).unwrap();
            let got = hand_designed::<f64>("OptList", &json!({"idx": hyper["idx"]})).unwrap();
            assert_eq!(got.describe(), want.describe(), "{hyper}");
        }
    }
}
