//! What the user sees while a run goes on: a bar on a terminal, a line now and then elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Seconds between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Progress over outer steps, on stderr.
///
/// On a terminal it is one line redrawn in place; in a pipe, a log file or with `TERM=dumb` it is a
/// plain line for the first and the last update and at most every 5 s between. The remaining time
/// comes from the steps of this process only, so it is right after a resume.
pub struct Progress {
    pace: Pace,
    began: Instant,
    last_line: Option<Instant>,
    output: Output,
}

enum Output {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    /// Progress towards `total` outer steps, of which `start` are done already.
    pub fn new(total: u64, start: u64) -> Self {
        let bar = ProgressBar::new(total);
        // Not `is_terminal`: indicatif also hides the bar with TERM=dumb.
        let output = if bar.is_hidden() { Output::Lines } else { Output::Bar(bar) };
        if let Output::Bar(bar) = &output {
            let style = ProgressStyle::with_template("{elapsed_precise} {bar:24} {pos}/{len}  {msg}");
            bar.set_style(style.expect("the template is valid"));
            bar.set_position(start);
        }
        Self::with_output(total, start, output)
    }

    /// Shows nothing but [`Self::println`]: for tests and for all ranks but the first.
    pub fn silent(total: u64, start: u64) -> Self {
        Self::with_output(total, start, Output::Silent)
    }

    fn with_output(total: u64, start: u64, output: Output) -> Self {
        Progress { pace: Pace { start, total }, began: Instant::now(), last_line: None, output }
    }

    /// `step` outer steps are done. `inner_steps_per_second`: recent speed over all lanes.
    pub fn update(&mut self, step: u64, inner_steps_per_second: f64, meta_loss: f64) {
        self.update_named(step, inner_steps_per_second, ("meta-loss", meta_loss));
    }

    /// [`Self::update`] with a loss of another name.
    pub fn update_named(&mut self, step: u64, inner_steps_per_second: f64, (name, loss): (&str, f64)) {
        self.status(step, || {
            let speed = short_number(inner_steps_per_second);
            format!("{speed} inner steps/s  {name} {loss:.4}")
        });
    }

    /// `step` of all steps are done; `message` is shown beside the remaining time.
    pub fn status(&mut self, step: u64, message: impl FnOnce() -> String) {
        let status = || {
            let eta = self.pace.eta(step, self.began.elapsed()).map_or("?".into(), short_time);
            format!("eta {eta}  {}", message())
        };
        match &self.output {
            Output::Bar(bar) => {
                bar.set_position(step);
                bar.set_message(status());
            }
            Output::Lines => {
                let due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
                if due || step >= self.pace.total {
                    eprintln!("{step}/{}  {}", self.pace.total, status());
                    self.last_line = Some(Instant::now());
                }
            }
            Output::Silent => {}
        }
    }

    /// Prints a line on stderr, above the bar if there is one.
    pub fn println(&self, line: impl AsRef<str>) {
        match &self.output {
            Output::Bar(bar) => bar.println(line),
            Output::Lines | Output::Silent => eprintln!("{}", line.as_ref()),
        }
    }

    /// Ends the display; the bar's last state stays visible.
    pub fn finish(self) {
        if let Output::Bar(bar) = self.output {
            bar.abandon();
        }
    }
}

/// How fast this process goes.
struct Pace {
    start: u64,
    total: u64,
}

impl Pace {
    /// Time left after `elapsed`; unknown before the first step of this process.
    fn eta(&self, step: u64, elapsed: Duration) -> Option<Duration> {
        let done = step.saturating_sub(self.start);
        let left = self.total.saturating_sub(step);
        if done == 0 && left > 0 {
            return None;
        }
        Duration::try_from_secs_f64(elapsed.as_secs_f64() * left as f64 / done.max(1) as f64).ok()
    }
}

/// `42s`, `3m12s`, `2h05m`, `3d04h`.
fn short_time(t: Duration) -> String {
    let s = t.as_secs_f64().round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86400, s / 3600 % 24),
    }
}

/// Three digits with a unit: `950`, `12.7k`, `3.80M`.
fn short_number(x: f64) -> String {
    let (y, unit) = match x.abs() {
        a if a >= 999.5e6 => (x / 1e9, "G"),
        a if a >= 999.5e3 => (x / 1e6, "M"),
        a if a >= 999.5 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    let digits = match y.abs() {
        a if a >= 99.95 || unit.is_empty() => 0,
        a if a >= 9.995 => 1,
        _ => 2,
    };
    format!("{y:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remaining_time_counts_only_this_process() {
        let resumed = Pace { start: 900, total: 1000 };
        let s = Duration::from_secs;
        assert_eq!(resumed.eta(900, s(1)), None);
        assert_eq!(resumed.eta(910, s(20)), Some(s(180)));
        assert_eq!(resumed.eta(1000, s(200)), Some(s(0)));
        assert_eq!(Pace { start: 0, total: 0 }.eta(0, s(5)), Some(s(0)));
        assert_eq!(Pace { start: 10, total: 5 }.eta(10, s(5)), Some(s(0)));
    }

    #[test]
    fn times_and_numbers_are_short() {
        let time = |s| short_time(Duration::from_secs_f64(s));
        assert_eq!([time(0.4), time(59.7), time(192.0)], ["0s", "1m00s", "3m12s"]);
        assert_eq!([time(7500.0), time(273_600.0)], ["2h05m", "3d04h"]);
        let numbers = [0.0, 950.4, 999.7, 12_700.0, 999_600.0, 3_804_000.0, 2e9].map(short_number);
        assert_eq!(numbers, ["0", "950", "1.00k", "12.7k", "1.00M", "3.80M", "2.00G"]);
        assert_eq!([f64::NAN, f64::INFINITY].map(short_number), ["NaN", "infG"]);
    }

    const CHILD: &str = "OUTERLOOP_TEST_PROGRESS_CHILD";

    /// The child of the test below: does nothing in an ordinary run.
    #[test]
    fn child_reports() {
        if std::env::var_os(CHILD).is_some() {
            let mut progress = Progress::new(1000, 900);
            for step in 901..=1000 {
                progress.update(step, 12_700.0, f64::NAN);
            }
            progress.println("saved");
            progress.finish();
        }
    }

    #[test]
    fn a_pipe_gets_the_first_line_the_last_and_messages() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "progress::tests::child_reports"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8(child.stderr).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("901/1000  eta "), "{text}");
        assert!(lines[0].ends_with("12.7k inner steps/s  meta-loss NaN"), "{text}");
        assert_eq!(lines[lines.len() - 2], "1000/1000  eta 0s  12.7k inner steps/s  meta-loss NaN");
        assert_eq!(lines[lines.len() - 1], "saved");
        assert!(lines.len() < 50, "{text}");
    }
}
