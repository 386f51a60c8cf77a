//! Operations between the elements of an array: reductions, pieces, matrix products.

use super::Var;
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
        self.unary(
            vec![total],
            |adj, out| out.iter_mut().for_each(|o| *o += adj[0]),
            |tangent, out| out[0] += tangent.iter().copied().sum(),
        )
    }

    /// The mean of the squared distances from `center` (length 1), length 1.
    pub fn spread(&self, center: &Self) -> Self {
        (self - center).square().mean()
    }
    /// The Euclidean norm, length 1; slope 0 at the origin.
    pub fn norm(&self) -> Self {
        let norm = self.value.iter().map(|x| *x * *x).sum::<E>().sqrt();
        let (x, again, zero) = (self.value.clone(), self.value.clone(), E::of(0.0));
        let pull = move |adj: &[E], out: &mut [E]| {
            if norm != zero {
                E::add_scaled(adj[0] / norm, &x, out);
            }
        };
        self.unary(vec![norm], pull, move |tangent, out| {
            if norm != zero {
                out[0] += E::dot(&again, tangent) / norm;
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
        // The place in the operand.
        let from = move |i: usize| i % rows * cols + i / rows;
        let value = (0..rows * cols).map(|i| self.value[from(i)]).collect();
        self.unary(
            value,
            move |adj, out| adj.iter().enumerate().for_each(|(i, a)| out[from(i)] += *a),
            move |tangent, out| out.iter_mut().enumerate().for_each(|(i, o)| *o += tangent[from(i)]),
        )
    }

    /// `[outer, axis, inner]` to `[outer, inner]`: the mean over the middle axis.
    pub fn mean_axis(&self, [outer, axis, inner]: [usize; 3]) -> Self {
        let by = E::of(1.0 / axis.max(1) as f64);
        let mut value = vec![E::of(0.0); outer * inner];
        let shape = [outer, axis, inner];
        for_axis(shape, |full, reduced| value[reduced] += self.value[full] * by);
        self.unary(
            value,
            move |adj, out| for_axis(shape, |full, reduced| out[full] += adj[reduced] * by),
            move |tangent, out| for_axis(shape, |full, reduced| out[reduced] += tangent[full] * by),
        )
    }
    /// `[outer, inner]` to `[outer, axis, inner]`: repeats along a new middle axis.
    pub fn expand_axis(&self, [outer, axis, inner]: [usize; 3]) -> Self {
        let mut value = vec![E::of(0.0); outer * axis * inner];
        let shape = [outer, axis, inner];
        for_axis(shape, |full, reduced| value[full] = self.value[reduced]);
        self.unary(
            value,
            move |adj, out| for_axis(shape, |full, reduced| out[reduced] += adj[full]),
            move |tangent, out| for_axis(shape, |full, reduced| out[full] += tangent[reduced]),
        )
    }

    /// The elements of a range.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let start = range.start;
        self.unary(
            self.value[range].to_vec(),
            move |adj, out| add(adj, &mut out[start..][..adj.len()]),
            move |tangent, out| add(&tangent[start..][..out.len()], out),
        )
    }
    /// Row `r` of a matrix whose rows have length `n`.
    pub fn row(&self, r: usize, n: usize) -> Self {
        self.slice(r * n..(r + 1) * n)
    }
    /// All elements, one array after the other.
    pub fn concat(parts: &[Self]) -> Self {
        let value = parts.iter().flat_map(|p| p.value.iter().copied()).collect();
        let mut end = 0;
        let edges = parts.iter().filter_map(|p| {
            let start = end;
            end += p.len();
            p.edge(
                move |adj, out| add(&adj[start..][..out.len()], out),
                move |tangent, out| add(tangent, &mut out[start..][..tangent.len()]),
            )
        });
        let edges = edges.collect();
        Var::recorded(value, edges)
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
        multiply([inputs, outputs, n], &w.value, &x.value, &mut value);
        let (weights, columns) = (w.value.clone(), x.value.clone());
        let of_x = x.node.as_ref().and_then(|_| {
            let again = weights.clone();
            let pull = move |adj: &[E], out: &mut [E]| {
                for_blocks(n, |from, len| {
                    for i in 0..inputs {
                        let out = &mut out[i * n + from..][..len];
                        for o in 0..outputs {
                            E::add_scaled(weights[i * outputs + o], &adj[o * n + from..][..len], out);
                        }
                    }
                });
            };
            x.edge(pull, move |tangent, out| multiply([inputs, outputs, n], &again, tangent, out))
        });
        let of_w = w.node.as_ref().and_then(|_| {
            let again = columns.clone();
            let pull = move |adj: &[E], out: &mut [E]| {
                for_blocks(n, |from, len| {
                    for i in 0..inputs {
                        for o in 0..outputs {
                            out[i * outputs + o] +=
                                E::dot(&columns[i * n + from..][..len], &adj[o * n + from..][..len]);
                        }
                    }
                });
            };
            w.edge(pull, move |tangent, out| multiply([inputs, outputs, n], tangent, &again, out))
        });
        Var::recorded(value, [of_x, of_w].into_iter().flatten().collect())
    }
}

/// `y[o, n] += Σᵢ w[i, o] x[i, n]`.
fn multiply<E: Float>([inputs, outputs, n]: [usize; 3], w: &[E], x: &[E], y: &mut [E]) {
    for_blocks(n, |from, len| {
        for o in 0..outputs {
            let y = &mut y[o * n + from..][..len];
            for i in 0..inputs {
                E::add_scaled(w[i * outputs + o], &x[i * n + from..][..len], y);
            }
        }
    });
}

/// Calls `f(first, number)` for blocks of `n` columns, which stay in the cache while all rows pass over them.
fn for_blocks(n: usize, mut f: impl FnMut(usize, usize)) {
    for from in (0..n).step_by(BLOCK) {
        f(from, BLOCK.min(n - from));
    }
}

/// `y ← y + x`.
fn add<E: Float>(x: &[E], y: &mut [E]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
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

/// Columns per block of a matrix product.
const BLOCK: usize = 128;
