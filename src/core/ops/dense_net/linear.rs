//! A network at one point and batch, kept for many products with its second derivatives.

use super::head::{Keep, SlopeTangent};
use super::layer::{Place, Weights};
use super::{Head, Plain, Rows, BLOCK};
use crate::ops::aligned::Aligned;
use crate::ops::tile::{AddRows, Left, Matrix, Product, Start};
use crate::tensor::Curvature;
use std::sync::{Arc, Mutex, PoisonError};

/// What linearizations of one network share.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// For one product at a time.
    scratch: Vec<Scratch>,
    /// What dropped linearizations kept: their buffers serve the next ones.
    spare: Vec<Kept>,
}

/// A layer's scratch of a product.
#[derive(Debug)]
struct Scratch {
    /// The direction, and the product.
    tangent: Weights,
    /// `ẏ`, `f''(z) ż`, the slope in `z` and its tangent; `[BLOCK, stride]`.
    t: Aligned,
    d2: Aligned,
    d: Aligned,
    td: Aligned,
}

impl Scratch {
    fn new(place: &Place) -> Self {
        let units = || Aligned::zeros(BLOCK * place.strides[1]);
        Scratch { tangent: Weights::new(*place, true), t: units(), d2: units(), d: units(), td: units() }
    }
}

/// A layer's part of the forward pass and of the gradient.
#[derive(Debug)]
struct KeptLayer {
    /// `[inputs, stride]` and `[outputs, stride of the inputs]`; none of the first layer, whose inputs do not move.
    weight: Aligned,
    transposed: Aligned,
    /// `f(z)`, `f'(z)`, `f''(z)`, `[rows, stride]`; none of the last layer.
    units: [Aligned; 3],
    /// The loss's slope, `[rows, stride]`: in the last layer's `z`, in the others' `y`.
    d: Aligned,
}

/// The forward pass and the gradient.
#[derive(Debug)]
pub(super) struct Kept {
    places: Vec<Place>,
    head: Head,
    rows: usize,
    layers: Vec<KeptLayer>,
    /// See [`Keep`].
    hessian: Aligned,
    gauss_newton: Aligned,
}

impl Kept {
    /// Room for a batch.
    pub(super) fn new(pool: &Mutex<Pool>, places: Vec<Place>, head: Head, rows: usize) -> Self {
        let spare = &mut pool.lock().unwrap_or_else(PoisonError::into_inner).spare;
        if let Some(i) = spare.iter().rposition(|kept| kept.rows == rows) {
            return spare.swap_remove(i);
        }
        let last = places.len() - 1;
        let layer = |(l, place): (usize, &Place)| {
            let [inner, hidden] = [l > 0, l < last].map(usize::from);
            let units = rows * place.strides[1];
            KeptLayer {
                weight: Aligned::zeros(inner * place.inputs * place.strides[1]),
                transposed: Aligned::zeros(inner * place.outputs * place.strides[0]),
                units: std::array::from_fn(|_| Aligned::zeros(hidden * units)),
                d: Aligned::zeros(units),
            }
        };
        let layers = places.iter().enumerate().map(layer).collect();
        let outputs = rows * places[last].strides[1];
        let bent = usize::from(head == Head::Reconstruction);
        Kept {
            places,
            head,
            rows,
            layers,
            hessian: Aligned::zeros(outputs),
            gauss_newton: Aligned::zeros(bent * outputs),
        }
    }

    /// The weights that later products need.
    pub(super) fn copy_weights<'a>(&mut self, weights: impl Iterator<Item = &'a Weights>) {
        for (kept, w) in self.layers.iter_mut().zip(weights).skip(1) {
            kept.weight.copy_from_slice(&w.weight);
            kept.transposed.copy_from_slice(&w.transposed);
        }
    }

    /// Where a block begins in layer `l`.
    fn start(&self, l: usize, block: usize) -> usize {
        block * BLOCK * self.places[l].strides[1]
    }

    /// A block's `f(z)`, `f'(z)` and `f''(z)`.
    pub(super) fn units(&mut self, l: usize, block: usize, len: usize) -> [&mut [f32]; 3] {
        let start = self.start(l, block);
        self.layers[l].units.each_mut().map(|units| &mut units[start..][..len])
    }

    /// A block's slope.
    pub(super) fn slope(&mut self, l: usize, block: usize, len: usize) -> &mut [f32] {
        let start = self.start(l, block);
        &mut self.layers[l].d[start..][..len]
    }

    /// A block's curvature of the loss.
    pub(super) fn curvature(&mut self, block: usize, len: usize) -> Keep<'_> {
        let start = self.start(self.places.len() - 1, block);
        let is_same = self.gauss_newton.is_empty();
        let gauss_newton = if is_same { &mut [][..] } else { &mut self.gauss_newton[start..][..len] };
        Keep { hessian: &mut self.hessian[start..][..len], gauss_newton }
    }
}

