//! The texts of a request that rules compare.

use std::borrow::Cow;

use http::HeaderName;
use serde_json::Value;

use super::AuthzRequest;
use crate::config::{MetadataMatcher, joined};

/// A text of a request, or several.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Attribute {
    /// The caller's names; none without a certificate that is trusted.
    Name,
    /// The path, without its query.
    Path,
    /// What the caller asked for in its TLS handshake.
    ServerName,
    /// A header's joined value; none where it is missing.
    Header(HeaderKey),
    /// What filters found out: a text, or those in a list.
    Metadata(MetadataKey),
}

/// Where the value of a header comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum HeaderKey {
    Method,
    Path,
    Authority,
    Field(HeaderName),
    /// Never there.
    Hidden,
}

/// A place in what filters found out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct MetadataKey {
    filter: String,
    path: Vec<String>,
}

impl Attribute {
    /// Whether `test` holds for one of the values; the others after it are not asked.
    pub(super) fn any(
        &self,
        request: &AuthzRequest<'_>,
        mut test: impl FnMut(&str) -> bool,
    ) -> bool {
        match self {
            Self::Name if !request.authenticated => false,
            Self::Name => match request.principals {
                // A certificate without any name is compared as the empty text (gRFC A41).
                [] => test(""),
                names => names.iter().any(|name| test(name)),
            },
            Self::Path => test(request.path),
            Self::ServerName => test(request.server_name),
            Self::Header(key) => key.value(request).is_some_and(|value| test(&value)),
            Self::Metadata(key) => {
                let found = request
                    .metadata
                    .and_then(|metadata| metadata.at(&key.filter, &key.path));
                match found {
                    Some(Value::String(text)) => test(text),
                    Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).any(test),
                    _ => false,
                }
            }
        }
    }
}

impl HeaderKey {
    /// `te` is never visible (gRFC A41), `-bin` headers are seen in base64 as they are sent. Other
    /// pseudo-headers are refused when the configuration is decoded.
    pub(super) fn new(name: &str) -> Self {
        match name {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            "te" => Self::Hidden,
            name => HeaderName::from_bytes(name.as_bytes()).map_or(Self::Hidden, Self::Field),
        }
    }

    /// The joined value.
    pub(super) fn value<'r>(&self, request: &AuthzRequest<'r>) -> Option<Cow<'r, str>> {
        match self {
            Self::Method => Some(Cow::Borrowed(request.method)),
            Self::Path => Some(Cow::Borrowed(request.path)),
            Self::Authority => Some(Cow::Borrowed(request.authority)),
            Self::Field(name) => joined(request.headers, name),
            Self::Hidden => None,
        }
    }
}

impl From<&MetadataMatcher> for MetadataKey {
    fn from(matcher: &MetadataMatcher) -> Self {
        Self {
            filter: matcher.filter.clone(),
            path: matcher.path.clone(),
        }
    }
}
