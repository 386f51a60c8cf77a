//! [`Celo2`]: a tiny normalized network for matrices inside a hand-built harness.

pub(crate) mod step;
mod vjp;

pub use step::Celo2Kernel;

use crate::features::adafac::{self, Adafac, TensorFeatures};
use crate::features::{averages, normalize};
use crate::kernel::{self, newton_schulz::NEWTON_SCHULZ};
use crate::learned_optimizer;
use crate::rule::mlp::sorted_layout;
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Taped, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Entry, Float, Interval, Key, Layout, Optimizer, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Whether the learned step of a matrix is orthogonalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Orthogonalize {
    /// No: `celo2-base`.
    Off,
    /// By this many quintic Newton-Schulz iterations (5 in the paper).
    NewtonSchulz(usize),
}

/// A per-parameter MLP 30-8-8-3 on VeLO's features for tensors of rank 2 and more; AdamW on the same
/// accumulators for all others and for embeddings.
///
/// Features and the step are divided by their root mean square over the last two axes:
/// `u = norm(orthogonalize(a · exp(exp_mult · b)))`, `p ← p − lr (u + weight_decay p)`. AdamW uses the
/// first momentum and the last RMS average with bias correction and `adam_lr_mult · lr`.
/// `lr` rises linearly over `warmup_fraction` of the steps to `peak_lr` and falls to `end_lr` by a
/// cosine; without a number of steps it is `peak_lr`. Gradients are clipped to ±1000.
///
/// Theta: `ff_mod/~/w0__j` (14 blocks of the first layer), `w{i}`, `b{i}`; 347 numbers by default.
/// State: [`adafac::slots`]. In f32 the update and its derivative are fused kernels ([`crate::kernel`]).
/// Reference: arXiv:2602.19142; the constants as in PyLO's port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Celo2 {
    /// Units per hidden layer, at least 1. Default 8.
    pub hidden_size: usize,
    /// Number of hidden layers. Default 2.
    pub hidden_layers: usize,
    /// Decays of the momenta. Default 0.9, 0.99, 0.999.
    pub momentum_decays: Vec<f64>,
    /// Decays of the squared gradients. Default 0.95.
    pub rms_decays: Vec<f64>,
    /// Decays of the factored second moments. Default 0.9, 0.99, 0.999.
    pub adafactor_decays: Vec<f64>,
    /// Factor inside the exponential. Default 0: the magnitude is idle.
    pub exp_mult: f64,
    /// Default 5 Newton-Schulz iterations.
    pub orthogonalize: Orthogonalize,
    /// Learning rate after the warmup. Default 1e-3.
    pub peak_lr: f64,
    /// Learning rate at the last step. Default 0.
    pub end_lr: f64,
    /// Share of the steps in which the learning rate rises. Default 0.05.
    pub warmup_fraction: f64,
    /// Decoupled weight decay, of both paths. Default 0.
    pub weight_decay: f64,
    /// Learning rate of AdamW relative to the network's. Default 1.
    pub adam_lr_mult: f64,
    /// Tensors whose names contain one of these use AdamW whatever their rank. Default `embed`.
    pub adam_names: Vec<String>,
}

impl Default for Celo2 {
    fn default() -> Self {
        Celo2 {
            hidden_size: 8,
            hidden_layers: 2,
            momentum_decays: vec![0.9, 0.99, 0.999],
            rms_decays: vec![0.95],
            adafactor_decays: vec![0.9, 0.99, 0.999],
            exp_mult: 0.0,
            orthogonalize: Orthogonalize::NewtonSchulz(5),
            peak_lr: 1e-3,
            end_lr: 0.0,
            warmup_fraction: 0.05,
            weight_decay: 0.0,
            adam_lr_mult: 1.0,
            adam_names: vec!["embed".into()],
        }
    }
}

/// Added to mean squares before the root.
pub(crate) const EPSILON: f64 = 1e-9;
/// Added to AdamW's denominator and to norms.
pub(crate) const SMALL: f64 = 1e-8;

impl Celo2 {
    pub(crate) fn decays(&self) -> [&[f64]; 3] {
        [&self.momentum_decays, &self.rms_decays, &self.adafactor_decays]
    }

    fn groups(&self) -> [usize; 14] {
        adafac::velo_groups(self.decays().map(<[f64]>::len))
    }

