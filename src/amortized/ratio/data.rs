//! [`Simulations`]: pairs of parameters and data to train on, checked.

use super::simulator::{simulate, Simulator};
use outerloop_core::{Error, Key, Result};
use outerloop_outer::Workers;
use std::path::Path;

/// What to do with simulations that hold numbers that are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Invalid {
    /// They are counted, and the data is refused.
    #[default]
    Refuse,
    /// They are counted and left out. Then the target is no longer `p(theta | x)` but
    /// `p(theta | x, the simulation is valid)`: parameters that often fail count less.
    Drop,
}

/// Pairs `(theta, x)` from `p(theta) p(x | theta)`, all finite, in rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulations {
    theta: Vec<f32>,
    x: Vec<f32>,
    dims: [usize; 2],
    dropped: usize,
}

impl Simulations {
    /// Checks and keeps pairs: `theta` `[n, dims[0]]`, `x` `[n, dims[1]]`.
    ///
    /// # Errors
    /// Lengths that do not fit; parameters that are not finite; rows of `x` with numbers that are not finite,
    /// under [`Invalid::Refuse`]; no two rows left; data that is the same in all rows.
    pub fn new(theta: &[f64], x: &[f64], dims: [usize; 2], invalid: Invalid) -> Result<Self> {
        let [d, p] = dims;
        if d == 0 || p == 0 || theta.len() % d != 0 || x.len() % p != 0 {
            let what = "simulations: numbers in theta and x";
            return Err(Error::mismatch(what, format!("rows of {d} and of {p}"), (theta.len(), x.len())));
        }
        let n = theta.len() / d;
        if x.len() / p != n {
            return Err(Error::mismatch("simulations: rows of x, one for each of theta", n, x.len() / p));
        }
        if let Some(i) = theta.iter().position(|t| !(*t as f32).is_finite()) {
            let why = format!("expected finite numbers, got {} in row {}, column {}", theta[i], i / d, i % d);
            return Err(Error::invalid("simulations: theta", why));
        }
        let is_valid = |row: &[f64]| row.iter().all(|x| (*x as f32).is_finite());
        let bad: Vec<usize> =
            x.chunks_exact(p).enumerate().filter(|(_, r)| !is_valid(r)).map(|(i, _)| i).collect();
        if let (Some(first), Invalid::Refuse) = (bad.first(), invalid) {
            let why = format!(
                "expected finite numbers, got NaN or infinities in {} of {n} rows ({:.1} %), first in row {first}; \
                 leaving them out (Invalid::Drop, --drop-invalid) changes the target to the posterior given that \
                 the simulation is valid",
                bad.len(),
                100.0 * bad.len() as f64 / n as f64,
            );
            return Err(Error::invalid("simulations: x", why));
        }
        let (mut kept_theta, mut kept_x) = (Vec::with_capacity(n * d), Vec::with_capacity(n * p));
        for (t, x) in theta.chunks_exact(d).zip(x.chunks_exact(p)).filter(|(_, x)| is_valid(x)) {
            kept_theta.extend(t.iter().map(|t| *t as f32));
            kept_x.extend(x.iter().map(|x| *x as f32));
        }
        let s = Simulations { theta: kept_theta, x: kept_x, dims, dropped: bad.len() };
        if s.len() < 2 {
            let why =
                format!("expected at least 2 valid rows, got {} (and {} invalid ones)", s.len(), s.dropped);
            return Err(Error::invalid("simulations", why));
        }
        if s.constant_columns().len() == p {
            let why = format!(
                "all {p} columns are the same in all {} rows: data that never changes tells nothing about theta",
                s.len()
            );
            return Err(Error::invalid("simulations: x", why));
        }
        Ok(s)
    }

