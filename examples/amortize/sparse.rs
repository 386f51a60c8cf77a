//! Sparse coding: errors of ISTA, FISTA and learned ISTA on unseen signals.

use crate::{mean, table, Options};
use outerloop::amortized::model::Weights;
use outerloop::amortized::problem::Problem;
use outerloop::amortized::problems::sparse::{Lista, SparseCoding};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::amortized::train::task_learner;
use outerloop::core::{BatchKey, Key, Result, Split, Typed};
use outerloop::lopt::hand::{Adam, Cosine};
use outerloop::outer::plot::{Plot, Scale, Series};
use std::sync::Arc;

pub fn run(o: &Options) -> Result<()> {
    let problem = SparseCoding::random(20, 40, 0.1, Key::new(o.seed).named("dictionary"));
    let layers = 16;
    let mut learned = Vec::new();
    for (name, run, weights) in [
        ("learned ISTA", "sparse-lista", Weights::Shared),
        ("learned ISTA, weights per layer", "sparse-lista-per-layer", Weights::PerStep),
    ] {
        let model = Lista { layers, dictionary: problem.dictionary.clone(), weights };
        let task = AmortizedTask::new(problem.clone(), model, Training::default())?;
        let rate = Cosine { peak: 1e-3, ..Cosine::default() };
        let opt = Box::new(Adam { epsilon_root: 0.0, ..Adam::new(rate) });
        let learner = task_learner(Arc::new(Typed::new(task.clone())), opt, o.steps_or(15_000), 1)?;
        let theta = o.runs().train(run, &learner)?;
        learned.push((name, task, theta));
    }
    let (c, n) = (problem.context_dim(), 200);
    let mut x = vec![0.0; n * c];
    problem.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1 + o.seed) }, &mut x);
    let signals: Vec<&[f64]> = x.chunks(c).collect();
    let best: Vec<f64> = signals.iter().map(|x| problem.dictionary.optimum(x).value).collect();
    let d = problem.dim();
    let regret_of = |y: &[f32]| -> Vec<f64> {
        let rows = signals.iter().zip(y.chunks(d)).zip(&best);
        rows.map(|((x, y), b)| {
            let y: Vec<f64> = y.iter().map(|y| f64::from(*y)).collect();
            problem.dictionary.energy(x, &y) - b
        })
        .collect()
    };
    let classic = |fast: bool| -> Vec<f64> {
        let paths = signals.iter().zip(&best).map(|(x, b)| {
            let path = if fast { problem.dictionary.fista(x, 400) } else { problem.dictionary.ista(x, 400) };
            path.iter().map(|y| problem.dictionary.energy(x, y) - b).collect::<Vec<f64>>()
        });
        let all: Vec<Vec<f64>> = paths.collect();
        (0..=400).map(|t| all.iter().map(|p| p[t]).sum::<f64>() / n as f64).collect()
    };
    let (ista, fista) = (classic(false), classic(true));
    let steps_of = |curve: &[f64], value: f64| match curve.iter().position(|r| *r <= value) {
        Some(t) => t.to_string(),
        None => "more than 400".into(),
    };
    let mut rows = vec![
        ("ISTA, 16 iterations".to_string(), format!("{:.5}", ista[16])),
        ("FISTA, 16 iterations".into(), format!("{:.5}", fista[16])),
    ];
    let mut lines = Vec::new();
    for (name, task, theta) in &learned {
        let path = task.predict::<f32>(theta, &x, Key::new(0));
        let ours: Vec<f64> = path.iter().map(|y| mean(&regret_of(y)).0).collect();
        let last = ours[layers - 1];
        let as_many = [&ista, &fista].map(|curve| steps_of(curve, last));
        rows.push((
            format!("{name}, {layers} layers"),
            format!("{last:.5}   as {} iterations of ISTA, {} of FISTA", as_many[0], as_many[1]),
        ));
        lines.push((*name, ours));
    }
    table(&format!("excess energy on {n} unseen signals"), &rows);
    let line = |name: &str, curve: &[f64], from: usize| {
        Series::line(name, curve.iter().enumerate().map(|(t, r)| ((t + from) as f64, *r)).collect())
    };
    Plot {
        title: "excess energy over iterations".into(),
        x_label: "iterations or layers".into(),
        y_label: "energy over the optimum".into(),
        y_scale: Scale::Log,
        series: [line("ISTA", &ista[..121], 0), line("FISTA", &fista[..121], 0)]
            .into_iter()
            .chain(lines.iter().map(|(name, ours)| line(name, ours, 1)))
            .collect(),
        ..Plot::default()
    }
    .save(o.dir.join("sparse.svg"))
}
