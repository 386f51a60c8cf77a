//! A VAE on grey images: encoder against Adam.

use crate::{double, pictures, Options};
use outerloop::amortized::evaluate::{amortization_gap, GapConfig, GapReport};
use outerloop::amortized::inference::decoder::{ConvDecoder, ConvEncoder, Decoder, Maps2d, Noise};
use outerloop::amortized::inference::elbo::{Likelihood, CLAMP};
use outerloop::amortized::inference::vae::{importance_weighted, Vae};
use outerloop::amortized::model::{Full, Model};
use outerloop::amortized::net::Mlp;
use outerloop::amortized::report::{mean, table};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{Error, Key, Result, Split, Typed};
use outerloop::lopt::hand::Adam;
use outerloop::tasks::data::{digits, ImageData, ImageFiles};
use std::sync::Arc;

/// Digits for training; the others are the test.
const TRAIN: usize = 1527;
/// Test images that are inferred, at most.
const TESTED: usize = 1024;
/// Latents.
const LATENT: usize = 10;
/// Nats below which a latent is not used.
const UNUSED: f64 = 0.01;
/// Images in a row of the picture of reconstructions.
const SHOWN: usize = 10;

#[derive(clap::Args, Clone)]
pub struct VaeOptions {
    #[command(flatten)]
    pub common: Options,
    /// digits, which are inside; or a data set in the directory that OUTERLOOP_DATA names: mnist, fashion-mnist, ...
    #[arg(long, default_value = "digits", value_parser = parsed)]
    pub images: Images,
    /// Encoder and decoder: fully connected, two layers of 128 units (256 for files); or convolutional.
    #[arg(long, value_enum, default_value_t = Net::Mlp)]
    pub net: Net,
    /// The density of pixels. Those of the Gaussians are not bounded: bounds in nats do not compare between kinds.
    #[arg(long, value_enum, default_value_t = Density::Bernoulli)]
    pub likelihood: Density,
    /// Log-variance of the Gaussian, log-scale of the logistic, where they are fixed [default: -3].
    #[arg(long, allow_negative_numbers = true)]
    pub log_scale: Option<f64>,
    /// Steps of the solver that the encoder is compared with.
    #[arg(long, default_value_t = 2000)]
    pub solver_steps: u64,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    Mlp,
    Conv,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Density {
    /// Of grey pixels as probabilities.
    Bernoulli,
    /// Its variance fixed.
    Gaussian,
    /// Its variance learned, one for all pixels.
    GaussianLearned,
    /// Its variance learned, one for each pixel.
    GaussianPerPixel,
    /// Its variance learned, by the decoder from the latents.
    GaussianDecoder,
    /// Integrated over a byte's bin, its scale fixed.
    Logistic,
}

impl Density {
    /// The likelihood, and whether the decoder gives the variances itself or learns so many beside.
    fn parts(self, log_scale: f64) -> (Likelihood, usize, Option<Noise>) {
        match self {
            Density::Bernoulli => (Likelihood::Bernoulli, 1, None),
            Density::Gaussian => (Likelihood::Gaussian(log_scale), 1, None),
            Density::GaussianLearned => (Likelihood::LearnedGaussian, 1, Some(Noise::Shared)),
            Density::GaussianPerPixel => (Likelihood::LearnedGaussian, 1, Some(Noise::PerPixel)),
            Density::GaussianDecoder => (Likelihood::LearnedGaussian, 2, None),
            Density::Logistic => (Likelihood::DiscretizedLogistic(log_scale), 1, None),
        }
    }
    fn is_fixed(self) -> bool {
        matches!(self, Density::Gaussian | Density::Logistic)
    }
    /// What runs and pictures are named by; nothing for the default.
    fn suffix(self) -> &'static str {
        match self {
            Density::Bernoulli => "",
            Density::Gaussian => "_gaussian",
            Density::GaussianLearned => "_gaussian_learned",
            Density::GaussianPerPixel => "_gaussian_per_pixel",
            Density::GaussianDecoder => "_gaussian_decoder",
            Density::Logistic => "_logistic",
        }
    }
}

/// Where images come from; none: the digits.
pub type Images = Option<ImageFiles>;

fn parsed(name: &str) -> Result<Images> {
    if name == "digits" {
        return Ok(None);
    }
    ImageFiles::from_name(name).map(Some).map_err(|e| match e {
        Error::Unknown { what, got, mut allowed } => {
            allowed.insert(0, "digits".into());
            Error::Unknown { what, got, allowed }
        }
        other => other,
    })
}

/// Images of which the first, as many as the number says, are for training.
struct Set {
    images: ImageData,
    train: usize,
    epochs: u64,
    hidden: usize,
}

impl Set {
    fn load(from: Images) -> Result<Self> {
        let Some(files) = from else {
            return Ok(Set { images: digits(), train: TRAIN, epochs: 60, hidden: 128 });
        };
        let splits = files.load(None)?;
        let train = splits.data().len() - splits.len(Split::Test);
        Ok(Set { images: splits.data().clone(), train, epochs: 10, hidden: 256 })
    }
}

