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

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};

use super::{
    Found, Heard, Kept, Variant, View, fit,
    sent::{Verdict, refusal},
    subscription::{Reason, Subscription, Subscriptions, Withheld},
    wire::{Gone, Response},
};
use crate::cache::{Resource, ResourceType, combined_version};

/// Resources in one response of a type where absence means nothing, in bytes: gRPC clients take
/// messages of 4 MiB.
const RESPONSE_BYTES: usize = 2 << 20;

pub(crate) struct Sotw {
    subscriptions: Subscriptions,
    named: BTreeMap<ResourceType, Named>,
    response_bytes: usize,
}

impl Default for Sotw {
    fn default() -> Self {
        Self::with_response_bytes(RESPONSE_BYTES)
    }
}

/// What this variant keeps of a type besides.
#[derive(Default)]
struct Named {
    /// Names were sent once: an empty list is not a wildcard any more.
    is_named: bool,
    /// Names for which the client was told that there is nothing.
    missing: BTreeSet<String>,
    /// Names that the client may have from an earlier stream, of which nothing is known here.
    inherited: BTreeSet<String>,
}

/// Everything that a client is to have of a type now.
#[derive(Default)]
struct Wanted {
    resources: Vec<Arc<Resource>>,
    missing: BTreeSet<String>,
    kept: Kept,
    /// Something that the client may have is gone, and nobody here knows what it was.
    is_unknown: bool,
    withheld: Option<Withheld>,
}

impl Sotw {
    /// Answers in parts of at most so many bytes of resources, or one resource, where parts are
    /// possible.
    pub(crate) fn with_response_bytes(response_bytes: usize) -> Self {
        Self {
            subscriptions: Subscriptions::default(),
            named: BTreeMap::new(),
            response_bytes,
        }
    }
}

impl Subscription {
    fn gather(
        &self,
        named: &Named,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Wanted {
        let mut names: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let wildcard = if self.is_wildcard {
            view.wildcard(kind)
        } else {
            Vec::new()
        };
        names.extend(wildcard.iter().map(String::as_str));
        if self.is_wildcard && keeps_removed {
            names.extend(self.sent.entries().keys().map(String::as_str));
        }
        let mut wanted = Wanted::default();
        for name in names {
            let last = self.sent.get(name).and_then(|held| held.resource());
            let held = last.filter(|_| keeps_removed);
            let is_inherited = keeps_removed && last.is_none() && named.inherited.contains(name);
            match (view.find(kind, name, held.is_some() || is_inherited), held) {
                (Found::Resource(resource), _) => wanted.resources.push(resource),
                (Found::TooLarge(bytes), _) => {
                    wanted.withheld = Some(Withheld::one(name, Reason::Size(bytes)));
                    wanted.resources.extend(last.cloned());
                }
                (Found::Unsafe(feature), _) => {
                    wanted.withheld = Some(Withheld::one(name, Reason::Lacks(feature)));
                    wanted.missing.insert(name.to_owned());
                }
                (Found::Kept, Some(held)) => {
                    wanted.kept.add(self.names.contains(name));
                    wanted.resources.push(Arc::clone(held));
                }
                (Found::Kept, None) => {
                    wanted.kept.add(true);
                    wanted.is_unknown = true;
                }
                (Found::Missing, _) => {
                    wanted.missing.insert(name.to_owned());
                }
            }
        }
        wanted
    }

    /// Whether the client has exactly this already.
    fn has(&self, wanted: &Wanted, missing: &BTreeSet<String>) -> bool {
        self.due.is_empty()
            && wanted.missing == *missing
            && wanted.resources.len() == self.sent.entries().len()
            && wanted
                .resources
                .iter()
                .all(|resource| self.sent.has(resource))
    }
}

impl Wanted {
    /// About how large a response with all of it is.
    fn message_bytes(&self) -> usize {
        let resources = self.resources.iter().map(|resource| fit::in_set(resource));
        let missing = self.missing.iter().map(|name| fit::missing(name));
        resources.chain(missing).sum()
    }
}

impl Variant for Sotw {
    type Request = DiscoveryRequest;

    fn node(request: &mut DiscoveryRequest) -> Option<Node> {
        request.node.take()
    }

    fn names(request: &DiscoveryRequest) -> impl Iterator<Item = &str> {
        request.resource_names.iter().map(String::as_str)
    }

