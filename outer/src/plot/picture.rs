//! What all pictures share: their formats and their files.

use super::png;
use outerloop_core::{atomic::write_atomic, Error, Result};
use plotters::prelude::DrawingBackend;
use std::path::Path;

/// Something of a known size that can be drawn on any backend.
pub(super) trait Picture {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);
    /// Draws itself.
    fn draw<B: DrawingBackend>(&self, backend: B) -> Result<()>;
}

/// Writes a picture atomically in the format that the path's extension names.
pub(super) fn save(picture: &impl Picture, path: &Path) -> Result<()> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let bytes = match extension.to_ascii_lowercase().as_str() {
        "svg" => svg(picture)?.into_bytes(),
        "png" => png::encode(picture)?,
        _ => {
            return Err(Error::Unknown {
                what: "picture format",
                got: extension.into(),
                allowed: vec!["svg".into(), "png".into()],
            })
        }
    };
    write_atomic(path, &bytes)
}

/// A picture as SVG text; it needs no script, style sheet or font file.
pub(super) fn svg(picture: &impl Picture) -> Result<String> {
    png::register_font()?;
    let mut svg = String::new();
    picture.draw(plotters::prelude::SVGBackend::with_string(&mut svg, picture.size()))?;
    Ok(svg)
}
