//! What a client or a server is shown of what was compiled.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh_core::config::{ApiListener, Listener, ListenerKind, RouteSource, RouterOptions};

use super::{
    Compiled, ROUTE_KINDS, RouteOrigin, ServiceInfo, View, Viewer, changed, scoped::LeftOut,
    security::Judged,
};
use crate::model::ObjectKey;

impl Compiled {
    /// The client listener of a dialled name: `greeter`, `greeter.default`, `greeter.default.svc`,
    /// `greeter.default.svc.cluster.local`, each with or without `:PORT`. Without a port it is 80
    /// if the service has it, else the service's first.
    pub fn resolve_listener<'v>(
        &self,
        requested: &str,
        viewer: impl Into<Viewer<'v>>,
    ) -> Option<Listener> {
        let viewer = viewer.into();
        let (host, port) = match requested.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().ok()?)),
            None => (requested, None),
        };
        let service = self.service(host, viewer.namespace)?;
        let port = service.port(port)?;
        if !self.visibility.sees(viewer, service, port.number) {
            return None;
        }
        let routes = RouteSource::Rds(format!("outbound|{}||{}", port.number, service.fqdn).into());
        let api = ApiListener {
            routes,
            max_stream_duration: None,
            stream_idle_timeout: None,
            filters: self
                .client_filters
                .get(&service.fqdn)
                .cloned()
                .into_iter()
                .flatten()
                .collect(),
            router: RouterOptions::default(),
        };
        Some(Listener {
            name: requested.into(),
            kind: ListenerKind::Api(api),
        })
    }

    /// Whether all names lead to the same ports.
    pub(crate) fn has_same_names(&self, other: &Self) -> bool {
        let ports = |compiled: &Self| {
            let services = compiled.services.iter();
            services
                .map(|(fqdn, service)| (fqdn.clone(), service.ports.clone()))
                .collect::<Vec<_>>()
        };
        self.names == other.names
            && ports(self) == ports(other)
            && self.visibility == other.visibility
            && self.client_filters == other.client_filters
    }

    /// Whether all servers are judged alike.
    pub(crate) fn has_same_policies(&self, other: &Self) -> bool {
        let judged = |compiled: &Self| {
            let workloads = compiled.workloads.iter();
            workloads
                .map(|(address, w)| (*address, w.namespace.clone(), w.labels.clone()))
                .collect::<Vec<_>>()
        };
        self.security == other.security
            && self.memberships == other.memberships
            && self.rate_limits == other.rate_limits
            && self.server_filters == other.server_filters
            && judged(self) == judged(other)
    }

    /// The routes of a name as a client gets them.
    pub fn view<'v>(&self, name: &str, viewer: impl Into<Viewer<'v>>) -> Option<View> {
        if let Some(scoped) = self.scoped.get(name) {
            return Some(scoped.view(Some(viewer.into())));
        }
        Some(View {
            key: String::new(),
            config: Arc::clone(self.routes.get(name)?),
            origins: self.origins.get(name).cloned().unwrap_or_default(),
        })
    }

    /// What is declared for a name's routes, but not for this client.
    pub(crate) fn left_out(&self, name: &str, viewer: Viewer<'_>) -> Vec<LeftOut> {
        let scoped = self.scoped.get(name);
        scoped.map_or_else(Vec::new, |scoped| scoped.left_out(viewer))
    }

    /// The objects that a cluster is made of, and where they are.
    pub(crate) fn origins_of_cluster(&self, name: &str) -> Vec<RouteOrigin> {
        let fqdn = name.rsplit('|').next().unwrap_or_default();
        let objects = self.objects.get(fqdn).into_iter().flatten();
        let objects = objects.filter(|key| !ROUTE_KINDS.contains(&key.kind.as_str()));
        objects.filter_map(|key| self.origin(key)).collect()
    }

    /// Where an object is.
    pub(crate) fn origin(&self, key: &ObjectKey) -> Option<RouteOrigin> {
        let (file, line) = self.places.get(key)?;
        Some(RouteOrigin {
            object: key.clone(),
            field: String::new(),
            file: Arc::clone(file),
            line: *line,
        })
    }

    /// Whether a server of the mesh is at an address.
    pub(crate) fn is_workload(&self, address: SocketAddr) -> bool {
        self.workloads.contains_key(&address)
    }

    /// Equal for clients for which the same holds everywhere.
    pub(crate) fn view_key<'v>(&self, viewer: impl Into<Viewer<'v>>) -> String {
        let viewer = viewer.into();
        let views = self.scoped.values();
        let views = views.map(|routes| routes.view(Some(viewer)).key + " ");
        views.collect::<String>() + &self.visibility.key(viewer)
    }

    /// The clusters of the services that a client sees, and of those that their routes lead to.
    pub(crate) fn visible_clusters<'v>(&self, viewer: impl Into<Viewer<'v>>) -> Vec<String> {
        let viewer = viewer.into();
        let mut names = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for service in self.services.values() {
            for port in &service.ports {
                if !self.visibility.sees(viewer, service, port.number) {
                    continue;
                }
                seen.insert((service.fqdn.as_str(), port.number));
                let name = format!("outbound|{}||{}", port.number, service.fqdn);
                if let Some(view) = self.view(&name, viewer) {
                    names.extend(view.config.clusters());
                }
            }
        }
        let of_services = self.clusters.keys().filter(|name| {
            let mut parts = name.as_str().split('|').skip(1);
            let port = parts.next().and_then(|port| port.parse().ok());
            let fqdn = parts.last().unwrap_or_default();
            port.is_some_and(|port| seen.contains(&(fqdn, port)))
        });
        names.extend(of_services.map(ToString::to_string));
        names.retain(|name| self.clusters.contains_key(name.as_str()));
        names.into_iter().collect()
    }

    /// Names of clusters that some client gets otherwise than before.
    pub(crate) fn changed_clusters(&self, after: &Self) -> HashSet<String> {
        let mut found = changed(&self.clusters, &after.clusters);
        found.extend(changed(&self.own_clusters, &after.own_clusters));
        found
    }

    /// Names of endpoints that some client gets otherwise than before.
    pub(crate) fn changed_endpoints(&self, after: &Self) -> HashSet<String> {
        let mut found = changed(&self.endpoints, &after.endpoints);
        found.extend(changed(&self.placed, &after.placed));
        found.extend(changed(&self.own_clusters, &after.own_clusters));
        found
    }

    /// The full name of the service that a client in `namespace` means with `host`.
    pub fn full_name(&self, host: &str, namespace: &str) -> Option<String> {
        Some(self.service(host, namespace)?.fqdn.clone())
    }

    /// The objects that hold for a server at `address`.
    pub fn inbound_objects(
        &self,
        address: SocketAddr,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<ObjectKey> {
        let workload = self.judged_as(address, namespace, labels);
        let (namespace, labels) = (&workload.namespace, &workload.labels);
        let mut objects = self.security.objects(&workload);
        objects.extend(self.rate_limits.objects(namespace, labels));
        objects.extend(self.server_filters.objects(namespace, labels));
        objects
    }

    /// The workload at `address`.
    fn judged_as(
        &self,
        address: SocketAddr,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Judged {
        let mut labels = labels.clone();
        let mut namespace = namespace.to_owned();
        if let Some(workload) = self.workloads.get(&address) {
            namespace.clone_from(&workload.namespace);
            labels.extend(workload.labels.clone());
        }
        let services = self.memberships.get(&address).cloned().unwrap_or_default();
        Judged {
            namespace,
            labels,
            services,
        }
    }

    /// The service that a client in `namespace` means with `host`.
    fn service(&self, host: &str, namespace: &str) -> Option<&Arc<ServiceInfo>> {
        let host = host.to_ascii_lowercase();
        let fqdn = self
            .names
            .get(&host)
            .or_else(|| self.names.get(&format!("{host}.{namespace}")))?;
        self.services.get(fqdn)
    }

    /// The listener of a server at `address`: mTLS mode and authorisation of the workload there. An
    /// address that no service has is judged by the `namespace` and `labels` that the node says.
    pub fn inbound_listener(
        &self,
        requested: &str,
        address: SocketAddr,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Listener {
        let workload = self.judged_as(address, namespace, labels);
        let (namespace, labels) = (&workload.namespace, &workload.labels);
        let limit = self.rate_limits.of_server(namespace, labels);
        let filters = self.server_filters.of(namespace, labels);
        let filters = limit.into_iter().chain(filters).collect();
        self.security
            .inbound_listener(requested, address, &workload, filters)
    }
}
