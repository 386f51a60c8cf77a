//! The pendulum's swing-up: a horizon of torques as one solution, exact gradients by the adjoint recursion.
//!
//! State `(θ, ω)`, θ = 0 upright, `dt = 0.05`, `g = 10`, `m = l = 1`; torques clipped to `[-2, 2]`. A step costs
//! `wrap(θ)² + 0.1 ω² + 0.001 u²`, with the state before it and the clipped torque;
//! `ω' = clip(ω + (15 sin θ + 3 u) dt, ±8)`, `θ' = θ + ω' dt`. A clip passes gradients inside, its bounds included.

use crate::problem::{Own, Problem, Query, Rows};
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, PutTape, Tensor};
use outerloop_core::Key;
use rand::Rng;
use std::f64::consts::PI;

/// Seconds per step.
const DT: f64 = 0.05;
/// Largest torque.
pub const MAX_TORQUE: f64 = 2.0;
/// Largest angular velocity.
const MAX_SPEED: f64 = 8.0;

/// A rollout.
#[derive(Clone, Debug)]
pub struct Rollout<E = f64> {
    /// States before each step, and after the last, `[H + 1]`.
    pub states: Vec<[E; 2]>,
    /// Cost of each step, `[H]`.
    pub costs: Vec<E>,
    /// Gradient of the total cost by the torques, `[H]`.
    pub grad: Vec<E>,
}

impl<E: Float> Rollout<E> {
    /// The sum of the costs.
    pub fn total(&self) -> E {
        self.costs.iter().copied().sum()
    }
}

fn clip<E: Float>(x: E, bound: f64) -> (E, E) {
    let b = E::of(bound);
    let inside = if x >= -b && x <= b { E::of(1.0) } else { E::of(0.0) };
    (
        if x > b {
            b
        } else if x < -b {
            -b
        } else {
            x
        },
        inside,
    )
}

/// `θ − 2π floor((θ + π)/(2π))`
pub fn wrap<E: Float>(theta: E) -> E {
    theta - E::of(2.0 * PI) * ((theta + E::of(PI)) / E::of(2.0 * PI)).floor()
}

/// Rolls torques out from a state.
pub fn rollout<E: Float>(start: [E; 2], torques: &[E]) -> Rollout<E> {
    let k = E::of;
    let (mut states, mut costs, mut inside) = (vec![start], Vec::new(), Vec::new());
    for u in torques {
        let [theta, omega] = states[states.len() - 1];
        let (u, torque_inside) = clip(*u, MAX_TORQUE);
        let angle = wrap(theta);
        costs.push(angle * angle + k(0.1) * omega * omega + k(0.001) * u * u);
        let (omega, speed_inside) = clip(omega + (k(15.0) * theta.sin() + k(3.0) * u) * k(DT), MAX_SPEED);
        inside.push([torque_inside, speed_inside]);
        states.push([theta + omega * k(DT), omega]);
    }
    let mut grad = vec![k(0.0); torques.len()];
    // Adjoints of the state after the step.
    let (mut by_theta, mut by_omega) = (k(0.0), k(0.0));
    for t in (0..torques.len()).rev() {
        let [theta, omega] = states[t];
        let [torque_inside, speed_inside] = inside[t];
        let before_clip = speed_inside * (by_omega + k(DT) * by_theta);
        let u = clip(torques[t], MAX_TORQUE).0;
        grad[t] = torque_inside * (k(0.002) * u + k(3.0 * DT) * before_clip);
        by_theta = by_theta + k(15.0 * DT) * theta.cos() * before_clip + k(2.0) * wrap(theta);
        by_omega = before_clip + k(0.2) * omega;
    }
    Rollout { states, costs, grad }
}

/// Choosing a whole horizon of torques for a state, as a [`Problem`].
///
/// Context: `[θ, ω]`, θ uniform on a turn, ω on `[-1, 1]`; features `[cos θ, sin θ, ω]`; solution: torques in units of
/// 2 within the open box.
#[derive(Clone, Debug)]
pub struct Pendulum {
    /// Steps H; default 20.
    pub horizon: usize,
}

impl Default for Pendulum {
    fn default() -> Self {
        Pendulum { horizon: 20 }
    }
}

impl Problem for Pendulum {
    fn name(&self) -> String {
        format!("pendulum{}", self.horizon)
    }
    fn dim(&self) -> usize {
        self.horizon
    }
    fn context_dim(&self) -> usize {
        2
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        let mut rng = key.rng();
        out[0] = PI * (2.0 * rng.gen::<f64>() - 1.0);
        out[1] = 2.0 * rng.gen::<f64>() - 1.0;
    }
    fn features_dim(&self) -> usize {
        3
    }
    fn features<E: Float, B: Backend<E>>(&self, x: &Rows<E, B>) -> Rows<E, B> {
        let theta = ops::columns(x.clone(), 0, 1usize);
        let circle = ops::concat(ops::cos(theta.clone()), &ops::sin(theta));
        ops::concat(circle, &ops::columns(x.clone(), 1, 1usize))
    }
    fn domain(&self) -> crate::problem::Domain {
        crate::problem::Domain::Box
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let n = y.shape().0;
        let column = |i: usize| ops::columns(at.x.clone(), i, 1usize).put_tape(M::default());
        let (mut theta, mut omega) = (column(0), column(1));
        let mut cost = ops::scale(theta.clone(), 0.0);
        for t in 0..self.horizon {
            let u = ops::scale(ops::columns(y.clone(), t, 1usize), MAX_TORQUE);
            // wrap(θ) has slope 1 almost everywhere.
            let angle = ops::map(theta.clone(), |x: E| [wrap(x), E::of(1.0), E::of(0.0)]);
            let state = ops::add(ops::square(angle), &ops::scale(ops::square(omega.clone()), 0.1));
            cost = ops::add(cost, &ops::add(state, &ops::scale(ops::square(u.clone()), 0.001)));
            let push = ops::add(ops::scale(ops::sin(theta.clone()), 15.0 * DT), &ops::scale(u, 3.0 * DT));
            omega = ops::clip(ops::add(omega, &push), -MAX_SPEED, MAX_SPEED);
            theta = ops::add(theta, &ops::scale(omega.clone(), DT));
        }
        ops::reshape(cost, (n,))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ContextTask;

    #[test]
    fn the_problem_is_the_rollout() {
        let x = [2.5, -0.7, -0.3, 0.2];
        let mut y = vec![0.0f64; 12];
        Key::new(1).fill_normal(&mut y);
        let task = ContextTask {
            problem: Pendulum { horizon: 6 },
            contexts: x.to_vec(),
            own: Vec::new(),
            start: Vec::new(),
        };
        let values = task.values(&y, Key::new(0));
        for i in 0..2 {
            let torques: Vec<f64> = y[6 * i..][..6].iter().map(|y| 2.0 * y.tanh()).collect();
            let want = rollout([x[2 * i], x[2 * i + 1]], &torques).total();
            assert!((values[i] - want).abs() < 1e-12, "{values:?} {want}");
        }
    }
}
