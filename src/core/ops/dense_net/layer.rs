//! One layer: its weights and units in rows of whole vectors, and the products that advance them.

use super::rows::{transpose, Pad, Unpad};
use super::{Plain, BLOCK};
use crate::ops::aligned::Aligned;
use crate::ops::tile::{AddRows, Left, Matrix, Product, Start};
use crate::simd::Path;

/// Shape and place in the flat buffer of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Numbers per row of the inputs and of the outputs, padding included.
    pub(super) strides: [usize; 2],
    /// Where the weight begins in the flat buffer; the bias follows.
    start: usize,
    pub(super) path: Path,
    /// The weight's gradient is summed as `[outputs, stride of the inputs]`, which has less padding.
    pub(super) is_grad_transposed: bool,
}

/// One layer with its scratch.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) place: Place,
    pub(super) params: Weights,
    /// Empty until tangents are asked for.
    pub(super) tangent: Weights,
    pub(super) units: Units,
}

/// A layer's parameters, or their tangent, with the gradient's.
#[derive(Debug)]
pub(super) struct Weights {
    /// `[inputs, stride]`
    pub(super) weight: Aligned,
    /// `[outputs, stride of the inputs]`
    pub(super) transposed: Aligned,
    /// `[stride]`
    pub(super) bias: Aligned,
    /// `[inputs, stride]`, or `[outputs, stride of the inputs]`.
    pub(super) grad: Aligned,
    /// `[stride]`
    pub(super) grad_bias: Aligned,
}

/// A layer's outputs for a block of rows, `[BLOCK, stride]` each.
#[derive(Debug)]
pub(super) struct Units {
    /// `f(z)`
    pub(super) y: Aligned,
    /// `f'(z)`
    pub(super) d1: Aligned,
    /// `f''(z) ż`
    pub(super) d2: Aligned,
    /// `ẏ`
    pub(super) t: Aligned,
    /// The loss's slope in `z`; the last layer's `z` before that.
    pub(super) d: Aligned,
    /// The tangents of both.
    pub(super) td: Aligned,
}

impl Weights {
    /// Room for a layer; none if `is_needed` is not.
    pub(super) fn new(place: Place, is_needed: bool) -> Self {
        let Place { inputs, outputs, strides, .. } = place;
        let zeros = |n: usize| Aligned::zeros(if is_needed { n } else { 0 });
        Weights {
            weight: zeros(inputs * strides[1]),
            transposed: zeros(outputs * strides[0]),
            bias: zeros(strides[1]),
            grad: zeros((inputs * strides[1]).max(outputs * strides[0])),
            grad_bias: zeros(strides[1]),
        }
    }
}

impl Place {
    fn new(inputs: usize, outputs: usize, start: usize, path: Path) -> Self {
        let strides = [inputs, outputs].map(|n| n.next_multiple_of(path.lanes()));
        // The data are not in rows of whole vectors.
        let is_grad_transposed = start > 0 && outputs * strides[0] < inputs * strides[1];
        Place { inputs, outputs, strides, start, path, is_grad_transposed }
    }

    /// Copies this layer's part of a flat buffer into place, puts `padding` behind the bias, and clears the gradient.
    pub(super) fn load(&self, w: &mut Weights, flat: &[f32], padding: f32) {
        let Place { inputs, outputs, strides, start, path, .. } = *self;
        let (weight, bias) = flat[start..][..(inputs + 1) * outputs].split_at(inputs * outputs);
        path.run(Pad { flat: weight, width: outputs, padded: &mut w.weight, stride: strides[1] });
        // Nobody needs the gradient of the data.
        if start > 0 {
            transpose(weight, outputs, &mut w.transposed, strides[0]);
        }
        w.bias[..outputs].copy_from_slice(bias);
        w.bias[outputs..].fill(padding);
        w.grad.fill(0.0);
        w.grad_bias.fill(0.0);
    }

    /// Writes the gradient that `weights` has summed to this layer's part of a flat buffer.
    pub(super) fn write_grad(&self, weights: &Weights, flat: &mut [f32]) {
        let Place { inputs, outputs, strides, .. } = *self;
        let (weight, bias) = flat[self.start..][..(inputs + 1) * outputs].split_at_mut(inputs * outputs);
        if self.is_grad_transposed {
            transpose(&weights.grad, strides[0], weight, outputs);
        } else {
            let padded = &weights.grad[..inputs * strides[1]];
            self.path.run(Unpad { padded, stride: strides[1], flat: weight, width: outputs });
        }
        bias.copy_from_slice(&weights.grad_bias[..outputs]);
    }

    /// `grad += aᵀ d` for some rows.
    pub(super) fn add_grad(&self, a: Matrix<'_>, d: &[f32], rows: usize, grad: &mut [f32]) {
        let Place { inputs, outputs, strides: [stride_in, stride], .. } = *self;
        let (left, b, shape) = match a {
            Matrix::Strided(a, _) if self.is_grad_transposed => {
                (Matrix::Strided(d, stride), a, [outputs, rows, stride_in])
            }
            _ => (a, d, [inputs, rows, stride]),
        };
        self.path.run(Product {
            start: Start::Sum,
            left: Left::Columns(left),
            b,
            c: grad,
            shape,
            times: &[],
        });
    }
}

