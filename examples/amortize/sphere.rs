//! Functions on the sphere: regret on unseen ones.

use crate::{mean, median, table, Options};
use outerloop::amortized::loss::Iterates;
use outerloop::amortized::model::{Full, Rule, Semi, Start, Weights};
use outerloop::amortized::problem::{Optimum, Problem};
use outerloop::amortized::problems::sphere::{project, SoftMin, Sphere};
use outerloop::amortized::problems::sphere_tutorial::tutorial;
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::amortized::train::{task_learner, train_task};
use outerloop::core::{BatchKey, FlatTask, Key, Result, Split, Typed};
use outerloop::lopt::hand::Adam;
use outerloop::outer::plot::{Plot, Scale, Series, Style, Surface};
use outerloop::outer::Workers;
use std::f64::consts::{PI, TAU};
use std::sync::Arc;

/// Unseen functions.
const UNSEEN: usize = 1000;
/// Training steps.
const STEPS: u64 = 6000;
/// Seeds of the tutorial's experiment.
const SEEDS: u64 = 20;

pub fn run(o: &Options) -> Result<()> {
    let problem = Sphere::default();
    let training = Training::default();
    let full = AmortizedTask::new(problem.clone(), Full::default(), training.clone())?;
    let theta_full = o.train("sphere-full", Arc::new(Typed::new(full.clone())), 5e-4, STEPS)?;
    // A prediction, then steps of learned rates: 1 is Newton's where one component alone counts.
    let gradient = Semi { weights: Weights::PerStep, ..Semi::refined(Full::default(), 1.0, 5) };
    let momentum = Semi { rule: Rule::Momentum { rate: 0.6 }, ..gradient.clone() };
    // The start as the full model has learned it, by itself: nearer to the right one of several basins.
    let weights = theta_full.iter().map(|w| f64::from(*w)).collect();
    let trained = Semi { start: Start::Trained(Full::default(), weights), ..momentum.clone() };
    let all = Training { iterates: Iterates::Mean, ..training.clone() };
    let mut learned = Vec::new();
    for (name, model, training) in [
        ("last", gradient.clone(), training),
        ("mean", gradient, all.clone()),
        ("momentum", momentum, all.clone()),
        ("trained", trained, all),
    ] {
        let semi = AmortizedTask::new(problem.clone(), model, training)?;
        let run = format!("sphere-semi-{name}");
        let theta = o.train(&run, Arc::new(Typed::new(semi.clone())), 5e-4, STEPS)?;
        learned.push((name, semi, theta));
    }

    let c = problem.context_dim();
    let mut x = vec![0.0; UNSEEN * c];
    problem.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(1 + o.seed) }, &mut x);
    eprintln!("solving {UNSEEN} unseen functions");
    let unseen = Functions::new(&problem, &x);
    let start = full.predict::<f32>(&theta_full, &x, Key::new(0)).pop().unwrap_or_default();
    let mut rows = vec![
        ("component of least offset".to_string(), unseen.by_component(true)),
        ("best of the 4 components".into(), unseen.by_component(false)),
        ("full model".into(), unseen.regret(&start)),
    ];
    for steps in [5, 10, 50] {
        let name = format!("full model + {steps} Riemannian steps (line search)");
        rows.push((name, unseen.descended(&start, steps)));
    }
    let mut paths = Vec::new();
    for (name, semi, theta) in &learned {
        let iterates = semi.predict::<f32>(theta, &x, Key::new(0));
        let title = match *name {
            "last" => "semi-amortized, loss of the last iterate",
            "mean" => "semi-amortized, loss of all iterates",
            "momentum" => "the same with momentum",
            _ => "the same from the trained full model",
        };
        for t in [0, iterates.len() - 1] {
            rows.push((format!("{title}: {t} learned steps"), unseen.regret(&iterates[t])));
        }
        paths.push(iterates);
    }
    let nan = rows.iter().flat_map(|r| &r.1).filter(|r| !r.is_finite()).count();
    let mut shown: Vec<(String, String)> = rows
        .iter()
        .map(|(name, r)| {
            let (m, e) = mean(r);
            (name.clone(), format!("{m:.4} +- {e:.4}   median {:.4}", median(r)))
        })
        .collect();
    shown.push(("the tutorial's 8 functions, 100 steps".into(), tutorial_regret(o.seed)?));
    table(
        &format!("regret on {UNSEEN} unseen functions, {} steps ({nan} not finite)", o.steps_or(STEPS)),
        &shown,
    );

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
    let path = &paths[paths.len() - 1];
    map(&problem, &x[..c], path, &unseen.best[0]).save(o.dir.join("sphere_path.svg"))
}

/// Functions with their optima.
struct Functions<'a> {
    problem: &'a Sphere,
    x: &'a [f64],
    best: Vec<Optimum>,
}

