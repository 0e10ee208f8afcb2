//! Where a server's redirect leads, when it is followed for the caller.
//!
//! The request is changed as Envoy's router does, and looked up again among the routes of its own
//! virtual host. Whatever does not hold leaves the redirect to the caller.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONTENT_LENGTH, HOST, LOCATION},
    uri::{Authority, Scheme},
};

use super::{RequestView, RouteTable, virtual_host};
use crate::{
    config::{InternalRedirectPolicy, RedirectPredicate},
    rng::Rng,
};

/// Tells where the request went first (Envoy).
pub const ORIGINAL_URL: HeaderName = HeaderName::from_static("x-envoy-original-url");

/// The redirects that a request has followed.
#[derive(Clone, Debug, Default)]
pub struct FollowedRedirects {
    count: u32,
    /// From which route to which, where a predicate asks for it.
    previous: Vec<[Arc<str>; 2]>,
}

impl RouteTable {
    /// Makes `request`, which was sent along the route `from`, the one that its answer redirects to,
    /// if `policy` allows that; otherwise it stays as it is. A 303 makes it a `GET` without a body.
    /// `rng` draws as the look-up of the new request will.
    pub fn follow<B>(
        &self,
        policy: &InternalRedirectPolicy,
        from: &Arc<str>,
        followed: &mut FollowedRedirects,
        request: &mut Request<B>,
        (status, answer): (StatusCode, &HeaderMap),
        rng: &mut impl Rng,
    ) -> bool {
        if followed.count >= policy.max_redirects || !policy.codes.contains(&status.as_u16()) {
            return false;
        }
        let Some((target, authority)) = target(answer) else {
            return false;
        };
        let is_https = target.scheme() == Some(&Scheme::HTTPS);
        if is_https && !policy.allow_cross_scheme || !self.serves(authority.as_str()) {
            return false;
        }
        let mut headers = request.headers().clone();
        copy_headers(&policy.response_headers_to_copy, answer, &mut headers);
        let mut method = request.method().clone();
        if status == StatusCode::SEE_OTHER && !matches!(method, Method::GET | Method::HEAD) {
            method = Method::GET;
            headers.remove(CONTENT_LENGTH);
        }
        headers.remove(HOST);
        match original_url(request.uri()) {
            Some(url) => headers.insert(ORIGINAL_URL, url),
            None => return false,
        };
        let view = RequestView::new(&method, &target, authority.as_str(), &headers);
        let Some((_, route)) = self.lookup(&view, rng) else {
            return false;
        };
        for predicate in &policy.predicates {
            let holds = match predicate {
                RedirectPredicate::PreviousRoutes => followed.leads(from, &route.name),
                RedirectPredicate::AllowListedRoutes(names) => {
                    names.iter().any(|name| **name == *route.name)
                }
                // The caller's own request is plaintext.
                RedirectPredicate::SafeCrossScheme => !is_https,
            };
            if !holds {
                return false;
            }
        }
        followed.count += 1;
        *request.headers_mut() = headers;
        *request.method_mut() = method;
        *request.uri_mut() = target;
        true
    }

    /// Whether requests to `authority` are those of this table.
    fn serves(&self, authority: &str) -> bool {
        let hosts = self.hosts.as_deref();
        let host = hosts.and_then(|config| virtual_host(config, authority));
        host.is_some_and(|host| host.name == self.virtual_host())
    }
}

impl FollowedRedirects {
    /// Notes that route `from` leads to route `to`; false when it did before.
    fn leads(&mut self, from: &Arc<str>, to: &Arc<str>) -> bool {
        let step = [from, to];
        let is_new = self.previous.iter().all(|held| held.each_ref() != step);
        if is_new {
            self.previous.push(step.map(Arc::clone));
        }
        is_new
    }
}

/// The address of an answer, with scheme and authority. What follows `#` is the caller's alone.
fn target(answer: &HeaderMap) -> Option<(Uri, Authority)> {
    let location = answer.get(LOCATION)?.to_str().ok()?;
    let uri: Uri = location.parse().ok()?;
    let is_http = [Scheme::HTTP, Scheme::HTTPS]
        .iter()
        .any(|scheme| uri.scheme() == Some(scheme));
    let authority = uri
        .authority()
        .filter(|authority| is_http && !authority.as_str().contains('@'));
    let authority = authority.cloned()?;
    Some((uri, authority))
}

/// Puts headers of the answer in the place of the request's.
fn copy_headers(names: &[HeaderName], answer: &HeaderMap, headers: &mut HeaderMap) {
    for name in names {
        headers.remove(name);
        for value in answer.get_all(name) {
            headers.append(name, value.clone());
        }
    }
}

fn original_url(uri: &Uri) -> Option<HeaderValue> {
    let authority = uri.authority()?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    HeaderValue::from_str(&format!("http://{authority}{path}")).ok()
}
