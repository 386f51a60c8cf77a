//! A distribution over image MLPs.

use super::{ImageLoss, MlpConfig, MlpTask, Nonlinearity, Norm};
use crate::data::Splits;
use outerloop_core::{Error, Key, Result, TaskFamily};
use rand::Rng;
use std::ops::RangeInclusive;

/// [`MlpTask`]s with sampled data set, widths, depth, nonlinearity, norm, initial scale and batch
/// size. The default ranges are those of the reference's parametric family.
#[derive(Clone, Debug)]
pub struct ImageMlpFamily {
    /// One is drawn uniformly; several sizes of the same images make the input width vary.
    pub datasets: Vec<Splits>,
    /// Width of all hidden layers, log-uniform. Default 8 to 128.
    pub width: RangeInclusive<usize>,
    /// Number of hidden layers, uniform. Default 0 to 4.
    pub layers: RangeInclusive<usize>,
    /// Drawn uniformly; repeat an entry to make it likelier. Default: all, ReLU and SiLU twice.
    pub nonlinearities: Vec<Nonlinearity>,
    /// Drawn uniformly. Default: none, layer, batch.
    pub norms: Vec<Norm>,
    /// Drawn uniformly. Default: cross entropy.
    pub losses: Vec<ImageLoss>,
    /// Factor on the initial weights, uniform. Default 0.5 to 2.
    pub init_scale: RangeInclusive<f64>,
    /// Log-uniform. Default 4 to 512.
    pub batch_size: RangeInclusive<usize>,
}

impl ImageMlpFamily {
    /// The default ranges on one data set.
    pub fn new(data: Splits) -> Self {
        ImageMlpFamily {
            datasets: vec![data],
            width: 8..=128,
            layers: 0..=4,
            nonlinearities: Nonlinearity::REFERENCE.to_vec(),
            norms: vec![Norm::None, Norm::Layer, Norm::Batch],
            losses: vec![ImageLoss::CrossEntropy],
            init_scale: 0.5..=2.0,
            batch_size: 4..=512,
        }
    }

    /// Errors if a range is empty or reaches 0 where it must not.
    pub fn check(&self) -> Result<()> {
        let lists = [self.datasets.len(), self.nonlinearities.len(), self.norms.len(), self.losses.len()];
        check_ranges("mlp", &[&self.width, &self.batch_size], &self.layers, &self.init_scale, &lists)
    }
}

/// Errors if a range is empty, one of `positive` reaches 0, or a list has no entry.
pub(super) fn check_ranges(
    family: &str,
    positive: &[&RangeInclusive<usize>; 2],
    layers: &RangeInclusive<usize>,
    init_scale: &RangeInclusive<f64>,
    lists: &[usize],
) -> Result<()> {
    let bad = |what: &str, why: String| Err(Error::invalid(format!("{family} family: {what}"), why));
    if positive.iter().any(|r| r.is_empty() || *r.start() == 0) {
        return bad("width, batch_size", format!("must be ranges from at least 1, got {positive:?}"));
    }
    let finite = *init_scale.start() >= 0.0 && init_scale.end().is_finite();
    if layers.is_empty() || init_scale.is_empty() || !finite {
        let why = format!("must be finite ranges from at least 0, got {layers:?}, {init_scale:?}");
        return bad("layers, init_scale", why);
    }
    if lists.contains(&0) {
        return bad("lists", format!("each must have at least one entry, got lengths {lists:?}"));
    }
    Ok(())
}

/// An integer between the ends of `range`, log-uniform, rounded to the nearest.
pub(crate) fn log_uniform(rng: &mut impl Rng, range: &RangeInclusive<usize>) -> usize {
    let (low, high) = ((*range.start() as f64).ln(), (*range.end() as f64).ln());
    rng.gen_range(low..=high).exp().round() as usize
}

pub(crate) fn one_of<T: Clone>(rng: &mut impl Rng, choices: &[T]) -> T {
    choices[rng.gen_range(0..choices.len())].clone()
}

impl TaskFamily for ImageMlpFamily {
    /// Index of the data set, and the architecture.
    type Config = (usize, MlpConfig);
    type Task = MlpTask;

    fn name(&self) -> String {
        let names: Vec<&str> = self.datasets.iter().map(|d| d.data().name.as_str()).collect();
        format!("{}_mlp_family", names.join("_"))
    }

    /// # Panics
    /// If [`Self::check`] fails.
    fn sample(&self, key: Key) -> Self::Config {
        self.check().unwrap_or_else(|e| panic!("{e}"));
        let mut rng = key.rng();
        let dataset = rng.gen_range(0..self.datasets.len());
        let width = log_uniform(&mut rng, &self.width);
        let config = MlpConfig {
            hidden: vec![width; rng.gen_range(self.layers.clone())],
            nonlinearity: one_of(&mut rng, &self.nonlinearities),
            norm: one_of(&mut rng, &self.norms),
            loss: one_of(&mut rng, &self.losses),
            init_scale: rng.gen_range(self.init_scale.clone()),
            batch_size: log_uniform(&mut rng, &self.batch_size),
        };
        (dataset, config)
    }

    /// # Panics
    /// If the data set has listed batches of another size than the configuration's.
    fn task(&self, (dataset, config): &Self::Config) -> MlpTask {
        MlpTask::new(self.datasets[*dataset].clone(), config.clone()).unwrap_or_else(|e| panic!("{e}"))
    }
}