impl Layer {
    pub(super) fn new(inputs: usize, outputs: usize, start: usize, path: Path) -> Self {
        let place = Place::new(inputs, outputs, start, path);
        let units = BLOCK * place.strides[1];
        let zeros = Aligned::zeros;
        Layer {
            place,
            params: Weights::new(place, true),
            tangent: Weights::new(place, false),
            units: Units {
                y: zeros(units),
                d1: zeros(units),
                d2: zeros(0),
                t: zeros(0),
                d: zeros(units),
                td: zeros(0),
            },
        }
    }

    /// Makes room for tangents.
    fn want_tangents(&mut self) {
        if self.tangent.weight.is_empty() {
            let units = BLOCK * self.place.strides[1];
            self.tangent = Weights::new(self.place, true);
            for t in [&mut self.units.d2, &mut self.units.t, &mut self.units.td] {
                *t = Aligned::zeros(units);
            }
        }
    }

    /// Copies this layer's part of the flat parameters and of their tangent into place, clears the
    /// gradients, and puts `padding` behind the bias.
    pub(super) fn load(&mut self, params: &[f32], tangent: Option<&[f32]>, padding: f32) {
        if tangent.is_some() {
            self.want_tangents();
        }
        self.place.load(&mut self.params, params, padding);
        if let Some(tangent) = tangent {
            self.place.load(&mut self.tangent, tangent, 0.0);
        }
    }

    /// `z = a w + b` for some rows, into `d` if `is_last`, else into `y`; with the inputs' tangent `ta`
    /// also `ż = a ẇ + ȧ w + ḃ`.
    pub(super) fn forward(
        &mut self,
        a: Matrix<'_>,
        ta: Option<Option<Matrix<'_>>>,
        rows: usize,
        is_last: bool,
    ) {
        let Layer { place, params, tangent, units } = self;
        let Place { inputs, strides: [_, stride], path, .. } = place;
        let (z, tz) = match is_last {
            true => (&mut units.d, &mut units.td),
            false => (&mut units.y, &mut units.t),
        };
        let shape = [rows, *inputs, *stride];
        let product = |start: Start<'_>, a: Matrix<'_>, b: &[f32], c: &mut [f32]| {
            path.run(Product { start, left: Left::Rows(a), b, c, shape, times: &[] });
        };
        product(Start::Row(&params.bias), a, &params.weight, z);
        if let Some(ta) = ta {
            product(Start::Row(&tangent.bias), a, &tangent.weight, tz);
            if let Some(ta) = ta {
                product(Start::Sum, ta, &params.weight, tz);
            }
        }
    }

    /// Adds some rows' part of the gradient, `aᵀ d`, and of its tangent.
    pub(super) fn add_grad(&mut self, a: Matrix<'_>, ta: Option<Option<Matrix<'_>>>, rows: usize) {
        let Layer { place, params, tangent, units } = self;
        let (path, stride) = (place.path, place.strides[1]);
        let [d, td] = [&units.d, &units.td].map(|d| &d[..d.len().min(rows * stride)]);
        place.add_grad(a, d, rows, &mut params.grad);
        path.run(AddRows { b: d, c: &mut params.grad_bias });
        if let Some(ta) = ta {
            place.add_grad(a, td, rows, &mut tangent.grad);
            if let Some(ta) = ta {
                place.add_grad(ta, d, rows, &mut tangent.grad);
            }
            path.run(AddRows { b: td, c: &mut tangent.grad_bias });
        }
    }

    /// Takes the slope through the weight into the layer before: `d ← (d wᵀ) f'`, and what else `back` says.
    pub(super) fn backward(&self, before: &mut Units, rows: usize, back: Back<'_>) {
        let Layer { place, params, tangent, units } = self;
        let Place { outputs, strides: [stride_in, stride], path, .. } = place;
        let shape = [rows, *outputs, *stride_in];
        let product = |start: Start<'_>, d: &[f32], b: &[f32], c: &mut [f32], times: &[f32]| {
            let left = Left::Rows(Matrix::Strided(d, *stride));
            path.run(Product { start, left, b, c, shape, times });
        };
        let Units { d1, d2, d, td, .. } = before;
        let n = rows * *stride_in;
        let (d, d1) = (&mut d[..n], &d1[..n]);
        match back {
            Back::Slope => return product(Start::Zero, &units.d, &params.transposed, d, d1),
            Back::Kept(by_y) => {
                product(Start::Zero, &units.d, &params.transposed, by_y, &[]);
                path.run(Plain(
                    #[inline(always)]
                    || d.iter_mut().zip(by_y).zip(d1).for_each(|((d, by_y), d1)| *d = *by_y * *d1),
                ));
                return;
            }
            Back::Tangent => product(Start::Zero, &units.d, &params.transposed, d, &[]),
        }
        let (td, d2) = (&mut td[..n], &d2[..n]);
        product(Start::Zero, &units.td, &params.transposed, td, &[]);
        product(Start::Sum, &units.d, &tangent.transposed, td, &[]);
        path.run(Plain(
            #[inline(always)]
            || {
                for (((td, d), d1), d2) in td.iter_mut().zip(d).zip(d1).zip(d2) {
                    *td = *td * *d1 + *d * *d2;
                    *d *= *d1;
                }
            },
        ));
    }
}

/// What a step backwards leaves behind beside the slope.
pub(super) enum Back<'a> {
    /// Nothing.
    Slope,
    /// `d wᵀ`, before it is multiplied with `f'`.
    Kept(&'a mut [f32]),
    /// The slope's tangent.
    Tangent,
}
