//! A recurrent latent variable model of sequences, learned with its inference: an encoder, and steps from the prediction.

use crate::filter::{coupled, Data, FilterOptions, Remembers};
use crate::{pictures, show, single};
use outerloop::amortized::inference::elbo::Likelihood;
use outerloop::amortized::inference::iterative::{Encoding, Flow, Iterative, Share};
use outerloop::amortized::inference::recurrent::{
    drawn, step_net, FilteredSequence, Inference, Memory, SequenceTask, Sizes,
};
use outerloop::amortized::inference::sequences::{
    LinearSequences, Moments, MovingImages, NoisyPendulum, Recorded, SequenceSource,
};
use outerloop::amortized::report::{mean, table};
use outerloop::core::atomic::write_atomic;
use outerloop::core::{Key, Result, Typed};
use outerloop::lopt::hand::{Adam, Cosine};
use outerloop::outer::plot::{ImageRow, Plot, Series, Style};
use outerloop::tasks::data::digits;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// Simulated test sequences.
const TESTS: usize = 200;
/// Sequences whose means are written for simulated data.
const WRITTEN: usize = 10;
/// Runs of the filter that a mean and a band are made of.
const RUNS: usize = 100;

/// Where sequences come from, and those of the test.
struct World {
    sources: [Arc<dyn SequenceSource>; 2],
    /// `[N][T, dim]`
    tests: Vec<Vec<f64>>,
    /// The first test sequences without noise, where that is known.
    truth: Vec<Vec<f64>>,
    likelihood: Likelihood,
    sizes: Sizes,
    /// What a file's numbers were shifted and scaled by.
    moments: Option<Moments>,
    written: usize,
}

/// One way of inference, trained.
struct Trained {
    name: String,
    task: SequenceTask,
    theta: Vec<f32>,
    /// Inference steps in training; none for an encoder.
    steps: usize,
    /// Mean bounds per time step for every seed: of the encoder, or after 0, 1, ... steps at most twice those of training.
    bounds: Vec<Vec<f64>>,
    /// Of the first seed, every time step's bound after 0, 1, ... steps.
    over_time: Vec<Vec<f64>>,
}

pub fn run(o: &FilterOptions, recorded: Option<[Recorded; 2]>) -> Result<()> {
    let world = World::new(o, recorded)?;
    let mut ways = vec![("encoder".to_string(), 0)];
    let mut counts = vec![1, o.steps];
    counts.dedup();
    ways.extend(
        counts.into_iter().map(|k| (format!("from the prediction, trained and tested after {k}"), k)),
    );
    let trained: Vec<Trained> =
        ways.into_iter().map(|(name, steps)| world.train(o, name, steps)).collect::<Result<_>>()?;
    let mut rows = Vec::new();
    let exact = world.exact(o);
    if let Some(exact) = &exact {
        let mean = exact.iter().sum::<f64>() / exact.len() as f64;
        rows.push(("log p(x), Kalman".into(), format!("{mean:.3}")));
    }
    for t in &trained {
        let at = |k: usize| show(&t.bounds.iter().map(|b| b[k]).collect::<Vec<f64>>());
        rows.push((t.name.clone(), at(t.steps)));
        let steps = if t.steps == 0 { 0..0 } else { 0..2 * t.steps + 1 };
        rows.extend(steps.filter(|k| *k != t.steps).map(|k| (format!("  after {k}"), at(k))));
    }
    let Sizes { latent, hidden, .. } = world.sizes;
    let (n, steps) = (world.tests.len(), world.sources[1].steps());
    let unit = if world.moments.is_some() { ", of standardized numbers" } else { "" };
    table(
        &format!(
            "{}: filtering bounds in nats per step{unit}, {n} test sequences of {steps} steps, {latent} latents, {hidden} units",
            o.data
        ),
        &rows,
    );
    if !world.truth.is_empty() {
        let title = format!("distance from the signal without noise, root mean square, {WRITTEN} sequences");
        table(&title, &world.distances(o, &trained));
    }
    let (dir, last) = (&o.common.dir, &trained[trained.len() - 1]);
    let name = format!("recurrent_{}", world.sources[0].name());
    bounds_over_time(&trained, exact.as_deref()).save(dir.join(format!("{name}_bounds.svg")))?;
    world.means(o, last).save(dir.join(format!("{name}_means.svg")))?;
    if o.data == Data::Digits {
        world.images(last, &dir.join(format!("{name}_images.svg")))?;
    }
    world.write(last, &dir.join(format!("{name}_means.csv")))
}

