//! A report as one HTML page: style and pictures inside, no scripts, nothing loaded from elsewhere.

mod text;

pub use text::{escape, number};
pub(crate) use text::{percent, percent_1, seconds, source, table, with_interval};

use crate::benchmark::Receipt;
use crate::plot::Plot;
use outerloop_core::{atomic::write_atomic, Result};
use std::path::Path;

const CSS: &str = include_str!("page.css");

/// A page that grows from top to bottom. All text is HTML: what comes from elsewhere passes through [`escape`].
///
/// ```
/// use outerloop_outer::benchmark::Receipt;
/// use outerloop_outer::page::{number, Page};
/// let mut page = Page::new("Estimators", "Three of them, at one theta.");
/// page.section("Variance", "Of one estimate.");
/// page.table(&["estimator", "variance"], &[vec!["PES".into(), number(0.25)]]);
/// page.receipt(&Receipt::new().with("seed", "0"), &[]);
/// assert!(page.html().contains("<td>0.250</td>"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    html: String,
}

impl Page {
    /// A page with a title and what is to be known before the first section.
    pub fn new(title: &str, lead: &str) -> Self {
        let html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{CSS}</style></head>\n<body><main>\n<h1>{title}</h1>\n\
             <p class=\"lead\">{lead}</p>\n"
        );
        Page { html }
    }

    /// Anything.
    pub fn push(&mut self, html: impl AsRef<str>) {
        self.html.push_str(html.as_ref());
    }

    /// A section's title and its first paragraph.
    pub fn section(&mut self, title: &str, text: &str) {
        self.push(format!("<h2>{title}</h2>\n<p>{text}</p>\n"));
    }

    /// A table; the first column is aligned to the left.
    pub fn table<S: AsRef<str>>(&mut self, header: &[S], rows: &[Vec<String>]) {
        let header: Vec<String> = header.iter().map(|h| h.as_ref().to_string()).collect();
        self.push(table(&header, rows));
    }

    /// Where the numbers of a part stand.
    pub fn source(&mut self, text: &str) {
        self.push(source(text));
    }

    /// Pictures with captions, side by side as far as there is room.
    ///
    /// # Errors
    /// As for [`Plot::svg`].
    pub fn pictures(&mut self, pictures: &[(&str, &Plot)]) -> Result<()> {
        self.push("<div class=\"grid\">\n");
        for (caption, plot) in pictures {
            self.push(figure(caption, &plot.svg()?));
        }
        self.push("</div>\n");
        Ok(())
    }

    /// What is needed to repeat everything; `more`: rows of name and value beside those of the receipt.
    pub fn receipt(&mut self, receipt: &Receipt, more: &[[String; 2]]) {
        let code = |text: &str| format!("<code>{}</code>", escape(text));
        let platform = format!("{}, {}", receipt.platform, receipt.processor);
        let mut rows = vec![
            vec!["outerloop".to_string(), escape(&receipt.version)],
            vec!["command".into(), code(&receipt.command)],
            vec!["platform".into(), escape(&platform)],
        ];
        rows.extend(receipt.inputs.iter().map(|(name, value)| vec![escape(name), code(value)]));
        rows.extend(more.iter().map(|[name, value]| vec![escape(name), code(value)]));
        self.table(&["receipt", ""], &rows);
    }

    /// The whole page.
    pub fn html(&self) -> String {
        format!("{}</main></body></html>\n", self.html)
    }

    /// Writes the page atomically.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path, self.html().as_bytes())
    }
}

/// A picture with its caption; empty for none.
pub(crate) fn figure(caption: &str, svg: &str) -> String {
    format!("<figure><figcaption>{caption}</figcaption>{svg}</figure>\n")
}
