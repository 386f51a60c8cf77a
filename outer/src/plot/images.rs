//! Grey images in rows and columns, with names: what a model draws, step by step.

use super::{draw, picture, picture::Picture};
use outerloop_core::{Error, Result};
use plotters::prelude::*;
use std::path::Path;

/// Which values are black and which are white.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Shades {
    /// Every image from its darkest to its brightest pixel. The default.
    #[default]
    PerImage,
    /// From the first value, black, to the second, white; what lies outside is black or white.
    Between(f32, f32),
}

/// Images beside each other, with the row's name before them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageRow {
    /// Text left of the images; may be empty.
    pub name: String,
    /// Pixels row by row, `[height, width]` each.
    pub images: Vec<Vec<f32>>,
}

impl ImageRow {
    /// A row of the images that lie one after the other in `pixels`, `[N, height · width]`.
    ///
    /// # Panics
    /// If an image has no pixels.
    pub fn new(name: impl Into<String>, pixels: &[f32], len: usize) -> Self {
        ImageRow { name: name.into(), images: pixels.chunks(len).map(<[f32]>::to_vec).collect() }
    }
}

/// Grey images of one size in rows and columns. Pixels that are no numbers are orange.
///
/// ```
/// use outerloop_outer::plot::{ImageGrid, ImageRow, Shades};
/// let ramp: Vec<f32> = (0..12).map(|i| i as f32 / 11.0).collect();
/// let grid = ImageGrid {
///     title: "ramps".into(),
///     shape: [2, 3],
///     columns: vec!["first".into(), "second".into()],
///     rows: vec![ImageRow::new("one row", &ramp, 6)],
///     shades: Shades::Between(0.0, 1.0),
///     ..ImageGrid::default()
/// };
/// # let dir = tempfile::tempdir().map_err(|e| outerloop_core::Error::io(".", e))?;
/// grid.save(dir.path().join("ramps.svg"))?;
/// # Ok::<(), outerloop_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ImageGrid {
    /// Text above the images; may be empty.
    pub title: String,
    /// Height and width of every image in its own pixels.
    pub shape: [usize; 2],
    /// Texts above the columns, from the left; there may be fewer than columns.
    pub columns: Vec<String>,
    /// From the top.
    pub rows: Vec<ImageRow>,
    /// Black and white; by default per image.
    pub shades: Shades,
    /// Length of a pixel's side on the screen; 6 by default.
    pub zoom: u32,
}

impl Default for ImageGrid {
    fn default() -> Self {
        ImageGrid {
            title: String::new(),
            shape: [1, 1],
            columns: Vec::new(),
            rows: Vec::new(),
            shades: Shades::PerImage,
            zoom: 6,
        }
    }
}

/// Screen pixels between images, and around all.
const GAP: u32 = 6;
/// Screen pixels of a line of text.
const LINE: u32 = 20;
/// Screen pixels that a letter takes at most.
const LETTER: u32 = 8;

impl ImageGrid {
    /// Draws the images and writes them atomically; the extension picks `svg` or `png`.
    ///
    /// # Errors
    /// An image with another number of pixels than `shape` says; no pixels; black at or above white; and those of
    /// [`super::Plot::save`] about formats and files.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        picture::save(self, path.as_ref())
    }

    /// The images as SVG text.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn svg(&self) -> Result<String> {
        picture::svg(self)
    }

    fn check(&self) -> Result<()> {
        let pixels = self.shape[0] * self.shape[1];
        if pixels == 0 || self.zoom == 0 {
            let why = format!("must be at least 1, got {:?} and zoom {}", self.shape, self.zoom);
            return Err(Error::invalid("image grid: height, width and zoom", why));
        }
        if let Shades::Between(black, white) = self.shades {
            if !(black.is_finite() && white.is_finite() && black < white) {
                let why = format!("expected black < white, got {black} and {white}");
                return Err(Error::invalid("image grid: shades", why));
            }
        }
        for (i, row) in self.rows.iter().enumerate() {
            if let Some(k) = row.images.iter().position(|image| image.len() != pixels) {
                let what = format!("image grid: pixels of image {k} in row {i}");
                return Err(Error::mismatch(what, pixels, row.images[k].len()));
            }
        }
        Ok(())
    }

    /// Where the first image begins.
    fn corner(&self) -> [u32; 2] {
        let longest = self.rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0) as u32;
        let names = if longest == 0 { 0 } else { LETTER * longest + GAP };
        let lines = u32::from(!self.title.is_empty()) + u32::from(!self.columns.is_empty());
        [GAP + names, GAP + LINE * lines]
    }
    /// Distance from one image to the next, across and down.
    fn pitch(&self) -> [u32; 2] {
        [self.shape[1], self.shape[0]].map(|n| n as u32 * self.zoom + GAP)
    }

    fn paint<B: DrawingBackend>(&self, root: &draw::Area<B>) -> draw::Painted<B> {
        root.fill(&WHITE)?;
        let ([left, top], [across, down]) = (self.corner(), self.pitch());
        let font = ("sans-serif", 14).into_font();
        let text = |s: &str, x: u32, y: u32| Text::new(s.to_string(), (x as i32, y as i32), font.clone());
        if !self.title.is_empty() {
            root.draw(&text(&self.title, left, GAP))?;
        }
        for (i, name) in self.columns.iter().enumerate() {
            root.draw(&text(name, left + across * i as u32, top - LINE + 2))?;
        }
        for (i, row) in self.rows.iter().enumerate() {
            let y = top + down * i as u32;
            root.draw(&text(&row.name, GAP, y + (down - GAP) / 2 - LINE / 2 + 2))?;
            for (k, image) in row.images.iter().enumerate() {
                self.paint_image(root, image, [left + across * k as u32, y])?;
            }
        }
        root.present()
    }

    fn paint_image<B: DrawingBackend>(
        &self,
        root: &draw::Area<B>,
        image: &[f32],
        [left, top]: [u32; 2],
    ) -> draw::Painted<B> {
        let (black, white) = match self.shades {
            Shades::Between(black, white) => (black, white),
            Shades::PerImage => {
                let finite = image.iter().copied().filter(|x| x.is_finite());
                finite.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)))
            }
        };
        let shade = |x: f32| {
            if x.is_nan() {
                return draw::color(1);
            }
            let grey = (255.0 * ((x - black) / (white - black).max(1e-9)).clamp(0.0, 1.0)).round() as u8;
            RGBColor(grey, grey, grey)
        };
        for (y, line) in image.chunks(self.shape[1]).enumerate() {
            let mut x = 0;
            // Neighbours of one shade are one rectangle.
            while x < line.len() {
                let here = shade(line[x]);
                let run = line[x..].iter().take_while(|p| shade(**p) == here).count();
                let corner = |x: usize, y: usize| {
                    ((left + self.zoom * x as u32) as i32, (top + self.zoom * y as u32) as i32)
                };
                root.draw(&Rectangle::new([corner(x, y), corner(x + run, y + 1)], here.filled()))?;
                x += run;
            }
        }
        Ok(())
    }
}

