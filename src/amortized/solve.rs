//! Solvers of a single problem, for baselines and oracles: any optimizer of the project, the cross-entropy method for
//! objectives without gradients, Anderson mixing for fixed points.

use crate::matrix::{dot, Matrix};
use outerloop_core::{Float, Key, Layout, Optimizer, Params};
use std::collections::VecDeque;
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

/// Anderson mixing for fixed points `y = T(y)`: the next iterate is that of the combination of the last ones (of
/// weights that sum to 1) whose residuals cancel best.
///
/// With `r = T(y) − y` and differences `ΔY`, `ΔR` of the last `memory` iterates and residuals:
/// `c = argmin |r − ΔR c|`, `y ← y + β r − (ΔY + β ΔR) c`. Memory 0 is the damped iteration.
///
/// Reference: Anderson 1965; Walker, Ni 2011, *Anderson Acceleration for Fixed-Point Iterations*.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anderson {
    /// Differences kept; default 5.
    pub memory: usize,
    /// The part β of the residual that is taken; default 1.
    pub mixing: f64,
    /// Added to the diagonal of `ΔRᵀΔR`, relative to its trace; default 1e-14.
    pub ridge: f64,
}

impl Default for Anderson {
    fn default() -> Self {
        Anderson { memory: 5, mixing: 1.0, ridge: 1e-14 }
    }
}

impl Anderson {
    /// The iterates from `start`, which comes first, to the one after `steps` evaluations of the map; ends early at a
    /// residual of exactly 0, or at one that is not finite.
    pub fn iterates(&self, map: impl Fn(&[f64]) -> Vec<f64>, start: &[f64], steps: usize) -> Vec<Vec<f64>> {
        let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let mut path = vec![start.to_vec()];
        let (mut moves, mut bends) = (VecDeque::new(), VecDeque::new());
        let mut last: Option<Vec<f64>> = None;
        for t in 0..steps {
            let y = &path[t];
            let r = minus(&map(y), y);
            let size = dot(&r, &r);
            if size == 0.0 || !size.is_finite() {
                break;
            }
            if let Some(before) = last.filter(|_| self.memory > 0) {
                if moves.len() == self.memory {
                    moves.pop_front();
                    bends.pop_front();
                }
                moves.push_back(minus(y, &path[t - 1]));
                bends.push_back(minus(&r, &before));
            }
            let mut next: Vec<f64> = y.iter().zip(&r).map(|(y, r)| y + self.mixing * r).collect();
            let c = self.coefficients(&bends, &r);
            for ((c, dy), dr) in c.iter().zip(&moves).zip(&bends) {
                for ((n, dy), dr) in next.iter_mut().zip(dy).zip(dr) {
                    *n -= c * (dy + self.mixing * dr);
                }
            }
            path.push(next);
            last = Some(r);
        }
        path
    }

    /// `argmin |r − ΔR c|`, by its normal equations; none where they cannot be solved.
    fn coefficients(&self, bends: &VecDeque<Vec<f64>>, r: &[f64]) -> Vec<f64> {
        let n = bends.len();
        let gram = Matrix::new(n, n, bends.iter().flat_map(|a| bends.iter().map(|b| dot(a, b))).collect());
        let ridge = self.ridge * gram.trace();
        if n == 0 || ridge.is_nan() || ridge <= 0.0 {
            return Vec::new();
        }
        let target = Matrix::column(&bends.iter().map(|b| dot(b, r)).collect::<Vec<f64>>());
        let c = gram.plus(ridge, &Matrix::identity(n)).solve(&target).0.data;
        if c.iter().all(|c| c.is_finite()) {
            c
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a linear map of dimension n, Anderson mixing of memory n is exact after n + 1 evaluations and one step.
    #[test]
    fn anderson_solves_a_linear_system_in_as_many_steps_as_it_has_dimensions() {
        let m = Matrix::new(3, 3, vec![0.5, 0.3, -0.1, 0.2, -0.6, 0.3, 0.1, 0.2, 0.9]);
        let map =
            |y: &[f64]| m.apply(y).iter().zip([1.0, -2.0, 0.5]).map(|(a, b)| a + b).collect::<Vec<f64>>();
        let residual = |y: &[f64]| map(y).iter().zip(y).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let path = Anderson { memory: 3, ..Anderson::default() }.iterates(map, &[0.0; 3], 5);
        assert!(residual(&path[3]) > 1e-3 && residual(&path[5]) < 1e-9, "{}", residual(&path[5]));
        let plain = Anderson { memory: 0, ..Anderson::default() }.iterates(map, &[0.0; 3], 5);
        let mut y = vec![0.0; 3];
        (0..5).for_each(|_| y = map(&y));
        assert!(plain[5].iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-14));
    }
}
