//! [`Corner`]: all pairs of parameters in one picture.

use super::sample::Samples;
use outerloop_core::{atomic::write_atomic, Error, Result};
use outerloop_outer::plot::{Legend, Plot, Series, Style, Surface};
use std::path::Path;

/// Histograms of the parameters on the diagonal; below it, for every pair, contours around 68 and 95 % of the draws.
/// The truth, where it is known, is marked by lines.
#[derive(Clone, Debug)]
pub struct Corner<'a> {
    /// The draws.
    pub samples: &'a Samples,
    /// Names of the parameters.
    pub names: &'a [String],
    /// Axes of the parameters.
    pub ranges: &'a [(f64, f64)],
    /// The parameters that made the data.
    pub truth: Option<&'a [f64]>,
}

/// Pixels of a panel.
const PANEL: (u32, u32) = (260, 220);
/// Bins of a histogram, and cells of a plane along each axis.
const BINS: usize = 40;
/// Masses inside the contours.
const MASSES: [f64; 2] = [0.68, 0.95];

impl Corner<'_> {
    /// Writes the picture, SVG, atomically.
    ///
    /// # Errors
    /// Names, ranges or truth of another number than the parameters, no draws, or a file that can not be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path, self.svg()?.as_bytes())
    }

    /// The picture as SVG text.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn svg(&self) -> Result<String> {
        let d = self.samples.dim;
        let truth = self.truth.map_or(d, <[f64]>::len);
        if [self.names.len(), self.ranges.len(), truth] != [d; 3] || self.samples.is_empty() {
            let got = [self.names.len(), self.ranges.len(), truth];
            return Err(Error::mismatch("corner plot: names, ranges, truth of a draw or more", [d; 3], got));
        }
        let (width, height) = (PANEL.0 * d as u32, PANEL.1 * d as u32);
        let mut svg = format!(
            "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n"
        );
        for i in 0..d {
            for j in 0..=i {
                let plot = if i == j { self.histogram(i) } else { self.contours(j, i) };
                let at = format!("<svg x=\"{}\" y=\"{}\" ", PANEL.0 * j as u32, PANEL.1 * i as u32);
                svg.push_str(&plot.svg()?.replacen("<svg ", &at, 1));
            }
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }

    fn panel(&self, x: usize, y_label: &str, series: Vec<Series>) -> Plot {
        Plot {
            x_label: self.names[x].clone(),
            y_label: y_label.into(),
            size: PANEL,
            legend: Legend::None,
            series,
            ..Plot::default()
        }
    }

    /// The cell of a value, if it lies in range.
    fn cell(&self, k: usize, v: f64) -> Option<usize> {
        let (low, high) = self.ranges[k];
        (low..=high).contains(&v).then(|| (((v - low) / (high - low) * BINS as f64) as usize).min(BINS - 1))
    }

    fn histogram(&self, k: usize) -> Plot {
        let (low, high) = self.ranges[k];
        let mut bins = [0.0; BINS];
        let values = self.samples.column(k);
        for b in values.iter().filter_map(|v| self.cell(k, *v)) {
            bins[b] += 1.0;
        }
        let width = (high - low) / BINS as f64;
        let density = bins.map(|b| b / (values.len() as f64 * width));
        let step = |(i, y): (usize, &f64)| [(low + i as f64 * width, *y), (low + (i + 1) as f64 * width, *y)];
        let outline = density.iter().enumerate().flat_map(step);
        let outline = std::iter::once((low, 0.0)).chain(outline).chain([(high, 0.0)]).collect();
        let mut series = vec![Series::line("draws", outline)];
        if let Some(t) = self.truth {
            let most = density.iter().copied().fold(0.0, f64::max);
            series.push(Series::line("truth", vec![(t[k], 0.0), (t[k], most)]).with_color(1));
        }
        self.panel(k, "density", series)
    }

    fn contours(&self, x: usize, y: usize) -> Plot {
        let mut counts = vec![0.0; BINS * BINS];
        for t in self.samples.draws.chunks_exact(self.samples.dim) {
            if let (Some(a), Some(b)) = (self.cell(x, t[x]), self.cell(y, t[y])) {
                counts[b * BINS + a] += 1.0;
            }
        }
        let counts = smooth(&smooth(&counts));
        let (rx, ry) = (self.ranges[x], self.ranges[y]);
        let centres = |(low, high): (f64, f64)| {
            (0..BINS).map(|k| low + (k as f64 + 0.5) / BINS as f64 * (high - low)).collect::<Vec<f64>>()
        };
        let surface = Surface { x: centres(rx), y: centres(ry), heights: counts };
        let mut series = Vec::new();
        for mass in MASSES {
            let color = if mass == MASSES[0] { 0 } else { 6 };
            let lines = surface.series(level_of(&surface.heights, mass), color);
            series.extend(lines.into_iter().map(|s| Series {
                name: mass.to_string(),
                style: Style::Line,
                ..s
            }));
        }
        // The axes reach over the whole ranges.
        let lines = match self.truth {
            Some(t) => vec![(t[x], ry.0), (t[x], ry.1), (f64::NAN, f64::NAN), (rx.0, t[y]), (rx.1, t[y])],
            None => vec![(rx.0, ry.0), (rx.1, ry.0), (rx.1, ry.1), (rx.0, ry.1), (rx.0, ry.0)],
        };
        let style = if self.truth.is_some() { Style::Line } else { Style::Dashed };
        series.push(Series { style, ..Series::line("truth", lines).with_color(1) });
        self.panel(x, &self.names[y], series)
    }
}

