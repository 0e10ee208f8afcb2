//! Listeners of both sides.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{CidrRange, HttpProtocolOptions, TransportSocket, transport_socket},
            listener::v3::{
                ApiListener as ApiPb, Filter, FilterChain as ChainPb, FilterChainMatch,
                ListenerFilter, filter, listener_filter,
            },
            rbac::v3::{
                Permission as PermissionPb, Policy, Principal as PrincipalPb, Rbac as RulesPb,
                permission::Rule, principal::Identifier,
            },
            route::v3::{
                NonForwardingAction, Route as RoutePb, RouteConfiguration, RouteMatch as MatchPb,
                VirtualHost as HostPb, route::Action, route_match::PathSpecifier,
            },
        },
        extensions::filters::{
            http::{
                basic_auth::v3::BasicAuth, ext_authz::v3::ExtAuthz, fault::v3::HttpFault,
                rbac::v3::Rbac as RbacPb, router::v3::Router,
            },
            listener::{original_dst::v3::OriginalDst, tls_inspector::v3::TlsInspector},
            network::http_connection_manager::v3::{
                HttpConnectionManager as ManagerPb, HttpFilter, Rds,
                http_connection_manager::RouteSpecifier, http_filter,
            },
        },
    },
    google::protobuf::{BoolValue, Duration as DurationProto},
};
use mesh_core::config::{
    ApiListener, ChainMatch, InboundListener, ListenerKind, RbacAction, RouteSource, SourceType,
    TransportMatch,
};

use super::*;

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

fn router() -> HttpFilter {
    http_filter("router", any(&Router::default()))
}

fn rds(name: &str) -> Option<RouteSpecifier> {
    Some(RouteSpecifier::Rds(Rds {
        config_source: ads(),
        route_config_name: name.into(),
    }))
}

fn api(change: impl FnOnce(&mut ManagerPb)) -> Any {
    let mut manager = ManagerPb {
        http_filters: vec![router()],
        route_specifier: rds("r"),
        ..ManagerPb::default()
    };
    change(&mut manager);
    any(&ListenerProto {
        name: "l".into(),
        api_listener: Some(ApiPb {
            api_listener: Some(any(&manager)),
        }),
        ..ListenerProto::default()
    })
}

