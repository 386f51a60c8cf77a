//! [`RatioLoss`]: what a ratio estimator minimizes, from logits throughout.

use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Mode, PutTape, Rank0, Tensor};
use outerloop_core::{check_settings, Error, Float, Interval, Result};
use serde::{Deserialize, Serialize};

/// A contrastive loss over logits `f(theta, x)`, `[n, columns]`: every row belongs to one `x`, and column 0
/// holds its own `theta`, with which it was simulated; the other columns hold `theta`s drawn independently.
///
/// No sigmoid is followed by a logarithm: a confidently wrong logit of 80 costs 80 nats and has gradient 1,
/// where the literal form gives infinity, or a clamped loss with gradient 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum RatioLoss {
    /// NRE-A, AALR: binary cross entropy of the joint pair against one independent pair,
    /// `½ mean(softplus(−f₀) + softplus(f₁))`. At its minimum `f = ln p(x|θ)/p(x)`.
    /// Reference: Hermans, Begy, Louppe 2020, arXiv:1903.04057.
    NreA,
    /// NRE-B: which of K = `atoms` belongs to `x`, `−mean(f₀ − ln Σₖ e^{fₖ})`. At its minimum `f` is the log
    /// ratio plus an unknown function of `x`: samplers do not care, evidence does.
    /// Reference: Durkan, Murray, Papamakarios 2020, arXiv:2002.03712.
    NreB {
        /// K, at least 2.
        atoms: usize,
    },
    /// NRE-C: NRE-B with one more class, "none of them", whose odds against the others are `1 : gamma`.
    /// Columns 0 to K − 1 hold the joint pair and K − 1 others, columns K to 2K − 1 independent ones:
    /// `p₀ mean(ln K − lse(ln γ + mₖ, ln K)) + p_K mean(ln γ + j₀ − lse(ln γ + jₖ, ln K))`, negated, with
    /// `p₀ = 1/(1+γ)`, `p_K = γ/(1+γ)`. At its minimum `f` is the log ratio.
    /// Reference: Miller, Weniger, Forré 2022, arXiv:2210.06170.
    NreC {
        /// K, at least 1.
        classes: usize,
        /// γ, positive.
        gamma: f64,
    },
    /// NRE-A plus `lambda (mean(σ(f₀) + σ(f₁)) − 1)²`: the penalty is 0 at the minimum, and pushes an imperfect
    /// classifier towards too wide posteriors.
    /// Reference: Delaunoy, Hermans, Rozet, Wehenkel, Louppe 2022, arXiv:2208.13624.
    Balanced {
        /// λ, not negative; 100 in the paper.
        lambda: f64,
    },
}

impl RatioLoss {
    /// Logits per `x`.
    pub fn columns(self) -> usize {
        match self {
            RatioLoss::NreA | RatioLoss::Balanced { .. } => 2,
            RatioLoss::NreB { atoms } => atoms,
            RatioLoss::NreC { classes, .. } => 2 * classes,
        }
    }

    /// Whether the logit is the log ratio itself, so that the evidence has a meaning; NRE-B's is off by a
    /// function of `x`.
    pub fn is_normalized(self) -> bool {
        !matches!(self, RatioLoss::NreB { .. })
    }

