//! Exact evaluation on a grid, for one or two parameters.

use super::{check_count, SampleReport, Sampler, Samples};
use crate::ratio::density::{Density, Target};
use crate::ratio::metrics::chains::importance_weights;
use outerloop_core::{Error, Interval, Key, Result};
use outerloop_outer::Workers;
use rand::Rng;

/// The density in the middle of every cell of a grid over the prior's ranges. Draws are uniform within a cell, and
/// independent. The error is that of the middle-point rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Cells per parameter; default 200.
    pub cells: usize,
}

impl Default for Grid {
    fn default() -> Self {
        Grid { cells: 200 }
    }
}

/// A normalized density on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct GridDensity {
    /// Ranges of the parameters.
    pub ranges: Vec<(f64, f64)>,
    /// Cells per parameter.
    pub cells: usize,
    /// Mass of each cell, the last parameter fastest; they sum to 1.
    pub mass: Vec<f64>,
    /// `ln ∫ p e^f` over the ranges.
    pub log_evidence: f64,
    /// Rows evaluated, and how many of them were NaN.
    pub evaluated: [u64; 2],
}

impl Grid {
    /// Evaluates the density.
    ///
    /// # Errors
    /// More than two parameters, or no cells.
    pub fn evaluate(&self, density: &dyn Density, workers: &Workers) -> Result<GridDensity> {
        Interval::COUNT.check("grid: cells", self.cells as f64)?;
        let (ranges, cells) = (density.prior().ranges(), self.cells);
        let d = ranges.len();
        if d > 2 {
            return Err(Error::mismatch("grid: number of parameters", 1..=2, d));
        }
        let middle = |(low, high): (f64, f64), i: usize| low + (i as f64 + 0.5) * (high - low) / cells as f64;
        // A row of the grid is an item.
        let mut rows: Vec<usize> = (0..if d == 1 { 1 } else { cells }).collect();
        let parts = workers.map(&mut rows, |_, _, row| {
            let mut target = Target::new(density);
            let theta: Vec<f64> = (0..cells)
                .flat_map(|i| {
                    let last = middle(ranges[d - 1], i);
                    (d == 2).then(|| middle(ranges[0], *row)).into_iter().chain([last])
                })
                .collect();
            let (mut prior, mut factor) = (vec![0.0; cells], vec![0.0; cells]);
            target.evaluate(&theta, &mut prior, &mut factor);
            let log: Vec<f64> = prior.iter().zip(&factor).map(|(p, f)| p + f).collect();
            (log, target.evaluations, target.invalid)
        });
        let log: Vec<f64> = parts.iter().flat_map(|p| p.0.iter().copied()).collect();
        let weights = importance_weights(&log);
        let volume: f64 = ranges.iter().map(|(l, h)| h - l).product();
        let evaluated = [parts.iter().map(|p| p.1).sum(), parts.iter().map(|p| p.2).sum()];
        let log_evidence = weights.log_mean + volume.ln();
        Ok(GridDensity { ranges, cells, mass: weights.normalized, log_evidence, evaluated })
    }
}

impl Sampler for Grid {
    fn name(&self) -> String {
        "grid".into()
    }
    fn sample(&self, density: &dyn Density, n: usize, key: Key, workers: &Workers) -> Result<Samples> {
        check_count(n)?;
        let g = self.evaluate(density, workers)?;
        let d = g.ranges.len();
        let logs: Vec<f64> = g.mass.iter().map(|m| m.ln()).collect();
        let index = super::smc::resample(&logs, n, key.named("resample").uniform());
        let mut rng = key.rng();
        let mut draws = Vec::with_capacity(n * d);
        for i in index {
            let cell = [i / g.cells, i % g.cells];
            for (k, (low, high)) in g.ranges.iter().enumerate() {
                let c = cell[2 - d + k];
                draws.push(low + (c as f64 + rng.gen::<f64>()) * (high - low) / g.cells as f64);
            }
        }
        let report = SampleReport {
            sampler: self.name(),
            evaluations: g.evaluated[0],
            invalid: g.evaluated[1],
            acceptance: 1.0,
            ess: vec![n as f64; d],
            log_evidence: Some(g.log_evidence),
            ..SampleReport::default()
        };
        Ok(Samples { dim: d, draws, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::simulators::TwoMoons;
    use crate::ratio::{sample::Importance, ExactDensity, FnDensity, UniformBox};

    #[test]
    fn two_moons_are_half_and_half() {
        let moons = TwoMoons::default();
        let density = ExactDensity::new(&moons, &[0.0, 0.0]).unwrap();
        let workers = Workers::new(2).unwrap();
        let s = Grid { cells: 400 }.sample(&density, 4000, Key::new(1), &workers).unwrap();
        // For x = 0 the posterior is the same when both parameters change their sign and places.
        let upper = s.draws.chunks_exact(2).filter(|t| t[0] + t[1] > 0.0).count() as f64 / 4000.0;
        assert!((upper - 0.5).abs() < 0.01, "{upper}");
        let other = Importance::default().sample(&density, 100, Key::new(2), &workers).unwrap();
        let [a, b] = [&s, &other].map(|s| s.report.log_evidence.unwrap());
        // The relative variance of the estimate is 1/effective draws.
        assert!((a - b).abs() < 4.0 / other.report.ess[0].sqrt() + 0.02, "{a} {b} {:?}", other.report);
    }

    #[test]
    fn the_evidence_of_one_parameter_is_exact() {
        let prior = UniformBox::cube(1, 0.0, 2.0).unwrap();
        let density = FnDensity::new(prior, |t: &[f64], _: &mut [f64]| t[0]);
        let g = Grid::default().evaluate(&density, &Workers::new(1).unwrap()).unwrap();
        assert!((g.log_evidence - ((2f64.exp() - 1.0) / 2.0).ln()).abs() < 1e-4);
        let three = FnDensity::new(UniformBox::cube(3, 0.0, 1.0).unwrap(), |_: &[f64], _: &mut [f64]| 0.0);
        let error = Grid::default().evaluate(&three, &Workers::new(1).unwrap()).unwrap_err().to_string();
        assert!(error.contains("grid: number of parameters: expected 1..=2, got 3"), "{error}");
    }
}
