//! Amortized filters in a linear-Gaussian model.

use crate::Options;
use outerloop::amortized::inference::filter::FilterStep;
use outerloop::amortized::inference::kalman::LinearGaussian;
use outerloop::amortized::matrix::Matrix;
use outerloop::amortized::model::{Full, Model, Rule, Semi, Shown, Start};
use outerloop::amortized::problem::Problem;
use outerloop::amortized::report::{mean, table};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{Key, Result, Typed};
use outerloop::outer::plot::{Plot, Series};
use std::sync::Arc;

pub fn run(o: &Options) -> Result<()> {
    let (s, c) = 0.4f64.sin_cos();
    let model = LinearGaussian {
        a: Matrix::new(2, 2, vec![0.97 * c, -0.97 * s, 0.97 * s, 0.97 * c]),
        c: Matrix::new(2, 2, vec![1.0, 0.4, -0.3, 0.8]),
        q: Matrix::new(2, 2, vec![0.3, 0.1, 0.1, 0.2]),
        r: Matrix::new(2, 2, vec![0.5, 0.1, 0.1, 0.4]),
        m0: vec![0.0, 0.0],
        p0: Matrix::identity(2),
    };
    let problem = FilterStep { model, steps: 20 };
    let steps = o.epochs.unwrap_or(3000);
    let network = |n: usize| Semi {
        start: Start::Zero,
        rule: Rule::Network { hidden: 64, shown: Shown::Raw },
        steps: n,
        ..Semi::default()
    };
    let sequences: Vec<Vec<Vec<f64>>> = (0..50)
        .map(|i| problem.model.simulate(30, Key::new(1 + o.seed).named("test").fold_in(i)).1)
        .collect();
    let exact: Vec<f64> = sequences
        .iter()
        .map(|xs| problem.model.filter(xs).iter().map(|s| s.log_likelihood).sum::<f64>() / 30.0)
        .collect();
    let mut rows = vec![("log p(x), Kalman".to_string(), format!("{:.4}", mean(&exact).0))];
    let oracle = |x: &[f64]| problem.optimum(x).map_or_else(Vec::new, |o| o.y);
    let best = filtered(&problem, &sequences, oracle);
    rows.push(("best diagonal posterior of every step".into(), format!("{:.4}", mean(&best.0).0)));
    let mut report = |name: &str, (bounds, errors): (Vec<f64>, Vec<f64>)| {
        let apart: Vec<f64> = best.0.iter().zip(&bounds).map(|(b, x)| b - x).collect();
        let (gap, error) = mean(&apart);
        let value = format!("{:.4}   below the best {gap:.4} +- {error:.4}", mean(&bounds).0);
        rows.push((name.into(), format!("{value}   error of the mean {:.4}", mean(&errors).0)));
    };
    report("full model", learned(o, &problem, Full::new([64, 64]), steps, &sequences)?);
    report("1 gradient step of a network", learned(o, &problem, network(1), steps, &sequences)?);
    report("2 gradient steps of a network", learned(o, &problem, network(2), steps, &sequences)?);
    table("bounds in nats per step, 50 sequences of 30 steps", &rows);
    let xs = &sequences[0];
    let kalman = problem.model.filter(xs);
    let line = |name: &str, f: &dyn Fn(usize) -> f64| {
        Series::line(name, (0..xs.len()).map(|t| (t as f64, f(t))).collect())
    };
    let chosen = problem.run(xs, oracle);
    Plot {
        title: "first state of one sequence".into(),
        x_label: "step".into(),
        y_label: "posterior mean".into(),
        series: vec![
            line("Kalman", &|t| kalman[t].filtered.mean[0]),
            line("diagonal", &|t| chosen[t].0.mean[0]),
        ],
        ..Plot::default()
    }
    .save(o.dir.join("filter.svg"))
}

/// Bounds per step of every sequence, and distances of the means from Kalman's.
fn filtered(
    problem: &FilterStep,
    sequences: &[Vec<Vec<f64>>],
    infer: impl Fn(&[f64]) -> Vec<f64>,
) -> (Vec<f64>, Vec<f64>) {
    let one = |xs: &Vec<Vec<f64>>| {
        let steps = problem.run(xs, &infer);
        let exact = problem.model.filter(xs);
        let off = |(s, e): (&(outerloop::amortized::inference::kalman::Gaussian, f64), _)| {
            let e: &outerloop::amortized::inference::kalman::Filtered = e;
            s.0.mean.iter().zip(&e.filtered.mean).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
        };
        let n = xs.len() as f64;
        let apart = steps.iter().zip(&exact).map(off).sum::<f64>() / n;
        (steps.iter().map(|s| s.1).sum::<f64>() / n, apart)
    };
    sequences.iter().map(one).unzip()
}

fn learned<M: Model>(
    o: &Options,
    problem: &FilterStep,
    model: M,
    steps: u64,
    sequences: &[Vec<Vec<f64>>],
) -> Result<(Vec<f64>, Vec<f64>)> {
    let task =
        AmortizedTask::new(problem.clone(), model, Training { batch_size: 64, ..Training::default() })?;
    let name = format!("filter-{}", task.model.name());
    let theta = o.train(&name, Arc::new(Typed::new(task.clone())), crate::adam(2e-3), steps, o.seed)?;
    Ok(filtered(problem, sequences, |x| {
        let y = task.predict::<f32>(&theta, x, Key::new(0)).pop().unwrap_or_default();
        y.iter().map(|y| f64::from(*y)).collect()
    }))
}