    /// `a`, `b`, `c` and `balanced` with the usual settings: 10 atoms, 5 classes and γ = 1, λ = 100.
    ///
    /// # Errors
    /// Another name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "a" => Ok(RatioLoss::NreA),
            "b" => Ok(RatioLoss::NreB { atoms: 10 }),
            "c" => Ok(RatioLoss::NreC { classes: 5, gamma: 1.0 }),
            "balanced" => Ok(RatioLoss::Balanced { lambda: 100.0 }),
            _ => Err(Error::Unknown {
                what: "ratio loss",
                got: name.into(),
                allowed: ["a", "b", "c", "balanced"].map(String::from).to_vec(),
            }),
        }
    }

    /// Errors on settings out of range.
    pub fn validate(self) -> Result<()> {
        match self {
            RatioLoss::NreA => Ok(()),
            RatioLoss::NreB { atoms } => {
                check_settings("NRE-B", [("atoms", atoms as f64, Interval::at_least(2.0))])
            }
            RatioLoss::NreC { classes, gamma } => check_settings(
                "NRE-C",
                [("classes", classes as f64, Interval::COUNT), ("gamma", gamma, Interval::POSITIVE)],
            ),
            RatioLoss::Balanced { lambda } => {
                check_settings("balanced NRE", [("lambda", lambda, Interval::NOT_NEGATIVE)])
            }
        }
    }

    /// The loss of logits `[n, columns]`.
    pub fn value<E: Float, B: Backend<E>, M: Mode<E, B>>(
        self,
        logits: Tensor<(usize, usize), E, B, M>,
    ) -> Tensor<Rank0, E, B, M> {
        let n = dfdx::prelude::HasShape::shape(&logits).0;
        match self {
            RatioLoss::NreA => binary(logits),
            RatioLoss::Balanced { lambda } => {
                // mean σ(f₀) + mean σ(f₁) − 1 = 2 mean σ − 1
                let balance = ops::affine(ops::mean(ops::sigmoid(logits.clone())), 2.0, -1.0);
                let penalty = ops::scale(ops::square(balance), lambda);
                ops::add(binary(logits), &penalty)
            }
            RatioLoss::NreB { .. } => ops::softmax_cross_entropy(logits, &vec![0; n]),
            RatioLoss::NreC { classes, gamma } => {
                let logits = ops::shift(logits, gamma.ln());
                let none = logits.device().filled((n, 1usize), |y| y.fill(E::of((classes as f64).ln())));
                let group = |start: usize| ops::concat(ops::columns(logits.clone(), start, classes), &none);
                let joint = ops::softmax_cross_entropy(group(0), &vec![0; n]);
                let independent = ops::softmax_cross_entropy(group(classes), &vec![classes as u32; n]);
                let odds = 1.0 / (1.0 + gamma);
                ops::add(ops::scale(joint, gamma * odds), &ops::scale(independent, odds))
            }
        }
    }

    /// The loss of logits `[n, n]` of all pairs of a batch, own pairs on the diagonal: every `x` is contrasted with the
    /// parameters of all others, which are independent of it. Same minimum, less variance, most of all where the data
    /// says much and few parameters are near enough to teach anything. NRE-B has `n` atoms, NRE-C `n − 1` classes (one
    /// other parameter is left out beside the own one).
    ///
    /// # Panics
    /// If `n` is less than 3.
    #[track_caller]
    pub fn all_pairs<E: Float, B: Backend<E>, M: Mode<E, B>>(
        self,
        logits: Tensor<(usize, usize), E, B, M>,
    ) -> Tensor<Rank0, E, B, M> {
        let n = dfdx::prelude::HasShape::shape(&logits).0;
        assert!(n > 2, "contrasts within a batch need at least 3 simulations, got {n}");
        let dev = logits.device().clone();
        // A matrix with one number in places `(i, (i + k) mod n)` and another elsewhere.
        let marked = |k: usize, at: f64, elsewhere: f64| -> Tensor<(usize, usize), E, B> {
            dev.filled((n, n), |y| {
                y.fill(E::of(elsewhere));
                (0..n).for_each(|i| y[i * n + (i + k) % n] = E::of(at));
            })
        };
        let own: Vec<u32> = (0..n as u32).collect();
        // Own pairs and others weigh the same.
        let weights = || marked(0, 0.5 / n as f64, 0.5 / (n * (n - 1)) as f64);
        let binary = |logits| {
            let wrong = ops::softplus(ops::mul(logits, &marked(0, -1.0, 1.0)));
            ops::sum(ops::mul(wrong, &weights()))
        };
        match self {
            RatioLoss::NreA => binary(logits),
            RatioLoss::Balanced { lambda } => {
                let balance = ops::sum(ops::mul(ops::sigmoid(logits.clone()), &weights()));
                let penalty = ops::square(ops::affine(balance, 2.0, -1.0));
                ops::add(binary(logits), &ops::scale(penalty, lambda))
            }
            RatioLoss::NreB { .. } => ops::softmax_cross_entropy(logits, &own),
            RatioLoss::NreC { gamma, .. } => super::contrast::nre_c(logits, gamma),
        }
    }
}

/// `½ mean(softplus(−f₀) + softplus(f₁))`
fn binary<E: Float, B: Backend<E>, M: Mode<E, B>>(
    logits: Tensor<(usize, usize), E, B, M>,
) -> Tensor<Rank0, E, B, M> {
    let shape = *dfdx::prelude::HasShape::shape(&logits);
    let labels = logits.device().filled(shape, |y| y.iter_mut().step_by(2).for_each(|y| *y = E::of(1.0)));
    ops::sigmoid_cross_entropy(logits, &labels)
}