#[track_caller]
fn accepted_api(resource: Any) -> ApiListener {
    match decode(Kind::Listener, resource).unwrap() {
        Config::Listener(listener) => match &listener.kind {
            ListenerKind::Api(api) => api.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
pub(super) fn client_listeners() {
    let got = accepted_api(api(|manager| {
        manager.common_http_protocol_options = Some(HttpProtocolOptions {
            max_stream_duration: Some(DurationProto {
                seconds: 2,
                nanos: 0,
            }),
            ..HttpProtocolOptions::default()
        });
        manager.stream_idle_timeout = Some(DurationProto {
            seconds: 3,
            nanos: 0,
        });
    }));
    assert_eq!(got.stream_idle_timeout, Some(Duration::from_secs(3)));
    let zero = accepted_api(api(|manager| {
        manager.stream_idle_timeout = Some(DurationProto::default());
    }));
    assert_eq!(zero.stream_idle_timeout, None, "as in Envoy");
    assert_eq!(got.routes, RouteSource::Rds("r".into()));
    assert_eq!(got.max_stream_duration, Some(Duration::from_secs(2)));
    let inline = accepted_api(api(|manager| {
        manager.route_specifier = Some(RouteSpecifier::RouteConfig(RouteConfiguration::default()));
    }));
    assert!(matches!(inline.routes, RouteSource::Inline(_)));
}

#[test]
pub(super) fn client_filters() {
    let place = "api_listener.api_listener";
    let fault = http_filter("fault", any(&HttpFault::default()));
    accepted_api(api(|m| m.http_filters.insert(0, fault)));
    let limit = http_filter("limit", any(&ExtAuthz::default()));
    let mut optional = limit.clone();
    optional.is_optional = true;
    accepted_api(api(|m| m.http_filters.insert(0, optional)));
    let delay = any(&HttpFault {
        delay: Some(Default::default()),
        ..HttpFault::default()
    });
    for (filters, expected) in [
        (
            vec![],
            format!("{place}.http_filters: the router is missing"),
        ),
        (
            vec![limit, router()],
            format!("{place}.http_filters[0].typed_config: type.googleapis.com/envoy.extensions"),
        ),
        (
            vec![http_filter("f", delay), router()],
            format!("{place}.http_filters[0].typed_config"),
        ),
        (
            vec![http_filter("rbac", any(&RbacPb::default())), router()],
            format!("{place}.http_filters[0].typed_config: "),
        ),
        (
            vec![router(), http_filter("fault", any(&HttpFault::default()))],
            format!("{place}.http_filters[1]: stands behind the router"),
        ),
        (
            vec![http_filter("router", any(&HttpFault::default())), router()],
            format!("{place}.http_filters[1].name: \"router\" is empty or used twice"),
        ),
    ] {
        refused(Kind::Listener, api(|m| m.http_filters = filters), &expected);
    }
    refused(
        Kind::Listener,
        api(|m| m.route_specifier = None),
        &format!("{place}: has no routes"),
    );
    refused(
        Kind::Listener,
        api(|m| m.route_specifier = rds("")),
        &format!("{place}.rds.route_config_name: is missing"),
    );
    refused(
        Kind::Listener,
        api(|m| {
            m.route_specifier = Some(RouteSpecifier::Rds(Rds {
                config_source: None,
                route_config_name: "r".into(),
            }));
        }),
        &format!("{place}.rds.config_source: must be ads or self"),
    );
    let neither = any(&ListenerProto {
        name: "l".into(),
        ..ListenerProto::default()
    });
    refused(
        Kind::Listener,
        neither,
        ": has neither an api_listener nor filter_chains",
    );
}

pub(super) fn manager(change: impl FnOnce(&mut ManagerPb)) -> Any {
    let route = RoutePb {
        r#match: Some(MatchPb {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..MatchPb::default()
        }),
        action: Some(Action::NonForwardingAction(NonForwardingAction {})),
        ..RoutePb::default()
    };
    let mut manager = ManagerPb {
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            virtual_hosts: vec![HostPb {
                name: "h".into(),
                domains: vec!["*".into()],
                routes: vec![route],
                ..HostPb::default()
            }],
            ..RouteConfiguration::default()
        })),
        ..ManagerPb::default()
    };
    change(&mut manager);
    any(&manager)
}

pub(super) fn chain(transport: &str, manager: Any) -> ChainPb {
    ChainPb {
        name: "chain".into(),
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: transport.into(),
            ..FilterChainMatch::default()
        }),
        filters: vec![Filter {
            name: "hcm".into(),
            config_type: Some(filter::ConfigType::TypedConfig(manager)),
        }],
        ..ChainPb::default()
    }
}

pub(super) fn inbound(change: impl FnOnce(&mut ListenerProto)) -> Any {
    let mut listener = ListenerProto {
        name: "l".into(),
        address: address("10.0.0.1", 8080),
        filter_chains: vec![chain("", manager(|_| {}))],
        ..ListenerProto::default()
    };
    change(&mut listener);
    any(&listener)
}

