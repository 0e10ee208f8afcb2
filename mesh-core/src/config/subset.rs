//! Subsets of a cluster's endpoints by their metadata (Envoy `LbSubsetConfig`).

use std::collections::BTreeMap;

/// Metadata that load balancing looks at: `filter_metadata["envoy.lb"]` of endpoints, and what a route
/// asks for (`RouteAction.metadata_match`).
pub type LbMetadata = BTreeMap<String, MetadataValue>;

/// A value of [`LbMetadata`], as JSON with sorted keys: equal values have equal text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MetadataValue(String);

impl MetadataValue {
    /// A text.
    pub fn text(value: &str) -> Self {
        Self(quote(value))
    }

    /// A value by its canonical JSON.
    pub fn from_json(json: impl Into<String>) -> Self {
        Self(json.into())
    }

    /// Its canonical JSON.
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

impl From<&str> for MetadataValue {
    fn from(value: &str) -> Self {
        Self::text(value)
    }
}

/// `value` as a JSON string.
fn quote(value: &str) -> String {
    let mut json = String::with_capacity(value.len() + 2);
    json.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if (c as u32) < 0x20 => json.push_str(&format!("\\u{:04x}", c as u32)),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

/// How endpoints are grouped into subsets, and what happens to a request that none matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subsets {
    /// The keys by which there are subsets: one for each combination of their values.
    pub selectors: Vec<SubsetSelector>,
    /// What a request gets that no subset matches, unless its selector says. Default: no endpoint.
    pub fallback: SubsetFallback,
    /// The metadata of the endpoints that [`SubsetFallback::DefaultSubset`] uses.
    pub default_subset: LbMetadata,
    /// Whether a subset without a usable endpoint gives its requests to any. Default `false`.
    pub panic_mode_any: bool,
}

/// Keys whose values make subsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubsetSelector {
    /// The keys; a request belongs to this selector when it asks for exactly these.
    pub keys: Vec<String>,
    /// What a request of this selector gets when no subset matches. Default none: that of
    /// [`Subsets::fallback`].
    pub fallback: Option<SubsetFallback>,
    /// The keys that are left for [`SubsetFallback::KeysSubset`]: fewer than
    /// [`keys`](Self::keys).
    pub fallback_keys: Vec<String>,
}

/// What a request gets that no subset matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubsetFallback {
    /// No endpoint: it fails.
    #[default]
    NoFallback,
    /// Any endpoint.
    AnyEndpoint,
    /// One of [`Subsets::default_subset`].
    DefaultSubset,
    /// That of the subset by fewer keys ([`SubsetSelector::fallback_keys`]).
    KeysSubset,
}
