//! Which kernel an [`Elementwise`](crate::hand::Elementwise) rule has.

use super::adam::AdamKind;
use super::sgd::{Momentum, MomentumVjp, Sgd, SgdVjp};
use super::Path;

/// A rule whose update and derivative are fused: the kernel's name for [`crate::hand::Elementwise::FUSED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    /// Slots m and v, coefficients `[lr/(1−β₁ᵗ), β₁, 1−β₁, β₂, 1−β₂, 1/(1−β₂ᵗ), ε, ε_root, lr λ]`:
    /// `m ← β₁ m + (1−β₁) g`, `v ← β₂ v + (1−β₂) g²`, `p ← p − scale m/(√(v/(1−β₂ᵗ) + ε_root) + ε)`.
    Adam,
    /// The same, less `lr λ p`.
    AdamW,
    /// No slot, coefficient `[lr]`: `p ← p − lr g`.
    Sgd,
    /// Slot v, coefficients `[lr, μ]`: `v ← μ v + g`, `p ← p − lr v`.
    Momentum,
}

impl Fused {
    fn adam(self) -> AdamKind {
        match self {
            Fused::AdamW => AdamKind::AdamW,
            _ => AdamKind::Adam,
        }
    }

    /// One update in place of parameters and slots.
    pub(crate) fn update(
        self,
        path: Path,
        coeffs: &[f32],
        p: &mut [f32],
        slots: &mut [&mut [f32]],
        g: &[f32],
    ) {
        match (self, coeffs, slots) {
            (Fused::Sgd, &[lr], []) => path.run(Sgd { lr, p, g }),
            (Fused::Momentum, &[lr, mu], [v]) => path.run(Momentum { lr, mu, p, v, g }),
            (_, _, [m, v]) => self.adam().update(path, coeffs, p, [m, v], g),
            _ => unreachable!("a rule that names a kernel has its slots and coefficients"),
        }
    }

    /// The adjoints `out` = `[p̄, slots.., ḡ]` before an update from those after it, `after` =
    /// `[p̄, slots..]`, given `before` = `[p, slots.., g]`; returns the coefficients' adjoints. In Adam β and 1 − β count as one coefficient: the adjoint of 1 − β is in that of β, with the
    /// other sign.
    pub(crate) fn pull_back(
        self,
        path: Path,
        coeffs: &[f32],
        before: &[&[f32]],
        after: &[&[f32]],
        out: &mut [&mut [f32]],
    ) -> Vec<f64> {
        match (self, coeffs, before, after, out) {
            (Fused::Sgd, &[lr], &[_, g], &[after], [p, out]) => {
                p.copy_from_slice(after);
                path.run(SgdVjp { lr, g, after, out }).to_vec()
            }
            (Fused::Momentum, &[lr, mu], &[_, v, g], &[a_p, a_v], [p, out_v, out_g]) => {
                p.copy_from_slice(a_p);
                let (before, after, out) = ([v, g], [a_p, a_v], [&mut **out_v, &mut **out_g]);
                path.run(MomentumVjp { lr, mu, before, after, out }).to_vec()
            }
            (_, _, &[p, m, v, g], &[a_p, a_m, a_v], [out_p, out_m, out_v, out_g]) => {
                let out = [&mut **out_p, &mut **out_m, &mut **out_v, &mut **out_g];
                self.adam().pull_back(path, coeffs, [p, m, v, g], [a_p, a_m, a_v], out).to_vec()
            }
            _ => unreachable!("a rule that names a kernel has its slots and coefficients"),
        }
    }
}