impl World {
    fn new(o: &FilterOptions, recorded: Option<[Recorded; 2]>) -> Result<Self> {
        let is_digits = o.data == Data::Digits;
        let length = o.length.unwrap_or(if is_digits { 12 } else { 30 });
        let sizes = Sizes {
            latent: o.latent.unwrap_or(if is_digits { 16 } else { 4 }),
            hidden: o.hidden.unwrap_or(if is_digits { 64 } else { 32 }),
            memory: match o.memory {
                Remembers::Latents => Memory::Latents,
                Remembers::Observations => Memory::Observations,
            },
            ..Sizes::default()
        };
        let likelihood = if is_digits { Likelihood::Bernoulli } else { Likelihood::LearnedGaussian };
        let key = Key::new(o.common.seed).named("test sequences");
        if let Some([train, test]) = recorded {
            let moments = train.moments();
            let [train, test] = [train, test].map(|r| r.standardized(&moments));
            let tests: Vec<Vec<f64>> = (0..test.len()).map(|i| test.get(i).to_vec()).collect();
            let written = tests.len();
            let sources: [Arc<dyn SequenceSource>; 2] = [Arc::new(train), Arc::new(test)];
            return Ok(World {
                sources,
                tests,
                truth: Vec::new(),
                likelihood,
                sizes,
                moments: Some(moments),
                written,
            });
        }
        let source: Arc<dyn SequenceSource> = match &o.data {
            Data::Pendulum => Arc::new(NoisyPendulum::new(length)),
            Data::Digits => Arc::new(MovingImages { images: Arc::new(digits()), steps: length }),
            Data::Linear | Data::File(_) => Arc::new(LinearSequences { model: coupled(), steps: length }),
        };
        let tests = drawn(&*source, TESTS, key);
        let signal = |i: usize| {
            let mut out = vec![0.0; tests[i].len()];
            source.signal(key.fold_in(i as u64), &mut out).then_some(out)
        };
        let truth = (0..WRITTEN).filter_map(signal).collect();
        let sources = [source.clone(), source];
        Ok(World { sources, tests, truth, likelihood, sizes, moments: None, written: WRITTEN })
    }

    fn train(&self, o: &FilterOptions, name: String, steps: usize) -> Result<Trained> {
        let inference = match steps {
            0 => Inference::Encoder(vec![self.sizes.hidden]),
            _ => {
                let (encoding, share) = (Encoding::ErrorAndGradient, Share::PerExample);
                let net = step_net(self.sizes.hidden);
                let likelihood = self.likelihood;
                Inference::Iterations(
                    Iterative { net, encoding, share, flow: Flow::Horizon1, likelihood },
                    steps,
                )
            }
        };
        let task = SequenceTask::new(self.sources.clone(), self.likelihood, inference, self.sizes)?;
        let mut trained = Trained { name, task, theta: Vec::new(), steps, bounds: vec![], over_time: vec![] };
        let Data::File(path) = &o.data else {
            self.seeds(o, &mut trained, &o.data.to_string())?;
            return Ok(trained);
        };
        let stem = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        self.seeds(o, &mut trained, &stem)?;
        Ok(trained)
    }

    fn seeds(&self, o: &FilterOptions, trained: &mut Trained, data: &str) -> Result<()> {
        let steps = o.common.epochs.unwrap_or(3000);
        for seed in o.common.seeds() {
            let rate = Cosine { peak: 3e-3, constant_fraction: 0.3, ..Cosine::default() };
            let opt = Box::new(Adam { epsilon_root: 0.0, ..Adam::new(rate) });
            let memory = if o.memory == Remembers::Latents { "latents" } else { "observations" };
            let name = format!("recurrent-{data}-{memory}-{}-{seed}", trained.steps);
            let task = Arc::new(Typed::new(trained.task.clone()));
            let theta = o.common.train(&name, task, opt, steps, seed)?;
            // After k steps: the last bound of runs that do k at every time step.
            let counts = if trained.steps == 0 { 0..1 } else { 0..2 * trained.steps + 1 };
            let over_time: Vec<Vec<f64>> = counts.map(|k| self.over_time(&trained.task, &theta, k)).collect();
            let average = |b: &Vec<f64>| b.iter().sum::<f64>() / b.len() as f64;
            trained.bounds.push(over_time.iter().map(average).collect());
            if trained.theta.is_empty() {
                (trained.theta, trained.over_time) = (theta, over_time);
            }
        }
        Ok(())
    }

