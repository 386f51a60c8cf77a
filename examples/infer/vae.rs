//! A VAE on grey digits: encoder against Adam.

use crate::Options;
use outerloop::amortized::evaluate::{amortization_gap, GapConfig};
use outerloop::amortized::inference::vae::{importance_weighted, Vae};
use outerloop::amortized::model::Full;
use outerloop::amortized::net::Mlp;
use outerloop::amortized::report::table;
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{Key, Result, Typed};
use outerloop::lopt::hand::Adam;
use outerloop::tasks::data::digits;
use std::sync::Arc;

pub fn run(o: &Options) -> Result<()> {
    let train = 1527;
    let vae = Vae::new(&digits(), train, Mlp::new([10, 128, 128, 64]))?;
    let training = Training { batch_size: 128, ..Training::default() };
    let task = AmortizedTask::new(vae.clone(), Full::default(), training)?;
    let steps = o.epochs.unwrap_or(60) * train as u64 / 128;
    let theta = o.train("vae", Arc::new(Typed::new(task.clone())), crate::adam(1e-3), steps, o.seed)?;
    let x = vae.test_set(1);
    let adam = Adam { epsilon_root: 0.0, ..Adam::new(5e-3) };
    let config = GapConfig {
        solver: &adam,
        steps: 2000,
        every: 100,
        key: Key::new(1 + o.seed),
        evaluations: 20,
        repeats: 21,
    };
    eprintln!("Adam on {} posteriors", vae.len()[1]);
    let report = amortization_gap(&task, &theta, &x, &config);
    let mut rows = report.rows();
    let own: Vec<f64> = task.own(&theta).iter().map(|x| f64::from(*x)).collect();
    let lambda = task.predict::<f32>(&theta, &x, Key::new(0)).pop().unwrap_or_default();
    let lambda: Vec<f64> = lambda.iter().map(|x| f64::from(*x)).collect();
    for k in [1, 10, 100] {
        let bound = importance_weighted(&vae, &own, &x, &lambda, k, Key::new(5));
        rows.push((format!("importance-weighted bound, {k} samples"), format!("{bound:.3} nats")));
    }
    table(&format!("VAE on {} test digits (objectives are -ELBO, nats; one core)", vae.len()[1]), &rows);
    let [by_steps, by_seconds] = report.plots("encoder against Adam on every posterior");
    by_steps.save(o.dir.join("vae_steps.svg"))?;
    by_seconds.save(o.dir.join("vae_seconds.svg"))
}
