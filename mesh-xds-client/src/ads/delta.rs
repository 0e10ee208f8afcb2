//! The incremental variant.
//!
//! Stage 2. Names are subscribed and unsubscribed one by one, and every response is answered by its
//! own nonce; a request that answers nothing has none. The first request of a type on a new stream
//! names everything that is wanted, with the versions of what is there, so that the server sends
//! only the rest. Absence means nothing here.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

use super::{Answer, Incoming, machine::TypeState, nack};
use crate::resource::{Kind, Raw, canonical};

pub(super) fn incoming(kind: Kind, response: DeltaDiscoveryResponse) -> Incoming {
    let names = response.removed_resource_names.into_iter();
    let removed = response.removed_resources.into_iter();
    let resources = response.resources.into_iter();
    Incoming {
        resources: resources
            .map(|resource| Raw::from_wrapper(kind, resource))
            .collect(),
        version: response.system_version_info,
        nonce: response.nonce,
        removed: removed
            .chain(names.map(|name| name.name))
            .map(canonical)
            .collect(),
        errors: response.resource_errors,
    }
}

pub(super) fn request(
    kind: Kind,
    state: &TypeState,
    answer: Option<Answer>,
) -> DeltaDiscoveryRequest {
    let type_url = kind.type_url().into();
    if let Some(answer) = answer {
        // Changes of what is wanted go apart: an answer has a nonce, they must have none.
        return DeltaDiscoveryRequest {
            type_url,
            response_nonce: answer.nonce,
            error_detail: answer.refusal.map(nack::status),
            ..DeltaDiscoveryRequest::default()
        };
    }
    if state.is_sent {
        return DeltaDiscoveryRequest {
            type_url,
            resource_names_subscribe: state.subscription.untold(),
            resource_names_unsubscribe: state.subscription.removing(),
            ..DeltaDiscoveryRequest::default()
        };
    }
    DeltaDiscoveryRequest {
        type_url,
        resource_names_subscribe: state.subscription.names(),
        initial_resource_versions: state.subscription.versions().collect(),
        ..DeltaDiscoveryRequest::default()
    }
}
