//! Incremental: each response holds what changed.
//!
//! Rules (xDS protocol): every name in a subscription is answered, even when the client seems to
//! have it; subscription changes apply even when the nonce is stale; `initial_resource_versions`
//! say what a reconnecting client has; what is gone is named in `removed_resources`.

use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest,
};

use super::{
    Found, Heard, Kept, Variant, View,
    sent::{Sent, Verdict, refusal},
    subscription::{Reason, Subscription, Subscriptions, Withheld},
    wire::{Gone, Response},
};
use crate::cache::{Resource, ResourceType, combined_version};

/// Resources in one response, in bytes: gRPC clients take messages of 4 MiB.
const RESPONSE_BYTES: usize = 2 << 20;

pub(crate) struct Delta {
    subscriptions: Subscriptions,
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
            subscriptions: Subscriptions::default(),
            response_bytes,
        }
    }
}

/// What one response says.
#[derive(Default)]
struct Changes {
    changed: Vec<Arc<Resource>>,
    removed: BTreeSet<String>,
    kept: Kept,
    withheld: Option<Withheld>,
}

impl Subscription {
    /// What the client must be told, up to `bytes_max`; what is gone is in the last parts.
    fn changes(
        &self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
        bytes_max: usize,
    ) -> Changes {
        let wildcard = if self.is_wildcard {
            view.wildcard(kind)
        } else {
            Vec::new()
        };
        let mut wanted: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        wanted.extend(wildcard.iter().map(String::as_str));
        let mut changes = Changes::default();
        let mut bytes = 0;
        for name in &wanted {
            let (is_due, held) = (self.due.contains(*name), self.sent.get(name));
            match view.find(kind, name, keeps_removed && held.is_some() && !is_due) {
                Found::Resource(resource) if is_due || !self.sent.has(&resource) => {
                    bytes += resource.any.len() + resource.name.len();
                    if bytes > bytes_max && !changes.changed.is_empty() {
                        return changes;
                    }
                    changes.changed.push(resource);
                }
                Found::Resource(_) => {}
                Found::Kept => changes.kept.add(self.names.contains(*name)),
                Found::Missing if is_due || held.is_some() => {
                    changes.removed.insert((*name).to_owned());
                }
                Found::Missing => {}
                Found::TooLarge(bytes) => {
                    changes.withheld = Some(Withheld::one(name, Reason::Size(bytes)));
                }
                Found::Unsafe(feature) => {
                    changes.withheld = Some(Withheld::one(name, Reason::Lacks(feature)));
                    if is_due || held.is_some() {
                        changes.removed.insert((*name).to_owned());
                    }
                }
            }
        }
        // Dropped names that the wildcard does not hold.
        let is_unwanted = |name: &&String| !wanted.contains(name.as_str());
        changes
            .removed
            .extend(self.due.iter().filter(is_unwanted).cloned());
        let mut gone = self.sent.entries().keys().filter(is_unwanted).peekable();
        if keeps_removed {
            if gone.peek().is_some() {
                changes.kept.add(false);
            }
        } else {
            changes.removed.extend(gone.cloned());
        }
        let mut fits = |name: &String| {
            bytes += name.len();
            bytes <= bytes_max
        };
        let count = changes.removed.iter().take_while(|name| fits(name)).count();
        if count < changes.removed.len() {
            let least = usize::from(changes.changed.is_empty());
            let names = std::mem::take(&mut changes.removed).into_iter();
            changes.removed = names.take(count.max(least)).collect();
        }
        changes
    }
}

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;

    fn node(request: &mut DeltaDiscoveryRequest) -> Option<Node> {
        request.node.take()
    }

    fn names(request: &DeltaDiscoveryRequest) -> impl Iterator<Item = &str> {
        let new = request.resource_names_subscribe.iter();
        let held = request.initial_resource_versions.keys();
        new.chain(held).map(String::as_str)
    }

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Option<Heard> {
        let kind = ResourceType::from_url(&request.type_url)?;
        let warming = match kind {
            ResourceType::Endpoints => self.subscriptions.take_warming(),
            _ => BTreeSet::new(),
        };
        let (state, is_first) = self.subscriptions.entry(kind);
        let inherits = is_first && !request.initial_resource_versions.is_empty();
        if is_first {
            state.sent = Sent::with_versions(request.initial_resource_versions.into_iter());
            let named = &request.resource_names_subscribe;
            state.is_wildcard = named.is_empty()
                && request.resource_names_unsubscribe.is_empty()
                && kind.is_full_set();
            state.is_due = state.is_wildcard;
        }
        let is_changed = is_first
            || !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        for name in request.resource_names_subscribe {
            if name == "*" {
                state.is_wildcard = true;
                state.is_due = true;
            } else {
                // What the client has from an earlier stream is not news to it.
                let is_known = is_first && state.sent.get(&name).is_some();
                if !is_known || warming.contains(&name) {
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
                state.sent.retain(|name| names.contains(name));
            } else if state.names.remove(&name) {
                state.due.remove(&name);
                if state.is_wildcard {
                    state.due.insert(name);
                } else {
                    state.sent.remove(&name);
                }
            }
        }
        let verdict = match &request.error_detail {
            Some(detail) => refusal(&detail.message),
            None => Verdict::Ack,
        };
        let nonce = request
            .response_nonce
            .parse::<u64>()
            .ok()
            .filter(|_| !is_first);
        let is_judged = nonce.is_some_and(|nonce| state.sent.judge(nonce, &verdict));
        Some(Heard {
            kind,
            verdict: is_judged.then_some(verdict),
            is_changed,
            is_stale: !is_first && !request.response_nonce.is_empty() && !is_judged,
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
        let Changes {
            changed,
            removed,
            kept,
            withheld,
        } = state.changes(kind, view, keeps_removed, self.response_bytes);
        (state.kept, state.withheld) = (kept, withheld);
        // An empty first answer tells a wildcard client that it is complete.
        if changed.is_empty() && removed.is_empty() && !state.is_due {
            return None;
        }
        state.is_due = false;
        for resource in &changed {
            state.due.remove(&resource.name);
        }
        for name in &removed {
            state.due.remove(name);
            state.sent.remove(name);
        }
        let response = Response {
            kind,
            version: combined_version(changed.iter()),
            nonce: self.subscriptions.next_nonce(),
            resources: changed,
            gone: Gone::Removed(removed.into_iter().collect()),
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
