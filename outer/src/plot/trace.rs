//! What of a series can be drawn: pieces without gaps, thinned to what the eye can see.

use super::{Plot, Series};

/// Most points of a series that are drawn.
const MOST: usize = 1000;

/// Runs of consecutive `Some`.
fn pieces<T>(items: impl Iterator<Item = Option<T>>) -> Vec<Vec<T>> {
    let mut out = vec![Vec::new()];
    for item in items {
        match (item, out.last_mut()) {
            (Some(x), Some(piece)) => piece.push(x),
            _ => out.push(Vec::new()),
        }
    }
    out.retain(|piece| !piece.is_empty());
    out
}

/// The line of a series: pieces of `(x, y)`, at most [`MOST`] points in all.
pub(super) fn line(plot: &Plot, series: &Series) -> Vec<Vec<(f64, f64)>> {
    let shown = |p: &(f64, f64)| plot.shows(*p).then_some(*p);
    if series.points.len() <= MOST {
        return pieces(series.points.iter().map(shown));
    }
    let run = series.points.len().div_ceil(MOST / 2);
    pieces(series.points.chunks(run).flat_map(|chunk| {
        let inside = || chunk.iter().filter_map(shown).enumerate();
        let low = inside().min_by(|a, b| a.1 .1.total_cmp(&b.1 .1));
        let high = inside().max_by(|a, b| a.1 .1.total_cmp(&b.1 .1));
        let mut kept: Vec<_> = low.into_iter().chain(high).collect();
        kept.sort_by_key(|(i, _)| *i);
        kept.dedup_by_key(|(i, _)| *i);
        let gap = chunk.iter().any(|p| shown(p).is_none());
        kept.into_iter().map(|(_, p)| Some(p)).chain(gap.then_some(None)).collect::<Vec<_>>()
    }))
}

/// The band of a series: pieces of `(x, low, high)`, cut off at `floor`; at most [`MOST`] in all.
pub(super) fn band(plot: &Plot, series: &Series, floor: f64) -> Vec<Vec<(f64, f64, f64)>> {
    let ceiling = plot.y_range.map_or(f64::INFINITY, |(_, high)| high);
    let shown = |&(x, low, high): &(f64, f64, f64)| {
        // A low end without a place on a logarithmic axis reaches down to the axis.
        let low = if plot.y_scale.has_place(low) { low.max(floor) } else { floor };
        let whole = plot.x_scale.has_place(x) && plot.y_scale.has_place(high) && !low.is_nan();
        (whole && high >= floor && low <= ceiling).then_some((x, low, high.min(ceiling)))
    };
    let points = series.band.as_deref().unwrap_or_default();
    let run = points.len().div_ceil(MOST).max(1);
    pieces(points.chunks(run).map(|chunk| {
        let hull = |a: (f64, f64, f64), b: (f64, f64, f64)| (a.0, a.1.min(b.1), a.2.max(b.2));
        chunk.iter().filter_map(shown).reduce(hull)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Scale;
    use super::*;

    fn log_plot() -> Plot {
        Plot { y_scale: Scale::Log, ..Plot::default() }
    }

    #[test]
    fn gaps_split_the_line() {
        let y = [1.0, 2.0, f64::NAN, 3.0, 0.0, -1.0, f64::INFINITY, 4.0, 5.0];
        let series = Series::line("s", y.iter().enumerate().map(|(i, y)| (i as f64, *y)).collect());
        let linear = line(&Plot::default(), &series);
        assert_eq!(linear.iter().map(Vec::len).collect::<Vec<_>>(), [2, 3, 2]);
        let log = line(&log_plot(), &series);
        assert_eq!(log, [vec![(0.0, 1.0), (1.0, 2.0)], vec![(3.0, 3.0)], vec![(7.0, 4.0), (8.0, 5.0)]]);
        let ranged = Plot { y_range: Some((1.5, 4.5)), ..Plot::default() };
        assert_eq!(line(&ranged, &series), [vec![(1.0, 2.0)], vec![(3.0, 3.0)], vec![(7.0, 4.0)]]);
    }

    #[test]
    fn thinning_keeps_the_extremes_and_the_order() {
        for n in [1001, 4096, 100_003] {
            let mut points: Vec<_> = (0..n).map(|i| (i as f64, (i as f64 * 0.37).sin())).collect();
            points[n / 2].1 = 50.0;
            points[n / 3].1 = -50.0;
            points[n / 5].1 = f64::NAN;
            let pieces = line(&Plot::default(), &Series::line("s", points));
            let all: Vec<_> = pieces.concat();
            assert_eq!(pieces.len(), 2, "the gap must stay");
            assert!((500..=MOST).contains(&all.len()), "{}", all.len());
            assert!(all.contains(&((n / 2) as f64, 50.0)) && all.contains(&((n / 3) as f64, -50.0)));
            assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
        }
        let comb = (0..200_000).map(|i| (i as f64, if i % 2 == 0 { f64::NAN } else { 1.0 })).collect();
        assert!(line(&Plot::default(), &Series::line("s", comb)).concat().len() <= MOST);
    }

    #[test]
    fn bands_end_at_the_floor_and_split_at_gaps() {
        let points = vec![
            (0.0, 0.5, 2.0),
            (1.0, -3.0, 2.0),
            (2.0, f64::NAN, f64::NAN),
            (3.0, 1.0, f64::INFINITY),
            (4.0, 1.0, 2.0),
        ];
        let series = Series::line("s", Vec::new()).with_band(points);
        let want = [vec![(0.0, 0.5, 2.0), (1.0, 0.1, 2.0)], vec![(4.0, 1.0, 2.0)]];
        assert_eq!(band(&log_plot(), &series, 0.1), want);
        let long = (0..50_000).map(|i| (i as f64, 1.0, 2.0)).collect();
        let long = Series::line("s", Vec::new()).with_band(long);
        assert!(band(&log_plot(), &long, 0.1).concat().len() <= MOST);
    }
}