    /// Units of the layers, inputs first.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![self.groups().iter().sum()];
        sizes.extend(std::iter::repeat_n(self.hidden_size, self.hidden_layers));
        sizes.push(3);
        sizes
    }

    /// Names of the first layer's weights: one block per feature group.
    fn first_layer(&self) -> impl Iterator<Item = (String, usize)> {
        self.groups().into_iter().enumerate().map(|(j, inputs)| (format!("ff_mod/~/w0__{j}"), inputs))
    }

    /// The learning rate of update number `step` (0 for the first).
    pub fn learning_rate(&self, step: u64, num_steps: Option<u64>) -> f64 {
        let Some(num_steps) = num_steps else { return self.peak_lr };
        let (t, last) = ((step + 1) as f64, (num_steps as f64).max(1.0));
        let warmup = (self.warmup_fraction * last).max(1.0);
        if t < warmup {
            return self.peak_lr * t / warmup;
        }
        let progress = ((t - warmup) / (last - warmup).max(1.0)).clamp(0.0, 1.0);
        self.end_lr + (self.peak_lr - self.end_lr) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }

    /// The network's outputs `[3, n]` for normalized features `[30, n]`.
    fn network<E: Float>(&self, theta: &Theta<E>, x: Var<E>) -> Var<E> {
        let sizes = self.sizes();
        let n = x.len() / sizes[0];
        let layers = sizes.len() - 1;
        (0..layers).fold(x, |x, i| {
            let w = match i {
                0 => Var::concat(&self.first_layer().map(|(name, _)| theta.get(&name)).collect::<Vec<_>>()),
                _ => theta.get(&format!("ff_mod/~/w{i}")),
            };
            let bias = theta.get(&format!("ff_mod/~/b{i}")).expand_axis([sizes[i + 1], n, 1]);
            let y = x.linear(&w, sizes[i + 1]) + bias;
            if i + 1 < layers {
                y.relu()
            } else {
                y
            }
        })
    }

    /// The learned direction of a tensor of rank 2 or more.
    fn direction<E: Float>(&self, theta: &Theta<E>, t: &TensorFeatures<E>) -> Var<E> {
        let n = t.param.len();
        let [rows, cols] = [t.shape[t.shape.len() - 2], t.shape[t.shape.len() - 1]];
        let matrices = n / (rows * cols);
        let norm = |x: &Var<E>| normalize::second_moment_per_matrix(x, matrices, EPSILON);
        let x = Var::concat(&t.velo_columns().iter().map(norm).collect::<Vec<_>>());
        let out = self.network(theta, x);
        let mut step = out.row(0, n) * out.row(1, n).scale(self.exp_mult).exp();
        if let Orthogonalize::NewtonSchulz(iterations) = self.orthogonalize {
            let part = |i| newton_schulz(&step.row(i, rows * cols), rows, cols, iterations);
            step = Var::concat(&(0..matrices).map(part).collect::<Vec<_>>());
        }
        norm(&step)
    }

    /// The direction of AdamW from the shared accumulators.
    fn adam<E: Float>(&self, t: &TensorFeatures<E>, step: u64) -> Var<E> {
        let last = self.rms_decays.len() - 1;
        let [momentum, rms] = self.adam_corrections(step);
        t.momenta[0].scale(momentum) / t.rms[last].scale(rms).sqrt().shift(SMALL)
    }

    /// AdamW's bias corrections of the first momentum and the last RMS average.
    pub(crate) fn adam_corrections(&self, step: u64) -> [f64; 2] {
        let last = self.rms_decays.len() - 1;
        [self.momentum_decays[0], self.rms_decays[last]]
            .map(|decay| 1.0 / (1.0 - decay.powf((step + 1) as f64)))
    }

    /// Whether AdamW updates this tensor.
    pub(crate) fn uses_adam(&self, entry: &Entry) -> bool {
        entry.shape.len() < 2 || self.adam_names.iter().any(|n| entry.name.contains(n))
    }
}

/// Moves the singular values of a matrix `[rows, cols]` towards 1.
fn newton_schulz<E: Float>(x: &Var<E>, rows: usize, cols: usize, iterations: usize) -> Var<E> {
    newton_schulz_iterations(&(x / x.norm().shift(SMALL)), rows, cols, iterations)
}

/// The same of a matrix of norm 1.
pub(crate) fn newton_schulz_iterations<E: Float>(
    x: &Var<E>,
    rows: usize,
    cols: usize,
    iterations: usize,
) -> Var<E> {
    newton_schulz_by(NEWTON_SCHULZ, x, [rows, cols], iterations)
}

