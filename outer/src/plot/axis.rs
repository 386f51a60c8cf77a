//! One axis: its range, its ticks and their labels.

use super::Scale;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::{Range, RangeInclusive};

/// Most labelled ticks.
const TICKS: usize = 9;

#[derive(Clone, Debug)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// Labelled ticks.
    major: Vec<f64>,
    /// Major and unlabelled ticks.
    all: Vec<f64>,
    /// The difference of neighbouring major ticks, where it is the same for all.
    step: Option<f64>,
}

impl Axis {
    /// From `low` to `high`, which have a place on the scale and differ.
    pub fn exact(scale: Scale, low: f64, high: f64) -> Self {
        let even = |(step, ticks): (f64, Vec<f64>)| (ticks.clone(), ticks, Some(step));
        let powers = match scale {
            Scale::Linear => None,
            Scale::Log => log_ticks(low, high),
            Scale::SymLog(threshold) => symlog_ticks(threshold, low, high),
        };
        // Too few powers of ten, as within a decade: even steps.
        let (major, all, step) =
            powers.map_or_else(|| even(linear_ticks(low, high)), |(major, all)| (major, all, None));
        Axis { scale, low, high, major, all, step }
    }

    /// Around all values, with a margin of 3 %; a unit range where there are none.
    pub fn around(scale: Scale, values: &[f64]) -> Self {
        let places = || values.iter().map(|x| scale.place(*x));
        let low = places().reduce(f64::min).unwrap_or(0.0);
        let high = places().reduce(f64::max).unwrap_or(1.0);
        let margin = match 0.03 * (high - low) {
            // One value only: what is near it, in the units of the number itself.
            m if m <= 1e-9 * low.abs().max(high.abs()) => {
                if scale != Scale::Linear || low == 0.0 {
                    0.5
                } else {
                    0.5 * low.abs()
                }
            }
            m => m,
        };
        // At most a decade: 3 % of 600 decades would overflow.
        let margin = if scale == Scale::Linear { margin } else { margin.min(1.0) };
        Self::exact(scale, scale.value(low - margin), scale.value(high + margin))
    }

    pub fn low(&self) -> f64 {
        self.low
    }

    /// Where a value lies: 0 at the low end, 1 at the high end.
    fn place(&self, x: f64) -> f64 {
        let [x, low, high] = [x, self.low, self.high].map(|v| self.scale.place(v));
        (x - low) / (high - low)
    }

    /// The text of a tick: enough digits to tell it from its neighbours, powers of ten for very large
    /// and very small numbers.
    pub fn label(&self, x: f64) -> String {
        // Equal steps share their decimals and their power of ten.
        let (gap, size) = match self.step {
            Some(step) => (step, self.low.abs().max(self.high.abs())),
            None => (x.abs(), x.abs()),
        };
        let x = if x.abs() < 1e-9 * gap { 0.0 } else { x };
        let minus = |text: String| text.replace('-', "−");
        if x == 0.0 {
            return "0".into();
        }
        if (1e-3..1e5).contains(&size) {
            let digits = decimals(gap);
            return minus(format!("{x:.digits$}"));
        }
        let exponent = (size * (1.0 + 1e-12)).log10().floor();
        let unit = 10f64.powf(exponent);
        let digits = decimals(gap / unit);
        let power = superscript(exponent as i32);
        match format!("{:.digits$}", x / unit).as_str() {
            "1" => format!("10{power}"),
            "-1" => format!("−10{power}"),
            mantissa => format!("{}·10{power}", minus(mantissa.into())),
        }
    }
}

/// Decimals that a multiple of `gap` needs; `gap` is a small integer times a power of ten.
fn decimals(gap: f64) -> usize {
    (0..15)
        .find(|d| {
            let scaled = gap * 10f64.powi(*d);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        })
        .unwrap_or(15) as usize
}

fn superscript(n: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let digit = |c: char| c.to_digit(10).map_or('⁻', |d| DIGITS[d as usize]);
    n.to_string().chars().map(digit).collect()
}