#[track_caller]
pub(super) fn accepted(resource: Any) -> InboundListener {
    match decode(Kind::Listener, resource).unwrap() {
        Config::Listener(listener) => match &listener.kind {
            ListenerKind::Inbound(inbound) => inbound.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn listener_filter(config: Any) -> ListenerFilter {
    ListenerFilter {
        name: "f".into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    }
}

#[test]
pub(super) fn server_listeners() {
    let got = accepted(inbound(|l| {
        l.filter_chains = vec![
            chain("tls", manager(|_| {})),
            chain("raw_buffer", manager(|_| {})),
        ];
        l.default_filter_chain = Some(chain("", manager(|_| {})));
        l.listener_filters = vec![listener_filter(any(&TlsInspector::default()))];
    }));
    assert_eq!(got.address, Some("10.0.0.1:8080".parse().unwrap()));
    let transports: Vec<_> = got
        .filter_chains
        .iter()
        .map(|chain| chain.transport)
        .collect();
    let expected = [
        TransportMatch::Tls,
        TransportMatch::RawBuffer,
        TransportMatch::Any,
    ];
    assert_eq!(transports, expected);
    let any_port = accepted(inbound(|l| l.address = address("0.0.0.0", 0)));
    assert_eq!(any_port.address, None);
    let shadowed = accepted(inbound(|l| {
        l.default_filter_chain = Some(ChainPb {
            name: "default".into(),
            ..chain("", manager(|_| {}))
        })
    }));
    let default = &shadowed.filter_chains[1];
    assert!(default.matches.is_default && default.name == "default");
}

fn matched(change: impl FnOnce(&mut FilterChainMatch)) -> ChainPb {
    let mut chain = chain("", manager(|_| {}));
    let mut asks = FilterChainMatch::default();
    change(&mut asks);
    chain.filter_chain_match = Some(asks);
    chain
}

fn cidr(address: &str, length: u32) -> CidrRange {
    CidrRange {
        address_prefix: address.into(),
        prefix_len: Some(UInt32Value { value: length }),
    }
}

#[test]
pub(super) fn filter_chain_matches() {
    let got = accepted(inbound(|l| {
        l.filter_chains = vec![
            matched(|m| {
                m.destination_port = Some(UInt32Value { value: 80 });
                m.prefix_ranges = vec![cidr("10.1.2.3", 8)];
                m.server_names = vec!["*.Example".into()];
                m.application_protocols = vec!["h2".into()];
                m.source_type = 2;
                m.source_prefix_ranges = vec![cidr("2001:db8::1", 32)];
                m.source_ports = vec![1, 2];
                m.transport_protocol = "tls".into();
            }),
            matched(|m| m.source_ports = vec![3]),
        ];
    }));
    let asks = &got.filter_chains[0].matches;
    let expected = ChainMatch {
        is_default: false,
        destination_port: Some(80),
        destination_ranges: vec!["10.0.0.0/8".parse().unwrap()],
        server_names: vec!["*.example".into()],
        application_protocols: vec!["h2".into()],
        source_type: SourceType::External,
        source_ranges: vec!["2001:db8::/32".parse().unwrap()],
        source_ports: vec![1, 2],
    };
    assert_eq!(*asks, expected);
    for (chains, expected) in [
        (
            // The same ranges, once masked; the same port among others.
            vec![
                matched(|m| m.prefix_ranges = vec![cidr("10.1.2.3", 8)]),
                matched(|m| m.prefix_ranges = vec![cidr("10.9.9.9", 8), cidr("11.0.0.0", 8)]),
            ],
            "filter_chains[1].filter_chain_match: is the same",
        ),
        (
            vec![matched(|m| m.prefix_ranges = vec![cidr("x", 8)])],
            "filter_chains[0].filter_chain_match.prefix_ranges[0].address_prefix: ",
        ),
        (
            vec![matched(|m| {
                m.source_prefix_ranges = vec![cidr("10.0.0.0", 33)]
            })],
            "filter_chains[0].filter_chain_match.source_prefix_ranges[0].prefix_len: ",
        ),
        (
            vec![matched(|m| m.server_names = vec!["a*.b".into()])],
            "filter_chains[0].filter_chain_match.server_names[0]: ",
        ),
        (
            vec![matched(|m| m.source_type = 7)],
            "filter_chains[0].filter_chain_match.source_type: ",
        ),
        (
            vec![matched(|m| m.address_suffix = "x".into())],
            "filter_chains[0].filter_chain_match.address_suffix: ",
        ),
        (
            vec![matched(|m| {
                m.destination_port = Some(UInt32Value { value: 65_536 })
            })],
            "filter_chains[0].filter_chain_match.destination_port: ",
        ),
    ] {
        refused(
            Kind::Listener,
            inbound(|l| l.filter_chains = chains),
            expected,
        );
    }
}

#[test]
pub(super) fn server_listeners_that_cannot_be_served_as_meant_are_refused() {
    let with_manager = |change: fn(&mut ManagerPb)| {
        inbound(|l| l.filter_chains = vec![chain("", manager(change))])
    };
    let hcm = "filter_chains[0].filters[0].typed_config";
    for (resource, expected) in [
        (
            with_manager(|m| m.route_specifier = rds("")),
            format!("{hcm}.rds.route_config_name: is missing"),
        ),
        (
            with_manager(|m| m.path_with_escaped_slashes_action = 9),
            format!("{hcm}.path_with_escaped_slashes_action: 9 is not known"),
        ),
        (
            with_manager(|m| m.http_filters.clear()),
            format!("{hcm}.http_filters: the router"),
        ),
        (
            with_manager(|m| {
                let limit = http_filter("x", any(&BasicAuth::default()));
                m.http_filters.insert(0, limit);
            }),
            format!("{hcm}.http_filters[0].typed_config: "),
        ),
        (
            with_manager(|m| match &mut m.route_specifier {
                Some(RouteSpecifier::RouteConfig(routes)) => {
                    let open = any(&RbacPb::default());
                    routes.virtual_hosts[0]
                        .typed_per_filter_config
                        .insert("rbac".into(), open);
                }
                other => panic!("{other:?}"),
            }),
            format!("{hcm}.route_config.virtual_hosts[0].typed_per_filter_config[\"rbac\"]: "),
        ),
    ] {
        refused(Kind::Listener, resource, &expected);
    }
}

#[test]
pub(super) fn filter_chains_that_cannot_be_told_apart_or_served_are_refused() {
    let yes = || Some(BoolValue { value: true });
    for (resource, expected) in [
        (
            inbound(|l| l.use_original_dst = yes()),
            "use_original_dst: ",
        ),
        (
            inbound(|l| l.listener_filters = vec![listener_filter(any(&OriginalDst::default()))]),
            "listener_filters[0]: \"f\" is not supported",
        ),
        (
            inbound(|l| l.filter_chains.push(chain("", manager(|_| {})))),
            "filter_chains[1].filter_chain_match: is the same",
        ),
        (
            inbound(|l| {
                let chain_match = l.filter_chains[0].filter_chain_match.as_mut().unwrap();
                chain_match.source_ports = vec![0];
            }),
            "filter_chains[0].filter_chain_match.source_ports[0]: ",
        ),
        (
            inbound(|l| l.filter_chains = vec![chain("quic", manager(|_| {}))]),
            "filter_chains[0].filter_chain_match.transport_protocol: \"quic\"",
        ),
        (
            inbound(|l| l.filter_chains[0].filters.clear()),
            "filter_chains[0].filters: must",
        ),
        (
            inbound(|l| {
                l.filter_chains[0].transport_socket = Some(TransportSocket {
                    name: "x".into(),
                    config_type: Some(transport_socket::ConfigType::TypedConfig(any(
                        &Router::default(),
                    ))),
                });
            }),
            "filter_chains[0].transport_socket.typed_config: ",
        ),
    ] {
        refused(Kind::Listener, resource, expected);
    }
}

#[test]
pub(super) fn authorisation_filters_are_taken_in_order() {
    let rules = |action: i32| RbacPb {
        rules: Some(RulesPb {
            action,
            policies: [(
                "p".to_owned(),
                Policy {
                    permissions: vec![PermissionPb {
                        rule: Some(Rule::Any(true)),
                    }],
                    principals: vec![PrincipalPb {
                        identifier: Some(Identifier::Any(true)),
                    }],
                    ..Policy::default()
                },
            )]
            .into(),
            ..RulesPb::default()
        }),
        ..RbacPb::default()
    };
    let got = accepted(inbound(|l| {
        let manager = manager(|m| {
            m.http_filters = vec![
                http_filter("deny", any(&rules(1))),
                http_filter("allow", any(&rules(0))),
                // Without rules a filter admits everybody.
                http_filter("none", any(&RbacPb::default())),
                router(),
            ];
        });
        l.filter_chains = vec![chain("", manager)];
    }));
    let actions: Vec<_> = got.filter_chains[0]
        .filters
        .iter()
        .filter_map(config::HttpFilter::rbac)
        .map(|rbac| rbac.action)
        .collect();
    assert_eq!(actions, [RbacAction::Deny, RbacAction::Allow]);
}
