//! Sequences to filter: simulators with keys, and recordings from CSV files.

use super::kalman::LinearGaussian;
use outerloop_core::{Error, Key, Result};
use outerloop_tasks::data::ImageData;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

/// Where sequences of `steps` observations of `dim` numbers come from.
///
/// Invariant: [`Self::sequence`] is a pure function of its key.
pub trait SequenceSource: Debug + Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;
    /// Numbers per observation.
    fn dim(&self) -> usize;
    /// Observations per sequence.
    fn steps(&self) -> usize;
    /// Writes the sequence of a key, `[steps, dim]`.
    fn sequence(&self, key: Key, out: &mut [f64]);
    /// Writes what the sequence of a key would be if it were seen without noise, `[steps, dim]`, and returns true; by
    /// default nobody knows.
    fn signal(&self, key: Key, out: &mut [f64]) -> bool {
        let _ = (key, out);
        false
    }
}

/// Observations of a linear-Gaussian model, whose exact likelihood Kalman's filter knows.
#[derive(Clone, Debug)]
pub struct LinearSequences {
    /// The model.
    pub model: LinearGaussian,
    /// Observations per sequence.
    pub steps: usize,
}

impl SequenceSource for LinearSequences {
    fn name(&self) -> String {
        format!("linear{}", self.model.a.rows)
    }
    fn dim(&self) -> usize {
        self.model.c.rows
    }
    fn steps(&self) -> usize {
        self.steps
    }
    fn sequence(&self, key: Key, out: &mut [f64]) {
        let (_, xs) = self.model.simulate(self.steps, key);
        out.chunks_mut(self.dim()).zip(xs).for_each(|(out, x)| out.copy_from_slice(&x));
    }
    fn signal(&self, key: Key, out: &mut [f64]) -> bool {
        let (zs, _) = self.model.simulate(self.steps, key);
        let rows = out.chunks_mut(self.dim()).zip(&zs);
        rows.for_each(|(out, z)| out.copy_from_slice(&self.model.c.apply(z)));
        true
    }
}

/// A pendulum without friction, pushed by noise and seen through noise: `(cos φ, sin φ)` of the angle.
///
/// `ω ← ω − h sin φ + s √h n₁`, `φ ← φ + h ω` with steps of `h` = 0.2 seconds (units of √(length/g)); it starts at a random
/// angle and speed.
#[derive(Clone, Debug)]
pub struct NoisyPendulum {
    /// Observations per sequence.
    pub steps: usize,
    /// Strength of the pushes s; default 0.1.
    pub push: f64,
    /// Standard deviation of what is seen; default 0.1.
    pub noise: f64,
}

impl NoisyPendulum {
    /// With the defaults.
    pub fn new(steps: usize) -> Self {
        NoisyPendulum { steps, push: 0.1, noise: 0.1 }
    }
    /// The motion of a key, seen through noise of a standard deviation.
    fn run(&self, key: Key, noise: f64, out: &mut [f64]) {
        const H: f64 = 0.2;
        let mut n = vec![0.0f64; 2 + 3 * self.steps];
        key.fill_normal(&mut n);
        let (mut angle, mut speed) = (2.0 * n[0], n[1]);
        for (out, n) in out.chunks_mut(2).zip(n[2..].chunks(3)) {
            speed += -H * angle.sin() + self.push * H.sqrt() * n[0];
            angle += H * speed;
            out[0] = angle.cos() + noise * n[1];
            out[1] = angle.sin() + noise * n[2];
        }
    }
}

impl SequenceSource for NoisyPendulum {
    fn name(&self) -> String {
        "pendulum".into()
    }
    fn dim(&self) -> usize {
        2
    }
    fn steps(&self) -> usize {
        self.steps
    }
    fn sequence(&self, key: Key, out: &mut [f64]) {
        self.run(key, self.noise, out);
    }
    fn signal(&self, key: Key, out: &mut [f64]) -> bool {
        self.run(key, 0.0, out);
        true
    }
}

/// A small picture that moves by a constant number of pixels per step, around the edges.
#[derive(Clone, Debug)]
pub struct MovingImages {
    /// The pictures.
    pub images: Arc<ImageData>,
    /// Observations per sequence.
    pub steps: usize,
}