    /// `n` simulations of the stream `key`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn draw(s: &dyn Simulator, n: usize, key: Key, invalid: Invalid, workers: &Workers) -> Result<Self> {
        let joint = simulate(s, key, 0, n, workers);
        Self::new(&joint.theta, &joint.x, [s.prior().dim(), s.data_dim()], invalid)
    }

    /// The user's own simulations: parameters and data in two files, one row each, as `.csv` (a first line
    /// that is not numbers is taken as names) or `.npy` (f32 or f64, rows first).
    ///
    /// # Errors
    /// Files that cannot be read or are something else; and as [`Self::new`].
    pub fn read(theta: &Path, x: &Path, invalid: Invalid) -> Result<Self> {
        let ((t, d), (x, p)) = (super::files::table(theta)?, super::files::table(x)?);
        Self::new(&t, &x, [d, p], invalid)
    }

    /// Errors unless every row of parameters lies in the prior's support: the rest would be contrasted with parameters
    /// that it never competes with.
    pub fn check_prior(&self, prior: &dyn super::Prior) -> Result<()> {
        let [d, _] = self.dims;
        if prior.dim() != d {
            return Err(Error::mismatch("prior: number of parameters", d, prior.dim()));
        }
        let bounds = prior.bounds();
        let is_outside = |t: &[f32]| {
            // Rounding to f32 may have led over an edge.
            let back = |(t, (low, high)): (&f32, &(f64, f64))| {
                let (t, slack) = (f64::from(*t), 1e-6 * (high - low));
                let near = slack.is_finite() && t >= low - slack && t <= high + slack;
                if near {
                    t.clamp(*low, *high)
                } else {
                    t
                }
            };
            let t: Vec<f64> = t.iter().zip(&bounds).map(back).collect();
            prior.log_density(&t) == f64::NEG_INFINITY
        };
        let outside: Vec<usize> =
            self.theta.chunks_exact(d).enumerate().filter(|(_, t)| is_outside(t)).map(|(i, _)| i).collect();
        let Some(first) = outside.first() else { return Ok(()) };
        let why = format!(
            "expected parameters inside of the prior ({}), got {} of {} rows outside, first row {first}: {:?}",
            prior.describe(),
            outside.len(),
            self.len(),
            &self.theta[first * d..][..d]
        );
        Err(Error::invalid("simulations: theta", why))
    }

    /// Valid pairs.
    pub fn len(&self) -> usize {
        self.theta.len() / self.dims[0]
    }
    /// Never: there are at least two pairs.
    pub fn is_empty(&self) -> bool {
        self.theta.is_empty()
    }
    /// Numbers per row of theta and of x.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }
    /// Parameters, `[n, dims[0]]`.
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }
    /// Data, `[n, dims[1]]`.
    pub fn x(&self) -> &[f32] {
        &self.x
    }
    /// Invalid simulations that were left out.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Columns of `x` that are the same in all rows.
    pub fn constant_columns(&self) -> Vec<usize> {
        let p = self.dims[1];
        (0..p).filter(|&c| self.x.iter().skip(c).step_by(p).all(|v| *v == self.x[c])).collect()
    }

    /// What a user should know about the data before training on it.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.dropped > 0 {
            let all = self.dropped + self.len();
            out.push(format!(
                "{} of {all} simulations ({:.1} %) were invalid and are left out: the target is the posterior \
                 given that the simulation is valid, p(theta | x, valid)",
                self.dropped,
                100.0 * self.dropped as f64 / all as f64
            ));
        }
        for c in self.constant_columns() {
            let (value, n) = (self.x[c], self.len());
            out.push(format!("x[{c}] is {value} in all {n} simulations: it tells nothing about theta"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::tests::Fails;

    #[test]
    fn invalid_simulations_are_counted_and_refused_or_dropped() {
        let (fails, workers) = (Fails::default(), Workers::new(1).unwrap());
        let draw = |invalid| Simulations::draw(&fails, 1000, Key::new(1), invalid, &workers);
        let error = draw(Invalid::Refuse).unwrap_err().to_string();
        let kept = draw(Invalid::Drop).unwrap();
        assert!((60..140).contains(&kept.dropped()) && kept.len() + kept.dropped() == 1000);
        assert!(error.contains(&format!("in {} of 1000 rows", kept.dropped())), "{error}");
        assert!(error.contains("the posterior given that the simulation is valid"), "{error}");
        let warnings = kept.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("p(theta | x, valid)"), "{warnings:?}");
        assert!(kept.x().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn constant_data_is_named() {
        let theta: Vec<f64> = (0..10).map(f64::from).collect();
        let same = Simulations::new(&theta, &[2.5; 20], [1, 2], Invalid::Refuse).unwrap_err().to_string();
        assert!(same.contains("all 2 columns are the same in all 10 rows"), "{same}");
        let x: Vec<f64> = (0..20).map(|i| if i % 2 == 0 { 2.5 } else { f64::from(i) }).collect();
        let one = Simulations::new(&theta, &x, [1, 2], Invalid::Refuse).unwrap();
        assert_eq!(one.constant_columns(), [0]);
        assert!(one.warnings()[0].contains("x[0] is 2.5 in all 10 simulations"), "{:?}", one.warnings());
    }

    #[test]
    fn a_pair_of_files_is_checked_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let [theta, x] = ["theta.csv", "x.csv"].map(|name| dir.path().join(name));
        std::fs::write(&theta, "a\n1\n2\n3\n4\n").unwrap();
        std::fs::write(&x, "u,v\n0.5,1\nnan,2\n1.5,inf\n2,3\n").unwrap();
        let error = Simulations::read(&theta, &x, Invalid::Refuse).unwrap_err().to_string();
        assert!(error.contains("in 2 of 4 rows (50.0 %), first in row 1"), "{error}");
        let kept = Simulations::read(&theta, &x, Invalid::Drop).unwrap();
        assert_eq!((kept.len(), kept.dropped(), kept.theta()), (2, 2, &[1.0, 4.0][..]));
        std::fs::write(&x, "u,v\n0.5,1\n1,2\n").unwrap();
        let error = Simulations::read(&theta, &x, Invalid::Drop).unwrap_err().to_string();
        assert!(error.contains("rows of x, one for each of theta: expected 4, got 2"), "{error}");
    }

    #[test]
    fn parameters_outside_of_the_prior_are_counted() {
        let s =
            Simulations::new(&[0.5, 1.0, 3.0, -2.0], &[1.0, 2.0, 3.0, 4.0], [1, 1], Invalid::Refuse).unwrap();
        let prior = |low, high| crate::ratio::UniformBox::cube(1, low, high).unwrap();
        assert!(s.check_prior(&prior(-2.0, 3.0)).is_ok());
        let error = s.check_prior(&prior(0.0, 1.0)).unwrap_err().to_string();
        assert!(error.contains("2 of 4 rows outside, first row 2: [3.0]"), "{error}");
    }

    #[test]
    fn sizes_must_fit() {
        let error =
            |t: &[f64], x: &[f64]| Simulations::new(t, x, [1, 2], Invalid::Refuse).unwrap_err().to_string();
        assert!(error(&[1.0, 2.0], &[0.0; 6]).contains("rows of x, one for each of theta: expected 2, got 3"));
        assert!(
            error(&[1.0, f64::NAN], &[0.0; 4]).contains("theta: expected finite numbers, got NaN in row 1")
        );
        assert!(error(&[1.0], &[0.0, 1.0]).contains("at least 2 valid rows, got 1"));
    }
}