    fn hear(&mut self, request: DiscoveryRequest) -> Option<Heard> {
        let kind = ResourceType::from_url(&request.type_url)?;
        if kind == ResourceType::Endpoints {
            // The first answer of a stream has all of them in any case.
            self.subscriptions.take_warming();
        }
        let (state, is_first) = self.subscriptions.entry(kind);
        let nonce = request.response_nonce.parse::<u64>().ok();
        let verdict = match &request.error_detail {
            Some(detail) => refusal(&detail.message),
            None => Verdict::Ack,
        };
        // The first request of a type may carry a nonce of an earlier stream.
        let is_judged = !is_first && nonce.is_some_and(|nonce| state.sent.judge(nonce, &verdict));
        let verdict = is_judged.then_some(verdict);
        let is_stale = match nonce {
            Some(nonce) => nonce != state.sent.nonce(),
            None => !request.response_nonce.is_empty() || state.sent.nonce() != 0,
        };
        if is_stale && !is_first {
            // Only what it says of its own response counts.
            return Some(Heard {
                kind,
                verdict,
                is_changed: false,
                is_stale,
                inherits: false,
            });
        }
        let named = self.named.entry(kind).or_default();
        let inherits = is_first && !request.version_info.is_empty();
        if inherits {
            named.inherited = request.resource_names.iter().cloned().collect();
        }
        let is_changed = state.subscribe(named, kind, request.resource_names, is_first);
        Some(Heard {
            kind,
            verdict,
            is_changed,
            is_stale: false,
            inherits,
        })
    }

    fn answer(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<Response> {
        let state = self.subscriptions.get_mut(kind)?;
        let named = self.named.entry(kind).or_default();
        let mut wanted = state.gather(named, kind, view, keeps_removed);
        state.kept = wanted.kept;
        // Without it the answer would be its deletion.
        if wanted.is_unknown && kind.is_full_set() {
            return None;
        }
        if !keeps_removed {
            named.inherited.clear();
        }
        let is_subscribed = state.is_wildcard || !state.names.is_empty();
        state.withheld = wanted.withheld.take().filter(|_| is_subscribed);
        if !is_subscribed || state.has(&wanted, &named.missing) && !state.is_due {
            return None;
        }
        // All of it must come together: without the rest a part of it would be a deletion.
        let bytes = wanted.message_bytes();
        if kind.is_full_set() && bytes > view.message_max {
            state.withheld = Some(Withheld {
                name: None,
                reason: Reason::Size(bytes),
            });
            return None;
        }
        let version = combined_version(wanted.resources.iter());
        // Absence means deletion in the full sets, and nothing in the others.
        if kind.is_full_set() {
            let names: BTreeSet<_> = wanted.resources.iter().map(|r| r.name.as_str()).collect();
            state.sent.retain(|name| names.contains(name));
            state.due.clear();
        } else {
            let (due, sent) = (&state.due, &state.sent);
            wanted
                .resources
                .retain(|resource| due.contains(&resource.name) || !sent.has(resource));
            let mut bytes = 0;
            let mut fits = |resource: &Arc<Resource>| {
                bytes += resource.any.len();
                bytes <= self.response_bytes
            };
            let count = wanted.resources.iter().take_while(|r| fits(r)).count();
            wanted.resources.truncate(count.max(1));
            for resource in &wanted.resources {
                state.due.remove(&resource.name);
            }
            let missing = &wanted.missing;
            state.sent.retain(|name| !missing.contains(name));
            state.due.retain(|name| !missing.contains(name));
        }
        state.is_due = false;
        named.missing = wanted.missing;
        let response = Response {
            kind,
            version,
            nonce: self.subscriptions.next_nonce(),
            resources: wanted.resources,
            gone: Gone::Errors(named.missing.iter().cloned().collect()),
        };
        let state = self.subscriptions.get_mut(kind)?;
        state.sent.note(&response);
        Some(response)
    }

    fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    fn subscriptions_mut(&mut self) -> &mut Subscriptions {
        &mut self.subscriptions
    }
}

impl Subscription {
    /// Applies the names of a request that is not stale; whether an answer may be due.
    fn subscribe(
        &mut self,
        named: &mut Named,
        kind: ResourceType,
        names: Vec<String>,
        is_first: bool,
    ) -> bool {
        let mut names: BTreeSet<_> = names.into_iter().collect();
        let is_wildcard =
            names.contains("*") || names.is_empty() && !named.is_named && kind.is_full_set();
        named.is_named |= !names.is_empty();
        names.remove("*");
        let is_same = !is_first && names == self.names && is_wildcard == self.is_wildcard;
        self.is_due |=
            is_first || is_wildcard && !self.is_wildcard || !names.is_subset(&self.names);
        self.names = names;
        self.is_wildcard = is_wildcard;
        if !is_wildcard && !is_same {
            // A client that drops a name is not told so; if it asks again, it is answered again.
            let names = &self.names;
            self.sent.retain(|name| names.contains(name));
            named.missing.retain(|name| names.contains(name));
            self.due.retain(|name| names.contains(name));
        }
        !is_same
    }
}
