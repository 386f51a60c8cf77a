//! What amortization costs and saves: the gap of predictions to a solver's optimum, and the time in which the solver gets
//! as far.
//!
//! The solver starts cold and, fairly, from the prediction, too. A ratio of times alone says how many steps the baseline
//! was given; it is reported with the gap.

use crate::model::Model;
use crate::problem::{ContextTask, Problem};
use crate::task::AmortizedTask;
use outerloop_core::{BatchKey, Evaluator, FlatTask, Key, Optimizer, Typed};
use outerloop_outer::plot::{Plot, Scale, Series};
use std::time::Instant;

/// What to compare with.
pub struct GapConfig<'a> {
    /// The solver.
    pub solver: &'a dyn Optimizer,
    /// Its steps.
    pub steps: u64,
    /// Steps between measurements, at least 1.
    pub every: u64,
    /// Key of the noise: fresh in every step of the solver, the same in all measurements; and of random starts.
    pub key: Key,
    /// Evaluations per measurement, with noise of their own; 1 for an objective without noise.
    pub evaluations: usize,
    /// Predictions timed; the median counts.
    pub repeats: usize,
}

/// One measurement of a solver.
#[derive(Clone, Debug, PartialEq)]
pub struct SolverPoint {
    /// Updates done.
    pub step: u64,
    /// Seconds since the start, without measuring.
    pub seconds: f64,
    /// The objective of every context.
    pub values: Vec<f32>,
}

impl GapConfig<'_> {
    /// The objective of every context, averaged over the evaluations' noise.
    fn measure<P: Problem>(&self, task: &ContextTask<P>, y: &[f32]) -> Vec<f32> {
        let n = self.evaluations.max(1);
        let mut sum = vec![0.0; task.len()];
        for i in 0..n {
            let values = task.values(y, self.key.named("measure").fold_in(i as u64));
            sum.iter_mut().zip(values).for_each(|(s, v)| *s += v / n as f32);
        }
        sum
    }
}

/// What [`amortization_gap`] finds. Objectives are per context.
#[derive(Clone, Debug, PartialEq)]
pub struct GapReport {
    /// Of the cold start: zero (a random direction on the sphere).
    pub start: Vec<f32>,
    /// Of the predictions.
    pub prediction: Vec<f32>,
    /// The known optimum, or the best that the solver found from either start.
    pub optimum: Vec<f32>,
    /// The solver from the cold start.
    pub cold: Vec<SolverPoint>,
    /// The solver from the prediction.
    pub warm: Vec<SolverPoint>,
    /// Median seconds per prediction of the whole batch.
    pub predict_seconds: f64,
}

fn mean(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len().max(1) as f64
}

/// Runs a solver on contexts from their start, measuring now and then.
fn solve<P: Problem>(task: &ContextTask<P>, config: &GapConfig<'_>) -> Vec<SolverPoint> {
    let flat: Box<dyn FlatTask> = Box::new(Typed::new(task.clone()));
    let mut evaluator: Box<dyn Evaluator> = flat.evaluator();
    let mut state = config.solver.init(&flat.init(config.key), Some(config.steps), config.key);
    let mut grad = vec![0.0; state.params.len()];
    let (mut seconds, mut points) = (0.0, Vec::new());
    for step in 0..=config.steps {
        if step % config.every.max(1) == 0 || step == config.steps {
            let values = config.measure(task, &config.solver.evaluation_params(&state));
            points.push(SolverPoint { step, seconds, values });
        }
        let began = Instant::now();
        let at = BatchKey::train(step, config.key);
        let loss = evaluator.loss_and_grad(&state.params, &mut [], at, &mut grad);
        config.solver.update(&mut state, &grad, loss, config.key);
        seconds += began.elapsed().as_secs_f64();
    }
    points
}

