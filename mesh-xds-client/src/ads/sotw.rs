//! The state-of-the-world variant.
//!
//! Stage 2. Each request holds all names of its type, the last accepted version and the last nonce.
//! Only for listeners and clusters does absence mean deletion, and only of what had been received.

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::{
    Answer, Incoming, ServerError, SotwRequest, machine::TypeState, nack,
    subscription::Subscription,
};
use crate::resource::{Decoded, Kind, Raw};

pub(super) fn incoming(kind: Kind, response: DiscoveryResponse) -> Incoming {
    let version = Arc::from(response.version_info);
    let resources = response.resources.into_iter();
    Incoming {
        resources: resources
            .map(|any| Raw::from_any(kind, any, &version))
            .collect(),
        version: version.to_string(),
        nonce: response.nonce,
        removed: Vec::new(),
        errors: response.resource_errors,
    }
}

pub(super) fn request(kind: Kind, state: &mut TypeState, answer: Option<Answer>) -> SotwRequest {
    SotwRequest {
        names: state.subscription.encoded_names(),
        head: DiscoveryRequest {
            version_info: state.version.clone(),
            type_url: kind.type_url().into(),
            response_nonce: state.nonce.clone(),
            error_detail: answer.and_then(|answer| answer.refusal).map(nack::status),
            ..DiscoveryRequest::default()
        },
    }
}

/// What had been received before and is not in a complete response.
pub(super) fn absent(
    kind: Kind,
    subscription: &Subscription,
    decoded: &Decoded,
    errors: &[ServerError],
) -> Vec<String> {
    // A resource that cannot be named may be any of those that seem to be missing, and a response
    // with heartbeats need not hold the rest.
    if !kind.is_complete_in_sotw()
        || !decoded.heartbeats.is_empty()
        || decoded.rejected.iter().any(|r| r.name.is_none())
    {
        return Vec::new();
    }
    let is_absent = |name: &&Arc<str>| {
        !decoded.present.contains(&***name) && errors.iter().all(|other| *other.name != ***name)
    };
    subscription
        .held_names()
        .filter(is_absent)
        .map(ToString::to_string)
        .collect()
}
