//! What clients can get: one consistent set of resources, encoded once.
//!
//! A [`World`] is made when the configuration changes and is immutable but for its memory of what
//! was encoded already; what did not change is taken over from the world before. Versions are
//! hashes of content, so that equal input gives equal versions on every replica and after a
//! restart. Which of it a client was sent is not known here.

mod changes;
mod features;
#[cfg(test)]
mod tests;
mod version;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster as ProtoCluster, endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener, route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret as ProtoSecret,
    },
    google::protobuf::Any,
};
use mesh_core::config::{
    Cluster, LbPolicy, ListenerKind, LocalityId, RouteConfig, RouteSource, Secret, TrustBundle,
};
use prost::{Message as _, Name};

pub(crate) use changes::Changes;
use features::balancer;
use version::hash;
pub use version::{Version, combined_version, input_version};

use crate::{
    class::Release,
    compile::{Compiled, Patched, ROUTE_KINDS, View, Viewer},
    encode::{self, ClientClass, any},
    model::{ObjectKey, ObjectSet},
};

/// Resource and route configuration name of Envoy's one outbound listener.
pub const ENVOY_OUTBOUND: &str = "outbound";
/// Port of Envoy's outbound listener when its node metadata has no `OUTBOUND_PORT`.
pub const ENVOY_OUTBOUND_PORT: u16 = 15_001;
/// Prefix of a server's listener name, by the template `mesh/inbound/%s`.
pub const INBOUND_PREFIX: &str = "mesh/inbound/";
/// SDS name of the trust bundle.
pub const TRUST_BUNDLE: &str = "ROOTCA";
/// SDS name of a client's own certificate.
pub const OWN_CERTIFICATE: &str = "default";

/// A type of resource, in the order in which changes are pushed: what is referred to comes before
/// what refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// SDS.
    Secret,
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Route,
}

impl ResourceType {
    /// All, in push order.
    pub const ALL: [Self; 5] = [
        Self::Secret,
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Route,
    ];

    /// From a type URL; `None` for a type that is not served.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// The type URL.
    pub fn url(self) -> String {
        match self {
            Self::Secret => ProtoSecret::type_url(),
            Self::Cluster => ProtoCluster::type_url(),
            Self::Endpoints => ClusterLoadAssignment::type_url(),
            Self::Listener => Listener::type_url(),
            Self::Route => RouteConfiguration::type_url(),
        }
    }

    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "sds",
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
        }
    }

    /// Whether a state-of-the-world response must hold every subscribed resource, so that absence
    /// is deletion.
    pub fn is_full_set(self) -> bool {
        matches!(self, Self::Listener | Self::Cluster)
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Client {
    /// Decides the encoding.
    pub class: ClientClass,
    /// Its release, if it says it.
    pub release: Option<Release>,
    /// Node id, for people.
    pub node_id: String,
    /// Completes short names, and selects policies of servers.
    pub namespace: String,
    /// Select policies of servers whose address is not known.
    pub labels: BTreeMap<String, String>,
    /// Where it runs.
    pub locality: LocalityId,
    /// Where Envoy's outbound listener listens.
    pub outbound_port: u16,
}

impl<'c> From<&'c Client> for Viewer<'c> {
    fn from(client: &'c Client) -> Self {
        Self {
            namespace: &client.namespace,
            labels: &client.labels,
            locality: &client.locality,
        }
    }
}

/// An encoded resource, whose bytes all streams share. Two of one name and version are equal.
#[derive(Debug)]
pub struct Resource {
    /// Name as subscribed.
    pub name: String,
    /// Hash of the content.
    pub version: Version,
    /// The message in an `Any`, encoded.
    pub any: Bytes,
}

impl Resource {
    /// A secret made for one client.
    pub fn secret(secret: &Secret, version: &str) -> Arc<Self> {
        Arc::new(Self {
            name: secret.name().to_string(),
            version: hash(&version),
            any: encoded(&any(&encode::secret(secret))),
        })
    }
}

fn encoded(any: &Any) -> Bytes {
    any.encode_to_vec().into()
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.name == other.name
    }
}

/// What decides how a resource is encoded: class, type, name, and what else of the client.
type Key = (ClientClass, ResourceType, String, String);
type Encoded = HashMap<Key, Arc<Resource>>;

/// One consistent set of resources.
#[derive(Debug)]
pub struct World {
    /// Version of the objects it was compiled from.
    pub version: Version,
    /// Which world of this process it is, from 1.
    pub generation: u64,
    compiled: Compiled,
    /// What differs from the generation before; absent in the first.
    pub(crate) changes: Option<Changes>,
    trust: Secret,
    encoded: Mutex<Encoded>,
    /// What the world before had encoded.
    before: Encoded,
}

impl World {
    /// A world of what was compiled, in which `trust` vouches for certificates.
    pub fn new(compiled: Compiled, trust: TrustBundle) -> Self {
        let trust = Secret::TrustBundle(trust);
        Self {
            version: Version::default(),
            generation: 1,
            compiled,
            changes: None,
            trust,
            encoded: Mutex::default(),
            before: HashMap::new(),
        }
    }

