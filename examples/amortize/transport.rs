//! Optimal transport between digits: Sinkhorn's iterations from a cold start and from a prediction.

use crate::{mean, median, table, Options};
use outerloop::amortized::model::Full;
use outerloop::amortized::problem::Problem;
use outerloop::amortized::problems::transport::{DigitTransport, Sinkhorn};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{BatchKey, Key, Result, Split, Typed};
use outerloop::outer::plot::{Plot, Scale, Series};
use outerloop::tasks::data::digits;
use std::sync::Arc;
use std::time::Instant;

/// Unseen pairs.
const UNSEEN: usize = 100;
/// Most iterations.
const MOST: usize = 2000;

pub fn run(o: &Options) -> Result<()> {
    let problem = DigitTransport::new(&digits(), 1500)?;
    let task = AmortizedTask::new(problem.clone(), Full::new([256, 256]), Training::default())?;
    let theta = o.train("transport", Arc::new(Typed::new(task.clone())), 1e-3, 6000)?;
    let (c, d) = (problem.context_dim(), problem.dim());
    let contexts = |split: Split, n: usize| {
        let mut x = vec![0.0; n * c];
        problem.contexts(BatchKey { split, step: 0, key: Key::new(1 + o.seed) }, &mut x);
        x
    };
    let x = contexts(Split::Test, UNSEEN);
    let began = Instant::now();
    let predicted = task.predict::<f32>(&theta, &x, Key::new(0)).pop().unwrap_or_default();
    let predict_ms = 1e3 * began.elapsed().as_secs_f64() / UNSEEN as f64;
    let predicted: Vec<f64> = predicted.iter().map(|f| f64::from(*f)).collect();
    // What a start without a model could know: the mean solution of training pairs.
    eprintln!("solving {UNSEEN} training and {UNSEEN} unseen pairs");
    let trained = contexts(Split::Train, UNSEEN);
    let mut average = vec![0.0; d];
    for x in trained.chunks(c) {
        let f = problem.sinkhorn(x, &vec![0.0; d], 1e-6, MOST).f;
        let level = f.iter().sum::<f64>() / d as f64;
        average.iter_mut().zip(&f).for_each(|(a, f)| *a += (f - level) / UNSEEN as f64);
    }
    let best: Vec<f64> = x.chunks(c).filter_map(|x| problem.optimum(x)).map(|best| -best.value).collect();
    /// Potentials to begin a pair from.
    type From<'a> = Box<dyn Fn(usize) -> Vec<f64> + 'a>;
    let starts: [(&str, From<'_>); 3] = [
        ("zero", Box::new(|_| vec![0.0; d])),
        ("mean solution of training pairs", Box::new(|_| average.clone())),
        ("prediction (Meta OT)", Box::new(|i| predicted[i * d..][..d].to_vec())),
    ];
    let (mut rows, mut series) = (Vec::new(), Vec::new());
    for (name, start) in &starts {
        let began = Instant::now();
        let runs: Vec<Sinkhorn> =
            x.chunks(c).enumerate().map(|(i, x)| problem.sinkhorn(x, &start(i), 1e-5, MOST)).collect();
        let iterations = runs.iter().map(|r| r.errors.len() - 1).sum::<usize>().max(1);
        let iteration_ms = 1e3 * began.elapsed().as_secs_f64() / iterations as f64;
        let to = |tolerance: f64| {
            let all = runs.iter().map(|r| r.iterations_to(tolerance).unwrap_or(MOST) as f64);
            let all: Vec<f64> = all.collect();
            format!("{:.1} (median {:.0})", mean(&all).0, median(&all))
        };
        let gaps: Vec<f64> =
            x.chunks(c).enumerate().map(|(i, x)| best[i] - problem.dual(x, &start(i))).collect();
        let first = mean(&runs.iter().map(|r| r.errors[0]).collect::<Vec<f64>>()).0;
        let ms = format!("{iteration_ms:.3} ms each");
        rows.push((
            format!("from {name}"),
            format!(
                "dual below optimum {:.1e}   marginal error {first:.1e}   iterations to 1e-2 {}, 1e-3 {}, 1e-5 {}, {ms}",
                mean(&gaps).0,
                to(1e-2),
                to(1e-3),
                to(1e-5)
            ),
        ));
        let curve = (0..200).map(|t| {
            let at = |r: &Sinkhorn| r.errors[t.min(r.errors.len() - 1)];
            (t as f64, mean(&runs.iter().map(at).collect::<Vec<f64>>()).0)
        });
        series.push(Series::line(*name, curve.collect()));
    }
    rows.push(("one prediction, of a batch".into(), format!("{predict_ms:.4} ms")));
    table(&format!("Sinkhorn on {UNSEEN} unseen pairs of digits, epsilon {}", problem.epsilon), &rows);
    potential_of_first(&problem, &x[..c], &predicted[..d], o)?;
    Plot {
        title: "Sinkhorn from three starts".into(),
        x_label: "iterations".into(),
        y_label: "error of the marginals".into(),
        y_scale: Scale::Log,
        series,
        ..Plot::default()
    }
    .save(o.dir.join("transport.svg"))
}

/// The potentials of one pair: predicted, and exact.
fn potential_of_first(problem: &DigitTransport, x: &[f64], predicted: &[f64], o: &Options) -> Result<()> {
    let exact = problem.optimum(x).map_or_else(Vec::new, |best| best.y);
    let centred = |f: &[f64]| {
        let level = f.iter().sum::<f64>() / f.len() as f64;
        f.iter().enumerate().map(|(i, f)| (i as f64, f - level)).collect::<Vec<_>>()
    };
    Plot {
        title: "potential of one unseen pair".into(),
        x_label: "pixel".into(),
        y_label: "potential, centred".into(),
        series: vec![Series::line("exact", centred(&exact)), Series::line("predicted", centred(predicted))],
        ..Plot::default()
    }
    .save(o.dir.join("transport_potential.svg"))
}
