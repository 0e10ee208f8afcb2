//! Every message that is read, each in a resource in which nothing else is missing.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            CircuitBreakers, LoadBalancingPolicy, OutlierDetection,
            circuit_breakers::Thresholds,
            cluster::{
                CommonLbConfig, EdsClusterConfig,
                common_lb_config::{
                    LocalityConfigSpecifier as OfCluster, ZoneAwareLbConfig as ZoneAwareOfCluster,
                },
            },
            load_balancing_policy::Policy as LbPolicy,
        },
        core::v3::{
            HttpProtocolOptions as CommonOptions, Locality, TransportSocket, TypedExtensionConfig,
            transport_socket,
        },
        endpoint::v3::{
            Endpoint, LbEndpoint, LocalityLbEndpoints,
            cluster_load_assignment::{Policy, policy::DropOverload},
            lb_endpoint::HostIdentifier,
        },
        listener::v3::{ApiListener, Filter, FilterChain, FilterChainMatch, filter},
        route::v3::{
            HeaderMatcher, NonForwardingAction, RetryPolicy, Route, RouteAction, RouteMatch,
            VirtualHost, WeightedCluster, header_matcher::HeaderMatchSpecifier, route::Action,
            route_action::ClusterSpecifier, route_match::PathSpecifier,
            weighted_cluster::ClusterWeight,
        },
    },
    extensions::{
        filters::{
            http::{rbac::v3::Rbac, router::v3::Router},
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds,
                http_connection_manager::{RouteSpecifier, SetCurrentClientCertDetails},
                http_filter,
            },
        },
        load_balancing_policies::{
            client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
            common::v3::{
                LocalityLbConfig, SlowStartConfig,
                locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
            },
            least_request::v3::LeastRequest,
            maglev::v3::Maglev,
            pick_first::v3::PickFirst,
            random::v3::Random,
            random_subsetting::v3::RandomSubsetting,
            ring_hash::v3::RingHash,
            round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
        transport_sockets::tls::v3::{
            CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
            DownstreamTlsContext, UpstreamTlsContext, common_tls_context::ValidationContextType,
            secret::Type as SecretType,
        },
        upstreams::http::v3::HttpProtocolOptions,
    },
    r#type::v3::FractionalPercent,
};

use super::{
    super::{super::own_policy::DeterministicSubsetting, *},
    clusters, filters,
    probe::{Fate, probe},
    routes, tls,
};

pub(super) type Table = Vec<(String, BTreeMap<String, Fate>)>;

pub(super) fn add<M: Message + Default + std::fmt::Debug + PartialEq + Name>(
    table: &mut Table,
    note: &str,
    kind: Kind,
    base: &M,
    place: impl Fn(M) -> Any,
) {
    let title = format!("{}{note}", M::full_name());
    table.push((title, probe(kind, base, place)));
}

fn policies(policy: Any) -> Option<LoadBalancingPolicy> {
    Some(LoadBalancingPolicy {
        policies: vec![LbPolicy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: "p".into(),
                typed_config: Some(policy),
            }),
        }],
    })
}

fn with_policy(policy: Any) -> Any {
    any(&ClusterProto {
        load_balancing_policy: policies(policy),
        ..cluster()
    })
}

