//! Which of several matches goes first.
//!
//! As Gateway API says: the exact path, the longest prefix, the method, the most headers, the most
//! query parameters; then the oldest route, the first by `NAMESPACE/NAME`, the first rule. For gRPC
//! the longest service, the longest method, the most headers. A regular expression, whose place is
//! left open there, stands between the exact path and the prefixes, as a prefix `/` would hide it.

use std::cmp::Reverse;

use crate::model::Object;

/// How specific a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PathClass {
    /// A prefix, with its length; a gRPC method of any service.
    Prefix,
    /// A regular expression.
    Regex,
    /// A gRPC service, or a method of one.
    Service,
    /// An exact path.
    Exact,
}

/// How specific a match is; what is more specific is greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Specificity {
    pub(super) path: (PathClass, usize, usize),
    pub(super) has_method: bool,
    pub(super) headers: usize,
    pub(super) query_parameters: usize,
}

/// What goes first is less.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    specificity: Reverse<Specificity>,
    /// Whether nobody knows when it was made, and when.
    age: (bool, String),
    name: String,
    /// Rule and match.
    place: (usize, usize),
}

impl Rank {
    pub(super) fn new(of: &Specificity, object: &Object, place: (usize, usize)) -> Self {
        let made = object.metadata.creation_timestamp.clone();
        Self {
            specificity: Reverse(of.clone()),
            age: (made.is_none(), made.unwrap_or_default()),
            name: format!("{}/{}", object.key.namespace, object.key.name),
            place,
        }
    }
}
