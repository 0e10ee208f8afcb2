//! What other instances make of what was compiled: other endpoints of the services that they are part of,
//! and nothing else.
//!
//! Instances come and go all the time, and objects do not: this looks at no object. Whatever it cannot
//! know to be the same (a service that comes or goes, another protocol or account, mTLS that a client
//! is to speak now, a failover of Consul's) is compiled anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use mesh_core::ClusterName;

use super::{
    CompileOptions, Compiled, ServiceInfo, Workload,
    clusters::{endpoints, takes_mtls},
    locality::Placed,
    members,
};
use crate::registry::{Member, Members};

/// How the endpoints of a cluster follow from the workloads of its service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    pub(super) cluster: ClusterName,
    pub(super) port: u16,
    /// Labels of the workloads that are endpoints of it.
    pub(super) labels: BTreeMap<String, String>,
    /// Whether the workloads decide if clients speak mTLS.
    pub(super) is_auto_mtls: bool,
    /// Which of the clusters that some clients get instead it is for.
    pub(super) own: Option<usize>,
}

impl Recipe {
    pub(super) fn has(labels: &BTreeMap<String, String>, workload: &Workload) -> bool {
        let mut labels = labels.iter();
        labels.all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

/// What was compiled, with other instances.
#[derive(Debug)]
pub(crate) struct Patched {
    pub(crate) compiled: Compiled,
    /// Clusters whose endpoints were made anew.
    pub(crate) endpoints: HashSet<String>,
    /// Whether servers are judged otherwise.
    pub(crate) policies: bool,
}

impl Compiled {
    /// What [`compile_with`](super::compile_with) makes of the same objects with the instances `after`
    /// instead of `before`; `None` when more than endpoints may differ.
    pub(crate) fn patched(
        &self,
        (before, after): (&Members, &Members),
        options: &CompileOptions,
    ) -> Option<Patched> {
        let mut patched = Patched {
            compiled: self.clone(),
            endpoints: HashSet::new(),
            policies: false,
        };
        for fqdn in self.touched(before, after, options) {
            patched.service(&fqdn, after, options)?;
        }
        Some(patched)
    }

    /// The services of which the instances that differ are endpoints.
    fn touched(
        &self,
        before: &Members,
        after: &Members,
        options: &CompileOptions,
    ) -> BTreeSet<String> {
        let differs = |one: &(&String, &Arc<Member>), other: &Members| {
            let held = other.get(one.0);
            held.is_none_or(|held| !Arc::ptr_eq(held, one.1) && held != one.1)
        };
        let gone = before.iter().filter(|one| differs(one, after));
        let new = after.iter().filter(|one| differs(one, before));
        let mut found = BTreeSet::new();
        for (_, member) in gone.chain(new) {
            let registration = &member.registration;
            found.insert(members::full_name(registration, options));
            for fqdn in self.selecting.iter() {
                let service = self.services.get(fqdn);
                if service.is_some_and(|service| members::selects(service, registration)) {
                    found.insert(fqdn.clone());
                }
            }
        }
        found
    }
}

impl Patched {
    fn service(&mut self, fqdn: &str, after: &Members, options: &CompileOptions) -> Option<()> {
        let before = Arc::clone(self.compiled.services.get(fqdn)?);
        if self.compiled.entangled.contains(fqdn) {
            return None;
        }
        let service = members::with_registered(&before, after, options)?;
        let recipes = self.compiled.recipes.get(fqdn).cloned();
        for recipe in recipes.iter().flat_map(|recipes| recipes.iter()) {
            self.cluster(&service, recipe)?;
        }
        self.memberships(&before, &service);
        let services = &mut self.compiled.services;
        services.insert(fqdn.to_owned(), Arc::new(service));
        Some(())
    }

    fn cluster(&mut self, service: &ServiceInfo, recipe: &Recipe) -> Option<()> {
        let compiled = &mut self.compiled;
        let name = &recipe.cluster;
        let workloads = service.workloads.iter();
        let own = workloads.filter(|workload| Recipe::has(&recipe.labels, workload));
        let own: Vec<_> = own.collect();
        if recipe.is_auto_mtls {
            let port = service.port(Some(recipe.port))?;
            let is_mtls = match recipe.own {
                None => compiled.clusters.get(name)?.tls.is_some(),
                Some(at) => compiled
                    .own_clusters
                    .get(name)?
                    .get(at)?
                    .cluster
                    .tls
                    .is_some(),
            };
            if takes_mtls(service, &own, port, compiled) != is_mtls {
                return None;
            }
        }
        let mut made = endpoints(name.as_str(), &own, recipe.port);
        match recipe.own {
            None => {
                let held = compiled.endpoints.get(name.as_str())?;
                made.overprovisioning_factor = held.overprovisioning_factor;
                if **held == made && !compiled.placed.contains_key(name.as_str()) {
                    return Some(());
                }
                if let Some(placed) = compiled.placed.get(name.as_str()) {
                    let placed = placed.with(made.clone(), &own, recipe.port);
                    let name = name.as_str().into();
                    compiled.placed.insert(name, Arc::new(placed));
                }
                let name = name.as_str().into();
                compiled.endpoints.insert(name, Arc::new(made));
            }
            Some(at) => {
                let held = compiled.own_clusters.get_mut(name)?.get_mut(at)?;
                let Some(placed) = &mut held.endpoints else {
                    return Some(());
                };
                *placed = Arc::new(Placed::with(placed, made, &own, recipe.port));
            }
        }
        self.endpoints.insert(name.to_string());
        Some(())
    }

    /// Whose policies hold at the addresses of the instances.
    fn memberships(&mut self, before: &ServiceInfo, after: &ServiceInfo) {
        let compiled = &self.compiled;
        let addresses = |service: &ServiceInfo| {
            let registered = service.workloads.iter().filter(|w| w.is_registered);
            let all = registered.flat_map(|workload| workload.addresses.values().copied());
            // Who is at an address that is declared is said there.
            let undeclared = all.filter(|address| !compiled.workloads.contains_key(address));
            undeclared.collect::<BTreeSet<_>>()
        };
        let (before, now) = (addresses(before), addresses(after));
        if before == now {
            return;
        }
        self.policies = true;
        let memberships = &mut self.compiled.memberships;
        for address in before.difference(&now) {
            if let Some(services) = memberships.get_mut(address) {
                services.remove(&after.fqdn);
                if services.is_empty() {
                    memberships.remove(address);
                }
            }
        }
        for address in now.difference(&before) {
            let services = memberships.entry(*address).or_default();
            services.insert(after.fqdn.clone());
        }
    }
}
