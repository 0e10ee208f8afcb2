//! Changes of headers, declared (Envoy `request_headers_to_add`, `…_to_remove`; `HeaderValueOption`).

use http::HeaderName;

use super::{ValueCommand, ValuePart, ValueTemplate};

/// What changes on the way there and on the way back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    /// The request's headers.
    pub request: HeaderChanges,
    /// The response's headers.
    pub response: HeaderChanges,
}

impl HeaderMutations {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// What changes of one message's headers: first those that go, then those that come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Removed, all values.
    pub remove: Vec<HeaderName>,
    /// Added or replaced; every value is computed before any of them is written.
    pub add: Vec<HeaderValue>,
}

impl HeaderChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Whether a value is made from the request.
    pub fn reads_request(&self) -> bool {
        let mut parts = self.add.iter().flat_map(|header| header.value.parts());
        parts.any(|part| matches!(part, ValuePart::Command(ValueCommand::Request(_))))
    }
}

/// A header to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderValue {
    /// Its name; never a pseudo-header or `host`.
    pub name: HeaderName,
    /// Its value.
    pub value: ValueTemplate,
    /// What if there is such a header.
    pub action: AppendAction,
    /// Whether to add it when its value is empty. Default false.
    pub keep_empty: bool,
}

/// What if there is such a header already (`HeaderValueOption.append_action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppendAction {
    /// One more value.
    #[default]
    Append,
    /// Nothing happens.
    AddIfAbsent,
    /// The new value alone.
    Overwrite,
    /// The new value alone; nothing happens if there is none.
    OverwriteIfExists,
}
