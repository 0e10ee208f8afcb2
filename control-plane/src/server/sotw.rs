//! State of the world: each response holds everything that is subscribed, where absence means
//! deletion (LDS, CDS), and what changed in the other types.
//!
//! Rules (xDS protocol): a nonce that is not the last one makes a request stale; `error_detail` is
//! a NACK, after which nothing is sent until the content changes; a first request without names is
//! a wildcard for listeners and clusters; later an empty list unsubscribes from everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DiscoveryRequest, DiscoveryResponse, ResourceError, ResourceName,
        },
    },
    google::rpc::Status,
};

use super::{Found, Heard, Variant, View};
use crate::cache::{OWN_CERTIFICATE, Resource, ResourceType, combined_version};

/// gRPC's NOT_FOUND.
const NOT_FOUND: i32 = 5;

#[derive(Default)]
pub(crate) struct Sotw {
    types: BTreeMap<ResourceType, TypeState>,
    nonce: u64,
}

#[derive(Default)]
struct TypeState {
    names: BTreeSet<String>,
    is_wildcard: bool,
    /// Names were sent once: an empty list is not a wildcard any more.
    is_named: bool,
    nonce: String,
    version: Option<String>,
    sent: BTreeMap<String, Arc<Resource>>,
    missing: BTreeSet<String>,
    /// Names that must be sent although nothing changed.
    due: BTreeSet<String>,
    /// A response is due although nothing changed.
    is_due: bool,
    /// Something in `sent` is gone, which the client was not told yet.
    keeps_some: bool,
}

impl TypeState {
    /// Everything that the client is to have now, and the names for which there is nothing.
    fn gather(
        &self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> (BTreeMap<String, Arc<Resource>>, BTreeSet<String>, bool) {
        let mut wanted = self.names.clone();
        if self.is_wildcard {
            wanted.extend(view.wildcard(kind));
            if keeps_removed {
                wanted.extend(self.sent.keys().cloned());
            }
        }
        let (mut resources, mut missing, mut keeps_some) =
            (BTreeMap::new(), BTreeSet::new(), false);
        for name in wanted {
            let sent = self.sent.get(&name).filter(|_| keeps_removed);
            match (view.find(kind, &name, sent.is_some()), sent) {
                (Found::Resource(resource), _) => drop(resources.insert(name, resource)),
                (Found::Kept, Some(sent)) => {
                    keeps_some = true;
                    resources.insert(name, Arc::clone(sent));
                }
                (Found::Kept | Found::Missing, _) => drop(missing.insert(name)),
            }
        }
        (resources, missing, keeps_some)
    }
}

impl Variant for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &mut DiscoveryRequest) -> Option<Node> {
        request.node.take()
    }

    fn hear(&mut self, request: DiscoveryRequest) -> Option<Heard> {
        let kind = ResourceType::from_url(&request.type_url)?;
        let is_first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        // The first request of a type may carry a nonce of an earlier stream.
        if !is_first && request.response_nonce != state.nonce {
            return None;
        }
        let mut names: BTreeSet<_> = request.resource_names.into_iter().collect();
        let is_wildcard =
            names.contains("*") || names.is_empty() && !state.is_named && kind.is_full_set();
        state.is_named |= !names.is_empty();
        names.remove("*");
        state.is_due |=
            is_first || is_wildcard && !state.is_wildcard || !names.is_subset(&state.names);
        state.names = names;
        state.is_wildcard = is_wildcard;
        if !is_wildcard {
            // A client that drops a name is not told so; if it asks again, it is answered again.
            let names = &state.names;
            state.sent.retain(|name, _| names.contains(name));
            state.missing.retain(|name| names.contains(name));
            state.due.retain(|name| names.contains(name));
        }
        let answers = !is_first && !request.response_nonce.is_empty();
        let nack = request.error_detail.map(|detail| detail.message);
        Some(Heard {
            kind,
            ack: answers && nack.is_none(),
            nack,
        })
    }

    fn answer(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<DiscoveryResponse> {
        let state = self.types.get_mut(&kind)?;
        let (resources, missing, keeps_some) = state.gather(kind, view, keeps_removed);
        state.keeps_some = keeps_some;
        let is_subscribed = state.is_wildcard || !state.names.is_empty();
        let is_changed = |name: &String, resource: &Arc<Resource>| {
            state.due.contains(name) || state.sent.get(name) != Some(resource)
        };
        let is_same = state.due.is_empty() && resources == state.sent && missing == state.missing;
        if is_same && !state.is_due || !is_subscribed {
            return None;
        }
        // Absence means deletion in the full sets, and nothing in the others.
        let bodies = resources
            .iter()
            .filter(|(name, resource)| kind.is_full_set() || is_changed(name, resource))
            .map(|(_, resource)| resource.body.clone())
            .collect();
        self.nonce += 1;
        state.nonce = self.nonce.to_string();
        let version = combined_version(resources.values());
        state.version = Some(version.clone());
        state.is_due = false;
        state.due.clear();
        state.sent = resources;
        state.missing = missing;
        Some(DiscoveryResponse {
            version_info: version,
            resources: bodies,
            type_url: kind.url(),
            nonce: state.nonce.clone(),
            resource_errors: state
                .missing
                .iter()
                .map(|name| not_found(kind, name))
                .collect(),
            ..DiscoveryResponse::default()
        })
    }

    fn endpoints_again(&mut self, names: &[String]) {
        if let Some(state) = self.types.get_mut(&ResourceType::Endpoints) {
            let held = names.iter().filter(|name| state.names.contains(*name));
            state.due.extend(held.cloned());
        }
    }

    fn keeps_some(&self) -> bool {
        self.types.values().any(|state| state.keeps_some)
    }

    fn clusters_in(response: &DiscoveryResponse) -> Vec<String> {
        super::stream::cluster_names(&response.type_url, response.resources.iter())
    }

    fn wants_leaf(&self) -> bool {
        let secrets = self.types.get(&ResourceType::Secret);
        secrets.is_some_and(|state| state.names.contains(OWN_CERTIFICATE))
    }

    fn sent_version(&self, kind: ResourceType) -> Option<String> {
        self.types.get(&kind)?.version.clone()
    }
}

/// Says that there is no such resource, to clients that understand it (xRFC TP3); the others have
/// their timer.
pub(super) fn not_found(kind: ResourceType, name: &str) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName {
            name: name.to_owned(),
            ..ResourceName::default()
        }),
        error_detail: Some(Status {
            code: NOT_FOUND,
            message: format!(
                "the control plane has no {} resource {name:?}",
                kind.as_str()
            ),
            details: Vec::new(),
        }),
    }
}
