//! Steps of training as benches time them, and what torch took for the same.

use super::{Group, Timing};
use outerloop::prelude::*;
use std::sync::Arc;

/// A task's training steps by Adam, on fresh batches.
pub struct Trainer {
    opt: Adam,
    state: OptState,
    evaluator: Box<dyn Evaluator>,
    grad: Vec<f32>,
    step: u64,
}

impl Trainer {
    pub fn new(task: &Arc<dyn FlatTask>, rate: f64) -> Self {
        let opt = Adam { epsilon_root: 0.0, ..Adam::new(rate) };
        let params = task.init(Key::new(1));
        let grad = vec![0.0; params.data.len()];
        let state = opt.init(&params, None, Key::new(1));
        Trainer { opt, state, evaluator: task.evaluator(), grad, step: 0 }
    }
    pub fn step(&mut self) {
        let at = BatchKey::train(self.step, Key::new(2));
        let loss = self.evaluator.loss_and_grad(&self.state.params, &mut [], at, &mut self.grad);
        self.opt.update(&mut self.state, &self.grad, loss, Key::new(2));
        self.step += 1;
    }
}

/// Multiply-adds per row of a network's layers.
pub fn products(widths: &[usize]) -> f64 {
    widths.windows(2).map(|w| (w[0] * w[1]) as f64).sum()
}

/// Multiply-adds per row of its training: forwards, backwards to weights and units, but not to the inputs.
pub fn trained_products(widths: &[usize]) -> f64 {
    3.0 * products(widths) - products(&widths[..2])
}

/// Prints torch's milliseconds of another machine over ours.
pub fn against(group: &mut Group<'_>, name: &str, time: Option<Timing>, torch: f64) {
    if let Some(time) = time {
        let torch = Timing { median: 1e-3 * torch, best: 1e-3 * torch };
        group.ratio(&format!("torch elsewhere / ours, {name}"), torch, time);
    }
}