/// Each cell and half of its neighbours, along both axes.
fn smooth(cells: &[f64]) -> Vec<f64> {
    let at = |i: i64, j: i64| {
        let inside = (0..BINS as i64).contains(&i) && (0..BINS as i64).contains(&j);
        if inside {
            cells[i as usize * BINS + j as usize]
        } else {
            0.0
        }
    };
    let cell = |k: usize| {
        let (i, j) = ((k / BINS) as i64, (k % BINS) as i64);
        let row = |i: i64| 0.25 * at(i, j - 1) + 0.5 * at(i, j) + 0.25 * at(i, j + 1);
        0.25 * row(i - 1) + 0.5 * row(i) + 0.25 * row(i + 1)
    };
    (0..cells.len()).map(cell).collect()
}

/// The height above which the highest cells hold this share of the mass.
fn level_of(cells: &[f64], mass: f64) -> f64 {
    let mut sorted = cells.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sorted.iter().sum();
    let mut sum = 0.0;
    sorted
        .into_iter()
        .find(|c| {
            sum += c;
            sum >= mass * total
        })
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::sample::SampleReport;
    use outerloop_core::Key;

    #[test]
    fn contours_of_a_normal_are_circles() {
        let mut draws = vec![0.0; 40_000];
        Key::new(1).fill_normal(&mut draws);
        let samples = Samples { dim: 2, draws, report: SampleReport::default() };
        let (names, ranges) = (["a".to_string(), "b".to_string()], [(-4.0, 4.0); 2]);
        let corner = Corner { samples: &samples, names: &names, ranges: &ranges, truth: Some(&[0.0, 0.0]) };
        let plot = corner.contours(0, 1);
        for (series, mass) in plot.series.iter().zip(MASSES) {
            // The square of the radius that holds the mass is −2 ln(1 − mass); smoothing adds the variance of its
            // kernel, 2 · ½ cells.
            let radius = (-2.0 * (1.0f64 - mass).ln() * (1.0 + 0.04)).sqrt();
            for (x, y) in series.points.iter().filter(|p| p.0.is_finite()) {
                assert!((x.hypot(*y) / radius - 1.0).abs() < 0.12, "{mass}: {} {radius}", x.hypot(*y));
            }
        }
        let svg = corner.svg().unwrap();
        assert_eq!(svg.matches("<svg ").count(), 4);
        assert_eq!(svg, corner.svg().unwrap());
        let error = Corner { names: &names[..1], ..corner }.svg().unwrap_err().to_string();
        assert!(error.contains("expected [2, 2, 2], got [1, 2, 2]"), "{error}");
    }
}
