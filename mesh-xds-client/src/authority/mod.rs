//! Which server is asked for which name.
//!
//! Stage 2, beside the protocol. Each authority (gRFC A47) has an ordered list of servers; names of
//! the old style belong to the one without a name. The first server is asked; when it cannot be
//! reached and something is still unknown, the next one is asked as well, for everything (gRFC
//! A71); an authority may ask it in any case (gRFC A95). The first word from a better server ends that. Decides only; opens nothing.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::resource::{Kind, authority};

/// Index into the client's list of servers.
pub(crate) type ServerId = usize;

/// What a server is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Subscribe(ServerId, Kind, Arc<str>),
    Unsubscribe(ServerId, Kind, Arc<str>),
}

/// What a failure of a server means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    pub(crate) orders: Vec<Order>,
    /// Authorities of which every server has failed.
    pub(crate) outages: Vec<Option<String>>,
}

#[derive(Debug)]
struct Authority {
    servers: Vec<ServerId>,
    /// How many of `servers` are asked, at least one.
    asked: usize,
    names: BTreeSet<(Kind, Arc<str>)>,
    /// Whether the next server is asked even when everything is known (gRFC A95).
    on_reachability: bool,
}

/// All authorities.
#[derive(Debug, Default)]
pub(crate) struct Authorities {
    by_name: BTreeMap<Option<String>, Authority>,
    /// Servers that cannot be reached now.
    failed: BTreeSet<ServerId>,
}

impl Authorities {
    /// Adds an authority; `servers` is in order and not empty.
    pub(crate) fn add(&mut self, name: Option<String>, servers: Vec<ServerId>) {
        let authority = Authority {
            servers,
            asked: 1,
            names: BTreeSet::new(),
            on_reachability: false,
        };
        self.by_name.insert(name, authority);
    }

    /// Falls back in this authority whenever a server cannot be reached, whatever is known: its
    /// resources age fast (gRFC A95).
    pub(crate) fn fall_back_on_reachability(&mut self, name: Option<&str>) {
        if let Some(authority) = self.by_name.get_mut(&name.map(str::to_owned)) {
            authority.on_reachability = true;
        }
    }

    /// The servers of an authority, in order.
    pub(crate) fn servers(&self, name: Option<&str>) -> &[ServerId] {
        let authority = self.by_name.get(&name.map(str::to_owned));
        authority.map_or(&[], |authority| &authority.servers)
    }

    fn of(&mut self, name: &str) -> Option<&mut Authority> {
        self.by_name.get_mut(&authority(name).map(str::to_owned))
    }

    /// Wants a resource. `None` when its authority is not known.
    pub(crate) fn subscribe(&mut self, kind: Kind, name: impl Into<Arc<str>>) -> Option<Effects> {
        let name = name.into();
        let failed = self.failed.clone();
        let authority = self.of(&name)?;
        authority.names.insert((kind, Arc::clone(&name)));
        let mut orders = authority.orders(kind, &name, Order::Subscribe);
        // What is new is not known: a reason to ask the next one.
        authority.fall_back(&failed, &mut orders);
        Some(Effects {
            orders,
            outages: Vec::new(),
        })
    }

    /// Does not want it any more.
    pub(crate) fn unsubscribe(&mut self, kind: Kind, name: impl Into<Arc<str>>) -> Vec<Order> {
        let name = name.into();
        let Some(authority) = self.of(&name) else {
            return Vec::new();
        };
        authority.names.remove(&(kind, Arc::clone(&name)));
        authority.orders(kind, &name, Order::Unsubscribe)
    }

    /// A server cannot be reached. `is_known` is whether something is known of a resource.
    pub(crate) fn failed(
        &mut self,
        server: ServerId,
        is_known: impl Fn(Kind, &str) -> bool,
    ) -> Effects {
        self.failed.insert(server);
        let failed = &self.failed;
        let mut effects = Effects::default();
        for (name, authority) in &mut self.by_name {
            if !authority.is_asked(server) {
                continue;
            }
            let mut names = authority.names.iter();
            if names.any(|(kind, name)| authority.on_reachability || !is_known(*kind, name)) {
                authority.fall_back(failed, &mut effects.orders);
            }
            let mut asked = authority.servers[..authority.asked].iter();
            if authority.asked == authority.servers.len() && asked.all(|s| failed.contains(s)) {
                effects.outages.push(name.clone());
            }
        }
        effects
    }

    /// A server has sent a response: those behind it are not asked any more. Returns which
    /// authorities are reached.
    pub(crate) fn responded(&mut self, server: ServerId) -> (Vec<Order>, Vec<Option<String>>) {
        self.failed.remove(&server);
        let mut orders = Vec::new();
        let mut reached = Vec::new();
        for (name, authority) in &mut self.by_name {
            let position = authority.servers.iter().position(|s| *s == server);
            let Some(position) = position.filter(|position| *position < authority.asked) else {
                continue;
            };
            reached.push(name.clone());
            for lower in &authority.servers[position + 1..authority.asked] {
                for (kind, name) in &authority.names {
                    orders.push(Order::Unsubscribe(*lower, *kind, name.clone()));
                }
            }
            authority.asked = position + 1;
        }
        (orders, reached)
    }

    /// Whether what a server says about a resource counts: not after a better one has spoken.
    pub(crate) fn is_asked(&self, server: ServerId, name: &str) -> bool {
        let key = authority(name).map(str::to_owned);
        let authority = self.by_name.get(&key);
        authority.is_some_and(|authority| authority.is_asked(server))
    }
}

impl Authority {
    fn is_asked(&self, server: ServerId) -> bool {
        self.servers[..self.asked].contains(&server)
    }

    fn orders(
        &self,
        kind: Kind,
        name: &Arc<str>,
        order: impl Fn(ServerId, Kind, Arc<str>) -> Order,
    ) -> Vec<Order> {
        let asked = self.servers[..self.asked].iter();
        asked.map(|s| order(*s, kind, Arc::clone(name))).collect()
    }

    /// Asks further servers while all that are asked have failed.
    fn fall_back(&mut self, failed: &BTreeSet<ServerId>, orders: &mut Vec<Order>) {
        let all_failed = |asked: &[ServerId]| asked.iter().all(|server| failed.contains(server));
        while self.asked < self.servers.len() && all_failed(&self.servers[..self.asked]) {
            let next = self.servers[self.asked];
            self.asked += 1;
            tracing::warn!(server = next, "falling back to the next control plane");
            for (kind, name) in &self.names {
                orders.push(Order::Subscribe(next, *kind, name.clone()));
            }
        }
    }
}
