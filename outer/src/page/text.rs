//! Numbers and tables as HTML.

use crate::benchmark::statistics::Interval;

/// Text as HTML: what has a meaning there is replaced.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Three digits; `∞` as such, `–` for NaN.
pub fn number(x: f64) -> String {
    match x {
        x if x.is_nan() => "–".into(),
        x if x.is_infinite() => "∞".into(),
        0.0 => "0".into(),
        x if !(1e-3..1e5).contains(&x.abs()) => format!("{x:.1e}"),
        x => {
            // Of what will be shown: 0.9996 is 1.00.
            let shown = x.abs() * (1.0 + 5e-4);
            let digits = (2 - shown.log10().floor() as i32).clamp(0, 4) as usize;
            format!("{x:.digits$}")
        }
    }
}

/// `85 %`
pub(crate) fn percent(x: f64) -> String {
    format!("{:.0} %", 100.0 * x)
}

/// With one digit behind the point, for error rates.
pub(crate) fn percent_1(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

/// A number with its interval behind it.
pub(crate) fn with_interval(i: Interval, text: fn(f64) -> String) -> String {
    format!("{} <small>({} to {})</small>", text(i.value), text(i.low), text(i.high))
}

/// `12 µs`
pub(crate) fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{} µs", number(1e6 * s)),
        s => format!("{} ms", number(1e3 * s)),
    }
}

/// Where the numbers of a part stand.
pub(crate) fn source(text: &str) -> String {
    format!("<p class=\"source\">Numbers: {text}.</p>\n")
}

/// Header and rows; cells are HTML.
pub(crate) fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, row: &[String]| -> String {
        row.iter().map(|c| format!("<{tag}>{c}</{tag}>")).collect::<String>()
    };
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr>{}</tr></thead><tbody>\n{body}</tbody></table></div>\n",
        cells("th", header)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.012345, 0.9996, 1.2345, 12.345, 123.45, 1234.5, 0.0, 1.5e-7, 2e6].map(number);
        assert_eq!(shown, ["0.0123", "1.00", "1.23", "12.3", "123", "1234", "0", "1.5e-7", "2.0e6"]);
        assert_eq!([f64::INFINITY, f64::NAN].map(number), ["∞", "–"]);
        assert_eq!([seconds(1.25e-5), seconds(0.0025)], ["12.5 µs", "2.50 ms"]);
        assert_eq!(percent(0.846), "85 %");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
    }
}
