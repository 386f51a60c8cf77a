//! Pictures of a run: lines with bands on linear, logarithmic or symmetric-logarithmic axes, contours, and grids of grey
//! images, as SVG or PNG.

mod axis;
mod contour;
mod draw;
mod images;
mod picture;
#[cfg(not(feature = "png"))]
#[path = "plot/png_disabled.rs"]
mod png;
#[cfg(feature = "png")]
#[path = "plot/png_enabled.rs"]
mod png;
mod trace;

pub use contour::Surface;
pub use images::{ImageGrid, ImageRow, Shades};

use axis::Axis;
use outerloop_core::{Error, Result};
use picture::Picture;
use std::path::Path;

/// How an axis maps numbers to places.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// Equal differences, equal distances.
    #[default]
    Linear,
    /// Equal ratios, equal distances; values that are not positive have no place.
    Log,
    /// Symmetric logarithm: linear from minus to plus this threshold (positive), where a decade beyond it is
    /// as long as the way from 0 to it; logarithmic outside, on both sides.
    SymLog(f64),
}

/// A positive value outside would overflow on the way to its place.
const EXTREMES: std::ops::RangeInclusive<f64> = 1e-300..=1e300;
/// Values that are not all positive are shown on a linear axis while the largest is at most so many times
/// the median size.
const LINEAR_UP_TO: f64 = 100.0;

impl Scale {
    /// The scale on which all finite values are seen: logarithmic if all are positive; otherwise linear, or
    /// symmetric-logarithmic where the largest would hide the others.
    pub fn for_values(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        if values.iter().all(|v| *v > 0.0) {
            return Scale::Log;
        }
        let mut sizes: Vec<f64> = values.iter().map(|v| v.abs()).filter(|v| EXTREMES.contains(v)).collect();
        sizes.sort_by(f64::total_cmp);
        match (sizes.get(sizes.len() / 2), sizes.last()) {
            (Some(median), Some(most)) if *most > LINEAR_UP_TO * median => {
                Scale::SymLog(10f64.powf(median.log10().floor()))
            }
            _ => Scale::Linear,
        }
    }

    /// Whether a value can be shown at all.
    fn has_place(self, x: f64) -> bool {
        match self {
            Scale::Log => EXTREMES.contains(&x),
            Scale::Linear | Scale::SymLog(_) => x.abs() <= *EXTREMES.end(),
        }
    }

    /// A number in which equal differences are equal distances.
    fn place(self, x: f64) -> f64 {
        match self {
            Scale::Linear => x,
            Scale::Log => x.log10(),
            Scale::SymLog(c) if x.abs() <= c => x / c,
            Scale::SymLog(c) => (1.0 + x.abs().log10() - c.log10()).copysign(x),
        }
    }

    /// The value at a place.
    fn value(self, place: f64) -> f64 {
        match self {
            Scale::Linear => place,
            Scale::Log => 10f64.powf(place),
            Scale::SymLog(c) if place.abs() <= 1.0 => c * place,
            Scale::SymLog(c) => 10f64.powf(place.abs() - 1.0 + c.log10()).copysign(place),
        }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Points joined by a line.
    #[default]
    Line,
    /// Points joined by a broken line.
    Dashed,
    /// Points joined by a thin, faint line: level lines, and others that stand behind the rest.
    Thin,
    /// Points only.
    Points,
}

/// Where the names of the series stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Legend {
    /// Right of the plot, if there is more than one series.
    #[default]
    Beside,
    /// Nowhere: whoever shows the plot explains it.
    None,
}

/// Colour number `i` as red, green, blue, and how its lines are drawn.
pub fn palette(i: usize) -> ([u8; 3], Style) {
    let c = draw::color(i);
    ([c.0, c.1, c.2], draw::line_style(i))
}

/// One line of a plot, with an entry in the legend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Text in the legend; without one, there is no entry.
    pub name: String,
    /// `(x, y)` in drawing order. A point that is not finite, not positive on a logarithmic axis,
    /// or outside `y_range` interrupts the line. Of more than 1000 points, the lowest and the
    /// highest of each of 500 runs are drawn.
    pub points: Vec<(f64, f64)>,
    /// `(x, low, high)`: a shaded band, e.g. mean ± standard deviation.
    pub band: Option<Vec<(f64, f64, f64)>>,
    /// Line or points; a line by default.
    pub style: Style,
    /// Number of the colour, as in [`palette`]; the series' place by default.
    pub color: Option<usize>,
}

impl Series {
    /// A line without a band.
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Series { name: name.into(), points, ..Self::default() }
    }

    /// Sets the colour: see [`Self::color`].
    #[must_use]
    pub fn with_color(mut self, color: usize) -> Self {
        self.color = Some(color);
        self
    }

    /// Adds a band of `(x, low, high)`.
    #[must_use]
    pub fn with_band(mut self, band: Vec<(f64, f64, f64)>) -> Self {
        self.band = Some(band);
        self
    }
}

