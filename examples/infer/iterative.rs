//! Direct encoder, iterative inference in many forms, and SVI on binarized digits, at equal epochs.

use crate::{adam, double, pictures, show, surface, Options};
use outerloop::amortized::evaluate::{amortization_gap, GapConfig};
use outerloop::amortized::inference::hierarchical::HierarchicalVae;
use outerloop::amortized::inference::iterative::{Encoding, Flow, Iterative, Share};
use outerloop::amortized::inference::update::{Rule, UpdateNet};
use outerloop::amortized::inference::vae::{DecoderBounds, IterativeTask, Pixels, Vae};
use outerloop::amortized::model::{self, Full, Model, Semi, Shown, Start};
use outerloop::amortized::net::{Act, Init, Mlp};
use outerloop::amortized::problem::{ContextTask, Problem};
use outerloop::amortized::report::{mean, table};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::core::{Error, Key, Optimizer, Result, Typed};
use outerloop::lopt::hand::{Adam, Cosine};
use outerloop::lopt::wrap::ParamsEma;
use outerloop::outer::plot::{Plot, Series};
use outerloop::tasks::data::digits;
use std::sync::Arc;

/// Iterations in training.
pub const ITERATIONS: usize = 5;
/// Images for training; the others are the test.
const TRAIN: usize = 1500;
/// Times that each test image is binarized.
const VISITS: u64 = 5;
/// Draws of the noise in an evaluation, the same for all that is compared.
const DRAWS: u64 = 10;
/// Images in the picture of a form's reconstructions.
const SHOWN: usize = 8;
/// Latents of the tables.
const LATENT: usize = 16;

#[derive(clap::Args, Clone)]
pub struct IterativeOptions {
    #[command(flatten)]
    pub common: Options,
    /// main (the published forms), beyond (semi-amortized variants), ablation (the slides' open tricks), svi, hierarchical,
    /// surface (2 latents: inference over the bound, pictures), or all.
    #[arg(long, default_value = "main")]
    pub table: String,
}

/// How the optimizer's rate goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Adam at 0.001, as published.
    Constant,
    /// Adam with a cosine from 0.002 to zero, and averaged weights.
    Annealed,
}

impl Rate {
    fn optimizer(self) -> Result<Box<dyn Optimizer>> {
        if self == Rate::Constant {
            return Ok(adam(1e-3));
        }
        let rate = Cosine { peak: 2e-3, constant_fraction: 0.2, ..Cosine::default() };
        let inner = Adam { epsilon_root: 0.0, ..Adam::new(rate) };
        Ok(Box::new(ParamsEma::new(0.995, Box::new(inner))?))
    }
}

/// One row: a form of iterative inference and how it is trained.
#[derive(Clone)]
pub struct Form {
    name: &'static str,
    encoding: Encoding,
    share: Share,
    flow: Flow,
    rule: Rule,
    is_hybrid: bool,
    copies: usize,
    decoder_bounds: DecoderBounds,
    rate: Rate,
}

impl Form {
    pub fn new(name: &'static str, encoding: Encoding) -> Self {
        Form {
            name,
            encoding,
            share: Share::PerExample,
            flow: Flow::Horizon1,
            rule: Rule::Gated,
            is_hybrid: false,
            copies: 1,
            decoder_bounds: DecoderBounds::Last,
            rate: Rate::Constant,
        }
    }
}

fn main_forms() -> Vec<Form> {
    let published = Form {
        share: Share::BatchMean,
        flow: Flow::Iteration,
        ..Form::new("gradient, batch mean (as published)", Encoding::Gradient)
    };
    let error = Form { flow: Flow::Iteration, ..Form::new("error", Encoding::Error) };
    vec![published, Form::new("gradient, per example", Encoding::Gradient), error]
}

fn beyond() -> Vec<Form> {
    let all = DecoderBounds::All;
    let error = |name| Form { rate: Rate::Annealed, ..Form::new(name, Encoding::Error) };
    let both = |name| Form { rate: Rate::Annealed, ..Form::new(name, Encoding::ErrorAndGradient) };
    vec![
        error("error; annealed rate, averaged weights"),
        Form { flow: Flow::Full, ..error("error, through everything") },
        // Through ln(|g| + 10⁻⁵), whose derivative reaches 10⁵: this one explodes, the next does not.
        Form { flow: Flow::Full, ..both("error and gradient, second order") },
        Form {
            flow: Flow::Full,
            encoding: Encoding::RawGradient,
            ..error("gradient as it is, second order")
        },
        Form { is_hybrid: true, ..error("error, started by an encoder") },
        Form { is_hybrid: true, flow: Flow::Lambda, ..both("error and gradient, started, through lambda") },
        Form { decoder_bounds: all, ..error("error, decoder learns from all bounds") },
        Form { copies: ITERATIONS, ..error("error, a network per iteration") },
        Form {
            is_hybrid: true,
            decoder_bounds: all,
            ..error("error, started by an encoder, decoder learns from all bounds")
        },
        Form {
            flow: Flow::Full,
            decoder_bounds: all,
            ..error("error, through everything, decoder learns from all bounds")
        },
    ]
}

