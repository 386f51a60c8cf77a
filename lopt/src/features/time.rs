//! The step number as features: `tanh(t/c − 1)` at eleven time scales, the same for every parameter.

/// The time scales c, in steps.
pub const SCALES: [f64; COUNT] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5];

/// Number of features.
pub const COUNT: usize = 11;

/// The features before update number `step` (0 for the first). Values in (-1, 1).
pub fn features(step: u64) -> [f64; COUNT] {
    SCALES.map(|c| (step as f64 / c - 1.0).tanh())
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
