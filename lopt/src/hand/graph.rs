//! A small reverse-mode tape over buffers, for update rules that look at a whole tensor: norms, row
//! and column means, matrix products. A rule is written once; the same lines give the update
//! ([`Graph::plain`], nothing recorded) and its derivative ([`Graph::recording`]).

use super::elementwise::sum_f64;
use crate::rule::dual::{Dual, Scalar};
use outerloop_core::{nan, Float};

/// A buffer in a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var(usize);

/// A tensor seen around one axis: sizes before it, of it, and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// Product of the dimensions before the axis.
    pub outer: usize,
    /// The axis.
    pub dim: usize,
    /// Product of the dimensions after it.
    pub inner: usize,
}

impl Around {
    /// Axis `axis` of a tensor of this shape.
    pub fn axis(shape: &[usize], axis: usize) -> Self {
        let product = |s: &[usize]| s.iter().product();
        Around { outer: product(&shape[..axis]), dim: shape[axis], inner: product(&shape[axis + 1..]) }
    }
    /// Positions of the slice along the axis that reduces to element `i`.
    fn slice(self, i: usize) -> impl Iterator<Item = usize> {
        let start = i / self.inner * self.dim * self.inner + i % self.inner;
        (0..self.dim).map(move |d| start + d * self.inner)
    }
    /// Positions in the order of the matrix `[dim, outer * inner]`: the tensor unfolded along the axis.
    pub fn unfold(self) -> Vec<usize> {
        let Around { outer, dim, inner } = self;
        let row = |d| (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * dim + d) * inner + i));
        (0..dim).flat_map(row).collect()
    }
    fn reduced_len(self) -> usize {
        self.outer * self.inner
    }
}

type Back<E> = Box<dyn Fn(&[E], &mut [Vec<E>])>;

/// See the module.
pub struct Graph<E> {
    values: Vec<Vec<E>>,
    /// Adds to the inputs' adjoints, given the output's; `None` for inputs.
    backs: Vec<Option<Back<E>>>,
    recording: bool,
}

/// `tensor_map!(graph, [a, b], |k; x, y| x * y + k(0.5))`: an elementwise function of buffers of equal
/// length in a [`Graph`](crate::hand::graph::Graph); those of length 1 are broadcast. The body is
/// compiled for plain and for dual numbers, and `k` turns an f64 into a constant of either.
#[macro_export]
macro_rules! tensor_map {
    ($graph:expr, [$($v:expr),+], |$k:ident; $first:ident $(, $x:ident)*| $body:expr) => {
        $crate::tensor_map!($graph, [$($v),+], |$first $(, $x)*| {
            let $k = $crate::hand::graph::constants_like($first);
            $body
        })
    };
    ($graph:expr, [$($v:expr),+], |$($x:ident),+| $body:expr) => {
        $graph.map([$($v),+], |[$($x),+]| $body, |[$($x),+]| $body)
    };
}
pub(crate) use crate::tensor_map as map;

/// Constants of the type of `_like`.
#[doc(hidden)]
pub fn constants_like<S: Scalar>(_like: S) -> impl Fn(f64) -> S + Copy {
    S::of
}

impl<E: Float> Graph<E> {
    /// A graph that computes values only.
    pub fn plain() -> Self {
        Graph { values: Vec::new(), backs: Vec::new(), recording: false }
    }
    /// A graph that can [`Self::backward`].
    pub fn recording() -> Self {
        Graph { recording: true, ..Graph::plain() }
    }

    fn push(&mut self, value: Vec<E>, back: impl FnOnce() -> Back<E>) -> Var {
        self.values.push(value);
        let back = self.recording.then(back);
        self.backs.push(back);
        Var(self.values.len() - 1)
    }

    /// An input.
    pub fn input(&mut self, x: &[E]) -> Var {
        self.values.push(x.to_vec());
        self.backs.push(None);
        Var(self.values.len() - 1)
    }

    /// The elements of a buffer.
    pub fn value(&self, v: Var) -> &[E] {
        &self.values[v.0]
    }

    /// See [`tensor_map!`](crate::tensor_map): `plain` and `dual` are the same function for two kinds of numbers.
    pub fn map<const N: usize>(
        &mut self,
        inputs: [Var; N],
        plain: impl Fn([E; N]) -> E,
        dual: impl Fn([Dual<E, N>; N]) -> Dual<E, N>,
    ) -> Var {
        if self.recording {
            return self.record(inputs, &dual);
        }
        let (x, n) = self.broadcast(inputs);
        let out = (0..n).map(|i| plain(at(&x, i))).collect();
        self.push(out, || unreachable!("a plain graph records nothing"))
    }

    /// Buffers of equal length or of length 1, and how many elements they make.
    fn broadcast<const N: usize>(&self, inputs: [Var; N]) -> ([&[E]; N], usize) {
        let lens = inputs.map(|v| self.values[v.0].len());
        let n = if lens.contains(&0) { 0 } else { lens.into_iter().max().unwrap_or(0) };
        assert!(lens.iter().all(|l| *l == n || *l == 1), "map: lengths {lens:?} do not broadcast");
        (inputs.map(|v| &self.values[v.0][..]), n)
    }

