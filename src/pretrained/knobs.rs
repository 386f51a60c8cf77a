//! What can be turned at a shipped optimizer: its step's length and its weight decay.

use super::Pretrained;
use outerloop_core::{check_settings, Error, Interval, LearnedOptimizer, Optimizer, Result};
use outerloop_lopt::ControlledAdam;
use serde::{Deserialize, Serialize};

/// Factors on what a shipped optimizer was meta-trained with. Both are 1 by default, which is the optimizer as it is
/// shipped; no other value was meta-trained.
///
/// They are for those who would tune a hand-designed rival too: then both are judged after a sweep.
///
/// ```
/// use outerloop::pretrained::{Knobs, SMALL};
///
/// // Three times the steps, hardly any decay: for data that cannot be overfitted.
/// let opt = SMALL.turned(Knobs { rate: 3.0, decay: 0.01 })?;
/// # Ok::<(), outerloop::core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Knobs {
    /// Factor on the length of every step, positive.
    pub rate: f64,
    /// Factor on the weight decay relative to the step, positive; 1 for an optimizer that has none.
    pub decay: f64,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs { rate: 1.0, decay: 1.0 }
    }
}

/// Factors of [`Pretrained::sweep`].
const RATES: [f64; 5] = [0.3, 1.0, 2.0, 3.0, 6.0];
const DECAYS: [f64; 5] = [0.01, 0.1, 0.3, 1.0, 3.0];

impl Pretrained {
    /// The rule that it is, as shipped.
    fn rule(&self) -> Result<ControlledAdam> {
        let file = self.file()?;
        let (_, settings) = file.architecture.split_once(' ').unwrap_or_default();
        serde_json::from_str(settings).map_err(|e| Error::format(self.name, e.to_string()))
    }

    /// The learned optimizer with other lengths of step and another decay, and its theta.
    ///
    /// # Errors
    /// Factors that are not positive, and a decay for an optimizer without one.
    pub fn learned_with(&self, knobs: Knobs) -> Result<(Box<dyn LearnedOptimizer>, Vec<f32>)> {
        check_settings(
            self.name,
            [("rate", knobs.rate, Interval::POSITIVE), ("decay", knobs.decay, Interval::POSITIVE)],
        )?;
        let mut rule = self.rule()?;
        if rule.weight_decay == 0.0 && knobs.decay != 1.0 {
            let why = format!("it has no weight decay to multiply by {}", knobs.decay);
            return Err(Error::invalid(format!("decay of `{}`", self.name), why));
        }
        rule.step_mult *= knobs.rate;
        rule.weight_decay *= knobs.decay;
        let (_, theta) = self.learned()?;
        Ok((Box::new(rule), theta))
    }

    /// The optimizer with other lengths of step and another decay. Errors as [`Self::learned_with`].
    pub fn turned(&self, knobs: Knobs) -> Result<Box<dyn Optimizer>> {
        let (lopt, theta) = self.learned_with(knobs)?;
        Ok(lopt.opt_fn(&theta))
    }

    /// What one would try of it, labelled: steps of 0.3, 1, 2, 3 and 6 times the length, each with 0.01, 0.1, 0.3, 1 and 3
    /// times the decay where there is one.
    pub fn sweep(&self) -> Result<Vec<(String, Box<dyn Optimizer>)>> {
        let decays = if self.rule()?.weight_decay == 0.0 { &[1.0][..] } else { &DECAYS };
        let all = RATES.iter().flat_map(|&rate| decays.iter().map(move |&decay| Knobs { rate, decay }));
        all.map(|knobs| Ok((format!("rate x{} decay x{}", knobs.rate, knobs.decay), self.turned(knobs)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Named, FAST, SMALL};
    use super::*;
    use outerloop_core::{Key, Layout, Params};
    use std::sync::Arc;

    /// Parameters after two updates.
    fn after(opt: &dyn Optimizer) -> Vec<f32> {
        let layout = Arc::new(Layout::new([("w", vec![3, 2])]));
        let params = Params::new(layout, vec![1.0, -1.0, 0.5, 2.0, -0.3, 0.1]).unwrap();
        let mut state = opt.init(&params, Some(10), Key::new(0));
        for grad in [[0.1, -0.2, 0.3, 0.4, -0.5, 0.6], [0.3, 0.1, 0.2, -0.4, 0.5, 0.1]] {
            opt.update(&mut state, &grad, 1.0, Key::new(0));
        }
        state.params.to_vec()
    }

    #[test]
    fn knobs_at_one_change_nothing_and_others_do_what_they_say() {
        for shipped in [SMALL, FAST] {
            let plain = after(&*shipped.optimizer().unwrap());
            assert_eq!(after(&*shipped.turned(Knobs::default()).unwrap()), plain);
            assert_ne!(after(&*shipped.turned(Knobs { rate: 3.0, decay: 1.0 }).unwrap()), plain);
        }
        // Where gradients are 0, only the decay moves parameters: by p rate decay exp(a + c), whose network sees the
        // same in all three.
        let moved = |rate, decay| {
            let opt = SMALL.turned(Knobs { rate, decay }).unwrap();
            let params = Params::new(Arc::new(Layout::new([("w", vec![2])])), vec![1.0, -1.0]).unwrap();
            let mut state = opt.init(&params, Some(10), Key::new(0));
            opt.update(&mut state, &[0.0, 0.0], 1.0, Key::new(0));
            1.0 - f64::from(state.params[0])
        };
        let unit = moved(1.0, 1.0);
        assert!(unit > 0.0);
        for (rate, decay) in [(2.0, 1.0), (1.0, 3.0), (2.0, 3.0)] {
            let ratio = moved(rate, decay) / unit;
            assert!((ratio / (rate * decay) - 1.0).abs() < 1e-3, "{rate} {decay}: {ratio}");
        }
    }

    #[test]
    fn factors_out_of_range_are_refused_and_the_command_line_has_them_too() {
        for (shipped, knobs, part) in [
            (SMALL, Knobs { rate: 0.0, decay: 1.0 }, "rate"),
            (SMALL, Knobs { rate: 1.0, decay: f64::NAN }, "decay"),
            (FAST, Knobs { rate: 1.0, decay: 0.5 }, "no weight decay"),
        ] {
            let Err(error) = shipped.turned(knobs) else { panic!("{part}: not refused") };
            let error = error.to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!([SMALL, FAST].map(|s| s.sweep().unwrap().len()), [25, 5]);
        let named = Named::load(r#"small{"rate":3,"decay":0.1}"#).unwrap();
        let want = SMALL.turned(Knobs { rate: 3.0, decay: 0.1 }).unwrap();
        assert_eq!(after(&*named.optimizer()), after(&*want));
        for text in [r#"small{"speed":3}"#, r#"small{"rate":-1}"#, r#"fast{"decay":2}"#, "small{"] {
            assert!(Named::load(text).is_err(), "{text}");
        }
    }
}