    /// The bound of every time step after `k` inference steps, averaged over the test sequences.
    fn over_time(&self, task: &SequenceTask, theta: &[f32], k: usize) -> Vec<f64> {
        let steps = task.bounds_of(theta, &self.tests, k, Key::new(7));
        steps.iter().map(|visits| visits.last().map_or(f64::NAN, |b| mean(b).0)).collect()
    }

    /// `log p(x_t | x_{<t})` averaged over the test sequences, where the model that made them is known.
    fn exact(&self, o: &FilterOptions) -> Option<Vec<f64>> {
        if o.data != Data::Linear {
            return None;
        }
        let (model, steps) = (coupled(), self.sources[1].steps());
        let mut sums = vec![0.0; steps];
        for x in &self.tests {
            let filtered = model.filter(&x.chunks(2).map(<[f64]>::to_vec).collect::<Vec<_>>());
            sums.iter_mut().zip(filtered).for_each(|(s, f)| *s += f.log_likelihood / self.tests.len() as f64);
        }
        Some(sums)
    }

    fn filter(&self, trained: &Trained, i: usize) -> FilteredSequence {
        let key = Key::new(8).fold_in(i as u64);
        trained.task.filter(&trained.theta, &self.tests[i], (RUNS, trained.steps), key)
    }

    /// How far from the signal the observations are, and what filters make of them.
    fn distances(&self, o: &FilterOptions, trained: &[Trained]) -> Vec<(String, String)> {
        let rms = |estimate: &dyn Fn(usize) -> Vec<f64>| {
            let one = |(i, truth): (usize, &Vec<f64>)| {
                estimate(i).iter().zip(truth).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / truth.len() as f64
            };
            let all = self.truth.iter().enumerate().map(one).sum::<f64>();
            format!("{:.4}", (all / self.truth.len() as f64).sqrt())
        };
        let mut rows = vec![("observations".to_string(), rms(&|i| self.tests[i].clone()))];
        if o.data == Data::Linear {
            let model = coupled();
            let kalman = |i: usize| {
                let xs: Vec<Vec<f64>> = self.tests[i].chunks(2).map(<[f64]>::to_vec).collect();
                model.filter(&xs).iter().flat_map(|s| model.c.apply(&s.filtered.mean)).collect()
            };
            rows.push(("Kalman, who knows the model".into(), rms(&kalman)));
        }
        rows.extend(trained.iter().map(|t| (t.name.clone(), rms(&|i| self.filter(t, i).mean.concat()))));
        rows
    }

