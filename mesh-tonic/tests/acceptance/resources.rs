//! Resources as scenarios want them.

use std::{net::SocketAddr, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy, OutlierDetection,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy},
                load_balancing_policy::Policy as LbPolicyProto,
            },
            core::v3::{
                Address, AggregatedConfigSource, ConfigSource, HealthStatus, Locality,
                SocketAddress, TypedExtensionConfig, address, config_source::ConfigSourceSpecifier,
                socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                cluster_load_assignment::{Policy, policy::DropOverload},
                lb_endpoint::HostIdentifier,
            },
            listener::v3::{ApiListener, Listener},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
                route::Action,
                route_action::{
                    ClusterSpecifier, HashPolicy, MaxStreamDuration,
                    hash_policy::{Header, PolicySpecifier},
                },
                route_match::PathSpecifier,
                weighted_cluster::ClusterWeight,
            },
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                http_filter,
            },
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{Any, Duration as ProtoDuration, UInt32Value},
};
use prost::{Message, Name};

pub(crate) const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub(crate) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

pub(crate) const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The name that every scenario dials, and its route configuration.
pub(crate) const TARGET: &str = "greeter";

/// A resource with its type and name.
pub(crate) type Named = (&'static str, &'static str, Any);

pub(crate) fn any<T: Message + Name>(value: &T) -> Any {
    Any {
        type_url: T::type_url(),
        value: value.encode_to_vec(),
    }
}

pub(crate) fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

pub(crate) fn listener() -> Named {
    listener_with(Vec::new())
}

/// The listener with these filters before the router.
pub(crate) fn listener_with(filters: Vec<HttpFilter>) -> Named {
    listener_of(filters, |_| {})
}

/// The listener with other settings.
#[allow(dead_code, reason = "only the target `routing` needs them")]
pub(crate) fn listener_changed(change: impl FnOnce(&mut HttpConnectionManager)) -> Named {
    listener_of(Vec::new(), change)
}

/// A manager with these filters before the router.
pub(crate) fn manager(
    mut filters: Vec<HttpFilter>,
    routes: RouteSpecifier,
) -> HttpConnectionManager {
    let router = HttpFilter {
        name: "router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(
            any(&Router::default()),
        )),
        ..HttpFilter::default()
    };
    filters.push(router);
    HttpConnectionManager {
        http_filters: filters,
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    }
}

fn listener_of(filters: Vec<HttpFilter>, change: impl FnOnce(&mut HttpConnectionManager)) -> Named {
    let rds = Rds {
        config_source: ads(),
        route_config_name: TARGET.into(),
    };
    let mut manager = manager(filters, RouteSpecifier::Rds(rds));
    change(&mut manager);
    let listener = Listener {
        name: TARGET.into(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(&manager)),
        }),
        ..Listener::default()
    };
    (LDS, TARGET, any(&listener))
}

fn routes(action: RouteAction) -> Named {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..Route::default()
    };
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let routes = RouteConfiguration {
        name: TARGET.into(),
        virtual_hosts: vec![host],
        ..RouteConfiguration::default()
    };
    (RDS, TARGET, any(&routes))
}

pub(crate) fn to(cluster: &str) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        ..RouteAction::default()
    }
}

pub(crate) fn route_to(cluster: &str) -> Named {
    routes(to(cluster))
}

/// Streams of the route end after so long.
pub(crate) fn route_with_limit(cluster: &str, limit: Duration) -> Named {
    let limit = ProtoDuration {
        seconds: limit.as_secs() as i64,
        nanos: limit.subsec_nanos() as i32,
    };
    routes(RouteAction {
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: Some(limit),
            ..MaxStreamDuration::default()
        }),
        ..to(cluster)
    })
}

pub(crate) fn route_by_weight(weights: &[(&str, u32)]) -> Named {
    let weight = |(name, value): &(&str, u32)| ClusterWeight {
        name: (*name).to_owned(),
        weight: Some(UInt32Value { value: *value }),
        ..ClusterWeight::default()
    };
    let clusters = WeightedCluster {
        clusters: weights.iter().map(weight).collect(),
        ..WeightedCluster::default()
    };
    routes(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(clusters)),
        ..RouteAction::default()
    })
}

pub(crate) fn eds_cluster(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            ..EdsClusterConfig::default()
        }),
        typed_extension_protocol_options: Default::default(),
        ..Cluster::default()
    }
}

pub(crate) fn cluster(name: &'static str) -> Named {
    (CDS, name, any(&eds_cluster(name)))
}

/// At most so many requests at a time.
pub(crate) fn cluster_with_limit(name: &'static str, max_requests: u32) -> Named {
    let thresholds = Thresholds {
        max_requests: Some(UInt32Value {
            value: max_requests,
        }),
        ..Thresholds::default()
    };
    let cluster = Cluster {
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![thresholds],
            ..CircuitBreakers::default()
        }),
        ..eds_cluster(name)
    };
    (CDS, name, any(&cluster))
}

/// A cluster with a policy that no library has.
pub(crate) fn bad_cluster(name: &'static str) -> Named {
    let cluster = Cluster {
        lb_policy: LbPolicy::ClusterProvided as i32,
        ..eds_cluster(name)
    };
    (CDS, name, any(&cluster))
}

pub(crate) fn dns_cluster(name: &'static str, host: &str, port: u16) -> Named {
    let cluster = Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns as i32)),
        load_assignment: Some(ClusterLoadAssignment {
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint(host, port)],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    };
    (CDS, name, any(&cluster))
}

