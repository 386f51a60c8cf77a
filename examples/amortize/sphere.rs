//! Functions on the sphere: regret on unseen ones.

use crate::{mean, table, Options};
use outerloop::amortized::model::{Full, Semi};
use outerloop::amortized::problem::{Optimum, Problem};
use outerloop::amortized::problems::sphere::{project, Sphere};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{BatchKey, Key, Result, Split, Typed};
use outerloop::outer::plot::{Plot, Scale, Series};
use std::sync::Arc;

/// Unseen functions.
const UNSEEN: usize = 1000;

pub fn run(o: &Options) -> Result<()> {
    let problem = Sphere::default();
    let training = Training::default();
    let full = AmortizedTask::new(problem.clone(), Full::default(), training.clone())?;
    let semi = AmortizedTask::new(problem.clone(), Semi::refined(Full::default(), 0.3, 5), training)?;
    let theta_full = o.train("sphere-full", Arc::new(Typed::new(full.clone())), 5e-4, 6000)?;
    let theta_semi = o.train("sphere-semi", Arc::new(Typed::new(semi.clone())), 5e-4, 3000)?;

    let c = problem.context_dim();
    let mut x = vec![0.0; UNSEEN * c];
    problem.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1 + o.seed) }, &mut x);
    eprintln!("solving {UNSEEN} unseen functions");
    let best: Vec<Optimum> = x.chunks(c).filter_map(|x| problem.optimum(x)).collect();
    let regret = |y: &[f32]| -> Vec<f64> {
        let rows = x.chunks(c).zip(y.chunks(3)).zip(&best);
        rows.map(|((x, y), b)| {
            let y: Vec<f64> = y.iter().map(|y| f64::from(*y)).collect();
            problem.function(x).value(&y) - b.value
        })
        .collect()
    };
    let by_component = |least_alpha: bool| -> Vec<f64> {
        let rows = x.chunks(c).zip(&best);
        rows.map(|(x, b)| {
            let (z, alpha) = x.split_at(12);
            let f = problem.function(x);
            let values: Vec<f64> = z.chunks(3).map(|z| f.value(z)).collect();
            let pick = (0..4).min_by(|i, j| match least_alpha {
                true => alpha[*i].total_cmp(&alpha[*j]),
                false => values[*i].total_cmp(&values[*j]),
            });
            values[pick.unwrap_or(0)] - b.value
        })
        .collect()
    };
    let start = full.predict::<f32>(&theta_full, &x, Key::new(0)).pop().unwrap_or_default();
    let descended = |steps: usize| -> Vec<f64> {
        let rows = x.chunks(c).zip(start.chunks(3)).zip(&best);
        rows.map(|((x, y), b)| {
            let f = problem.function(x);
            let y = project(&y.iter().map(|y| f64::from(*y)).collect::<Vec<f64>>());
            f.value(&f.descend(y, steps)) - b.value
        })
        .collect()
    };
    let iterates = semi.predict::<f32>(&theta_semi, &x, Key::new(0));
    let mut rows = vec![
        ("component of least offset".to_string(), by_component(true)),
        ("best of the 4 components".into(), by_component(false)),
        ("full model".into(), regret(&start)),
        ("full model + 5 Riemannian steps (line search)".into(), descended(5)),
        ("full model + 50 Riemannian steps (line search)".into(), descended(50)),
    ];
    for (t, y) in iterates.iter().enumerate() {
        rows.push((format!("semi-amortized after {t} learned steps"), regret(y)));
    }
    let nan = rows.iter().flat_map(|r| &r.1).filter(|r| !r.is_finite()).count();
    let shown: Vec<(String, String)> = rows
        .iter()
        .map(|(name, r)| {
            let (m, e) = mean(r);
            let mut sorted = r.clone();
            sorted.sort_by(f64::total_cmp);
            (name.clone(), format!("{m:.4} +- {e:.4}   median {:.4}", sorted[UNSEEN / 2]))
        })
        .collect();
    table(&format!("regret on {UNSEEN} unseen functions ({nan} not finite)"), &shown);

    let series = rows.iter().filter(|r| !r.0.starts_with("component")).map(|(name, r)| {
        let mut sorted = r.clone();
        sorted.sort_by(f64::total_cmp);
        let points = sorted.iter().enumerate().map(|(i, r)| ((i + 1) as f64 / UNSEEN as f64, r.max(1e-8)));
        Series::line(name.clone(), points.collect())
    });
    let plot = Plot {
        title: "regret on unseen functions".into(),
        x_label: "part of the functions".into(),
        y_label: "regret".into(),
        y_scale: Scale::Log,
        series: series.collect(),
        ..Plot::default()
    };
    plot.save(o.dir.join("sphere_regret.svg"))?;
    map(&problem, &x[..c], &iterates, &best[0]).save(o.dir.join("sphere_path.svg"))
}

/// Mollweide's projection of a point on the sphere.
fn mollweide(y: &[f64]) -> (f64, f64) {
    let (latitude, longitude) = (y[2].clamp(-1.0, 1.0).asin(), y[1].atan2(y[0]));
    let mut t = latitude;
    for _ in 0..50 {
        let slope = 2.0 + 2.0 * (2.0 * t).cos();
        if slope.abs() > 1e-9 {
            t -= (2.0 * t + (2.0 * t).sin() - std::f64::consts::PI * latitude.sin()) / slope;
        }
    }
    (2.0 * 2f64.sqrt() / std::f64::consts::PI * longitude * t.cos(), 2f64.sqrt() * t.sin())
}

/// Level sets of one function, the path of the semi-amortized model and the optimum.
fn map(problem: &Sphere, x: &[f64], iterates: &[Vec<f32>], best: &Optimum) -> Plot {
    let f = problem.function(x);
    let at = |i: usize, j: usize| {
        let (lat, lon) = (
            std::f64::consts::PI * ((i as f64 + 0.5) / 90.0 - 0.5),
            std::f64::consts::TAU * ((j as f64 + 0.5) / 180.0 - 0.5),
        );
        vec![lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()]
    };
    let grid: Vec<(Vec<f64>, f64)> =
        (0..90).flat_map(|i| (0..180).map(move |j| (i, j))).map(|(i, j)| (at(i, j), 0.0)).collect();
    let grid: Vec<(Vec<f64>, f64)> = grid.into_iter().map(|(y, _)| (y.clone(), f.value(&y))).collect();
    let (low, high) =
        grid.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |a, g| (a.0.min(g.1), a.1.max(g.1)));
    let step = (high - low) / 8.0;
    // Cells next to a level, as points.
    let mut series: Vec<Series> = (1..8)
        .map(|k| {
            let level = low + step * f64::from(k);
            let near = grid.iter().filter(|g| (g.1 - level).abs() < 0.04 * step).map(|g| mollweide(&g.0));
            let mut s = Series::line(format!("level {level:.2}"), near.collect());
            s.style = outerloop::outer::plot::Style::Points;
            s
        })
        .collect();
    let path = iterates.iter().map(|y| {
        let y: Vec<f64> = y[..3].iter().map(|y| f64::from(*y)).collect();
        mollweide(&project(&y))
    });
    series.push(Series::line("path of the model", path.collect()));
    let mut end = Series::line("optimum", vec![mollweide(&best.y)]);
    end.style = outerloop::outer::plot::Style::Points;
    series.push(end);
    Plot { title: "one unseen function (Mollweide)".into(), size: (900, 450), series, ..Plot::default() }
}
