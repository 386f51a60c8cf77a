//! What the lab says of the estimators at the first theta.

use crate::options::{family, lopt, Entry, Options};
use outerloop::outer::lab::{Comparison, Experiment, Slice, Truth};
use outerloop::outer::{MetaLoss, Validation};
use outerloop::prelude::*;

/// Runs whose mean is the meta-loss of a slice.
const SLICE_STARTS: u64 = 2;
/// Perturbations, in pairs, whose mean is the smoothed meta-loss.
const SMOOTHING: u64 = 8;
/// Lines of equal height in the plane.
const LEVELS: usize = 7;

/// Everything measured.
pub struct Lab {
    /// Every estimator beside the long measurement.
    pub rows: Vec<(&'static str, Comparison)>,
    /// Estimates per sample.
    pub estimates: u64,
    /// Variance over the length of runs.
    pub variance: Plot,
    /// The meta-loss around theta.
    pub slices: Vec<Plot>,
}

impl Options {
    /// Measures all entries at the first theta, variances over the length of runs, and the meta-loss around theta.
    pub fn lab(&self, entries: &[Entry], workers: &Workers) -> Result<Lab> {
        let theta = lopt().init(Key::new(0));
        let estimates = self.length.div_ceil(self.trunc_length as u64);
        let (samples, key) = (self.lab_samples, Key::new(0).named("lab"));
        // Lanes begin within a run, whose earlier steps nothing perturbed: the first run is left out.
        let warmup = estimates;
        let at = Experiment { theta: &theta, key, samples, warmup, estimates, workers };
        let base = self.antithetic();
        let long = NoiseReuseEs::new(self.runs(self.length)?, base.clone())?;
        let long = Experiment { key: key.named("truth"), samples: 4 * samples, ..at }.measure(&long)?;
        let truth = Truth::from(&long);
        println!("at the first theta, {samples} samples of {estimates} estimates; error: one standard error");
        println!(
            "{:<18} {:>16} {:>16} {:>10} {:>13} {:>10}",
            "estimator", "bias along truth", "cosine", "variance", "S/N per 10^6", "S/N per s"
        );
        let mut csv = String::from(
            "estimator,bias,bias_error,cosine,cosine_error,across,variance,per_inner_step,per_second\n",
        );
        let mut rows = Vec::new();
        for entry in entries {
            let c = at.measure(&*entry.estimator)?.against(&truth)?;
            println!(
                "{:<18} {:>9.3} ±{:>5.3} {:>9.3} ±{:>5.3} {:>10.3} {:>13.3} {:>10.3}",
                entry.name,
                c.bias.value,
                c.bias.error,
                c.cosine.value,
                c.cosine.error,
                c.variance,
                1e6 * c.per_inner_step,
                c.per_second
            );
            let Comparison { bias, cosine, across, variance, per_inner_step, per_second, .. } = c;
            csv += &format!(
                "{},{},{},{},{},{across},{variance},{per_inner_step},{per_second}\n",
                entry.name, bias.value, bias.error, cosine.value, cosine.error
            );
            rows.push((entry.name, c));
        }
        write_atomic(self.out.join("lab.csv"), csv.as_bytes())?;
        let variance = self.variances(&at, &base)?;
        let descent: Vec<f64> = truth.grad.iter().map(|g| -g).collect();
        let slices =
            if self.slice_points == 0 { Vec::new() } else { self.slices(&theta, &descent, workers)? };
        println!("written: lab.csv, {} pictures in {}\n", 1 + slices.len(), self.out.display());
        Ok(Lab { rows, estimates, variance, slices })
    }