    /// The same world, made of these objects.
    pub fn made_of(mut self, objects: &ObjectSet) -> Self {
        self.version = input_version(objects);
        self
    }

    /// A world that takes over from `before` what is the same in both.
    pub fn following(compiled: Compiled, trust: TrustBundle, before: &Self) -> Self {
        let world = Self::new(compiled, trust);
        let is_same_trust = world.trust == before.trust;
        let changes = Changes::between(&before.compiled, &world.compiled, is_same_trust);
        Self {
            before: before.encoded().clone(),
            generation: before.generation + 1,
            changes: Some(changes),
            ..world
        }
    }

    /// Whether certificates are vouched for by these.
    pub(crate) fn trusts(&self, trust: &TrustBundle) -> bool {
        self.roots() == trust.roots
    }

    /// A world that differs from `before` in endpoints alone.
    pub(crate) fn patched(patched: Patched, before: &Self) -> Self {
        let Patched {
            compiled,
            endpoints,
            policies,
        } = patched;
        let changes = Changes::of_endpoints(endpoints, policies);
        let all = before.encoded().clone().into_iter();
        let (outdated, current) =
            all.partition(|((_, kind, name, _), _)| changes.outdates(*kind, name));
        Self {
            version: before.version,
            generation: before.generation + 1,
            compiled,
            changes: Some(changes),
            trust: before.trust.clone(),
            encoded: Mutex::new(current),
            before: outdated,
        }
    }

    /// The objects that a resource is made of; none for what comes from no object.
    pub fn objects(&self, client: &Client, kind: ResourceType, name: &str) -> Vec<ObjectKey> {
        let host = match kind {
            ResourceType::Secret => return Vec::new(),
            ResourceType::Listener => {
                if let Some(address) = name.strip_prefix(INBOUND_PREFIX) {
                    let address = address.parse().ok();
                    let (namespace, labels) = (&client.namespace, &client.labels);
                    return address.map_or_else(Vec::new, |address| {
                        self.compiled.inbound_objects(address, namespace, labels)
                    });
                }
                let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
                self.compiled.full_name(host, &client.namespace)
            }
            _ => name.rsplit('|').next().map(str::to_owned),
        };
        let objects = host.and_then(|host| self.compiled.objects.get(&host));
        let wants = |object: &&ObjectKey| match (kind, object.kind.as_str()) {
            // Filters of clients stand in routes.
            (ResourceType::Cluster | ResourceType::Endpoints, "RateLimit" | "FilterPolicy") => {
                false
            }
            (ResourceType::Cluster | ResourceType::Endpoints, kind) => !ROUTE_KINDS.contains(&kind),
            (ResourceType::Route, "DestinationRule" | "EndpointSlice") => false,
            (ResourceType::Listener, kind) => matches!(kind, "Service" | "ServiceEntry"),
            _ => true,
        };
        objects
            .into_iter()
            .flatten()
            .filter(wants)
            .cloned()
            .collect()
    }

    fn encoded(&self) -> MutexGuard<'_, Encoded> {
        self.encoded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was compiled.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The names that a wildcard subscription means. Only Envoy uses one.
    pub fn wildcard(&self, client: &Client, kind: ResourceType) -> Vec<String> {
        match (kind, client.class) {
            (ResourceType::Listener, ClientClass::Envoy) => vec![ENVOY_OUTBOUND.to_owned()],
            (ResourceType::Cluster, ClientClass::Envoy) => self.compiled.visible_clusters(client),
            _ => Vec::new(),
        }
    }

    /// A resource as `client` gets it; `None` when there is none of that name.
    pub fn resource(
        &self,
        client: &Client,
        kind: ResourceType,
        name: &str,
    ) -> Option<Arc<Resource>> {
        let class = client.class;
        match kind {
            ResourceType::Listener => self.listener(client, name),
            ResourceType::Cluster => {
                let (own, config) = self.compiled.cluster(name, client)?;
                let needs = balancer(&config.lb_policy);
                if needs.is_none_or(|feature| client.has(feature)) {
                    return Some(self.shared((class, kind), name, &own, &config, || {
                        any(&encode::cluster(config, class))
                    }));
                }
                // Every client has round robin.
                let config = Cluster {
                    lb_policy: LbPolicy::RoundRobin,
                    ..Cluster::clone(config)
                };
                Some(self.shared(
                    (class, kind),
                    name,
                    &format!("{own} round robin"),
                    &config,
                    || any(&encode::cluster(&config, class)),
                ))
            }
            ResourceType::Endpoints => {
                let (own, config) = self.compiled.endpoints(name, client)?;
                Some(self.shared((class, kind), name, &own, &config, || {
                    any(&encode::endpoints(&config))
                }))
            }
            ResourceType::Route if class == ClientClass::Envoy && name == ENVOY_OUTBOUND => {
                Some(self.outbound_routes(client))
            }
            ResourceType::Route => {
                let View { key, config, .. } = self.compiled.view(name, client)?;
                Some(self.shared((class, kind), name, &key, &config, || {
                    any(&encode::route_config(&config, class))
                }))
            }
            ResourceType::Secret if name == TRUST_BUNDLE => {
                Some(self.shared((class, kind), name, "", &self.roots(), || {
                    any(&encode::secret(&self.trust))
                }))
            }
            ResourceType::Secret => None,
        }
    }

