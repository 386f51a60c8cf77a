//! Operations between the elements of an array: reductions, pieces, matrix products.

use super::{Pull, Var};
use outerloop_core::Float;
use std::ops::Range;

impl<E: Float> Var<E> {
    /// The mean of all elements, length 1; 0 if there are none.
    pub fn mean(&self) -> Self {
        self.sum().scale(1.0 / self.len().max(1) as f64)
    }
    /// The sum of all elements, length 1.
    pub fn sum(&self) -> Self {
        let total = self.value.iter().copied().sum();
        self.unary(vec![total], |adj, out| out.iter_mut().for_each(|o| *o += adj[0]))
    }

    /// The mean of the squared distances from `center` (length 1), length 1.
    pub fn spread(&self, center: &Self) -> Self {
        (self - center).square().mean()
    }
    /// The Euclidean norm, length 1; slope 0 at the origin.
    pub fn norm(&self) -> Self {
        let norm = self.value.iter().map(|x| *x * *x).sum::<E>().sqrt();
        let x = self.value.clone();
        self.unary(vec![norm], move |adj, out| {
            if norm != E::of(0.0) {
                axpy(adj[0] / norm, &x, out);
            }
        })
    }
    /// The largest element, length 1; NaN if there is one.
    ///
    /// # Panics
    /// If there are no elements.
    pub fn largest(&self) -> Self {
        (1..self.len()).fold(self.slice(0..1), |a, i| a.max(&self.slice(i..i + 1)))
    }

    /// `[rows, cols]` to `[cols, rows]`.
    pub fn transpose(&self, rows: usize, cols: usize) -> Self {
        let value = (0..rows * cols).map(|i| self.value[i % rows * cols + i / rows]).collect();
        self.unary(value, move |adj, out| {
            for (i, a) in adj.iter().enumerate() {
                out[i % rows * cols + i / rows] += *a;
            }
        })
    }

    /// `[outer, axis, inner]` to `[outer, inner]`: the mean over the middle axis.
    pub fn mean_axis(&self, [outer, axis, inner]: [usize; 3]) -> Self {
        let by = E::of(1.0 / axis.max(1) as f64);
        let mut value = vec![E::of(0.0); outer * inner];
        for_axis([outer, axis, inner], |full, reduced| value[reduced] += self.value[full] * by);
        self.unary(value, move |adj, out| {
            for_axis([outer, axis, inner], |full, reduced| out[full] += adj[reduced] * by);
        })
    }
    /// `[outer, inner]` to `[outer, axis, inner]`: repeats along a new middle axis.
    pub fn expand_axis(&self, [outer, axis, inner]: [usize; 3]) -> Self {
        let mut value = vec![E::of(0.0); outer * axis * inner];
        for_axis([outer, axis, inner], |full, reduced| value[full] = self.value[reduced]);
        self.unary(value, move |adj, out| {
            for_axis([outer, axis, inner], |full, reduced| out[reduced] += adj[full]);
        })
    }

    /// The elements of a range.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let start = range.start;
        self.unary(self.value[range].to_vec(), move |adj, out| {
            out[start..start + adj.len()].iter_mut().zip(adj).for_each(|(o, a)| *o += *a);
        })
    }
    /// Row `r` of a matrix whose rows have length `n`.
    pub fn row(&self, r: usize, n: usize) -> Self {
        self.slice(r * n..(r + 1) * n)
    }
    /// All elements, one array after the other.
    pub fn concat(parts: &[Self]) -> Self {
        let value = parts.iter().flat_map(|p| p.value.iter().copied()).collect();
        let mut pulls = Vec::new();
        let mut start = 0;
        for p in parts {
            let range = start..start + p.len();
            start = range.end;
            if let Some((t, i)) = &p.node {
                let pull: Pull<E> = Box::new(move |adj, out| {
                    out.iter_mut().zip(&adj[range.clone()]).for_each(|(o, a)| *o += *a);
                });
                pulls.push((t.clone(), *i, pull));
            }
        }
        Var::recorded(value, pulls)
    }

    /// The matrix product of `self` `[rows, inner]` and `other` `[inner, cols]`.
    pub fn matmul(&self, other: &Self, rows: usize) -> Self {
        other.linear(&self.transpose(rows, self.len() / rows), rows)
    }

    /// A linear layer without bias on columns: `y[o, n] = Σᵢ w[i, o] x[i, n]`.
    pub fn linear(&self, w: &Self, outputs: usize) -> Self {
        let (inputs, x) = (w.len() / outputs.max(1), self);
        let n = x.len() / inputs.max(1);
        assert_eq!(x.len(), inputs * n, "tape: linear needs {inputs} rows");
        let mut value = vec![E::of(0.0); outputs * n];
        // Blocks of columns stay in the cache while all rows pass over them.
        for from in (0..n).step_by(BLOCK) {
            let len = BLOCK.min(n - from);
            for o in 0..outputs {
                let y = &mut value[o * n + from..][..len];
                for i in 0..inputs {
                    axpy(w.value[i * outputs + o], &x.value[i * n + from..][..len], y);
                }
            }
        }
        let mut pulls = Vec::new();
        if let Some((t, i)) = &x.node {
            let w = w.value.clone();
            let pull: Pull<E> = Box::new(move |adj, out| {
                for from in (0..n).step_by(BLOCK) {
                    let len = BLOCK.min(n - from);
                    for i in 0..inputs {
                        let out = &mut out[i * n + from..][..len];
                        for o in 0..outputs {
                            axpy(w[i * outputs + o], &adj[o * n + from..][..len], out);
                        }
                    }
                }
            });
            pulls.push((t.clone(), *i, pull));
        }
        if let Some((t, i)) = &w.node {
            let x = x.value.clone();
            let pull: Pull<E> = Box::new(move |adj, out| {
                for from in (0..n).step_by(BLOCK) {
                    let len = BLOCK.min(n - from);
                    for i in 0..inputs {
                        for o in 0..outputs {
                            out[i * outputs + o] +=
                                dot(&x[i * n + from..][..len], &adj[o * n + from..][..len]);
                        }
                    }
                }
            });
            pulls.push((t.clone(), *i, pull));
        }
        Var::recorded(value, pulls)
    }
}

/// Calls `f(index in [outer, axis, inner], index in [outer, inner])` for every element.
fn for_axis([outer, axis, inner]: [usize; 3], mut f: impl FnMut(usize, usize)) {
    for o in 0..outer {
        for a in 0..axis {
            for i in 0..inner {
                f((o * axis + a) * inner + i, o * inner + i);
            }
        }
    }
}

/// `y ← y + c x`.
fn axpy<E: Float>(c: E, x: &[E], y: &mut [E]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += c * *x;
    }
}

/// `Σ x y`, in eight partial sums so that it vectorizes.
fn dot<E: Float>(x: &[E], y: &[E]) -> E {
    let (x, y) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: E = x.remainder().iter().zip(y.remainder()).map(|(x, y)| *x * *y).sum();
    let mut sums = [E::of(0.0); 8];
    for (x, y) in x.zip(y) {
        for (s, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *s += *x * *y;
        }
    }
    sums.into_iter().sum::<E>() + rest
}

/// Columns per block of a matrix product.
const BLOCK: usize = 128;
