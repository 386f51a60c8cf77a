//! How gradients, errors and iterates are shown to a network: their sizes span many orders of magnitude.

use crate::problem::Rows;
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Float, HasShape, Mode};

/// The size below which a logarithm stops, in [`log`].
pub const FLOOR: f64 = 1e-5;

/// `ln(|g| + 10⁻⁵)`. Its derivative reaches 10⁵ near 0: differentiated through, it explodes where inference has
/// converged, a reason to stop gradients there.
pub fn log<E: Float, B: Backend<E>, M: Mode<E, B>>(g: Rows<E, B, M>) -> Rows<E, B, M> {
    let (zero, one, floor) = (E::of(0.0), E::of(1.0), E::of(FLOOR));
    ops::map(g, move |g: E| {
        let inverse = if g == zero { zero } else { one / (g.abs() + floor) };
        let slope = if g > zero { inverse } else { -inverse };
        [(g.abs() + floor).ln(), slope, -inverse * inverse]
    })
}

/// `max(10 ln(|g| + 10⁻⁵), −5)`
pub fn scaled_log<E: Float, B: Backend<E>, M: Mode<E, B>>(g: Rows<E, B, M>) -> Rows<E, B, M> {
    ops::clip(ops::scale(log(g), 10.0), -5.0, f64::MAX)
}

/// The sign, with derivative 0.
pub fn sign<E: Float, B: Backend<E>, M: Mode<E, B>>(g: Rows<E, B, M>) -> Rows<E, B, M> {
    let zero = E::of(0.0);
    ops::map(g, move |g: E| {
        let s = if g > zero { E::of(1.0) } else { E::of(-1.0) };
        [if g == zero { zero } else { s }, zero, zero]
    })
}

/// `(ln|g|/p, sign g)` where `|g| ≥ e^{−p}`, else `(−1, e^p g)`. Reference: Andrychowicz et al. 2016,
/// arXiv:1606.04474, appendix A.
pub fn log_and_sign<E: Float, B: Backend<E>, M: Mode<E, B>>(g: Rows<E, B, M>, p: f64) -> [Rows<E, B, M>; 2] {
    let (zero, one, scale) = (E::of(0.0), E::of(1.0), E::of(p));
    let (least, factor) = (E::of((-p).exp()), E::of(p.exp()));
    let size = ops::map(g.clone(), move |g: E| {
        if g.abs() < least {
            return [-one, zero, zero];
        }
        [g.abs().ln() / scale, one / (scale * g), -one / (scale * g * g)]
    });
    let sign = ops::map(g, move |g: E| {
        if g.abs() < least {
            return [factor * g, factor, zero];
        }
        [if g > zero { one } else { -one }, zero, zero]
    });
    [size, sign]
}

/// `(x − mean)/(std + ε)` down the columns, with the standard deviation over `n − 1`.
fn standardize<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Rows<E, B, M>, epsilon: f64) -> Rows<E, B, M> {
    let n = x.shape().0 as f64;
    let off = ops::sub(x.clone(), &ops::mean_axis0(x));
    let var = ops::scale(ops::sum_axis0(ops::square(off.clone())), 1.0 / (n - 1.0));
    ops::div(off, &ops::shift(ops::sqrt(var), epsilon))
}

/// Every row standardized over its features, standard deviation over `n − 1`, plus 10⁻⁷.
pub fn layer_norm<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Rows<E, B, M>) -> Rows<E, B, M> {
    ops::transpose(standardize(ops::transpose(x), 1e-7))
}

/// Every feature standardized over the batch, standard deviation over `n − 1`, plus 10⁻⁵. (Some programs call this
/// layer norm.) A row's encoding then depends on the others.
pub fn batch_norm<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Rows<E, B, M>) -> Rows<E, B, M> {
    standardize(x, 1e-5)
}

/// Every row divided by its 2-norm.
pub fn l2_norm<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Rows<E, B, M>) -> Rows<E, B, M> {
    let t = ops::transpose(x);
    let norm = ops::sqrt(ops::sum_axis0(ops::square(t.clone())));
    ops::transpose(ops::div(t, &norm))
}
