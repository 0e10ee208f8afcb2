//! The state-of-the-world variant.
//!
//! Stage 2. Each request holds all names of its type; each response of a type asked for is answered
//! once, with the last accepted version and the nonce just received. Only for listeners and
//! clusters does absence mean deletion, and only of what had been received.

use std::time::Instant;

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, ResourceError},
    },
    google::rpc::Status,
};
use mesh_core::ConfigError;

use super::{Update, Variant, nack, subscription::Subscription};
use crate::resource::{DecodeContext, Decoded, Kind, decode_all};

/// gRPC code of a refusal.
const INVALID_ARGUMENT: i32 = 3;

/// State of the world over the aggregated stream.
#[derive(Debug)]
pub(crate) struct Sotw {
    node: Node,
    is_introduced: bool,
    is_open: bool,
    types: [TypeState; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct TypeState {
    subscription: Subscription,
    /// Last accepted; outlives the stream.
    version: String,
    /// Last received on this stream.
    nonce: String,
    is_sent: bool,
    /// The server does not know the names yet.
    is_changed: bool,
    /// The server waits for this. A newer one replaces it: an answer to a response that is not the
    /// last one is stale, and servers ignore it.
    answer: Option<Answer>,
}

#[derive(Debug)]
enum Answer {
    Ack,
    Nack(String),
}

impl TypeState {
    fn has_request(&self) -> bool {
        // An empty list in the first request of a stream would ask for everything.
        (self.is_changed || self.answer.is_some())
            && (self.is_sent || !self.subscription.is_empty())
    }
}

impl Sotw {
    pub(crate) fn new(node: Node) -> Self {
        Self {
            node,
            is_introduced: false,
            is_open: false,
            types: Default::default(),
        }
    }

    fn state(&mut self, kind: Kind) -> &mut TypeState {
        &mut self.types[kind as usize]
    }
}

impl Variant for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn subscribe(&mut self, kind: Kind, name: &str) {
        let state = self.state(kind);
        state.is_changed |= state.subscription.add(name);
    }

    fn unsubscribe(&mut self, kind: Kind, name: &str) {
        let state = self.state(kind);
        state.is_changed |= state.subscription.remove(name, state.is_sent);
    }

    fn has_names(&self) -> bool {
        self.types
            .iter()
            .any(|state| !state.subscription.is_empty())
    }

    fn stream_opened(&mut self) {
        self.is_open = true;
        self.is_introduced = false;
    }

    fn stream_closed(&mut self) {
        self.is_open = false;
        for state in &mut self.types {
            state.nonce.clear();
            state.is_sent = false;
            state.answer = None;
            state.subscription.stream_closed();
            state.is_changed = !state.subscription.is_empty();
        }
    }

    fn receive(&mut self, response: DiscoveryResponse, context: &DecodeContext) -> Option<Update> {
        let Some(kind) = Kind::from_type_url(&response.type_url) else {
            tracing::warn!(
                type_url = response.type_url,
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
        state.nonce = response.nonce;
        let subscription = &mut state.subscription;
        let total = response.resources.len();
        let decoded = decode_all(kind, response.resources, context, |name| {
            subscription.contains(name)
        });
        state.answer = Some(if decoded.rejected.is_empty() {
            state.version = response.version_info;
            Answer::Ack
        } else {
            let text = nack::compose(kind, &decoded.rejected, total);
            tracing::warn!(
                kind = kind.noun(),
                version = response.version_info,
                "NACK: {text}"
            );
            Answer::Nack(text)
        });
        let errors = resource_errors(kind, subscription, response.resource_errors);
        let removed = removed(kind, subscription, &decoded, &errors);
        let rejected: Vec<_> = decoded
            .rejected
            .iter()
            .filter_map(|rejected| {
                let name = rejected
                    .name
                    .clone()
                    .filter(|name| subscription.contains(name))?;
                Some((name, rejected.combined(kind)))
            })
            .collect();
        for name in decoded
            .present
            .iter()
            .chain(errors.iter().map(|(name, _)| name))
        {
            subscription.seen(name);
        }
        Some(Update {
            kind,
            accepted: decoded.accepted,
            rejected,
            removed,
            errors,
        })
    }

    fn has_request(&self) -> bool {
        self.is_open && self.types.iter().any(TypeState::has_request)
    }

    fn poll_request(&mut self, now: Instant) -> Option<DiscoveryRequest> {
        if !self.is_open {
            return None;
        }
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| self.types[*kind as usize].has_request())?;
        let node = (!self.is_introduced).then(|| self.node.clone());
        self.is_introduced = true;
        let state = self.state(kind);
        let error_detail = match state.answer.take() {
            Some(Answer::Nack(message)) => Some(Status {
                code: INVALID_ARGUMENT,
                message,
                details: Vec::new(),
            }),
            Some(Answer::Ack) | None => None,
        };
        let request = DiscoveryRequest {
            version_info: state.version.clone(),
            node,
            resource_names: state.subscription.names(),
            type_url: kind.type_url().into(),
            response_nonce: state.nonce.clone(),
            error_detail,
            ..DiscoveryRequest::default()
        };
        state.is_sent = true;
        state.is_changed = state.subscription.sent(now);
        Some(request)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.types
            .iter()
            .filter_map(|state| state.subscription.next_deadline())
            .min()
    }

    fn expire(&mut self, now: Instant) -> Vec<(Kind, String)> {
        let mut expired = Vec::new();
        for kind in Kind::ALL {
            let names = self.state(kind).subscription.expire(now);
            expired.extend(names.into_iter().map(|name| (kind, name)));
        }
        expired
    }
}

/// Errors in place of resources that are wanted (xRFC TP3).
fn resource_errors(
    kind: Kind,
    subscription: &Subscription,
    errors: Vec<ResourceError>,
) -> Vec<(String, ConfigError)> {
    let mut wanted = Vec::new();
    for error in errors {
        let name = error.resource_name.unwrap_or_default().name;
        if subscription.contains(&name) {
            let status = error.error_detail.unwrap_or_default();
            let reason = format!(
                "the control plane says: {} (code {})",
                status.message, status.code
            );
            let error = ConfigError::new(format!("{} {name}", kind.noun()), "", reason);
            wanted.push((name, error));
        }
    }
    wanted
}

/// What had been received before and is not in a complete response.
fn removed(
    kind: Kind,
    subscription: &Subscription,
    decoded: &Decoded,
    errors: &[(String, ConfigError)],
) -> Vec<String> {
    // A resource that cannot be named may be any of those that seem to be missing.
    if !kind.is_complete_in_sotw() || decoded.rejected.iter().any(|r| r.name.is_none()) {
        return Vec::new();
    }
    let is_absent = |name: &&String| {
        !decoded.present.contains(*name) && errors.iter().all(|(other, _)| other != *name)
    };
    subscription
        .seen_names()
        .filter(is_absent)
        .cloned()
        .collect()
}
