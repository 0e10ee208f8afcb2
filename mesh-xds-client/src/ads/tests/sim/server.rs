//! A control plane by the book, for one stream, in both variants.

use std::collections::{BTreeMap, BTreeSet};

use super::{super::*, world::World};

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
    /// The last response that was answered.
    answered: u64,
}

/// One stream.
#[derive(Debug)]
pub(super) struct ServerStream {
    epoch: u64,
    types: BTreeMap<Kind, TypeStream>,
    pub(super) nacks: usize,
    /// Requests with a nonce that was not seen before.
    pub(super) answers: usize,
}

impl ServerStream {
    /// `epoch` is part of every version: a restarted server counts anew.
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            types: BTreeMap::new(),
            nacks: 0,
            answers: 0,
        }
    }

    /// Types that the client has asked for.
    pub(super) fn asked(&self) -> usize {
        self.types.len()
    }

    pub(super) fn changed(&mut self, kind: Kind) {
        if let Some(state) = self.types.get_mut(&kind) {
            state.is_due = true;
        }
    }

    pub(super) fn receive(&mut self, request: &Request) {
        let (url, nonce, detail) = match request {
            Request::Sotw(SotwRequest { head: r, .. }) => {
                (&r.type_url, &r.response_nonce, &r.error_detail)
            }
            Request::Delta(r) => (&r.type_url, &r.response_nonce, &r.error_detail),
        };
        self.nacks += usize::from(detail.is_some());
        let kind = Kind::from_type_url(url).expect("a known type");
        let is_first = !self.types.contains_key(&kind);
        let state = self.types.entry(kind).or_default();
        state.is_first = is_first;
        if !nonce.is_empty() {
            let nonce: u64 = nonce.parse().expect("a nonce of this server");
            assert!(nonce <= state.nonce, "an answer to what was never sent");
            match request {
                Request::Sotw(_) => assert!(nonce >= state.answered, "a stale answer"),
                Request::Delta(_) => assert_eq!(nonce, state.answered + 1, "each in turn"),
            }
            self.answers += usize::from(nonce > state.answered);
            state.answered = nonce;
        }
        match request {
            Request::Sotw(request) => {
                let names = request.read().resource_names;
                let is_stale = !is_first && *nonce != state.nonce.to_string();
                assert!(!is_first || nonce.is_empty(), "a nonce of another stream");
                assert!(
                    !is_first || !names.is_empty(),
                    "a first request without names asks for everything"
                );
                if state.nonce == 0 || !is_stale {
                    let names = names.into_iter().collect();
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
                let shown = state.names.iter();
                let shown = shown.filter_map(|name| world.shown(kind, name));
                let (good, bad): (Vec<_>, Vec<_>) = shown.partition(Result::is_ok);
                let resources = good.into_iter().filter_map(Result::ok).collect();
                let resource_errors = bad.into_iter().filter_map(Result::err).collect();
                Some(Response::Sotw(DiscoveryResponse {
                    version_info: version(state.nonce),
                    nonce: state.nonce.to_string(),
                    type_url: kind.type_url().into(),
                    resources,
                    resource_errors,
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
                        Some((v, _)) => {
                            let version = version(*v);
                            if !is_owed && state.sent.get(name) == Some(&version) {
                                continue;
                            }
                            state.sent.insert(name.clone(), version.clone());
                            match world.shown(kind, name) {
                                Some(Ok(any)) => response.resources.push(wrap(any, &version)),
                                Some(Err(error)) => response.resource_errors.push(error),
                                None => unreachable!("it is held"),
                            }
                        }
                        None => {
                            if state.sent.remove(name).is_some() || is_owed {
                                response.removed_resources.push(name.clone());
                            }
                        }
                    }
                }
                let is_empty = response.resources.is_empty()
                    && response.removed_resources.is_empty()
                    && response.resource_errors.is_empty();
                if is_empty {
                    return None;
                }
                state.nonce += 1;
                response.nonce = state.nonce.to_string();
                Some(Response::Delta(response))
            }
        }
    }
}
