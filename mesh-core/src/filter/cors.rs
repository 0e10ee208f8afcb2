//! Cross-origin requests (Envoy `CorsPolicy`; Fetch standard).
//!
//! As in Envoy each setting is the most specific level's that has one. A preflight request of an origin
//! that is allowed is answered here; one of another origin goes on to the application unless
//! `forward_not_matching_preflights` is false, and gets no header that allows anything.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        ORIGIN,
    },
};

use super::{Answer, FilterRequest};
use crate::{config::CorsPolicy, rng::Rng};

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// Policies, the most specific first.
#[derive(Debug)]
pub(crate) struct Cors(Box<[Arc<CorsPolicy>]>);

/// What follows for a request.
pub(super) enum CorsDecision {
    /// Nothing.
    Ignored,
    /// Its response gets these headers.
    Response(HeaderMap),
    /// It is answered.
    Preflight(Answer),
}

impl Cors {
    /// `None` without a policy.
    pub(super) fn new(most_specific_first: Vec<Arc<CorsPolicy>>) -> Option<Self> {
        (!most_specific_first.is_empty()).then(|| Self(most_specific_first.into()))
    }

    pub(super) fn decide(&self, request: &FilterRequest<'_>, rng: &mut impl Rng) -> CorsDecision {
        let enabled = self.0.first().and_then(|policy| policy.enabled);
        if enabled.is_some_and(|share| !share.contains(rng.next_u64())) {
            return CorsDecision::Ignored;
        }
        let headers = request.view.headers;
        let Some(origin) = headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else {
            return CorsDecision::Ignored;
        };
        let is_allowed = self.allows(origin);
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let asked = asked.filter(|method| !method.is_empty());
        match asked {
            Some(method) if *request.view.method == Method::OPTIONS => {
                let forwards = self.flag(|policy| policy.forward_not_matching_preflights);
                if !is_allowed && forwards.unwrap_or(true) {
                    return CorsDecision::Ignored;
                }
                CorsDecision::Preflight(self.preflight(
                    headers,
                    is_allowed.then_some(origin),
                    method,
                ))
            }
            _ if is_allowed => CorsDecision::Response(self.response(origin)),
            _ => CorsDecision::Ignored,
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let origin = origin.to_str().unwrap_or_default();
        let allowed = self.0.iter().map(|policy| &policy.allow_origins);
        let allowed = allowed.into_iter().find(|origins| !origins.is_empty());
        allowed.is_some_and(|origins| {
            origins
                .iter()
                .any(|allowed| allowed.is_match("*") || allowed.is_match(origin))
        })
    }

    fn flag(&self, field: impl Fn(&CorsPolicy) -> Option<bool>) -> Option<bool> {
        self.0.iter().find_map(|policy| field(policy))
    }

    fn text(&self, field: impl Fn(&CorsPolicy) -> &str) -> Option<&str> {
        let texts = self.0.iter().map(|policy| field(policy));
        texts.into_iter().find(|text| !text.is_empty())
    }

    fn preflight(
        &self,
        request: &HeaderMap,
        origin: Option<&HeaderValue>,
        method: &HeaderValue,
    ) -> Answer {
        let mut answer = Answer::new(StatusCode::OK, "");
        let headers = &mut answer.headers;
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        if self.flag(|policy| policy.allow_credentials) == Some(true) {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let methods = self.text(|policy| &policy.allow_methods);
        insert(headers, ACCESS_CONTROL_ALLOW_METHODS, methods, Some(method));
        let asked = request.get(ACCESS_CONTROL_REQUEST_HEADERS);
        let allowed = self.text(|policy| &policy.allow_headers);
        insert(headers, ACCESS_CONTROL_ALLOW_HEADERS, allowed, asked);
        let max_age = self.text(|policy| &policy.max_age);
        insert(headers, ACCESS_CONTROL_MAX_AGE, max_age, None);
        let asks_private = request.get(REQUEST_PRIVATE_NETWORK);
        if self.flag(|policy| policy.allow_private_network_access) == Some(true)
            && asks_private.is_some_and(|value| value == TRUE)
        {
            headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
        }
        answer
    }

    fn response(&self, origin: &HeaderValue) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.flag(|policy| policy.allow_credentials) == Some(true) {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let exposed = self.text(|policy| &policy.expose_headers);
        insert(&mut headers, ACCESS_CONTROL_EXPOSE_HEADERS, exposed, None);
        headers
    }
}

const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Inserts what is configured, or what was asked for where that is `*`.
fn insert(
    headers: &mut HeaderMap,
    name: HeaderName,
    configured: Option<&str>,
    asked: Option<&HeaderValue>,
) {
    let value = match (configured, asked) {
        (Some("*"), Some(asked)) => Some(asked.clone()),
        (Some(text), _) => HeaderValue::from_str(text).ok(),
        (None, _) => None,
    };
    if let Some(value) = value {
        headers.insert(name, value);
    }
}
