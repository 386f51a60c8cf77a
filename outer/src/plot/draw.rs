//! The drawing itself, on any plotters backend.

use super::{axis::Axis, trace, Legend, Plot, Series, Style};
use outerloop_core::{Error, Result};
use plotters::prelude::*;

/// Okabe and Ito 2008, "Color Universal Design", without the yellow, which is faint on white.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
/// Length of a dash; the gap is half of it.
const DASH: i32 = 8;
/// Radius of a point.
const DOT: i32 = 3;
/// Height of a legend entry.
const ROW: i32 = 22;

/// Pixels of the legend beside the plot; none for a single series.
pub(super) fn legend_width(plot: &Plot) -> u32 {
    if plot.legend == Legend::None {
        return 0;
    }
    let longest = plot.series.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
    if plot.series.len() > 1 {
        56 + 8 * longest as u32
    } else {
        0
    }
}

pub(super) fn color(i: usize) -> RGBColor {
    PALETTE[i % PALETTE.len()]
}

/// Series with their colours and the colours' numbers.
fn colored(plot: &Plot) -> impl Iterator<Item = (usize, &Series, RGBColor)> {
    plot.series.iter().enumerate().map(|(i, s)| {
        let i = s.color.unwrap_or(i);
        (i, s, color(i))
    })
}

/// Where colours repeat, lines are broken.
pub(super) fn line_style(i: usize) -> Style {
    if i / PALETTE.len() % 2 == 1 {
        Style::Dashed
    } else {
        Style::Line
    }
}

fn style(i: usize, series: &Series) -> Style {
    match series.style {
        Style::Line => line_style(i),
        style => style,
    }
}

pub(super) fn draw<B: DrawingBackend>(plot: &Plot, backend: B) -> Result<()> {
    let axes = plot.axes()?;
    let root = backend.into_drawing_area();
    paint(plot, &root, axes).map_err(|e| Error::invalid("plot", e.to_string()))
}

pub(super) type Area<B> = DrawingArea<B, plotters::coord::Shift>;
pub(super) type Painted<B> = std::result::Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn paint<B: DrawingBackend>(plot: &Plot, root: &Area<B>, axes: (Axis, Axis)) -> Painted<B> {
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(plot.size.0);
    let (x, y) = axes;
    let floor = y.low();
    let mut builder = ChartBuilder::on(&left);
    if !plot.title.is_empty() {
        builder.caption(&plot.title, ("sans-serif", 22));
    }
    let mut chart = builder
        .margin(12)
        .margin_right(24)
        .set_label_area_size(LabelAreaPosition::Left, 68)
        .set_label_area_size(LabelAreaPosition::Bottom, 46)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(&plot.x_label)
        .y_desc(&plot.y_label)
        .axis_desc_style(("sans-serif", 17))
        .label_style(("sans-serif", 15))
        .bold_line_style(RGBColor(222, 222, 222))
        .light_line_style(RGBColor(242, 242, 242))
        .draw()?;
    // Bands first: no band hides a line.
    for (_, series, color) in colored(plot) {
        for piece in trace::band(plot, series, floor) {
            let lower = piece.iter().map(|p| (p.0, p.1));
            let upper = piece.iter().rev().map(|p| (p.0, p.2));
            let outline: Vec<_> = lower.chain(upper).collect();
            chart.draw_series([Polygon::new(outline, color.mix(0.18))])?;
        }
    }
    for (i, series, color) in colored(plot) {
        let (style, stroke) = (style(i, series), color.stroke_width(2));
        for piece in trace::line(plot, series) {
            // A line through one point is invisible: it becomes a dot.
            if style == Style::Points || piece.len() == 1 {
                chart.draw_series(piece.into_iter().map(|p| Circle::new(p, DOT, color.filled())))?;
            } else if style == Style::Dashed {
                chart.draw_series(DashedLineSeries::new(piece, DASH, DASH / 2, stroke))?;
            } else if style == Style::Thin {
                chart.draw_series(LineSeries::new(piece, color.mix(0.4).stroke_width(1)))?;
            } else {
                chart.draw_series(LineSeries::new(piece, stroke))?;
            }
        }
    }
    if plot.series.len() > 1 && plot.legend == Legend::Beside {
        legend(plot, &right)?;
    }
    root.present()
}

fn legend<B: DrawingBackend>(plot: &Plot, area: &Area<B>) -> Painted<B> {
    let font = ("sans-serif", 16).into_font();
    let named = colored(plot).filter(|(_, series, _)| !series.name.is_empty());
    for (row, (i, series, color)) in named.enumerate() {
        let y = 58 + ROW * row as i32;
        let stroke = color.stroke_width(3);
        if series.band.is_some() {
            area.draw(&Rectangle::new([(0, y - 6), (28, y + 6)], color.mix(0.18).filled()))?;
        }
        match style(i, series) {
            Style::Line | Style::Thin => area.draw(&PathElement::new([(0, y), (28, y)], stroke))?,
            Style::Dashed => {
                for x in [0, 12, 24] {
                    area.draw(&PathElement::new([(x, y), ((x + DASH).min(28), y)], stroke))?;
                }
            }
            Style::Points => area.draw(&Circle::new((14, y), DOT, color.filled()))?,
        }
        area.draw(&Text::new(series.name.as_str(), (36, y - 8), font.clone()))?;
    }
    Ok(())
}
