//! The head of a request, kept so that it can be sent again.
//!
//! One allocation, where cloning a `HeaderMap` takes several: the map is made again only for an
//! attempt that follows a failed one.

use http::{
    HeaderName, HeaderValue, Method, Request, Uri, Version,
    uri::{self, Authority, PathAndQuery, Scheme},
};

use crate::Body;

/// A kept head.
pub(crate) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Box<[(HeaderName, HeaderValue)]>,
}

impl Head {
    pub(crate) fn of(request: &Request<Body>) -> Self {
        let headers = request.headers();
        let mut kept = Vec::with_capacity(headers.len());
        kept.extend(headers.iter().map(|(n, v)| (n.clone(), v.clone())));
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: kept.into(),
        }
    }

    /// The request again, without its extensions.
    pub(crate) fn request(&self, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        let headers = request.headers_mut();
        headers.reserve(self.headers.len());
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        request
    }
}

/// Puts scheme and authority into the URI of `request`; an authority that it names stays.
pub(crate) fn absolute(request: &mut Request<Body>, scheme: Scheme, authority: Option<&Authority>) {
    let held = std::mem::take(request.uri_mut()).into_parts();
    let mut parts = uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = held.authority.or_else(|| authority.cloned());
    let path = held.path_and_query;
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}
