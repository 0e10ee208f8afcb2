//! A control plane by the book, for one stream, in both variants.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::*,
    world::{World, encode},
};

#[derive(Debug, Default)]
struct TypeStream {
    names: BTreeSet<String>,
    is_first: bool,
    nonce: u64,
    /// State of the world: a response is due.
    is_due: bool,
    /// Incremental: version sent of each name.
    sent: BTreeMap<String, String>,
    /// Incremental: names that must be answered whatever was sent.
    owed: BTreeSet<String>,
}

/// One stream.
#[derive(Debug)]
pub(super) struct ServerStream {
    epoch: u64,
    types: BTreeMap<Kind, TypeStream>,
    pub(super) nacks: usize,
}

impl ServerStream {
    /// `epoch` is part of every version: a restarted server counts anew.
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            types: BTreeMap::new(),
            nacks: 0,
        }
    }

    pub(super) fn changed(&mut self, kind: Kind) {
        if let Some(state) = self.types.get_mut(&kind) {
            state.is_due = true;
        }
    }

    pub(super) fn receive(&mut self, request: &Request) {
        let (url, nonce, detail) = match request {
            Request::Sotw(r) => (&r.type_url, &r.response_nonce, &r.error_detail),
            Request::Delta(r) => (&r.type_url, &r.response_nonce, &r.error_detail),
        };
        self.nacks += usize::from(detail.is_some());
        let kind = Kind::from_type_url(url).expect("a known type");
        let is_first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        state.is_first = is_first;
        match request {
            Request::Sotw(request) => {
                let is_stale = !is_first && *nonce != state.nonce.to_string();
                assert!(!is_first || nonce.is_empty(), "a nonce of another stream");
                assert!(
                    !is_first || !request.resource_names.is_empty(),
                    "a first request without names asks for everything"
                );
                if state.nonce == 0 || !is_stale {
                    let names = request.resource_names.iter().cloned().collect();
                    state.is_due |= state.names != names;
                    state.names = names;
                }
            }
            Request::Delta(request) => {
                assert!(
                    is_first || request.initial_resource_versions.is_empty(),
                    "versions in a later request"
                );
                let changes = request.resource_names_subscribe.len()
                    + request.resource_names_unsubscribe.len();
                assert!(changes == 0 || nonce.is_empty(), "a nonce beside changes");
                assert!(
                    changes > 0 || !nonce.is_empty(),
                    "a request that says nothing"
                );
                for name in &request.resource_names_unsubscribe {
                    assert!(state.names.remove(name), "{name} was not subscribed");
                    state.sent.remove(name);
                    state.owed.remove(name);
                }
                for name in &request.resource_names_subscribe {
                    assert!(state.names.insert(name.clone()), "{name} is subscribed");
                    state.owed.insert(name.clone());
                }
                for (name, version) in &request.initial_resource_versions {
                    state.sent.insert(name.clone(), version.clone());
                    state.owed.remove(name);
                }
                state.is_due = true;
            }
        }
    }

    /// The next response of a type, if there is something to say.
    pub(super) fn respond(
        &mut self,
        variant: Variant,
        kind: Kind,
        world: &World,
    ) -> Option<Response> {
        let epoch = self.epoch;
        let state = self.types.get_mut(&kind)?;
        if !std::mem::take(&mut state.is_due) {
            return None;
        }
        let version = |version: u64| format!("{epoch}-{version}");
        let held = |name: &String| world.resources.get(&(kind, name.clone()));
        match variant {
            Variant::StateOfTheWorld => {
                state.nonce += 1;
                let resources = state.names.iter();
                let resources: Vec<_> = resources
                    .filter_map(|name| Some(encode(kind, name, &held(name)?.1)))
                    .collect();
                Some(Response::Sotw(DiscoveryResponse {
                    version_info: version(state.nonce),
                    nonce: state.nonce.to_string(),
                    type_url: kind.type_url().into(),
                    resources,
                    ..DiscoveryResponse::default()
                }))
            }
            Variant::Incremental => {
                let mut response = DeltaDiscoveryResponse {
                    type_url: kind.type_url().into(),
                    ..DeltaDiscoveryResponse::default()
                };
                for name in &state.names {
                    let is_owed = state.owed.remove(name);
                    match held(name) {
                        Some((v, spec)) => {
                            let version = version(*v);
                            if is_owed || state.sent.get(name) != Some(&version) {
                                state.sent.insert(name.clone(), version.clone());
                                response.resources.push(Resource {
                                    name: name.clone(),
                                    version,
                                    resource: Some(encode(kind, name, spec)),
                                    ..Resource::default()
                                });
                            }
                        }
                        None => {
                            if state.sent.remove(name).is_some() || is_owed {
                                response.removed_resources.push(name.clone());
                            }
                        }
                    }
                }
                if response.resources.is_empty() && response.removed_resources.is_empty() {
                    return None;
                }
                state.nonce += 1;
                response.nonce = state.nonce.to_string();
                Some(Response::Delta(response))
            }
        }
    }
}
