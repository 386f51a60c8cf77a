//! Solvers of a single problem, for baselines and oracles: any optimizer of the project, and the cross-entropy
//! method for objectives without gradients.

use outerloop_core::{Float, Key, Layout, Optimizer, Params};
use std::sync::Arc;

/// Runs an optimizer from `start` for `steps` updates; `f` returns the objective and writes its gradient. `seen` gets
/// the number of updates done and the iterate, before the first and after each.
pub fn minimize<E: Float>(
    opt: &dyn Optimizer<E>,
    start: &[E],
    steps: u64,
    mut f: impl FnMut(&[E], &mut [E]) -> E,
    mut seen: impl FnMut(u64, &[E]),
) -> Vec<E> {
    let layout = Arc::new(Layout::new([("y", vec![start.len()])]));
    let params = Params { layout, data: start.to_vec() };
    let mut state = opt.init(&params, Some(steps), Key::new(0));
    let mut grad = vec![E::of(0.0); start.len()];
    seen(0, &state.params);
    for step in 1..=steps {
        let loss = f(&state.params, &mut grad);
        opt.update(&mut state, &grad, loss, Key::new(0));
        seen(step, &state.params);
    }
    opt.evaluation_params(&state).into_owned()
}

/// The cross-entropy method: the normal of the best samples, again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Samples per iteration; default 200.
    pub samples: usize,
    /// Best samples that make the next normal; default 20.
    pub elites: usize,
    /// Iterations; default 30.
    pub iterations: usize,
    /// Standard deviation at the start; default 1.5.
    pub std: f64,
    /// Samples are clipped to plus and minus this; default 2.
    pub bound: f64,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy { samples: 200, elites: 20, iterations: 30, std: 1.5, bound: 2.0 }
    }
}

impl CrossEntropy {
    /// The final mean for an objective of `dim` numbers, from mean 0. Standard deviations are those of the elites (over
    /// their number), without smoothing.
    pub fn minimize(&self, dim: usize, f: impl Fn(&[f64]) -> f64, key: Key) -> Vec<f64> {
        let (mut mean, mut std) = (vec![0.0; dim], vec![self.std; dim]);
        for iteration in 0..self.iterations {
            let mut samples: Vec<(f64, Vec<f64>)> = (0..self.samples)
                .map(|s| {
                    let mut x = vec![0.0; dim];
                    key.fold_in(iteration as u64).fold_in(s as u64).fill_normal(&mut x);
                    for ((x, m), s) in x.iter_mut().zip(&mean).zip(&std) {
                        *x = (m + s * *x).clamp(-self.bound, self.bound);
                    }
                    (f(&x), x)
                })
                .collect();
            samples.sort_by(|a, b| a.0.total_cmp(&b.0));
            let elites = &samples[..self.elites.min(samples.len())];
            let n = elites.len() as f64;
            for i in 0..dim {
                mean[i] = elites.iter().map(|e| e.1[i]).sum::<f64>() / n;
                std[i] = (elites.iter().map(|e| (e.1[i] - mean[i]).powi(2)).sum::<f64>() / n).sqrt();
            }
        }
        mean
    }
}