impl<'a> Functions<'a> {
    fn new(problem: &'a Sphere, x: &'a [f64]) -> Self {
        let best = x.chunks(problem.context_dim()).filter_map(|x| problem.optimum(x)).collect();
        Functions { problem, x, best }
    }
    /// What every function, given with its number and context, is above its optimum.
    fn each(&self, value: impl Fn(usize, &SoftMin, &[f64]) -> f64) -> Vec<f64> {
        let rows = self.x.chunks(self.problem.context_dim()).zip(&self.best).enumerate();
        rows.map(|(i, (x, b))| value(i, &self.problem.function(x), x) - b.value).collect()
    }
    /// Of points in space.
    fn regret(&self, y: &[f32]) -> Vec<f64> {
        self.each(|i, f, _| f.value(&wide(&y[3 * i..][..3])))
    }
    /// Of the component that has the least offset, or value.
    fn by_component(&self, least_alpha: bool) -> Vec<f64> {
        self.each(|_, f, x| {
            let (z, alpha) = x.split_at(12);
            let values: Vec<f64> = z.chunks(3).map(|z| f.value(z)).collect();
            let pick = (0..4).min_by(|i, j| match least_alpha {
                true => alpha[*i].total_cmp(&alpha[*j]),
                false => values[*i].total_cmp(&values[*j]),
            });
            values[pick.unwrap_or(0)]
        })
    }
    /// Of Riemannian descent with line search from points in space.
    fn descended(&self, y: &[f32], steps: usize) -> Vec<f64> {
        self.each(|i, f, _| f.value(&f.descend(project(&wide(&y[3 * i..][..3])), steps)))
    }
}

fn wide(y: &[f32]) -> Vec<f64> {
    y.iter().map(|y| f64::from(*y)).collect()
}

/// Mean regret after 100 steps on the tutorial's functions, over seeds.
fn tutorial_regret(seed: u64) -> Result<String> {
    let problem = tutorial();
    let x = problem.fixed.concat();
    let functions = Functions::new(&problem, &x);
    let training = Training { batch_size: problem.fixed.len(), ..Training::default() };
    let task = AmortizedTask::new(problem.clone(), Full::default(), training)?;
    let flat: Arc<dyn FlatTask> = Arc::new(Typed::new(task.clone()));
    let (workers, mut means) = (Workers::new(1)?, Vec::new());
    for i in 0..SEEDS {
        let opt = Adam { epsilon_root: 0.0, ..Adam::new(5e-4) };
        let learner = task_learner(flat.clone(), Box::new(opt), 100, 1)?;
        let state = train_task(&learner, Key::new(seed + i), &workers, |_, _| {})?;
        let y = task.predict::<f32>(&state.theta.params, &x, Key::new(0)).pop().unwrap_or_default();
        means.push(mean(&functions.regret(&y)).0);
    }
    let (m, error) = mean(&means);
    let nan = means.iter().filter(|m| !m.is_finite()).count();
    let std = error * (SEEDS as f64).sqrt();
    Ok(format!(
        "{m:.4} +- {std:.4} (std over {SEEDS} seeds, {nan} not finite)   median {:.4}",
        median(&means)
    ))
}

/// Mollweide's projection of a point on the sphere.
fn mollweide(y: &[f64]) -> (f64, f64) {
    let (latitude, longitude) = (y[2].clamp(-1.0, 1.0).asin(), y[1].atan2(y[0]));
    let mut t = latitude;
    for _ in 0..50 {
        let slope = 2.0 + 2.0 * (2.0 * t).cos();
        if slope.abs() > 1e-9 {
            t -= (2.0 * t + (2.0 * t).sin() - PI * latitude.sin()) / slope;
        }
    }
    (2.0 * 2f64.sqrt() / PI * longitude * t.cos(), 2f64.sqrt() * t.sin())
}

/// The point on the sphere that the projection puts there, if any.
fn unproject(x: f64, y: f64) -> Option<Vec<f64>> {
    let t = (y / 2f64.sqrt()).asin();
    let latitude = ((2.0 * t + (2.0 * t).sin()) / PI).asin();
    let longitude = PI * x / (2.0 * 2f64.sqrt() * t.cos());
    // Outside: not a number, or around once more.
    (longitude.abs() <= PI)
        .then(|| vec![latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()])
}

/// Level lines of one function, the path of the semi-amortized model and the optimum.
fn map(problem: &Sphere, x: &[f64], iterates: &[Vec<f32>], best: &Optimum) -> Plot {
    const LEVELS: usize = 8;
    let f = problem.function(x);
    let axis = |n: usize, end: f64| {
        (0..n).map(|i| end * (2.0 * i as f64 / (n - 1) as f64 - 1.0)).collect::<Vec<f64>>()
    };
    let (x, y) = (axis(241, 2.0 * 2f64.sqrt()), axis(121, 2f64.sqrt()));
    let height = |(x, y): (f64, f64)| unproject(x, y).map_or(f64::NAN, |y| f.value(&y));
    let heights: Vec<f64> = y.iter().flat_map(|y| x.iter().map(|x| height((*x, *y)))).collect();
    let finite = || heights.iter().copied().filter(|h| h.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let surface = Surface { x, y, heights };
    let level = |k: usize| low + (high - low) * k as f64 / LEVELS as f64;
    let mut series: Vec<Series> = (1..LEVELS).flat_map(|k| surface.series(level(k), 4)).collect();
    let edge = (0..=100).map(|i| {
        let angle = TAU * f64::from(i) / 100.0;
        (2.0 * 2f64.sqrt() * angle.cos(), 2f64.sqrt() * angle.sin())
    });
    series.push(Series { style: Style::Thin, ..Series::line("", edge.collect()).with_color(4) });
    let path = iterates.iter().map(|y| {
        let y: Vec<f64> = y[..3].iter().map(|y| f64::from(*y)).collect();
        mollweide(&project(&y))
    });
    series.push(Series::line("prediction and learned steps", path.collect()).with_color(0));
    let end = Series::line("optimum", vec![mollweide(&best.y)]).with_color(1);
    series.push(Series { style: Style::Points, ..end });
    let title = format!(
        "One unseen function (Mollweide), {} levels from {:.2} to {:.2}",
        LEVELS - 1,
        level(1),
        level(LEVELS - 1)
    );
    Plot { title, size: (900, 450), series, ..Plot::default() }
}
