//! Where intent comes from.
//!
//! A source publishes all objects whenever one changes. The last good version of an object stays
//! when a newer one cannot be read, and the finding says so; it is kept on disk, so that a restart
//! does not lose it.

mod closed;
#[cfg(test)]
mod closed_tests;
mod fields;
mod file;
mod last_good;
#[cfg(test)]
mod last_good_tests;
mod parse;
mod schema;
#[cfg(test)]
mod table_examples;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
mod urgent;

pub use file::{FileSource, load_folder};
pub use last_good::LastGood;
pub use parse::load_text;
pub(crate) use urgent::{loses_endpoints, loses_members};

use crate::{diagnostic::Diagnostic, model::ObjectSet};

/// What a source holds.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Objects that can be used.
    pub objects: ObjectSet,
    /// What was found while reading.
    pub diagnostics: Vec<Diagnostic>,
}
