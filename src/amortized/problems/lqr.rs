//! Linear-quadratic control: the Riccati policy as exact oracle, the Q function, shooting with a short horizon.
//!
//! `x' = A x + B u`, cost `Σ xᵀQx + uᵀRu` (no ½, no discount). The context is a state, the solution an action, the
//! objective the cost-to-go of one free action, `Q(x, u) = xᵀQx + uᵀRu + (Ax+Bu)ᵀP(Ax+Bu)`: the deterministic policy
//! gradient with a known Q.

use crate::matrix::Matrix;
use crate::problem::{Optimum, Own, Problem, Query, Rows};
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, Mode, Tensor};
use outerloop_core::Key;

/// A linear system with quadratic costs, and its solution.
#[derive(Clone, Debug)]
pub struct Lqr<E = f64> {
    /// `[n, n]`
    pub a: Matrix<E>,
    /// `[n, m]`
    pub b: Matrix<E>,
    /// `[n, n]`, symmetric.
    pub q: Matrix<E>,
    /// `[m, m]`, symmetric, positive definite.
    pub r: Matrix<E>,
    /// The stabilizing solution of the Riccati equation, `[n, n]`.
    pub p: Matrix<E>,
    /// The optimal gain, `[m, n]`: `u = −K x`.
    pub k: Matrix<E>,
}

impl Lqr<f64> {
    /// Solves a system by value iteration, to rounding.
    pub fn new(a: Matrix, b: Matrix, q: Matrix, r: Matrix) -> Self {
        let mut lqr = Lqr { p: q.clone(), k: Matrix::zeros(b.cols, a.rows), a, b, q, r };
        for _ in 0..200_000 {
            let (k, p) = lqr.back(&lqr.p);
            let change = p.plus(-1.0, &lqr.p).data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            let size = p.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            (lqr.k, lqr.p) = (k, p);
            if change <= 1e-16 * size {
                break;
            }
        }
        lqr.k = lqr.back(&lqr.p).0;
        lqr
    }

    /// One step of dynamic programming: the gain and the cost matrix before a step that ends at cost `p`.
    fn back(&self, p: &Matrix) -> (Matrix, Matrix) {
        let bp = self.b.t().mul(p);
        let k = self.r.plus(1.0, &bp.mul(&self.b)).solve(&bp.mul(&self.a)).0;
        let closed = self.a.plus(-1.0, &self.b.mul(&k));
        // Joseph's form stays symmetric and positive.
        let cost = p.congruent(&closed.t()).plus(1.0, &self.q).plus(1.0, &self.r.congruent(&k.t()));
        (k, cost.symmetric())
    }

    /// The spectral radius of `A − B K`.
    pub fn closed_loop_radius(&self) -> f64 {
        self.a.plus(-1.0, &self.b.mul(&self.k)).spectral_radius()
    }

    /// The same numbers in another precision.
    pub fn cast<E: Float>(&self) -> Lqr<E> {
        let of = |m: &Matrix| Matrix::new(m.rows, m.cols, m.data.iter().map(|x| E::of(*x)).collect());
        Lqr { a: of(&self.a), b: of(&self.b), q: of(&self.q), r: of(&self.r), p: of(&self.p), k: of(&self.k) }
    }

    /// Shooting over `horizon` actions with terminal cost `xᵀ terminal x`: gains of each step, first to last.
    pub fn gains(&self, terminal: &Matrix, horizon: usize) -> Vec<Matrix> {
        let mut p = terminal.clone();
        let mut gains: Vec<Matrix> = (0..horizon)
            .map(|_| {
                let (k, before) = self.back(&p);
                p = before;
                k
            })
            .collect();
        gains.reverse();
        gains
    }

    /// The actions that gains choose from `x`.
    pub fn follow(&self, gains: &[Matrix], x: &[f64]) -> Vec<Vec<f64>> {
        let mut x = x.to_vec();
        let step = |k: &Matrix| {
            let u: Vec<f64> = k.apply(&x).iter().map(|u| -u).collect();
            x = self.next(&x, &u);
            u
        };
        gains.iter().map(step).collect()
    }