/// A step of 1, 2 or 5 times a power of ten, and its multiples.
fn linear_ticks(low: f64, high: f64) -> (f64, Vec<f64>) {
    let rough = (high - low) / (TICKS - 2) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil();
    let count = ((high / step).floor() - first).max(0.0) as usize;
    (step, (0..=count.min(2 * TICKS)).map(|i| (first + i as f64) * step).collect())
}

/// Powers of ten from `low` to `high`, as exponents.
fn powers(low: f64, high: f64) -> RangeInclusive<i32> {
    // Rounding puts a power of ten itself a little beside its exponent.
    (low.log10() - 1e-12).ceil() as i32..=(high.log10() + 1e-12).floor() as i32
}

/// Every so many exponents, so that there are at most `most` of them.
fn every(exponents: RangeInclusive<i32>, most: usize) -> Vec<f64> {
    let stride = exponents.clone().count().div_ceil(most).max(1) as i32;
    exponents.filter(|p| p % stride == 0).map(|p| 10f64.powi(p)).collect()
}

/// Labelled and all ticks: powers of ten, with 2 and 5 between them where there is room. `None` where
/// too few of them lie in the range.
fn log_ticks(low: f64, high: f64) -> Option<(Vec<f64>, Vec<f64>)> {
    let powers = powers(low, high);
    let inside = |mantissas: &[f64]| -> Vec<f64> {
        (powers.start() - 1..=*powers.end())
            .flat_map(|p| mantissas.iter().map(move |m| m * 10f64.powi(p)))
            .filter(|x| (low * (1.0 - 1e-12)..=high * (1.0 + 1e-12)).contains(x))
            .collect()
    };
    let fine = || inside(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    match powers.clone().count() {
        count if count > 6 => {
            let major = every(powers, TICKS);
            Some((major.clone(), major))
        }
        count if count >= 4 => Some((inside(&[1.0]), fine())),
        _ => {
            let coarse = inside(&[1.0, 2.0, 5.0]);
            (coarse.len() >= 4).then(|| (coarse, fine()))
        }
    }
}

/// Labelled and all ticks: 0, and powers of ten from the threshold on, on both sides. `None` where too few
/// of them lie in the range.
fn symlog_ticks(threshold: f64, low: f64, high: f64) -> Option<(Vec<f64>, Vec<f64>)> {
    let side = |from: f64, to: f64| match to >= threshold {
        true => every(powers(from.max(threshold), to), TICKS / 2),
        false => Vec::new(),
    };
    let below = side(-high, -low).into_iter().rev().map(|x| -x);
    let zero = (low <= 0.0 && 0.0 <= high).then_some(0.0);
    let major: Vec<f64> = below.chain(zero).chain(side(low, high)).collect();
    (major.len() >= 3).then(|| (major.clone(), major))
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, x: &f64) -> String {
        self.label(*x)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, x: &f64, (from, to): (i32, i32)) -> i32 {
        // Clamped so that no rounding leaves the plot; points far outside are cut before.
        from + (self.place(*x).clamp(-0.01, 1.01) * f64::from(to - from)).round() as i32
    }
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            self.all.clone()
        } else {
            self.major.clone()
        }
    }
    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, low: f64, high: f64) -> Vec<String> {
        let axis = Axis::exact(scale, low, high);
        axis.major.iter().map(|t| axis.label(*t)).collect()
    }

    #[test]
    fn linear_labels() {
        let l = |low, high| labels(Scale::Linear, low, high).join(" ");
        assert_eq!(l(0.0, 1.0), "0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(l(-1.0, 1.0), "−1.0 −0.5 0 0.5 1.0");
        assert_eq!(l(2.301, 2.309), "2.302 2.304 2.306 2.308");
        assert_eq!(l(0.0, 500.0), "0 100 200 300 400 500");
        assert_eq!(l(0.0, 3e6), "0 0.5·10⁶ 1.0·10⁶ 1.5·10⁶ 2.0·10⁶ 2.5·10⁶ 3.0·10⁶");
        assert_eq!(l(-2e-5, 0.0), "−2.0·10⁻⁵ −1.5·10⁻⁵ −1.0·10⁻⁵ −0.5·10⁻⁵ 0");
    }

    #[test]
    fn log_labels() {
        let l = |low, high| labels(Scale::Log, low, high).join(" ");
        assert_eq!(l(0.1, 10.0), "0.1 0.2 0.5 1 2 5 10");
        assert_eq!(l(1e-5, 1e1), "10⁻⁵ 10⁻⁴ 0.001 0.01 0.1 1 10");
        assert_eq!(l(0.31, 0.62), "0.35 0.40 0.45 0.50 0.55 0.60");
        assert_eq!(l(1e-30, 1.0), "10⁻²⁸ 10⁻²⁴ 10⁻²⁰ 10⁻¹⁶ 10⁻¹² 10⁻⁸ 10⁻⁴ 1");
    }

    #[test]
    fn symlog_labels() {
        let l = |c, low, high| labels(Scale::SymLog(c), low, high).join(" ");
        assert_eq!(l(1.0, -20.0, 1e6), "−10 −1 0 1 100 10000 10⁶");
        assert_eq!(l(1e5, -1e7, 2e6), "−10⁷ −10⁶ −10⁵ 0 10⁵ 10⁶");
        assert_eq!(l(1e-3, 0.0, 1.0), "0 0.001 0.01 0.1 1");
        // Within the threshold it is a linear axis.
        assert_eq!(l(10.0, -1.0, 1.0), "−1.0 −0.5 0 0.5 1.0");
    }

    #[test]
    fn places_and_values_are_inverse_and_rise() {
        for scale in [Scale::Linear, Scale::SymLog(0.1), Scale::SymLog(1e-7)] {
            let values = [-1e300, -3.0, -0.1, -1e-8, 0.0, 1e-8, 0.05, 0.1, 7.0, 1e300];
            for v in values {
                assert!((scale.value(scale.place(v)) - v).abs() <= 1e-11 * v.abs(), "{scale:?} {v}");
            }
            assert!(values.windows(2).all(|w| scale.place(w[0]) < scale.place(w[1])), "{scale:?}");
        }
    }

    #[test]
    fn all_decades_have_few_ticks() {
        for scale in [Scale::Log, Scale::SymLog(1e-300)] {
            for values in [[1e-5, 1e300], [1e-300, 1e300], [1e-300, 1e-290]] {
                let axis = Axis::around(scale, &values);
                assert!(axis.low.is_finite() && axis.high.is_finite(), "{axis:?}");
                assert!((3..=2 * TICKS).contains(&axis.major.len()) && axis.all.len() <= 60, "{axis:?}");
                let places = values.map(|v| axis.place(v));
                assert!(0.0 < places[0] && places[0] < places[1] && places[1] < 1.0, "{places:?}");
            }
        }
    }

    #[test]
    fn every_range_has_labels_and_they_differ() {
        for scale in [Scale::Linear, Scale::Log] {
            for low in [1e-300, 1e-9, 0.013, 0.9, 7.0, 123_456.0, 1e200] {
                for ratio in [1.001, 1.3, 2.0, 9.0, 11.0, 99.0, 1e4, 1e9, 1e30] {
                    let l = labels(scale, low, low * ratio);
                    assert!((2..=2 * TICKS).contains(&l.len()), "{scale:?} {low} {ratio}: {l:?}");
                    let distinct: std::collections::BTreeSet<_> = l.iter().collect();
                    assert_eq!(distinct.len(), l.len(), "{scale:?} {low} {ratio}: {l:?}");
                }
            }
        }
    }

    #[test]
    fn one_value_or_none_still_make_a_range() {
        for scale in [Scale::Linear, Scale::Log] {
            for values in [&[][..], &[3.0], &[1e-12, 1e-12], &[5e8]] {
                let axis = Axis::around(scale, values);
                assert!(axis.low < axis.high, "{axis:?}");
                assert!(values.iter().all(|v| axis.low < *v && *v < axis.high), "{axis:?}");
            }
        }
        let zero = Axis::around(Scale::Linear, &[0.0]);
        assert_eq!((zero.low, zero.high), (-0.5, 0.5));
    }
}