/// Load balancing and passive health.
fn balance(t: &mut Table) {
    add(t, "", Kind::Cluster, &CommonLbConfig::default(), |m| {
        any(&ClusterProto {
            common_lb_config: Some(m),
            ..cluster()
        })
    });
    add(t, "", Kind::Cluster, &OutlierDetection::default(), |m| {
        any(&ClusterProto {
            outlier_detection: Some(m),
            ..cluster()
        })
    });
    fn policy<M: Message + Default + std::fmt::Debug + PartialEq + Name>(t: &mut Table, base: &M) {
        add(t, "", Kind::Cluster, base, |m| with_policy(any(&m)));
    }
    policy(t, &RoundRobin::default());
    policy(t, &LeastRequest::default());
    policy(t, &Random::default());
    policy(t, &RingHash::default());
    policy(t, &Maglev::default());
    policy(t, &PickFirst::default());
    policy(
        t,
        &ClientSideWeightedRoundRobin {
            enable_oob_load_report: Some(envoy_types::pb::google::protobuf::BoolValue {
                value: true,
            }),
            ..ClientSideWeightedRoundRobin::default()
        },
    );
    let inner = policies(any(&Random::default()));
    policy(
        t,
        &WrrLocality {
            endpoint_picking_policy: inner.clone(),
        },
    );
    policy(
        t,
        &RandomSubsetting {
            subset_size: uint32(3),
            child_policy: inner,
        },
    );
    policy(
        t,
        &DeterministicSubsetting {
            subset_size: uint32(3),
            child_policy: policies(any(&Random::default())),
        },
    );
    add(t, "", Kind::Cluster, &ZoneAwareOfCluster::default(), |m| {
        any(&ClusterProto {
            common_lb_config: Some(CommonLbConfig {
                locality_config_specifier: Some(OfCluster::ZoneAwareLbConfig(m)),
                ..CommonLbConfig::default()
            }),
            ..cluster()
        })
    });
    add(t, "", Kind::Cluster, &ZoneAwareLbConfig::default(), |m| {
        with_policy(any(&RoundRobin {
            locality_lb_config: Some(LocalityLbConfig {
                locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(m)),
            }),
            ..RoundRobin::default()
        }))
    });
    let slow_start = SlowStartConfig {
        slow_start_window: Some(envoy_types::pb::google::protobuf::Duration {
            seconds: 10,
            nanos: 0,
        }),
        ..SlowStartConfig::default()
    };
    add(t, "", Kind::Cluster, &slow_start, |m| {
        with_policy(any(&RoundRobin {
            slow_start_config: Some(m),
            ..RoundRobin::default()
        }))
    });
}

