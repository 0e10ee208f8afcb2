//! What a client subscribes to, and what it has of it: the state that both variants keep.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{Kept, sent::Sent};
use crate::{
    cache::{OWN_CERTIFICATE, ResourceType},
    class::Feature,
};

/// One type of one stream.
#[derive(Default)]
pub(crate) struct Subscription {
    pub(super) names: BTreeSet<String>,
    pub(super) is_wildcard: bool,
    /// What the client has.
    pub(super) sent: Sent,
    /// Names that must be answered although nothing changed.
    pub(super) due: BTreeSet<String>,
    /// A response is due although nothing changed.
    pub(super) is_due: bool,
    /// Whether something in `sent` is gone, which the client was not told yet.
    pub(super) kept: Kept,
    /// What the client cannot take, and is not sent.
    pub(super) withheld: Option<Withheld>,
}

/// What a client cannot take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Withheld {
    /// The resource; absent when it is all of a type, which must come together.
    pub(crate) name: Option<String>,
    pub(crate) reason: Reason,
}

/// Why a client cannot take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The message would have so many bytes. The client keeps what it has.
    Size(usize),
    /// It does not know this, and would be less secure without. It gets nothing in its place.
    Lacks(Feature),
}

impl Withheld {
    pub(super) fn one(name: &str, reason: Reason) -> Self {
        Self {
            name: Some(name.to_owned()),
            reason,
        }
    }
}

/// All types of one stream, and its nonces.
#[derive(Default)]
pub(crate) struct Subscriptions {
    types: BTreeMap<ResourceType, Subscription>,
    /// Clusters whose endpoints are due as soon as the client subscribes to them.
    warming: BTreeSet<String>,
    nonce: u64,
}

impl Subscriptions {
    /// The type, which begins with its first request; whether this is that.
    pub(super) fn entry(&mut self, kind: ResourceType) -> (&mut Subscription, bool) {
        let is_first = !self.types.contains_key(&kind);
        (self.types.entry(kind).or_default(), is_first)
    }

    pub(super) fn get_mut(&mut self, kind: ResourceType) -> Option<&mut Subscription> {
        self.types.get_mut(&kind)
    }

    /// A nonce that no response of this stream had.
    pub(super) fn next_nonce(&mut self) -> u64 {
        self.nonce += 1;
        self.nonce
    }

    /// Makes the endpoints of these clusters due again: Envoy waits for them after a change of a
    /// cluster, even when they are the same, and even when it has them from an earlier stream.
    pub(super) fn endpoints_again(&mut self, names: &[String]) {
        match self.types.get_mut(&ResourceType::Endpoints) {
            Some(held) => {
                let again = names.iter().filter(|name| held.names.contains(*name));
                held.due.extend(again.cloned());
            }
            None => self.warming.extend(names.iter().cloned()),
        }
    }

    /// The clusters that wait for the first subscription to endpoints.
    pub(super) fn take_warming(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.warming)
    }

    /// Whether the client still has something that is gone.
    pub(super) fn kept(&self) -> Kept {
        let kept = self.types.values().map(|held| held.kept);
        kept.max().unwrap_or_default()
    }

    /// Whether the client subscribes to its own certificate.
    pub(super) fn wants_leaf(&self) -> bool {
        let secrets = self.types.get(&ResourceType::Secret);
        secrets.is_some_and(|held| held.names.contains(OWN_CERTIFICATE))
    }

    /// The names that the client subscribes to, and whether it subscribes to everything.
    pub(super) fn subscribed(&self, kind: ResourceType) -> Option<(&BTreeSet<String>, bool)> {
        let held = self.types.get(&kind)?;
        Some((&held.names, held.is_wildcard))
    }

    /// How many names the client subscribes to.
    pub(super) fn names(&self) -> usize {
        self.types.values().map(|held| held.names.len()).sum()
    }

    /// What was sent, and what the client said of it, by type.
    pub(super) fn sent(&self) -> impl Iterator<Item = (ResourceType, &Sent)> {
        self.types.iter().map(|(kind, held)| (*kind, &held.sent))
    }

    /// What is not sent because the client could not take it, by type.
    pub(super) fn withheld(&self) -> impl Iterator<Item = (ResourceType, &Withheld)> {
        self.types
            .iter()
            .filter_map(|(kind, held)| Some((*kind, held.withheld.as_ref()?)))
    }
}
