//! Changes of headers by a filter (Envoy `HeaderMutation`).

use crate::config::HeaderChanges;

/// Changes, one after the other: each sees what those before it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMutation {
    /// The request's headers.
    pub request: Vec<HeaderChanges>,
    /// The response's headers.
    pub response: Vec<HeaderChanges>,
    /// Whether the more specific level's changes are made last, and so win
    /// (`most_specific_header_mutations_wins` of the listener's filter).
    pub most_specific_wins: bool,
}
