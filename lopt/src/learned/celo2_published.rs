//! [`Celo2Published`]: Celo2 as its authors' classes compute it, in three forms.

use crate::features::adafac::{self, Adafac, TensorFeatures};
use crate::features::{averages, normalize};
use crate::learned::celo2::{newton_schulz_by, EPSILON, SMALL};
use crate::learned::mixed_net;
use crate::learned_optimizer;
use crate::rule::mlp::sorted_layout;
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Entry, Error, Float, Interval, Key, Layout, Result};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Which tensors the network updates, and how the others are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Celo2Form {
    /// `Celo2Base`: all of them.
    #[default]
    Base,
    /// `Celo2`, for meta-training: those whose names do not match `regex_1d`. The others get
    /// `m / √(v + adam_epsilon)`, by default without correction for the averages' start from 0.
    Regex,
    /// The recipe for deployment: those of rank 2 and more without `embed` in their names. The others get
    /// AdamW: `m̂ / (√v̂ + adam_epsilon)`.
    Recipe,
}

/// The activation between the layers of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MlpActivation {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// Hyperbolic tangent.
    Tanh,
}

/// Celo2 with the options and defaults of its authors' code, at a constant learning rate.
///
/// Of a tensor for the network: 30 features (of rank 0 and 1 the first 15: without rows and columns), each divided
/// by its root mean square over the last two axes, give direction a and magnitude b;
/// `u = norm(orthogonalize(a exp(exp_mult b)))`, `p ← p − step_mult (u + weight_decay p)`; tensors of rank 0 and
/// 1 are never orthogonalized. All others: [`Celo2Form`], at `mult_1d` times the rate, with the same weight decay
/// and averages of their own, of the gradient as it is (up to ±1e15); the network sees it clipped to ±1000.
///
/// [`crate::Celo2`] is the recipe with a schedule, and fast; this is what runs of the authors' classes are
/// compared with. Fields that a form does not use have no effect.
///
/// Theta: `ff_mod_stack/~/w0__j` (14 blocks of the first layer), `w{i}`, `b{i}`; 347 numbers by default.
/// State: [`adafac::slots`], and `adam_m` and `adam_v` of the tensors that the network does not update.
/// Reference: arXiv:2602.19142; amoudgl/celo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Celo2Published {
    /// Which tensors the network updates. Default all.
    #[serde(skip)]
    pub form: Celo2Form,
    /// Units per hidden layer, at least 1. Default 8.
    pub ff_hidden_size: usize,
    /// Number of hidden layers. Default 2.
    pub ff_hidden_layers: usize,
    /// Decays of the momenta. Default 0.9, 0.99, 0.999.
    pub initial_momentum_decays: Vec<f64>,
    /// Decays of the squared gradients. Default 0.95.
    pub initial_rms_decays: Vec<f64>,
    /// Decays of the factored second moments. Default 0.9, 0.99, 0.999.
    pub initial_adafactor_decays: Vec<f64>,
    /// The activation between the layers. Default `relu`.
    pub mlp_activation: MlpActivation,
    /// Factor inside the exponential. Default 0: the magnitude is idle.
    pub exp_mult: f64,
    /// Learning rate. Default 1e-3.
    pub step_mult: f64,
    /// Root mean square of the network's step. Default 1.
    pub rmsmult: f64,
    /// Decoupled weight decay. Default 0.
    pub weight_decay: f64,
    /// Whether the step, before it is normalized, is multiplied by the tensor's root mean square. Default off.
    pub param_scale_mult: bool,
    /// Whether the magnitude is its mean over the tensor. Default off.
    pub aggregate_mag: bool,
    /// Divides the step by the root of the last RMS average. Default off.
    pub precondition_output: bool,
    /// Whether steps of matrices are orthogonalized. Default on, of [`Celo2Form::Base`] off.
    pub orthogonalize: bool,
    /// Coefficients of the Newton-Schulz iteration. Default 3.4445, -4.775, 2.0315.
    pub ns_coeffs: [f64; 3],
    /// Newton-Schulz iterations. Default 5.
    pub ns_iters: usize,
    /// Added to the norm of a matrix. Default 1e-8.
    pub ns_eps: f64,
    /// Of [`Celo2Form::Regex`]: what the names of the other tensors match. Default `.*bias.*|.*embed.*`.
    pub regex_1d: String,
    /// Learning rate of the others relative to the network's. Default 20.
    pub mult_1d: f64,
    /// Decay of the others' momentum. Default 0.9.
    pub adam_b1: f64,
    /// Decay of the others' squared gradient. Default 0.95, of [`Celo2Form::Regex`] 0.999.
    pub adam_b2: f64,
    /// Of the others. Default 1e-8.
    pub adam_epsilon: f64,
    /// Of [`Celo2Form::Regex`]: whether averages are corrected for their start from 0. Default off.
    pub adam_bias_correction: bool,
}

