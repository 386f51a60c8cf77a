//! Direct encoder, gradient and error encoding on binarized digits, at equal epochs.

use crate::{mean, table, Options};
use outerloop::amortized::inference::iterative::{Encoding, Flow, Iterative, Share};
use outerloop::amortized::inference::update::UpdateNet;
use outerloop::amortized::inference::vae::{IterativeTask, Pixels, Vae};
use outerloop::amortized::model::Full;
use outerloop::amortized::net::{Act, Init, Mlp};
use outerloop::amortized::problem::ContextTask;
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{Key, Result, Typed};
use outerloop::outer::plot::{Plot, Series};
use outerloop::tasks::data::digits;
use std::sync::Arc;

/// Iterations in training.
const ITERATIONS: usize = 5;

pub fn run(o: &Options) -> Result<()> {
    let train = 1500;
    let steps = o.epochs.unwrap_or(60) * train as u64 / 64;
    let decoder = Mlp { widths: vec![16, 128, 64], act: Act::Elu, init: Init::Glorot };
    let vae = Vae { pixels: Pixels::Binarized, ..Vae::new(&digits(), train, decoder)? };
    let x = vae.test_set(5);
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut series = Vec::new();
    let mut direct = Vec::new();
    for s in 0..o.seeds {
        let encoder = Full { hidden: vec![128, 128], act: Act::Elu, init: Init::Glorot };
        let task =
            AmortizedTask::new(vae.clone(), encoder, Training { batch_size: 64, ..Training::default() })?;
        let seed = o.seed + s;
        let theta =
            o.train(&format!("direct-{seed}"), Arc::new(Typed::new(task.clone())), 1e-3, steps, seed)?;
        let y = task.predict::<f32>(&theta, &x, Key::new(0)).pop().unwrap_or_default();
        let own = task.own(&theta).iter().map(|x| f64::from(*x)).collect();
        let tests = ContextTask { problem: vae.clone(), contexts: x.clone(), own, start: Vec::new() };
        let values: Vec<f64> =
            (0..5).flat_map(|i| tests.values(&y, Key::new(3).fold_in(i))).map(f64::from).collect();
        direct.push(mean(&values).0);
    }
    rows.push(("direct encoder".into(), show(&direct)));
    let kinds = [
        ("gradient, batch mean (as published)", Encoding::Gradient, Share::BatchMean, Flow::Iteration),
        ("gradient, per example", Encoding::Gradient, Share::PerExample, Flow::Horizon1),
        ("error", Encoding::Error, Share::PerExample, Flow::Iteration),
        ("error, through everything", Encoding::Error, Share::PerExample, Flow::Full),
    ];
    for (name, encoding, share, flow) in kinds {
        let mut all: Vec<Vec<f64>> = Vec::new();
        for s in 0..o.seeds {
            let net = UpdateNet::new(0, 128, 16);
            let inference = Iterative { net, encoding, share, flow, likelihood: vae.likelihood };
            let task = IterativeTask::new(vae.clone(), inference, ITERATIONS, 64);
            let seed = o.seed + s;
            let run = format!("{encoding:?}-{share:?}-{flow:?}-{seed}").to_lowercase();
            let theta = o.train(&run, Arc::new(Typed::new(task.clone())), 1e-3, steps, seed)?;
            // At the training batch size: the published encoding depends on it.
            let p = 64 * x.len() / (297 * 5);
            let mut sums = vec![0.0; 2 * ITERATIONS + 1];
            let batches: Vec<&[f64]> = x.chunks(p).collect();
            for (i, batch) in batches.iter().enumerate() {
                let bounds = task.bounds(&theta, batch, 2 * ITERATIONS, Key::new(3).fold_in(i as u64));
                let share = batch.len() as f64 / x.len() as f64;
                sums.iter_mut().zip(bounds).for_each(|(s, b)| *s -= share * b);
            }
            all.push(sums);
        }
        let at = |t: usize| all.iter().map(|a| a[t]).collect::<Vec<f64>>();
        rows.push((name.to_string(), show(&at(ITERATIONS))));
        let path: Vec<String> = (0..=2 * ITERATIONS).map(|t| format!("{:.2}", mean(&at(t)).0)).collect();
        rows.push((format!("  iterations 0 to {}", 2 * ITERATIONS), path.join(" ")));
        series.push(Series::line(name, (1..=2 * ITERATIONS).map(|t| (t as f64, mean(&at(t)).0)).collect()));
    }
    let level = mean(&direct).0;
    series.push(Series::line("direct encoder", vec![(1.0, level), (2.0 * ITERATIONS as f64, level)]));
    table("-ELBO of 297 test digits, binarized 5 times, nats (mean over seeds +- standard error)", &rows);
    Plot {
        title: "inference on unseen digits".into(),
        x_label: "iterations (trained with 5)".into(),
        y_label: "-ELBO (nats)".into(),
        series,
        ..Plot::default()
    }
    .save(o.dir.join("iterative.svg"))
}

fn show(x: &[f64]) -> String {
    let (m, e) = mean(x);
    if x.len() > 1 {
        format!("{m:.3} +- {e:.3}")
    } else {
        format!("{m:.3}")
    }
}
