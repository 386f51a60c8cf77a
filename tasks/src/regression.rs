//! Regression on generated tables with known noise.

use crate::image::Nonlinearity;
use dfdx::prelude::PutTape;
use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{Backend, Dim, DynParams, DynTree, HasShape, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Error, Float, Key, Layout, Result, Split, Task};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rows of each validation split and of the test.
const HELD_OUT_ROWS: usize = 512;

/// What the targets are, with mean 0 and variance 1 before the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Truth {
    /// A random linear function of `x/s`.
    Linear,
    /// A random tanh net with one hidden layer of so many units.
    Net(usize),
    /// `10 sin(π x₁ x₂) + 20 (x₃ − ½)² + 10 x₄ + 5 x₅` of the first five columns mapped to `[0, 1]` by the normal
    /// distribution function, standardized; at least five columns (Friedman 1991, function 1).
    Friedman,
}

/// A regression problem and the net that is fitted to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegressionConfig {
    /// Columns, at least 1. Default 8.
    pub features: usize,
    /// Training rows, at least 1. Default 256.
    pub rows: usize,
    /// Default [`Truth::Net`] of 16.
    pub truth: Truth,
    /// Standard deviation of the targets' noise; the loss cannot fall below its square. Default 0.3.
    pub noise: f64,
    /// Largest over smallest variance of a column, geometric between them; at least 1. Default 1.
    pub condition: f64,
    /// Widths of the hidden layers; none: linear regression. Default `[32]`.
    pub hidden: Vec<usize>,
    /// Default ReLU.
    pub nonlinearity: Nonlinearity,
    /// Rows per batch, at least 1. Default 64.
    pub batch_size: usize,
}

impl Default for RegressionConfig {
    fn default() -> Self {
        RegressionConfig {
            features: 8,
            rows: 256,
            truth: Truth::Net(16),
            noise: 0.3,
            condition: 1.0,
            hidden: vec![32],
            nonlinearity: Nonlinearity::Relu,
            batch_size: 64,
        }
    }
}

/// `y = f(x) + noise`, fitted by an MLP in the mean squared error; see [`RegressionConfig`].
///
/// Layer `i` has `w{i}` `[inputs, outputs]` and `b{i}` `[outputs]`; initial weights normal with standard deviation
/// `1/sqrt(inputs)`, truncated at twice that, biases 0. A batch draws its rows with replacement. For
/// meta-training losses are clipped to 10, NaN becoming 10.
#[derive(Clone, Debug)]
pub struct RegressionTask {
    config: RegressionConfig,
    layout: Arc<Layout>,
    x: Arc<[f32]>,
    y: Arc<[f32]>,
}

impl RegressionTask {
    /// The table that `key` names.
    ///
    /// # Errors
    /// Sizes and numbers out of range.
    pub fn new(config: RegressionConfig, key: Key) -> Result<Self> {
        let RegressionConfig { features, rows, noise, condition, .. } = config;
        let bad = |why: &str| Err(Error::invalid(format!("regression {config:?}"), why));
        if features == 0 || rows == 0 || config.batch_size == 0 || config.hidden.contains(&0) {
            return bad("features, rows, batch_size and hidden widths must be at least 1");
        }
        if !(noise >= 0.0 && noise.is_finite() && condition >= 1.0 && condition.is_finite()) {
            return bad("noise must be finite and not negative, condition finite and at least 1");
        }
        if config.truth == Truth::Friedman && features < 5 {
            return bad("Friedman's function needs five features");
        }
        let n = rows + 3 * HELD_OUT_ROWS;
        let normals = |n: usize, name: &str| {
            let mut x = vec![0.0f32; n];
            key.named(name).fill_normal(&mut x);
            x
        };
        let z = normals(n * features, "rows");
        let mut y: Vec<f64> = match config.truth {
            Truth::Linear => {
                let w = normals(features, "weights");
                z.chunks_exact(features).map(|row| dot(row, &w)).collect()
            }
            Truth::Net(width) => {
                let (w, out) = (normals(width * features, "hidden"), normals(width, "output"));
                let unit = |row: &[f32], w: &[f32]| (1.5 * dot(row, w) / (features as f64).sqrt()).tanh();
                let net = |row: &[f32]| {
                    w.chunks_exact(features).zip(&out).map(|(w, o)| f64::from(*o) * unit(row, w)).sum()
                };
                z.chunks_exact(features).map(net).collect()
            }
            Truth::Friedman => z.chunks_exact(features).map(friedman).collect(),
        };
        standardize(&mut y);
        let around = normals(n, "noise");
        let y: Vec<f32> = y.iter().zip(around).map(|(y, e)| (*y + noise * f64::from(e)) as f32).collect();
        let last = (features - 1).max(1) as f64;
        let scale = |column: usize| condition.powf(-0.5 * column as f64 / last) as f32;
        let x: Vec<f32> = z.iter().enumerate().map(|(i, z)| z * scale(i % features)).collect();
        let mut layout = Layout::default();
        let mut inputs = features;
        for (i, outputs) in config.hidden.iter().copied().chain([1]).enumerate() {
            layout.push(format!("w{i}"), [inputs, outputs]);
            layout.push(format!("b{i}"), [outputs]);
            inputs = outputs;
        }
        Ok(RegressionTask { config, layout: Arc::new(layout), x: x.into(), y: y.into() })
    }

