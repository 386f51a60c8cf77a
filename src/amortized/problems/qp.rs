//! Quadratic programs solved by ADMM whose step parameter ρ a policy chooses (RLQP).
//!
//! `min ½ yᵀP y + qᵀy` subject to `l ≤ A y ≤ u`, by the iteration of OSQP with relaxation 1.6 and σ = 1e-6:
//! `ỹ = (P + σI + ρ AᵀA)⁻¹ (σ y − q + Aᵀ(ρ z − v))`, `s = 1.6 A ỹ − 0.6 z`, `y ← 1.6 ỹ − 0.6 y`,
//! `z ← clip(s + v/ρ, l, u)`, `v ← v + ρ (s − z)`. It ends when `|A y − z|` and `|P y + q + Aᵀv|` (largest elements) are
//! small against 1 and their terms. Every ρ converges; which one is fast depends on the program's scale.
//!
//! The number of iterations is no differentiable function of the policy, so the policy is learned by evolution
//! strategies, and with what the project has for that: a program is a task whose training steps are ADMM iterations, the
//! policy is its learned optimizer, and the loss of a step is 1 until the program is solved, then 0. The mean loss of a
//! run times its length is the number of iterations, and any estimator of [`outerloop_outer::estimator`] that asks for
//! losses alone ([`outerloop_outer::FullEs`], [`outerloop_outer::TruncatedPes`]) trains the policy.
//!
//! References: Stellato et al. 2020, *OSQP*, arXiv:1711.08013; Ichnowski et al. 2021, *RLQP*, arXiv:2107.10847.

use crate::matrix::{dot, Matrix};
use outerloop_core::{
    BatchKey, Evaluator, FlatFamily, FlatTask, Key, Layout, LearnedOptimizer, OptState, Optimizer, Params,
};
use std::sync::Arc;

/// Relaxation of the iteration.
const RELAX: f64 = 1.6;
/// Its regularization.
const SIGMA: f64 = 1e-6;
/// `ln ρ` stays within plus and minus this.
const LARGEST_LOG: f32 = 14.0;

/// A program.
#[derive(Clone, Debug)]
pub struct Qp {
    /// `[n, n]`, symmetric, positive semidefinite.
    pub p: Matrix,
    /// `[n]`
    pub q: Vec<f64>,
    /// `[m, n]`
    pub a: Matrix,
    /// Lower bounds, `[m]`.
    pub lower: Vec<f64>,
    /// Upper bounds, `[m]`.
    pub upper: Vec<f64>,
}

/// Where an ADMM iteration is.
#[derive(Clone, Debug, PartialEq)]
pub struct Iterate {
    /// The solution, `[n]`.
    pub y: Vec<f64>,
    /// Its constraints' values, within the bounds, `[m]`.
    pub z: Vec<f64>,
    /// Multipliers, `[m]`.
    pub v: Vec<f64>,
}

/// How far an iterate is from a solution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residuals {
    /// `|A y − z|`, and the size of its terms.
    pub primal: [f64; 2],
    /// `|P y + q + Aᵀv|`, and the size of its terms.
    pub dual: [f64; 2],
}

impl Residuals {
    /// Whether both are at most `tolerance (1 + size)`.
    pub fn are_below(&self, tolerance: f64) -> bool {
        [self.primal, self.dual].iter().all(|[r, size]| *r <= tolerance * (1.0 + size))
    }
    /// Logarithms of both relative to the sizes of their terms.
    fn logs(&self) -> [f32; 2] {
        [self.primal, self.dual].map(|[r, size]| (r / size.max(1e-10)).clamp(1e-10, 1e10).ln() as f32)
    }
}

/// The largest absolute value.
fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

impl Qp {
    /// The start: zeros, `z` within the bounds.
    pub fn start(&self) -> Iterate {
        let z = self.lower.iter().zip(&self.upper).map(|(l, u)| 0f64.clamp(*l, *u)).collect();
        Iterate { y: vec![0.0; self.q.len()], z, v: vec![0.0; self.lower.len()] }
    }

