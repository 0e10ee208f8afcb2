//! A request on its way out.
//!
//! Stages 8 to 12. Passed by reference from the decision to the wire: the head of a request is a
//! quarter of a kilobyte, which each stage would copy if it took and gave it.

use http::{
    Request, header,
    request::Parts,
    uri::{self, Authority, PathAndQuery, Scheme, Uri},
};

use mesh_core::shard::Sharded;

use crate::{Body, headers::find};

/// A request for an endpoint, with the authority that it goes to when its URI names none.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// `None` once the request was taken. Beside the body and not in one tuple with it, which would
    /// be made somewhere else and moved here.
    head: Option<Parts>,
    body: Body,
    /// What was dialled, for a URI that names none; a copy for each shard, because a clone of one
    /// counts its references where all threads do.
    dialled: Option<&'a Sharded<Authority>>,
}

impl<'a> Outgoing<'a> {
    /// `request`, whose URI or `host` header names its authority.
    #[inline]
    pub fn new(request: Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        Self::from_parts(head, body, None)
    }

    #[inline]
    pub(crate) fn from_parts(
        head: Parts,
        body: Body,
        dialled: Option<&'a Sharded<Authority>>,
    ) -> Self {
        Self {
            head: Some(head),
            body,
            dialled,
        }
    }

    fn dialled(&self) -> Option<&'a Authority> {
        self.dialled.map(Sharded::local)
    }

    /// The head.
    ///
    /// # Panics
    /// When the request was taken.
    #[inline]
    pub fn head(&self) -> &Parts {
        match &self.head {
            Some(head) => head,
            None => taken(),
        }
    }

    /// The head, to be changed.
    ///
    /// # Panics
    /// When the request was taken.
    #[inline]
    pub fn head_mut(&mut self) -> &mut Parts {
        match &mut self.head {
            Some(head) => head,
            None => taken(),
        }
    }

    pub(crate) fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    /// The authority: that of the URI, the one that was dialled, or that of the `host` header.
    pub fn authority(&self) -> Option<&str> {
        let head = self.head();
        match head.uri.authority().or_else(|| self.dialled()) {
            Some(authority) => Some(authority.as_str()),
            None => find(&head.headers, &header::HOST)?.to_str().ok(),
        }
    }

    /// The same for somebody who knows the name that was dialled.
    #[inline]
    pub(crate) fn authority_or<'n>(&'n self, name: &'n str) -> &'n str {
        match (self.head().uri.authority(), self.dialled) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(_)) => name,
            (None, None) => self.authority().unwrap_or(name),
        }
    }

    /// Takes the request, as it is.
    ///
    /// # Panics
    /// When it was taken before.
    #[inline]
    pub fn take(&mut self) -> Request<Body> {
        let (head, body) = self.take_parts();
        Request::from_parts(head, body)
    }

    #[inline]
    pub(crate) fn take_parts(&mut self) -> (Parts, Body) {
        let Some(head) = self.head.take() else {
            taken()
        };
        (head, std::mem::take(&mut self.body))
    }

    /// Takes the request with its authority in the URI, to be kept.
    pub(crate) fn take_absolute(&mut self) -> Request<Body> {
        self.make_absolute(Scheme::HTTP, || None);
        self.take()
    }

    /// Puts scheme and authority into the URI, as HTTP/2 wants them. The authority is that of the
    /// URI, the one that was dialled, that of the `host` header, or the `other`.
    pub(crate) fn make_absolute(
        &mut self,
        scheme: Scheme,
        other: impl FnOnce() -> Option<Authority>,
    ) {
        let dialled = self.dialled();
        let head = self.head_mut();
        if head.uri.authority().is_some() && head.uri.scheme() == Some(&scheme) {
            return;
        }
        let held = std::mem::take(&mut head.uri).into_parts();
        let host = || {
            find(&head.headers, &header::HOST)?
                .to_str()
                .ok()?
                .parse()
                .ok()
        };
        let mut parts = uri::Parts::default();
        parts.authority = held
            .authority
            .or_else(|| dialled.cloned())
            .or_else(host)
            .or_else(other);
        parts.scheme = parts.authority.as_ref().map(|_| scheme);
        let path = held.path_and_query;
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        head.uri = Uri::from_parts(parts).unwrap_or_default();
    }

    /// Sends the request to another authority.
    pub(crate) fn set_authority(&mut self, authority: Authority) {
        let head = self.head_mut();
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.authority = Some(authority);
        parts.scheme.get_or_insert(Scheme::HTTP);
        parts
            .path_and_query
            .get_or_insert_with(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from_parts(parts).unwrap_or_default();
        head.headers.remove(header::HOST);
    }

    /// Puts the path alone into the URI and the authority into `host`, as HTTP/1.1 wants them.
    pub(crate) fn make_origin(&mut self) {
        let dialled = self.dialled();
        let head = self.head_mut();
        let held = std::mem::take(&mut head.uri).into_parts();
        if let Some(authority) = held.authority.as_ref().or(dialled)
            && let Ok(host) = http::HeaderValue::from_str(authority.as_str())
        {
            head.headers.insert(header::HOST, host);
        }
        let path = held.path_and_query;
        head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
}

#[cold]
fn taken() -> ! {
    panic!("the request was taken before")
}
