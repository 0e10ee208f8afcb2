//! Looking for a header among few.
//!
//! A request or a response has a handful of headers: comparing names in turn is a third of what
//! hashing one costs.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Maps up to this size are read in turn.
const FEW: usize = 8;

/// The first value of `name`.
#[inline]
pub(crate) fn find<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    match headers.len() {
        0 => None,
        1..=FEW => {
            let mut headers = headers.iter();
            headers.find_map(|(held, value)| (held == name).then_some(value))
        }
        _ => headers.get(name),
    }
}