    /// The number of the first test sequence that varies most: seen, filtered, and the truth.
    fn means(&self, o: &FilterOptions, trained: &Trained) -> Plot {
        let (x, dim) = (&self.tests[0], self.sources[1].dim());
        let column = |x: &[f64], c: usize| x.iter().skip(c).step_by(dim).copied().collect::<Vec<f64>>();
        let spread = |c: usize| mean(&column(x, c)).1;
        let c = (0..dim).max_by(|a, b| spread(*a).total_cmp(&spread(*b))).unwrap_or(0);
        let over = |y: &[f64]| y.iter().enumerate().map(|(t, y)| (t as f64, *y)).collect::<Vec<_>>();
        let banded = |name: &str, at: &dyn Fn(usize) -> (f64, f64)| {
            let all: Vec<(f64, f64)> = (0..x.len() / dim).map(at).collect();
            let band =
                all.iter().enumerate().map(|(t, (m, s))| (t as f64, m - 2.0 * s, m + 2.0 * s)).collect();
            Series::line(name, over(&all.iter().map(|a| a.0).collect::<Vec<f64>>())).with_band(band)
        };
        let filtered = self.filter(trained, 0);
        let mut series = vec![banded("filtered", &|t| (filtered.mean[t][c], filtered.std[t][c]))];
        if o.data == Data::Linear {
            let model = coupled();
            let steps = model.filter(&x.chunks(2).map(<[f64]>::to_vec).collect::<Vec<_>>());
            let at = |t: usize| {
                let q = &steps[t].filtered;
                (model.c.apply(&q.mean)[c], q.cov.congruent(&model.c).at(c, c).sqrt())
            };
            series.push(banded("Kalman", &at));
        }
        if let Some(truth) = self.truth.first().filter(|_| o.data != Data::Digits) {
            series.push(Series { style: Style::Dashed, ..Series::line("truth", over(&column(truth, c))) });
        }
        let seen = Series::line("seen", over(&column(x, c))).with_color(4);
        series.push(Series { style: Style::Points, ..seen });
        Plot {
            title: format!("number {} of a test sequence, filtered, +- 2 standard deviations", c + 1),
            x_label: "time step".into(),
            y_label: if self.moments.is_some() { "standardized value" } else { "value" }.into(),
            series,
            ..Plot::default()
        }
    }

    /// Frames of three sequences: seen, expected before and after they were seen.
    fn images(&self, trained: &Trained, path: &Path) -> Result<()> {
        let images = digits();
        let len = images.features();
        let flat = |frames: &[Vec<f64>]| single(&frames.concat());
        let mut rows = Vec::new();
        for i in 0..3 {
            let filtered = self.filter(trained, i);
            rows.push(ImageRow::new("seen", &single(&self.tests[i]), len));
            if let Some(predicted) = &filtered.predicted {
                rows.push(ImageRow::new("expected before", &flat(predicted), len));
            }
            rows.push(ImageRow::new("filtered", &flat(&filtered.mean), len));
        }
        let columns = (0..self.sources[1].steps()).map(|t| t.to_string()).collect();
        let shape = [images.height, images.width, images.channels];
        pictures::grid("moving digits", shape, columns, rows).save(path)
    }

    /// Filtered means and their standard deviations in the data's own units.
    fn write(&self, trained: &Trained, path: &Path) -> Result<()> {
        let dim = self.sources[1].dim();
        let mut text = String::from("sequence,step");
        (1..=dim).for_each(|c| _ = write!(text, ",mean{c},std{c}"));
        text.push('\n');
        for i in 0..self.written.min(self.tests.len()) {
            let filtered = self.filter(trained, i);
            for (t, (means, stds)) in filtered.mean.iter().zip(&filtered.std).enumerate() {
                _ = write!(text, "{i},{t}");
                for c in 0..dim {
                    let (shift, scale) = self.moments.as_ref().map_or((0.0, 1.0), |m| (m.mean[c], m.std[c]));
                    _ = write!(text, ",{:.6},{:.6}", shift + scale * means[c], scale * stds[c]);
                }
                text.push('\n');
            }
        }
        write_atomic(path, text.as_bytes())
    }
}

/// Bounds over time: exact where known, every way as trained, and the last after other numbers of inference steps.
fn bounds_over_time(trained: &[Trained], exact: Option<&[f64]>) -> Plot {
    let over = |y: &[f64]| y.iter().enumerate().map(|(t, y)| (t as f64, *y)).collect::<Vec<_>>();
    let mut series: Vec<Series> = exact.iter().map(|e| Series::line("log p(x_t | past)", over(e))).collect();
    series.extend(trained.iter().map(|t| Series::line(t.name.as_str(), over(&t.over_time[t.steps]))));
    if let Some(last) = trained.last() {
        let others = (0..last.over_time.len()).filter(|k| *k != last.steps);
        let line = |k: usize| Series::line(format!("the last, after {k}"), over(&last.over_time[k]));
        series.extend(others.map(line));
    }
    Plot {
        title: "filtering bound over time, mean of the test sequences".into(),
        x_label: "time step".into(),
        y_label: "nats".into(),
        series,
        ..Plot::default()
    }
}
