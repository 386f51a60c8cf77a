//! Reading hyperparameters from JSON: defaults for what is missing, errors for what is unknown.

use crate::hand::{Cosine, MomentumKind, Schedule, WarmUp};
use outerloop_core::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The hyperparameters of one class. Every read names a key; [`Hyper::finish`] refuses keys that
/// nothing has read.
pub(crate) struct Hyper<'a> {
    class: &'a str,
    map: &'a Map<String, Value>,
    read: BTreeSet<&'static str>,
}

impl<'a> Hyper<'a> {
    pub fn new(class: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::mismatch(class, "an object", value))?;
        Ok(Hyper { class, map, read: BTreeSet::new() })
    }

    /// The value of a key; `None` if it is missing or null.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.insert(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn required(&mut self, key: &'static str) -> Result<&'a Value> {
        let what = format!("{}: {key}", self.class);
        self.get(key).ok_or_else(|| Error::invalid(what, "is required"))
    }

    fn bad(&self, key: &str, expected: &str, got: &Value) -> Error {
        Error::Mismatch {
            what: format!("{}: {key}", self.class),
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    pub fn num(&mut self, key: &'static str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.bad(key, "a number", v)),
        }
    }

    pub fn optional_num(&mut self, key: &'static str, default: Option<f64>) -> Result<Option<f64>> {
        self.read.insert(key);
        match self.map.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| self.bad(key, "a number or null", v)),
        }
    }

    pub fn count(&mut self, key: &'static str, default: u64) -> Result<u64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_u64().ok_or_else(|| self.bad(key, "a count", v)),
        }
    }

    pub fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(key, "true or false", v)),
        }
    }

    pub fn momentum_kind(&mut self, key: &'static str, default: bool) -> Result<MomentumKind> {
        Ok(if self.flag(key, default)? { MomentumKind::Nesterov } else { MomentumKind::Polyak })
    }

    pub fn numbers(&mut self, key: &'static str) -> Result<Vec<f64>> {
        let v = self.required(key)?;
        let list = v.as_array().and_then(|l| l.iter().map(Value::as_f64).collect());
        list.ok_or_else(|| self.bad(key, "a list of numbers", v))
    }

    /// A learning rate: a number, or `{"class of the schedule": {its hyperparameters}}`.
    pub fn schedule(&mut self, key: &'static str, default: f64) -> Result<Schedule> {
        match self.get(key) {
            None => Ok(default.into()),
            Some(v) if v.is_number() => Ok(v.as_f64().unwrap_or(f64::NAN).into()),
            Some(v) => {
                let (class, hyper) =
                    single_entry(v).ok_or_else(|| self.bad(key, "a number or {schedule: {...}}", v))?;
                schedule(class, hyper)
            }
        }
    }

    /// Errors if there are keys that nothing has read.
    pub fn finish(self) -> Result<()> {
        match self.map.keys().find(|k| !self.read.contains(k.as_str())) {
            None => Ok(()),
            Some(k) => Err(Error::Unknown {
                what: "hyperparameter",
                got: format!("{}: {k}", self.class),
                allowed: self.read.iter().map(|k| k.to_string()).collect(),
            }),
        }
    }
}

/// Key and value of an object with one entry.
pub(crate) fn single_entry(v: &Value) -> Option<(&str, &Value)> {
    let map = v.as_object().filter(|m| m.len() == 1)?;
    map.iter().next().map(|(k, v)| (k.as_str(), v))
}

const SCHEDULES: [&str; 4] =
    ["CosineLearningRateSchedule", "ExponentialDecay", "LinearRampupSqrtDecay", "PiecewiseLinear"];

/// A learning rate schedule by the name and with the conventions of learned_optimization (the
/// cosine's warm-up is [`WarmUp::Reference`]).
///
/// # Errors
/// Unknown classes and hyperparameters; the message lists the known ones. Numbers out of their range
/// ([`Schedule::validate`]).
pub fn schedule(class: &str, hyper: &Value) -> Result<Schedule> {
    let mut h = Hyper::new(class, hyper)?;
    let schedule = match class {
        "CosineLearningRateSchedule" => Schedule::Cosine(cosine(&mut h)?),
        "ExponentialDecay" => {
            Schedule::Exponential { initial: h.num("base_lr", 0.01)?, decay: h.num("decay_amount", 7e-5)? }
        }
        "LinearRampupSqrtDecay" => Schedule::RampUpSqrtDecay {
            peak: h.num("peak_lr", 0.01)?,
            warmup_steps: h.num("warmup_steps", 1000.0)?,
        },
        "PiecewiseLinear" => piecewise_linear(h.numbers("times")?, h.numbers("vals")?)?,
        _ => {
            let allowed = SCHEDULES.map(String::from).to_vec();
            return Err(Error::Unknown { what: "schedule", got: class.into(), allowed });
        }
    };
    h.finish()?;
    schedule.validate(class)?;
    Ok(schedule)
}

pub(crate) fn cosine(h: &mut Hyper) -> Result<Cosine> {
    Ok(Cosine {
        peak: h.num("learning_rate", 0.01)?,
        min_mult: h.num("min_learning_rate_mult", 0.0)?,
        constant_fraction: h.num("constant_fraction", 0.5)?,
        warmup_fraction: h.num("warmup_fraction", 0.01)?,
        warmup: WarmUp::Reference,
    })
}

pub(crate) fn piecewise_linear(times: Vec<f64>, values: Vec<f64>) -> Result<Schedule> {
    if times.len() != values.len() {
        return Err(Error::mismatch("PiecewiseLinear: number of values", times.len(), values.len()));
    }
    Ok(Schedule::PiecewiseLinear(times.into_iter().zip(values).collect()))
}
