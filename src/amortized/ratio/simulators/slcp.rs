//! SLCP: a simple likelihood with a complex posterior.

use crate::ratio::prior::LN_SQRT_2PI;
use crate::ratio::{Prior, Simulator, UniformBox};
use outerloop_core::Key;

/// Points per simulation.
const POINTS: usize = 4;

/// Four independent points `(x, y)` of one normal distribution with mean `(θ₁, θ₂)` and covariance
/// `[[s₁², ρ s₁ s₂], [ρ s₁ s₂, s₂²]]`, where `s₁ = θ₃²`, `s₂ = θ₄²`, `ρ = tanh θ₅`; θ uniform on `[−3, 3]⁵`.
/// The signs of θ₃ and θ₄ leave no trace: the posterior has four equal modes.
///
/// Two conventions are in use: without jitter ([`Self::seed`]: the covariance exactly as above) and with
/// `1e-6` added to both variances ([`Self::sbibm`]). They agree to 1e-4 nats at ordinary points and differ
/// by orders of magnitude near `θ₃ = 0` or `θ₄ = 0`.
///
/// Reference: Papamakarios, Sterratt, Murray 2019, arXiv:1805.07226, appendix.
#[derive(Clone, Debug, PartialEq)]
pub struct Slcp {
    prior: UniformBox,
    jitter: f64,
}

/// Mean, covariance and its Cholesky factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlcpMoments {
    /// `[mean x, mean y]`
    pub mean: [f64; 2],
    /// `[var x, covariance, var y]`
    pub cov: [f64; 3],
    /// Determinant of the covariance, without cancellation.
    pub det: f64,
    /// Lower factor `[l₁₁, l₂₁, l₂₂]`.
    pub chol: [f64; 3],
}

impl Slcp {
    /// Without jitter.
    pub fn seed() -> Self {
        Self::with_jitter(0.0)
    }
    /// `1e-6` added to the variances.
    pub fn sbibm() -> Self {
        Self::with_jitter(1e-6)
    }
    fn with_jitter(jitter: f64) -> Self {
        let prior = UniformBox::cube(5, -3.0, 3.0).expect("edges are in order");
        Slcp { prior, jitter }
    }

    /// The distribution of one point.
    pub fn moments(&self, theta: &[f64]) -> SlcpMoments {
        let (a, b, j) = (theta[2] * theta[2], theta[3] * theta[3], self.jitter);
        let rho = theta[4].tanh();
        // 1 − ρ² = 1/cosh² θ₅ keeps its digits where ρ is near 1.
        let sech2 = theta[4].cosh().powi(-2);
        let cov = [a * a + j, rho * a * b, b * b + j];
        // (a² + j)(b² + j) − ρ² a² b²
        let det = a * a * b * b * sech2 + j * (a * a + b * b) + j * j;
        // Without jitter the factor has a value for singular covariances, too.
        let chol = if j == 0.0 {
            [a, rho * b, b * sech2.sqrt()]
        } else {
            [cov[0].sqrt(), cov[1] / cov[0].sqrt(), (det / cov[0]).sqrt()]
        };
        SlcpMoments { mean: [theta[0], theta[1]], cov, det, chol }
    }

    /// The data that standard normal numbers `z`, `[8]`, make: `mean + chol zᵢ`, point by point.
    pub fn from_noise(&self, theta: &[f64], z: &[f64], x: &mut [f64]) {
        let m = self.moments(theta);
        for (x, z) in x.chunks_exact_mut(2).zip(z.chunks_exact(2)) {
            x[0] = m.mean[0] + m.chol[0] * z[0];
            x[1] = m.mean[1] + m.chol[1] * z[0] + m.chol[2] * z[1];
        }
    }

    /// `ln p(x | θ)` in nats; `−∞` where the covariance is singular.
    pub fn log_lik(&self, theta: &[f64], x: &[f64]) -> f64 {
        let m = self.moments(theta);
        if m.det <= 0.0 {
            return f64::NEG_INFINITY;
        }
        let s = scatter(&m, x);
        let n = POINTS as f64;
        -0.5 * quadratic(&m, &s) / m.det - 0.5 * n * m.det.ln() - 2.0 * n * LN_SQRT_2PI
    }