impl Default for Celo2Published {
    fn default() -> Self {
        Celo2Published::new(Celo2Form::Base)
    }
}

impl Celo2Published {
    /// A form with its defaults.
    pub fn new(form: Celo2Form) -> Self {
        Celo2Published {
            form,
            ff_hidden_size: 8,
            ff_hidden_layers: 2,
            initial_momentum_decays: vec![0.9, 0.99, 0.999],
            initial_rms_decays: vec![0.95],
            initial_adafactor_decays: vec![0.9, 0.99, 0.999],
            mlp_activation: MlpActivation::Relu,
            exp_mult: 0.0,
            step_mult: 1e-3,
            rmsmult: 1.0,
            weight_decay: 0.0,
            param_scale_mult: false,
            aggregate_mag: false,
            precondition_output: false,
            orthogonalize: form != Celo2Form::Base,
            ns_coeffs: crate::kernel::newton_schulz::NEWTON_SCHULZ,
            ns_iters: 5,
            ns_eps: SMALL,
            regex_1d: ".*bias.*|.*embed.*".into(),
            mult_1d: 20.0,
            adam_b1: 0.9,
            adam_b2: if form == Celo2Form::Regex { 0.999 } else { 0.95 },
            adam_epsilon: SMALL,
            adam_bias_correction: false,
        }
    }

    /// A form with some hyperparameters by their names; the recipe's `learning_rate` and `adam_eps` are
    /// `step_mult` and `adam_epsilon`.
    ///
    /// # Errors
    /// Unknown names and values of another type.
    pub fn from_hyperparameters(form: Celo2Form, hyper: &Value) -> Result<Self> {
        let own = Celo2Published::new(form);
        let bad = |e: serde_json::Error| Error::invalid(own.name(), e.to_string());
        let given: Map<String, Value> = serde_json::from_value(hyper.clone()).map_err(bad)?;
        let mut all: Map<String, Value> =
            serde_json::to_value(&own).and_then(serde_json::from_value).map_err(bad)?;
        for (name, value) in given {
            let name = match &name[..] {
                "learning_rate" => "step_mult".into(),
                "adam_eps" => "adam_epsilon".into(),
                _ => name,
            };
            all.insert(name, value);
        }
        let made: Celo2Published = serde_json::from_value(Value::Object(all)).map_err(bad)?;
        Ok(Celo2Published { form, ..made })
    }

    fn decays(&self) -> [&[f64]; 3] {
        [&self.initial_momentum_decays, &self.initial_rms_decays, &self.initial_adafactor_decays]
    }

    fn blocks(&self) -> [usize; 14] {
        adafac::velo_groups(self.decays().map(<[f64]>::len))
    }

    /// Which tensors the network does not update.
    fn others(&self) -> Others {
        match self.form {
            Celo2Form::Base => Others::None,
            // `validate` has refused what is no expression.
            Celo2Form::Regex => {
                Regex::new(&self.regex_1d).map_or(Others::None, |regex| Others::Matching(Box::new(regex)))
            }
            Celo2Form::Recipe => Others::VectorsAndEmbeddings,
        }
    }

