//! The normal distribution, and Kolmogorov's statistic.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `erfc x = 2/√π ∫ₓ^∞ e^{−t²} dt`, within 1e-14 relative for x up to 26.
pub fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    let value = if a < 1.5 {
        1.0 - erf_series(a)
    } else if a < 27.3 {
        // e^{−a²}/√π · 1/(a + ½/(a + 1/(a + 3/2/(a + ...)))), from the end.
        let mut tail = a;
        for k in (1..=20 + (250.0 / (a * a)) as u32).rev() {
            tail = a + 0.5 * f64::from(k) / tail;
        }
        (-a * a).exp() / (PI.sqrt() * tail)
    } else {
        0.0
    };
    if x < 0.0 {
        2.0 - value
    } else {
        value
    }
}

/// `erf a = 2/√π e^{−a²} Σₙ 2ⁿ a^{2n+1}/(2n+1)!!`: all terms are positive.
fn erf_series(a: f64) -> f64 {
    let (mut term, mut sum) = (a, a);
    for n in 1..200 {
        term *= 2.0 * a * a / f64::from(2 * n + 1);
        sum += term;
        if term < 1e-17 * sum {
            break;
        }
    }
    2.0 / PI.sqrt() * (-a * a).exp() * sum
}

/// `Φ(x)`: the mass of the standard normal distribution below `x`.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x * FRAC_1_SQRT_2)
}

/// `φ(x)`: its density.
pub fn normal_pdf(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// `P(Dₙ ≥ d)` of Kolmogorov's two-sided statistic of `n` numbers, exact, by powers of a matrix.
///
/// Reference: Marsaglia, Tsang, Wang 2003, doi:10.18637/jss.v008.i18. Cost `O((n d)³ ln n)`.
pub fn kolmogorov_p_value(d: f64, n: usize) -> f64 {
    if d <= 0.0 {
        return 1.0;
    }
    if d >= 1.0 {
        return 0.0;
    }
    let nd = n as f64 * d;
    let k = nd.floor() as usize + 1;
    let (m, h) = (2 * k - 1, k as f64 - nd);
    let mut a = vec![0.0; m * m];
    for i in 0..m {
        for j in 0..m {
            a[i * m + j] = if i + 1 >= j { 1.0 } else { 0.0 };
        }
    }
    for i in 0..m {
        a[i * m] -= h.powi(i as i32 + 1);
        a[(m - 1) * m + i] -= h.powi((m - i) as i32);
    }
    a[(m - 1) * m] += if 2.0 * h > 1.0 { (2.0 * h - 1.0).powi(m as i32) } else { 0.0 };
    for i in 0..m {
        for j in 0..m {
            if i + 1 > j {
                for g in 1..=(i + 1 - j) {
                    a[i * m + j] /= g as f64;
                }
            }
        }
    }
    let (q, mut exponent) = power(&a, m, n);
    let mut s = q[(k - 1) * m + k - 1];
    for i in 1..=n {
        s *= i as f64 / n as f64;
        if s < 1e-140 {
            s *= 1e140;
            exponent -= 140;
        }
    }
    1.0 - s * 10f64.powi(exponent)
}

/// `aⁿ` and the power of ten that was taken out.
fn power(a: &[f64], m: usize, n: usize) -> (Vec<f64>, i32) {
    let product = |x: &[f64], y: &[f64]| {
        let mut z = vec![0.0; m * m];
        for i in 0..m {
            for k in 0..m {
                let c = x[i * m + k];
                for j in 0..m {
                    z[i * m + j] += c * y[k * m + j];
                }
            }
        }
        z
    };
    if n == 1 {
        return (a.to_vec(), 0);
    }
    let (half, e) = power(a, m, n / 2);
    let (mut v, mut e) = (product(&half, &half), 2 * e);
    if n % 2 == 1 {
        v = product(a, &v);
    }
    if v[(m / 2) * m + m / 2] > 1e140 {
        v.iter_mut().for_each(|x| *x *= 1e-140);
        e += 140;
    }
    (v, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_has_its_values() {
        // Abramowitz, Stegun, tables 7.1 and 7.3.
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (3.0, 2.209_049_699_858_544e-5),
            (5.0, 1.537_459_794_428_035e-12),
        ] {
            assert!((erfc(x) - want).abs() < 2e-14 * want.max(1e-12) + 1e-16, "{x}: {}", erfc(x));
            assert!((erfc(-x) - (2.0 - want)).abs() < 1e-15 * 4.0);
        }
        assert!((erfc(1.4999999) - erfc(1.5)).abs() < 1e-7);
        assert_eq!(normal_cdf(0.0), 0.5);
    }

    #[test]
    fn kolmogorov_has_its_values() {
        // The reference's example: P(D₁₀ < 0.274) = 0.6284796154565043.
        assert!((1.0 - kolmogorov_p_value(0.274, 10) - 0.628_479_615_456_504_3).abs() < 1e-12);
        // n = 1: P(D < d) = 2 d − 1 for d ≥ ½.
        assert!((kolmogorov_p_value(0.75, 1) - 0.5).abs() < 1e-12);
    }
}
