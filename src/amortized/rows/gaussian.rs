//! Gaussian posteriors `λ = [μ, v]`, `v = ln σ²`: samples and divergence from the standard normal.

use super::{sum, vectorized, width};
use crate::problem::Rows;
use outerloop_core::ops::{apply, handle, Primal, RawOp, Tangent};
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Tensor};

/// Inputs: λ `[N, 2 Z]` and noise `[N S, Z]`; output `[N S, Z]`.
struct Sample {
    latent: usize,
    samples: usize,
}

impl Sample {
    /// Calls `f(λ's row, place of its samples)`.
    #[inline(always)]
    fn rows(&self, numbers: usize, mut f: impl FnMut(usize, usize)) {
        let z = self.latent;
        for i in 0..numbers / z.max(1) {
            f(i / self.samples * 2 * z, i * z);
        }
    }
}

impl<E: Float> RawOp<E> for Sample {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let (lambda, eps, z, half) = (x[0], x[1], self.latent, E::of(0.5));
        vectorized(
            #[inline(always)]
            || {
                self.rows(y.len(), |row, at| {
                    let (mu, v) = lambda[row..][..2 * z].split_at(z);
                    for (((y, mu), v), e) in y[at..][..z].iter_mut().zip(mu).zip(v).zip(&eps[at..][..z]) {
                        *y = *mu + (half * *v).fast_exp() * *e;
                    }
                });
            },
        );
    }
    fn vjp(&self, x: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let (lambda, eps, z, half) = (x[0], x[1], self.latent, E::of(0.5));
        let [d, noise] = dx else { unreachable!("two inputs") };
        vectorized(
            #[inline(always)]
            || {
                self.rows(dy.len(), |row, at| {
                    let (v, dy, eps) = (&lambda[row + z..][..z], &dy[at..][..z], &eps[at..][..z]);
                    if let Some(d) = d {
                        let (d_mu, d_v) = d[row..][..2 * z].split_at_mut(z);
                        for (d, dy) in d_mu.iter_mut().zip(dy) {
                            *d += *dy;
                        }
                        for (((d, dy), v), e) in d_v.iter_mut().zip(dy).zip(v).zip(eps) {
                            *d += half * (half * *v).fast_exp() * *e * *dy;
                        }
                    }
                    if let Some(d) = noise {
                        for ((d, dy), v) in d[at..][..z].iter_mut().zip(dy).zip(v) {
                            *d += (half * *v).fast_exp() * *dy;
                        }
                    }
                });
            },
        );
    }
    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let (lambda, eps, z, half) = (x[0], x[1], self.latent, E::of(0.5));
        self.rows(ty.len(), |row, at| {
            for (k, ty) in ty[at..][..z].iter_mut().enumerate() {
                let spread = (half * lambda[row + z + k]).fast_exp();
                if let Some(t) = tx[0] {
                    *ty += t[row + k] + half * spread * eps[at + k] * t[row + z + k];
                }
                if let Some(t) = tx[1] {
                    *ty += spread * t[at + k];
                }
            }
        });
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        let (lambda, eps, z, half) = (p.x[0], p.x[1], self.latent, E::of(0.5));
        let [d, noise] = ddx else { unreachable!("two inputs") };
        self.rows(p.dy.len(), |row, at| {
            for k in 0..z {
                let weighted = half * (half * lambda[row + z + k]).fast_exp() * p.dy[at + k];
                let tv = t.tx[0].map_or(E::of(0.0), |t| t[row + z + k]);
                let te = t.tx[1].map_or(E::of(0.0), |t| t[at + k]);
                if let Some(d) = d {
                    d[row + z + k] += weighted * (half * eps[at + k] * tv + te);
                }
                if let Some(d) = noise {
                    d[at + k] += weighted * tv;
                }
            }
        });
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }
}

