//! The head of a request, kept so that it can be sent again.
//!
//! One allocation, where cloning a `HeaderMap` takes several: the map is made again only for an
//! attempt that follows a failed one.

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts};

use crate::Body;

/// A kept head.
pub(crate) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Box<[(HeaderName, HeaderValue)]>,
}

impl Head {
    pub(crate) fn of(head: &Parts) -> Self {
        let headers = &head.headers;
        let mut kept = Vec::with_capacity(headers.len());
        kept.extend(headers.iter().map(|(n, v)| (n.clone(), v.clone())));
        Self {
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
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
