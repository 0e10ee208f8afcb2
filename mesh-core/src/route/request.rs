//! What a lookup sees of a request, and whether a route's conditions hold for it.

use std::borrow::Cow;

use http::{HeaderMap, Method, Uri};

use crate::{
    config::{RouteMatch, joined},
    rng::Rng,
};

/// What a lookup sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'r> {
    /// Method.
    pub method: &'r Method,
    /// Scheme, path and query.
    pub uri: &'r Uri,
    /// Path without query, which is that of `uri`.
    pub path: &'r str,
    /// Authority or host header.
    pub authority: &'r str,
    /// Headers.
    pub headers: &'r HeaderMap,
}

impl<'r> RequestView<'r> {
    /// A view of these.
    pub fn new(
        method: &'r Method,
        uri: &'r Uri,
        authority: &'r str,
        headers: &'r HeaderMap,
    ) -> Self {
        Self {
            method,
            uri,
            path: uri.path(),
            authority,
            headers,
        }
    }

    /// `http` or `https`; `http` when the request does not say.
    pub fn scheme(&self) -> &'r str {
        self.uri.scheme_str().unwrap_or("http")
    }

    /// What follows the first `?`; `None` without one.
    pub fn query(&self) -> Option<&'r str> {
        self.uri.query()
    }

    /// The joined value of a header or pseudo-header; `:path` has its query. Headers that end in
    /// `-bin` are not visible (gRFC A28).
    pub fn header(&self, name: &str) -> Option<Cow<'r, str>> {
        match name {
            ":method" => Some(Cow::Borrowed(self.method.as_str())),
            ":scheme" => Some(Cow::Borrowed(self.scheme())),
            ":path" => Some(Cow::Borrowed(match self.uri.path_and_query() {
                Some(both) => both.as_str(),
                None => self.path,
            })),
            ":authority" | "host" => Some(Cow::Borrowed(self.authority)),
            name if name.ends_with("-bin") => None,
            name => joined(self.headers, name),
        }
    }
}

/// Whether all parts of `matcher` match besides its path. A share of the traffic is drawn last.
pub(super) fn conditions_hold(
    matcher: &RouteMatch,
    request: &RequestView<'_>,
    rng: &mut impl Rng,
) -> bool {
    matcher
        .headers
        .iter()
        .all(|header| header.is_match(request.header(&header.name).as_deref()))
        && matcher
            .query_parameters
            .iter()
            .all(|parameter| parameter.is_match(request.query()))
        && matcher
            .fraction
            .is_none_or(|fraction| fraction.contains(rng.next_u64()))
}
