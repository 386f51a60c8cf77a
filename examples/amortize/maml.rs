//! Sinusoids: query losses before and after adaptation, by the kind of meta-gradient.

use crate::{mean, table, Options};
use outerloop::amortized::problems::maml::{Order, SinusoidMaml};
use outerloop::amortized::problems::maml_implicit::{ImplicitMaml, ImplicitMamlGradient};
use outerloop::amortized::train::parameter_learner;
use outerloop::core::ops::Through;
use outerloop::core::tensor::{host_data, Backend, Cpu, NoneTape, Tensor};
use outerloop::core::{Key, Result, Typed};
use outerloop::lopt::hand::Adam;
use outerloop::outer::plot::{Plot, Series};
use std::sync::Arc;

/// Gradient steps on an unseen sine.
const STEPS: usize = 10;
/// Unseen sines.
const SINES: u64 = 200;

pub fn run(o: &Options) -> Result<()> {
    let mut rows = Vec::new();
    let mut series = Vec::new();
    let implicit = ImplicitMaml::default();
    let estimator = ImplicitMamlGradient::new(implicit.clone())?;
    let proximal = ImplicitMamlGradient::new(implicit.clone())?;
    let mut report = |name: &str, task: &SinusoidMaml, theta: &[f32]| {
        let curve = adapted(task, theta, o.seed);
        let losses = |t: usize| mean(&curve.iter().map(|c| c[t]).collect::<Vec<f64>>());
        let text = |(m, e): (f64, f64)| format!("{m:.3} +- {e:.3}");
        let show = |t: usize| text(losses(t));
        let pulled: Vec<f64> = (0..SINES).map(|i| proximal.adapted_loss(theta, sine(o.seed, i))).collect();
        let value = format!(
            "before {}   1 step {}   10 steps {}   proximal {}",
            show(0),
            show(1),
            show(STEPS),
            text(mean(&pulled))
        );
        rows.push((name.to_string(), value));
        series.push(Series::line(name, (0..=STEPS).map(|t| (t as f64, losses(t).0)).collect()));
    };
    for order in [Order::Second, Order::First, Order::Reptile] {
        // Reptile needs several inner steps: one step's direction is the plain gradient.
        let inner_steps = if order == Order::Reptile { 5 } else { 1 };
        let task = SinusoidMaml { order, inner_steps, ..SinusoidMaml::default() };
        let name = format!("maml-{order:?}").to_lowercase();
        // Reptile's direction is as long as the inner steps: Adam does not mind.
        let theta = o.train(&name, Arc::new(Typed::new(task.clone())), 1e-3, 3000)?;
        report(&name, &task, &theta);
    }
    let weights = Arc::new(Typed::new(implicit.maml.clone()));
    let learner =
        parameter_learner(weights, Box::new(estimator), Box::new(Adam::new(3e-3)), o.steps_or(1200))?;
    let theta = o.runs().train("maml-implicit", &learner)?;
    report("maml-implicit", &implicit.maml, &theta);
    table(
        &format!(
            "query loss on {SINES} unseen sines, 10 points each; proximal: {} steps of rate {}, λ = {}",
            implicit.inner_steps, implicit.inner_rate, implicit.lambda
        ),
        &rows,
    );
    Plot {
        title: "adaptation to unseen sines".into(),
        x_label: "gradient steps on the support set".into(),
        y_label: "query loss".into(),
        series,
        ..Plot::default()
    }
    .save(o.dir.join("maml.svg"))
}

/// Query losses of unseen sines after every number of steps.
fn adapted(task: &SinusoidMaml, theta: &[f32], seed: u64) -> Vec<Vec<f64>> {
    let dev = Cpu::default();
    let one = SinusoidMaml { inner_steps: 1, ..task.clone() };
    let losses = |i: u64| {
        let [support, query] = one.episode::<f32, Cpu>(&dev, sine(seed, i));
        let mut w: Tensor<(usize,), f32, Cpu> = dev.filled((theta.len(),), |w| w.copy_from_slice(theta));
        let mut losses = Vec::new();
        for _ in 0..=STEPS {
            losses.push(f64::from(host_data(&one.net.mse(&w, &query))[0]));
            w = one.adapt::<f32, Cpu, NoneTape>(w, &support, Through::Stopped);
        }
        losses
    };
    (0..SINES).map(losses).collect()
}

/// The key of unseen sine `i`.
fn sine(seed: u64, i: u64) -> Key {
    Key::new(1 + seed).named("test").fold_in(i)
}
