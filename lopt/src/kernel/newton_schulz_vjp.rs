//! The adjoint of [`super::newton_schulz`].
//!
//! The iterates X and their A and B are kept. From Ȳ of an iteration's result, with `G = Ȳ Xᵀ + X Ȳᵀ`, twice
//! the symmetric part of B̄, and `H = c₃ G + c₅ (G A + A G)`, that of Ā: `X̄ = c₁ Ȳ + B Ȳ + H X`.
//!
//! Errors: a small singular value grows 3.44-fold in each iteration, and rounding errors with it, but no
//! faster. After five iterations adjoints are within 1e-5 of their largest entry (measured against the
//! tape in f64, matrices up to 64 x 64 of normal numbers).

use super::net::MAX_LANES;
use super::newton_schulz::{gram, iterate, product, Wide, NEWTON_SCHULZ};
use pulp::Simd;

/// The iterations of one matrix, for their adjoint.
pub(crate) struct Iterates<'a> {
    wide: Wide,
    iterations: usize,
    /// For every iteration X, A and B; then two matrices and two squares.
    scratch: &'a mut [f32],
}

impl<'a> Iterates<'a> {
    /// Numbers of scratch for a matrix `[rows, cols]`.
    pub(crate) fn scratch(extents: [usize; 2], iterations: usize) -> usize {
        let [matrix, square] = Wide::new(extents).lens(MAX_LANES);
        (iterations + 2) * (matrix + 2 * square)
    }

    /// For a matrix `[rows, cols]`, with at least [`Self::scratch`] numbers.
    pub(crate) fn new(extents: [usize; 2], iterations: usize, scratch: &'a mut [f32]) -> Self {
        Iterates { wide: Wide::new(extents), iterations, scratch }
    }

    /// Orthogonalizes `x`, a matrix of norm 1.
    #[inline(always)]
    pub(crate) fn forward<S: Simd>(&mut self, s: S, x: &mut [f32]) {
        let [matrix, square] = self.wide.lens(S::F32_LANES);
        let step = matrix + 2 * square;
        self.wide.read(x, &mut self.scratch[..matrix]);
        for i in 0..self.iterations {
            let (now, next) = self.scratch[i * step..].split_at_mut(step);
            let (from, squares) = now.split_at_mut(matrix);
            iterate(s, self.wide.k, from, &mut next[..matrix], squares.split_at_mut(square).into());
        }
        self.wide.write(&self.scratch[self.iterations * step..][..matrix], x);
    }

    /// From the result's adjoint to that of the matrix given to [`Self::forward`], in place.
    #[inline(always)]
    pub(crate) fn pull_back<S: Simd>(&mut self, s: S, adjoint: &mut [f32]) {
        let [c1, c3, c5] = NEWTON_SCHULZ.map(|c| c as f32);
        let k = self.wide.k;
        let [matrix, square] = self.wide.lens(S::F32_LANES);
        let step = matrix + 2 * square;
        let (iterates, rest) = self.scratch.split_at_mut(self.iterations * step);
        let (mut y, rest) = rest.split_at_mut(matrix);
        let (mut to, rest) = rest.split_at_mut(matrix);
        let (g, h) = rest[..2 * square].split_at_mut(square);
        self.wide.read(adjoint, y);
        for now in iterates.chunks_exact(step).rev() {
            let (x, squares) = now.split_at(matrix);
            let (a, b) = squares.split_at(square);
            gram(s, k, [(&*y, x), (x, &*y)], None, [0.0, 1.0], g);
            gram(s, k, [(&*g, a), (a, &*g)], Some(&*g), [c3, c5], h);
            product(s, k, [(b, &*y), (&*h, x)], y, [c1, 1.0], to);
            std::mem::swap(&mut y, &mut to);
        }
        self.wide.write(y, adjoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Path;
    use crate::learned::celo2::newton_schulz_iterations;
    use crate::rule::{Tape, Var};
    use outerloop_core::Key;
    use pulp::WithSimd;

    struct Both<'a>(Iterates<'a>, [&'a mut [f32]; 2]);
    impl WithSimd for Both<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(mut self, s: S) {
            let [x, adjoint] = self.1;
            self.0.forward(s, x);
            self.0.pull_back(s, adjoint);
        }
    }

    fn normal(key: u64, len: usize) -> Vec<f32> {
        let mut x = vec![0.0f32; len];
        Key::new(key).fill_normal(&mut x);
        x
    }

    #[test]
    fn agrees_with_the_tape_in_f64() {
        let shapes = [[1, 1], [1, 9], [9, 1], [3, 5], [5, 3], [10, 32], [64, 32], [33, 33], [64, 64]];
        for ([rows, cols], iterations) in shapes.into_iter().flat_map(|shape| [0, 1, 5].map(|i| (shape, i))) {
            let mut x = normal(1, rows * cols);
            let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
            x.iter_mut().for_each(|x| *x /= norm);
            let adjoint = normal(2, rows * cols);
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let tape = Tape::default();
            let leaf: Var<f64> = tape.leaf(&wide(&x));
            let y = newton_schulz_iterations(&leaf, rows, cols, iterations);
            let want = [y.data().to_vec(), tape.pull_back(&[(&y, &wide(&adjoint)[..])], &[&leaf]).remove(0)];
            let mut first = None;
            for path in Path::available() {
                // Scratch holds anything.
                let mut scratch = vec![f32::NAN; Iterates::scratch([rows, cols], iterations)];
                let mut got = [x.clone(), adjoint.clone()];
                let iterates = Iterates::new([rows, cols], iterations, &mut scratch);
                path.run(Both(iterates, got.each_mut().map(|x| &mut x[..])));
                let bits: Vec<u32> = got.iter().flatten().map(|x| x.to_bits()).collect();
                let first = first.get_or_insert_with(|| bits.clone());
                assert!(*first == bits, "bits on {path:?}: {rows} {cols} {iterations}");
                for (got, want) in got.iter().zip(&want) {
                    let size = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
                    for (got, want) in got.iter().zip(want) {
                        let error = (f64::from(*got) - want).abs() / size;
                        assert!(error < 1e-5, "{path:?} {rows} {cols} {iterations}: {error:e}");
                    }
                }
            }
        }
    }
}
