//! Sinusoid regression by model-agnostic meta-learning: initial weights from which a few gradient steps fit a new sine.
//!
//! Meta-loss: the mean over tasks of the query loss after `inner_steps` of gradient descent on the support loss. Its
//! gradient exactly (second order), with the inner gradients as constants (first order), or Reptile's direction, the
//! weights minus the adapted ones, which is no gradient of the meta-loss.
//!
//! References: Finn, Abbeel, Levine 2017, arXiv:1703.03400; Nichol, Achiam, Schulman 2018, arXiv:1803.02999.

use crate::problem::Rows;
use outerloop_core::ops::{self, Activation, Through};
use outerloop_core::tensor::{
    Backend, DynParams, DynTree, Float, HasShape, Mode, PutTape, Rank0, SplitTape, Tensor,
};
use outerloop_core::{BatchKey, Key, Layout, Task};
use rand::Rng;
use std::f64::consts::PI;
use std::sync::Arc;

/// What the initial weights are trained by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The exact gradient of the meta-loss.
    #[default]
    Second,
    /// Inner gradients are constants: biased, no second derivatives.
    First,
    /// Towards the adapted weights; the query set is not seen.
    Reptile,
}

/// A fully connected network whose weights are one flat vector: `w1` `[I, H]`, `b1`, `w2`, ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatNet {
    /// Widths from input to output.
    pub widths: Vec<usize>,
    /// Of the hidden layers.
    pub activation: Activation,
}

impl FlatNet {
    /// Names and shapes of the weights.
    pub fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        for (i, w) in self.widths.windows(2).enumerate() {
            layout.push(format!("w{}", i + 1), vec![w[0], w[1]]);
            layout.push(format!("b{}", i + 1), vec![w[1]]);
        }
        layout
    }
    /// The outputs for rows of inputs, at flat weights `[P]`.
    pub fn forward<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        weights: &Tensor<(usize,), E, B, M>,
        x: &Rows<E, B>,
    ) -> Rows<E, B, M> {
        let row = ops::reshape(weights.clone(), (1, weights.shape().0));
        let (mut h, mut at) = (x.clone().put_tape(M::default()), 0);
        let layers = self.widths.len() - 1;
        for (i, w) in self.widths.windows(2).enumerate() {
            let part = |start: usize, n: usize| ops::columns(row.clone(), start, n).split_tape().0;
            let (matrix, bias) = (part(at, w[0] * w[1]), part(at + w[0] * w[1], w[1]));
            at += w[0] * w[1] + w[1];
            let act = if i + 1 == layers { Activation::Identity } else { self.activation };
            h = ops::linear(h, &ops::reshape(matrix, (w[0], w[1])), &ops::reshape(bias, (w[1],)), act);
        }
        h
    }
    /// Mean squared error against targets.
    pub fn mse<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        weights: &Tensor<(usize,), E, B, M>,
        (x, y): &(Rows<E, B>, Rows<E, B>),
    ) -> Tensor<Rank0, E, B, M> {
        ops::mse(self.forward(weights, x), y)
    }
}

/// One task's data: inputs and targets of the support set, then of the query set, each `[K, 1]`.
pub type Episode<E, B> = [(Rows<E, B>, Rows<E, B>); 2];

/// Sinusoid MAML as a task over the initial weights.
#[derive(Clone, Debug)]
pub struct SinusoidMaml {
    /// The network; default 1-40-40-1 ReLU.
    pub net: FlatNet,
    /// Rate of the inner gradient descent; default 0.01.
    pub inner_lr: f64,
    /// Inner steps; default 1.
    pub inner_steps: usize,
    /// Points per set K; default 10.
    pub points: usize,
    /// Sines per batch; default 25.
    pub tasks: usize,
    /// Default: second.
    pub order: Order,
}

impl Default for SinusoidMaml {
    fn default() -> Self {
        let net = FlatNet { widths: vec![1, 40, 40, 1], activation: Activation::Relu };
        SinusoidMaml { net, inner_lr: 0.01, inner_steps: 1, points: 10, tasks: 25, order: Order::Second }
    }
}

