//! Amortized filters in a linear-Gaussian model, against Kalman's.

use crate::filter::{coupled, FilterOptions};
use crate::{double, Options};
use outerloop::amortized::inference::filter::FilterStep;
use outerloop::amortized::inference::kalman::{diagonal, Conditional, Gaussian, LinearGaussian};
use outerloop::amortized::matrix::Matrix;
use outerloop::amortized::model::{Full, Model, Rule, Semi, Shown, Start};
use outerloop::amortized::problem::Problem;
use outerloop::amortized::report::{interval, mean, table};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{Key, Result, Typed};
use outerloop::lopt::hand::{Adam, Cosine};
use outerloop::outer::plot::{Plot, Series, Style};
use std::sync::Arc;

/// Test sequences.
const SEQUENCES: u64 = 50;

/// A model, its test sequences and what is known about them exactly.
struct World {
    problem: FilterStep,
    /// `[N][T][m]`
    sequences: Vec<Vec<Vec<f64>>>,
    /// Of the first sequence, `[T][n]`.
    states: Vec<Vec<f64>>,
    length: usize,
    /// Trained predictions have this in their runs' names.
    name: &'static str,
}

/// How a filter did on the test sequences.
struct Filtered {
    /// Posteriors, `[N][T]`.
    posteriors: Vec<Vec<Gaussian>>,
    /// Bounds after every inference step, the last the posterior's, `[N][T][K]`.
    bounds: Vec<Vec<Vec<f64>>>,
}

impl World {
    fn new(model: LinearGaussian, length: usize, o: &Options, name: &'static str) -> Self {
        let key = Key::new(1 + o.seed).named("test");
        let sequences = (0..SEQUENCES).map(|i| model.simulate(length, key.fold_in(i)).1).collect();
        let states = model.simulate(length, key.fold_in(0)).0;
        World { problem: FilterStep { model, steps: 20 }, sequences, states, length, name }
    }

    /// `log p(x_t | x_{<t})`, `[N][T]`.
    fn exact(&self) -> Vec<Vec<f64>> {
        let one =
            |xs: &Vec<Vec<f64>>| self.problem.model.filter(xs).iter().map(|s| s.log_likelihood).collect();
        self.sequences.iter().map(one).collect()
    }

    /// Runs a filter: `infer` gives the λ after every inference step.
    fn run(&self, infer: impl Fn(&[f64]) -> Vec<Vec<f64>>) -> Filtered {
        let n = self.problem.model.a.rows;
        let one = |xs: &Vec<Vec<f64>>| {
            let mut bounds = Vec::with_capacity(xs.len());
            let steps = self.problem.run(xs, |context| {
                let (predicted, x) = self.problem.parts(context);
                let path = infer(context);
                let bound = |y: &Vec<f64>| {
                    let q = diagonal(&y[..n], &y[n..]);
                    self.problem.model.marginal_bound(&x, &q, &predicted).value
                };
                bounds.push(path.iter().map(bound).collect());
                path.last().cloned().unwrap_or_default()
            });
            (steps.into_iter().map(|s| s.0).collect(), bounds)
        };
        let (posteriors, bounds) = self.sequences.iter().map(one).unzip();
        Filtered { posteriors, bounds }
    }

    /// The best diagonal posterior of every step.
    fn best(&self) -> Filtered {
        self.run(|context| vec![self.problem.optimum(context).map_or_else(Vec::new, |o| o.y)])
    }

    /// Trains a model with every seed, and filters with each; a semi-amortized one may take other numbers of steps than it
    /// was trained with. `[tested][seed]`
    fn learned<M: Model>(&self, o: &Options, model: M, tested: &[M]) -> Result<Vec<Vec<Filtered>>> {
        let task = |model| {
            let training = Training { batch_size: 64, ..Training::default() };
            AmortizedTask::new(self.problem.clone(), model, training)
        };
        let trained = task(model)?;
        let mut all: Vec<Vec<Filtered>> = tested.iter().map(|_| Vec::new()).collect();
        for seed in o.seeds() {
            let number = if seed == o.seed { String::new() } else { format!("-{seed}") };
            let name = format!("{}-{}{number}", self.name, trained.model.name());
            let steps = o.epochs.unwrap_or(3000);
            let rate = Cosine { peak: 3e-3, constant_fraction: 0.3, ..Cosine::default() };
            let opt = Box::new(Adam { epsilon_root: 0.0, ..Adam::new(rate) });
            let theta = o.train(&name, Arc::new(Typed::new(trained.clone())), opt, steps, seed)?;
            for (model, all) in tested.iter().zip(&mut all) {
                let task = task(model.clone())?;
                let path = |x: &[f64]| task.predict::<f32>(&theta, x, Key::new(0));
                all.push(self.run(|x| path(x).iter().map(|y| double(y)).collect()));
            }
        }
        Ok(all)
    }
}

