//! Fixed points: residuals over evaluations of the map.

use crate::{median, table, Options};
use outerloop::amortized::loss::Iterates;
use outerloop::amortized::model::Full;
use outerloop::amortized::problem::Problem;
use outerloop::amortized::problems::equilibria::{Equilibria, Mixing};
use outerloop::amortized::solve::Anderson;
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{BatchKey, Key, Result, Split, Typed};
use outerloop::outer::plot::{Plot, Scale, Series};
use std::sync::Arc;

/// Unseen contexts.
const UNSEEN: usize = 200;
/// Evaluations of the map that are shown.
const SHOWN: usize = 30;
/// Steps of the model.
const STEPS: usize = 10;

pub fn run(o: &Options) -> Result<()> {
    let maps = Equilibria::random(30, 8, 0.99, Key::new(o.seed).named("maps"));
    let training = Training { iterates: Iterates::Mean, ..Training::default() };
    let model = |start: Option<Full>| Mixing { maps: maps.clone(), start, steps: STEPS };
    let mixing = AmortizedTask::new(maps.clone(), model(None), training.clone())?;
    let both = AmortizedTask::new(maps.clone(), model(Some(Full::new([128, 128]))), training)?;
    let theta_mixing = o.train("fixed-point-mixing", Arc::new(Typed::new(mixing.clone())), 1e-2, 1500)?;
    let theta_both =
        o.train("fixed-point-start-and-mixing", Arc::new(Typed::new(both.clone())), 1e-3, 6000)?;

    let mut x = vec![0.0; UNSEEN * maps.context_dim()];
    maps.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1 + o.seed) }, &mut x);
    let contexts: Vec<&[f64]> = x.chunks(maps.context_dim()).collect();
    let d = maps.dim();
    let start = wide(&both.predict::<f32>(&theta_both, &x, Key::new(0))[0]);
    // Median residual of a solver after every number of evaluations.
    let solved = |anderson: Anderson, start: Option<&[f64]>| -> Vec<f64> {
        let zero = vec![0.0; d];
        let one = |(i, x): (usize, &&[f64])| {
            let start = start.map_or(&zero[..], |s| &s[i * d..][..d]);
            let path = anderson.iterates(|y| maps.map(x, y), start, SHOWN);
            // A path that is done early stays where it is.
            (0..=SHOWN).map(|t| maps.residual(x, &path[t.min(path.len() - 1)])).collect::<Vec<f64>>()
        };
        let all: Vec<Vec<f64>> = contexts.iter().enumerate().map(one).collect();
        (0..=SHOWN).map(|t| median(&all.iter().map(|p| p[t]).collect::<Vec<f64>>())).collect()
    };
    let learned = |iterates: Vec<Vec<f64>>| -> Vec<f64> {
        let residuals = |y: &Vec<f64>| {
            let rows = contexts.iter().zip(y.chunks(d));
            median(&rows.map(|(x, y)| maps.residual(x, y)).collect::<Vec<f64>>())
        };
        iterates.iter().map(residuals).collect()
    };
    let memory = |memory: usize| Anderson { memory, ..Anderson::default() };
    let curves = [
        ("plain iteration", solved(memory(0), None)),
        ("Anderson, memory 1", solved(memory(1), None)),
        ("Anderson, memory 5", solved(memory(5), None)),
        ("learned mixing", learned(mixing.predict(&wide(&theta_mixing), &x, Key::new(0)))),
        ("learned start and mixing", learned(both.predict(&wide(&theta_both), &x, Key::new(0)))),
        ("learned start, then Anderson, memory 5", solved(memory(5), Some(&start))),
    ];
    let at = |curve: &[f64], t: usize| curve.get(t).map_or("-".into(), |r| format!("{r:.1e}"));
    let rows: Vec<(String, String)> = curves
        .iter()
        .map(|(name, c)| {
            let shown: Vec<String> =
                [0, 2, 5, STEPS, 20, SHOWN].iter().map(|t| format!("{:>8}", at(c, *t))).collect();
            (name.to_string(), shown.join(""))
        })
        .collect();
    let title =
        format!("median residual on {UNSEEN} unseen maps after 0, 2, 5, {STEPS}, 20, {SHOWN} evaluations");
    table(&title, &rows);
    let line = |(name, c): &(&str, Vec<f64>)| {
        Series::line(*name, c.iter().enumerate().map(|(t, r)| (t as f64, r.max(1e-16))).collect())
    };
    Plot {
        title: "fixed points of unseen maps".into(),
        x_label: "evaluations of the map".into(),
        y_label: "median residual".into(),
        y_scale: Scale::Log,
        series: curves.iter().map(line).collect(),
        ..Plot::default()
    }
    .save(o.dir.join("fixed_point.svg"))
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}