/// Compares a trained model with a solver on contexts `[N][C]`.
pub fn amortization_gap<P: Problem, M: Model>(
    task: &AmortizedTask<P, M>,
    theta: &[f32],
    contexts: &[f64],
    config: &GapConfig<'_>,
) -> GapReport {
    let own: Vec<f64> = task.own(theta).iter().map(|x| f64::from(*x)).collect();
    let problem = task.problem.clone();
    let cold = ContextTask { problem, contexts: contexts.to_vec(), own, start: Vec::new() };
    let predict = || task.predict::<f32>(theta, contexts, config.key).pop().unwrap_or_default();
    let y = predict();
    let mut seconds: Vec<f64> = (0..config.repeats.max(1))
        .map(|_| {
            let began = Instant::now();
            std::hint::black_box(predict());
            began.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let warm = ContextTask { start: y.iter().map(|y| f64::from(*y)).collect(), ..cold.clone() };
    let (cold_points, warm_points) = (solve(&cold, config), solve(&warm, config));
    let found = |i: usize| {
        let all = cold_points.iter().chain(&warm_points).map(|p| p.values[i]);
        all.fold(f32::INFINITY, |a, b| if b < a { b } else { a })
    };
    let known = |i: usize| {
        let c = task.problem.context_dim();
        task.problem.optimum(&contexts[i * c..][..c]).map(|o| o.value as f32)
    };
    GapReport {
        start: cold_points[0].values.clone(),
        optimum: (0..cold.len()).map(|i| known(i).unwrap_or_else(|| found(i))).collect(),
        prediction: config.measure(&cold, &y),
        cold: cold_points,
        warm: warm_points,
        predict_seconds: seconds[seconds.len() / 2],
    }
}

impl GapReport {
    /// Mean objective of the predictions over the optimum's.
    pub fn gap(&self) -> f64 {
        mean(&self.prediction) - mean(&self.optimum)
    }
    /// Mean objectives on the tutorial's scale: 0 at the optimum, −1 at the cold start.
    pub fn normalized(&self, values: &[f32]) -> f64 {
        (mean(&self.optimum) - mean(values)) / (mean(&self.start) - mean(&self.optimum))
    }
    /// The first measurement at which the solver's mean objective is not above the predictions'; none if never.
    pub fn caught_up(&self) -> Option<&SolverPoint> {
        let target = mean(&self.prediction);
        self.cold.iter().find(|p| mean(&p.values) <= target)
    }
    /// Seconds of the solver to the predictions' objective, over the prediction's; none if it never got there.
    pub fn speedup(&self) -> Option<f64> {
        Some(self.caught_up()?.seconds / self.predict_seconds)
    }
    /// The rows of a table: name and number.
    pub fn rows(&self) -> Vec<(String, String)> {
        let last = |points: &[SolverPoint]| points.last().map_or(f64::NAN, |p| mean(&p.values));
        let number = |x: f64| format!("{x:.4}");
        let speed = match (self.caught_up(), self.speedup()) {
            (Some(p), Some(s)) => format!("{s:.0}x (solver: {} steps, {:.1} ms)", p.step, 1e3 * p.seconds),
            _ => "the solver never reached the prediction".into(),
        };
        vec![
            ("objective at the cold start".into(), number(mean(&self.start))),
            ("objective of the prediction".into(), number(mean(&self.prediction))),
            ("objective of the solver, cold start".into(), number(last(&self.cold))),
            ("objective of the solver from the prediction".into(), number(last(&self.warm))),
            ("optimum (known, or best found)".into(), number(mean(&self.optimum))),
            ("amortization gap".into(), number(self.gap())),
            ("prediction, 0 optimum, -1 start".into(), number(self.normalized(&self.prediction))),
            ("prediction of the batch, ms".into(), format!("{:.3}", 1e3 * self.predict_seconds)),
            ("solver's time to the same objective".into(), speed),
        ]
    }
    /// The normalized objective over iterations, and over seconds.
    pub fn plots(&self, title: &str) -> [Plot; 2] {
        let quantile = |values: &[f32], q: f64| {
            let scale = mean(&self.start) - mean(&self.optimum);
            let mut v: Vec<f64> = values
                .iter()
                .zip(&self.optimum)
                .map(|(v, o)| (f64::from(*o) - f64::from(*v)) / scale)
                .collect();
            v.sort_by(f64::total_cmp);
            v[((v.len() - 1) as f64 * q).round() as usize]
        };
        let draw = |x: &dyn Fn(&SolverPoint) -> f64, label: &str, scale: Scale| {
            let line = |name: &str, points: &[SolverPoint]| {
                let shown: Vec<&SolverPoint> =
                    points.iter().filter(|p| x(p) > 0.0 || scale == Scale::Linear).collect();
                let band = shown.iter().map(|p| (x(p), quantile(&p.values, 0.25), quantile(&p.values, 0.75)));
                let means = shown.iter().map(|p| (x(p), self.normalized(&p.values)));
                Series::line(name, means.collect()).with_band(band.collect())
            };
            let end = self.cold.last().map_or(1.0, x);
            let begin = self.cold.get(1).map_or(0.0, x);
            let level = self.normalized(&self.prediction);
            let prediction = Series::line("prediction", vec![(begin, level), (end, level)]);
            Plot {
                title: title.into(),
                x_label: label.into(),
                y_label: "objective (0 optimum, -1 start)".into(),
                x_scale: scale,
                series: vec![line("solver, cold", &self.cold), line("solver, warm", &self.warm), prediction],
                ..Plot::default()
            }
        };
        [draw(&|p| p.step as f64, "solver steps", Scale::Linear), draw(&|p| p.seconds, "seconds", Scale::Log)]
    }
}
