//! The adjoint of a dense layer's weight: outer products summed over parameters, in register tiles.

use outerloop_core::simd::{parts, LANES};
use pulp::Simd;

/// Input and output rows per tile: eight sums, four inputs and two adjoints in registers.
const TILE: (usize, usize) = (4, 2);

/// `sums[i, o] ← sums[i, o] + Σ x[i] d[o]` over V vectors; the [`LANES`] partial sums stay apart.
/// `x` `[inputs, V]`, `d` `[outputs, V]`, `sums` `[inputs, outputs, parts]`.
#[inline(always)]
pub(crate) fn add_outer<S: Simd, const V: usize>(s: S, x: &[S::f32s], d: &[S::f32s], sums: &mut [S::f32s]) {
    const { assert!(V * S::F32_LANES % LANES == 0, "every block begins with the first partial sum") };
    let row = d.len() / V * parts::<S>();
    for (x, sums) in x.chunks(TILE.0 * V).zip(sums.chunks_mut(TILE.0 * row)) {
        if x.len() == TILE.0 * V {
            panel::<S, 4, V>(s, x, d, sums);
        } else {
            for (x, sums) in x.chunks_exact(V).zip(sums.chunks_exact_mut(row)) {
                panel::<S, 1, V>(s, x, d, sums);
            }
        }
    }
}

/// I input rows against all outputs.
#[inline(always)]
fn panel<S: Simd, const I: usize, const V: usize>(s: S, x: &[S::f32s], d: &[S::f32s], sums: &mut [S::f32s]) {
    let row = d.len() / V * parts::<S>();
    for (p, d) in d.chunks(TILE.1 * V).enumerate() {
        let from = p * TILE.1 * parts::<S>();
        if d.len() == TILE.1 * V {
            tile::<S, I, 2, V>(s, x, d, &mut sums[from..], row);
        } else {
            tile::<S, I, 1, V>(s, x, d, &mut sums[from..], row);
        }
    }
}

/// One part after the other, so that a tile's sums stay in registers. `row`: vectors per input in `sums`.
#[inline(always)]
fn tile<S: Simd, const I: usize, const J: usize, const V: usize>(
    s: S,
    x: &[S::f32s],
    d: &[S::f32s],
    sums: &mut [S::f32s],
    row: usize,
) {
    add_part::<S, I, J, V, 0>(s, x, d, sums, row);
    if const { parts::<S>() > 1 } {
        add_part::<S, I, J, V, 1>(s, x, d, sums, row);
    }
    if const { parts::<S>() > 2 } {
        add_part::<S, I, J, V, 2>(s, x, d, sums, row);
        add_part::<S, I, J, V, 3>(s, x, d, sums, row);
    }
}

#[inline(always)]
fn add_part<S: Simd, const I: usize, const J: usize, const V: usize, const PART: usize>(
    s: S,
    x: &[S::f32s],
    d: &[S::f32s],
    sums: &mut [S::f32s],
    row: usize,
) {
    let parts = parts::<S>();
    let mut acc = [[s.splat_f32s(0.0); J]; I];
    for i in 0..I {
        let sums = &sums[i * row..][..J * parts];
        for j in 0..J {
            acc[i][j] = sums[j * parts + PART];
        }
    }
    for turn in 0..V / parts {
        let v = turn * parts + PART;
        for i in 0..I {
            for j in 0..J {
                acc[i][j] = s.mul_add_e_f32s(x[i * V + v], d[j * V + v], acc[i][j]);
            }
        }
    }
    for i in 0..I {
        let sums = &mut sums[i * row..][..J * parts];
        for j in 0..J {
            sums[j * parts + PART] = acc[i][j];
        }
    }
}
