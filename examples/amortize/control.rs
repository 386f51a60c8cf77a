//! Policies: LQR against the Riccati solution, the pendulum against Adam and the cross-entropy method.

use crate::{mean, table, Options};
use outerloop::amortized::evaluate::{amortization_gap, GapConfig};
use outerloop::amortized::loss::Loss;
use outerloop::amortized::matrix::Matrix;
use outerloop::amortized::model::{Full, Model, Semi};
use outerloop::amortized::problem::Problem;
use outerloop::amortized::problems::lqr::{Lqr, LqrPolicy};
use outerloop::amortized::problems::lqr_policies::{Shooting, SoftPolicy};
use outerloop::amortized::problems::pendulum::{rollout, Pendulum, MAX_TORQUE};
use outerloop::amortized::solve::CrossEntropy;
use outerloop::amortized::task::{AmortizedTask, Pool, Training};
use outerloop::core::{BatchKey, Key, Result, Split, Typed};
use outerloop::lopt::hand::Adam;
use std::sync::Arc;

pub fn run(o: &Options) -> Result<()> {
    lqr(o)?;
    pendulum(o)
}

fn lqr(o: &Options) -> Result<()> {
    let a = Matrix::new(
        4,
        4,
        vec![1.0, 0.1, 0.0, 0.0, 0.0, 1.0, 0.1, 0.0, 0.0, 0.0, 0.9, 0.1, 0.05, 0.0, 0.0, 0.95],
    );
    let b = Matrix::new(4, 2, vec![0.0, 0.0, 0.1, 0.0, 0.0, 0.05, 0.0, 0.1]);
    let problem = LqrPolicy(Lqr::new(a, b, Matrix::identity(4), Matrix::identity(2).scaled(0.3)));
    let key = Key::new(o.seed);
    let expert = Pool::solved(&problem, 2000, key.named("pool"), |x| problem.0.optimal_action(x));
    let linear = Full { hidden: Vec::new(), ..Full::default() };
    let cloning = Training { loss: Loss::Regression, pool: Some(Arc::new(expert)), ..Training::default() };
    let score = Training { loss: Loss::Score { sigma: 0.3, pairs: 4 }, ..Training::default() };
    let mut rows = Vec::new();
    for (name, training) in [("objective", Training::default()), ("cloning", cloning), ("score", score)] {
        let task = AmortizedTask::new(problem.clone(), linear.clone(), training)?;
        let theta = o.train(&format!("lqr-{name}"), Arc::new(Typed::new(task.clone())), 2e-2, 1500)?;
        rows.push((format!("linear policy by {name}"), excess(&problem, &task, &theta, o.seed)));
    }
    rows.extend(further_policies(o, &problem.0)?);
    table(
        "LQR: cost of the action and then the optimal policy, over the Riccati cost, 1000 unseen states",
        &rows,
    );
    Ok(())
}

/// Stochastic policies, and three actions at once.
fn further_policies(o: &Options, lqr: &Lqr) -> Result<Vec<(String, String)>> {
    let linear = Full { hidden: Vec::new(), ..Full::default() };
    let soft = SoftPolicy { lqr: lqr.clone(), temperature: 0.1 };
    let task = AmortizedTask::new(soft.clone(), linear.clone(), Training::default())?;
    let theta = o.train("lqr-soft", Arc::new(Typed::new(task.clone())), 2e-2, 1500)?;
    let x = states(&soft, o.seed);
    let y = task.predict::<f64>(&wide(&theta), &x, Key::new(0)).pop().unwrap_or_default();
    let m = soft.lqr.b.cols;
    let (mut cost, mut best, mut off) = (0.0, 0.0, 0.0f64);
    for (x, y) in x.chunks(4).zip(y.chunks(2 * m)) {
        let want = soft.optimum(x).map_or_else(Vec::new, |o| o.y);
        cost += lqr.q_value(x, &y[..m]).0;
        best += lqr.optimal_cost(x);
        let ratio = |i: usize| (y[i] - want[i]).exp().max((want[i] - y[i]).exp()) - 1.0;
        off = (m..2 * m).map(ratio).fold(off, f64::max);
    }
    let stochastic = format!(
        "+{:.4} % at its mean, standard deviations within {:.2} % of the best",
        100.0 * (cost / best - 1.0),
        100.0 * off
    );
    let shooting = Shooting { lqr: lqr.clone(), horizon: 3 };
    let task = AmortizedTask::new(shooting.clone(), linear, Training::default())?;
    let theta = o.train("lqr-shooting", Arc::new(Typed::new(task.clone())), 2e-2, 1500)?;
    let x = states(&shooting, o.seed);
    let y = task.predict::<f64>(&wide(&theta), &x, Key::new(0)).pop().unwrap_or_default();
    let (mut cost, mut best) = (0.0, 0.0);
    for (x, y) in x.chunks(4).zip(y.chunks(3 * m)) {
        let actions: Vec<Vec<f64>> = y.chunks(m).map(<[f64]>::to_vec).collect();
        cost += lqr.shooting(x, &actions, &lqr.p).0;
        best += lqr.optimal_cost(x);
    }
    Ok(vec![
        ("stochastic policy (KL to exp(-Q/0.1))".into(), stochastic),
        ("three actions at once, through the model".into(), format!("+{:.4} %", 100.0 * (cost / best - 1.0))),
    ])
}