/// Loss and gradient by the logits, `[n, columns]`: for those who train elsewhere, and for tests.
pub fn loss_and_grad<E: Float>(loss: RatioLoss, logits: &[E]) -> (E, Vec<E>)
where
    outerloop_core::tensor::Cpu: outerloop_core::tensor::Host<E>,
{
    use outerloop_core::tensor::{record, Cpu, DynParams, DynTree, ParamTree};
    use outerloop_core::Layout;
    let (dev, shape) = (Cpu::default(), (logits.len() / loss.columns(), loss.columns()));
    let layout = std::sync::Arc::new(Layout::new([("logits", [shape.0, shape.1])]));
    let tree: DynParams<E, Cpu> = DynTree::new(&dev, layout, logits);
    let mut r = record(&tree.ids(), |m| loss.value(tree.get(0, shape).put_tape(m)));
    let mut grad = vec![E::of(0.0); logits.len()];
    tree.read_grads(&dev, &mut r.grads, &mut grad);
    (<Cpu as Backend<E>>::host(&r.value)[0], grad)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ln Σ eˣ`, literally.
    fn lse(x: &[f64]) -> f64 {
        x.iter().map(|x| x.exp()).sum::<f64>().ln()
    }

    #[test]
    fn losses_are_their_equations() {
        let f = [0.3, -1.0, 0.7, 2.0, 0.1, 0.4, -0.2, 1.1];
        let softplus = |x: f64| x.exp().ln_1p();
        let a: f64 = f.chunks(2).map(|f| 0.5 * (softplus(-f[0]) + softplus(f[1]))).sum::<f64>() / 4.0;
        let sigmoid = |x: &f64| 1.0 / (1.0 + (-x).exp());
        let balance = f.iter().map(sigmoid).sum::<f64>() / 4.0 - 1.0;
        let b: f64 = f.chunks(4).map(|f| lse(f) - f[0]).sum::<f64>() / 2.0;
        let (gamma, k) = (3.0f64, 2f64.ln());
        let c: f64 = f
            .chunks(4)
            .map(|f| {
                let g = |i: usize| gamma.ln() + f[i];
                let joint = g(0) - lse(&[g(0), g(1), k]);
                let none = k - lse(&[g(2), g(3), k]);
                -(gamma * joint + none) / (1.0 + gamma) / 2.0
            })
            .sum();
        for (loss, want) in [
            (RatioLoss::NreA, a),
            (RatioLoss::Balanced { lambda: 7.0 }, a + 7.0 * balance * balance),
            (RatioLoss::NreB { atoms: 4 }, b),
            (RatioLoss::NreC { classes: 2, gamma }, c),
        ] {
            let (value, grad) = loss_and_grad(loss, &f);
            assert!((value - want).abs() < 1e-12, "{loss:?} {value} {want}");
            for i in 0..f.len() {
                let at = |h: f64| {
                    let mut f = f;
                    f[i] += h;
                    loss_and_grad(loss, &f).0
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((grad[i] - slope).abs() < 1e-8, "{loss:?} {i}");
            }
        }
    }

    #[test]
    fn all_pairs_are_contrasts_with_every_other_parameter() {
        use outerloop_core::tensor::Cpu;
        let f = [0.3, -1.0, 0.7, 2.0, 0.1, 0.4, -0.2, 1.1, -0.6];
        let dev = Cpu::default();
        let value = |loss: RatioLoss| {
            let logits = dev.filled((3usize, 3usize), |y| y.copy_from_slice(&f));
            <Cpu as Backend<f64>>::host(&loss.all_pairs(logits))[0]
        };
        let plain = |loss: RatioLoss, rows: &[[usize; 2]]| {
            let of = |r: &[usize; 2]| loss_and_grad(loss, &[f[r[0]], f[r[1]]]).0;
            rows.iter().map(of).sum::<f64>() / rows.len() as f64
        };
        // The mean over both others of every row.
        let rows = [[0, 1], [0, 2], [4, 3], [4, 5], [8, 6], [8, 7]];
        assert!((value(RatioLoss::NreA) - plain(RatioLoss::NreA, &rows)).abs() < 1e-12);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let own = [0, 4, 8].map(|i| sigmoid(f[i])).iter().sum::<f64>() / 3.0;
        let others = [1, 2, 3, 5, 6, 7].map(|i| sigmoid(f[i])).iter().sum::<f64>() / 6.0;
        let want = value(RatioLoss::NreA) + 7.0 * (own + others - 1.0).powi(2);
        assert!((value(RatioLoss::Balanced { lambda: 7.0 }) - want).abs() < 1e-12);
        let want: f64 = (0..3).map(|i| lse(&f[3 * i..3 * i + 3]) - f[4 * i]).sum::<f64>() / 3.0;
        assert!((value(RatioLoss::NreB { atoms: 2 }) - want).abs() < 1e-12);
        let gamma: f64 = 3.0;
        // Own and the one before it (cyclically), then both others.
        let c: f64 = (0..3)
            .map(|i| {
                let at = |k: usize| f[3 * i + (i + k) % 3] + gamma.ln();
                let (none, joint) = (2f64.ln(), at(0) - lse(&[at(0), at(2), 2f64.ln()]));
                -(gamma * joint + none - lse(&[at(1), at(2), none])) / (1.0 + gamma) / 3.0
            })
            .sum();
        assert!((value(RatioLoss::NreC { classes: 5, gamma }) - c).abs() < 1e-12);
    }

    #[test]
    fn confident_mistakes_teach() {
        let (value, grad) = loss_and_grad::<f32>(RatioLoss::NreA, &[-1000.0, 90.0]);
        assert_eq!((value, grad), (545.0, vec![-0.5, 0.5]));
    }
}