fn ablation() -> Vec<Form> {
    let plain = |name| Form::new(name, Encoding::Gradient);
    vec![
        plain("log and sign of the gradient, gated"),
        Form { encoding: Encoding::RawGradient, ..plain("gradient as it is") },
        Form { encoding: Encoding::NormGradient, ..plain("layer norm of gradient and lambda") },
        Form { rule: Rule::LearnedSgd, ..plain("not gated: gradient step and offset") },
        Form { encoding: Encoding::IndexedGradient, ..plain("and the iteration's index") },
        Form { encoding: Encoding::TwoGradients, ..plain("and the previous gradient") },
        Form { encoding: Encoding::Error, ..plain("errors instead of gradients") },
        Form { encoding: Encoding::ErrorAndGradient, ..plain("errors and gradients") },
        Form { copies: ITERATIONS, ..plain("a network per iteration") },
    ]
}

/// The problem, its test data and the training's length.
pub struct Setting {
    pub vae: Vae,
    pub x: Vec<f64>,
    pub steps: u64,
}

/// A form as a task.
pub fn training_task(s: &Setting, form: &Form) -> IterativeTask {
    let Form { encoding, share, flow, .. } = *form;
    let net = UpdateNet { rule: form.rule, ..UpdateNet::new(0, 128, s.vae.latent()) };
    let inference = Iterative { net, encoding, share, flow, likelihood: s.vae.likelihood };
    let task = IterativeTask::new(s.vae.clone(), inference, ITERATIONS, 64);
    let task = if form.is_hybrid { task.started(&[128, 128], Act::Elu) } else { task };
    IterativeTask { copies: form.copies, decoder_bounds: form.decoder_bounds, ..task }
}

impl Setting {
    pub fn new(o: &Options, latent: usize) -> Result<Self> {
        let decoder = Mlp { widths: vec![latent, 128, 64], act: Act::Elu, init: Init::Glorot };
        let vae = Vae { pixels: Pixels::Binarized, ..Vae::new(&digits(), TRAIN, decoder)? };
        let x = vae.test_set(VISITS);
        Ok(Setting { vae, x, steps: o.epochs.unwrap_or(60) * TRAIN as u64 / 64 })
    }
    fn training() -> Training {
        Training { batch_size: 64, ..Training::default() }
    }

    /// Trains any model of any problem on the same contexts with every seed, and evaluates all iterates of `tested`, which
    /// has the same parameters and may have more steps.
    fn model<P: Problem, M: Model>(
        &self,
        o: &Options,
        problem: &P,
        [model, tested]: [M; 2],
        rate: Rate,
    ) -> Result<Vec<Vec<f64>>> {
        let task = AmortizedTask::new(problem.clone(), model, Self::training())?;
        let tested = AmortizedTask::new(problem.clone(), tested, Self::training())?;
        let mut paths = Vec::new();
        for seed in o.seeds() {
            let kind = if rate == Rate::Annealed { "annealed-" } else { "" };
            let name = format!("{kind}{}-{}-{seed}", problem.name(), task.model.name());
            let theta =
                o.train(&name, Arc::new(Typed::new(task.clone())), rate.optimizer()?, self.steps, seed)?;
            let own = double(task.own(&theta));
            let tests =
                ContextTask { problem: problem.clone(), contexts: self.x.clone(), own, start: Vec::new() };
            let iterates = tested.predict::<f32>(&theta, &self.x, Key::new(0));
            paths.push(iterates.iter().map(|y| value(&tests, y)).collect());
        }
        Ok(paths)
    }

    /// [`Self::model`] of a direct encoder: one number per seed.
    fn direct<P: Problem>(&self, o: &Options, problem: &P, rate: Rate) -> Result<Vec<f64>> {
        Ok(self.model(o, problem, [encoder(), encoder()], rate)?.concat())
    }

