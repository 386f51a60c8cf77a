//! The adjoint of a dense layer's weight: outer products summed over parameters, in register tiles.

use pulp::Simd;

/// Input and output rows per tile: eight sums, four inputs and two adjoints in registers.
const TILE: (usize, usize) = (4, 2);

/// `sums[i, o] ← sums[i, o] + Σ x[i] d[o]` over V vectors; lanes stay apart.
/// `x` `[inputs, V]`, `d` `[outputs, V]`, `sums` `[inputs, outputs]`.
#[inline(always)]
pub(crate) fn add_outer<S: Simd, const V: usize>(s: S, x: &[S::f32s], d: &[S::f32s], sums: &mut [S::f32s]) {
    let outputs = d.len() / V;
    for (x, sums) in x.chunks(TILE.0 * V).zip(sums.chunks_mut(TILE.0 * outputs)) {
        if x.len() == TILE.0 * V {
            panel::<S, 4, V>(s, x, d, sums);
        } else {
            for (x, sums) in x.chunks_exact(V).zip(sums.chunks_exact_mut(outputs)) {
                panel::<S, 1, V>(s, x, d, sums);
            }
        }
    }
}

/// I input rows against all outputs.
#[inline(always)]
fn panel<S: Simd, const I: usize, const V: usize>(s: S, x: &[S::f32s], d: &[S::f32s], sums: &mut [S::f32s]) {
    let outputs = d.len() / V;
    for (p, d) in d.chunks(TILE.1 * V).enumerate() {
        let from = p * TILE.1;
        if d.len() == TILE.1 * V {
            tile::<S, I, 2, V>(s, x, d, &mut sums[from..], outputs);
        } else {
            tile::<S, I, 1, V>(s, x, d, &mut sums[from..], outputs);
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const I: usize, const J: usize, const V: usize>(
    s: S,
    x: &[S::f32s],
    d: &[S::f32s],
    sums: &mut [S::f32s],
    outputs: usize,
) {
    let mut acc = [[s.splat_f32s(0.0); J]; I];
    for i in 0..I {
        acc[i].copy_from_slice(&sums[i * outputs..][..J]);
    }
    for v in 0..V {
        for i in 0..I {
            for j in 0..J {
                acc[i][j] = s.mul_add_e_f32s(x[i * V + v], d[j * V + v], acc[i][j]);
            }
        }
    }
    for i in 0..I {
        sums[i * outputs..][..J].copy_from_slice(&acc[i]);
    }
}
