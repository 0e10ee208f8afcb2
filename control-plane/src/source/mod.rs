//! Where intent comes from.
//!
//! A source publishes all objects whenever one changes. The last good version of an object stays
//! when a newer one cannot be read, and the finding says so.

mod fields;
mod file;
mod parse;
mod schema;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
mod urgent;

pub use file::{FileSource, load_folder};
pub use parse::load_text;
pub(crate) use urgent::loses_endpoints;

use crate::{diagnostic::Diagnostic, model::ObjectSet};

/// What a source holds.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Objects that can be used.
    pub objects: ObjectSet,
    /// What was found while reading.
    pub diagnostics: Vec<Diagnostic>,
}