    /// `(P + σI + ρ AᵀA)⁻¹`.
    pub fn factor(&self, rho: f64) -> Matrix {
        let n = self.q.len();
        self.p.plus(SIGMA, &Matrix::identity(n)).plus(rho, &self.a.t().mul(&self.a)).inverse()
    }

    /// One iteration with ρ and its [`Self::factor`].
    pub fn step(&self, at: &mut Iterate, rho: f64, factor: &Matrix) {
        let pull: Vec<f64> = at.z.iter().zip(&at.v).map(|(z, v)| rho * z - v).collect();
        let back = self.a.t().apply(&pull);
        let rhs: Vec<f64> =
            at.y.iter().zip(&self.q).zip(&back).map(|((y, q), b)| SIGMA * y - q + b).collect();
        let ahead = factor.apply(&rhs);
        let shown = self.a.apply(&ahead);
        at.y.iter_mut().zip(&ahead).for_each(|(y, x)| *y = RELAX * x + (1.0 - RELAX) * *y);
        for (i, shown) in shown.iter().enumerate() {
            let s = RELAX * shown + (1.0 - RELAX) * at.z[i];
            at.z[i] = (s + at.v[i] / rho).clamp(self.lower[i], self.upper[i]);
            at.v[i] += rho * (s - at.z[i]);
        }
    }

    /// Residuals of an iterate.
    pub fn residuals(&self, at: &Iterate) -> Residuals {
        let (shown, py, back) = (self.a.apply(&at.y), self.p.apply(&at.y), self.a.t().apply(&at.v));
        let primal: Vec<f64> = shown.iter().zip(&at.z).map(|(a, z)| a - z).collect();
        let dual: Vec<f64> = py.iter().zip(&self.q).zip(&back).map(|((p, q), b)| p + q + b).collect();
        let sizes =
            [largest(&shown).max(largest(&at.z)), largest(&py).max(largest(&back)).max(largest(&self.q))];
        Residuals { primal: [largest(&primal), sizes[0]], dual: [largest(&dual), sizes[1]] }
    }

    /// `½ yᵀP y + qᵀy`.
    pub fn value(&self, y: &[f64]) -> f64 {
        0.5 * self.p.form(y, y) + dot(&self.q, y)
    }
}

/// Random programs: `P = s MᵀM/n + 1e-2 s I` with normal `M` `[n/2, n]`, `q = s·normal`, normal `A`, bounds on both sides
/// of a random point's constraint values; the scale s of the objective is log-uniform over `spread` decades around 1.
#[derive(Clone, Debug, PartialEq)]
pub struct QpFamily {
    /// Variables n; default 10.
    pub variables: usize,
    /// Constraints m; default 20.
    pub constraints: usize,
    /// Decades of the objective's scale; default 4.
    pub spread: f64,
    /// Relative tolerance of a solution; default 1e-4.
    pub tolerance: f64,
    /// Initial ρ; default 0.1, OSQP's.
    pub rho: f64,
}

impl Default for QpFamily {
    fn default() -> Self {
        QpFamily { variables: 10, constraints: 20, spread: 4.0, tolerance: 1e-4, rho: 0.1 }
    }
}

impl QpFamily {
    /// The program of a key.
    pub fn program(&self, key: Key) -> Qp {
        let (n, m) = (self.variables, self.constraints);
        let normal = |name: &str, len: usize| {
            let mut x = vec![0.0; len];
            key.named(name).fill_normal(&mut x);
            x
        };
        let scale = 10f64.powf(self.spread * (key.named("scale").uniform() - 0.5));
        let half = n.div_ceil(2);
        let root = Matrix::new(half, n, normal("root", half * n));
        let p = root.t().mul(&root).scaled(scale / n as f64).plus(1e-2 * scale, &Matrix::identity(n));
        let a = Matrix::new(m, n, normal("a", m * n));
        let inside = a.apply(&normal("inside", n));
        let room = |name: &str, i: usize| key.named(name).fold_in(i as u64).uniform();
        Qp {
            q: normal("q", n).iter().map(|q| scale * q).collect(),
            lower: inside.iter().enumerate().map(|(i, x)| x - room("below", i)).collect(),
            upper: inside.iter().enumerate().map(|(i, x)| x + room("above", i)).collect(),
            p,
            a,
        }
    }

