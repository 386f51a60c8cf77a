//! One dense layer over feature-major blocks of V vectors, in register tiles.

use pulp::Simd;

/// Outputs per tile. With V = 3 vectors a tile holds 12 sums, 3 inputs and 1 weight: the 16
/// registers of AVX2.
const TILE: usize = 4;

/// A layer's weights, packed for [`Dense::forward`].
#[derive(Clone, Debug)]
pub(super) struct Dense {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Panels of `TILE` outputs (the last one has what is left), each `[inputs, outputs of panel]`.
    panels: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// What happens to a layer's sums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing.
    Linear,
    /// `max(x, 0)`, NaN stays NaN.
    Relu,
}

impl After {
    /// What follows layer `i` of `layers`.
    #[inline(always)]
    pub(super) fn of(i: usize, layers: usize) -> Self {
        if i + 1 < layers {
            After::Relu
        } else {
            After::Linear
        }
    }
}

impl Dense {
    /// Packs a weight given by `w(input, output)`.
    pub(super) fn new(inputs: usize, bias: Vec<f32>, w: impl Fn(usize, usize) -> f32) -> Self {
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
    pub(super) fn transposed(&self) -> Self {
        Dense::new(self.outputs, vec![0.0; self.inputs], |o, i| self.weight(i, o))
    }

    /// `y ← after(Wᵀ x + bias)` for rows of ROW vectors, V at a time; without a bias
    /// `y ← after(Wᵀ x + y)`. `x` `[inputs, ROW]`, `y` `[outputs, ROW]` or longer.
    #[inline(always)]
    pub(super) fn forward<S: Simd, const V: usize, const ROW: usize>(
        &self,
        s: S,
        bias: Option<&[f32]>,
        x: &[S::f32s],
        y: &mut [S::f32s],
        after: After,
    ) {
        let panels = self.panels.chunks(TILE * self.inputs);
        for (p, (w, y)) in panels.zip(y.chunks_mut(TILE * ROW)).enumerate() {
            let outputs = TILE.min(self.outputs - p * TILE);
            let b = bias.map(|b| &b[p * TILE..][..outputs]);
            for column in (0..ROW).step_by(V) {
                let (x, y) = (&x[column..], &mut y[column..]);
                match outputs {
                    4 => tile::<S, 4, V, ROW>(s, w, b, x, y, after),
                    3 => tile::<S, 3, V, ROW>(s, w, b, x, y, after),
                    2 => tile::<S, 2, V, ROW>(s, w, b, x, y, after),
                    _ => tile::<S, 1, V, ROW>(s, w, b, x, y, after),
                }
            }
        }
    }
}

/// J outputs for V vectors of columns. `w` `[inputs, J]`; rows of `x` and `y` are ROW vectors apart.
#[inline(always)]
fn tile<S: Simd, const J: usize, const V: usize, const ROW: usize>(
    s: S,
    w: &[f32],
    b: Option<&[f32]>,
    x: &[S::f32s],
    y: &mut [S::f32s],
    after: After,
) {
    let zero = s.splat_f32s(0.0);
    let mut sums = [[zero; V]; J];
    match b {
        Some(b) => {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = [s.splat_f32s(*b); V];
            }
        }
        None => {
            for (sum, y) in sums.iter_mut().zip(y.chunks_exact(V).step_by(ROW / V)) {
                sum.copy_from_slice(y);
            }
        }
    }
    for (x, w) in x.chunks_exact(V).step_by(ROW / V).zip(w.chunks_exact(J)) {
        for j in 0..J {
            let w = s.splat_f32s(w[j]);
            for v in 0..V {
                sums[j][v] = s.mul_add_e_f32s(x[v], w, sums[j][v]);
            }
        }
    }
    for (y, sum) in y.chunks_exact_mut(V).step_by(ROW / V).zip(&sums) {
        for v in 0..V {
            y[v] = match after {
                After::Linear => sum[v],
                After::Relu => relu(s, sum[v]),
            };
        }
    }
}

/// `max(x, 0)`, NaN stays NaN.
#[inline(always)]
pub(super) fn relu<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let zero = s.splat_f32s(0.0);
    if S::IS_SCALAR {
        // The scalar maximum drops NaN; that of vectors gives the second argument or NaN.
        s.select_f32s(s.less_than_f32s(x, zero), zero, x)
    } else {
        s.max_f32s(zero, x)
    }
}