pub fn run(o: &VaeOptions) -> Result<()> {
    match o.log_scale {
        Some(scale) if !o.likelihood.is_fixed() => {
            return Err(Error::mismatch(
                "--log-scale for a density that has or learns its own",
                "none",
                scale,
            ));
        }
        Some(scale) if scale.is_nan() || scale.abs() > CLAMP => {
            let why = format!("must lie from -{CLAMP} to {CLAMP}, got {scale}");
            return Err(Error::invalid("--log-scale", why));
        }
        _ => {}
    }
    let (likelihood, numbers, noise) = o.likelihood.parts(o.log_scale.unwrap_or(-3.0));
    let set = Set::load(o.images)?;
    let (images, h) = (&set.images, set.hidden);
    let vae = |decoder: Decoder| {
        let decoder = match noise {
            Some(noise) => Decoder::Noisy(Box::new(decoder), noise),
            None => decoder,
        };
        Vae::with_likelihood(images, set.train, decoder, likelihood)
    };
    match o.net {
        Net::Mlp => {
            let decoder = Mlp::new([LATENT, h, h, numbers * images.features()]);
            trained(o, &set, vae(decoder.into())?, Full::new([h, h]))
        }
        Net::Conv => {
            let maps = Maps2d::new([images.height, images.width, images.channels])?;
            let decoder = ConvDecoder { numbers, ..ConvDecoder::new(LATENT, maps.clone()) };
            trained(o, &set, vae(decoder.into())?, ConvEncoder(maps))
        }
    }
}

fn trained<M: Model>(o: &VaeOptions, set: &Set, vae: Vae, encoder: M) -> Result<()> {
    let common = &o.common;
    let net = if o.net == Net::Mlp { "vae" } else { "vae_conv" };
    let files = o.images.map_or_else(String::new, |files| format!("_{}", files.name()));
    let name = format!("{net}{files}{}", o.likelihood.suffix());
    let task = AmortizedTask::new(vae.clone(), encoder, Training { batch_size: 128, ..Training::default() })?;
    let steps = common.epochs.unwrap_or(set.epochs) * set.train as u64 / 128;
    let tested = vae.len()[1].min(TESTED);
    let mut x = vae.test_set(1);
    x.truncate(tested * set.images.features());
    let (mut bounds, mut gaps, mut first) = (Vec::new(), Vec::new(), None);
    for seed in common.seeds() {
        let run = if seed == 0 { name.clone() } else { format!("{name}-{seed}") };
        let theta = common.train(&run, Arc::new(Typed::new(task.clone())), crate::adam(1e-3), steps, seed)?;
        eprintln!("Adam on {tested} posteriors");
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
    table(
        &format!("VAE on {tested} test images of {} (objectives are -ELBO, nats; one core)", set.images.name),
        &rows,
    );
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
    let nats = latent_nats(lambda, vae.latent());
    let total: f64 = nats.iter().sum();
    let text: Vec<String> = nats.iter().map(|n| format!("{n:.2}")).collect();
    rows.push(("divergence, and of every latent (nats)".into(), format!("{total:.3}: {}", text.join(" "))));
    if vae.likelihood == Likelihood::LearnedGaussian {
        rows.push((
            "standard deviation of pixels: least, median, largest".into(),
            deviations(vae, own, lambda),
        ));
    }
    let used = nats.iter().filter(|n| **n > UNUSED).count();
    let of =
        format!("{used} of {} (more than {UNUSED} nats; the others have collapsed to the prior)", nats.len());
    rows.push(("latents in use".into(), of));
    for k in [1, 10, 100] {
        let bound = importance_weighted(vae, &double(own), x, &double(lambda), k, Key::new(5));
        rows.push((format!("importance-weighted bound, {k} samples"), format!("{bound:.3} nats")));
    }
    rows
}

/// Of what is learned of the pixels' noise, at the posteriors' means.
fn deviations(vae: &Vae, own: &[f32], lambda: &[f32]) -> String {
    let z = vae.latent();
    let means: Vec<f32> = lambda.chunks(2 * z).flat_map(|row| &row[..z]).copied().collect();
    let [_, log_variance] = vae.outputs(own, &means);
    let mut all: Vec<f64> = log_variance.iter().map(|v| (0.5 * f64::from(*v)).exp()).collect();
    all.sort_by(f64::total_cmp);
    let at = |part: usize| all.get((all.len() - 1) * part / 2).copied().unwrap_or(f64::NAN);
    format!("{:.4} {:.4} {:.4}", at(0), at(1), at(2))
}

/// Mean divergence of every latent from the prior, the largest first: `½ (μ² + σ² − 1 − ln σ²)`.
fn latent_nats(lambda: &[f32], latent: usize) -> Vec<f64> {
    let lambda = double(lambda);
    let rows = || lambda.chunks(2 * latent);
    let of = |k: usize| {
        let one = |row: &[f64]| {
            let (mu, v) = (row[k], row[latent + k]);
            0.5 * (mu * mu + v.exp() - 1.0 - v)
        };
        mean(&rows().map(one).collect::<Vec<f64>>()).0
    };
    let mut nats: Vec<f64> = (0..latent).map(of).collect();
    nats.sort_by(|a, b| b.total_cmp(a));
    nats
}

/// The processor's name where the system tells it, else its architecture.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split(": ").nth(1)).unwrap_or(std::env::consts::ARCH).to_string()
}