    /// [`Self::log_lik`]; overwrites `grad`, `[5]`, with its gradient, NaN where the covariance is singular.
    pub fn log_lik_grad(&self, theta: &[f64], x: &[f64], grad: &mut [f64]) -> f64 {
        let m = self.moments(theta);
        if m.det <= 0.0 {
            grad.fill(f64::NAN);
            return f64::NEG_INFINITY;
        }
        let ([c11, c12, c22], det, n) = (m.cov, m.det, POINTS as f64);
        let s = scatter(&m, x);
        let [d1, d2, s11, s12, s22] = s;
        let q = quadratic(&m, &s) / det;
        grad[0] = (c22 * d1 - c12 * d2) / det;
        grad[1] = (c11 * d2 - c12 * d1) / det;
        // ∂/∂c of −½ Q/det − (n/2) ln det
        let g11 = -0.5 * (s22 - q * c22) / det - 0.5 * n * c22 / det;
        let g22 = -0.5 * (s11 - q * c11) / det - 0.5 * n * c11 / det;
        let g12 = (s12 - q * c12) / det + n * c12 / det;
        let (a, b, rho) = (theta[2] * theta[2], theta[3] * theta[3], theta[4].tanh());
        grad[2] = g11 * 4.0 * a * theta[2] + g12 * rho * 2.0 * theta[2] * b;
        grad[3] = g22 * 4.0 * b * theta[3] + g12 * rho * 2.0 * theta[3] * a;
        grad[4] = g12 * a * b * theta[4].cosh().powi(-2);
        -0.5 * q - 0.5 * n * det.ln() - 2.0 * n * LN_SQRT_2PI
    }
}

/// Sums over the points of `d₁, d₂, d₁², d₁ d₂, d₂²`, where `d` is the distance from the mean.
fn scatter(m: &SlcpMoments, x: &[f64]) -> [f64; 5] {
    let mut s = [0.0; 5];
    for p in x.chunks_exact(2) {
        let (d1, d2) = (p[0] - m.mean[0], p[1] - m.mean[1]);
        for (s, v) in s.iter_mut().zip([d1, d2, d1 * d1, d1 * d2, d2 * d2]) {
            *s += v;
        }
    }
    s
}

/// `det Σ dᵀ C⁻¹ d`.
fn quadratic(m: &SlcpMoments, s: &[f64; 5]) -> f64 {
    m.cov[2] * s[2] - 2.0 * m.cov[1] * s[3] + m.cov[0] * s[4]
}

impl Simulator for Slcp {
    fn name(&self) -> String {
        if self.jitter == 0.0 { "slcp" } else { "slcp_sbibm" }.into()
    }
    fn prior(&self) -> &dyn Prior {
        &self.prior
    }
    fn data_dim(&self) -> usize {
        2 * POINTS
    }
    fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]) {
        let mut z = [0.0; 2 * POINTS];
        key.fill_normal(&mut z);
        self.from_noise(theta, &z, x);
    }
    fn log_likelihood(&self, theta: &[f64], x: &[f64]) -> Option<f64> {
        Some(self.log_lik(theta, x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_slopes_and_signs_leave_no_trace() {
        let x = [0.7, -2.7, 0.4, -3.6, 0.2, -3.8, 0.8, -2.0];
        for slcp in [Slcp::seed(), Slcp::sbibm()] {
            let theta = [0.7, -2.9, -1.0, -0.9, 0.6];
            let mut grad = [0.0; 5];
            let value = slcp.log_lik_grad(&theta, &x, &mut grad);
            assert!((value - slcp.log_lik(&theta, &x)).abs() < 1e-12);
            for i in 0..5 {
                let at = |h: f64| {
                    let mut t = theta;
                    t[i] += h;
                    slcp.log_lik(&t, &x)
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((grad[i] - slope).abs() < 1e-6 * (1.0 + slope.abs()), "{i}: {} {slope}", grad[i]);
            }
            let flipped = [0.7, -2.9, 1.0, 0.9, 0.6];
            assert_eq!(value, slcp.log_lik(&flipped, &x));
        }
        assert_eq!(Slcp::seed().log_lik(&[0.0; 5], &x), f64::NEG_INFINITY);
    }

    #[test]
    fn simulations_have_the_moments() {
        let slcp = Slcp::seed();
        let theta = [1.0, -0.5, 1.2, -0.8, 0.5];
        let (mut sum, n) = ([0.0; 5], 4000);
        for i in 0..n {
            let mut x = [0.0; 8];
            slcp.simulate(&theta, Key::new(i), &mut x);
            let s = scatter(&slcp.moments(&theta), &x);
            sum.iter_mut().zip(s).for_each(|(a, b)| *a += b / (4.0 * n as f64));
        }
        let m = slcp.moments(&theta);
        // Standard errors: σ/√(4 n) for the means, about √2 σ²/√(4 n) for the second moments.
        let se = 1.0 / (4.0 * n as f64).sqrt();
        for (got, want, scale) in [
            (sum[0], 0.0, m.cov[0].sqrt()),
            (sum[1], 0.0, m.cov[2].sqrt()),
            (sum[2], m.cov[0], 1.42 * m.cov[0]),
            (sum[3], m.cov[1], 1.42 * (m.cov[0] * m.cov[2]).sqrt()),
            (sum[4], m.cov[2], 1.42 * m.cov[2]),
        ] {
            assert!((got - want).abs() < 4.0 * se * scale, "{got} {want}");
        }
    }
}