/// A [`DenseNet`](super::DenseNet) at one point and batch, with its forward pass and gradient kept: each product with
/// second derivatives costs its own two passes, about half of
/// [`DenseNet::loss_grad_hvp`](super::DenseNet::loss_grad_hvp), and gives the same bits.
///
/// Memory: five numbers per row and hidden unit, and two copies of all weights but the first layer's.
#[derive(Debug)]
pub struct DenseLinear {
    /// `None` when dropped.
    kept: Option<Kept>,
    pool: Arc<Mutex<Pool>>,
}

impl Drop for DenseLinear {
    fn drop(&mut self) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.spare.extend(self.kept.take());
    }
}

impl DenseLinear {
    pub(super) fn new(kept: Kept, pool: Arc<Mutex<Pool>>) -> Self {
        DenseLinear { kept: Some(kept), pool }
    }

    fn kept(&self) -> &Kept {
        self.kept.as_ref().expect("it was not dropped")
    }

    /// What it holds in memory.
    pub fn bytes(&self) -> usize {
        let kept = self.kept();
        let layer = |l: &KeptLayer| {
            let units: usize = l.units.iter().map(|u| u.len()).sum();
            l.weight.len() + l.transposed.len() + units + l.d.len()
        };
        let numbers = kept.layers.iter().map(layer).sum::<usize>();
        (numbers + kept.hessian.len() + kept.gauss_newton.len()) * size_of::<f32>()
    }

    /// Overwrites `out` with the curvature matrix times `v`, both of the length of the parameters; `rows` are those of
    /// the linearization.
    ///
    /// # Panics
    /// If there are more or fewer rows.
    #[track_caller]
    pub fn product(&mut self, rows: Rows<'_>, curvature: Curvature, v: &[f32], out: &mut [f32]) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.kept();
        let n = rows.index.len();
        assert_eq!(n, kept.rows, "product with a linearized network: rows of its batch");
        let scratch = &mut pool.scratch;
        if scratch.is_empty() {
            scratch.extend(kept.places.iter().map(Scratch::new));
        }
        for (place, s) in kept.places.iter().zip(&mut *scratch) {
            place.load(&mut s.tangent, v, 0.0);
        }
        let inputs = kept.places[0].inputs;
        let mut x = [&[][..]; BLOCK];
        for (block, index) in rows.index.chunks(BLOCK).enumerate() {
            for (x, &i) in x.iter_mut().zip(index) {
                *x = &rows.inputs[i as usize * inputs..][..inputs];
            }
            let pass = Pass { kept, curvature, x: &x[..index.len()], block };
            pass.forward(scratch);
            pass.backward(scratch);
        }
        for (place, s) in kept.places.iter().zip(scratch) {
            place.write_grad(&s.tangent, out);
        }
    }
}

/// A block of rows on its way through the layers.
struct Pass<'a> {
    kept: &'a Kept,
    curvature: Curvature,
    /// The data.
    x: &'a [&'a [f32]],
    block: usize,
}

impl<'a> Pass<'a> {
    /// This block's part of what layer `l` kept.
    fn part(&self, l: usize, all: &'a Aligned) -> &'a [f32] {
        let start = self.kept.start(l, self.block);
        &all[start..][..self.x.len() * self.kept.places[l].strides[1]]
    }

    /// The inputs of layer `l`.
    fn inputs(&self, l: usize) -> Matrix<'a> {
        match l.checked_sub(1) {
            None => Matrix::Listed(self.x),
            Some(b) => {
                let y = self.part(b, &self.kept.layers[b].units[0]);
                Matrix::Strided(y, self.kept.places[b].strides[1])
            }
        }
    }

