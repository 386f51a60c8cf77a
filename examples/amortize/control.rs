//! Policies: LQR against the Riccati solution, the pendulum against Adam and the cross-entropy method.

use crate::{mean, table, Options};
use outerloop::amortized::evaluate::{amortization_gap, GapConfig};
use outerloop::amortized::loss::Loss;
use outerloop::amortized::matrix::Matrix;
use outerloop::amortized::model::{Full, Model, Semi};
use outerloop::amortized::problem::Problem;
use outerloop::amortized::problems::lqr::{Lqr, LqrPolicy};
use outerloop::amortized::problems::pendulum::{rollout, Pendulum};
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
    table("LQR: cost of one action and the optimal policy, over the Riccati cost, 1000 unseen states", &rows);
    Ok(())
}

/// How far a policy's cost-to-go is above the optimal policy's, in percent.
fn excess<M: Model>(p: &LqrPolicy, task: &AmortizedTask<LqrPolicy, M>, theta: &[f32], seed: u64) -> String {
    let mut x = vec![0.0; 4000];
    p.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1 + seed) }, &mut x);
    let actions =
        task.predict::<f64>(&theta.iter().map(|t| f64::from(*t)).collect::<Vec<_>>(), &x, Key::new(0));
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
    let searched = x.chunks(2).take(20).enumerate().map(|(i, x)| {
        let f = |u: &[f64]| rollout([x[0], x[1]], u).total();
        f(&CrossEntropy::default().minimize(problem.horizon, f, Key::new(9).fold_in(i as u64)))
    });
    rows.push((
        "cross-entropy method, first 20 states".into(),
        format!("{:.4}", mean(&searched.collect::<Vec<_>>()).0),
    ));
    table(&format!("pendulum, {} torques at once, {n} unseen states", problem.horizon), &rows);
    let [steps, seconds] = report.plots("pendulum: Adam against one prediction");
    steps.save(o.dir.join("pendulum_steps.svg"))?;
    seconds.save(o.dir.join("pendulum_seconds.svg"))
}
