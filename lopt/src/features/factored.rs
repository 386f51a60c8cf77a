//! Adafactor's second moments: a matrix of squared gradients kept as its row and column means.
//!
//! Of a tensor of rank 2 or more, `d0` is the largest axis and `d1` the second largest (the later one
//! of equal axes counts as larger); `row` averages the squares over `d0`, `col` over `d1`. Tensors of
//! lower rank keep every element's average in `row`.
//! Reference: Shazeer and Stern 2018, arXiv:1804.04235, with the constants of
//! google/learned_optimization.

use super::averages;
use crate::rule::Var;
use outerloop_core::Float;
use std::ops::Range;

/// Added to squared gradients.
pub(crate) const SQUARE_EPSILON: f64 = 1e-30;
/// Smallest argument of a reciprocal root, and the term added to a denominator.
pub(crate) const EPSILON: f64 = 1e-9;

/// How one tensor is factored.
#[derive(Clone, Debug)]
pub struct Factored {
    numel: usize,
    axes: Option<Axes>,
}

/// The axes as `[outer, axis, inner]` extents.
#[derive(Clone, Debug)]
pub(crate) struct Axes {
    pub(crate) d0: [usize; 3],
    pub(crate) d1: [usize; 3],
    /// `d1` in the tensor without `d0`.
    pub(crate) d1_of_row: [usize; 3],
}

/// What one accumulator gives, every array of the tensor's length.
pub struct FactoredFeatures<E> {
    /// The row means (of rank 0 and 1: the averages themselves).
    pub row: Var<E>,
    /// The column means (of rank 0 and 1: the averages themselves).
    pub col: Var<E>,
    /// `(row / mean(row))^-½ · col^-½`; of rank 0 and 1 `average^-½`.
    pub factor: Var<E>,
}

impl Factored {
    /// For a tensor of this shape.
    pub fn new(shape: &[usize]) -> Self {
        // The axis's extents in the tensor, or in the tensor without the axis `gone`.
        let extents = |axis: usize, gone: usize| {
            let product = |range: Range<usize>| range.filter(|a| *a != gone).map(|a| shape[a]).product();
            [product(0..axis), shape[axis], product(axis + 1..shape.len())]
        };
        let none = shape.len();
        // The last of the largest axes but `gone`.
        let largest = |gone: usize| (0..none).filter(|a| *a != gone).max_by_key(|a| shape[*a]);
        let axes = largest(none).and_then(|d0| {
            let d1 = largest(d0)?;
            Some(Axes { d0: extents(d0, none), d1: extents(d1, none), d1_of_row: extents(d1, d0) })
        });
        Factored { numel: shape.iter().product(), axes }
    }

    /// The averaged axes, for tensors of rank 2 and more.
    pub(crate) fn axes(&self) -> Option<&Axes> {
        self.axes.as_ref()
    }

    /// Elements of one decay's row and column accumulators.
    pub fn lens(&self) -> [usize; 2] {
        match &self.axes {
            Some(a) => [a.d0[0] * a.d0[2], a.d1[0] * a.d1[2]],
            None => [self.numel, 0],
        }
    }

    /// Whether there are row and column means.
    pub fn is_factored(&self) -> bool {
        self.axes.is_some()
    }

    /// The next `(row, col)` accumulators of one decay.
    pub fn update<E: Float>(&self, row: &Var<E>, col: &Var<E>, grad: &Var<E>, rate: &Var<E>) -> [Var<E>; 2] {
        let rate = rate.clip(0.0, 1.0);
        let squares = grad.square().shift(SQUARE_EPSILON);
        match &self.axes {
            Some(a) => [
                averages::step(row, &squares.mean_axis(a.d0), &rate),
                averages::step(col, &squares.mean_axis(a.d1), &rate),
            ],
            None => [averages::step(row, &squares, &rate), col.clone()],
        }
    }

    /// The features of updated accumulators.
    pub fn features<E: Float>(&self, row: &Var<E>, col: &Var<E>) -> FactoredFeatures<E> {
        match &self.axes {
            Some(a) => {
                let mean = row.mean_axis(a.d1_of_row).shift(EPSILON).expand_axis(a.d1_of_row);
                let row_factor = safe_rsqrt(&(row / mean)).expand_axis(a.d0);
                FactoredFeatures {
                    factor: row_factor * safe_rsqrt(col).expand_axis(a.d1),
                    row: row.expand_axis(a.d0),
                    col: col.expand_axis(a.d1),
                }
            }
            None => FactoredFeatures {
                row: row.clone(),
                col: row.clone(),
                factor: safe_rsqrt(&row.shift(EPSILON)),
            },
        }
    }
}

/// `max(x, ε)^-½`.
fn safe_rsqrt<E: Float>(x: &Var<E>) -> Var<E> {
    x.clip(EPSILON, f64::INFINITY).rsqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_axis_is_averaged_into_rows() {
        // [2, 3]: d0 = 1, d1 = 0; rows have 2 entries, columns 3. [3, 2]: the other way round.
        assert_eq!(Factored::new(&[2, 3]).lens(), [2, 3]);
        assert_eq!(Factored::new(&[3, 2]).lens(), [2, 3]);
        // Equal axes: the later one is d0. Rank 4: 5 and 4 are the largest.
        assert_eq!(Factored::new(&[3, 3]).lens(), [3, 3]);
        assert_eq!(Factored::new(&[2, 5, 3, 4]).lens(), [24, 30]);
        assert_eq!(Factored::new(&[7]).lens(), [7, 0]);
        assert_eq!(Factored::new(&[]).lens(), [1, 0]);
    }

    #[test]
    fn a_rank_one_gradient_becomes_signs() {
        // g = u vᵀ: row ∝ u², col ∝ v² and the factors divide out both, up to the average's rate.
        let (u, v) = ([1.0, -2.0, 3.0], [0.5, 4.0]);
        let g = Var::constant(u.iter().flat_map(|u| v.map(|v| u * v)).collect::<Vec<f64>>());
        let f = Factored::new(&[3, 2]);
        let zero = |n| Var::constant(vec![0.0; n]);
        let [row, col] = f.update(&zero(2), &zero(3), &g, &Var::scalar(1.0));
        assert_eq!(row.data().len(), 2);
        let out = &g * f.features(&row, &col).factor;
        for (x, sign) in out.data().iter().zip([1.0, 1.0, -1.0, -1.0, 1.0, 1.0]) {
            assert!((x - sign).abs() < 1e-6, "{x}");
        }
    }
}