    /// The meta-loss along the descent direction, as it is and as the mean over perturbations sees it, and in a plane.
    fn slices(&self, theta: &[f32], descent: &[f64], workers: &Workers) -> Result<Vec<Plot>> {
        let lopt = lopt();
        let validation = Validation {
            family: family(),
            meta_loss: MetaLoss::Train,
            objective: self.objective(),
            num_tasks: SLICE_STARTS,
            num_steps: self.length,
            key: Key::new(0).named("slice"),
            every: 1,
        };
        let slice = Slice::new(theta, descent, Key::new(0).named("across"))?;
        let loss = Slice::by_runs(&validation, &*lopt, workers);
        // So far off lie the perturbations of estimators.
        let reach = f64::from(self.std) * (theta.len() as f64).sqrt();
        let (radius, fine) = (3.0 * reach, 2 * self.slice_points + 1);
        let smooth = |theta: &[f32]| {
            let mut eps = vec![0.0f32; theta.len()];
            let losses = (0..SMOOTHING / 2).flat_map(|i| {
                Key::new(i).named("smooth").fill_normal(&mut eps);
                [self.std, -self.std].map(|s| {
                    let moved: Vec<f32> = theta.iter().zip(&eps).map(|(t, e)| t + s * e).collect();
                    loss(&moved)
                })
            });
            losses.sum::<f64>() / SMOOTHING as f64
        };
        let line = Plot {
            title: "The meta-loss along its gradient".into(),
            x_label: format!("distance from theta; perturbations reach {reach:.2}"),
            y_label: format!("mean objective of {SLICE_STARTS} runs"),
            series: vec![
                Series::line("itself", slice.line(radius, fine, &loss)),
                Series::line(format!("mean of {SMOOTHING} perturbations"), slice.line(radius, fine, &smooth)),
            ],
            ..Plot::default()
        };
        line.save(self.out.join("slice.svg"))?;
        let surface = slice.surface(radius, self.slice_points, &loss);
        let mut heights: Vec<f64> = surface.heights.iter().copied().filter(|h| h.is_finite()).collect();
        heights.sort_by(f64::total_cmp);
        // Equal parts of the plane lie between neighbouring lines.
        let levels = (1..=LEVELS).filter_map(|k| heights.get(k * heights.len() / (LEVELS + 1)).copied());
        let mut csv = String::from("along,across,objective\n");
        for (i, y) in surface.y.iter().enumerate() {
            for (x, height) in surface.x.iter().zip(&surface.heights[i * surface.x.len()..]) {
                csv += &format!("{x},{y},{height}\n");
            }
        }
        write_atomic(self.out.join("surface.csv"), csv.as_bytes())?;
        let mut series: Vec<Series> = levels
            .enumerate()
            .flat_map(|(k, level)| {
                let mut lines = surface.series(level, k);
                if let Some(first) = lines.first_mut() {
                    first.name = format!("{level:.3}");
                }
                lines
            })
            .collect();
        let points = |name: &str, at| Series {
            style: Style::Points,
            ..Series::line(name, vec![at]).with_color(LEVELS)
        };
        series.push(points("theta", (0.0, 0.0)));
        let plane = Plot {
            title: "The meta-loss around theta".into(),
            x_label: "along the gradient, downhill to the right".into(),
            y_label: "across, in a random direction".into(),
            series,
            ..Plot::default()
        };
        plane.save(self.out.join("surface.svg"))?;
        Ok(vec![line, plane])
    }

    /// Variances of one sample over the length of runs.
    fn variances(&self, at: &Experiment<'_>, base: &Antithetic) -> Result<Plot> {
        type Make = fn(TruncatedStep, Antithetic) -> Result<Box<dyn GradientEstimator>>;
        let kinds: [(&str, Make); 3] = [
            ("PES", |s, c| Ok(Box::new(TruncatedPes::new(s, c)?))),
            ("new perturbation every 4 windows", |s, c| Ok(Box::new(GeneralizedPes::new(s, c, 4)?))),
            ("noise-reuse ES", |s, c| Ok(Box::new(NoiseReuseEs::new(s, c)?))),
        ];
        let window = self.trunc_length as u64;
        let lengths = [8, 4, 2, 1].map(|part| (self.length / part).max(window));
        let mut series = Vec::new();
        for (name, make) in kinds {
            let mut line = Series::line(name, Vec::new()).with_band(Vec::new());
            for length in lengths {
                let estimator = make(self.runs(length)?, base.clone())?;
                let at = Experiment { estimates: length.div_ceil(window), ..*at };
                let v = at.measure(&*estimator)?.total_variance();
                line.points.push((length as f64, v.value));
                line.band.get_or_insert_default().push((length as f64, v.interval()[0], v.interval()[1]));
            }
            series.push(line);
        }
        let plot = Plot {
            title: "Variance of the mean estimate over one run".into(),
            x_label: "length of runs, inner steps".into(),
            y_label: "sum over meta-parameters, 95 % intervals".into(),
            series,
            ..Plot::default()
        };
        plot.save(self.out.join("variance.svg"))?;
        Ok(plot)
    }
}
