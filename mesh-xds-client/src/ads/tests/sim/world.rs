//! What the control plane wants, as a model: some of it wrong, some of it missing.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, EdsClusterConfig},
        },
        core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
        listener::v3::{ApiListener, Listener},
        route::v3::{
            Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
            route_action::ClusterSpecifier, route_match::PathSpecifier,
        },
    },
    extensions::filters::{
        http::router::v3::Router,
        network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
            http_filter,
        },
    },
};
use mesh_core::rng::{Rng, SplitMix64};

use super::super::*;

pub(super) const LISTENERS: [&str; 3] = ["l0", "l1", "l2"];
const ROUTES: [&str; 3] = ["r0", "r1", "r2"];
const CLUSTERS: [&str; 5] = ["c0", "c1", "c2", "c3", "c4"];
const ENDPOINTS: [&str; 4] = ["e0", "e1", "e2", "e3"];

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::ads::tests) enum Spec {
    Listener {
        route: String,
    },
    Route {
        clusters: Vec<String>,
    },
    Cluster {
        endpoints: String,
    },
    Endpoints {
        port: u16,
    },
    Bad,
    /// The server sends an error in its place, with this code (xRFC TP3).
    Error {
        code: i32,
    },
}

/// How long a resource with a time to live may be used, in seconds.
const TTL: i64 = 25;

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) resources: BTreeMap<(Kind, String), (u64, Spec)>,
    /// Resources with a time to live.
    mortal: BTreeSet<(Kind, String)>,
    changes: u64,
}

impl World {
    /// All there, all good.
    pub(super) fn good(rng: &mut SplitMix64) -> Self {
        let mut world = Self::default();
        world.heal(rng);
        world
    }

    pub(super) fn heal(&mut self, rng: &mut SplitMix64) {
        let all = all_names();
        for (kind, name) in all {
            let key = (kind, name.to_owned());
            let held = self.resources.get(&key).map(|(_, spec)| spec.clone());
            let held = held.filter(|spec| !matches!(spec, Spec::Bad | Spec::Error { .. }));
            let was_mortal = self.mortal.remove(&key);
            match held {
                // It may have come to its end: a new version is sent whole.
                Some(spec) if was_mortal => self.set(kind, name, spec),
                Some(_) => {}
                None => self.set(kind, name, good(kind, rng)),
            }
        }
    }

    /// All as it is, under new versions.
    pub(super) fn renew(&mut self) {
        let all: Vec<_> = self
            .resources
            .iter()
            .map(|(k, v)| (k.clone(), v.1.clone()))
            .collect();
        for ((kind, name), spec) in all {
            self.set(kind, &name, spec);
        }
    }

    fn set(&mut self, kind: Kind, name: &str, spec: Spec) {
        self.changes += 1;
        let value = (self.changes, spec);
        self.resources.insert((kind, name.to_owned()), value);
    }

    /// Changes one resource somehow; returns its type.
    pub(super) fn mutate(&mut self, rng: &mut SplitMix64) -> Kind {
        let all = all_names();
        let (kind, name) = all[rng.below(all.len() as u64) as usize];
        match rng.below(12) {
            8 => {
                let code = if rng.below(2) == 0 { 5 } else { 14 };
                self.set(kind, name, Spec::Error { code });
            }
            9 => {
                self.mortal.insert((kind, name.to_owned()));
                self.set(kind, name, good(kind, rng));
            }
            0 => _ = self.resources.remove(&(kind, name.to_owned())),
            1 | 10 => self.set(kind, name, Spec::Bad),
            // The same content under a new version.
            2 => {
                if let Some((_, spec)) = self.resources.get(&(kind, name.to_owned())) {
                    let spec = spec.clone();
                    self.set(kind, name, spec);
                }
            }
            _ => self.set(kind, name, good(kind, rng)),
        }
        kind
    }

    /// What a server sends for a name: a resource, or an error in its place.
    pub(super) fn shown(&self, kind: Kind, name: &str) -> Option<Result<Any, ResourceError>> {
        let key = (kind, name.to_owned());
        let (_, spec) = self.resources.get(&key)?;
        if let Spec::Error { code } = spec {
            return Some(Err(server_error(name, *code)));
        }
        let encoded = encode(kind, name, spec);
        Some(Ok(match self.mortal.contains(&key) {
            true => living(name, Some(TTL), Some(encoded)),
            false => encoded,
        }))
    }