    /// Trains a form, and evaluates it after 0 to twice the iterations, inferred in batches of two sizes.
    fn form(&self, o: &Options, form: &Form) -> Result<[Vec<Vec<f64>>; 2]> {
        let task = training_task(self, form);
        let file = form.name.replace(|c: char| !c.is_alphanumeric(), "_");
        let mut all = [Vec::new(), Vec::new()];
        for seed in o.seeds() {
            let opt = form.rate.optimizer()?;
            let theta = o.train(
                &format!("{file}-{seed}"),
                Arc::new(Typed::new(task.clone())),
                opt,
                self.steps,
                seed,
            )?;
            let own = task.own(&theta);
            let tests = ContextTask {
                problem: self.vae.clone(),
                contexts: self.x.clone(),
                own: double(own),
                start: Vec::new(),
            };
            for (batch, all) in [64, 1024].into_iter().zip(&mut all) {
                let lambdas = self.lambdas(&task, &theta, batch);
                all.push(lambdas.iter().map(|y| value(&tests, y)).collect());
                if (seed, batch) == (o.seed, 64) {
                    let shown = |(t, y): (usize, &Vec<f32>)| {
                        (t.to_string(), y[..SHOWN * 2 * self.vae.latent()].to_vec())
                    };
                    let columns: Vec<_> = lambdas[..=ITERATIONS].iter().enumerate().map(shown).collect();
                    let data = &self.x[..SHOWN * self.vae.context_dim()];
                    let path = o.dir.join(format!("reconstructions_{file}.svg"));
                    pictures::reconstructions((&self.vae, own), data, &columns, &path)?;
                    pictures::samples(&self.vae, own, &o.dir.join(format!("samples_{file}.svg")))?;
                }
            }
        }
        Ok(all)
    }

    /// Posteriors of the test data after 0 to twice the iterations, inferred in batches of this size.
    fn lambdas(&self, task: &IterativeTask, theta: &[f32], batch: usize) -> Vec<Vec<f32>> {
        let mut all = vec![Vec::new(); 2 * ITERATIONS + 1];
        for (i, rows) in self.x.chunks(batch * self.vae.context_dim()).enumerate() {
            let steps = task.infer(theta, rows, 2 * ITERATIONS, Key::new(3).fold_in(i as u64));
            all.iter_mut().zip(steps).for_each(|(all, step)| all.extend(step.lambda));
        }
        all
    }
}

/// The mean objective of all contexts over draws of the noise.
fn value<P: Problem>(tests: &ContextTask<P>, y: &[f32]) -> f64 {
    let draw = |i: u64| mean(&double(&tests.values(y, Key::new(3).fold_in(i)))).0;
    (0..DRAWS).map(draw).sum::<f64>() / DRAWS as f64
}

fn encoder() -> Full {
    Full { hidden: vec![128, 128], act: Act::Elu, init: Init::Glorot }
}

pub fn run(o: &IterativeOptions) -> Result<()> {
    let known = ["main", "beyond", "ablation", "svi", "hierarchical", "surface", "all"];
    if !known.contains(&o.table.as_str()) {
        let allowed = known.map(String::from).to_vec();
        return Err(Error::Unknown { what: "table", got: o.table.clone(), allowed });
    }
    let asked = |name: &str| o.table == name || o.table == "all";
    let s = Setting::new(&o.common, LATENT)?;
    let heading =
        "-ELBO of 297 test digits, binarized 5 times, nats (mean over seeds +- half of its 95 % interval)";
    for (name, forms) in [("main", main_forms()), ("beyond", beyond()), ("ablation", ablation())] {
        if asked(name) {
            let mut rows = Vec::new();
            let direct = |rate| s.direct(&o.common, &s.vae, rate);
            match name {
                "main" => rows.push(("direct encoder".into(), show(&direct(Rate::Constant)?))),
                "beyond" => {
                    let value = show(&direct(Rate::Annealed)?);
                    rows.push(("direct encoder; annealed rate, averaged weights".into(), value));
                }
                _ => {}
            }
            let series = forms_table(&s, &o.common, &forms, &mut rows)?;
            table(&format!("{name}: {heading}"), &rows);
            picture(&o.common, name, series)?;
        }
    }
    if asked("svi") {
        table("svi: the direct encoder's decoder, images of the first visit, one seed", &svi(&s, &o.common)?);
    }
    if asked("surface") {
        table("surface: 2 latents, one seed", &surface::run(&o.common)?);
    }
    if asked("hierarchical") {
        table(&format!("hierarchical (8 and 16 latents): {heading}"), &hierarchical(&s, &o.common)?);
    }
    Ok(())
}

fn forms_table(
    s: &Setting,
    o: &Options,
    forms: &[Form],
    rows: &mut Vec<(String, String)>,
) -> Result<Vec<Series>> {
    let mut series = Vec::new();
    for form in forms {
        let [small, large] = s.form(o, form)?;
        let at = |all: &[Vec<f64>], t: usize| all.iter().map(|a| a[t]).collect::<Vec<f64>>();
        let value = format!(
            "{}   (batches of 1024: {:.3})",
            show(&at(&small, ITERATIONS)),
            mean(&at(&large, ITERATIONS)).0
        );
        rows.push((form.name.to_string(), value));
        let path = |t: usize| mean(&at(&small, t)).0;
        let text: Vec<String> = (0..=2 * ITERATIONS).map(|t| format!("{:.2}", path(t))).collect();
        rows.push((format!("  iterations 0 to {}", 2 * ITERATIONS), text.join(" ")));
        rows.push(course(&small, ITERATIONS));
        series.push(Series::line(form.name, (1..=2 * ITERATIONS).map(|t| (t as f64, path(t))).collect()));
        eprintln!("{}: {}", form.name, text.join(" "));
    }
    Ok(series)
}

