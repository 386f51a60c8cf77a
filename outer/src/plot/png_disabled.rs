//! Without the feature `png`: SVG needs no font of ours, and there is no PNG.

use super::picture::Picture;
use outerloop_core::{Error, Result};

pub(super) fn register_font() -> Result<()> {
    Ok(())
}

pub(super) fn encode(_: &impl Picture) -> Result<Vec<u8>> {
    Err(Error::FeatureDisabled("png"))
}
