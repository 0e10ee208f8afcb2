//! One server's side of the protocol, on one stream after another.
//!
//! Stage 2. Names and versions live longer than a stream, nonces do not. Each response of a type
//! that was asked for is answered once; a newer answer replaces an older one that has not been sent
//! only in state of the world, where an answer to anything but the last response is stale.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::ResourceError as ResourceErrorProto,
};
use mesh_core::ConfigError;

use super::{
    Answer, Expired, Request, Response, ServerError, Update, Variant, delta, nack, sotw,
    subscription::{DOES_NOT_EXIST_AFTER, Subscription, TIMED_OUT_AFTER},
};
use crate::resource::{DecodeContext, Decoded, Kind, Known, canonical, decode_new};

/// gRPC codes by which a server says something about the resource (gRFC A88).
const DATA_ERRORS: [i32; 2] = [5, 7];

/// Answers that wait to be sent, from which on no further response is taken.
const ANSWERS_MAX: usize = 256;

/// State of the protocol towards one server.
#[derive(Debug)]
pub(crate) struct Machine {
    variant: Variant,
    node: Node,
    is_introduced: bool,
    is_open: bool,
    types: [TypeState; Kind::ALL.len()],
}

#[derive(Debug, Default)]
pub(super) struct TypeState {
    pub(super) subscription: Subscription,
    /// Last accepted version of the type, in state of the world; outlives the stream.
    pub(super) version: String,
    /// Last received on this stream, in state of the world.
    pub(super) nonce: String,
    /// Whether this stream has had a request of this type.
    pub(super) is_sent: bool,
    answers: VecDeque<Answer>,
}

impl TypeState {
    fn has_request(&self) -> bool {
        // An empty list in the first request of a stream would ask for everything.
        match self.is_sent {
            true => self.subscription.is_changed() || !self.answers.is_empty(),
            false => !self.subscription.is_empty(),
        }
    }
}

impl Machine {
    pub(crate) fn new(variant: Variant, node: Node) -> Self {
        Self {
            variant,
            node,
            is_introduced: false,
            is_open: false,
            types: Default::default(),
        }
    }

    /// The same, for a server by which a resource that does not come in time is slow, not missing.
    pub(crate) fn with_transient_timer(mut self, is_transient: bool) -> Self {
        let timeout = match is_transient {
            true => TIMED_OUT_AFTER,
            false => DOES_NOT_EXIST_AFTER,
        };
        for state in &mut self.types {
            state.subscription.set_timeout(timeout);
        }
        self
    }

    pub(crate) fn variant(&self) -> Variant {
        self.variant
    }

    /// Speaks the other variant from the next stream on. Versions of one mean nothing in the other.
    pub(crate) fn set_variant(&mut self, variant: Variant) {
        self.variant = variant;
        for state in &mut self.types {
            state.version.clear();
            state.subscription.forget_versions();
        }
    }

    fn state(&mut self, kind: Kind) -> &mut TypeState {
        &mut self.types[kind as usize]
    }

    /// Wants a resource from now on.
    pub(crate) fn subscribe(&mut self, kind: Kind, name: impl Into<Arc<str>>) {
        self.state(kind).subscription.add(name.into());
    }

    /// Does not want it any more.
    pub(crate) fn unsubscribe(&mut self, kind: Kind, name: &str) {
        let state = self.state(kind);
        state.subscription.remove(name, state.is_sent);
    }

    /// Whether anything is wanted.
    pub(crate) fn has_names(&self) -> bool {
        self.types
            .iter()
            .any(|state| !state.subscription.is_empty())
    }

    /// A stream is there; the first request on it introduces the node.
    pub(crate) fn stream_opened(&mut self) {
        self.is_open = true;
        self.is_introduced = false;
    }

    /// The stream is gone; what waited for an answer starts to wait anew on the next one.
    pub(crate) fn stream_closed(&mut self) {
        self.is_open = false;
        for state in &mut self.types {
            state.nonce.clear();
            state.is_sent = false;
            state.answers.clear();
            state.subscription.stream_closed();
        }
    }

    /// Whether another response may be taken before answers have gone out.
    pub(crate) fn is_receptive(&self) -> bool {
        self.types
            .iter()
            .all(|state| state.answers.len() < ANSWERS_MAX)
    }

