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
        assert!(mean(&[1.0]).1.is_nan() && mean(&[]).0.is_nan() && median(&[]).is_nan());
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 3.0));
    }
}
