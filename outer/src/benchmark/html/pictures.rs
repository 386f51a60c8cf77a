//! The page's pictures with their legends.

use super::Page;
use crate::benchmark::contest::Sweep;
use crate::benchmark::scores::{MAX_TAU, TARGET_FRACTION};
use crate::page::{escape, figure, percent};
use outerloop_core::Result;

impl Page<'_> {
    fn legend(&self) -> String {
        let mut order: Vec<usize> = (0..self.report.contest.contestants.len()).collect();
        order.sort_by_key(|&i| self.charts.colors[i]);
        let all = order.into_iter().map(|i| format!("<span>{}</span>", self.labelled(i)));
        format!("<div class=\"legend\">{}</div>\n", all.collect::<Vec<_>>().join("\n"))
    }

    pub(super) fn pictures(&mut self) -> Result<()> {
        let legend = self.legend();
        if self.report.contest.tasks.len() > 1 {
            self.over_tasks(&legend)?;
        }
        self.section(
            "Learning curves",
            "Mean over seeds of the smoothed training loss, with the range of the seeds: the learned optimizers, \
             the reference and the best other one, each with its best variant.",
        );
        self.push(&legend);
        self.grid(|page, t| {
            let contestants = &page.report.contest.contestants;
            let names = page
                .charts
                .shown(t)
                .into_iter()
                .map(|i| escape(&contestants[i].variant_name(page.score(t, i).best)));
            let names = names.collect::<Vec<_>>().join(", ");
            Ok((format!("{}<small>{names}</small>", page.task(t)), page.charts.learning_curves(t)?))
        })?;
        self.page.source("curves.csv, rows (task, contestant): mean, low, high over step");

        // Without rates there is no axis.
        if self.report.contest.contestants.iter().all(|c| c.sweep != Sweep::LearningRate) {
            return Ok(());
        }
        self.section(
            "Sweeps",
            "Final training loss over the learning rate, mean over seeds. Flat lines: optimizers that are not swept \
             over rates. Where a line ends, a run failed or ended far above its start.",
        );
        self.push(&legend);
        self.grid(|page, t| Ok((page.task(t), page.charts.sweep(t)?)))?;
        self.page.source(
            "sweeps.csv, rows (task, contestant): train_loss over position; flat lines: scores.csv, train_loss",
        );
        Ok(())
    }

    /// What says something about several tasks only.
    fn over_tasks(&mut self, legend: &str) -> Result<()> {
        let text = format!(
            "One point per task, each optimizer's tasks in its own order. {} runs {} times the horizon: there lie \
             speed-ups of which only a lower bound is known.",
            self.reference(),
            self.report.contest.config.reference_factor
        );
        self.section("Speed-ups, sorted", &text);
        self.push(legend);
        self.wide(&self.charts.sorted_speedups()?);
        self.page.source("scores.csv, column speedup");

        let text = format!(
            "Fraction of tasks on which an optimizer reaches the target within a factor of the fastest one's steps. \
             Target: the loss of swept {} after {} of the horizon; a run that fails by the horizon reaches none. \
             The score in the table above is the mean height \
             from 1 to {MAX_TAU}.",
            self.reference(),
            percent(TARGET_FRACTION)
        );
        self.section("Performance profile", &text);
        self.push(legend);
        self.wide(&self.charts.performance_profiles()?);
        self.page.source("profiles.csv; steps in scores.csv, column steps_to_target");
        Ok(())
    }

    fn wide(&mut self, svg: &str) {
        let figure = figure("", svg);
        self.push(format!("<div class=\"wide\">{figure}</div>\n"));
    }

    /// One figure per task.
    fn grid(&mut self, draw: impl Fn(&Self, usize) -> Result<(String, String)>) -> Result<()> {
        self.push("<div class=\"grid\">\n");
        for t in 0..self.report.contest.tasks.len() {
            let (caption, svg) = draw(self, t)?;
            let figure = figure(&caption, &svg);
            self.push(figure);
        }
        self.push("</div>\n");
        Ok(())
    }
}
