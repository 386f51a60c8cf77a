//! Further policies of linear-quadratic control: stochastic ones, and several actions at once.

use super::lqr::Lqr;
use crate::matrix::Matrix;
use crate::problem::{Optimum, Own, Problem, Query, Rows};
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, Mode, PutTape, Tensor};
use outerloop_core::Key;

/// A matrix as a tensor.
fn tensor<E: Float, B: Backend<E>>(x: &Rows<E, B>, m: &Matrix) -> Rows<E, B> {
    x.device().tensor_from_vec(m.data.iter().map(|x| E::of(*x)).collect(), (m.rows, m.cols))
}

/// `zᵀ M z` of every row.
fn forms<E: Float, B: Backend<E>, M: Mode<E, B>>(
    z: Rows<E, B, M>,
    m: &Rows<E, B>,
) -> Tensor<(usize,), E, B, M> {
    ops::sum_axis1(ops::mul(ops::matmul(z.clone(), m), &z))
}

/// A Gaussian policy for a state: the solution is `[mean, ln std]` of the action, `2 m` numbers, the objective
/// `τ KL(π ‖ exp(−Q/τ)/Z)` up to a constant, `E Q(x, u) − τ Σ ln std`, in closed form: that of soft policy improvement with
/// the known Q.
///
/// Optimum among policies with independent components: the mean is the optimal action, `stdᵢ² = τ/Hᵢᵢ` with the Hessian
/// `H = 2 (R + BᵀPB)` of Q.
///
/// Reference: Haarnoja et al. 2018, arXiv:1801.01290.
#[derive(Clone, Debug)]
pub struct SoftPolicy {
    /// System and Q.
    pub lqr: Lqr,
    /// The temperature τ.
    pub temperature: f64,
}

impl Problem for SoftPolicy {
    fn name(&self) -> String {
        "lqr_soft".into()
    }
    fn dim(&self) -> usize {
        2 * self.lqr.b.cols
    }
    fn context_dim(&self) -> usize {
        self.lqr.a.rows
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        key.fill_normal(out);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let (lqr, m) = (&self.lqr, self.lqr.b.cols);
        let (mean, log_std) = (ops::columns(y.clone(), 0, m), ops::columns(y, m, m));
        let t = |m: &Matrix| tensor(at.x, m);
        let ahead = ops::matmul(at.x.clone(), &t(&lqr.a.t()));
        let next = ops::add(ops::matmul(mean.clone(), &t(&lqr.b.t())), &ahead);
        let known = forms(at.x.clone(), &t(&lqr.q));
        let at_mean = ops::add(ops::add(forms(mean, &t(&lqr.r)), &forms(next, &t(&lqr.p))), &known);
        // E Q = Q(mean) + ½ Σ Hᵢᵢ stdᵢ²
        let h = lqr.q_hessian();
        let half: Vec<E> = (0..m).map(|i| E::of(0.5 * h.at(i, i))).collect();
        let half: Rows<E, B> = at.x.device().tensor_from_vec(half, (m, 1));
        let ones: Rows<E, B> = at.x.device().tensor_from_vec(vec![E::of(self.temperature); m], (m, 1));
        let spread = ops::matmul(ops::exp(ops::scale(log_std.clone(), 2.0)), &half);
        let bonus = ops::sub(spread, &ops::matmul(log_std, &ones));
        ops::add(at_mean, &ops::sum_axis1(bonus))
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        let (h, tau) = (self.lqr.q_hessian(), self.temperature);
        let mut y = self.lqr.optimal_action(context);
        let m = y.len();
        let logs: Vec<f64> = (0..m).map(|i| 0.5 * (tau / h.at(i, i)).ln()).collect();
        let extra: f64 = logs.iter().map(|l| 0.5 * tau - tau * l).sum();
        y.extend(&logs);
        Some(Optimum { y, value: self.lqr.optimal_cost(context) + extra })
    }
}

/// All actions of a short horizon for a state, through the known dynamics: model-based control. The solution is
/// `[u₁, ..., u_H]`, the objective the cost of H steps and `xᵀPx` of the state after them.
#[derive(Clone, Debug)]
pub struct Shooting {
    /// The system.
    pub lqr: Lqr,
    /// Actions H.
    pub horizon: usize,
}

impl Problem for Shooting {
    fn name(&self) -> String {
        format!("lqr_shooting{}", self.horizon)
    }
    fn dim(&self) -> usize {
        self.horizon * self.lqr.b.cols
    }
    fn context_dim(&self) -> usize {
        self.lqr.a.rows
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        key.fill_normal(out);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let (lqr, m) = (&self.lqr, self.lqr.b.cols);
        let [a, b, q, r, p] = [&lqr.a.t(), &lqr.b.t(), &lqr.q, &lqr.r, &lqr.p].map(|m| tensor(at.x, m));
        let mut state: Rows<E, B, M> = at.x.clone().put_tape(M::default());
        let mut cost = forms(state.clone(), &q);
        for t in 0..self.horizon {
            let u = ops::columns(y.clone(), t * m, m);
            cost = ops::add(cost, &forms(u.clone(), &r));
            state = ops::add(ops::matmul(state, &a), &ops::matmul(u, &b));
            let weight = if t + 1 == self.horizon { &p } else { &q };
            cost = ops::add(cost, &forms(state.clone(), weight));
        }
        cost
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        let actions = self.lqr.follow(&self.lqr.gains(&self.lqr.p, self.horizon), context);
        Some(Optimum { y: actions.concat(), value: self.lqr.optimal_cost(context) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ContextTask;
    use outerloop_core::{BatchKey, FlatTask, Typed};

    /// Value and slope at the optimum that a problem states.
    fn check<P: Problem>(problem: P) {
        let mut x = vec![0.0; problem.context_dim()];
        problem.context(Key::new(4), &mut x);
        let best = problem.optimum(&x).expect("known");
        let task = ContextTask { problem, contexts: x, own: Vec::new(), start: Vec::new() };
        let flat: Box<dyn FlatTask<f64>> = Box::new(Typed::new(task));
        let mut grad = vec![0.0; best.y.len()];
        let at = BatchKey::train(0, Key::new(0));
        let value = flat.evaluator().loss_and_grad(&best.y, &mut [], at, &mut grad);
        assert!((value - best.value).abs() < 1e-10 * value.abs(), "{value}, not {}", best.value);
        assert!(grad.iter().all(|g| g.abs() < 1e-9), "{grad:?}");
        let off = flat.evaluator().loss_and_grad(&vec![0.3; best.y.len()], &mut [], at, &mut grad);
        assert!(off > value);
    }

    #[test]
    fn stated_optima_are_optima() {
        let a = Matrix::new(2, 2, vec![1.0, 0.2, -0.1, 0.9]);
        let b = Matrix::new(2, 2, vec![0.3, 0.0, 0.1, 0.5]);
        let lqr = Lqr::new(a, b, Matrix::identity(2), Matrix::identity(2).scaled(0.2));
        check(SoftPolicy { lqr: lqr.clone(), temperature: 0.3 });
        check(Shooting { lqr, horizon: 3 });
    }
}
