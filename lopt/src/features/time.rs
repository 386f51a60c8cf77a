//! The step number as features, the same for every parameter: `tanh(t/c − 1)` at eleven time scales, or
//! `tanh(10 (t/T − a))` at nine points of a run of T steps.

/// The time scales c, in steps.
pub const SCALES: [f64; COUNT] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5];

/// Number of features.
pub const COUNT: usize = 11;

/// The features before update number `step` (0 for the first). Values in (-1, 1).
pub fn features(step: u64) -> [f64; COUNT] {
    SCALES.map(|c| (step as f64 / c - 1.0).tanh())
}

/// The points a of a run at which the features of [`of_fraction`] change sign, as a fraction of all steps.
pub const FRACTIONS: [f64; 9] = [0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1];

/// The features when this fraction of a run is done. Values in (-1, 1).
/// Reference: VeLO, Metz et al. 2022, arXiv:2211.09760.
pub fn of_fraction(done: f64) -> [f64; FRACTIONS.len()] {
    FRACTIONS.map(|a| (10.0 * (done - a)).tanh())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_scale_is_where_its_feature_crosses_zero() {
        assert_eq!(super::features(0), [(-1.0f64).tanh(); 11]);
        for (i, c) in super::SCALES.iter().enumerate() {
            let f = super::features(*c as u64);
            assert_eq!(f[i], 0.0);
            assert!(f[..i].iter().all(|x| *x > 0.0) && f[i + 1..].iter().all(|x| *x < 0.0));
        }
    }
}
