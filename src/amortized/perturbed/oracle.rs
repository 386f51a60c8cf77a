//! What can be perturbed: solvers of `max_y ⟨θ, y⟩` over a finite set, and rankings.

use super::Oracle;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// The first largest entry as one-hot, `[D]`.
pub fn argmax() -> Oracle {
    top(1)
}

/// The `k` largest entries as ones, `[D]`; of equal ones the first.
pub fn top(k: usize) -> Oracle {
    Arc::new(move |theta| {
        let mut order: Vec<usize> = (0..theta.len()).collect();
        order.sort_by(|a, b| theta[*b].total_cmp(&theta[*a]));
        let mut y = vec![0.0; theta.len()];
        order.iter().take(k).for_each(|i| y[*i] = 1.0);
        y
    })
}

/// The rank of every entry, `[D]`: 0 is the smallest; of equal ones the first is smaller. It maximizes `⟨θ, y⟩` over
/// the permutations of `0, 1, ..., D − 1`.
pub fn ranking() -> Oracle {
    Arc::new(|theta| {
        let mut order: Vec<usize> = (0..theta.len()).collect();
        order.sort_by(|a, b| theta[*a].total_cmp(&theta[*b]));
        let mut y = vec![0.0; theta.len()];
        order.iter().enumerate().for_each(|(rank, i)| y[*i] = rank as f64);
        y
    })
}

/// The cells of a cheapest path on a `rows x cols` grid from the first corner to the last, moving to any of the eight
/// neighbors, as ones, `[rows cols]`. Costs are `−θ` (so that the path maximizes `⟨θ, y⟩`); those below 0 count as 0.
/// Of equally cheap paths the one whose cells come first in reading order is taken.
pub fn shortest_path(rows: usize, cols: usize) -> Oracle {
    Arc::new(move |theta| {
        let n = rows * cols;
        let cost = |i: usize| (-theta[i]).max(0.0);
        let (mut best, mut from) = (vec![f64::INFINITY; n], vec![usize::MAX; n]);
        best[0] = cost(0);
        // Bits of a number that is not negative sort as the number.
        let mut queue = BinaryHeap::from([Reverse((best[0].to_bits(), 0usize))]);
        while let Some(Reverse((bits, i))) = queue.pop() {
            if f64::from_bits(bits) > best[i] {
                continue;
            }
            for j in neighbors(i, rows, cols) {
                let through = best[i] + cost(j);
                if through < best[j] {
                    (best[j], from[j]) = (through, i);
                    queue.push(Reverse((through.to_bits(), j)));
                }
            }
        }
        let mut y = vec![0.0; n];
        let mut i = n - 1;
        while i != usize::MAX {
            y[i] = 1.0;
            i = from[i];
        }
        y
    })
}

fn neighbors(i: usize, rows: usize, cols: usize) -> impl Iterator<Item = usize> {
    let (r, c) = (i / cols, i % cols);
    let near = move |x: usize, end: usize| x.saturating_sub(1)..(x + 2).min(end);
    near(r, rows).flat_map(move |a| near(c, cols).map(move |b| a * cols + b)).filter(move |j| *j != i)
}

/// The value of a function of the perturbed input as one number, for perturbing any function.
pub fn function(f: impl Fn(&[f64]) -> f64 + Send + Sync + 'static) -> Oracle {
    Arc::new(move |theta| vec![f(theta)])
}