/// Whether inference improves in each of `trained` iterations, and what as many again do, for paths of every seed.
fn course(paths: &[Vec<f64>], trained: usize) -> (String, String) {
    let falls = paths.iter().filter(|p| p[..=trained].windows(2).all(|w| w[1] < w[0])).count();
    let most = |x: &dyn Fn(&Vec<f64>) -> f64| paths.iter().map(x).fold(f64::NEG_INFINITY, f64::max);
    // The first iterations are worth nats; the last may go up by less than what counts.
    let rise = most(&|p| p[..=trained].windows(2).map(|w| w[1] - w[0]).fold(f64::NEG_INFINITY, f64::max));
    let beyond = most(&|p| p[trained..].iter().map(|v| v - p[trained]).fold(f64::NEG_INFINITY, f64::max));
    (
        format!("  better in each of {trained} iterations"),
        format!(
            "{falls} of {} seeds (worst change {rise:+.3}); up to {} iterations at most {beyond:+.3}",
            paths.len(),
            2 * trained
        ),
    )
}

fn picture(o: &Options, name: &str, series: Vec<Series>) -> Result<()> {
    Plot {
        title: "inference on unseen digits".into(),
        x_label: "iterations (trained with 5)".into(),
        y_label: "-ELBO (nats)".into(),
        series,
        ..Plot::default()
    }
    .save(o.dir.join(format!("iterative_{name}.svg")))
}

/// Optimizers on every image's λ, from the prior and from the encoder: Adam, and a learned optimizer whose update is
/// applied to λ.
fn svi(s: &Setting, o: &Options) -> Result<Vec<(String, String)>> {
    let task = AmortizedTask::new(s.vae.clone(), encoder(), Setting::training())?;
    let theta = o.train("svi", Arc::new(Typed::new(task.clone())), adam(1e-3), s.steps, o.seed)?;
    let learned = outerloop::pretrained::fast()?;
    let adam = adam(5e-2);
    let mut rows = Vec::new();
    let solvers: [(&str, &dyn Optimizer); 2] =
        [("Adam, rate 0.05", &*adam), ("learned optimizer", &*learned)];
    for (name, solver) in solvers {
        let config =
            GapConfig { solver, steps: 200, every: 10, key: Key::new(7), evaluations: 20, repeats: 3 };
        let report = amortization_gap(&task, &theta, &s.x[..297 * s.vae.context_dim()], &config);
        let value = |v: &[f32]| v.iter().map(|v| f64::from(*v)).sum::<f64>() / v.len() as f64;
        if rows.is_empty() {
            rows.push(("direct encoder".into(), format!("{:.3}", value(&report.prediction))));
        }
        for (start, points) in [("the prior", &report.cold), ("the encoder", &report.warm)] {
            let shown = points.iter().filter(|p| [0, 10, 50, 100, 200].contains(&p.step));
            let text: Vec<String> = shown.map(|p| format!("{}: {:.3}", p.step, value(&p.values))).collect();
            rows.push((format!("{name}, from {start}, after steps"), text.join("  ")));
        }
    }
    Ok(rows)
}

/// Two levels of latents: a direct encoder, and networks that see the gradient.
fn hierarchical(s: &Setting, o: &Options) -> Result<Vec<(String, String)>> {
    let prior = Mlp { widths: vec![8, 64, 32], act: Act::Elu, init: Init::Glorot };
    let problem = HierarchicalVae::new(s.vae.clone(), prior)?;
    let refined = Semi {
        start: Start::Full(encoder()),
        rule: model::Rule::Network { hidden: 128, shown: Shown::SignLog },
        steps: 2,
        through: outerloop::core::ops::Through::Stopped,
        ..Semi::default()
    };
    let longer = Semi { steps: 4, ..refined.clone() };
    let direct = s.direct(o, &problem, Rate::Constant)?;
    let paths = s.model(o, &problem, [refined, longer], Rate::Constant)?;
    let at = |t: usize| paths.iter().map(|p| p[t]).collect::<Vec<f64>>();
    let text: Vec<String> = (0..=4).map(|t| format!("{:.2}", mean(&at(t)).0)).collect();
    Ok(vec![
        ("direct encoder of both levels".into(), show(&direct)),
        ("encoder and 2 steps that see the gradient".into(), show(&at(2))),
        ("  steps 0 to 4".into(), text.join(" ")),
        course(&paths, 2),
    ])
}
