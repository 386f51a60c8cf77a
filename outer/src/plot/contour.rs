//! Lines of equal height on a surface, by marching squares.

use super::{Series, Style};

/// A surface by its heights on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Surface {
    /// Where the columns stand, ascending, `[C]`.
    pub x: Vec<f64>,
    /// Where the rows stand, ascending, `[R]`.
    pub y: Vec<f64>,
    /// Row by row, `[R, C]`.
    pub heights: Vec<f64>,
}

impl Surface {
    /// The line at a height, as segments in no order. A cell without finite heights has none; one that two lines cross is
    /// a saddle, whose lines are joined in the order of its sides.
    ///
    /// ```
    /// use outerloop_outer::plot::Surface;
    /// let s = Surface { x: vec![0.0, 1.0], y: vec![0.0, 2.0], heights: vec![0.0, 1.0, 0.0, 1.0] };
    /// assert_eq!(s.contour(0.25), [[(0.25, 0.0), (0.25, 2.0)]]);
    /// ```
    ///
    /// # Panics
    /// If there are other numbers of heights than columns times rows.
    pub fn contour(&self, level: f64) -> Vec<[(f64, f64); 2]> {
        let (columns, rows) = (self.x.len(), self.y.len());
        assert_eq!(self.heights.len(), columns * rows, "surface: heights");
        let at = |i: usize, j: usize| self.heights[i * columns + j] - level;
        let mut segments = Vec::new();
        for i in 0..rows.saturating_sub(1) {
            for j in 0..columns.saturating_sub(1) {
                // Corners around the cell, and where the line crosses between two of them.
                let corners = [(i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j)];
                if corners.iter().any(|c| !at(c.0, c.1).is_finite()) {
                    continue;
                }
                let mut crossings = Vec::new();
                for k in 0..4 {
                    let (p, q) = (corners[k], corners[(k + 1) % 4]);
                    let (a, b) = (at(p.0, p.1), at(q.0, q.1));
                    if (a >= 0.0) != (b >= 0.0) {
                        let t = a / (a - b);
                        let mix = |p: f64, q: f64| p + t * (q - p);
                        crossings.push((mix(self.x[p.1], self.x[q.1]), mix(self.y[p.0], self.y[q.0])));
                    }
                }
                for pair in crossings.chunks_exact(2) {
                    segments.push([pair[0], pair[1]]);
                }
            }
        }
        segments
    }

    /// The line at a height as thin series of one colour without names: points that are no numbers stand between the
    /// segments. None where the height is not reached.
    pub fn series(&self, level: f64, color: usize) -> Vec<Series> {
        // Longer series would be thinned out.
        const SEGMENTS: usize = 300;
        let series = |part: &[[(f64, f64); 2]]| {
            let points = part.iter().flat_map(|[a, b]| [*a, *b, (f64::NAN, f64::NAN)]).collect();
            Series { style: Style::Thin, ..Series::line("", points).with_color(color) }
        };
        self.contour(level).chunks(SEGMENTS).map(series).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bowl(n: usize) -> Surface {
        let x: Vec<f64> = (0..n).map(|i| -2.0 + 4.0 * i as f64 / (n - 1) as f64).collect();
        let y: Vec<f64> = x.iter().map(|x| 1.5 * x).collect();
        let heights = y.iter().flat_map(|y| x.iter().map(move |x| x * x + y * y)).collect();
        Surface { x, y, heights }
    }

    #[test]
    fn contours_of_a_bowl_are_circles() {
        let s = bowl(81);
        let lines = s.contour(1.44);
        assert!(lines.len() > 60);
        for (x, y) in lines.iter().flatten() {
            assert!((x.hypot(*y) - 1.2).abs() < 2e-3, "{x} {y}");
        }
        // Every end is the end of another segment: the line is closed.
        for end in lines.iter().flatten() {
            let same = lines.iter().flatten().filter(|p| (p.0 - end.0).hypot(p.1 - end.1) < 1e-12).count();
            assert!(same >= 2, "{end:?}");
        }
        assert!(s.contour(100.0).is_empty());
        let series = s.series(1.44, 3);
        let points: usize = series.iter().map(|s| s.points.len()).sum();
        assert_eq!(points, 3 * lines.len());
        assert!(series.iter().all(|s| s.points.len() <= 1000 && s.color == Some(3) && s.name.is_empty()));
    }

    #[test]
    fn cells_without_heights_have_no_line() {
        let mut s = bowl(21);
        let whole = s.contour(1.0).len();
        s.heights[10 * 21 + 15] = f64::NAN;
        let left = s.contour(1.0).len();
        assert!(left < whole && left > 0);
    }
}