    /// Takes a response; what is `known` already is not decoded again. `None` when it is not about anything asked for, and is not answered.
    pub(crate) fn receive(
        &mut self,
        response: Response,
        context: &DecodeContext,
        known: &impl Known,
        now: Instant,
    ) -> Option<Update> {
        let variant = self.variant;
        let Some(kind) = Kind::from_type_url(response.type_url()) else {
            tracing::warn!(
                type_url = response.type_url(),
                "a response of an unknown type is ignored"
            );
            return None;
        };
        let state = self.state(kind);
        if !state.is_sent {
            tracing::warn!(
                kind = kind.noun(),
                "a response of a type that was not asked for is ignored"
            );
            return None;
        }
        let incoming = match response {
            Response::Sotw(response) => sotw::incoming(kind, response),
            Response::Delta(response) => delta::incoming(kind, response),
        };
        let total = incoming.resources.len();
        let subscription = &state.subscription;
        let is_wanted = |name: &str| subscription.contains(name);
        let decoded = decode_new(kind, incoming.resources, context, is_wanted, known);
        let errors = server_errors(kind, subscription, incoming.errors);
        let removed = match variant {
            Variant::StateOfTheWorld => sotw::absent(kind, subscription, &decoded, &errors),
            Variant::Incremental => {
                let mut removed = incoming.removed;
                removed
                    .retain(|name| subscription.contains(name) && !decoded.present.contains(name));
                removed
            }
        };
        let refusal =
            (!decoded.rejected.is_empty()).then(|| nack::compose(kind, &decoded.rejected, total));
        match &refusal {
            None => state.version.clone_from(&incoming.version),
            Some(text) => {
                tracing::warn!(
                    kind = kind.noun(),
                    version = incoming.version,
                    "NACK: {text}"
                );
            }
        }
        if variant == Variant::StateOfTheWorld {
            state.answers.clear();
        }
        state.nonce.clone_from(&incoming.nonce);
        state.answers.push_back(Answer {
            nonce: incoming.nonce,
            refusal: refusal.clone(),
        });
        state.settle(&decoded, &removed, &errors, now);
        let subscription = &state.subscription;
        let name_rejected = |rejected: &crate::resource::Rejected| {
            let name = rejected.name.clone()?;
            let is_wanted = subscription.contains(&name);
            is_wanted.then(|| (name, rejected.combined(kind)))
        };
        Some(Update {
            kind,
            rejected: decoded.rejected.iter().filter_map(name_rejected).collect(),
            accepted: decoded.accepted,
            removed,
            errors,
            nack: refusal,
        })
    }

    /// Whether [`poll_request`](Self::poll_request) has something to send.
    pub(crate) fn has_request(&self) -> bool {
        self.is_open && self.types.iter().any(TypeState::has_request)
    }

    /// The next request. `now` is when it is sent: it starts the does-not-exist timers.
    pub(crate) fn poll_request(&mut self, now: Instant) -> Option<Request> {
        if !self.is_open {
            return None;
        }
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| self.types[*kind as usize].has_request())?;
        let node = (!self.is_introduced).then(|| self.node.clone());
        self.is_introduced = true;
        let variant = self.variant;
        let state = self.state(kind);
        let answer = state.answers.pop_front();
        let is_bare_answer = variant == Variant::Incremental && answer.is_some();
        let request = match variant {
            Variant::StateOfTheWorld => {
                let mut request = sotw::request(kind, state, answer);
                request.head.node = node;
                Request::Sotw(request)
            }
            Variant::Incremental => {
                let mut request = delta::request(kind, state, answer);
                request.node = node;
                Request::Delta(request)
            }
        };
        state.is_sent = true;
        if !is_bare_answer {
            state.subscription.sent(now);
        }
        Some(request)
    }

    /// When [`expire`](Self::expire) has something to say.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.types
            .iter()
            .filter_map(|state| state.subscription.next_deadline())
            .min()
    }

    /// Moves all deadlines, after a time in which no response was read.
    pub(crate) fn postpone(&mut self, by: Duration) {
        for state in &mut self.types {
            state.subscription.postpone(by);
        }
    }

    /// What time has done.
    pub(crate) fn expire(&mut self, now: Instant) -> Expired {
        let mut expired = Expired::default();
        for kind in Kind::ALL {
            let state = self.state(kind);
            let missing = state.subscription.pop_missing(now);
            let ended = state.subscription.pop_expired(now);
            let name = |name: Arc<str>| (kind, name.to_string());
            expired.missing.extend(missing.into_iter().map(name));
            expired.ended.extend(ended.into_iter().map(name));
        }
        expired
    }
}

impl TypeState {
    /// Notes what has become of each name.
    fn settle(
        &mut self,
        decoded: &Decoded,
        removed: &[String],
        errors: &[ServerError],
        now: Instant,
    ) {
        for accepted in &decoded.accepted {
            let ttl = accepted.ttl.and_then(|ttl| now.checked_add(ttl));
            self.subscription
                .held(&accepted.name, &accepted.version, ttl);
        }
        for (name, ttl) in &decoded.heartbeats {
            let ttl = ttl.and_then(|ttl| now.checked_add(ttl));
            self.subscription.heartbeat(name, ttl);
        }
        for name in decoded.rejected.iter().filter_map(|r| r.name.as_ref()) {
            self.subscription.refused(name);
        }
        for name in removed.iter().chain(errors.iter().map(|error| &error.name)) {
            self.subscription.gone(name);
        }
    }
}

/// Errors in place of resources that are wanted (xRFC TP3).
fn server_errors(
    kind: Kind,
    subscription: &Subscription,
    errors: Vec<ResourceErrorProto>,
) -> Vec<ServerError> {
    let mut wanted = Vec::new();
    for error in errors {
        let name = canonical(error.resource_name.unwrap_or_default().name);
        if subscription.contains(&name) {
            let status = error.error_detail.unwrap_or_default();
            let reason = format!(
                "the control plane says: {} (code {})",
                status.message, status.code
            );
            wanted.push(ServerError {
                error: ConfigError::new(format!("{} {name}", kind.noun()), "", reason),
                name,
                is_data_error: DATA_ERRORS.contains(&status.code),
            });
        }
    }
    wanted
}