/// A plot of any number of series.
///
/// Colours are Okabe and Ito's, distinguishable with colour-blind eyes; from the eighth series on
/// they repeat with broken lines. The legend stands beside the plot when there is more than one series,
/// unless it is left out.
///
/// ```
/// use outerloop_outer::plot::{Plot, Scale, Series};
/// let points = (0..100).map(|i| (f64::from(i), (-0.1 * f64::from(i)).exp())).collect();
/// let plot = Plot {
///     title: "meta-loss".into(),
///     x_label: "outer step".into(),
///     y_label: "loss".into(),
///     y_scale: Scale::Log,
///     series: vec![Series::line("PES", points)],
///     ..Plot::default()
/// };
/// # let dir = tempfile::tempdir().map_err(|e| outerloop_core::Error::io(".", e))?;
/// plot.save(dir.path().join("meta_loss.svg"))?;
/// # Ok::<(), outerloop_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Text above the plot.
    pub title: String,
    /// Text below the horizontal axis.
    pub x_label: String,
    /// Text beside the vertical axis.
    pub y_label: String,
    /// Horizontal scale; linear by default.
    pub x_scale: Scale,
    /// Vertical scale; linear by default.
    pub y_scale: Scale,
    /// The lowest and highest y shown; by default all that the series hold. Useful when one of them
    /// diverges.
    pub y_range: Option<(f64, f64)>,
    /// Width and height in pixels without the legend; 800 x 500 by default.
    pub size: (u32, u32),
    /// Where the legend stands; beside the plot by default.
    pub legend: Legend,
    /// The lines, in legend order.
    pub series: Vec<Series>,
}

impl Default for Plot {
    fn default() -> Self {
        Plot {
            title: String::new(),
            x_label: String::new(),
            y_label: String::new(),
            x_scale: Scale::Linear,
            y_scale: Scale::Linear,
            y_range: None,
            size: (800, 500),
            legend: Legend::Beside,
            series: Vec::new(),
        }
    }
}

impl Plot {
    /// Draws the plot and writes it atomically; the extension picks `svg` or `png`.
    ///
    /// # Errors
    /// [`Error::FeatureDisabled`] for `png` without the feature of that name; [`Error::Unknown`] for
    /// another extension; [`Error::Invalid`] for a `y_range` that is empty or does not fit its scale, and for a
    /// threshold of [`Scale::SymLog`] that is not from 1e-300 to 1e300.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        picture::save(self, path.as_ref())
    }

    /// The plot as SVG text; it needs no script, style sheet or font file.
    pub fn svg(&self) -> Result<String> {
        picture::svg(self)
    }

    /// Width and height in pixels with the legend.
    fn total_size(&self) -> (u32, u32) {
        (self.size.0 + draw::legend_width(self), self.size.1)
    }

    /// The axes that hold all visible points and bands.
    fn axes(&self) -> Result<(Axis, Axis)> {
        for scale in [self.x_scale, self.y_scale] {
            if matches!(scale, Scale::SymLog(threshold) if !EXTREMES.contains(&threshold)) {
                return Err(Error::invalid("scale", format!("expected a positive threshold, got {scale:?}")));
            }
        }
        if let Some((low, high)) = self.y_range {
            let fits = self.y_scale.has_place(low) && self.y_scale.has_place(high);
            if !fits || low >= high {
                let why = format!("expected low < high on a {:?} scale, got {low}, {high}", self.y_scale);
                return Err(Error::invalid("y_range", why));
            }
        }
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        for &(x, y) in self.series.iter().flat_map(|s| &s.points).filter(|p| self.shows(**p)) {
            xs.push(x);
            ys.push(y);
        }
        // On a logarithmic axis mean − std comes near zero: a band's low end adds a decade at most.
        let lowest = match self.y_scale {
            Scale::Linear | Scale::SymLog(_) => f64::NEG_INFINITY,
            Scale::Log => 0.1 * ys.iter().copied().fold(f64::INFINITY, f64::min),
        };
        for &(x, low, high) in self.series.iter().flat_map(|s| s.band.iter().flatten()) {
            if self.x_scale.has_place(x) && self.y_scale.has_place(high) {
                xs.push(x);
                ys.push(high);
                ys.extend((self.y_scale.has_place(low) && low >= lowest).then_some(low));
            }
        }
        let y = match self.y_range {
            Some((low, high)) => Axis::exact(self.y_scale, low, high),
            None => Axis::around(self.y_scale, &ys),
        };
        Ok((Axis::around(self.x_scale, &xs), y))
    }

    fn shows(&self, (x, y): (f64, f64)) -> bool {
        let inside = self.y_range.is_none_or(|(low, high)| low <= y && y <= high);
        self.x_scale.has_place(x) && self.y_scale.has_place(y) && inside
    }
}

impl Picture for Plot {
    fn size(&self) -> (u32, u32) {
        self.total_size()
    }
    fn draw<B: plotters::prelude::DrawingBackend>(&self, backend: B) -> Result<()> {
        draw::draw(self, backend)
    }
}

#[cfg(test)]
mod tests;