impl Filtered {
    /// Bounds per step of every sequence.
    fn per_step(&self) -> Vec<f64> {
        let last = |b: &Vec<f64>| b.last().copied().unwrap_or(f64::NAN);
        self.bounds.iter().map(|b| b.iter().map(last).sum::<f64>() / b.len() as f64).collect()
    }
    /// Distance of the means from Kalman's, over all steps.
    fn off(&self, world: &World) -> f64 {
        let one = |(q, xs): (&Vec<Gaussian>, &Vec<Vec<f64>>)| {
            let exact = world.problem.model.filter(xs);
            let off = |(q, e): (&Gaussian, &outerloop::amortized::inference::kalman::Filtered)| {
                q.mean.iter().zip(&e.filtered.mean).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
            };
            q.iter().zip(&exact).map(off).sum::<f64>() / xs.len() as f64
        };
        mean(&self.posteriors.iter().zip(&world.sequences).map(one).collect::<Vec<f64>>()).0
    }
    /// The bound over time after inference step `k`, averaged over sequences.
    fn over_time(&self, k: usize) -> Vec<(f64, f64)> {
        let t = |t: usize| mean(&self.bounds.iter().map(|b| b[t][k]).collect::<Vec<f64>>()).0;
        (0..self.bounds[0].len()).map(|at| (at as f64, t(at))).collect()
    }
}

fn network(steps: usize) -> Semi {
    Semi {
        start: Start::Zero,
        rule: Rule::Network { hidden: 64, shown: Shown::Raw },
        steps,
        ..Semi::default()
    }
}

pub fn run(o: &FilterOptions) -> Result<()> {
    let (common, length) = (&o.common, o.length.unwrap_or(30));
    let world = World::new(coupled(), length, common, "filter");
    let best = world.best();
    let mut rows = oracles(&world, &best);
    let full = world.learned(common, Full::new([64, 64]), &[Full::new([64, 64])])?;
    rows.push(compared("full model", &world, &full[0], &best));
    let mut last = Vec::new();
    let mut counts = vec![1, o.steps];
    counts.dedup();
    for trained in counts {
        let tested: Vec<Semi> = (1..=2 * trained).map(network).collect();
        last = world.learned(common, network(trained), &tested)?;
        let name = format!("network that sees the gradient, trained and tested after {trained}");
        rows.push(compared(&name, &world, &last[trained - 1], &best));
        for (i, f) in last.iter().enumerate().filter(|(i, _)| i + 1 != trained) {
            rows.push(compared(&format!("  after {}", i + 1), &world, f, &best));
        }
    }
    let seeds = match common.seeds {
        1 => "1 seed, 95 % intervals over sequences".to_string(),
        n => format!("{n} seeds, 95 % intervals over them"),
    };
    table(&format!("bounds in nats per step, {SEQUENCES} sequences of {length} steps, {seeds}"), &rows);
    let ours = &last[o.steps - 1][0];
    bounds_over_time(&world, &best, ours, o.steps).save(common.dir.join("filter_bounds.svg"))?;
    means_over_time(&world, ours).save(common.dir.join("filter.svg"))?;

    // States that do not depend on each other: the diagonal posterior is Kalman's.
    let alone = LinearGaussian {
        a: Matrix::diagonal(&[0.9, 0.6]),
        c: Matrix::identity(2),
        q: Matrix::diagonal(&[0.3, 0.2]),
        r: Matrix::diagonal(&[0.5, 0.4]),
        m0: vec![0.0; 2],
        p0: Matrix::identity(2),
    };
    let world = World::new(alone, length, common, "filter-independent");
    let best = world.best();
    let mut rows = oracles(&world, &best);
    let full = world.learned(common, Full::new([64, 64]), &[Full::new([64, 64])])?;
    rows.push(compared("full model", &world, &full[0], &best));
    table("the same where the states are independent: the diagonal posterior is exact", &rows);
    Ok(())
}

