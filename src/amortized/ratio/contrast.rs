//! NRE-C of all pairs of a batch as one operation: the exponentials of a row are taken once for both of its groups, and
//! no other matrix of the batch's size is made.

use outerloop_core::nan;
use outerloop_core::ops::{self, Primal, RawOp, Tangent};
use outerloop_core::simd::{Path, Simd, WithSimd};
use outerloop_core::tensor::{Backend, Mode, Rank0, Tensor};
use outerloop_core::Float;

/// `meanᵢ [γ/(1+γ) (lse(Jᵢ) − ln γ − fᵢᵢ) + 1/(1+γ) (lse(Nᵢ) − ln K)]` of logits `[n, n]`, with `K = n − 1`: both groups
/// of row i hold `ln K` and `ln γ + fᵢⱼ`, Jᵢ for every j but the one after i, Nᵢ for every j but i.
///
/// # Panics
/// If `n` is less than 2.
#[track_caller]
pub(super) fn nre_c<E: Float, B: Backend<E>, M: Mode<E, B>>(
    logits: Tensor<(usize, usize), E, B, M>,
    gamma: f64,
) -> Tensor<Rank0, E, B, M> {
    let n = dfdx::prelude::HasShape::shape(&logits).0;
    assert!(n > 1, "NRE-C of all pairs needs at least 2 rows, got {n}");
    let flat = dfdx::prelude::SplitTape::split_tape(ops::reshape(logits, (n * n,))).0;
    let op = AllPairs { n, gamma, exps: Vec::with_capacity(n * n), rows: Vec::with_capacity(n) };
    ops::apply(op, vec![flat], (), M::default())
}

/// `v ← e^v`, compiled for the instructions of the CPU.
struct Exp<'a, E>(&'a mut [E]);

impl<E: Float> WithSimd for Exp<'_, E> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.iter_mut().for_each(|v| *v = v.fast_exp());
    }
}

struct AllPairs<E> {
    n: usize,
    gamma: f64,
    /// `e^(ln γ + fᵢⱼ − mᵢ)` with `mᵢ` the largest in Nᵢ; 0 for the own pair.
    exps: Vec<E>,
    rows: Vec<Row<E>>,
}

/// Probabilities in a row's groups.
struct Row<E> {
    /// Of a pair, per exponential, in J and in N.
    per_exp: [E; 2],
    /// Of the own pair in J.
    own: E,
}

impl<E: Float> AllPairs<E> {
    fn left_out(&self, row: usize) -> usize {
        (row + 1) % self.n
    }
    /// Weights of a row's groups J and N.
    fn weights(&self) -> [E; 2] {
        let odds = 1.0 / (1.0 + self.gamma);
        [self.gamma * odds, odds].map(|p| E::of(p / self.n as f64))
    }
    /// Rows of `values` with their exponentials and number.
    fn rows<'a>(&'a self, values: &'a [E]) -> impl Iterator<Item = (&'a [E], &'a [E], &'a Row<E>, usize)> {
        let rows = values.chunks_exact(self.n).zip(self.exps.chunks_exact(self.n)).zip(&self.rows);
        rows.enumerate().map(|(i, ((v, e), r))| (v, e, r, i))
    }
    /// `Σ pⱼ tⱼ` in J and in N.
    fn means(&self, t: &[E], e: &[E], r: &Row<E>, i: usize) -> [E; 2] {
        let (sum, out) = (E::dot(e, t), self.left_out(i));
        [r.per_exp[0] * (sum - e[out] * t[out]) + r.own * t[i], r.per_exp[1] * sum]
    }
}