impl Picture for ImageGrid {
    fn size(&self) -> (u32, u32) {
        let ([left, top], [across, down]) = (self.corner(), self.pitch());
        let columns = self.rows.iter().map(|r| r.images.len()).max().unwrap_or(0).max(self.columns.len());
        let title = LETTER * self.title.chars().count() as u32;
        (left + (across * columns as u32).max(title), top + down * self.rows.len() as u32)
    }
    fn draw<B: DrawingBackend>(&self, backend: B) -> Result<()> {
        self.check()?;
        self.paint(&backend.into_drawing_area()).map_err(|e| Error::invalid("image grid", e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> ImageGrid {
        let pixels = [0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 2.0, -1.0, 0.25, 0.25, f32::NAN, 1.0];
        ImageGrid {
            title: "a & b".into(),
            shape: [2, 3],
            columns: vec!["data".into()],
            rows: vec![ImageRow::new("digit", &pixels, 6)],
            shades: Shades::Between(0.0, 1.0),
            ..ImageGrid::default()
        }
    }

    /// Colours of the rectangles behind the background.
    fn fills(svg: &str) -> Vec<String> {
        let rects = svg.lines().filter(|l| l.starts_with("<rect")).skip(1);
        rects.filter_map(|l| l.split("fill=\"").nth(1)?.split('"').next().map(String::from)).collect()
    }

    #[test]
    fn pixels_have_their_shades_and_neighbours_are_joined() {
        let svg = grid().svg().unwrap();
        let want = [
            "#000000", "#FFFFFF", "#808080", "#FFFFFF", "#000000", "#404040", "#404040", "#D55E00", "#FFFFFF",
        ];
        assert_eq!(fills(&svg), want);
        assert!(svg.contains("a &amp; b") && svg.contains("digit") && svg.contains("data"));
        // Between its own darkest and brightest: -1 and 2 in the second image.
        let own = ImageGrid { shades: Shades::PerImage, ..grid() }.svg().unwrap();
        assert_eq!(fills(&own)[..5], ["#000000", "#FFFFFF", "#808080", "#FFFFFF", "#000000"]);
        assert_eq!(fills(&own)[5], "#6A6A6A");
    }

    #[test]
    fn all_is_inside_the_frame() {
        let g = grid();
        let (width, height) = g.size();
        for rect in g.svg().unwrap().lines().filter(|l| l.starts_with("<rect")) {
            let number = |name: &str| {
                let text = rect.split(&format!(" {name}=\"")).nth(1).and_then(|r| r.split('"').next());
                text.and_then(|t| t.parse::<u32>().ok()).unwrap()
            };
            assert!(number("x") + number("width") <= width && number("y") + number("height") <= height);
        }
    }

    #[test]
    fn images_of_another_size_are_refused() {
        let error = |g: ImageGrid| g.svg().unwrap_err().to_string();
        let long = error(ImageGrid { shape: [3, 3], ..grid() });
        assert!(long.contains("image 0 in row 0") && long.contains("expected 9, got 6"), "{long}");
        assert!(error(ImageGrid { shape: [0, 3], ..grid() }).contains("must be at least 1, got [0, 3]"));
        assert!(error(ImageGrid { zoom: 0, ..grid() }).contains("zoom 0"));
        let flat = ImageGrid { shades: Shades::Between(1.0, 1.0), ..grid() };
        assert!(error(flat).contains("expected black < white, got 1 and 1"));
    }
}