impl SequenceSource for MovingImages {
    fn name(&self) -> String {
        format!("moving_{}", self.images.name)
    }
    fn dim(&self) -> usize {
        self.images.features()
    }
    fn steps(&self) -> usize {
        self.steps
    }
    fn sequence(&self, key: Key, out: &mut [f64]) {
        let pick = |name: &str, n: usize| (key.named(name).bits() % n as u64) as usize;
        let image = self.images.image(pick("image", self.images.len()));
        let (h, w, c) = (self.images.height, self.images.width, self.images.channels);
        let (down, right) = (pick("down", 3) + h - 1, pick("right", 3) + w - 1); // −1, 0 or 1, modulo the size
        for (t, frame) in out.chunks_mut(h * w * c).enumerate() {
            for y in 0..h {
                for x in 0..w {
                    let from = ((y + t * down) % h * w + (x + t * right) % w) * c;
                    let to = (y * w + x) * c;
                    frame[to..to + c].iter_mut().zip(&image[from..]).for_each(|(f, i)| *f = f64::from(*i));
                }
            }
        }
    }
    /// The sequence itself: there is no noise.
    fn signal(&self, key: Key, out: &mut [f64]) -> bool {
        self.sequence(key, out);
        true
    }
}

/// A user's sequences, all of the same length; a key picks one.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    sequences: Vec<Vec<f64>>,
    dim: usize,
}

impl Recorded {
    /// Reads a CSV file with one row per observation: first the number (or name) of its sequence, then the numbers of the
    /// observation. Rows of a sequence stand together, in time order. A first row whose later columns are not numbers is
    /// taken as names.
    ///
    /// # Errors
    /// Missing values and values that are no finite numbers, rows with another number of columns than the first, sequences
    /// of another length than the first, a sequence in two places: each with its row and column.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Self::parse(&text).map_err(|why| Error::format(path, why))
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut columns: Vec<String> = Vec::new();
        let mut sequences: Vec<(String, Vec<f64>)> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut dim = 0;
        let rows = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        for (k, (i, line)) in rows.enumerate() {
            let (row, cells) = (i + 1, line.split(',').map(str::trim).collect::<Vec<&str>>());
            let is_number = |c: &&str| c.is_empty() || c.parse::<f64>().is_ok();
            if k == 0 {
                dim = cells.len() - 1;
                if dim == 0 {
                    return Err(format!(
                        "row {row}: expected a sequence and at least 1 number, got 1 column"
                    ));
                }
                if !cells[1..].iter().all(is_number) {
                    columns = cells.iter().map(|c| format!(" (`{c}`)")).collect();
                    continue;
                }
            }
            if cells.len() != dim + 1 {
                return Err(format!("row {row}: expected {} columns, got {}", dim + 1, cells.len()));
            }
            if sequences.last().is_none_or(|s| s.0 != cells[0]) {
                Self::check_length(&sequences, dim, row)?;
                if !seen.insert(cells[0].to_string()) {
                    return Err(format!("row {row}, column 1: sequence `{}` was left before", cells[0]));
                }
                sequences.push((cells[0].to_string(), Vec::new()));
            }
            let Some((_, values)) = sequences.last_mut() else { continue };
            for (c, cell) in cells.iter().enumerate().skip(1) {
                let name = columns.get(c).map_or("", String::as_str);
                match cell.parse::<f64>() {
                    Ok(v) if v.is_finite() => values.push(v),
                    _ if cell.is_empty() => {
                        return Err(format!("row {row}, column {}{name}: missing value", c + 1))
                    }
                    _ => {
                        let column = c + 1;
                        return Err(format!(
                            "row {row}, column {column}{name}: expected a finite number, got `{cell}`"
                        ));
                    }
                }
            }
        }
        Self::check_length(&sequences, dim, text.lines().count() + 1)?;
        if sequences.is_empty() {
            return Err("expected rows of observations, got none".into());
        }
        Ok(Recorded { sequences: sequences.into_iter().map(|s| s.1).collect(), dim })
    }

    /// The last sequence must be as long as the first; `row`: the first behind it.
    fn check_length(
        sequences: &[(String, Vec<f64>)],
        dim: usize,
        row: usize,
    ) -> std::result::Result<(), String> {
        let (Some(first), Some(last)) = (sequences.first(), sequences.last()) else { return Ok(()) };
        let (want, got) = (first.1.len() / dim, last.1.len() / dim);
        if want == got {
            return Ok(());
        }
        Err(format!(
            "row {}: sequence `{}` ends after {got} rows, expected {want} as in `{}`",
            row - 1,
            last.0,
            first.0
        ))
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }
    /// Never: there is at least one.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
    /// Sequence `i`, `[steps, dim]`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn get(&self, i: usize) -> &[f64] {
        &self.sequences[i]
    }
    /// Mean and standard deviation of every number of an observation over all observations; 1 in place of a standard
    /// deviation of 0.
    pub fn moments(&self) -> Moments {
        let n = (self.len() * self.steps()) as f64;
        let column = |c: usize| self.sequences.iter().flat_map(move |s| s.iter().skip(c).step_by(self.dim));
        let mean: Vec<f64> = (0..self.dim).map(|c| column(c).sum::<f64>() / n).collect();
        let spread = |c: usize| (column(c).map(|x| (x - mean[c]).powi(2)).sum::<f64>() / n).sqrt();
        let std = (0..self.dim).map(spread).map(|s| if s > 0.0 { s } else { 1.0 }).collect();
        Moments { mean, std }
    }
    /// The same sequences with every number shifted and scaled by moments, their own or others'.
    ///
    /// # Panics
    /// If the moments are of other numbers of columns.
    #[must_use]
    pub fn standardized(&self, by: &Moments) -> Self {
        assert_eq!(by.mean.len(), self.dim, "recorded sequences: columns of the moments");
        let one = |s: &Vec<f64>| {
            s.iter().enumerate().map(|(i, x)| (x - by.mean[i % self.dim]) / by.std[i % self.dim]).collect()
        };
        Recorded { sequences: self.sequences.iter().map(one).collect(), dim: self.dim }
    }
    /// Two parts: the first `n` sequences, and the rest.
    ///
    /// # Errors
    /// A division that leaves one part empty.
    pub fn divide(&self, n: usize) -> Result<[Self; 2]> {
        if self.len() < 2 {
            return Err(Error::mismatch("sequences for training and test", "at least 2", self.len()));
        }
        if n == 0 || n >= self.len() {
            let why = format!("must be from 1 to {} of {} sequences, got {n}", self.len() - 1, self.len());
            return Err(Error::invalid("sequences: number for training", why));
        }
        let part = |s: &[Vec<f64>]| Recorded { sequences: s.to_vec(), dim: self.dim };
        Ok([part(&self.sequences[..n]), part(&self.sequences[n..])])
    }
}