/// Samples `z = μ + e^{v/2} ε`, `[N S, Z]`, sample by sample within a row; `lambda` `[N, 2 Z]`, `eps` `[N S, Z]`.
///
/// # Panics
/// If the shapes do not fit.
#[track_caller]
pub fn sample<E: Float, B: Backend<E>, M: Mode<E, B>>(
    lambda: &Rows<E, B, M>,
    eps: &Rows<E, B>,
) -> Rows<E, B, M> {
    let ((n, twice), (rows, latent)) = (*lambda.shape(), *eps.shape());
    let samples = rows / n.max(1);
    assert_eq!([twice, rows], [2 * latent, n * samples], "sample: shapes of posteriors and noise");
    let op = Sample { latent, samples: samples.max(1) };
    apply(op, vec![handle(lambda), handle(eps)], (rows, latent), M::default())
}

/// Input λ `[N, 2 Z]`, output `[N]`.
struct Divergence;

impl<E: Float> RawOp<E> for Divergence {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let z = width(x[0].len(), 2 * y.len());
        vectorized(
            #[inline(always)]
            || {
                for (y, row) in y.iter_mut().zip(x[0].chunks_exact(2 * z)) {
                    let (mu, v) = row.split_at(z);
                    *y = E::of(0.5) * sum(mu, v, |mu, v| mu * mu + v.fast_exp() - E::of(1.0) - v);
                }
            },
        );
    }
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let (z, half) = (width(x[0].len(), 2 * y.len()), E::of(0.5));
        vectorized(
            #[inline(always)]
            || {
                for ((d, row), dy) in dx.chunks_exact_mut(2 * z).zip(x[0].chunks_exact(2 * z)).zip(dy) {
                    let ((d_mu, d_v), (mu, v)) = (d.split_at_mut(z), row.split_at(z));
                    for (d, mu) in d_mu.iter_mut().zip(mu) {
                        *d += *dy * *mu;
                    }
                    for (d, v) in d_v.iter_mut().zip(v) {
                        *d += *dy * half * (v.fast_exp() - E::of(1.0));
                    }
                }
            },
        );
    }
    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let Some(tx) = tx[0] else { return };
        let z = width(x[0].len(), 2 * y.len());
        for ((ty, row), t) in ty.iter_mut().zip(x[0].chunks_exact(2 * z)).zip(tx.chunks_exact(2 * z)) {
            let ((mu, v), (t_mu, t_v)) = (row.split_at(z), t.split_at(z));
            let spread = sum(v, t_v, |v, t| (v.fast_exp() - E::of(1.0)) * t);
            *ty += sum(mu, t_mu, |mu, t| mu * t) + E::of(0.5) * spread;
        }
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        let (Some(d), Some(tx)) = (&mut ddx[0], t.tx[0]) else { return };
        let (z, half) = (width(tx.len(), 2 * p.y.len()), E::of(0.5));
        let rows = d.chunks_exact_mut(2 * z).zip(p.x[0].chunks_exact(2 * z)).zip(tx.chunks_exact(2 * z));
        for (((d, row), t), dy) in rows.zip(p.dy) {
            for k in 0..z {
                d[k] += *dy * t[k];
                d[z + k] += *dy * half * row[z + k].fast_exp() * t[z + k];
            }
        }
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }
}

/// `KL(N(μ, e^v) ‖ N(0, I)) = ½ Σ (μ² + e^v − 1 − v)` of every row of λ `[N, 2 Z]`, `[N]`.
///
/// # Panics
/// If a row has an odd number of elements.
#[track_caller]
pub fn divergence<E: Float, B: Backend<E>, M: Mode<E, B>>(
    lambda: &Rows<E, B, M>,
) -> Tensor<(usize,), E, B, M> {
    let (n, twice) = *lambda.shape();
    assert_eq!(twice % 2, 0, "divergence: as many means as log-variances");
    apply(Divergence, vec![handle(lambda)], (n,), M::default())
}
