//! Convolution and pooling of images `[N, H, W, C]`, by gathering patches.

use super::reduce::{max_axis, sum_axis};
use super::select::{select, NONE};
use super::{linear, mul, reshape, Activation};
use crate::tensor::{Backend, Dim, Float, Mode, Tensor};
use dfdx::prelude::HasShape;
use serde::{Deserialize, Serialize};

/// What a window does at the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Padding {
    /// Output size `⌈size / stride⌉`; zeros are added, the odd one behind (TensorFlow's rule).
    Same,
    /// Windows inside the image only: output size `⌈(size − window + 1) / stride⌉`.
    Valid,
}

impl Padding {
    /// Output size and zeros before the first element, along one axis.
    fn plan(self, size: usize, window: usize, stride: usize) -> (usize, usize) {
        match self {
            Padding::Same => {
                let out = size.div_ceil(stride);
                (out, ((out.max(1) - 1) * stride + window).saturating_sub(size) / 2)
            }
            Padding::Valid => ((size + 1).saturating_sub(window).div_ceil(stride), 0),
        }
    }
}

/// The windows of an image batch.
struct Windows {
    /// Output height and width.
    out: [usize; 2],
    /// For each image, output place and window place, the pixel's number, or [`NONE`].
    index: Vec<u32>,
}

fn windows([n, h, w]: [usize; 3], [kh, kw]: [usize; 2], [sh, sw]: [usize; 2], padding: Padding) -> Windows {
    assert!(kh > 0 && kw > 0 && sh > 0 && sw > 0, "windows and strides must be positive");
    let ((oh, top), (ow, left)) = (padding.plan(h, kh, sh), padding.plan(w, kw, sw));
    let mut index = Vec::with_capacity(n * oh * ow * kh * kw);
    for image in 0..n {
        for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            for (dy, dx) in (0..kh).flat_map(|dy| (0..kw).map(move |dx| (dy, dx))) {
                let (py, px) = ((y * sh + dy).wrapping_sub(top), (x * sw + dx).wrapping_sub(left));
                let inside = py < h && px < w;
                index.push(if inside { ((image * h + py) * w + px) as u32 } else { NONE });
            }
        }
    }
    Windows { out: [oh, ow], index }
}

/// Convolution (cross-correlation) plus bias and activation. Shapes: `x` `[N, H, W, C]`, `w`
/// `[KH, KW, C, O]`, `b` `[O]`, result `[N, OH, OW, O]`, see [`Padding`]; `stride` is `[rows, columns]`.
#[track_caller]
#[allow(clippy::type_complexity)]
pub fn conv2d<
    N: Dim,
    H: Dim,
    W: Dim,
    C: Dim,
    KH: Dim,
    KW: Dim,
    O: Dim,
    E: Float,
    B: Backend<E>,
    M: Mode<E, B>,
>(
    x: Tensor<(N, H, W, C), E, B, M>,
    w: &Tensor<(KH, KW, C, O), E, B>,
    b: &Tensor<(O,), E, B>,
    stride: [usize; 2],
    padding: Padding,
    act: Activation,
) -> Tensor<(N, usize, usize, O), E, B, M> {
    let (n, h, width, c) = *x.shape();
    let (kh, kw, c2, o) = *w.shape();
    assert_eq!(c.size(), c2.size(), "conv2d: channels of x and w");
    let win = windows([n.size(), h.size(), width.size()], [kh.size(), kw.size()], stride, padding);
    let [oh, ow] = win.out;
    // A window's channels lie together, in the order of `w`: [N OH OW, KH KW C].
    let patch = kh.size() * kw.size() * c.size();
    let patches = select(x, win.index, c.size(), 0.0, (n.size() * oh * ow, patch));
    let y = linear(patches, &reshape(w.clone(), (patch, o)), b, act);
    reshape(y, (n, oh, ow, o))
}

macro_rules! pool {
    ($($(#[$m:meta])* $name:ident($x:ident, $dims:ident, $win:ident, $k:ident) $fill:expr => $body:expr;)+) => {$(
        $(#[$m])* /// Shapes: `[N, H, W, C]` to `[N, OH, OW, C]`, see [`Padding`]; `window` and `stride`
        /// are `[rows, columns]`.
        #[track_caller]
        pub fn $name<N: Dim, H: Dim, W: Dim, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
            x: Tensor<(N, H, W, C), E, B, M>,
            window: [usize; 2],
            stride: [usize; 2],
            padding: Padding,
        ) -> Tensor<(N, usize, usize, C), E, B, M> {
            let $dims = *x.shape();
            let $win = windows([$dims.0.size(), $dims.1.size(), $dims.2.size()], window, stride, padding);
            let $k = window[0] * window[1];
            let (index, c) = ($win.index.clone(), $dims.3.size());
            let shape = (index.len() / $k, $k, c);
            let $x = select(x, index, c, $fill, shape);
            $body
        }
    )+};
}

pool! {
    /// Maximum over windows; equal maxima share the gradient.
    max_pool(x, d, win, k) f64::NEG_INFINITY =>
        max_axis(x, [k, d.3.size()], (d.0, win.out[0], win.out[1], d.3));
    /// Mean over the part of each window that lies inside the image.
    avg_pool(x, d, win, k) 0.0 => {
        let places = (d.0.size(), win.out[0], win.out[1], d.3.size());
        let inverse = win.index.chunks_exact(k).flat_map(|w| {
            let inside = w.iter().filter(|&&i| i != NONE).count();
            vec![E::of(1.0 / inside as f64); d.3.size()]
        });
        let inverse = x.device().tensor_from_vec(inverse.collect(), places);
        let shape = (d.0, win.out[0], win.out[1], d.3);
        reshape(mul(sum_axis(x, [k, d.3.size()], 1.0, places), &inverse), shape)
    };
}

/// Mean over all pixels. Shapes: `[N, H, W, C]` to `[N, C]`.
pub fn global_avg_pool<N: Dim, H: Dim, W: Dim, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<(N, H, W, C), E, B, M>,
) -> Tensor<(N, C), E, B, M> {
    let (n, h, w, c) = *x.shape();
    let pixels = h.size() * w.size();
    sum_axis(x, [pixels, c.size()], 1.0 / pixels as f64, (n, c))
}

/// Maximum over all pixels; equal maxima share the gradient. Shapes: `[N, H, W, C]` to `[N, C]`.
pub fn global_max_pool<N: Dim, H: Dim, W: Dim, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<(N, H, W, C), E, B, M>,
) -> Tensor<(N, C), E, B, M> {
    let (n, h, w, c) = *x.shape();
    max_axis(x, [h.size() * w.size(), c.size()], (n, c))
}