    /// The outputs `[3, n]` for normalized features `[inputs, n]`: all of them, or the first groups.
    fn network<E: Float>(&self, theta: &Theta<E>, x: Var<E>, groups: usize) -> Var<E> {
        let get = |name: std::fmt::Arguments<'_>| theta.get(&mixed_net::name(name));
        let layers = self.ff_hidden_layers + 1;
        let inputs: usize = self.blocks()[..groups].iter().sum();
        let n = x.len() / inputs.max(1);
        (0..layers).fold(x, |x, i| {
            let w = match i {
                0 => Var::concat(&(0..groups).map(|j| get(format_args!("w0__{j}"))).collect::<Vec<_>>()),
                _ => get(format_args!("w{i}")),
            };
            let b = get(format_args!("b{i}"));
            let out = b.len();
            let y = x.linear(&w, out) + b.expand_axis([out, n, 1]);
            match self.mlp_activation {
                _ if i + 1 == layers => y,
                MlpActivation::Relu => y.relu(),
                MlpActivation::Tanh => y.tanh(),
            }
        })
    }

    /// The network's step of a tensor, before the learning rate.
    fn direction<E: Float>(&self, theta: &Theta<E>, t: &TensorFeatures<E>) -> Var<E> {
        let n = t.param.len();
        let matrix = match t.shape[..] {
            [.., rows, cols] => Some([rows, cols]),
            _ => None,
        };
        let matrices = matrix.map_or(1, |[rows, cols]| n / (rows * cols));
        let norm = |x: &Var<E>| normalize::second_moment_per_matrix(x, matrices, EPSILON);
        let groups = if matrix.is_some() { 14 } else { 9 };
        let columns: usize = self.blocks()[..groups].iter().sum();
        let x = Var::concat(&t.velo_columns()[..columns].iter().map(norm).collect::<Vec<_>>());
        let out = self.network(theta, x, groups);
        let magnitude = out.row(1, n);
        let magnitude = if self.aggregate_mag { magnitude.mean() } else { magnitude };
        let mut step = out.row(0, n) * magnitude.scale(self.exp_mult).exp();
        if self.param_scale_mult {
            step = step * t.param.square().mean().shift(EPSILON).sqrt();
        }
        if let (true, Some([rows, cols])) = (self.orthogonalize, matrix) {
            let part = |i| {
                let x = step.row(i, rows * cols);
                let x = &x / x.norm().shift(self.ns_eps);
                newton_schulz_by(self.ns_coeffs, &x, [rows, cols], self.ns_iters)
            };
            step = Var::concat(&(0..matrices).map(part).collect::<Vec<_>>());
        }
        let step = norm(&step).scale(self.rmsmult);
        match self.precondition_output {
            true => step * t.rms[t.rms.len() - 1].shift(1e-6).rsqrt(),
            false => step,
        }
    }

    /// The step of the other tensors from their averages.
    fn adam<E: Float>(&self, m: &Var<E>, v: &Var<E>, step: u64) -> Var<E> {
        let corrects = self.form == Celo2Form::Recipe || self.adam_bias_correction;
        let [m, v] = [(m, self.adam_b1), (v, self.adam_b2)].map(|(x, decay)| match corrects {
            true => x.scale(1.0 / (1.0 - decay.powf((step + 1) as f64))),
            false => x.clone(),
        });
        match self.form {
            Celo2Form::Recipe => m / v.sqrt().shift(self.adam_epsilon),
            _ => m * v.shift(self.adam_epsilon).rsqrt(),
        }
    }
}

/// Which tensors the network does not update.
enum Others {
    None,
    Matching(Box<Regex>),
    VectorsAndEmbeddings,
}