pub(crate) fn endpoint(host: &str, port: u16) -> LbEndpoint {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.into(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}

/// One endpoint in each locality, with a priority and a weight.
pub(crate) fn localities(name: &'static str, of: &[(SocketAddr, u32, u32)]) -> Named {
    let locality = |(index, (address, priority, weight)): (usize, &(SocketAddr, u32, u32))| {
        LocalityLbEndpoints {
            locality: Some(Locality {
                zone: format!("z{index}"),
                ..Locality::default()
            }),
            lb_endpoints: vec![endpoint(&address.ip().to_string(), address.port())],
            load_balancing_weight: Some(UInt32Value { value: *weight }),
            priority: *priority,
            ..LocalityLbEndpoints::default()
        }
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: of.iter().enumerate().map(locality).collect(),
        ..ClusterLoadAssignment::default()
    };
    (EDS, name, any(&assignment))
}

/// Endpoints of the zones `z0`, `z1` and so on.
pub(crate) fn assignment_of(name: &str, zones: &[&[SocketAddr]]) -> ClusterLoadAssignment {
    let host = |address: &SocketAddr| endpoint(&address.ip().to_string(), address.port());
    let locality = |(index, of): (usize, &&[SocketAddr])| LocalityLbEndpoints {
        locality: Some(Locality {
            zone: format!("z{index}"),
            ..Locality::default()
        }),
        lb_endpoints: of.iter().map(host).collect(),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..LocalityLbEndpoints::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: zones.iter().enumerate().map(locality).collect(),
        ..ClusterLoadAssignment::default()
    }
}

/// Endpoints that fail five times in a row are ejected, however many.
pub(crate) fn watched_cluster(name: &'static str) -> Named {
    let cluster = Cluster {
        lb_policy: LbPolicy::LeastRequest as i32,
        outlier_detection: Some(OutlierDetection::default()),
        ..eds_cluster(name)
    };
    (CDS, name, any(&cluster))
}

/// The default policy of our control plane.
pub(crate) fn least_request_cluster(name: &'static str) -> Named {
    let cluster = Cluster {
        lb_policy: LbPolicy::LeastRequest as i32,
        ..eds_cluster(name)
    };
    (CDS, name, any(&cluster))
}

pub(crate) fn endpoints(name: &'static str, addresses: &[SocketAddr]) -> Named {
    let host = |address: &SocketAddr| endpoint(&address.ip().to_string(), address.port());
    let locality = LocalityLbEndpoints {
        lb_endpoints: addresses.iter().map(host).collect(),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..LocalityLbEndpoints::default()
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: if addresses.is_empty() {
            Vec::new()
        } else {
            vec![locality]
        },
        ..ClusterLoadAssignment::default()
    };
    (EDS, name, any(&assignment))
}

/// Endpoints of one locality, each with a priority and its health, and more to say of them.
pub(crate) fn healths(
    name: &'static str,
    of: &[(SocketAddr, u32, HealthStatus)],
    policy: Policy,
) -> Named {
    let locality = |(address, priority, health): &(SocketAddr, u32, HealthStatus)| {
        let mut endpoint = endpoint(&address.ip().to_string(), address.port());
        endpoint.health_status = *health as i32;
        LocalityLbEndpoints {
            locality: Some(Locality {
                zone: address.to_string(),
                ..Locality::default()
            }),
            lb_endpoints: vec![endpoint],
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            priority: *priority,
            ..LocalityLbEndpoints::default()
        }
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: of.iter().map(locality).collect(),
        policy: Some(policy),
        ..ClusterLoadAssignment::default()
    };
    (EDS, name, any(&assignment))
}

/// Refuses these percentages, one category after the other.
pub(crate) fn dropping(percentages: &[u32]) -> Policy {
    let overload = |(index, numerator): (usize, &u32)| DropOverload {
        category: format!("c{index}"),
        drop_percentage: Some(FractionalPercent {
            numerator: *numerator,
            denominator: DenominatorType::Hundred as i32,
        }),
    };
    Policy {
        drop_overloads: percentages.iter().enumerate().map(overload).collect(),
        ..Policy::default()
    }
}

/// Priorities share the load by health.
pub(crate) fn overprovisioned(percent: u32) -> Policy {
    Policy {
        overprovisioning_factor: Some(UInt32Value { value: percent }),
        ..Policy::default()
    }
}

/// Calls of one user go to one endpoint.
pub(crate) fn route_by_user(cluster: &str) -> Named {
    let header = PolicySpecifier::Header(Header {
        header_name: "x-user".into(),
        ..Header::default()
    });
    routes(RouteAction {
        hash_policy: vec![HashPolicy {
            policy_specifier: Some(header),
            ..HashPolicy::default()
        }],
        ..to(cluster)
    })
}

pub(crate) fn ring_cluster(name: &'static str) -> Named {
    let cluster = Cluster {
        lb_policy: LbPolicy::RingHash as i32,
        ..eds_cluster(name)
    };
    (CDS, name, any(&cluster))
}

/// `xds.type.v3.TypedStruct`, which `envoy-types` leaves out.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
}

impl Name for TypedStruct {
    const NAME: &'static str = "TypedStruct";
    const PACKAGE: &'static str = "xds.type.v3";

    fn type_url() -> String {
        "type.googleapis.com/xds.type.v3.TypedStruct".to_owned()
    }
}

/// A cluster with a policy of the application's.
pub(crate) fn custom_cluster(name: &'static str, policy: &str) -> Named {
    let typed = TypedStruct {
        type_url: format!("type.googleapis.com/{policy}"),
    };
    let extension = TypedExtensionConfig {
        name: policy.to_owned(),
        typed_config: Some(any(&typed)),
    };
    let cluster = Cluster {
        load_balancing_policy: Some(LoadBalancingPolicy {
            policies: vec![LbPolicyProto {
                typed_extension_config: Some(extension),
            }],
        }),
        ..eds_cluster(name)
    };
    (CDS, name, any(&cluster))
}
