//! From objects to class-neutral config.
//!
//! A bad object affects only its own traffic: a route to what is not there fails its own share, and
//! a security object that cannot be used closes its own target. It does no I/O, and the same
//! objects always give the same result.

mod authorization;
mod balance;
mod balancer_policy;
mod changed;
mod claims;
mod client_tls;
mod clusters;
mod consul;
mod delegate;
mod destination_rules;
mod fault;
mod forward;
mod gateway;
mod hashing;
mod hedge;
mod intentions;
mod locality;
mod members;
mod mesh_policy;
mod own;
mod patch;
mod policy;
mod pool;
mod provider_loop;
mod providers;
mod rate_limit;
mod request_auth;
mod route_action;
mod route_match;
mod routes;
mod rules;
mod scoped;
mod security;
mod seen;
mod services;
mod session;
mod shared;
mod target;
#[cfg(test)]
mod tests;
mod virtual_service;
mod visibility;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use mesh_core::{
    ClusterName, EndpointsName, RouteConfigName,
    config::{Cluster, ClusterEndpoints, HashPolicy, HttpFilter, RouteConfig},
};

use crate::{
    diagnostic::Diagnostic,
    model::{Object, ObjectKey, ObjectSet},
    registry::Members,
};
pub(crate) use changed::changed;
use destination_rules::DestinationRules;
pub use fault::{CORS_FILTER, FAULT_FILTER};
pub use gateway::{Condition, ParentStatus, RouteStatus};
use locality::Placed;
pub use members::{META_ACCOUNT, META_PROTOCOL, PORT as UNDECLARED_PORT, TAG_PREFIX};
use own::OwnCluster;
pub(crate) use patch::Patched;
use patch::Recipe;
pub use rate_limit::FILTER as RATE_LIMIT_FILTER;
use rate_limit::RateLimits;
pub use request_auth::KeySets;
pub(crate) use request_auth::key_sets;
pub use scoped::{ScopedRoutes, View, Viewer};
use security::SecurityPolicies;
pub use services::{PortInfo, ServiceInfo, Workload};
pub use session::SESSION_FILTER;
pub use shared::Shared;
use visibility::Visibility;

/// What holds for the whole mesh.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Trust domain of identities. Default `cluster.local`.
    pub trust_domain: String,
    /// Suffix of service names. Default `cluster.local`.
    pub cluster_domain: String,
    /// Policies in this namespace are for all. Default `istio-system`.
    pub root_namespace: String,
    /// Keys of issuers, by the addresses that RequestAuthentications name. Default none: tokens
    /// whose keys are not here are refused.
    pub keys: KeySets,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            keys: KeySets::new(),
        }
    }
}

/// Everything the mesh knows, ready to be encoded.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// By `outbound|PORT|SUBSET|FQDN`.
    pub clusters: Shared<BTreeMap<ClusterName, Arc<Cluster>>>,
    /// By the same names.
    pub endpoints: Shared<BTreeMap<EndpointsName, Arc<ClusterEndpoints>>>,
    /// By `outbound|PORT||FQDN`, for clients that nothing special is for.
    pub routes: Shared<BTreeMap<RouteConfigName, Arc<RouteConfig>>>,
    /// Those of which some clients get another.
    pub scoped: Shared<BTreeMap<RouteConfigName, Arc<ScopedRoutes>>>,
    /// What became of the routes of Gateway API.
    pub statuses: Shared<BTreeMap<ObjectKey, RouteStatus>>,
    /// By full name.
    pub services: Shared<BTreeMap<String, Arc<ServiceInfo>>>,
    /// What each service is made of, by full name.
    pub objects: Shared<BTreeMap<String, BTreeSet<ObjectKey>>>,
    /// Where each route of each configuration is declared; `None` for one that nobody declared.
    pub origins: Shared<BTreeMap<RouteConfigName, Vec<Option<RouteOrigin>>>>,
    /// File and line of each object.
    places: Shared<BTreeMap<ObjectKey, (Arc<str>, usize)>>,
    /// Clusters of which some clients get another: the first that is for a client.
    own_clusters: Shared<BTreeMap<ClusterName, Vec<OwnCluster>>>,
    /// Endpoints that clients in other places get in another order.
    placed: Shared<BTreeMap<EndpointsName, Arc<Placed>>>,
    /// What routes to a cluster hash.
    hashing: Shared<BTreeMap<ClusterName, HashPolicy>>,
    names: Shared<BTreeMap<String, String>>,
    workloads: Shared<BTreeMap<SocketAddr, Workload>>,
    /// The services that each address is part of.
    memberships: Shared<BTreeMap<SocketAddr, BTreeSet<String>>>,
    security: Shared<SecurityPolicies>,
    visibility: Shared<Visibility>,
    rate_limits: Shared<RateLimits>,
    /// Filters of the clients of a service, by its full name.
    client_filters: Shared<BTreeMap<String, Vec<HttpFilter>>>,
    /// How endpoints follow from workloads, by the full name of the service.
    recipes: Shared<BTreeMap<String, Arc<Vec<Recipe>>>>,
    /// Services that select instances by label.
    selecting: Shared<Vec<String>>,
    /// Services whose endpoints take part in what the recipes do not say.
    entangled: Shared<BTreeSet<String>>,
}

/// Where a route is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteOrigin {
    /// The object.
    pub object: ObjectKey,
    /// The field of it.
    pub field: String,
    /// File.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
}

