//! Where the elements of a factored tensor lie among its rows and columns: [`Reduced`] and [`Walk`].

use super::factored::Table;
use crate::features::factored::Axes;
use outerloop_core::simd::{load, parts, store, total, LANES, MAX_PARTS};
use pulp::Simd;

/// Where the elements of a tensor `[outer, axis, inner]` lie in an array `[outer, inner]`, by runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduced {
    axis: usize,
    inner: usize,
    /// Length of a run: `axis` elements at one place, or `inner` elements one after the other.
    run: usize,
}

impl Reduced {
    pub(crate) fn new([outer, axis, inner]: [usize; 3]) -> Self {
        // Without its only element an axis leaves the tensor as it is: one run.
        let inner = if axis == 1 { outer * inner } else { inner };
        Reduced { axis, inner, run: if inner == 1 { axis } else { inner } }
    }

    fn is_constant(self) -> bool {
        self.inner == 1
    }

    /// Adds `x`, or its squares, to `sums` without the missing axis.
    #[inline(always)]
    pub(crate) fn add<S: Simd, const SQUARE: bool>(self, s: S, x: &[f32], sums: &mut [f32]) {
        for (run, x) in x.chunks(self.run).enumerate() {
            if self.is_constant() {
                let mut sum = [s.splat_f32s(0.0); MAX_PARTS];
                for (part, to) in sum.iter_mut().enumerate().take(parts::<S>()) {
                    let mut own = *to;
                    for x in x[x.len().min(part * S::F32_LANES)..].chunks(LANES) {
                        own = plus::<S, SQUARE>(s, own, load(s, x));
                    }
                    *to = own;
                }
                sums[run] += total(s, &sum);
            } else {
                let sums = &mut sums[run / self.axis * self.inner..][..self.run];
                for (sums, x) in sums.chunks_mut(S::F32_LANES).zip(x.chunks(S::F32_LANES)) {
                    let sum = plus::<S, SQUARE>(s, load(s, sums), load(s, x));
                    store(s, sums, sum);
                }
            }
        }
    }
}

/// `sum + x`, or `sum + x²`.
#[inline(always)]
fn plus<S: Simd, const SQUARE: bool>(s: S, sum: S::f32s, x: S::f32s) -> S::f32s {
    match SQUARE {
        true => s.mul_add_e_f32s(x, x, sum),
        false => s.add_f32s(sum, x),
    }
}

/// The place of an element in a reduced array: a constant along a line, or the start of one.
#[derive(Clone, Copy)]
struct Place {
    reduced: Reduced,
    base: usize,
    within: usize,
    group: usize,
}

impl Place {
    /// Moves to the next line of `len` elements.
    #[inline(always)]
    fn next_line(&mut self, len: usize) {
        if self.reduced.is_constant() {
            self.base += 1;
            return;
        }
        self.within += len;
        if self.within == self.reduced.run {
            self.within = 0;
            self.group += 1;
            if self.group == self.reduced.axis {
                self.group = 0;
                self.base += self.reduced.inner;
            }
        }
    }
}

/// A walk through a factored tensor, line by line: where its elements lie among rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Walk {
    /// Elements per line.
    line: usize,
    /// Elements of the line that are passed.
    within: usize,
    places: [Place; 2],
}

impl Walk {
    /// At the first element.
    pub(crate) fn new(axes: &Axes) -> Self {
        let reduced = [Reduced::new(axes.d0), Reduced::new(axes.d1)];
        Walk {
            line: reduced[0].run.min(reduced[1].run),
            within: 0,
            places: reduced.map(|reduced| Place { reduced, base: 0, within: 0, group: 0 }),
        }
    }

    /// Back to the first element.
    #[inline(always)]
    pub(super) fn rewind(&mut self) {
        self.within = 0;
        for place in &mut self.places {
            (place.base, place.within, place.group) = (0, 0, 0);
        }
    }

    /// Repeats the first `quantities` arrays of rows and columns along the missing axes, for `count`
    /// elements, which it passes. `to` `[2, quantities, stride]`; each array may be overwritten up to a
    /// vector past its `count` elements.
    #[inline(always)]
    pub(super) fn expand<S: Simd>(
        &mut self,
        s: S,
        count: usize,
        quantities: usize,
        tables: [&Table<'_>; 2],
        to: &mut [f32],
        stride: usize,
    ) {
        let mut i = 0;
        while i < count {
            let len = (count - i).min(self.line - self.within);
            let padded = len.next_multiple_of(S::F32_LANES);
            for k in 0..2 {
                let (place, table) = (self.places[k], tables[k]);
                let arrays = to[k * quantities * stride..].chunks_exact_mut(stride).take(quantities);
                for (q, to) in arrays.enumerate() {
                    let from = &table.data[q * table.len + place.base..];
                    let (to, _) = S::as_mut_simd_f32s(&mut to[i..i + padded]);
                    if place.reduced.is_constant() {
                        to.fill(s.splat_f32s(from[0]));
                    } else {
                        let (from, _) = S::as_simd_f32s(&from[place.within + self.within..][..padded]);
                        for (to, from) in to.iter_mut().zip(from) {
                            *to = *from;
                        }
                    }
                }
            }
            i += len;
            self.within += len;
            if self.within == self.line {
                self.within = 0;
                self.places[0].next_line(self.line);
                self.places[1].next_line(self.line);
            }
        }
    }
}