    /// The rows of a split.
    fn rows(&self, split: Split) -> std::ops::Range<usize> {
        let start = match split {
            Split::Train => return 0..self.config.rows,
            Split::InnerValid => 0,
            Split::OuterValid => 1,
            Split::Test => 2,
        };
        let start = self.config.rows + start * HELD_OUT_ROWS;
        start..start + HELD_OUT_ROWS
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

fn friedman(z: &[f32]) -> f64 {
    // The logistic approximation of the normal distribution function, good to 0.01.
    let u = |i: usize| 1.0 / (1.0 + (-1.702 * f64::from(z[i])).exp());
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(u);
    10.0 * (std::f64::consts::PI * a * b).sin() + 20.0 * (c - 0.5).powi(2) + 10.0 * d + 5.0 * e
}

/// Mean 0 and variance 1, unless all are equal.
fn standardize(y: &mut [f64]) {
    let n = y.len() as f64;
    let mean = y.iter().sum::<f64>() / n;
    let std = (y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n).sqrt().max(1e-12);
    y.iter_mut().for_each(|y| *y = (*y - mean) / std);
}

/// Rows and their targets, `[N, features]` and `[N, 1]`.
pub struct RegressionBatch<E: Float, B: Backend<E>> {
    x: Tensor<(usize, usize), E, B>,
    y: Tensor<(usize, usize), E, B>,
}

impl<E: Float, B: Backend<E>> Task<E, B> for RegressionTask {
    type Params = DynParams<E, B>;
    type Batch = RegressionBatch<E, B>;

    fn name(&self) -> String {
        let widths: Vec<String> = self.config.hidden.iter().map(usize::to_string).collect();
        let truth = match self.config.truth {
            Truth::Linear => "linear".into(),
            Truth::Net(n) => format!("net{n}"),
            Truth::Friedman => "friedman".into(),
        };
        format!("regression_{truth}_{}rows_mlp{}", self.config.rows, widths.join("x"))
    }

    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let mut flat = vec![E::of(0.0); self.layout.len()];
        for (i, entry) in self.layout.entries().iter().enumerate().filter(|(_, e)| e.name.starts_with('w')) {
            let std = 1.0 / (entry.shape[0] as f64).sqrt();
            key.fold_in(i as u64).fill_truncated_normal(&mut flat[entry.range()], std);
        }
        DynParams::<E, B>::new(dev, self.layout.clone(), &flat)
    }

    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let (n, f) = (self.config.batch_size, self.config.features);
        let (rows, key) = (self.rows(at.split), at.noise());
        let (mut x, mut y) = (Vec::with_capacity(n * f), Vec::with_capacity(n));
        for i in 0..n as u64 {
            let draw = (key.fold_in(i).uniform() * rows.len() as f64) as usize;
            let row = rows.start + draw.min(rows.len() - 1);
            x.extend(self.x[row * f..(row + 1) * f].iter().map(|x| E::of(f64::from(*x))));
            y.push(E::of(f64::from(self.y[row])));
        }
        RegressionBatch { x: dev.tensor_from_vec(x, (n, f)), y: dev.tensor_from_vec(y, (n, 1)) }
    }