    /// [`Self::map`] with its derivative. Compiled once for all functions, which are called per element: only the
    /// plain form has to be fast.
    fn record<const N: usize>(
        &mut self,
        inputs: [Var; N],
        dual: &dyn Fn([Dual<E, N>; N]) -> Dual<E, N>,
    ) -> Var {
        let (x, n) = self.broadcast(inputs);
        let variables = |i| {
            let x = at(&x, i);
            std::array::from_fn(|j| Dual::variable(x[j], j))
        };
        let duals: Vec<Dual<E, N>> = (0..n).map(|i| dual(variables(i))).collect();
        let out = duals.iter().map(|d| d.value).collect();
        self.push(out, || {
            Box::new(move |a, adjoints| {
                for (j, v) in inputs.into_iter().enumerate() {
                    let to = &mut adjoints[v.0];
                    let broadcast = to.len() == 1;
                    for (i, (a, y)) in a.iter().zip(&duals).enumerate() {
                        to[if broadcast { 0 } else { i }] += *a * y.d[j];
                    }
                }
            })
        })
    }

    /// The sum of all elements, `[1]`.
    pub fn sum(&mut self, v: Var) -> Var {
        let out = vec![E::of(sum_f64(&self.values[v.0]))];
        self.push(out, || Box::new(move |a, adjoints| adjoints[v.0].iter_mut().for_each(|x| *x += a[0])))
    }

    /// The mean of all elements, `[1]`; 0 of an empty buffer.
    pub fn mean(&mut self, v: Var) -> Var {
        let n = self.values[v.0].len().max(1) as f64;
        let sum = self.sum(v);
        map!(self, [sum], |k; s| s / k(n))
    }

    /// The 2-norm, `[1]`; its derivative at 0 is 0.
    pub fn norm(&mut self, v: Var) -> Var {
        let squares = map!(self, [v], |x| x.square());
        let sum = self.sum(squares);
        map!(self, [sum], |s| Scalar::sqrt(s))
    }

    /// `x^-½`; below the smallest normal f32 that of it, with slope 0.
    ///
    /// The slope `-½ x^-³⁄²` alone leaves the range of f32 below x = 1e-25, where the adjoint is 0 or tiny (a
    /// row without gradient); so the adjoint is multiplied first.
    pub fn rsqrt(&mut self, v: Var) -> Var {
        let least = E::of(f64::from(f32::MIN_POSITIVE));
        let x = self.values[v.0].clone();
        let root = |x: &E| E::of(1.0) / num_traits::Float::sqrt(nan::max(*x, least));
        let y: Vec<E> = x.iter().map(root).collect();
        self.custom(v, y.clone(), move |a, to| {
            for (((to, a), x), y) in to.iter_mut().zip(a).zip(&x).zip(&y) {
                let slope_times_a = E::of(-0.5) * (*a * *y) / *x;
                *to += if *x < least { E::of(0.0) } else { slope_times_a };
            }
        })
    }

    /// The mean over one axis.
    pub fn mean_axis(&mut self, v: Var, s: Around) -> Var {
        let (x, count) = (&self.values[v.0], E::of(s.dim as f64));
        let out = (0..s.reduced_len()).map(|i| s.slice(i).map(|j| x[j]).sum::<E>() / count).collect();
        self.push(out, || {
            Box::new(move |a, adjoints| {
                for (i, a) in a.iter().enumerate() {
                    s.slice(i).for_each(|j| adjoints[v.0][j] += *a / count);
                }
            })
        })
    }

    /// The largest element along one axis, NaN if there is one; the derivative belongs to the first of equals.
    pub fn max_axis(&mut self, v: Var, s: Around) -> Var {
        let x = &self.values[v.0];
        let largest = |i| s.slice(i).reduce(|a, b| if nan::is_max(&x[a], &x[b]) { a } else { b });
        let from: Vec<usize> = (0..s.reduced_len()).filter_map(largest).collect();
        let out = from.iter().map(|j| x[*j]).collect();
        self.push(out, || {
            Box::new(move |a, adjoints| {
                for (a, j) in a.iter().zip(&from) {
                    adjoints[v.0][*j] += *a;
                }
            })
        })
    }

    /// Repeats along one axis: the counterpart of [`Self::mean_axis`].
    pub fn repeat_axis(&mut self, v: Var, s: Around) -> Var {
        let x = &self.values[v.0];
        let mut out = vec![E::of(0.0); s.reduced_len() * s.dim];
        for (i, x) in x.iter().enumerate() {
            s.slice(i).for_each(|j| out[j] = *x);
        }
        self.push(out, || {
            Box::new(move |a, adjoints| {
                for (i, to) in adjoints[v.0].iter_mut().enumerate() {
                    *to += s.slice(i).map(|j| a[j]).sum::<E>();
                }
            })
        })
    }

