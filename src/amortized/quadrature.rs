//! Integrals and special functions, for oracles.

use std::f64::consts::PI;

/// Nodes and weights of the Gauss-Legendre rule with `n` nodes on `[-1, 1]`.
pub fn gauss_legendre(n: usize) -> Vec<(f64, f64)> {
    (0..n)
        .map(|i| {
            let mut x = (PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
            let mut slope = 1.0;
            for _ in 0..100 {
                let (mut p, mut before) = (1.0, 0.0);
                for k in 0..n {
                    let k = k as f64;
                    (p, before) = (((2.0 * k + 1.0) * x * p - k * before) / (k + 1.0), p);
                }
                slope = n as f64 * (x * p - before) / (x * x - 1.0);
                let step = p / slope;
                x -= step;
                if step.abs() < 1e-15 {
                    break;
                }
            }
            (x, 2.0 / ((1.0 - x * x) * slope * slope))
        })
        .collect()
}

/// The integral of `f` over `[a, b]`, in pieces of length at most `piece` with 30 nodes each.
pub fn integrate(a: f64, b: f64, piece: f64, f: impl Fn(f64) -> f64) -> f64 {
    let pieces = ((b - a) / piece).ceil().max(1.0);
    let (rule, h) = (gauss_legendre(30), (b - a) / pieces);
    let part = |k: f64| {
        let middle = a + (k + 0.5) * h;
        rule.iter().map(|(x, w)| 0.5 * h * w * f(middle + 0.5 * h * x)).sum::<f64>()
    };
    (0..pieces as usize).map(|k| part(k as f64)).sum()
}

/// `E f(e)` of a standard normal `e`; `kinks`: places where `f` is not smooth.
pub fn normal_mean(kinks: &[f64], f: impl Fn(f64) -> f64) -> f64 {
    const END: f64 = 13.0;
    let mut cuts: Vec<f64> = kinks.iter().copied().filter(|k| k.abs() < END).chain([-END, END]).collect();
    cuts.sort_by(f64::total_cmp);
    let density = |e: f64| (-0.5 * e * e).exp() / (2.0 * PI).sqrt();
    cuts.windows(2).map(|c| integrate(c[0], c[1], 1.0, |e| density(e) * f(e))).sum()
}

/// The error function, within 1e-14.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 2.5 {
        // 1 − e^{−x²}/(x√π) · 1/(1 + 1/(2x²)/(1 + 2/(2x²)/(1 + ...)))
        let q = 0.5 / (x * x);
        let tail = (1..=120).rev().fold(1.0, |t, k| 1.0 + f64::from(k) * q / t);
        return (1.0 - (-x * x).exp() / (x.abs() * PI.sqrt() * tail)).copysign(x);
    }
    let (mut term, mut sum) = (x, x);
    for k in 1..100 {
        let k = f64::from(k);
        term *= -x * x / k;
        sum += term / (2.0 * k + 1.0);
    }
    sum * 2.0 / PI.sqrt()
}

/// The root of `f` between `a` and `b`, where its signs differ, by bisection.
pub fn bisect(mut a: f64, mut b: f64, f: impl Fn(f64) -> f64) -> f64 {
    let positive = f(a) > 0.0;
    for _ in 0..200 {
        let c = 0.5 * (a + b);
        if c == a || c == b {
            break;
        }
        if (f(c) > 0.0) == positive {
            a = c;
        } else {
            b = c;
        }
    }
    if f(a).abs() <= f(b).abs() {
        a
    } else {
        b
    }
}

/// The roots of `f` on `[a, b]` that change its sign or lie on the grid of `n` intervals.
pub fn roots(a: f64, b: f64, n: usize, f: impl Fn(f64) -> f64) -> Vec<f64> {
    let at = |i: usize| a + (b - a) * i as f64 / n as f64;
    let mut found = Vec::new();
    for i in 0..n {
        let (x, y) = (at(i), at(i + 1));
        if f(x) == 0.0 {
            found.push(x);
        } else if (f(x) > 0.0) != (f(y) > 0.0) && f(y) != 0.0 {
            found.push(bisect(x, y, &f));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrals_and_erf_are_exact() {
        assert!((integrate(0.0, 3.0, 1.0, |x| x * x) - 9.0).abs() < 1e-13);
        assert!((normal_mean(&[0.0], f64::abs) - (2.0 / PI).sqrt()).abs() < 1e-13);
        // erf(x) = 2/√π ∫₀ˣ e^{−t²} dt
        for x in [0.3f64, 1.0, 2.4, 2.6, 4.0, -1.3] {
            let integral = integrate(0.0, x.abs(), 0.5, |t| (-t * t).exp()) * 2.0 / PI.sqrt();
            assert!((erf(x) - f64::copysign(integral, x)).abs() < 1e-13, "{x}: {}", erf(x));
        }
    }

    #[test]
    fn roots_are_found() {
        let r = roots(-4.0, 4.0, 100, |x| x * x * x - x);
        assert!(
            r.iter().zip([-1.0f64, 0.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-12) && r.len() == 3,
            "{r:?}"
        );
    }
}