    /// The program of a key as a task.
    pub fn task(&self, key: Key) -> QpTask {
        QpTask { program: Arc::new(self.program(key)), tolerance: self.tolerance, rho: self.rho }
    }

    /// Iterations that a rule for ρ needs for the program of a key; `most` if it is not solved by then.
    pub fn iterations(&self, rule: &dyn Optimizer, key: Key, most: u64) -> u64 {
        let task = self.task(key);
        let mut state = rule.init(&task.init(key), Some(most), key);
        let (mut model, mut evaluator, mut grad) = (task.init_state(), task.evaluator(), vec![0.0; 3]);
        for t in 0..most {
            let loss = evaluator.loss_and_grad(&state.params, &mut model, BatchKey::train(t, key), &mut grad);
            if loss == 0.0 {
                return t;
            }
            rule.update(&mut state, &grad, loss, key);
        }
        most
    }
}

impl FlatFamily for QpFamily {
    fn name(&self) -> String {
        format!("qp{}x{}", self.variables, self.constraints)
    }
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask> {
        Arc::new(self.task(key))
    }
}

/// A program as a task for a policy: its parameters are what the policy sees and sets, `ln ρ` and the logarithms of the
/// primal and dual residual; the model state is the iterate; the gradient is the old residuals minus the new ones, so
/// that an optimizer that subtracts it sees the new ones.
#[derive(Clone)]
pub struct QpTask {
    program: Arc<Qp>,
    tolerance: f64,
    rho: f64,
}

impl QpTask {
    /// `[y, z, v]` in a buffer.
    fn pack(at: &Iterate) -> Vec<f32> {
        at.y.iter().chain(&at.z).chain(&at.v).map(|x| *x as f32).collect()
    }
    fn unpack(&self, state: &[f32]) -> Iterate {
        let (n, m) = (self.program.q.len(), self.program.lower.len());
        let part = |from: usize, len: usize| state[from..from + len].iter().map(|x| f64::from(*x)).collect();
        Iterate { y: part(0, n), z: part(n, m), v: part(n + m, m) }
    }
}

impl FlatTask for QpTask {
    fn name(&self) -> String {
        "qp".into()
    }
    fn layout(&self) -> Arc<Layout> {
        Arc::new(Layout::new(["log_rho", "log_primal", "log_dual"].map(|n| (n, vec![]))))
    }
    fn init(&self, _: Key) -> Params {
        let [primal, dual] = self.program.residuals(&self.program.start()).logs();
        Params { layout: self.layout(), data: vec![self.rho.ln() as f32, primal, dual] }
    }
    fn init_state(&self) -> Vec<f32> {
        Self::pack(&self.program.start())
    }
    fn evaluator(&self) -> Box<dyn Evaluator> {
        Box::new(AdmmEvaluator { task: self.clone(), factors: Vec::new() })
    }
    fn normalizer(&self, loss: f64) -> f64 {
        loss
    }
}

/// Runs iterations. Factors are kept for the last two ρ: those of an antithetic pair.
struct AdmmEvaluator {
    task: QpTask,
    factors: Vec<(f32, Matrix)>,
}

impl AdmmEvaluator {
    fn unsolved(&self, state: &[f32]) -> f32 {
        let residuals = self.task.program.residuals(&self.task.unpack(state));
        f32::from(u8::from(!residuals.are_below(self.task.tolerance)))
    }
}