impl<E: Float> RawOp<E> for AllPairs<E> {
    fn is_loss(&self) -> bool {
        true
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }

    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let (n, log_gamma, log_k) = (self.n, self.gamma.ln(), ((self.n - 1) as f64).ln());
        let [wj, wn] = self.weights().map(Float::f64);
        self.exps.extend_from_slice(x[0]);
        let mut tops = vec![0.0; n];
        for (i, (e, top)) in self.exps.chunks_exact_mut(n).zip(&mut tops).enumerate() {
            // In place of the own pair: "none of them".
            e[i] = E::of(log_k - log_gamma);
            let largest = e.iter().copied().fold(e[i], nan::max);
            e.iter_mut().for_each(|v| *v -= largest);
            *top = largest.f64() + log_gamma;
        }
        Path::best().run(Exp(&mut self.exps));
        let mut loss = 0.0;
        for (i, m) in tops.into_iter().enumerate() {
            let (own, out) = (x[0][i * n + i].f64() + log_gamma, self.left_out(i));
            let e = &mut self.exps[i * n..][..n];
            let (none, skipped) = (e[i].f64(), e[out]);
            (e[i], e[out]) = (E::of(0.0), E::of(0.0));
            let rest = e.iter().copied().sum::<E>().f64() + none;
            e[out] = skipped;
            let in_n = rest + skipped.f64();
            loss += wn * (m + in_n.ln() - log_k);
            // Relative to the own pair where that is the larger one.
            let ahead = (own - m).max(0.0);
            let (scale, e_own) = ((-ahead).exp(), (own - m - ahead).exp());
            let in_j = (rest * scale + e_own).max(f64::MIN_POSITIVE);
            loss += wj * (m + ahead + in_j.ln() - own);
            let per_exp = [scale / in_j, 1.0 / in_n].map(E::of);
            self.rows.push(Row { per_exp, own: E::of(e_own / in_j) });
        }
        y[0] = E::of(loss);
    }

    fn vjp(&self, _: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let [wj, wn] = self.weights().map(|w| w * dy[0]);
        let rows = dx.chunks_exact_mut(self.n).zip(self.exps.chunks_exact(self.n)).zip(&self.rows);
        for (i, ((dx, e), r)) in rows.enumerate() {
            let (in_j, out) = (wj * r.per_exp[0], self.left_out(i));
            E::add_scaled(in_j + wn * r.per_exp[1], e, dx);
            dx[out] -= in_j * e[out];
            dx[i] += wj * (r.own - E::of(1.0));
        }
    }

    fn jvp(&self, _: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let Some(tx) = tx[0] else { return };
        let [wj, wn] = self.weights();
        for (t, e, r, i) in self.rows(tx) {
            let [in_j, in_n] = self.means(t, e, r, i);
            ty[0] += wj * (in_j - t[i]) + wn * in_n;
        }
    }

    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        let (Some(ddx), Some(tx)) = (&mut ddx[0], t.tx[0]) else { return };
        let [wj, wn] = self.weights().map(|w| w * p.dy[0]);
        for (dd, (t, e, r, i)) in ddx.chunks_exact_mut(self.n).zip(self.rows(tx)) {
            // ṗ = p ⊙ (ṫ − p·ṫ) in each group
            let [mean_j, mean_n] = self.means(t, e, r, i);
            let [cj, cn] = [wj * r.per_exp[0], wn * r.per_exp[1]];
            for ((d, e), t) in dd.iter_mut().zip(e).zip(t) {
                *d += *e * (cj * (*t - mean_j) + cn * (*t - mean_n));
            }
            let out = self.left_out(i);
            dd[out] -= cj * e[out] * (t[out] - mean_j);
            dd[i] += wj * r.own * (t[i] - mean_j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::Key;

    const N: usize = 4;

    /// The loss, and the operation after its forward pass.
    fn forward(f: &[f64]) -> (f64, AllPairs<f64>) {
        let mut op = AllPairs { n: N, gamma: 3.0, exps: Vec::new(), rows: Vec::new() };
        let mut y = [0.0];
        op.forward(&[f], &mut y);
        (y[0], op)
    }
    fn gradient(f: &[f64]) -> Vec<f64> {
        let mut grad = vec![0.0; N * N];
        forward(f).1.vjp(&[f], &[], &[1.0], &mut [Some(&mut grad)]);
        grad
    }

    #[test]
    fn derivatives_of_all_orders_are_slopes() {
        let (mut f, mut t) = ([0.0; N * N], [0.0; N * N]);
        Key::new(1).fill_normal(&mut f);
        Key::new(2).fill_normal(&mut t);
        // A row where the own pair leads, and one where another does.
        (f[0], f[N + 3]) = (9.0, 6.0);
        let along = |h: f64| -> Vec<f64> { f.iter().zip(&t).map(|(f, t)| f + h * t).collect() };
        let h = 1e-5;
        let (grad, op) = (gradient(&f), forward(&f).1);
        let slope = (forward(&along(h)).0 - forward(&along(-h)).0) / (2.0 * h);
        let dot: f64 = grad.iter().zip(&t).map(|(g, t)| g * t).sum();
        let mut jvp = [0.0];
        op.jvp(&[&f], &[], &[Some(&t)], &mut jvp);
        assert!((slope - dot).abs() < 1e-9 && (jvp[0] - dot).abs() < 1e-12, "{slope} {dot} {jvp:?}");
        let (primal, mut dd) = (Primal { x: &[&f[..]], y: &[], dy: &[2.0] }, vec![0.0; N * N]);
        let tangent = Tangent { tx: &[Some(&t[..])], ty: &[], ddy: &[0.5], fresh: &[false] };
        op.vjp_tangent(primal, tangent, &mut [Some(&mut dd)]);
        let (ahead, back) = (gradient(&along(h)), gradient(&along(-h)));
        for k in 0..N * N {
            let want = 0.5 * grad[k] + (ahead[k] - back[k]) / h;
            assert!((dd[k] - want).abs() < 1e-8, "{k}: {} {want}", dd[k]);
        }
    }

    #[test]
    fn extreme_logits_cost_what_they_should() {
        let mut f = [-1000.0; N * N];
        f.iter_mut().step_by(N + 1).for_each(|f| *f = 1000.0);
        let (loss, grad) = (forward(&f).0, gradient(&f));
        assert!(loss.abs() < 1e-12 && grad.iter().all(|g| g.abs() < 1e-12), "{loss} {grad:?}");
        let wrong = f.map(|f| -f);
        // Own pairs that should lead trail by 2000, and others lead "none of them" by 1000; each γ = 3.
        let others = 0.75 * (2000.0 + 2f64.ln()) + 0.25 * (1000.0 + 3f64.ln());
        let loss = forward(&wrong).0;
        assert!((loss - others).abs() < 1e-9, "{loss} {others}");
        assert!(gradient(&wrong).iter().all(|g| g.is_finite()));
    }
}