    /// The tangents of all units; at the end, the tangent of the slope in place of the outputs' one.
    fn forward(&self, scratch: &mut [Scratch]) {
        let Kept { places, layers, head, rows, .. } = self.kept;
        let last = places.len() - 1;
        for l in 0..=last {
            let Place { inputs, strides, path, .. } = places[l];
            let shape = [self.x.len(), inputs, strides[1]];
            let (before, rest) = scratch.split_at_mut(l);
            let Scratch { tangent, t, d2, td, .. } = &mut rest[0];
            let c = if l == last { td } else { t };
            let product = |start: Start<'_>, a: Matrix<'_>, b: &[f32], c: &mut [f32]| {
                path.run(Product { start, left: Left::Rows(a), b, c, shape, times: &[] });
            };
            // ż = a ẇ + ȧ w + ḃ
            product(Start::Row(&tangent.bias), self.inputs(l), &tangent.weight, c);
            if let Some(before) = before.last() {
                product(Start::Sum, Matrix::Strided(&before.t, strides[0]), &layers[l].weight, c);
            }
            if l < last {
                let [_, d1, f2] = layers[l].units.each_ref().map(|units| self.part(l, units));
                path.run(Plain(
                    #[inline(always)]
                    || {
                        for (((t, d2), d1), f2) in c.iter_mut().zip(&mut **d2).zip(d1).zip(f2) {
                            (*d2, *t) = (f2 * *t, d1 * *t);
                        }
                    },
                ));
            }
        }
        let is_hessian = self.curvature == Curvature::Hessian || self.kept.gauss_newton.is_empty();
        let kept = if is_hessian { &self.kept.hessian } else { &self.kept.gauss_newton };
        let kept = self.part(last, kept);
        let (width, weight) = (places[last].strides[1], 1.0 / *rows as f32);
        let tz = &mut scratch[last].td[..kept.len()];
        places[last].path.run(SlopeTangent { head: *head, width, weight, kept, tz });
    }

    /// Adds to the product.
    fn backward(&self, scratch: &mut [Scratch]) {
        let Kept { places, layers, .. } = self.kept;
        let (n, last) = (self.x.len(), places.len() - 1);
        let is_hessian = self.curvature == Curvature::Hessian;
        for l in (0..=last).rev() {
            let place = &places[l];
            let Place { outputs, strides: [stride_in, stride], path, .. } = *place;
            let (before, rest) = scratch.split_at_mut(l);
            let Scratch { tangent, d, td, .. } = &mut rest[0];
            let td = &td[..n * stride];
            let d = if l == last { self.part(l, &layers[l].d) } else { &d[..n * stride] };
            place.add_grad(self.inputs(l), td, n, &mut tangent.grad);
            let Some(before) = before.last_mut() else {
                path.run(AddRows { b: td, c: &mut tangent.grad_bias });
                continue;
            };
            if is_hessian {
                place.add_grad(
                    Matrix::Strided(&before.t[..n * stride_in], stride_in),
                    d,
                    n,
                    &mut tangent.grad,
                );
            }
            path.run(AddRows { b: td, c: &mut tangent.grad_bias });
            let shape = [n, outputs, stride_in];
            let product = |start: Start<'_>, d: &[f32], b: &[f32], c: &mut [f32]| {
                let left = Left::Rows(Matrix::Strided(d, stride));
                path.run(Product { start, left, b, c, shape, times: &[] });
            };
            let [_, d1, _] = layers[l - 1].units.each_ref().map(|units| self.part(l - 1, units));
            let by_y = self.part(l - 1, &layers[l - 1].d);
            let Scratch { d2, d: d_before, td: td_before, .. } = before;
            product(Start::Zero, td, &layers[l].transposed, td_before);
            if is_hessian {
                product(Start::Sum, d, &tangent.transposed, td_before);
            }
            path.run(Plain(
                #[inline(always)]
                || {
                    let units = td_before.iter_mut().zip(&mut **d_before).zip(d1);
                    if is_hessian {
                        for ((((td, d), d1), by_y), d2) in units.zip(by_y).zip(&**d2) {
                            *td = *td * *d1 + *by_y * *d2;
                            *d = *by_y * *d1;
                        }
                    } else {
                        units.for_each(|((td, _), d1)| *td *= *d1);
                    }
                },
            ));
        }
    }
}