/// The same with coefficients c₁, c₃, c₅: `X ← c₁ X + (c₃ A + c₅ A²) X`, `A = X Xᵀ`.
pub(crate) fn newton_schulz_by<E: Float>(
    [c1, c3, c5]: [f64; 3],
    x: &Var<E>,
    [rows, cols]: [usize; 2],
    iterations: usize,
) -> Var<E> {
    if rows > cols {
        let x = x.transpose(rows, cols);
        return newton_schulz_by([c1, c3, c5], &x, [cols, rows], iterations).transpose(cols, rows);
    }
    (0..iterations).fold(x.clone(), |x, _| {
        let a = x.matmul(&x.transpose(rows, cols), rows);
        let b = a.scale(c3) + a.matmul(&a, rows).scale(c5);
        x.scale(c1) + b.matmul(&x, rows)
    })
}

impl UpdateRule for Celo2 {
    fn name(&self) -> String {
        "Celo2".into()
    }

    fn validate(&self) -> Result<()> {
        let iterations = match self.orthogonalize {
            Orthogonalize::Off => 1.0,
            Orthogonalize::NewtonSchulz(iterations) => iterations as f64,
        };
        Interval::DECAY.check_all("Celo2: momentum_decays", &self.momentum_decays)?;
        Interval::DECAY.check_all("Celo2: rms_decays", &self.rms_decays)?;
        Interval::DECAY.check_all("Celo2: adafactor_decays", &self.adafactor_decays)?;
        let settings = [
            ("hidden_size", self.hidden_size as f64, Interval::COUNT),
            ("exp_mult", self.exp_mult, Interval::FINITE),
            ("orthogonalize", iterations, Interval::COUNT),
            ("peak_lr", self.peak_lr, Interval::NOT_NEGATIVE),
            ("end_lr", self.end_lr, Interval::NOT_NEGATIVE),
            ("warmup_fraction", self.warmup_fraction, Interval::FRACTION),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
            ("adam_lr_mult", self.adam_lr_mult, Interval::NOT_NEGATIVE),
        ];
        check_settings("Celo2", settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        let sizes = self.sizes();
        let mut tensors: Vec<_> = self.first_layer().map(|(name, i)| (name, vec![i, sizes[1]])).collect();
        for (i, s) in sizes.windows(2).enumerate() {
            if i > 0 {
                tensors.push((format!("ff_mod/~/w{i}"), vec![s[0], s[1]]));
            }
            tensors.push((format!("ff_mod/~/b{i}"), vec![s[1]]));
        }
        Arc::new(sorted_layout(tensors))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.theta_layout();
        let mut theta = vec![E::of(0.0); layout.len()];
        for entry in layout.entries().iter().filter(|e| e.shape.len() == 2) {
            // The blocks of the first layer share its number of inputs.
            let inputs = if entry.name.contains("w0__") { self.sizes()[0] } else { entry.shape[0] };
            let std = 1.0 / (inputs as f64).sqrt();
            key.named(&entry.name).fill_truncated_normal(&mut theta[entry.range()], std);
        }
        theta
    }

    fn init_slots<E: Float>(&self, _: &Theta<E>, layout: &Layout, _: Option<u64>) -> Slots<E> {
        zero_slots(adafac::slots(layout, self.decays().map(<[f64]>::len)))
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let [momentum, rms, factored] = self.decays().map(averages::fixed_rates);
        let rates = Adafac { momentum, rms, factored, rms_epsilon: SMALL, vector_epsilon: 0.0 };
        let (tensors, slots) = rates.update(&now, &now.slots, &now.grad.clip(-1000.0, 1000.0));
        let lr = self.learning_rate(now.step, now.num_steps);
        let entries = now.layout.entries().iter().filter(|e| e.numel() > 0);
        let next = tensors.iter().zip(entries).map(|(t, entry)| {
            let (direction, lr) = match self.uses_adam(entry) {
                true => (self.adam(t, now.step), self.adam_lr_mult * lr),
                false => (self.direction(theta, t), lr),
            };
            &t.param - (direction + t.param.scale(self.weight_decay)).scale(lr)
        });
        (Var::concat(&next.collect::<Vec<_>>()), slots)
    }

    fn optimizer<E: Float>(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        kernel::in_f32(theta, |theta| Celo2Kernel::new(self.clone(), theta, kernel::Path::best()))
            .unwrap_or_else(|| Box::new(Taped::new(self.clone(), theta)))
    }
}

learned_optimizer!(Celo2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{noisy_theta, vjp_gap, warm_state};
    use outerloop_core::contract::check_learned_optimizer;
    use outerloop_core::Params;

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&Celo2::default()).unwrap();
        check_learned_optimizer::<f64>(&Celo2::default()).unwrap();
        assert_eq!(Celo2::default().theta_layout().len(), 347);
    }

    #[test]
    fn newton_schulz_brings_singular_values_near_one() {
        for (rows, cols) in [(3, 5), (5, 3), (4, 4)] {
            let mut x = vec![0.0f64; rows * cols];
            Key::new(1).fill_normal(&mut x);
            let y = newton_schulz(&Var::constant(x), rows, cols, 5);
            // Of y, or yᵀ if it is tall: the Gram matrix is near the identity.
            let (wide, k, l) =
                if rows > cols { (y.transpose(rows, cols), cols, rows) } else { (y, rows, cols) };
            let gram = wide.matmul(&wide.transpose(k, l), k);
            for (i, g) in gram.data().iter().enumerate() {
                let want = if i % (k + 1) == 0 { 1.0 } else { 0.0 };
                assert!((g - want).abs() < 0.6, "{i}: {g}");
            }
        }
    }

    #[test]
    fn learned_steps_have_unit_root_mean_square_times_the_learning_rate() {
        let l = Celo2 { peak_lr: 0.5, ..Default::default() };
        let opt = Taped::<_, f64>::new(l.clone(), &l.init_theta(Key::new(1)));
        let layout = Arc::new(Layout::new([("conv", vec![2, 3, 4]), ("w", vec![5, 6])]));
        let params = Params::zeros(layout.clone());
        let mut state = opt.init(&params, None, Key::new(0));
        let mut grad = vec![0.0; layout.len()];
        Key::new(2).fill_normal(&mut grad);
        opt.update(&mut state, &grad, 0.0, Key::new(0));
        for matrix in [0..12, 12..24, 24..54] {
            let mean = state.params[matrix.clone()].iter().map(|p| p * p).sum::<f64>() / matrix.len() as f64;
            assert!((mean.sqrt() - 0.5).abs() < 1e-6, "{mean}");
        }
    }

    #[test]
    fn vectors_and_embeddings_follow_adamw() {
        let l = Celo2 { weight_decay: 0.1, peak_lr: 0.01, adam_lr_mult: 2.0, ..Default::default() };
        let opt = Taped::<_, f64>::new(l.clone(), &l.init_theta(Key::new(1)));
        let layout = Arc::new(Layout::new([("b", vec![3]), ("embed/w", vec![2, 2])]));
        let mut params = Params::zeros(layout.clone());
        Key::new(5).fill_normal(&mut params.data);
        let mut state = opt.init(&params, None, Key::new(0));
        let (mut p, mut m, mut v) = (params.data, [0.0f64; 7], [0.0f64; 7]);
        for t in 1..=4 {
            let mut grad = vec![0.0; 7];
            Key::new(t).fill_normal(&mut grad);
            opt.update(&mut state, &grad, 0.0, Key::new(0));
            for i in 0..7 {
                m[i] = 0.9 * m[i] + 0.1 * grad[i];
                v[i] = 0.95 * v[i] + 0.05 * grad[i] * grad[i];
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t as i32)), v[i] / (1.0 - 0.95f64.powi(t as i32)));
                p[i] -= 0.02 * (mh / (vh.sqrt() + 1e-8) + 0.1 * p[i]);
                assert!((p[i] - state.params[i]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_learning_rate_warms_up_and_falls_to_its_end() {
        let l = Celo2 { peak_lr: 2.0, end_lr: 0.5, warmup_fraction: 0.1, ..Default::default() };
        let at = |step| l.learning_rate(step, Some(100));
        assert_eq!([at(0), at(4), at(9)], [0.2, 1.0, 2.0]);
        assert!((at(54) - 1.25).abs() < 1e-12 && (at(99) - 0.5).abs() < 1e-12);
        assert_eq!(l.learning_rate(7, None), 2.0);
    }

    #[test]
    fn derivative_agrees_with_differences() {
        for orthogonalize in [Orthogonalize::Off, Orthogonalize::NewtonSchulz(3)] {
            let l =
                Celo2 { peak_lr: 0.1, exp_mult: 0.1, weight_decay: 0.1, orthogonalize, ..Default::default() };
            let theta = noisy_theta(&l, 0.05);
            let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
            assert!(gap < 1e-6, "{orthogonalize:?}: {gap:e}");
        }
    }
}