/// Every message that is read, with the fate of each of its fields.
pub(super) fn table() -> Table {
    let mut table = Vec::new();
    let t = &mut table;
    add(t, "", Kind::Listener, &api_listener(manager()), |m| any(&m));
    add(t, " (client)", Kind::Listener, &manager(), |m| {
        any(&api_listener(m))
    });
    add(
        t,
        " (client)",
        Kind::Listener,
        &CommonOptions::default(),
        |m| {
            any(&api_listener(HttpConnectionManager {
                common_http_protocol_options: Some(m),
                ..manager()
            }))
        },
    );
    add(t, " (client)", Kind::Listener, &rds(), |m| {
        any(&api_listener(HttpConnectionManager {
            route_specifier: Some(RouteSpecifier::Rds(m)),
            ..manager()
        }))
    });
    add(t, " (client)", Kind::Listener, &router(), |m| {
        any(&api_listener(HttpConnectionManager {
            http_filters: vec![m],
            ..manager()
        }))
    });
    add(t, "", Kind::Listener, &Router::default(), |m| {
        any(&api_listener(HttpConnectionManager {
            http_filters: vec![filter("router", any(&m))],
            ..manager()
        }))
    });
    add(
        t,
        " (server)",
        Kind::Listener,
        &inbound(chain(inline())),
        |m| any(&m),
    );
    add(t, "", Kind::Listener, &chain(inline()), |m| {
        any(&inbound(m))
    });
    add(t, "", Kind::Listener, &FilterChainMatch::default(), |m| {
        any(&inbound(FilterChain {
            filter_chain_match: Some(m),
            ..chain(inline())
        }))
    });
    add(t, " (server)", Kind::Listener, &inline(), |m| {
        any(&inbound(chain(m)))
    });
    add(
        t,
        " (server)",
        Kind::Listener,
        &CommonOptions::default(),
        |m| {
            any(&inbound(chain(HttpConnectionManager {
                common_http_protocol_options: Some(m),
                ..inline()
            })))
        },
    );
    let details = SetCurrentClientCertDetails::default();
    add(t, "", Kind::Listener, &details, |m| {
        any(&inbound(chain(HttpConnectionManager {
            set_current_client_cert_details: Some(m),
            ..inline()
        })))
    });
    add(t, " (server)", Kind::Listener, &Rbac::default(), |m| {
        any(&inbound(chain(HttpConnectionManager {
            http_filters: vec![filter("rbac", any(&m)), router()],
            ..inline()
        })))
    });
    add(t, "", Kind::Listener, &downstream(), |m| {
        any(&inbound(FilterChain {
            transport_socket: Some(socket(any(&m))),
            ..chain(inline())
        }))
    });
    add(
        t,
        "",
        Kind::Route,
        &route_config(host(route(action()))),
        |m| any(&m),
    );
    add(t, "", Kind::Route, &host(route(action())), |m| {
        any(&route_config(m))
    });
    add(t, "", Kind::Route, &route(action()), |m| {
        any(&route_config(host(m)))
    });
    add(t, "", Kind::Route, &path(), |m| {
        any(&route_config(host(Route {
            r#match: Some(m),
            ..route(action())
        })))
    });
    add(t, "", Kind::Route, &header(), |m| {
        any(&route_config(host(Route {
            r#match: Some(RouteMatch {
                headers: vec![m],
                ..path()
            }),
            ..route(action())
        })))
    });
    add(t, "", Kind::Route, &action(), |m| {
        any(&route_config(host(route(m))))
    });
    filters::add_all(t);
    routes::add_all(t);
    add(t, "", Kind::Route, &RetryPolicy::default(), |m| {
        any(&route_config(host(route(RouteAction {
            retry_policy: Some(m),
            ..action()
        }))))
    });
    let weighted = |m| {
        any(&route_config(host(route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(m)),
            ..action()
        }))))
    };
    let clusters = || WeightedCluster {
        clusters: vec![weight()],
        ..WeightedCluster::default()
    };
    add(t, "", Kind::Route, &clusters(), weighted);
    add(t, "", Kind::Route, &weight(), |m| {
        weighted(WeightedCluster {
            clusters: vec![m],
            ..WeightedCluster::default()
        })
    });
    add(t, "", Kind::Cluster, &cluster(), |m| any(&m));
    add(t, "", Kind::Cluster, &eds(), |m| {
        any(&ClusterProto {
            eds_cluster_config: Some(m),
            ..cluster()
        })
    });
    balance(t);
    clusters::connections(t);
    add(t, "", Kind::Cluster, &Thresholds::default(), |m| {
        any(&ClusterProto {
            circuit_breakers: Some(CircuitBreakers {
                thresholds: vec![m],
                ..CircuitBreakers::default()
            }),
            ..cluster()
        })
    });
    add(t, "", Kind::Cluster, &HttpProtocolOptions::default(), |m| {
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
        any(&ClusterProto {
            typed_extension_protocol_options: [(name, any(&m))].into(),
            ..cluster()
        })
    });
    tls::add_all(t);
    add(
        t,
        "",
        Kind::Endpoints,
        &assignment(locality(endpoint())),
        |m| any(&m),
    );
    add(t, "", Kind::Endpoints, &Policy::default(), |m| {
        any(&EndpointsProto {
            policy: Some(m),
            ..assignment(locality(endpoint()))
        })
    });
    let drop = DropOverload {
        category: "c".into(),
        drop_percentage: Some(FractionalPercent {
            numerator: 5,
            ..FractionalPercent::default()
        }),
    };
    add(t, "", Kind::Endpoints, &drop, |m| {
        any(&EndpointsProto {
            policy: Some(Policy {
                drop_overloads: vec![m],
                ..Policy::default()
            }),
            ..assignment(locality(endpoint()))
        })
    });
    add(t, "", Kind::Endpoints, &locality(endpoint()), |m| {
        any(&assignment(m))
    });
    add(t, "", Kind::Endpoints, &endpoint(), |m| {
        any(&assignment(locality(m)))
    });
    add(t, "", Kind::Endpoints, &host_of(), |m| {
        any(&assignment(locality(LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(m)),
            ..LbEndpoint::default()
        })))
    });
    let root = rcgen::generate_simple_self_signed(["root".to_owned()]);
    let pem = root.expect("a certificate").cert.pem();
    let secret = SecretProto {
        name: "s".into(),
        r#type: Some(SecretType::ValidationContext(
            CertificateValidationContext {
                trusted_ca: Some(inline_string(&pem)),
                ..CertificateValidationContext::default()
            },
        )),
    };
    add(t, "", Kind::Secret, &secret, |m| any(&m));
    super::dns::add_all(t);
    table
}

pub(super) fn inline_string(text: &str) -> envoy_types::pb::envoy::config::core::v3::DataSource {
    use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
    DataSource {
        specifier: Some(Specifier::InlineString(text.into())),
        ..DataSource::default()
    }
}

pub(super) fn filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

pub(super) fn router() -> HttpFilter {
    filter("router", any(&Router::default()))
}

fn rds() -> Rds {
    Rds {
        config_source: ads(),
        route_config_name: "r".into(),
    }
}