impl Evaluator for AdmmEvaluator {
    fn loss(&mut self, _: &[f32], state: &[f32], _: BatchKey) -> f32 {
        self.unsolved(state)
    }
    fn loss_and_grad(&mut self, params: &[f32], state: &mut [f32], _: BatchKey, grad: &mut [f32]) -> f32 {
        grad.fill(0.0);
        let loss = self.unsolved(state);
        if loss == 0.0 {
            return loss;
        }
        let (log_rho, rho) = (params[0], f64::from(params[0]).exp());
        if !self.factors.iter().any(|f| f.0 == log_rho) {
            self.factors.truncate(1);
            self.factors.insert(0, (log_rho, self.task.program.factor(rho)));
        }
        let Some((_, factor)) = self.factors.iter().find(|f| f.0 == log_rho) else {
            // A ρ that is no number.
            return f32::NAN;
        };
        let mut at = self.task.unpack(state);
        self.task.program.step(&mut at, rho, factor);
        state.copy_from_slice(&QpTask::pack(&at));
        let logs = self.task.program.residuals(&at).logs();
        (grad[1], grad[2]) = (params[1] - logs[0], params[2] - logs[1]);
        loss
    }
    fn loss_grad_hvp(
        &mut self,
        params: &[f32],
        state: &[f32],
        at: BatchKey,
        _: &[f32],
        grad: &mut [f32],
        hvp: &mut [f32],
    ) -> f32 {
        // The steps of a solver are no gradient of the number of its steps: nothing to differentiate.
        hvp.fill(f32::NAN);
        self.loss_and_grad(params, &mut state.to_vec(), at, grad)
    }
}

/// How ρ is chosen, every `interval` iterations.
#[derive(Clone, Debug, PartialEq)]
pub enum RhoRule {
    /// As it starts.
    Fixed,
    /// OSQP's: times the square root of primal over dual residual, both relative, if that is a change by more than 5.
    Balance,
    /// `ln ρ ← ln ρ + w₂ tanh(W₁ s + b₁) + b₂` of a network with inputs `s = [ln ρ, ln primal, ln dual]/5`.
    Network(Vec<f32>),
}

/// A rule for ρ as an optimizer of [`QpTask`]s.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmmRule {
    /// The rule.
    pub rule: RhoRule,
    /// Iterations between choices; the iteration's matrix is factored anew after each change.
    pub interval: u64,
}

impl AdmmRule {
    /// The next `ln ρ`.
    fn next(&self, seen: &[f32]) -> f32 {
        let [log_rho, primal, dual] = [seen[0], seen[1], seen[2]];
        let change = match &self.rule {
            RhoRule::Fixed => 0.0,
            RhoRule::Balance => {
                let change = 0.5 * (primal - dual);
                if change.abs() > 5f32.ln() {
                    change
                } else {
                    0.0
                }
            }
            RhoRule::Network(theta) => {
                // W₁ [3, H], b₁ [H], w₂ [H], b₂
                let h = theta.len() / 5;
                let unit = |j: usize| {
                    let sum = (0..3).map(|i| theta[i * h + j] * seen[i] / 5.0).sum::<f32>();
                    theta[4 * h + j] * (sum + theta[3 * h + j]).tanh()
                };
                (0..h).map(unit).sum::<f32>() + theta[5 * h]
            }
        };
        (log_rho + change).clamp(-LARGEST_LOG, LARGEST_LOG)
    }
}

