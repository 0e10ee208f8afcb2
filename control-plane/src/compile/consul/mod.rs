//! Consul's service-router, service-splitter and service-resolver, chained as Consul does: a router's
//! destination without a subset goes through the splitter of its service, and everything through
//! resolvers.

mod chain;
mod filter;
mod resolver;
mod router;

use std::{collections::BTreeMap, sync::Arc};

use super::{
    CompileOptions, Compiled, ServiceInfo,
    services::{find, unknown_host},
};
use crate::{
    diagnostic::Diagnostic,
    model::{Object, ObjectSet, ServiceResolver, ServiceRouter, ServiceSplitter, Spec},
};
pub(super) use chain::Target;
pub(super) use resolver::Surroundings;
pub(super) use router::predicate;

type Entries<'o, S> = BTreeMap<String, (&'o Arc<Object>, &'o S)>;

/// The entries of each service, by its full name.
#[derive(Default)]
pub(super) struct ConsulEntries<'o> {
    pub(super) routers: Entries<'o, ServiceRouter>,
    splitters: Entries<'o, ServiceSplitter>,
    resolvers: Entries<'o, ServiceResolver>,
}

impl<'o> ConsulEntries<'o> {
    /// Finds the services of all entries, which have their names.
    pub(super) fn collect(
        objects: &'o ObjectSet,
        services: &BTreeMap<String, ServiceInfo>,
        options: &CompileOptions,
        compiled: &mut Compiled,
        findings: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut entries = Self::default();
        for object in objects.values() {
            let is_entry = matches!(
                &object.spec,
                Spec::ServiceRouter(_) | Spec::ServiceSplitter(_) | Spec::ServiceResolver(_)
            );
            if !is_entry {
                continue;
            }
            let (name, namespace) = (&object.key.name, &object.key.namespace);
            let Some(service) = find(services, name, namespace, &options.cluster_domain) else {
                findings.push(unknown_host(object, "metadata.name", name));
                continue;
            };
            compiled.made_of(&service.fqdn, &object.key);
            let fqdn = service.fqdn.clone();
            match &object.spec {
                Spec::ServiceRouter(spec) => {
                    entries.routers.entry(fqdn).or_insert((object, spec));
                }
                Spec::ServiceSplitter(spec) => {
                    entries.splitters.entry(fqdn).or_insert((object, spec));
                }
                Spec::ServiceResolver(spec) => {
                    entries.resolvers.entry(fqdn).or_insert((object, spec));
                }
                _ => {}
            }
        }
        entries
    }

    /// What says where the requests to a service go.
    pub(super) fn of(&self, fqdn: &str) -> impl Iterator<Item = &'o Arc<Object>> {
        let router = self.routers.get(fqdn).map(|(object, _)| *object);
        let splitter = self.splitters.get(fqdn).map(|(object, _)| *object);
        router.into_iter().chain(splitter)
    }
}
