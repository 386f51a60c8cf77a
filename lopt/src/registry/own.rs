//! Learned optimizers that a program adds to the registry.

use outerloop_core::{Error, LearnedOptimizer, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// Makes a learned optimizer of its hyperparameters, as they stand in its architecture's text.
pub type Make = fn(&Value) -> Result<Box<dyn LearnedOptimizer>>;

static OWN: RwLock<BTreeMap<String, Make>> = RwLock::new(BTreeMap::new());

/// Makes a class of the program's own known to [`learned`](super::learned) and
/// [`from_architecture`](super::from_architecture) in f32, so that its theta files open like all others.
///
/// ```
/// use outerloop_core::LearnedOptimizer;
/// use outerloop_lopt::{registry, LearnableSgd};
///
/// registry::register("my.Sgd", |_| Ok(Box::new(LearnableSgd::default())))?;
/// let mine = registry::learned::<f32>("my.Sgd", &serde_json::json!({}))?;
/// assert_eq!(mine.name(), LearnedOptimizer::<f32>::name(&LearnableSgd::default()));
/// assert!(registry::register("my.Sgd", |_| unreachable!()).is_err()); // known already
/// # Ok::<(), outerloop_core::Error>(())
/// ```
///
/// # Errors
/// If the class is known already, or its name holds a space, which ends the name in an architecture's text.
pub fn register(class: &str, make: Make) -> Result<()> {
    if class.is_empty() || class.contains(char::is_whitespace) {
        return Err(Error::invalid(format!("class `{class}`"), "expected a name without spaces"));
    }
    let mut own = OWN.write().unwrap_or_else(PoisonError::into_inner);
    if super::is_built_in(class) || own.contains_key(class) {
        return Err(Error::invalid(format!("class `{class}`"), "is registered already"));
    }
    own.insert(class.to_string(), make);
    Ok(())
}

/// The class of this name, if a program registered it.
pub(super) fn find(class: &str) -> Option<Make> {
    OWN.read().unwrap_or_else(PoisonError::into_inner).get(class).copied()
}