    /// `x yᵀ` of `x` `[m, k]` and `y` `[n, k]`: every product that is needed can be had with
    /// [`Self::transpose`].
    pub fn matmul_t(&mut self, x: Var, y: Var, [m, n, inner]: [usize; 3]) -> Var {
        let out = product(&self.values[x.0], &transposed(&self.values[y.0], [n, inner]), [m, n, inner]);
        let (xs, ys) = match self.recording {
            true => (self.values[x.0].clone(), self.values[y.0].clone()),
            false => (Vec::new(), Vec::new()),
        };
        self.push(out, || {
            Box::new(move |a, adjoints| {
                // x̄ = ā y and ȳ = āᵀ x
                let of_x = product(a, &ys, [m, inner, n]);
                let of_y = product(&transposed(a, [m, n]), &xs, [n, inner, m]);
                for (v, part) in [(x, of_x), (y, of_y)] {
                    adjoints[v.0].iter_mut().zip(part).for_each(|(to, p)| *to += p);
                }
            })
        })
    }

    /// Whether only values are computed, for which there may be a kernel.
    pub(crate) fn is_plain(&self) -> bool {
        !self.recording
    }

    /// The transpose of `[m, n]`.
    pub fn transpose(&mut self, v: Var, [m, n]: [usize; 2]) -> Var {
        let out = transposed(&self.values[v.0], [m, n]);
        self.push(out, || {
            Box::new(move |a, adjoints| {
                let back = transposed(a, [n, m]);
                adjoints[v.0].iter_mut().zip(back).for_each(|(to, a)| *to += a);
            })
        })
    }

    /// `out[i] = v[from[i]]`: slices and permutations.
    pub fn gather(&mut self, v: Var, from: Vec<usize>) -> Var {
        let out = from.iter().map(|j| self.values[v.0][*j]).collect();
        self.push(out, || {
            Box::new(move |a, adjoints| {
                for (a, j) in a.iter().zip(&from) {
                    adjoints[v.0][*j] += *a;
                }
            })
        })
    }

    /// The buffers one after the other.
    pub fn concat(&mut self, parts: &[Var]) -> Var {
        let out = parts.iter().flat_map(|v| self.values[v.0].iter().copied()).collect();
        let parts = parts.to_vec();
        self.push(out, || {
            Box::new(move |a, adjoints| {
                let mut rest = a.iter();
                for v in &parts {
                    adjoints[v.0].iter_mut().zip(&mut rest).for_each(|(x, a)| *x += *a);
                }
            })
        })
    }

    /// An operation of its own: its value, and what adds to the adjoint of the input.
    pub fn custom(&mut self, v: Var, value: Vec<E>, back: impl Fn(&[E], &mut [E]) + 'static) -> Var {
        self.push(value, || Box::new(move |a, adjoints| back(a, &mut adjoints[v.0])))
    }

    /// The adjoints of `inputs`, given those of some outputs.
    ///
    /// # Panics
    /// If the graph does not record.
    pub fn backward(&self, outputs: &[(Var, &[E])], inputs: &[Var]) -> Vec<Vec<E>> {
        assert!(self.recording, "backward on a plain graph");
        let zeros = |v: &Vec<E>| vec![E::of(0.0); v.len()];
        let mut adjoints: Vec<Vec<E>> = self.values.iter().map(zeros).collect();
        for (v, seed) in outputs {
            adjoints[v.0].iter_mut().zip(*seed).for_each(|(a, s)| *a += *s);
        }
        for (i, back) in self.backs.iter().enumerate().rev() {
            if let Some(back) = back {
                let a = std::mem::take(&mut adjoints[i]);
                back(&a, &mut adjoints);
            }
        }
        inputs.iter().map(|v| std::mem::take(&mut adjoints[v.0])).collect()
    }
}

/// Element `i` of every buffer; those of length 1 are broadcast.
fn at<E: Copy, const N: usize>(x: &[&[E]; N], i: usize) -> [E; N] {
    x.map(|x| x[if x.len() == 1 { 0 } else { i }])
}

/// `x y` of `x` `[m, k]` and `y` `[k, n]`, by rows, so that the inner loop is over neighbours.
pub(crate) fn product<E: Float>(x: &[E], y: &[E], [m, n, inner]: [usize; 3]) -> Vec<E> {
    let mut out = vec![E::of(0.0); m * n];
    for i in 0..m {
        let row = &mut out[i * n..(i + 1) * n];
        for l in 0..inner {
            let factor = x[i * inner + l];
            row.iter_mut().zip(&y[l * n..(l + 1) * n]).for_each(|(o, y)| *o += factor * *y);
        }
    }
    out
}

/// The transpose of `x` `[m, n]`.
pub(crate) fn transposed<E: Float>(x: &[E], [m, n]: [usize; 2]) -> Vec<E> {
    (0..m * n).map(|i| x[i % m * n + i / m]).collect()
}