    fn loss<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let mut x = batch.x.clone().put_tape(m);
        for (i, &outputs) in self.config.hidden.iter().enumerate() {
            x = self.config.nonlinearity.apply(dense(params, 2 * i, x, outputs));
        }
        ops::mse(dense(params, 2 * self.config.hidden.len(), x, 1), &batch.y)
    }

    fn normalizer(&self, loss: f64) -> f64 {
        if loss.is_nan() {
            10.0
        } else {
            loss.clamp(0.0, 10.0)
        }
    }
}

/// A linear layer: weights at `index` of the layout, biases behind them.
fn dense<E: Float, B: Backend<E>, M: Mode<E, B>>(
    params: &DynParams<E, B>,
    index: usize,
    x: Tensor<(usize, usize), E, B, M>,
    outputs: usize,
) -> Tensor<(usize, usize), E, B, M> {
    let inputs = x.shape().1.size();
    ops::linear(
        x,
        &params.get(index, (inputs, outputs)),
        &params.get(index + 1, (outputs,)),
        Activation::Identity,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::contract::check_task;
    use outerloop_core::{FlatTask, Typed};

    #[test]
    fn keeps_the_contract_for_every_truth() {
        for (truth, hidden) in
            [(Truth::Linear, vec![]), (Truth::Net(4), vec![6]), (Truth::Friedman, vec![5, 4])]
        {
            let config = RegressionConfig {
                truth,
                hidden,
                nonlinearity: Nonlinearity::Tanh,
                batch_size: 9,
                ..Default::default()
            };
            let task = || Typed::new(RegressionTask::new(config.clone(), Key::new(0)).unwrap());
            check_task(&task(), &task()).unwrap();
        }
    }

    #[test]
    fn the_best_linear_fit_leaves_the_noise() {
        let config = RegressionConfig {
            truth: Truth::Linear,
            hidden: vec![],
            rows: 4000,
            noise: 0.5,
            condition: 4.0,
            batch_size: 256,
            ..RegressionConfig::default()
        };
        let task: Arc<dyn FlatTask<f64>> =
            Arc::new(Typed::new(RegressionTask::new(config, Key::new(1)).unwrap()));
        let (mut evaluator, mut p) = (task.evaluator(), task.init(Key::new(2)).data);
        let mut grad = vec![0.0; p.len()];
        let at = |split, step| BatchKey { split, step, key: Key::new(3) };
        for step in 0..600 {
            evaluator.loss_and_grad(&p, &mut [], at(Split::Train, step), &mut grad);
            p.iter_mut().zip(&grad).for_each(|(p, g)| *p -= 0.2 * g);
        }
        let test: f64 = (0..8).map(|i| evaluator.loss(&p, &[], at(Split::Test, i))).sum::<f64>() / 8.0;
        // 0.25 ± its standard error over 512 rows, 0.016.
        assert!((test - 0.25).abs() < 0.05, "{test}");
        assert!(task.normalizer(f64::NAN) == 10.0 && task.normalizer(0.5) == 0.5);
    }

    #[test]
    fn impossible_settings_are_refused() {
        let ok = RegressionConfig::default();
        for bad in [
            RegressionConfig { features: 0, ..ok.clone() },
            RegressionConfig { rows: 0, ..ok.clone() },
            RegressionConfig { batch_size: 0, ..ok.clone() },
            RegressionConfig { hidden: vec![0], ..ok.clone() },
            RegressionConfig { noise: -1.0, ..ok.clone() },
            RegressionConfig { condition: 0.5, ..ok.clone() },
            RegressionConfig { truth: Truth::Friedman, features: 4, ..ok },
        ] {
            assert!(RegressionTask::new(bad.clone(), Key::new(0)).is_err(), "{bad:?}");
        }
    }
}
