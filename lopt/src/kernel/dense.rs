//! One dense layer over feature-major blocks of V vectors, in register tiles.

use super::apart;
use outerloop_core::nan;
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use pulp::{Simd, WithSimd};

/// Outputs per tile. With V = 6 vectors a tile holds 12 sums, 2 weights and 1 input: 15 of the 16
/// registers of AVX2.
const TILE: usize = 2;

/// A layer's weights, packed for [`Dense::forward`].
#[derive(Clone, Debug)]
pub(crate) struct Dense {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Panels of `TILE` outputs (the last one has what is left), each `[inputs, outputs of panel]`.
    panels: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// Inputs per turn of a tile's loop: so few turns that the processor foresees the last one.
const UNROLL: usize = 4;

/// What happens to a layer's sums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing.
    Linear,
    /// `max(x, 0)`, NaN stays NaN.
    Relu,
}

impl After {
    /// What follows layer `i` of `layers`.
    #[inline(always)]
    pub(crate) fn of(i: usize, layers: usize) -> Self {
        if i + 1 < layers {
            After::Relu
        } else {
            After::Linear
        }
    }
}

impl Dense {
    /// Packs a weight given by `w(input, output)`.
    pub(crate) fn new(inputs: usize, bias: Vec<f32>, w: impl Fn(usize, usize) -> f32) -> Self {
        let outputs = bias.len();
        let mut panels = Vec::with_capacity(inputs * outputs);
        for from in (0..outputs).step_by(TILE) {
            for i in 0..inputs {
                panels.extend((from..outputs.min(from + TILE)).map(|o| w(i, o)));
            }
        }
        Dense { inputs, outputs, panels, bias }
    }

    /// The weight from an input to an output.
    fn weight(&self, input: usize, output: usize) -> f32 {
        let (panel, within) = (output / TILE * TILE, output % TILE);
        let size = TILE.min(self.outputs - panel);
        self.panels[panel * self.inputs + input * size + within]
    }

    /// The layer backwards, without bias.
    pub(crate) fn transposed(&self) -> Self {
        Dense::new(self.outputs, vec![0.0; self.inputs], |o, i| self.weight(i, o))
    }

    /// `y ← after(Wᵀ x + bias)` for rows of ROW vectors, V at a time; without a bias
    /// `y ← after(Wᵀ x + y)`. `x` `[inputs, ROW]`, `y` `[outputs, ROW]` or longer.
    #[inline(always)]
    pub(crate) fn forward<S: Simd, const V: usize, const ROW: usize>(
        &self,
        s: S,
        bias: Option<&[f32]>,
        x: &[S::f32s],
        y: &mut [S::f32s],
        after: After,
    ) {
        let (x, y) = (cast_slice(x), cast_slice_mut(y));
        apart(s, Forward::<V, ROW> { layer: self, bias, x, y, after });
    }
}

/// [`Dense::forward`] with all numbers of the vectors.
struct Forward<'a, const V: usize, const ROW: usize> {
    layer: &'a Dense,
    bias: Option<&'a [f32]>,
    x: &'a [f32],
    y: &'a mut [f32],
    after: After,
}

impl<const V: usize, const ROW: usize> WithSimd for Forward<'_, V, ROW> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Forward { layer: Dense { inputs, outputs, panels, .. }, bias, x, y, after } = self;
        let (x, y) = (S::as_simd_f32s(x).0, S::as_mut_simd_f32s(y).0);
        for output in (0..*outputs).step_by(TILE) {
            let w = &panels[output * inputs..];
            let y = &mut y[output * ROW..];
            for column in (0..ROW).step_by(V) {
                let (x, y) = (&x[column..], &mut y[column..]);
                match outputs - output {
                    1 => tile::<S, 1, V, ROW>(s, &w[..*inputs], bias, output, x, y, after),
                    _ => tile::<S, TILE, V, ROW>(s, &w[..TILE * inputs], bias, output, x, y, after),
                }
            }
        }
    }
}

/// J outputs, from `output` on, for V vectors of columns. `w` `[inputs, J]`; rows of `x` and `y` are ROW
/// vectors apart.
#[inline(always)]
fn tile<S: Simd, const J: usize, const V: usize, const ROW: usize>(
    s: S,
    w: &[f32],
    bias: Option<&[f32]>,
    output: usize,
    x: &[S::f32s],
    y: &mut [S::f32s],
    after: After,
) {
    let zero = s.splat_f32s(0.0);
    let mut sums = [[zero; V]; J];
    // Counted loops over J and V only: they vanish, and the sums stay in registers.
    match bias {
        Some(bias) => {
            let bias = &bias[output..][..J];
            for j in 0..J {
                sums[j] = [s.splat_f32s(bias[j]); V];
            }
        }
        None => {
            for j in 0..J {
                sums[j].copy_from_slice(&y[j * ROW..][..V]);
            }
        }
    }
    let turns = w.chunks_exact(UNROLL * J);
    let rest = turns.remainder().chunks_exact(J);
    let first_rest = turns.len() * UNROLL;
    for (turn, w) in turns.enumerate() {
        let x = &x[turn * UNROLL * ROW..][..(UNROLL - 1) * ROW + V];
        for i in 0..UNROLL {
            step(s, &x[i * ROW..], &w[i * J..], &mut sums);
        }
    }
    for (i, w) in rest.enumerate() {
        step(s, &x[(first_rest + i) * ROW..], w, &mut sums);
    }
    for j in 0..J {
        let y = &mut y[j * ROW..][..V];
        for v in 0..V {
            y[v] = match after {
                After::Linear => sums[j][v],
                After::Relu => relu(s, sums[j][v]),
            };
        }
    }
}

/// One input `x` `[V]` for J outputs.
#[inline(always)]
fn step<S: Simd, const J: usize, const V: usize>(
    s: S,
    x: &[S::f32s],
    w: &[f32],
    sums: &mut [[S::f32s; V]; J],
) {
    let (x, w) = (&x[..V], &w[..J]);
    // Not by a closure: that would not be compiled for the path's instructions.
    let mut weights = [s.splat_f32s(0.0); J];
    for j in 0..J {
        weights[j] = s.splat_f32s(w[j]);
    }
    for v in 0..V {
        for j in 0..J {
            sums[j][v] = s.mul_add_e_f32s(x[v], weights[j], sums[j][v]);
        }
    }
}

/// `max(x, 0)`, NaN stays NaN.
#[inline(always)]
pub(crate) fn relu<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    nan::at_least(s, x, s.splat_f32s(0.0))
}