pub(super) fn manager() -> HttpConnectionManager {
    HttpConnectionManager {
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::Rds(rds())),
        ..HttpConnectionManager::default()
    }
}

pub(super) fn inline() -> HttpConnectionManager {
    let serve = Route {
        action: Some(Action::NonForwardingAction(NonForwardingAction {})),
        ..route(action())
    };
    HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(route_config(host(serve)))),
        ..manager()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the table reads better")]
pub(super) fn api_listener(manager: HttpConnectionManager) -> ListenerProto {
    ListenerProto {
        name: "l".into(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(&manager)),
        }),
        ..ListenerProto::default()
    }
}

pub(super) fn inbound(chain: FilterChain) -> ListenerProto {
    ListenerProto {
        name: "l".into(),
        address: address("10.0.0.1", 80),
        filter_chains: vec![chain],
        ..ListenerProto::default()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the table reads better")]
pub(super) fn chain(manager: HttpConnectionManager) -> FilterChain {
    FilterChain {
        filters: vec![Filter {
            name: "hcm".into(),
            config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
        }],
        ..FilterChain::default()
    }
}

pub(super) fn socket(config: Any) -> TransportSocket {
    TransportSocket {
        name: "tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}

fn provider() -> CertificateProviderPluginInstance {
    CertificateProviderPluginInstance {
        instance_name: "default".into(),
        ..CertificateProviderPluginInstance::default()
    }
}

pub(super) fn validation() -> CertificateValidationContext {
    CertificateValidationContext {
        ca_certificate_provider_instance: Some(provider()),
        ..CertificateValidationContext::default()
    }
}

pub(super) fn common() -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_provider_instance: Some(provider()),
        validation_context_type: Some(ValidationContextType::ValidationContext(validation())),
        ..CommonTlsContext::default()
    }
}

pub(super) fn upstream(common: CommonTlsContext) -> UpstreamTlsContext {
    UpstreamTlsContext {
        common_tls_context: Some(common),
        ..UpstreamTlsContext::default()
    }
}

fn downstream() -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: Some(common()),
        ..DownstreamTlsContext::default()
    }
}

pub(super) fn route_config(host: VirtualHost) -> RouteProto {
    RouteProto {
        name: "r".into(),
        virtual_hosts: vec![host],
        ..RouteProto::default()
    }
}

pub(super) fn host(route: Route) -> VirtualHost {
    VirtualHost {
        name: "h".into(),
        domains: vec!["a".into()],
        routes: vec![route],
        ..VirtualHost::default()
    }
}

pub(super) fn route(action: RouteAction) -> Route {
    Route {
        r#match: Some(path()),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

pub(super) fn path() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".into())),
        ..RouteMatch::default()
    }
}

fn header() -> HeaderMatcher {
    HeaderMatcher {
        name: "h".into(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..HeaderMatcher::default()
    }
}

pub(super) fn action() -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".into())),
        ..RouteAction::default()
    }
}

fn weight() -> ClusterWeight {
    ClusterWeight {
        name: "c".into(),
        weight: uint32(3),
        ..ClusterWeight::default()
    }
}

fn eds() -> EdsClusterConfig {
    EdsClusterConfig {
        eds_config: ads(),
        service_name: "e".into(),
    }
}

pub(super) fn cluster() -> ClusterProto {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType;
    ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(eds()),
        ..ClusterProto::default()
    }
}

fn host_of() -> Endpoint {
    Endpoint {
        address: address("10.0.0.1", 80),
        ..Endpoint::default()
    }
}

fn endpoint() -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(host_of())),
        ..LbEndpoint::default()
    }
}

fn locality(endpoint: LbEndpoint) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        lb_endpoints: vec![endpoint],
        load_balancing_weight: uint32(3),
        ..LocalityLbEndpoints::default()
    }
}

fn assignment(locality: LocalityLbEndpoints) -> EndpointsProto {
    // Priority 0 has another one.
    let other = LocalityLbEndpoints {
        locality: Some(Locality {
            zone: "other".into(),
            ..Locality::default()
        }),
        ..self::locality(LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: address("10.0.0.2", 80),
                ..Endpoint::default()
            })),
            ..LbEndpoint::default()
        })
    };
    EndpointsProto {
        cluster_name: "e".into(),
        endpoints: vec![locality, other],
        ..EndpointsProto::default()
    }
}
