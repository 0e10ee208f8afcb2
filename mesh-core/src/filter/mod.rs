//! HTTP filters: what happens to a request on its way, decided (gRFC A39).
//!
//! Stage: between the route and the cluster on clients, between the connection and the application on
//! servers. A listener's filters are merged with what virtual host, route and cluster say when the
//! snapshot is compiled ([`FilterTable`], [`compile`]); a route without filters has none to look at.
//! [`Run`] takes one request through them without I/O: who drives it waits, answers and authorises as
//! it says. What filters count outlives snapshots ([`FilterStates`]).

mod bucket;
mod concurrency;
mod cors;
mod ext_authz;
mod ext_authz_http;
mod fault;
mod header_mutation;
mod key_refresh;
mod merge;
mod rate_limit;
mod run;
mod stateful_session;
mod states;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

pub use self::{
    bucket::AtomicBucket,
    concurrency::{ConcurrencyController, ConcurrencyPermit},
    ext_authz::{
        Allowed, CHECK_PATH, Caller, CheckRequest, CheckVerdict, CheckedBody, Denied,
        EXT_AUTHZ_NAMESPACE, EditAction, ExternalCheck, HeaderEdit, Need,
    },
    ext_authz_http::{HttpAnswer, check_head, verdict_of_http},
    key_refresh::{
        JWKS_KEPT_MAX, JWKS_PREFETCH_AHEAD, KeyRefresh, Standing, UNKNOWN_KEY_FETCH_INTERVAL,
        UNKNOWN_KEY_FETCHES_MAX,
    },
    merge::{Level, Merged, merge},
    rate_limit::{Limited, RateLimiter},
    run::{BufferLimit, Passed, Run, Step},
    stateful_session::Session,
    states::FilterStates,
    table::{FilterTable, RouteFilters, RouteSessions, compile},
};
use self::{cors::Cors, fault::FaultInjector, header_mutation::HeaderMutations};
use crate::{
    authz::Authorizer,
    config::{JwtAuthn, RateLimit},
    route::RequestView,
};

/// Filters in order, ready for requests. Never empty.
pub type Filters = Arc<[Filter]>;

/// A filter, ready for requests.
#[derive(Debug)]
pub struct Filter {
    /// Its name in the listener.
    pub name: Arc<str>,
    pub(crate) kind: FilterKind,
}

#[derive(Debug)]
pub(crate) enum FilterKind {
    Authorize(Authorizer),
    Authenticate(Arc<JwtAuthn>),
    Check(ExternalCheck),
    Fault(FaultInjector),
    RateLimit {
        limiter: Arc<RateLimiter>,
        rate_limits: Arc<[RateLimit]>,
    },
    Concurrency(Arc<ConcurrencyController>),
    Cors(Cors),
    HeaderMutation(HeaderMutations),
    Buffer(u32),
}

impl Filter {
    /// The service that its requests wait for; `None` when they wait for nobody.
    pub fn check(&self) -> Option<&ExternalCheck> {
        match &self.kind {
            FilterKind::Check(check) => Some(check),
            _ => None,
        }
    }
}

/// What filters see of a request.
#[derive(Clone, Copy, Debug)]
pub struct FilterRequest<'r> {
    /// Its head.
    pub view: RequestView<'r>,
    /// Name of its route; empty on servers.
    pub route: &'r str,
    /// Name of its cluster; empty on servers.
    pub cluster: &'r str,
    /// The caller's address.
    pub remote: Option<std::net::IpAddr>,
    /// The caller's name, which its certificate proves.
    pub peer: Option<&'r str>,
}

/// What a filter did with a request; counters and spans say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterAction {
    /// A fault delayed it.
    Delayed,
    /// A fault ended it.
    Aborted,
    /// It was over its rate limit and refused.
    RateLimited,
    /// It was over its rate limit and passed, as the limit is not enforced.
    OverLimit,
    /// There were too many at a time.
    ConcurrencyLimited,
    /// It was a preflight request.
    Preflight,
    /// Its body is too long.
    TooLarge,
    /// Another service said that it may not pass.
    CheckDenied,
    /// The service could not be asked, or did not give a verdict, and it was refused.
    CheckFailed,
    /// The service could not be asked, and it passed.
    CheckFailedOpen,
    /// Its tokens are not believed.
    TokenRejected,
    /// Its token cannot be judged: the issuer's keys could not be fetched.
    KeysMissing,
}

impl FilterAction {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Delayed,
        Self::Aborted,
        Self::RateLimited,
        Self::OverLimit,
        Self::ConcurrencyLimited,
        Self::Preflight,
        Self::TooLarge,
        Self::CheckDenied,
        Self::CheckFailed,
        Self::CheckFailedOpen,
        Self::TokenRejected,
        Self::KeysMissing,
    ];

    /// The label of metrics and span events.
    pub fn label(self) -> &'static str {
        match self {
            Self::Delayed => "delayed",
            Self::Aborted => "aborted",
            Self::RateLimited => "rate_limited",
            Self::OverLimit => "over_limit",
            Self::ConcurrencyLimited => "concurrency_limited",
            Self::Preflight => "preflight",
            Self::TooLarge => "too_large",
            Self::CheckDenied => "check_denied",
            Self::CheckFailed => "check_failed",
            Self::CheckFailedOpen => "check_failed_open",
            Self::TokenRejected => "token_rejected",
            Self::KeysMissing => "keys_missing",
        }
    }
}

/// A filter's answer, in place of the application's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What HTTP callers see.
    pub status: StatusCode,
    /// What gRPC callers see; `None`: what the status is mapped to.
    pub grpc_status: Option<u32>,
    /// Body, or gRPC message.
    pub body: &'static str,
    /// More headers.
    pub headers: HeaderMap,
}

impl Answer {
    pub(crate) fn new(status: StatusCode, body: &'static str) -> Self {
        Self {
            status,
            grpc_status: None,
            body,
            headers: HeaderMap::new(),
        }
    }
}

/// A declared status; decoders let none pass that is not one.
pub(crate) fn status_of(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
