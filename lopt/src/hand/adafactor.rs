//! Adafactor.

use super::graph::{map, Around, Graph, Var};
use super::{At, Schedule, Tensorwise};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Float, Interval, Result};
use serde::{Deserialize, Serialize};

/// Adafactor: second moments kept as row and column means. With `g₂ = g² + ε` and the decay
/// `β = 1 − max(t − offset, 1)^(−rate)`, row and col are averages of the means of g₂ over the largest (d₀)
/// and the second largest axis (d₁), and `u = g (row/mean_d₁(row))^−½ col^−½`; tensors with a small
/// second axis keep `u = g v^−½`. Then `u ← u/max(1, rms(u)/clip)`, times lr, times
/// `max(rms(p), 1e-3)`, momentum, weight decay, `p ← p − u`.
///
/// Reference: Shazeer, Stern 2018, arXiv:1804.04235; in the form and with the defaults of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Adafactor {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Default: factored from a second axis of 128 on.
    pub factoring: Factoring,
    /// Default 0.8.
    pub decay_rate: f64,
    /// Updates that the decay starts late; until then `β = 0`. Default 0.
    pub decay_offset: f64,
    /// Default relative.
    pub step_size: StepSize,
    /// Largest root mean square of a step before the learning rate; default 1. `None`: unlimited.
    pub clipping_threshold: Option<f64>,
    /// Decay of a running mean of the steps; default none.
    pub momentum: Option<f64>,
    /// Added to the step as a multiple of p, after the learning rate; default none.
    pub weight_decay_rate: Option<f64>,
    /// ε; default 1e-30.
    pub epsilon: f64,
}

/// Which tensors of [`Adafactor`] keep row and column means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Factoring {
    /// Those whose second largest axis has at least this size.
    From(usize),
    /// None.
    Never,
}

/// What [`Adafactor`]'s learning rate is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepSize {
    /// The root mean square of the tensor, at least 1e-3.
    Relative,
    /// Nothing.
    Absolute,
}

impl Default for Adafactor {
    fn default() -> Self {
        Adafactor {
            learning_rate: 0.01.into(),
            factoring: Factoring::From(128),
            decay_rate: 0.8,
            decay_offset: 0.0,
            step_size: StepSize::Relative,
            clipping_threshold: Some(1.0),
            momentum: None,
            weight_decay_rate: None,
            epsilon: 1e-30,
        }
    }
}

impl Adafactor {
    /// The second largest and the largest axis (by stable sort), if the tensor is factored.
    fn factored_axes(&self, shape: &[usize]) -> Option<[usize; 2]> {
        let mut order: Vec<usize> = (0..shape.len()).collect();
        order.sort_by_key(|axis| shape[*axis]);
        match (self.factoring, &order[..]) {
            (Factoring::From(least), [.., d1, d0]) if shape[*d1] >= least => Some([*d1, *d0]),
            _ => None,
        }
    }
}

fn rms<E: Float>(graph: &mut Graph<E>, v: Var) -> Var {
    let squares = map!(graph, [v], |x| x.square());
    let mean = graph.mean(squares);
    map!(graph, [mean], |x| Scalar::sqrt(x))
}

impl Tensorwise for Adafactor {
    fn name(&self) -> String {
        "adafactor".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("decay_rate", self.decay_rate, Interval::NOT_NEGATIVE),
            ("decay_offset", self.decay_offset, Interval::NOT_NEGATIVE),
            ("clipping_threshold", self.clipping_threshold.unwrap_or(1.0), Interval::POSITIVE),
            ("momentum", self.momentum.unwrap_or(0.0), Interval::DECAY),
            ("weight_decay_rate", self.weight_decay_rate.unwrap_or(0.0), Interval::NOT_NEGATIVE),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, Vec<f64>)> {
        let n: usize = shape.iter().product();
        let without = |axis: usize| n / shape[axis].max(1);
        let (row, col, v) = match self.factored_axes(shape) {
            Some([d1, d0]) => (without(d0), without(d1), 0),
            None => (0, 0, n),
        };
        let mut slots = vec![("row", vec![0.0; row]), ("col", vec![0.0; col]), ("v", vec![0.0; v])];
        slots.extend(self.momentum.map(|_| ("momentum", vec![0.0; n])));
        slots
    }
    fn step<E: Float>(
        &self,
        graph: &mut Graph<E>,
        at: At,
        shape: &[usize],
        p: Var,
        slots: &[Var],
        g: Var,
    ) -> (Var, Vec<Var>) {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let decay = 1.0 - (at.t() - self.decay_offset).max(1.0).powf(-self.decay_rate);
        let g2 = map!(graph, [g], |k; g| g.square() + k(self.epsilon));
        let mut new = slots.to_vec();
        let mut u = match self.factored_axes(shape) {
            Some([d1, d0]) => {
                let (over_d0, over_d1) = (Around::axis(shape, d0), Around::axis(shape, d1));
                for (slot, axis) in [over_d0, over_d1].into_iter().enumerate() {
                    let mean = graph.mean_axis(g2, axis);
                    new[slot] =
                        map!(graph, [slots[slot], mean], |k; old, x| k(decay) * old + k(1.0 - decay) * x);
                }
                // Rows lack d0, so d1 moves down where it came after.
                let mut row_shape = shape.to_vec();
                row_shape.remove(d0);
                let d1_of_rows = Around::axis(&row_shape, if d1 > d0 { d1 - 1 } else { d1 });
                let row_mean = graph.mean_axis(new[0], d1_of_rows);
                let row_mean = graph.repeat_axis(row_mean, d1_of_rows);
                let ratio = map!(graph, [new[0], row_mean], |row, mean| row.over(mean));
                let (row, col) = (graph.rsqrt(ratio), graph.rsqrt(new[1]));
                let (row, col) = (graph.repeat_axis(row, over_d0), graph.repeat_axis(col, over_d1));
                map!(graph, [g, row, col], |g, row, col| g * row * col)
            }
            None => {
                new[2] = map!(graph, [slots[2], g2], |k; old, x| k(decay) * old + k(1.0 - decay) * x);
                map!(graph, [g, new[2]], |g, v| g.over(Scalar::sqrt(v)))
            }
        };
        if let Some(clip) = self.clipping_threshold {
            let size = rms(graph, u);
            u = map!(graph, [u, size], |k; u, size| u / Scalar::max(k(1.0), size / k(clip)));
        }
        u = map!(graph, [u], |k; u| k(lr) * u);
        if self.step_size == StepSize::Relative {
            let size = rms(graph, p);
            u = map!(graph, [u, size], |k; u, size| u * Scalar::max(size, k(1e-3)));
        }
        if let Some(mu) = self.momentum {
            u = map!(graph, [slots[3], u], |k; old, u| k(mu) * old + k(1.0 - mu) * u);
            new[3] = u;
        }
        let decay = self.weight_decay_rate.unwrap_or(0.0);
        (map!(graph, [p, u], |k; p, u| p - u - k(decay) * p), new)
    }
}
crate::tensorwise_optimizer!(Adafactor);
