//! Inference trajectories over the bound's surface: a VAE with 2 latents, whose posterior means are points of a plane.

use crate::iterative::{training_task, Form, Setting, ITERATIONS};
use crate::{adam, double, single, Options};
use outerloop::amortized::inference::iterative::Encoding;
use outerloop::amortized::inference::vae::Vae;
use outerloop::amortized::problem::ContextTask;
use outerloop::amortized::solve::minimize;
use outerloop::core::{BatchKey, Evaluator, FlatTask, Key, Result, Typed};
use outerloop::outer::plot::{Plot, Series, Style, Surface};
use std::sync::Arc;

/// Images, each with a picture.
const IMAGES: usize = 4;
/// Points of the surface along either axis.
const GRID: usize = 61;
/// Draws of the noise, the same at all points.
const DRAWS: usize = 50;
/// Steps of Adam.
const STEPS: u64 = 100;
/// Level lines, nats above the lowest point.
const LEVELS: [f64; 9] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

pub fn run(o: &Options) -> Result<Vec<(String, String)>> {
    let s = Setting::new(o, 2)?;
    let task = training_task(&s, &Form::new("2 latents, gradient, per example", Encoding::Gradient));
    let theta = o.train("surface", Arc::new(Typed::new(task.clone())), adam(1e-3), s.steps, o.seed)?;
    let own = double(task.own(&theta));
    let p: usize = s.vae.shape().iter().product();
    let mut rows = Vec::new();
    for (i, x) in s.x.chunks(p).take(IMAGES).enumerate() {
        let inferred = task.infer(&theta, x, 2 * ITERATIONS, Key::new(3).fold_in(i as u64));
        let steps: Vec<Vec<f64>> = inferred.iter().map(|v| double(&v.lambda)).collect();
        let image =
            ContextTask { problem: s.vae.clone(), contexts: x.to_vec(), own: own.clone(), start: Vec::new() };
        let searched = searched(&image);
        let ends = [steps[ITERATIONS].clone(), searched[STEPS as usize].clone()];
        let ends = values(&image, &ends);
        rows.push((
            format!("image {i}, -ELBO (nats)"),
            format!(
                "{:.3} after {ITERATIONS} iterations, {:.3} after {STEPS} steps of Adam",
                ends[0], ends[1]
            ),
        ));
        plot(&image, i, [&steps, &searched], &ends).save(o.dir.join(format!("surface_{i}.svg")))?;
    }
    Ok(rows)
}

/// λ at the prior and after every step of Adam, with fresh noise in each.
fn searched(image: &ContextTask<Vae>) -> Vec<Vec<f64>> {
    let flat: Box<dyn FlatTask> = Box::new(Typed::new(image.clone()));
    let mut evaluator: Box<dyn Evaluator> = flat.evaluator();
    let (mut path, mut step) = (Vec::new(), 0);
    let objective = |y: &[f32], grad: &mut [f32]| {
        step += 1;
        evaluator.loss_and_grad(y, &mut [], BatchKey::train(step, Key::new(4)), grad)
    };
    minimize(&*adam(1e-1), &flat.init(Key::new(4)).data, STEPS, objective, |_, y| path.push(double(y)));
    path
}

/// -ELBO of every λ, with the same draws of the noise for all.
fn values(image: &ContextTask<Vae>, lambdas: &[Vec<f64>]) -> Vec<f64> {
    let problem = Vae { samples: DRAWS, ..image.problem.clone() };
    let task = ContextTask { problem, ..image.clone() };
    lambdas.iter().map(|y| f64::from(task.values(&single(y), Key::new(5))[0])).collect()
}

/// The surface over the means, at the variances that inference ended with, and the two ways over it.
fn plot(
    image: &ContextTask<Vae>,
    i: usize,
    [steps, searched]: [&[Vec<f64>]; 2],
    values_at_ends: &[f64],
) -> Plot {
    let spread = &steps[ITERATIONS][2..];
    let axis = |k: usize| {
        let all = || steps.iter().chain(searched).map(|y| y[k]);
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        let margin = 0.25 * (high - low) + 0.5;
        let width = high - low + 2.0 * margin;
        (0..GRID).map(|g| low - margin + width * g as f64 / (GRID - 1) as f64).collect::<Vec<f64>>()
    };
    let (x, y) = (axis(0), axis(1));
    let points: Vec<Vec<f64>> =
        y.iter().flat_map(|y| x.iter().map(move |x| vec![*x, *y, spread[0], spread[1]])).collect();
    let heights = values(image, &points);
    let lowest = heights.iter().copied().fold(f64::INFINITY, f64::min);
    let surface = Surface { x, y, heights };
    let mut series: Vec<Series> = LEVELS.iter().flat_map(|level| surface.series(lowest + level, 4)).collect();
    let way =
        |name: String, path: &[Vec<f64>]| Series::line(name, path.iter().map(|y| (y[0], y[1])).collect());
    let ours = &steps[..=ITERATIONS];
    let name = format!("{ITERATIONS} iterations: {:.2}", values_at_ends[0]);
    series.push(way(name, ours).with_color(1));
    series.push(Series { style: Style::Points, ..way(String::new(), ours).with_color(1) });
    let name = format!("{STEPS} steps of Adam: {:.2}", values_at_ends[1]);
    series.push(way(name, searched).with_color(0));
    Plot {
        title: format!("-ELBO over the posterior's mean, unseen image {i}"),
        x_label: "first latent".into(),
        y_label: "second latent".into(),
        size: (640, 520),
        series,
        ..Plot::default()
    }
}