impl Optimizer for AdmmRule {
    fn name(&self) -> String {
        "admm_rho".into()
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn init(&self, params: &Params, num_steps: Option<u64>, _: Key) -> OptState {
        OptState::new(params, num_steps)
    }
    fn update(&self, state: &mut OptState, grad: &[f32], _: f32, _: Key) {
        assert_eq!(state.params.len(), grad.len(), "update: length of the gradient");
        state.params.iter_mut().zip(grad).for_each(|(p, g)| *p -= g);
        state.step += 1;
        if state.step % self.interval.max(1) == 0 && state.params.len() == 3 {
            state.params[0] = self.next(&state.params);
        }
    }
}

/// A network that chooses ρ: theta is its weights; at first it leaves ρ alone.
#[derive(Clone, Debug, PartialEq)]
pub struct RhoPolicy {
    /// Hidden units; default 8.
    pub hidden: usize,
    /// Iterations between choices; default 10.
    pub interval: u64,
}

impl Default for RhoPolicy {
    fn default() -> Self {
        RhoPolicy { hidden: 8, interval: 10 }
    }
}

impl LearnedOptimizer for RhoPolicy {
    fn name(&self) -> String {
        "rho_policy".into()
    }
    fn architecture(&self) -> String {
        format!("RhoPolicy(hidden={}, interval={})", self.hidden, self.interval)
    }
    fn theta_layout(&self) -> Arc<Layout> {
        let h = self.hidden;
        Arc::new(Layout::new([("w1", vec![3, h]), ("b1", vec![h]), ("w2", vec![h]), ("b2", vec![])]))
    }
    fn init(&self, key: Key) -> Vec<f32> {
        let mut theta = vec![0.0; 5 * self.hidden + 1];
        key.fill_normal(&mut theta[..4 * self.hidden]);
        theta
    }
    fn opt_fn(&self, theta: &[f32]) -> Box<dyn Optimizer> {
        assert_eq!(theta.len(), 5 * self.hidden + 1, "opt_fn: length of theta");
        Box::new(AdmmRule { rule: RhoRule::Network(theta.to_vec()), interval: self.interval })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::contract::check_learned_optimizer;
    use outerloop_lopt::hand::Adam;
    use outerloop_outer::estimator::{Antithetic, FullLoss};
    use outerloop_outer::{FullEs, GradientLearner, TruncatedStep, TruncationSchedule, Workers};

    #[test]
    fn admm_ends_at_a_solution() {
        let family = QpFamily { tolerance: 1e-9, ..QpFamily::default() };
        let qp = family.program(Key::new(3));
        let (mut at, factor) = (qp.start(), qp.factor(1.0));
        for _ in 0..20_000 {
            qp.step(&mut at, 1.0, &factor);
        }
        assert!(qp.residuals(&at).are_below(1e-8));
        // Multipliers push from active bounds only: the conditions of an optimum.
        let active = at.z.iter().zip(&at.v).enumerate().filter(|(_, (_, v))| v.abs() > 1e-6);
        let mut count = 0;
        for (i, (z, v)) in active {
            let bound = if *v > 0.0 { qp.upper[i] } else { qp.lower[i] };
            assert!((z - bound).abs() < 1e-9, "{i}: {z}, not {bound}");
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn evolution_strategies_make_the_policy_faster() {
        let lopt = Arc::new(RhoPolicy { hidden: 4, ..RhoPolicy::default() });
        check_learned_optimizer::<f32>(&*lopt).expect("the contract");
        let family =
            Arc::new(QpFamily { variables: 4, constraints: 6, tolerance: 1e-3, ..QpFamily::default() });
        let step = TruncatedStep::new(family.clone(), lopt.clone(), TruncationSchedule::Constant(100))
            .expect("valid");
        let common = Antithetic { num_tasks: 32, std: 0.2, ..Antithetic::default() };
        let es = FullEs::new(step, common, FullLoss::Mean).expect("valid");
        let learner = GradientLearner::new(lopt.clone(), vec![Box::new(es)], Box::new(Adam::new(0.05)), 40)
            .expect("valid");
        let workers = Workers::new(1).expect("one thread");
        let mut state = learner.init(Key::new(1), &workers).expect("a state");
        let count = |theta: &[f32]| {
            let rule = lopt.opt_fn(theta);
            (0..100).map(|i| family.iterations(&*rule, Key::new(9).fold_in(i), 100)).sum::<u64>()
        };
        let before = count(&learner.chosen_theta(&state));
        for _ in 0..40 {
            learner.step(&mut state, &workers);
        }
        let after = count(&learner.chosen_theta(&state));
        assert!(after * 10 < before * 8, "{after} iterations after {before}");
    }
}