impl SinusoidMaml {
    /// Weights after the inner steps on a support set.
    pub fn adapt<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        weights: Tensor<(usize,), E, B, M>,
        support: &(Rows<E, B>, Rows<E, B>),
        through: Through,
    ) -> Tensor<(usize,), E, B, M> {
        let mut y = weights;
        for _ in 0..self.inner_steps {
            let (net, support) = (self.net.clone(), support.clone());
            let g = ops::gradient(y.clone(), Vec::new(), through, move |y, _| net.mse(&y, &support));
            y = ops::sub(y, &ops::scale(g, self.inner_lr));
        }
        y
    }

    /// All weights as one traced vector.
    pub fn flat<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        m: M,
    ) -> Tensor<(usize,), E, B, M> {
        let layout = self.net.layout();
        let part = |(i, e): (usize, &outerloop_core::Entry)| params.traced(i, (1, e.numel()), m);
        let parts = layout.entries().iter().enumerate().map(part);
        let joined = parts.reduce(|a, b| ops::concat(a, &b)).expect("a network has layers");
        ops::reshape(joined, (layout.len(),))
    }

    /// A sine of the key, `A sin(x − φ)` with A on `[0.1, 5]`, φ on `[0, π]`, at inputs on `[-5, 5]`.
    pub fn episode<E: Float, B: Backend<E>>(&self, dev: &B, key: Key) -> Episode<E, B> {
        let mut rng = key.rng();
        let (amplitude, phase) = (rng.gen_range(0.1..=5.0), rng.gen_range(0.0..=PI));
        [(); 2].map(|()| {
            let x: Vec<f64> = (0..self.points).map(|_| rng.gen_range(-5.0..=5.0)).collect();
            let y = x.iter().map(|x| E::of(amplitude * (x - phase).sin())).collect();
            let column = |v: Vec<E>| dev.tensor_from_vec(v, (self.points, 1usize));
            (column(x.iter().map(|x| E::of(*x)).collect()), column(y))
        })
    }

    /// The meta-loss of episodes (for [`Order::Reptile`] the function whose gradient is Reptile's direction).
    pub fn meta_loss<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        weights: &Tensor<(usize,), E, B, M>,
        episodes: &[Episode<E, B>],
    ) -> Tensor<Rank0, E, B, M> {
        let through = if self.order == Order::Second { Through::Exact } else { Through::Stopped };
        let one = |[support, query]: &Episode<E, B>| {
            let adapted = self.adapt(weights.clone(), support, through);
            if self.order == Order::Reptile {
                // ∇ ½ |θ − constant|² = θ − adapted
                let gap = ops::sub(weights.clone(), &ops::stop_gradient(adapted));
                return ops::scale(ops::sum(ops::square(gap)), 0.5);
            }
            self.net.mse(&adapted, query)
        };
        let sum = episodes.iter().map(one).reduce(|a, b| ops::add(a, &b)).expect("at least one episode");
        ops::scale(sum, 1.0 / episodes.len() as f64)
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for SinusoidMaml {
    type Params = DynParams<E, B>;
    type Batch = Vec<Episode<E, B>>;
    fn name(&self) -> String {
        format!("sinusoid_maml_{:?}", self.order).to_lowercase()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        let layout = Arc::new(self.net.layout());
        let mut flat = vec![E::of(0.0); layout.len()];
        for (i, e) in layout.entries().iter().enumerate().filter(|(_, e)| e.shape.len() == 2) {
            let sigma = 1.0 / (e.shape[0] as f64).sqrt();
            key.fold_in(i as u64).fill_truncated_normal(&mut flat[e.range()], sigma);
        }
        DynParams::<E, B>::new(dev, layout, &flat)
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        (0..self.tasks).map(|i| self.episode(dev, at.noise().fold_in(i as u64))).collect()
    }
    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, batch: &Self::Batch, m: M) -> Tensor<Rank0, E, B, M> {
        self.meta_loss(&self.flat(p, m), batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::contract::check_task;
    use outerloop_core::Typed;

    #[test]
    fn all_orders_are_tasks() {
        let net = FlatNet { widths: vec![1, 5, 1], activation: Activation::Tanh };
        for inner_steps in [1, 2] {
            let task =
                SinusoidMaml { net: net.clone(), inner_steps, points: 3, tasks: 2, ..Default::default() };
            check_task(&Typed::new(task.clone()), &Typed::new(task)).expect("the contract");
        }
    }
}
