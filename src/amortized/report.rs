//! What examples print: tables of rows, and means with their errors.

/// A table on stdout: a title, then names and values in two columns.
pub fn table(title: &str, rows: &[(String, String)]) {
    let width = rows.iter().map(|r| r.0.chars().count()).max().unwrap_or(0);
    println!("\n{title}");
    for (name, value) in rows {
        println!("  {name:<width$}  {value}");
    }
}

/// Mean and standard error; NaN for no numbers, and as the error of a single one.
pub fn mean(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (var / n).sqrt())
}

/// Mean and half the width of its 95 % interval by Student's t: for few runs far wider than two standard errors. NaN as
/// [`mean`] has it.
pub fn interval(x: &[f64]) -> (f64, f64) {
    // Quantiles at 97.5 % for 1, 2, ... degrees of freedom; from 30 on within 4 % of the normal's.
    const T: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
        2.045, 2.042,
    ];
    let (mean, error) = mean(x);
    let t = T.get(x.len().saturating_sub(2)).copied().unwrap_or(1.96);
    (mean, t * error)
}

/// The middle number of an odd count, the upper of the two middle ones of an even count; NaN for none.
pub fn median(x: &[f64]) -> f64 {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_medians() {
        assert_eq!(mean(&[1.0, 3.0]), (2.0, 1.0));
        // 2 +- t s/√n with s = 1, n = 3.
        let (m, half) = interval(&[1.0, 2.0, 3.0]);
        assert!(m == 2.0 && (half - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert!(interval(&[1.0]).1.is_nan() && (interval(&[0.0; 40]).1 == 0.0));
        assert!(mean(&[1.0]).1.is_nan() && mean(&[]).0.is_nan() && median(&[]).is_nan());
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 3.0));
    }
}
