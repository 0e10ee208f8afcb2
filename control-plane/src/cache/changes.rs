//! What differs between a world and the one before it.
//!
//! Most changes are about few clients: the others find out here, without looking at everything they
//! have.

use std::collections::HashSet;

use super::{Client, ENVOY_OUTBOUND, INBOUND_PREFIX, ResourceType};
use crate::{
    compile::{Compiled, changed},
    encode::ClientClass,
};

/// Names of what came, went or changed.
#[derive(Debug)]
pub(crate) struct Changes {
    clusters: HashSet<String>,
    endpoints: HashSet<String>,
    routes: HashSet<String>,
    /// What listeners of clients depend on: names and ports.
    names: bool,
    /// What listeners of servers depend on: policies and workloads.
    policies: bool,
    trust: bool,
}

impl Changes {
    pub(super) fn between(before: &Compiled, after: &Compiled, is_same_trust: bool) -> Self {
        Self {
            clusters: before.changed_clusters(after),
            endpoints: before.changed_endpoints(after),
            routes: &changed(&before.routes, &after.routes)
                | &changed(&before.scoped, &after.scoped),
            names: !before.has_same_names(after),
            policies: !before.has_same_policies(after),
            trust: !is_same_trust,
        }
    }

    /// Endpoints of these names, and whether servers are judged otherwise.
    pub(super) fn of_endpoints(endpoints: HashSet<String>, policies: bool) -> Self {
        Self {
            clusters: HashSet::new(),
            endpoints,
            routes: HashSet::new(),
            names: false,
            policies,
            trust: false,
        }
    }

    /// Whether what was encoded of a name, for whichever client, may be another now; for changes of
    /// endpoints.
    pub(super) fn outdates(&self, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::Endpoints => self.endpoints.contains(name),
            ResourceType::Listener => self.policies && name.starts_with(INBOUND_PREFIX),
            ResourceType::Secret | ResourceType::Cluster | ResourceType::Route => false,
        }
    }

    /// Whether a subscription to a name may get something else now.
    pub(crate) fn touches(&self, client: &Client, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::Secret => self.trust,
            ResourceType::Cluster => self.clusters.contains(name),
            ResourceType::Endpoints => self.endpoints.contains(name),
            ResourceType::Listener if name.starts_with(INBOUND_PREFIX) => self.policies,
            ResourceType::Listener => self.names,
            ResourceType::Route if client.class == ClientClass::Envoy && name == ENVOY_OUTBOUND => {
                self.names || !self.routes.is_empty()
            }
            ResourceType::Route => self.routes.contains(name),
        }
    }

    /// Whether a subscription to everything of a type may get something else now.
    pub(crate) fn touches_any(&self, kind: ResourceType) -> bool {
        match kind {
            ResourceType::Secret => self.trust,
            // Who sees what decides which, and so do routes.
            ResourceType::Cluster => {
                !self.clusters.is_empty() || self.names || !self.routes.is_empty()
            }
            ResourceType::Endpoints => !self.endpoints.is_empty(),
            ResourceType::Listener => self.names || self.policies,
            ResourceType::Route => self.names || !self.routes.is_empty(),
        }
    }
}
