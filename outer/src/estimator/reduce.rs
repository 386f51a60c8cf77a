//! From the lanes' contributions to one estimate.

use super::{masked_mean, trained_steps, Estimate, EstimateInputs, Shaping};
use crate::health::Saturated;
use crate::unroll::Window;
use crate::workers::{LaneBuffers, Worker, Workers};

/// How the lanes' sum becomes the estimate.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    /// What the mean over lanes is multiplied by.
    pub factor: f64,
    /// What becomes of the coefficients before.
    pub shaping: Shaping,
}

impl Scale {
    /// The mean itself.
    pub const ONE: Scale = Scale { factor: 1.0, shaping: Shaping::None };
}

/// One lane's contribution, `grad += Σₖ coefficientₖ · directionₖ`, and its share of the metrics.
#[derive(Default)]
pub(super) struct Contribution {
    /// The coefficients of the directions that lie in the lane's buffers.
    pub eps: f64,
    pub sum: f64,
    /// Further coefficients, with their directions.
    pub terms: Vec<(f64, Vec<f32>)>,
    /// The losses of an antithetic pair, for [`Shaping`].
    pub losses: [f64; 2],
    pub mean_loss: f64,
    pub inner_steps: u64,
    pub saturated: Saturated,
    pub diverged: bool,
}

impl Contribution {
    /// Nothing but the metrics of an antithetic pair's windows.
    pub fn of_windows([pos, neg]: &[Window; 2]) -> Self {
        let losses = [masked_mean(pos), masked_mean(neg)];
        Contribution {
            losses,
            mean_loss: (losses[0] + losses[1]) / 2.0,
            inner_steps: trained_steps(pos) + trained_steps(neg),
            saturated: pos.saturated + neg.saturated,
            diverged: pos.diverged || neg.diverged,
            ..Contribution::default()
        }
    }

    /// Coefficients and directions.
    fn all<'a>(&'a self, buffers: &'a LaneBuffers<f32>) -> impl Iterator<Item = (f64, &'a [f32])> {
        let buffered = [(self.sum, &buffers.sum[..]), (self.eps, &buffers.eps[..])];
        buffered.into_iter().chain(self.terms.iter().map(|(c, d)| (*c, &d[..])))
    }
}

/// Computes every lane's contribution, on the thread that comes to it, and adds them up in lane order:
/// `grad = factor/N Σᵢ Σₖ cᵢₖ dᵢₖ`.
pub(super) fn over_lanes<T: Send>(
    inputs: EstimateInputs<'_>,
    lanes: &mut [T],
    scale: Scale,
    f: impl Fn(&mut Worker, usize, &mut T, &mut LaneBuffers<f32>) -> Contribution + Sync,
) -> Estimate {
    over_lane_chunks(inputs, lanes, 1, scale, |worker, i, lanes, buffers| {
        vec![f(worker, i, &mut lanes[0], &mut buffers[0])]
    })
}

/// [`over_lanes`], `chunk` neighbouring lanes at a time: `f` gets the first one's number and all of
/// them, and returns their contributions.
pub(super) fn over_lane_chunks<T: Send>(
    inputs: EstimateInputs<'_>,
    lanes: &mut [T],
    chunk: usize,
    scale: Scale,
    f: impl Fn(&mut Worker, usize, &mut [T], &mut [LaneBuffers<f32>]) -> Vec<Contribution> + Sync,
) -> Estimate {
    let EstimateInputs { theta, workers, .. } = inputs;
    workers.with_lane_buffers(lanes.len(), |buffers| {
        let mut items: Vec<_> = lanes.chunks_mut(chunk).zip(buffers.chunks_mut(chunk)).collect();
        let contributions =
            workers.map(&mut items, |worker, i, (lanes, buffers)| f(worker, i * chunk, lanes, buffers));
        let mut contributions: Vec<_> = contributions.into_iter().flatten().collect();
        shape(scale.shaping, &mut contributions);
        reduce(workers, theta.len(), scale.factor, &contributions, buffers)
    })
}

/// Applies a shaping to the coefficients of pairs. Pairs with a loss that is no number stay as they are, masked.
fn shape(shaping: Shaping, contributions: &mut [Contribution]) {
    let is_sound = |c: &Contribution| c.losses.iter().all(|l| l.is_finite());
    let mut losses: Vec<f64> = contributions.iter().filter(|c| is_sound(c)).flat_map(|c| c.losses).collect();
    match shaping {
        Shaping::None => {}
        Shaping::Ranks => {
            losses.sort_by(f64::total_cmp);
            let last = losses.len().saturating_sub(1).max(1) as f64;
            let rank = |x: f64| {
                let (below, upto) = (losses.partition_point(|l| *l < x), losses.partition_point(|l| *l <= x));
                (below + upto).saturating_sub(1) as f64 / 2.0 / last - 0.5
            };
            for c in contributions.iter_mut().filter(|c| is_sound(c)) {
                c.eps = rank(c.losses[0]) - rank(c.losses[1]);
            }
        }
        Shaping::Deviation => {
            let n = losses.len() as f64;
            let mean = losses.iter().sum::<f64>() / n;
            let deviation = (losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n).sqrt();
            // Equal losses have no scale, and no differences.
            if deviation > 0.0 {
                for c in contributions {
                    (c.eps, c.sum) = (c.eps / deviation, c.sum / deviation);
                }
            }
        }
    }
}

/// Multiply-adds per item of work, and the size from which it is worth waking other threads.
const CHUNK: usize = 1 << 16;

/// `size`: length of theta.
pub(super) fn reduce(
    workers: &Workers,
    size: usize,
    factor: f64,
    contributions: &[Contribution],
    buffers: &[LaneBuffers<f32>],
) -> Estimate {
    let lanes = contributions.len();
    let (mut loss, mut healthy, mut inner_steps, mut diverged, mut masked) = (0.0, 0usize, 0, 0, 0);
    let mut saturated = Saturated::default();
    let mut terms: Vec<(f64, &[f32])> = Vec::with_capacity(2 * lanes);
    for (c, buffers) in contributions.iter().zip(buffers) {
        inner_steps += c.inner_steps;
        saturated = saturated + c.saturated;
        diverged += usize::from(c.diverged);
        if c.mean_loss.is_finite() {
            loss += c.mean_loss;
            healthy += 1;
        }
        // A lane without a finite difference says nothing: it counts as a zero difference.
        if c.all(buffers).any(|(c, _)| !c.is_finite()) {
            masked += 1;
            continue;
        }
        terms.extend(c.all(buffers).filter(|(c, _)| *c != 0.0));
    }
    let mut sums = vec![0.0f64; size];
    let chunk = CHUNK.div_ceil(terms.len().max(1));
    let mut chunks: Vec<&mut [f64]> = sums.chunks_mut(chunk).collect();
    workers.map(&mut chunks, |_, k, sums| {
        for (c, d) in &terms {
            for (s, d) in sums.iter_mut().zip(&d[k * chunk..]) {
                *s += c * f64::from(*d);
            }
        }
    });
    let scale = factor / lanes as f64;
    Estimate {
        grad: sums.into_iter().map(|s| (s * scale) as f32).collect(),
        mean_loss: loss / healthy as f64,
        inner_steps,
        saturated,
        lanes,
        diverged,
        masked,
    }
}