impl Others {
    fn contain(&self, entry: &Entry) -> bool {
        match self {
            Others::None => false,
            Others::Matching(regex) => regex.is_match(&entry.name),
            Others::VectorsAndEmbeddings => entry.shape.len() < 2 || entry.name.contains("embed"),
        }
    }

    /// Number of their elements.
    fn len(&self, layout: &Layout) -> usize {
        layout.entries().iter().filter(|e| self.contain(e)).map(Entry::numel).sum()
    }
}

impl UpdateRule for Celo2Published {
    fn name(&self) -> String {
        match self.form {
            Celo2Form::Base => "celo2.Celo2Base",
            Celo2Form::Regex => "celo2.Celo2",
            Celo2Form::Recipe => "celo2.OptaxRecipe",
        }
        .into()
    }

    fn validate(&self) -> Result<()> {
        let name = self.name();
        let of = |setting: &str| format!("{name}: {setting}");
        let [momentum, rms, adafactor] = self.decays();
        Interval::DECAY.check_all(&of("initial_momentum_decays"), momentum)?;
        Interval::DECAY.check_all(&of("initial_rms_decays"), rms)?;
        Interval::DECAY.check_all(&of("initial_adafactor_decays"), adafactor)?;
        if self.form == Celo2Form::Regex {
            Regex::new(&self.regex_1d).map_err(|e| Error::invalid(of("regex_1d"), e.to_string()))?;
        }
        let settings = [
            ("ff_hidden_size", self.ff_hidden_size as f64, Interval::COUNT),
            ("exp_mult", self.exp_mult, Interval::FINITE),
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
            ("rmsmult", self.rmsmult, Interval::NOT_NEGATIVE),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
            ("ns_eps", self.ns_eps, Interval::NOT_NEGATIVE),
            ("mult_1d", self.mult_1d, Interval::NOT_NEGATIVE),
            ("adam_b1", self.adam_b1, Interval::DECAY),
            ("adam_b2", self.adam_b2, Interval::DECAY),
            ("adam_epsilon", self.adam_epsilon, Interval::NOT_NEGATIVE),
        ];
        check_settings(&name, settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        let mut sizes = vec![self.blocks().iter().sum()];
        sizes.extend(std::iter::repeat_n(self.ff_hidden_size, self.ff_hidden_layers));
        sizes.push(3);
        let mut tensors = Vec::new();
        for (j, inputs) in self.blocks().into_iter().enumerate() {
            tensors.push((mixed_net::name(format_args!("w0__{j}")), vec![inputs, sizes[1]]));
        }
        for (i, s) in sizes.windows(2).enumerate() {
            if i > 0 {
                tensors.push((mixed_net::name(format_args!("w{i}")), vec![s[0], s[1]]));
            }
            tensors.push((mixed_net::name(format_args!("b{i}")), vec![s[1]]));
        }
        Arc::new(sorted_layout(tensors))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.theta_layout();
        let mut theta = vec![E::of(0.0); layout.len()];
        for entry in layout.entries().iter().filter(|e| e.shape.len() == 2) {
            // The blocks of the first layer share its number of inputs.
            let is_first = entry.name.contains("w0__");
            let inputs = if is_first { self.blocks().iter().sum() } else { entry.shape[0] };
            let std = 1.0 / (inputs as f64).sqrt();
            key.named(&entry.name).fill_truncated_normal(&mut theta[entry.range()], std);
        }
        theta
    }

    fn init_slots<E: Float>(&self, _: &Theta<E>, layout: &Layout, _: Option<u64>) -> Slots<E> {
        let mut slots = adafac::slots(layout, self.decays().map(<[f64]>::len));
        let others = self.others().len(layout);
        slots.extend([("adam_m", others), ("adam_v", others)]);
        zero_slots(slots)
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let others = self.others();
        let entries = || now.layout.entries().iter().filter(|e| e.numel() > 0);
        let of_others = |x: &Var<E>| {
            let parts = entries().filter(|e| others.contain(e)).map(|e| x.slice(e.range()));
            Var::concat(&parts.collect::<Vec<_>>())
        };
        let grad = of_others(&now.grad.limited());
        let rate = |decay: f64| Var::scalar(1.0 - decay);
        let m = averages::step(&now.slots[4], &grad, &rate(self.adam_b1));
        let v = averages::step(&now.slots[5], &grad.square(), &rate(self.adam_b2));
        let adam = self.adam(&m, &v, now.step);

        let [momentum, rms, factored] = self.decays().map(averages::fixed_rates);
        let rates = Adafac { momentum, rms, factored, rms_epsilon: SMALL, vector_epsilon: 0.0 };
        let (tensors, mut slots) = rates.update(&now, &now.slots, &now.grad.clip(-1000.0, 1000.0));
        let mut start = 0;
        let next = tensors.iter().zip(entries()).map(|(t, entry)| {
            let (direction, lr) = if others.contain(entry) {
                let own = start..start + entry.numel();
                start = own.end;
                (adam.slice(own), self.mult_1d * self.step_mult)
            } else {
                (self.direction(theta, t), self.step_mult)
            };
            &t.param - (direction + t.param.scale(self.weight_decay)).scale(lr)
        });
        let params = Var::concat(&next.collect::<Vec<_>>());
        slots.extend([m, v]);
        (params, slots)
    }
}

learned_optimizer!(Celo2Published);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;
    use serde_json::json;