    /// Cost of actions from `x` and its gradient, `[H][m]`, by the adjoint recursion.
    pub fn shooting(&self, x: &[f64], actions: &[Vec<f64>], terminal: &Matrix) -> (f64, Vec<Vec<f64>>) {
        let mut states = vec![x.to_vec()];
        for u in actions {
            let next = self.next(&states[states.len() - 1], u);
            states.push(next);
        }
        let last = &states[actions.len()];
        let mut cost = terminal.form(last, last);
        // λ_t = 2 Q x_t + Aᵀ λ_{t+1};  ∂/∂u_t = 2 R u_t + Bᵀ λ_{t+1}
        let mut adjoint: Vec<f64> = terminal.apply(last).iter().map(|l| 2.0 * l).collect();
        let mut grads = Vec::new();
        for (u, x) in actions.iter().zip(&states).rev() {
            cost += self.q.form(x, x) + self.r.form(u, u);
            let (own, back) = (self.r.apply(u), self.b.t().apply(&adjoint));
            grads.push(own.iter().zip(back).map(|(o, b)| 2.0 * o + b).collect());
            let (own, back) = (self.q.apply(x), self.a.t().apply(&adjoint));
            adjoint = own.iter().zip(back).map(|(o, b)| 2.0 * o + b).collect();
        }
        grads.reverse();
        (cost, grads)
    }

    /// The Hessian of [`Self::shooting`]'s cost in the actions, `[H m, H m]`: the cost is quadratic, so columns are
    /// exact differences of gradients.
    pub fn shooting_hessian(&self, horizon: usize, terminal: &Matrix) -> Matrix {
        let (n, m) = (self.a.rows, self.b.cols);
        let size = horizon * m;
        let column = |i: usize| {
            let actions = (0..horizon).map(|t| (0..m).map(|j| f64::from(u8::from(t * m + j == i))).collect());
            self.shooting(&vec![0.0; n], &actions.collect::<Vec<_>>(), terminal).1.concat()
        };
        Matrix::new(size, size, (0..size).flat_map(column).collect()).t()
    }
}

impl<E: Float> Lqr<E> {
    /// `A x + B u`
    pub fn next(&self, x: &[E], u: &[E]) -> Vec<E> {
        self.a.apply(x).iter().zip(self.b.apply(u)).map(|(a, b)| *a + b).collect()
    }
    /// `Q(x, u)` and its gradient in the action, `2 (R u + Bᵀ P (A x + B u))`.
    pub fn q_value(&self, x: &[E], u: &[E]) -> (E, Vec<E>) {
        let next = self.next(x, u);
        let value = self.q.form(x, x) + self.r.form(u, u) + self.p.form(&next, &next);
        let (own, ahead) = (self.r.apply(u), self.b.t().apply(&self.p.apply(&next)));
        (value, own.iter().zip(ahead).map(|(o, a)| E::of(2.0) * (*o + a)).collect())
    }
    /// The Hessian of `Q` in the action, `2 (R + Bᵀ P B)`.
    pub fn q_hessian(&self) -> Matrix<E> {
        self.p.congruent(&self.b.t()).plus(1.0, &self.r).scaled(2.0)
    }
    /// The cost of the optimal policy, `xᵀ P x`.
    pub fn optimal_cost(&self, x: &[E]) -> E {
        self.p.form(x, x)
    }
    /// The optimal action, `−K x`.
    pub fn optimal_action(&self, x: &[E]) -> Vec<E> {
        self.k.apply(x).iter().map(|u| -*u).collect()
    }
    /// `E Q(x, −K̃ x)` over `x ~ N(0, I)` and its gradient in `K̃`, `2 (R + BᵀPB)(K̃ − K)`.
    pub fn expected_q(&self, gain: &Matrix<E>) -> (E, Matrix<E>) {
        let closed = self.a.plus(-1.0, &self.b.mul(gain));
        let cost = self.q.plus(1.0, &self.r.congruent(&gain.t())).plus(1.0, &self.p.congruent(&closed.t()));
        // R K̃ − Bᵀ P (A − B K̃), which is (R + BᵀPB)(K̃ − K) without the optimal gain.
        let grad = self.r.mul(gain).plus(-1.0, &self.b.t().mul(&self.p).mul(&closed)).scaled(2.0);
        (cost.trace(), grad)
    }
    /// The mean of `Q(x, −K̃ x)` over states and its gradient in `K̃`.
    pub fn batch_q(&self, gain: &Matrix<E>, states: &[Vec<E>]) -> (E, Matrix<E>) {
        let share = 1.0 / states.len() as f64;
        let mut sum = (E::of(0.0), Matrix::zeros(gain.rows, gain.cols));
        for x in states {
            let u: Vec<E> = gain.apply(x).iter().map(|u| -*u).collect();
            let (value, grad) = self.q_value(x, &u);
            let row = Matrix::new(1, x.len(), x.clone());
            sum.0 += E::of(share) * value;
            sum.1 = sum.1.plus(-share, &Matrix::column(&grad).mul(&row));
        }
        sum
    }
    /// The mean cost of a linear policy from states, over `steps` steps.
    pub fn rollout_cost(&self, gain: &Matrix<E>, states: &[Vec<E>], steps: usize) -> E {
        let cost = |x: &Vec<E>| {
            let (mut x, mut sum) = (x.clone(), E::of(0.0));
            for _ in 0..steps {
                let u: Vec<E> = gain.apply(&x).iter().map(|u| -*u).collect();
                sum = sum + self.q.form(&x, &x) + self.r.form(&u, &u);
                x = self.next(&x, &u);
            }
            sum
        };
        states.iter().map(cost).sum::<E>() / E::of(states.len() as f64)
    }
}

