//! What few calls have, in one room that the others do not pay for.
//!
//! A route that asks for more than a cluster is decided once, before the first attempt. What outlives
//! that is kept here: what each pick and attempt needs, and what the response gets.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Response, header::SET_COOKIE, uri::Authority};
use mesh_core::{
    ClusterName,
    config::{AttemptCounts, HedgePolicy, Mirror},
    filter::{ConcurrencyPermit, Session},
    retry::EXPECTED_TIMEOUT,
    route::{RequestView, ResponseChanges},
    snapshot::Snapshot,
};
use tokio::time::Instant;

use crate::{body::Activity, call::Redirects, cluster::Affinity, head::Head, outgoing::Outgoing};

/// Tells which attempt this is, counted from 1 (Envoy).
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// What few calls have.
#[derive(Default)]
pub(crate) struct CallExtras {
    /// The route's name, when it is to be reported.
    pub(crate) route: Option<Arc<str>>,
    /// What decides about the endpoint besides the policy, the same for all attempts.
    pub(crate) affinity: Affinity,
    /// What keeps the caller on its endpoint.
    pub(crate) session: Option<Box<Session>>,
    /// The authority that was dialled, where each attempt goes to the hostname of its endpoint.
    pub(crate) dialled: Option<Authority>,
    /// Copies to send, drawn already.
    pub(crate) mirrors: Vec<Mirror>,
    /// Attempts side by side.
    pub(crate) hedge: Option<HedgePolicy>,
    /// Limits of streams without data.
    pub(crate) idle: Option<Idle>,
    /// Changes of the response's headers.
    pub(crate) response: Option<ResponseRules>,
    /// Who is told how often the request was tried.
    pub(crate) attempt_counts: AttemptCounts,
    /// Of filters that limit the calls at a time; a call that is read to its end is a sample.
    pub(crate) permits: Vec<ConcurrencyPermit>,
    /// A cookie that the response sets.
    pub(crate) cookie: Option<HeaderValue>,
    /// What servers are told of how long they are waited for.
    pub(crate) expected: Option<ExpectedTimeout>,
    /// Redirects that are followed.
    pub(crate) redirects: Option<Box<Redirects>>,
}

/// How long an attempt is waited for, as its server is told (`x-envoy-expected-rq-timeout-ms`).
pub(crate) struct ExpectedTimeout {
    /// Limit of each attempt; `None` where those that take longer go on.
    pub(crate) per_try: Option<Duration>,
    /// Limit over all attempts.
    pub(crate) all: Option<Duration>,
    pub(crate) began: Instant,
}

impl ExpectedTimeout {
    /// What attempt number `attempt` is told; `None` when there is no limit.
    fn of(&self, attempt: u32) -> Option<HeaderValue> {
        let left = self.all.map(|all| match attempt {
            1 => all,
            // Zero would be for ever.
            _ => all
                .saturating_sub(self.began.elapsed())
                .max(Duration::from_millis(1)),
        });
        let expected = self.per_try.into_iter().chain(left).min()?;
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
        Some(HeaderValue::from(millis))
    }
}

/// How long nothing may be sent or received.
pub(crate) struct Idle {
    pub(crate) activity: Arc<Activity>,
    /// Then the call ends (`idle_timeout`).
    pub(crate) stream: Option<Duration>,
    /// Then the attempt ends (`per_try_idle_timeout`).
    pub(crate) attempt: Option<Duration>,
}

impl Idle {
    /// Watches the request's body.
    pub(crate) fn watch(outgoing: &mut Outgoing<'_>) -> Self {
        let activity = Activity::begin(Instant::now());
        outgoing.body_mut().watch(&activity);
        Self {
            activity,
            stream: None,
            attempt: None,
        }
    }

    /// When the call ends if nothing happens; an attempt whose response has begun is all of it.
    pub(crate) fn stream_at(&self, is_responding: bool) -> Option<Instant> {
        let attempt = self.attempt.filter(|_| is_responding);
        let limit = self.stream.into_iter().chain(attempt).min()?;
        self.activity.last().checked_add(limit)
    }
}

/// How the response's headers change.
pub(crate) struct ResponseRules {
    pub(crate) changes: ResponseChanges,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The request as it was sent, where values are made from it.
    pub(crate) request: Option<Head>,
}

impl CallExtras {
    /// Whether the call's attempts run where they can be side by side and timers are looked at.
    pub(crate) fn is_watched(&self) -> bool {
        self.hedge.is_some() || self.idle.is_some() || self.redirects.is_some()
    }

    /// Whether the request may be sent again without a retry policy.
    pub(crate) fn repeats(&self) -> bool {
        self.hedge.is_some() || self.redirects.is_some()
    }

    /// Makes the changes that each attempt gets. The same request may come again.
    #[cold]
    pub(crate) fn change_attempt<'h>(
        &self,
        outgoing: &mut Outgoing<'_>,
        attempt: u32,
        hostname: impl FnOnce() -> Option<&'h str>,
    ) {
        if self.attempt_counts.in_request {
            let headers = &mut outgoing.head_mut().headers;
            headers.insert(ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        let expected = self.expected.as_ref();
        if let Some(expected) = expected.and_then(|expected| expected.of(attempt)) {
            let headers = &mut outgoing.head_mut().headers;
            headers.insert(EXPECTED_TIMEOUT, expected);
        }
        let Some(dialled) = &self.dialled else {
            return;
        };
        let named = hostname().and_then(|name| name.parse().ok());
        outgoing.set_authority(named.unwrap_or_else(|| dialled.clone()));
    }

    /// Makes the changes that the response of `endpoint` in `cluster` to this attempt gets.
    pub(crate) fn apply<B>(
        &self,
        response: &mut Response<B>,
        attempt: u32,
        endpoint: Option<SocketAddr>,
        cluster: &ClusterName,
    ) {
        if let Some(rules) = &self.response {
            rules.apply(response);
        }
        if self.attempt_counts.in_response {
            let attempt = HeaderValue::from(attempt);
            response.headers_mut().insert(ATTEMPT_COUNT, attempt);
        }
        if let Some(cookie) = &self.cookie {
            response.headers_mut().append(SET_COOKIE, cookie.clone());
        }
        if let (Some(session), Some(endpoint)) = (&self.session, endpoint) {
            session.tell(endpoint, cluster.as_str(), response.headers_mut());
        }
    }
}

impl ResponseRules {
    fn apply<B>(&self, response: &mut Response<B>) {
        let request = match &self.request {
            Some(head) => head.request(crate::Body::empty()),
            None => http::Request::default(),
        };
        let uri = request.uri();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let view = RequestView::new(request.method(), uri, authority, request.headers());
        let status = response.status();
        let routes = &self.snapshot.routes;
        routes.apply_response_changes(&self.changes, &view, status, response.headers_mut());
    }
}