    fn forms() -> [Celo2Published; 3] {
        let rule = |form| Celo2Published { ff_hidden_size: 4, step_mult: 0.05, ..Celo2Published::new(form) };
        [
            Celo2Published { exp_mult: 0.1, param_scale_mult: true, ..rule(Celo2Form::Base) },
            Celo2Published {
                regex_1d: "b$|v".into(),
                weight_decay: 0.1,
                aggregate_mag: true,
                ns_iters: 2,
                exp_mult: 0.1,
                ..rule(Celo2Form::Regex)
            },
            Celo2Published {
                precondition_output: true,
                mlp_activation: MlpActivation::Tanh,
                ..rule(Celo2Form::Recipe)
            },
        ]
    }

    #[test]
    fn keeps_its_contract() {
        for rule in forms() {
            check_learned_optimizer::<f32>(&rule).unwrap();
            check_learned_optimizer::<f64>(&rule).unwrap();
        }
        assert_eq!(Celo2Published::default().theta_layout().len(), 347);
    }

    #[test]
    fn the_recipe_agrees_with_the_golden_run() {
        let golden = Golden::load("celo2_optax_recipe");
        let rule =
            Celo2Published::from_hyperparameters(Celo2Form::Recipe, &golden.config::<Value>()).unwrap();
        assert_eq!(rule.step_mult, 0.01);
        golden.check(&rule, &rule);
    }

    #[test]
    fn defaults_are_those_of_the_form_and_other_names_are_refused() {
        let make = |form, hyper| Celo2Published::from_hyperparameters(form, &hyper);
        assert!(!make(Celo2Form::Base, json!({})).unwrap().orthogonalize);
        let regex = make(Celo2Form::Regex, json!({"mlp_activation": "tanh"})).unwrap();
        assert!(regex.orthogonalize && regex.adam_b2 == 0.999);
        let error = make(Celo2Form::Recipe, json!({"lr": 1.0})).unwrap_err().to_string();
        assert!(error.contains("celo2.OptaxRecipe") && error.contains("`lr`"), "{error}");
        let error = make(Celo2Form::Regex, json!({"regex_1d": "("})).unwrap().validate().unwrap_err();
        assert!(error.to_string().contains("regex_1d"), "{error}");
    }

    #[test]
    fn derivatives_agree_with_differences() {
        for rule in forms() {
            let theta = noisy_theta(&rule, 0.05);
            let gap = vjp_gap(&rule, &theta, &warm_state(&rule, &theta));
            assert!(gap < 1e-6, "{rule:?}: {gap:e}");
        }
    }
}