/// Choosing an action for a state, as a [`Problem`]: the objective is the known Q.
#[derive(Clone, Debug)]
pub struct LqrPolicy(pub Lqr);

impl Problem for LqrPolicy {
    fn name(&self) -> String {
        "lqr".into()
    }
    fn dim(&self) -> usize {
        self.0.b.cols
    }
    fn context_dim(&self) -> usize {
        self.0.a.rows
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
        let dev = at.x.device().clone();
        let matrix = |m: &Matrix| -> Rows<E, B> {
            dev.tensor_from_vec(m.data.iter().map(|x| E::of(*x)).collect(), (m.rows, m.cols))
        };
        let form =
            |z: Rows<E, B, M>, m: &Matrix| ops::sum_axis1(ops::mul(ops::matmul(z.clone(), &matrix(m)), &z));
        let ahead = ops::matmul(at.x.clone(), &matrix(&self.0.a.t()));
        let next = ops::add(ops::matmul(y.clone(), &matrix(&self.0.b.t())), &ahead);
        let state = ops::sum_axis1(ops::mul(ops::matmul(at.x.clone(), &matrix(&self.0.q)), at.x));
        ops::add(ops::add(form(y, &self.0.r), &form(next, &self.0.p)), &state)
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        Some(Optimum { y: self.0.optimal_action(context), value: self.0.optimal_cost(context) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::dot;

    #[test]
    fn a_scalar_system_has_the_root_of_its_quadratic() {
        let m = |x: f64| Matrix::new(1, 1, vec![x]);
        let lqr = Lqr::new(m(1.2), m(0.7), m(0.5), m(0.3));
        // p = q + a² p r/(r + b² p), so b² p² + p (r − q b² − a² r) − q r = 0
        let (b2, c) = (0.49, 0.3 - 0.5 * 0.49 - 1.44 * 0.3);
        let p = (-c + f64::sqrt(c * c + 4.0 * b2 * 0.15)) / (2.0 * b2);
        assert!((lqr.p.data[0] - p).abs() < 1e-14);
        let (_, slope) = lqr.q_value(&[0.8], &lqr.optimal_action(&[0.8]));
        assert!(dot(&slope, &slope) < 1e-28);
    }
}