/// Mean and standard deviation of every number of an observation, `[dim]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Means.
    pub mean: Vec<f64>,
    /// Standard deviations, positive.
    pub std: Vec<f64>,
}

impl SequenceSource for Recorded {
    fn name(&self) -> String {
        format!("{}_recorded", self.len())
    }
    fn dim(&self) -> usize {
        self.dim
    }
    fn steps(&self) -> usize {
        self.sequences[0].len() / self.dim
    }
    fn sequence(&self, key: Key, out: &mut [f64]) {
        out.copy_from_slice(&self.sequences[(key.bits() % self.len() as u64) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;

    #[test]
    fn files_are_read_or_refused_with_row_and_column() {
        let good = Recorded::parse("run,x,y\na,1,2\na,3,4\n\nb,5,6\nb,7,8\n").unwrap();
        assert_eq!((good.len(), good.dim(), good.steps()), (2, 2, 2));
        assert_eq!(good.sequences[1], [5.0, 6.0, 7.0, 8.0]);
        let [train, test] = good.divide(1).unwrap();
        assert_eq!((train.len(), test.len()), (1, 1));
        let moments = good.moments();
        assert_eq!((&moments.mean[..], &moments.std[..]), (&[4.0, 5.0][..], &[5.0f64.sqrt(); 2][..]));
        let scaled = good.standardized(&moments);
        assert!(
            (scaled.get(1)[0] - 1.0 / 5.0f64.sqrt()).abs() < 1e-12 && !scaled.signal(Key::new(0), &mut [])
        );
        let same = scaled.moments();
        assert!(
            same.mean.iter().all(|m| m.abs() < 1e-12) && same.std.iter().all(|s| (s - 1.0).abs() < 1e-12)
        );
        assert_eq!(Recorded::parse("a,7\na,7\n").unwrap().moments().std, [1.0]);
        let one = Recorded::parse("a,1\na,2\n").unwrap().divide(1).unwrap_err().to_string();
        assert!(one.contains("at least 2") && one.contains("got 1"), "{one}");
        assert!(good.divide(2).unwrap_err().to_string().contains("from 1 to 1 of 2"));
        let error = |text| Recorded::parse(text).unwrap_err();
        assert_eq!(error("a,1,2\na,,4\n"), "row 2, column 2: missing value");
        assert_eq!(error("s,x\na,1\na,nan\n"), "row 3, column 2 (`x`): expected a finite number, got `nan`");
        assert_eq!(error("a,1,2\na,3\n"), "row 2: expected 3 columns, got 2");
        assert_eq!(
            error("a,1\na,2\nb,3\nc,4\nc,5\n"),
            "row 3: sequence `b` ends after 1 rows, expected 2 as in `a`"
        );
        assert_eq!(error("a,1\na,2\nb,3\n"), "row 3: sequence `b` ends after 1 rows, expected 2 as in `a`");
        assert_eq!(error("a,1\nb,2\na,3\n"), "row 3, column 1: sequence `a` was left before");
        assert_eq!(error("s,x\n"), "expected rows of observations, got none");
    }

    #[test]
    fn pictures_move_around_the_edges() {
        let pixels: Vec<f32> = (0..9).map(|i| i as f32 / 9.0).collect();
        let images = ImageData::new("one", pixels.clone(), vec![0], [3, 3, 1], 1).unwrap();
        let source = MovingImages { images: Arc::new(images), steps: 4 };
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..200 {
            let mut out = vec![0.0; 36];
            source.sequence(Key::new(i), &mut out);
            // The first frame is the picture, and after three steps it is back.
            assert!(out[..9].iter().zip(&pixels).all(|(o, p)| (o - f64::from(*p)).abs() < 1e-7));
            assert_eq!(out[..9], out[27..]);
            seen.insert(format!("{:?}", &out[9..18]));
        }
        assert_eq!(seen.len(), 9);
    }

    #[test]
    fn signals_are_the_sequences_without_their_noise() {
        let model = LinearGaussian {
            a: Matrix::new(1, 1, vec![0.9]),
            c: Matrix::new(2, 1, vec![1.0, -2.0]),
            q: Matrix::new(1, 1, vec![0.5]),
            r: Matrix::diagonal(&[0.04, 0.09]),
            m0: vec![0.0],
            p0: Matrix::identity(1),
        };
        let linear = LinearSequences { model, steps: 400 };
        let pendulum = NoisyPendulum::new(400);
        let sources: [(&dyn SequenceSource, [f64; 2]); 2] = [(&linear, [0.2, 0.3]), (&pendulum, [0.1, 0.1])];
        for (source, std) in sources {
            let (mut seen, mut signal) = (vec![0.0; 800], vec![0.0; 800]);
            source.sequence(Key::new(5), &mut seen);
            assert!(source.signal(Key::new(5), &mut signal));
            for (c, std) in std.iter().enumerate() {
                let noise = |t: usize| (seen[2 * t + c] - signal[2 * t + c]) / std;
                let variance = (0..400).map(|t| noise(t).powi(2)).sum::<f64>() / 400.0;
                // Four standard errors of a variance of 400 numbers.
                assert!((variance - 1.0).abs() < 4.0 * (2.0f64 / 400.0).sqrt(), "{variance}");
            }
        }
    }

    #[test]
    fn a_pendulum_keeps_its_energy_when_nothing_pushes() {
        let quiet = NoisyPendulum { push: 0.0, noise: 0.0, ..NoisyPendulum::new(200) };
        let mut out = vec![0.0; 400];
        quiet.sequence(Key::new(1), &mut out);
        let angle = |t: usize| out[2 * t + 1].atan2(out[2 * t]);
        assert!(out.chunks(2).all(|p| (p[0] * p[0] + p[1] * p[1] - 1.0).abs() < 1e-12));
        let energy = |t: usize| {
            let mut step = angle(t + 1) - angle(t);
            step -= (step / std::f64::consts::TAU).round() * std::f64::consts::TAU;
            0.5 * (step / 0.2).powi(2) - 0.5 * (angle(t).cos() + angle(t + 1).cos())
        };
        let all: Vec<f64> = (0..199).map(energy).collect();
        let spread = all.iter().fold(0.0f64, |m, e| m.max((e - all[0]).abs()));
        assert!(spread < 0.1, "{spread}");
    }
}