    /// What is sent for a name that does not exist, where the protocol has a way to say so in a
    /// resource: endpoints, so that calls fail at once instead of after a timer.
    pub fn placeholder(kind: ResourceType, name: &str) -> Option<Arc<Resource>> {
        (kind == ResourceType::Endpoints).then(|| {
            Arc::new(Resource {
                name: name.to_owned(),
                version: hash(&"none"),
                any: encoded(&any(&encode::empty_endpoints(name))),
            })
        })
    }

    /// The version that clients are given a trust bundle of these roots with.
    pub(crate) fn trust_version(roots: &[Bytes]) -> Version {
        hash(&roots)
    }

    fn roots(&self) -> &[Bytes] {
        match &self.trust {
            Secret::TrustBundle(bundle) => &bundle.roots,
            Secret::Certificate { .. } => &[],
        }
    }

    fn listener(&self, client: &Client, name: &str) -> Option<Arc<Resource>> {
        let class = (client.class, ResourceType::Listener);
        if client.class == ClientClass::Envoy && name == ENVOY_OUTBOUND {
            let port = client.outbound_port;
            return Some(self.shared(class, name, &port.to_string(), &port, || {
                any(&encode::envoy_outbound_listener(name, port))
            }));
        }
        if let Some(address) = name.strip_prefix(INBOUND_PREFIX) {
            let address: SocketAddr = address.parse().ok()?;
            let (namespace, labels) = (&client.namespace, &client.labels);
            let config = self
                .compiled
                .inbound_listener(name, address, namespace, labels);
            return Some(self.shared(
                class,
                name,
                &format!("{namespace} {labels:?}"),
                &config,
                || any(&encode::listener(&config, client.class)),
            ));
        }
        let config = self.compiled.resolve_listener(name, client)?;
        Some(self.shared(class, name, &client.namespace, &config, || {
            any(&encode::listener(&config, client.class))
        }))
    }

    /// The resource, encoded at its first use.
    fn shared(
        &self,
        (class, kind): (ClientClass, ResourceType),
        name: &str,
        client: &str,
        config: &dyn Debug,
        encode: impl FnOnce() -> Any,
    ) -> Arc<Resource> {
        let key = (class, kind, name.to_owned(), client.to_owned());
        if let Some(held) = self.encoded().get(&key) {
            return Arc::clone(held);
        }
        let version = hash(config);
        let same = self
            .before
            .get(&key)
            .filter(|before| before.version == version);
        let resource = same.map_or_else(
            || {
                Arc::new(Resource {
                    name: name.to_owned(),
                    version,
                    any: encoded(&encode()),
                })
            },
            Arc::clone,
        );
        // Two streams may have encoded it at the same time: all get the first.
        Arc::clone(self.encoded().entry(key).or_insert(resource))
    }

    /// Every service in one route configuration. A domain is where it would lead a client of that
    /// namespace that dials it, so that each is there once.
    fn outbound_routes(&self, client: &Client) -> Arc<Resource> {
        let (kind, class, namespace) = (ResourceType::Route, client.class, &client.namespace);
        let views = self.compiled.view_key(client);
        let group = format!("{namespace} {views}");
        let key = (class, kind, ENVOY_OUTBOUND.to_owned(), group.clone());
        if let Some(held) = self.encoded().get(&key) {
            return Arc::clone(held);
        }
        let mut virtual_hosts = Vec::new();
        for name in self.compiled.routes.keys() {
            let Some(View { config, .. }) = self.compiled.view(name.as_str(), client) else {
                continue;
            };
            let leads_here = |domain: &str| {
                let listener = self.compiled.resolve_listener(domain, client);
                listener.is_some_and(|listener| match listener.kind {
                    ListenerKind::Api(api) => api.routes == RouteSource::Rds(config.name.clone()),
                    ListenerKind::Inbound(_) => false,
                })
            };
            for (index, host) in config.virtual_hosts.iter().enumerate() {
                let mut host = host.clone();
                host.name = format!("{}/{index}", config.name);
                host.domains.retain(|domain| leads_here(domain));
                if !host.domains.is_empty() {
                    virtual_hosts.push(host);
                }
            }
        }
        let config = RouteConfig::new(ENVOY_OUTBOUND, virtual_hosts);
        self.shared((class, kind), ENVOY_OUTBOUND, &group, &config, || {
            any(&encode::route_config(&config, class))
        })
    }
}