/// What is known without learning.
fn oracles(world: &World, best: &Filtered) -> Vec<(String, String)> {
    let model = &world.problem.model;
    let per_step = |f: &dyn Fn(&[Vec<f64>]) -> f64| {
        let all: Vec<f64> = world.sequences.iter().map(|xs| f(xs) / world.length as f64).collect();
        format!("{:.4}", mean(&all).0)
    };
    let joint = |xs: &[Vec<f64>], q: &[Conditional]| model.joint_bound(xs, q).iter().sum::<f64>();
    let marginal = |xs: &[Vec<f64>]| {
        let steps = model.filter(xs);
        let bound = |(s, x): (&outerloop::amortized::inference::kalman::Filtered, &Vec<f64>)| {
            model.marginal_bound(x, &s.filtered, &s.predicted).value
        };
        steps.iter().zip(xs).map(bound).sum::<f64>()
    };
    vec![
        ("log p(x), Kalman".into(), per_step(&|xs| model.filter(xs).iter().map(|s| s.log_likelihood).sum())),
        ("bound of the marginal posterior, any covariance".into(), per_step(&marginal)),
        ("bound of the smoothing posterior".into(), per_step(&|xs| joint(xs, &model.smoothing(xs)))),
        ("bound of the best q(z_t | z_t-1, x_t)".into(), per_step(&|xs| joint(xs, &model.greedy(xs)))),
        ("best diagonal posterior of every step".into(), format!("{:.4}", mean(&best.per_step()).0)),
    ]
}

/// A row: one trained model per seed. The interval is over sequences for one seed, and over seeds for several.
fn compared(name: &str, world: &World, ours: &[Filtered], best: &Filtered) -> (String, String) {
    let bounds: Vec<f64> = ours.iter().map(|f| mean(&f.per_step()).0).collect();
    let apart =
        |f: &Filtered| -> Vec<f64> { best.per_step().iter().zip(f.per_step()).map(|(b, x)| b - x).collect() };
    let (gap, half) = match ours {
        [one] => {
            let (gap, error) = mean(&apart(one));
            (gap, 1.96 * error)
        }
        _ => interval(&ours.iter().map(|f| mean(&apart(f)).0).collect::<Vec<f64>>()),
    };
    let off = mean(&ours.iter().map(|f| f.off(world)).collect::<Vec<f64>>()).0;
    let value = format!(
        "{:.4}   below the best {gap:.4} +- {half:.4}   distance of the mean from Kalman's {off:.4}",
        mean(&bounds).0
    );
    (name.into(), value)
}

fn bounds_over_time(world: &World, best: &Filtered, ours: &Filtered, steps: usize) -> Plot {
    let exact = world.exact();
    let at = |t: usize| mean(&exact.iter().map(|e| e[t]).collect::<Vec<f64>>()).0;
    let mut series = vec![
        Series::line("log p(x_t | past)", (0..world.length).map(|t| (t as f64, at(t))).collect()),
        Series::line("best diagonal", best.over_time(0)),
    ];
    // The iterate before all steps is zero, no prediction.
    let shown = 1..=steps;
    series.extend(shown.map(|k| Series::line(format!("after {k}"), ours.over_time(k))));
    Plot {
        title: format!("filtering bound over time, mean of {SEQUENCES} sequences"),
        x_label: "time step".into(),
        y_label: "nats".into(),
        series,
        ..Plot::default()
    }
}

fn means_over_time(world: &World, ours: &Filtered) -> Plot {
    let xs = &world.sequences[0];
    let kalman = world.problem.model.filter(xs);
    let line = |name: &str, f: &dyn Fn(usize) -> (f64, f64)| {
        let points = (0..xs.len()).map(|t| (t as f64, f(t).0)).collect();
        let band = (0..xs.len()).map(|t| (t as f64, f(t).0 - 2.0 * f(t).1, f(t).0 + 2.0 * f(t).1));
        Series::line(name, points).with_band(band.collect())
    };
    let of = |q: &Gaussian| (q.mean[0], q.cov.at(0, 0).sqrt());
    Plot {
        title: "first state of one sequence, posterior mean +- 2 standard deviations".into(),
        x_label: "time step".into(),
        y_label: "state".into(),
        series: vec![
            line("Kalman", &|t| of(&kalman[t].filtered)),
            line("amortized", &|t| of(&ours.posteriors[0][t])),
            truth(world),
        ],
        ..Plot::default()
    }
}

/// The first state itself.
fn truth(world: &World) -> Series {
    let points = world.states.iter().enumerate().map(|(t, z)| (t as f64, z[0])).collect();
    Series { style: Style::Points, ..Series::line("truth", points).with_color(4) }
}
