//! Incremental: each response holds what changed.
//!
//! Rules (xDS protocol): every name in a subscription is answered, even when the client seems to
//! have it; subscription changes apply even when the nonce is stale; `initial_resource_versions`
//! say what a reconnecting client has; what is gone is named in `removed_resources`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as ProtoResource,
    },
};

use super::{Found, Heard, Variant, View};
use crate::cache::{OWN_CERTIFICATE, Resource, ResourceType, combined_version};

/// Resources in one response, in bytes: gRPC clients take messages of 4 MiB.
const RESPONSE_BYTES: usize = 2 << 20;

pub(crate) struct Delta {
    types: BTreeMap<ResourceType, TypeState>,
    nonce: u64,
    response_bytes: usize,
}

impl Default for Delta {
    fn default() -> Self {
        Self::with_response_bytes(RESPONSE_BYTES)
    }
}

impl Delta {
    /// Answers in parts of at most so many bytes of resources, or one resource.
    pub(crate) fn with_response_bytes(response_bytes: usize) -> Self {
        Self {
            types: BTreeMap::new(),
            nonce: 0,
            response_bytes,
        }
    }
}

#[derive(Default)]
struct TypeState {
    names: BTreeSet<String>,
    is_wildcard: bool,
    nonce: String,
    version: Option<String>,
    /// Versions that the client has.
    sent: BTreeMap<String, String>,
    /// Names that must be answered although nothing changed.
    due: BTreeSet<String>,
    /// A response is due although nothing changed.
    is_due: bool,
    /// Something in `sent` is gone, which the client was not told yet.
    keeps_some: bool,
}

/// What one response says.
#[derive(Default)]
struct Changes {
    changed: Vec<Arc<Resource>>,
    removed: BTreeSet<String>,
    keeps_some: bool,
}

impl TypeState {
    /// What the client must be told, up to `bytes_max`; what is gone is in the last part.
    fn changes(
        &self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
        bytes_max: usize,
    ) -> Changes {
        let mut wanted = self.names.clone();
        if self.is_wildcard {
            wanted.extend(view.wildcard(kind));
        }
        let mut changes = Changes::default();
        let mut bytes = 0;
        for name in &wanted {
            let (is_due, sent) = (self.due.contains(name), self.sent.get(name));
            match view.find(kind, name, keeps_removed && sent.is_some() && !is_due) {
                Found::Resource(resource) if is_due || sent != Some(&resource.version) => {
                    bytes += resource.body.value.len();
                    if bytes > bytes_max && !changes.changed.is_empty() {
                        return changes;
                    }
                    changes.changed.push(resource);
                }
                Found::Resource(_) => {}
                Found::Kept => changes.keeps_some = true,
                Found::Missing if is_due || sent.is_some() => {
                    changes.removed.insert(name.clone());
                }
                Found::Missing => {}
            }
        }
        // Dropped names that the wildcard does not hold.
        changes.removed.extend(
            self.due
                .iter()
                .filter(|name| !wanted.contains(*name))
                .cloned(),
        );
        let mut gone = self
            .sent
            .keys()
            .filter(|name| !wanted.contains(*name))
            .peekable();
        if keeps_removed {
            changes.keeps_some |= gone.peek().is_some();
        } else {
            changes.removed.extend(gone.cloned());
        }
        changes
    }
}

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &mut DeltaDiscoveryRequest) -> Option<Node> {
        request.node.take()
    }

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Option<Heard> {
        let kind = ResourceType::from_url(&request.type_url)?;
        let is_first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        if is_first {
            state.sent = request.initial_resource_versions.into_iter().collect();
            let named = &request.resource_names_subscribe;
            state.is_wildcard = named.is_empty()
                && request.resource_names_unsubscribe.is_empty()
                && kind.is_full_set();
            state.is_due = state.is_wildcard;
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                state.is_wildcard = true;
                state.is_due = true;
            } else {
                // What the client has from an earlier stream is not news to it.
                if !(is_first && state.sent.contains_key(&name)) {
                    state.due.insert(name.clone());
                }
                state.names.insert(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                state.is_wildcard = false;
                // The client forgets what it has from the wildcard alone.
                let names = &state.names;
                state.sent.retain(|name, _| names.contains(name));
            } else if state.names.remove(&name) {
                state.due.remove(&name);
                if state.is_wildcard {
                    state.due.insert(name);
                } else {
                    state.sent.remove(&name);
                }
            }
        }
        let answers = !is_first && !request.response_nonce.is_empty();
        let ack =
            answers && request.error_detail.is_none() && request.response_nonce == state.nonce;
        let nack = request.error_detail.map(|detail| detail.message);
        Some(Heard { kind, ack, nack })
    }

    fn answer(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<DeltaDiscoveryResponse> {
        let state = self.types.get_mut(&kind)?;
        let changes = state.changes(kind, view, keeps_removed, self.response_bytes);
        state.keeps_some = changes.keeps_some;
        let Changes {
            changed, removed, ..
        } = changes;
        // An empty first answer tells a wildcard client that it is complete.
        if changed.is_empty() && removed.is_empty() && !state.is_due {
            return None;
        }
        state.is_due = false;
        for resource in &changed {
            state.due.remove(&resource.name);
            state
                .sent
                .insert(resource.name.clone(), resource.version.clone());
        }
        for name in &removed {
            state.due.remove(name);
            state.sent.remove(name);
        }
        self.nonce += 1;
        state.nonce = self.nonce.to_string();
        let version = combined_version(changed.iter());
        state.version = Some(version.clone());
        let resources = changed.iter().map(|resource| ProtoResource {
            name: resource.name.clone(),
            version: resource.version.clone(),
            resource: Some(resource.body.clone()),
            ..ProtoResource::default()
        });
        Some(DeltaDiscoveryResponse {
            system_version_info: version,
            resources: resources.collect(),
            type_url: kind.url(),
            removed_resources: removed.into_iter().collect(),
            nonce: state.nonce.clone(),
            ..DeltaDiscoveryResponse::default()
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

    fn clusters_in(response: &DeltaDiscoveryResponse) -> Vec<String> {
        let bodies = response
            .resources
            .iter()
            .filter_map(|resource| resource.resource.as_ref());
        super::stream::cluster_names(&response.type_url, bodies)
    }

    fn wants_leaf(&self) -> bool {
        let secrets = self.types.get(&ResourceType::Secret);
        secrets.is_some_and(|state| state.names.contains(OWN_CERTIFICATE))
    }

    fn sent_version(&self, kind: ResourceType) -> Option<String> {
        self.types.get(&kind)?.version.clone()
    }
}