    /// Ports by cluster that a client of this listener must end up with.
    pub(super) fn expected(&self, listener: &str) -> BTreeMap<String, u16> {
        let get = |kind, name: &str| &self.resources[&(kind, name.to_owned())].1;
        let Spec::Listener { route } = get(Kind::Listener, listener) else {
            panic!("the world is healed")
        };
        let Spec::Route { clusters } = get(Kind::Route, route) else {
            panic!("the world is healed")
        };
        let port = |cluster: &String| {
            let Spec::Cluster { endpoints } = get(Kind::Cluster, cluster) else {
                panic!("the world is healed")
            };
            let Spec::Endpoints { port } = get(Kind::Endpoints, endpoints) else {
                panic!("the world is healed")
            };
            (cluster.clone(), *port)
        };
        clusters.iter().map(port).collect()
    }
}

fn all_names() -> Vec<(Kind, &'static str)> {
    let with = |kind, names: &[&'static str]| -> Vec<_> {
        names.iter().map(|name| (kind, *name)).collect()
    };
    [
        with(Kind::Listener, &LISTENERS),
        with(Kind::Route, &ROUTES),
        with(Kind::Cluster, &CLUSTERS),
        with(Kind::Endpoints, &ENDPOINTS),
    ]
    .concat()
}

fn good(kind: Kind, rng: &mut SplitMix64) -> Spec {
    let mut pick = |names: &[&str]| names[rng.below(names.len() as u64) as usize].to_owned();
    match kind {
        Kind::Listener => Spec::Listener {
            route: pick(&ROUTES),
        },
        Kind::Route => {
            let mut clusters = vec![pick(&CLUSTERS), pick(&CLUSTERS)];
            clusters.dedup();
            Spec::Route { clusters }
        }
        Kind::Cluster => Spec::Cluster {
            endpoints: pick(&ENDPOINTS),
        },
        Kind::Endpoints | Kind::Secret => Spec::Endpoints {
            port: 1 + rng.below(4) as u16,
        },
    }
}

/// A resource on the wire.
pub(in crate::ads::tests) fn encode(kind: Kind, name: &str, spec: &Spec) -> Any {
    match (kind, spec) {
        (Kind::Listener, Spec::Listener { route }) => listener(name, route),
        (Kind::Listener, _) => any(&Listener {
            name: name.into(),
            ..Listener::default()
        }),
        (Kind::Route, Spec::Route { clusters }) => routes(name, clusters),
        (Kind::Route, _) => routes(name, &[String::new()]),
        (Kind::Cluster, Spec::Cluster { endpoints }) => any(&Cluster {
            name: name.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: ads(),
                service_name: endpoints.clone(),
            }),
            ..Cluster::default()
        }),
        (Kind::Cluster, _) => bad_cluster(name),
        (_, Spec::Endpoints { port }) => assignment(name, "10.0.0.1", *port),
        (_, _) => assignment(name, "not an address", 1),
    }
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

fn listener(name: &str, route: &str) -> Any {
    let manager = HttpConnectionManager {
        http_filters: vec![HttpFilter {
            name: "router".into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(
                any(&Router::default()),
            )),
            ..HttpFilter::default()
        }],
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: ads(),
            route_config_name: route.into(),
        })),
        ..HttpConnectionManager::default()
    };
    any(&Listener {
        name: name.into(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(&manager)),
        }),
        ..Listener::default()
    })
}

fn routes(name: &str, clusters: &[String]) -> Any {
    let route = |cluster: &String| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(format!("/{cluster}"))),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.clone())),
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    any(&RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![VirtualHost {
            name: "h".into(),
            domains: vec!["*".into()],
            routes: clusters.iter().map(route).collect(),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    })
}

fn assignment(name: &str, address: &str, port: u16) -> Any {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.into(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    };
    any(&ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                    address: Some(address),
                    ..Endpoint::default()
                })),
                ..LbEndpoint::default()
            }],
            load_balancing_weight: Some(envoy_types::pb::google::protobuf::UInt32Value {
                value: 1,
            }),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    })
}

/// One listener with all that it needs, in order.
pub(in crate::ads::tests) fn chain() -> [(Kind, &'static str, Spec); 4] {
    let clusters = vec!["c0".to_owned()];
    let (route, endpoints) = ("r0".to_owned(), "e0".to_owned());
    [
        (Kind::Listener, "l0", Spec::Listener { route }),
        (Kind::Route, "r0", Spec::Route { clusters }),
        (Kind::Cluster, "c0", Spec::Cluster { endpoints }),
        (Kind::Endpoints, "e0", Spec::Endpoints { port: 1 }),
    ]
}