impl RouteOrigin {
    fn new(object: &Object, field: &str) -> Self {
        Self {
            object: object.key.clone(),
            field: field.to_owned(),
            file: Arc::clone(&object.place.file),
            line: object.place.line_of(field),
        }
    }
}

impl fmt::Display for RouteOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            object,
            field,
            file,
            line,
        } = self;
        write!(f, "{object} {field}, {file}:{line}")
    }
}

/// Compiles all objects.
pub fn compile(objects: &ObjectSet, options: &CompileOptions) -> (Compiled, Vec<Diagnostic>) {
    compile_with(objects, &Members::new(), options)
}

/// Compiles all objects, with the instances that registered.
pub fn compile_with(
    objects: &ObjectSet,
    members: &Members,
    options: &CompileOptions,
) -> (Compiled, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let services = services::collect(objects, members, options, &mut findings);
    let security = SecurityPolicies::collect(objects, &services, options, &mut findings);
    let place = |object: &Arc<Object>| (Arc::clone(&object.place.file), object.place.line);
    let places = objects
        .iter()
        .map(|(key, object)| (key.clone(), place(object)));
    let visibility = Visibility::collect(objects, &services, options, &mut findings);
    let rate_limits = RateLimits::collect(objects, &services, options, &mut findings);
    let mut compiled = Compiled {
        security: security.into(),
        visibility: visibility.into(),
        rate_limits: rate_limits.into(),
        places: places.collect::<BTreeMap<_, _>>().into(),
        ..Compiled::default()
    };
    for service in services.values() {
        for key in &service.objects {
            compiled.made_of(&service.fqdn, key);
        }
        for (spelling, weight) in service.spellings(&options.cluster_domain) {
            // The name in full belongs to its service, short forms to whoever is first.
            if weight == 0 || !compiled.names.contains_key(&spelling) {
                compiled.names.insert(spelling, service.fqdn.clone());
            }
        }
        // One that registered could say that it is at somebody's address, to be judged in its place.
        for workload in service.workloads.iter().filter(|w| !w.is_registered) {
            for address in workload.addresses.values() {
                let memberships = compiled.memberships.entry(*address).or_default();
                memberships.insert(service.fqdn.clone());
                compiled
                    .workloads
                    .entry(*address)
                    // Several services may share an address: policies for any of them hold.
                    .and_modify(|held| {
                        if held.namespace == workload.namespace {
                            for (key, value) in &workload.labels {
                                held.labels
                                    .entry(key.clone())
                                    .or_insert_with(|| value.clone());
                            }
                        }
                    })
                    .or_insert_with(|| workload.clone());
            }
        }
    }
    // Nobody declared who is at the address of one that registered; then what it says of itself closes
    // more than nothing would.
    let declared: HashSet<_> = compiled.memberships.keys().copied().collect();
    for service in services.values() {
        for workload in service.workloads.iter().filter(|w| w.is_registered) {
            let addresses = workload.addresses.values();
            for address in addresses.filter(|address| !declared.contains(address)) {
                let memberships = compiled.memberships.entry(*address).or_default();
                memberships.insert(service.fqdn.clone());
            }
        }
    }
    let rules =
        DestinationRules::collect(objects, &services, options, &mut compiled, &mut findings);
    for service in services.values() {
        let holding = rules.of(service);
        clusters::compile(service, &holding, options, &mut compiled, &mut findings);
    }
    balancer_policy::apply(objects, &services, options, &mut compiled, &mut findings);
    routes::compile(objects, &services, options, &mut compiled, &mut findings);
    let selecting = services.values().filter(|service| {
        let selector = service.selector.as_ref();
        selector.is_some_and(|selector| selector.of_registered)
    });
    let selecting: Vec<_> = selecting.map(|service| service.fqdn.clone()).collect();
    compiled.selecting = selecting.into();
    let services = services.into_iter();
    let services = services.map(|(fqdn, service)| (fqdn, Arc::new(service)));
    compiled.services = services.collect::<BTreeMap<_, _>>().into();
    // One mistake may be met once for each port, subset or host.
    let mut seen = HashSet::new();
    findings.retain(|finding| seen.insert(finding.clone()));
    (compiled, findings)
}

/// Kinds that say where requests go, and nothing of clusters.
pub(crate) const ROUTE_KINDS: [&str; 6] = [
    "VirtualService",
    "HTTPRoute",
    "GRPCRoute",
    "ServiceRouter",
    "ServiceSplitter",
    "HedgePolicy",
];

impl Compiled {
    fn add_routes(&mut self, mut routes: ScopedRoutes) {
        for declared in routes
            .declarations
            .iter_mut()
            .flat_map(|held| &mut held.routes)
        {
            self.hash(declared);
        }
        let name = routes.name.clone();
        let View {
            config, origins, ..
        } = routes.view(None);
        self.origins.insert(name.clone(), origins);
        self.routes.insert(name.clone(), config);
        if !routes.is_same_for_all() {
            self.scoped.insert(name, Arc::new(routes));
        }
    }

    fn follow_recipe(&mut self, fqdn: &str, recipe: Recipe) {
        let recipes = self.recipes.entry(fqdn.to_owned()).or_default();
        Arc::make_mut(recipes).push(recipe);
    }

    fn made_of(&mut self, fqdn: &str, object: &ObjectKey) {
        let objects = self.objects.entry(fqdn.to_owned()).or_default();
        objects.insert(object.clone());
    }
}
