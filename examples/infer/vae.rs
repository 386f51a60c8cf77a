//! A VAE on grey digits: encoder against Adam.

use crate::{double, pictures, Options};
use outerloop::amortized::evaluate::{amortization_gap, GapConfig, GapReport};
use outerloop::amortized::inference::decoder::{ConvDecoder, ConvEncoder, Decoder, Maps2d};
use outerloop::amortized::inference::vae::{importance_weighted, Vae};
use outerloop::amortized::model::{Full, Model};
use outerloop::amortized::net::Mlp;
use outerloop::amortized::report::{mean, table};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{Key, Result, Typed};
use outerloop::lopt::hand::Adam;
use outerloop::tasks::data::digits;
use std::sync::Arc;

/// Images for training; the others are the test.
const TRAIN: usize = 1527;
/// Latents.
const LATENT: usize = 10;
/// Images in a row of the picture of reconstructions.
const SHOWN: usize = 10;

#[derive(clap::Args, Clone)]
pub struct VaeOptions {
    #[command(flatten)]
    pub common: Options,
    /// Encoder and decoder: fully connected, 128 and 128 units; or convolutional.
    #[arg(long, value_enum, default_value_t = Net::Mlp)]
    pub net: Net,
    /// Steps of the solver that the encoder is compared with.
    #[arg(long, default_value_t = 2000)]
    pub solver_steps: u64,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    Mlp,
    Conv,
}

pub fn run(o: &VaeOptions) -> Result<()> {
    let images = digits();
    match o.net {
        Net::Mlp => trained(o, Mlp::new([LATENT, 128, 128, 64]).into(), Full::default()),
        Net::Conv => {
            let maps = Maps2d::new([images.height, images.width, images.channels])?;
            trained(o, ConvDecoder { latent: LATENT, maps: maps.clone() }.into(), ConvEncoder(maps))
        }
    }
}

fn trained<M: Model>(o: &VaeOptions, decoder: Decoder, encoder: M) -> Result<()> {
    let (common, name) = (&o.common, if o.net == Net::Mlp { "vae" } else { "vae_conv" });
    let vae = Vae::new(&digits(), TRAIN, decoder)?;
    let task = AmortizedTask::new(vae.clone(), encoder, Training { batch_size: 128, ..Training::default() })?;
    let steps = common.epochs.unwrap_or(60) * TRAIN as u64 / 128;
    let x = vae.test_set(1);
    let (mut bounds, mut gaps, mut first) = (Vec::new(), Vec::new(), None);
    for seed in common.seeds() {
        let run = if seed == 0 { name.to_string() } else { format!("{name}-{seed}") };
        let theta = common.train(&run, Arc::new(Typed::new(task.clone())), crate::adam(1e-3), steps, seed)?;
        eprintln!("Adam on {} posteriors", vae.len()[1]);
        let adam = Adam { epsilon_root: 0.0, ..Adam::new(5e-3) };
        let config = GapConfig {
            solver: &adam,
            steps: o.solver_steps,
            every: o.solver_steps.div_ceil(20),
            key: Key::new(1 + seed),
            evaluations: 20,
            repeats: 21,
        };
        let report = amortization_gap(&task, &theta, &x, &config);
        bounds.push(mean(&double(&report.prediction)).0);
        gaps.push(report.gap());
        first.get_or_insert((theta, report));
    }
    let Some((theta, report)) = first else { return Ok(()) };
    let lambda = task.predict::<f32>(&theta, &x, Key::new(0)).pop().unwrap_or_default();
    let rows = rows((&vae, task.own(&theta)), &report, (&x, &lambda));
    table(&format!("VAE on {} test digits (objectives are -ELBO, nats; one core)", vae.len()[1]), &rows);
    if bounds.len() > 1 {
        let rows = [("-ELBO of the encoder", bounds), ("amortization gap", gaps)];
        let rows = rows.map(|(name, x)| (name.to_string(), crate::show(&x)));
        table(&format!("over {} seeds, mean +- half of the 95 % interval", common.seeds), &rows);
    }
    let [by_steps, by_seconds] = report.plots("encoder against Adam on every posterior");
    by_steps.save(common.dir.join(format!("{name}_steps.svg")))?;
    by_seconds.save(common.dir.join(format!("{name}_seconds.svg")))?;
    pictures::samples(&vae, task.own(&theta), &common.dir.join(format!("{name}_samples.svg")))?;
    let shown = &x[..SHOWN * vae.shape().iter().product::<usize>()];
    let encoded = [("encoder".to_string(), lambda[..SHOWN * 2 * LATENT].to_vec())];
    let path = common.dir.join(format!("{name}_reconstructions.svg"));
    pictures::reconstructions((&vae, task.own(&theta)), shown, &encoded, &path)
}

/// The report's rows, and what it took them: one seed.
fn rows(
    (vae, own): (&Vae, &[f32]),
    report: &GapReport,
    (x, lambda): (&[f64], &[f32]),
) -> Vec<(String, String)> {
    let mut rows = report.rows();
    let (m, error) = mean(&double(&report.prediction));
    rows.push((
        "prediction, mean over images".into(),
        format!("{m:.3}, 95 % interval +- {:.3}", 1.96 * error),
    ));
    if let Some(end) = report.cold.last() {
        let ratio = end.seconds / report.predict_seconds;
        let text = format!("{ratio:.0}x: {} steps in {:.2} s, {}", end.step, end.seconds, cpu());
        rows.push(("all of the solver's steps over the prediction".into(), text));
    }
    for k in [1, 10, 100] {
        let bound = importance_weighted(vae, &double(own), x, &double(lambda), k, Key::new(5));
        rows.push((format!("importance-weighted bound, {k} samples"), format!("{bound:.3} nats")));
    }
    rows
}

/// The processor's name where the system tells it, else its architecture.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split(": ").nth(1)).unwrap_or(std::env::consts::ARCH).to_string()
}