/// 1000 unseen states.
fn states<P: Problem>(problem: &P, seed: u64) -> Vec<f64> {
    let mut x = vec![0.0; 1000 * problem.context_dim()];
    problem.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1 + seed) }, &mut x);
    x
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// How far a policy's cost-to-go is above the optimal policy's, in percent.
fn excess<M: Model>(p: &LqrPolicy, task: &AmortizedTask<LqrPolicy, M>, theta: &[f32], seed: u64) -> String {
    let x = states(p, seed);
    let actions = task.predict::<f64>(&wide(theta), &x, Key::new(0));
    let rows = x.chunks(4).zip(actions[actions.len() - 1].chunks(2));
    let (cost, best) =
        rows.fold((0.0, 0.0), |(c, b), (x, u)| (c + p.0.q_value(x, u).0, b + p.0.optimal_cost(x)));
    format!("+{:.4} %", 100.0 * (cost / best - 1.0))
}

fn pendulum(o: &Options) -> Result<()> {
    let problem = Pendulum::default();
    let full = AmortizedTask::new(problem.clone(), Full::default(), Training::default())?;
    let semi =
        Semi { through: outerloop::core::ops::Through::Stopped, ..Semi::refined(Full::default(), 0.05, 5) };
    let semi = AmortizedTask::new(problem.clone(), semi, Training::default())?;
    let theta = o.train("pendulum-full", Arc::new(Typed::new(full.clone())), 1e-3, 1500)?;
    let theta_semi = o.train("pendulum-semi", Arc::new(Typed::new(semi.clone())), 1e-3, 500)?;
    let search = |x: &[f64], i: usize| -> Vec<f64> {
        let f = |u: &[f64]| rollout([x[0], x[1]], u).total();
        CrossEntropy::default().minimize(problem.horizon, f, Key::new(9).fold_in(i as u64))
    };
    // The expert: torques of the cross-entropy method for 300 states, in units of 2.
    eprintln!("asking the cross-entropy method for 300 states");
    let expert = Pool::solved(&problem, 300, Key::new(o.seed).named("expert"), |x| {
        search(x, 0).iter().map(|u| u / MAX_TORQUE).collect()
    });
    let cloning = Training { loss: Loss::Regression, pool: Some(Arc::new(expert)), ..Training::default() };
    let clone = AmortizedTask::new(problem.clone(), Full::default(), cloning)?;
    let theta_clone = o.train("pendulum-cloning", Arc::new(Typed::new(clone.clone())), 1e-3, 1500)?;
    let n = 100;
    let mut x = vec![0.0; 2 * n];
    problem.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1 + o.seed) }, &mut x);
    let adam = Adam::new(0.05);
    let config =
        GapConfig { solver: &adam, steps: 300, every: 20, key: Key::new(3), evaluations: 1, repeats: 11 };
    let report = amortization_gap(&full, &theta, &x, &config);
    let mut rows = report.rows();
    let refined = semi.predict::<f32>(&theta_semi, &x, Key::new(0));
    let cost = |y: &[f32]| {
        let one = |(x, y): (&[f64], &[f32])| {
            let u: Vec<f64> = y.iter().map(|y| 2.0 * f64::from(*y).tanh()).collect();
            rollout([x[0], x[1]], &u).total()
        };
        mean(&x.chunks(2).zip(y.chunks(problem.horizon)).map(one).collect::<Vec<f64>>()).0
    };
    rows.push(("iterative policy, 0 and 5 gradient encodings".into(), {
        format!("{:.4}, {:.4}", cost(&refined[0]), cost(&refined[5]))
    }));
    let cloned = clone.predict::<f32>(&theta_clone, &x, Key::new(0)).pop().unwrap_or_default();
    rows.push(("cloned from the cross-entropy method".into(), format!("{:.4}", cost(&cloned))));
    let searched = x.chunks(2).enumerate().map(|(i, x)| rollout([x[0], x[1]], &search(x, i)).total());
    rows.push((
        "cross-entropy method for every state".into(),
        format!("{:.4}", mean(&searched.collect::<Vec<_>>()).0),
    ));
    table(&format!("pendulum, {} torques at once, {n} unseen states", problem.horizon), &rows);
    let [steps, seconds] = report.plots("pendulum: Adam against one prediction");
    steps.save(o.dir.join("pendulum_steps.svg"))?;
    seconds.save(o.dir.join("pendulum_seconds.svg"))
}
