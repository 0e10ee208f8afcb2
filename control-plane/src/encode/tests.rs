//! What differs between the classes.

use std::sync::Arc;

use mesh_core::config::*;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{TransportSocket, transport_socket},
        listener::v3::FilterChain as ProtoFilterChain,
        route::v3::route_match::PathSpecifier,
    },
    r#type::matcher::v3::RegexMatcher,
};

use super::*;

fn mtls_cluster() -> Cluster {
    Cluster {
        lb_policy: LbPolicy::least_request(2),
        http_version: HttpVersion::Http2,
        tls: Some(UpstreamTls {
            identity: Some(CertificateSource::Provider {
                instance: "default".into(),
            }),
            subject_alt_names: vec![SanMatcher::exact("spiffe://td/ns/a/sa/b")],
            ..UpstreamTls::new(TrustSource::Sds("ROOTCA".into()))
        }),
        ..Cluster::new("c")
    }
}

#[test]
fn certificates_come_by_provider_by_sds_or_by_both() {
    for (class, by_sds, by_provider) in [
        (ClientClass::Rust, 1, 1),
        (ClientClass::GrpcCpp, 0, 2),
        (ClientClass::Envoy, 2, 0),
    ] {
        let text = format!(
            "{:?}",
            cluster(&mtls_cluster(), class).transport_socket.unwrap()
        );
        assert!(text.contains("envoy.transport_sockets.tls"), "{text}");
        let context = tls::upstream(mtls_cluster().tls.as_ref().unwrap(), class);
        let Some(transport_socket::ConfigType::TypedConfig(any)) = context.config_type else {
            panic!()
        };
        use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
        let context = format!("{:?}", UpstreamTlsContext::decode(&any.value[..]).unwrap());
        assert_eq!(
            context.matches("SdsSecretConfig {").count(),
            by_sds,
            "{class:?} {context}"
        );
        let providers = context
            .matches("CertificateProviderPluginInstance {")
            .count();
        assert_eq!(providers, by_provider, "{class:?} {context}");
    }
}

#[test]
fn a_timeout_is_a_stream_limit_to_grpc_and_none_is_not_envoys_default() {
    let config = |timeout| {
        let forward = Forward {
            timeout,
            ..Forward::to("c")
        };
        let route = Route::new("", RouteMatch::any(), RouteAction::Forward(forward));
        RouteConfig::new("r", vec![VirtualHost::new("h", ["*"], vec![route])])
    };
    let action = |timeout, class| {
        let encoded = route_config(&config(timeout), class);
        let action = encoded.virtual_hosts[0].routes[0].action.clone();
        use envoy_types::pb::envoy::config::route::v3::route::Action;
        let Some(Action::Route(action)) = action else {
            panic!()
        };
        (
            action.timeout.unwrap().seconds,
            action.max_stream_duration.is_some(),
        )
    };
    let second = Some(Duration::from_secs(1));
    assert_eq!(action(second, ClientClass::GrpcCpp), (1, true));
    assert_eq!(action(second, ClientClass::Envoy), (1, false));
    assert_eq!(action(None, ClientClass::Envoy), (0, false));
    assert_eq!(action(None, ClientClass::GrpcCpp), (0, false));
}

fn inbound(transports: &[TransportMatch]) -> Listener {
    let chain = |transport| FilterChain {
        name: "c".into(),
        transport,
        matches: ChainMatch::default(),
        tls: (transport == TransportMatch::Tls).then(|| DownstreamTls {
            identity: CertificateSource::Provider {
                instance: "default".into(),
            },
            roots: Some(TrustSource::Sds("ROOTCA".into())),
            require_client_certificate: true,
        }),
        filters: HttpFilter::of_rbac(&[Rbac::new(RbacAction::Allow, Default::default())]),
        path_normalization: PathNormalization::BASE,
        client_cert: ForwardClientCert::default(),
        limits: HttpLimits::default(),
        routes: RouteSource::Inline(Arc::new(RouteConfig::new("r", vec![]))),
    };
    Listener {
        name: "mesh/inbound/127.0.0.1:1".into(),
        kind: ListenerKind::Inbound(InboundListener {
            address: Some(([127, 0, 0, 1], 1).into()),
            filter_chains: transports.iter().copied().map(chain).collect(),
        }),
    }
}

#[test]
fn an_allow_filter_without_policies_is_said_and_the_router_is_last() {
    use envoy_types::pb::envoy::{
        config::listener::v3::filter::ConfigType,
        extensions::filters::{
            http::rbac::v3::Rbac as RbacFilter,
            network::http_connection_manager::v3::{HttpConnectionManager, http_filter},
        },
    };
    for class in [ClientClass::Rust, ClientClass::GrpcCpp, ClientClass::Envoy] {
        let encoded = listener(&inbound(&[TransportMatch::Any]), class);
        let filter = &encoded.filter_chains[0].filters[0];
        let Some(ConfigType::TypedConfig(manager)) = &filter.config_type else {
            panic!()
        };
        let manager = HttpConnectionManager::decode(&manager.value[..]).unwrap();
        let [rbac, router] = &manager.http_filters[..] else {
            panic!("{manager:?}")
        };
        assert_eq!(router.name, "envoy.filters.http.router");
        let Some(http_filter::ConfigType::TypedConfig(rbac)) = &rbac.config_type else {
            panic!()
        };
        let rules = RbacFilter::decode(&rbac.value[..]).unwrap().rules;
        assert!(rules.unwrap().policies.is_empty(), "ALLOW of nobody");
    }
}

#[test]
fn the_limits_of_a_chain_are_said_and_those_of_others_are_not() {
    use envoy_types::pb::envoy::{
        config::listener::v3::filter::ConfigType,
        extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    };
    let encoded = |limits: HttpLimits| {
        let mut config = inbound(&[TransportMatch::Any]);
        let ListenerKind::Inbound(served) = &mut config.kind else {
            panic!()
        };
        served.filter_chains[0].limits = limits;
        let filter = &listener(&config, ClientClass::Envoy).filter_chains[0].filters[0];
        let Some(ConfigType::TypedConfig(manager)) = &filter.config_type else {
            panic!()
        };
        HttpConnectionManager::decode(&manager.value[..]).unwrap()
    };
    let silent = encoded(HttpLimits::default());
    assert!(silent.stream_idle_timeout.is_none() && silent.common_http_protocol_options.is_none());
    let limited = encoded(HttpLimits {
        request_timeout: Some(Duration::from_secs(5)),
        max_headers_bytes: Some(8192),
        max_requests_per_connection: Some(9),
        ..HttpLimits::default()
    });
    assert_eq!(limited.request_timeout.unwrap().seconds, 5);
    assert_eq!(limited.max_request_headers_kb.unwrap().value, 8);
    let options = limited.common_http_protocol_options.unwrap();
    assert_eq!(options.max_requests_per_connection.unwrap().value, 9);
}

#[test]
fn only_our_servers_tell_tls_from_plaintext_on_one_port() {
    let permissive = inbound(&[TransportMatch::Tls, TransportMatch::RawBuffer]);
    let transports = |class| {
        let chains = listener(&permissive, class).filter_chains;
        let protocol = |chain: &ProtoFilterChain| {
            let chosen = chain.filter_chain_match.as_ref();
            chosen.map(|chosen| chosen.transport_protocol.clone())
        };
        chains.iter().map(protocol).collect::<Vec<_>>()
    };
    let both = [Some("tls".to_owned()), Some("raw_buffer".to_owned())];
    assert_eq!(transports(ClientClass::Rust), both);
    assert_eq!(transports(ClientClass::GrpcCpp), [None]);
    let strict = listener(&inbound(&[TransportMatch::Tls]), ClientClass::GrpcCpp);
    assert!(strict.filter_chains[0].transport_socket.is_some());
    assert!(strict.listener_filters.is_empty());
}

#[test]
fn hosts_are_looked_up_by_the_client_as_its_class_can() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{
        ClusterDiscoveryType::Type, DiscoveryType,
    };
    let host = |name: &str| DnsHost {
        name: name.to_owned(),
        port: 443,
    };
    let strict =
        |names: &[&str]| Discovery::StrictDns(names.iter().map(|name| host(name)).collect());
    for (discovery, class, expected) in [
        (
            strict(&["a", "b"]),
            ClientClass::Rust,
            DiscoveryType::StrictDns,
        ),
        (
            strict(&["a", "b"]),
            ClientClass::Envoy,
            DiscoveryType::StrictDns,
        ),
        (
            strict(&["a"]),
            ClientClass::GrpcCpp,
            DiscoveryType::LogicalDns,
        ),
        (
            Discovery::LogicalDns(host("a")),
            ClientClass::Envoy,
            DiscoveryType::LogicalDns,
        ),
    ] {
        let config = Cluster {
            discovery,
            ..Cluster::new("c")
        };
        let proto = cluster(&config, class);
        assert_eq!(
            proto.cluster_discovery_type,
            Some(Type(expected as i32)),
            "{class:?}"
        );
        assert!(proto.eds_cluster_config.is_none());
        let assignment = proto.load_assignment.expect("hosts");
        let hosts = match &config.discovery {
            Discovery::StrictDns(hosts) => hosts.len(),
            _ => 1,
        };
        assert_eq!(assignment.endpoints[0].lb_endpoints.len(), hosts);
    }
}

#[test]
fn envoy_gets_the_systems_roots_as_a_file_and_tls_1_2_outside_alone() {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
        UpstreamTlsContext, common_tls_context::ValidationContextType, tls_parameters::TlsProtocol,
    };
    let outside = UpstreamTls {
        sni: Some("api.example".into()),
        auto_sni_san_validation: true,
        ..UpstreamTls::new(TrustSource::System)
    };
    for (tls, class, oldest) in [
        (&outside, ClientClass::Envoy, Some(TlsProtocol::TlSv12)),
        (&outside, ClientClass::Rust, None),
        (
            &mtls_cluster().tls.unwrap(),
            ClientClass::Envoy,
            Some(TlsProtocol::TlSv13),
        ),
    ] {
        let socket = tls::upstream(tls, class);
        let Some(transport_socket::ConfigType::TypedConfig(any)) = socket.config_type else {
            panic!("it is typed");
        };
        let context = UpstreamTlsContext::decode(&any.value[..]).unwrap();
        assert_eq!(context.auto_sni_san_validation, tls.auto_sni_san_validation);
        let common = context.common_tls_context.unwrap();
        let params = common
            .tls_params
            .map(|params| params.tls_minimum_protocol_version);
        assert_eq!(params, oldest.map(|version| version as i32));
        if tls.roots == TrustSource::System {
            let Some(ValidationContextType::ValidationContext(context)) =
                common.validation_context_type
            else {
                panic!("there is no secret");
            };
            let is_envoy = class == ClientClass::Envoy;
            assert_eq!(context.trusted_ca.is_some(), is_envoy);
            assert_eq!(context.system_root_certs.is_some(), !is_envoy);
        }
    }
}

#[test]
fn mixed_endpoints_have_sockets_by_label_but_for_grpc() {
    let mut config = mtls_cluster();
    let tls = config.tls.take();
    let labels = LbMetadata::from([("tlsMode".to_owned(), "istio".into())]);
    let of = |name: &str, labels, tls| SocketMatch {
        name: name.to_owned(),
        labels,
        tls,
    };
    config.socket_matches = vec![
        of("tlsMode-istio", labels.clone(), tls),
        of("tlsMode-disabled", LbMetadata::new(), None),
    ];
    for (class, expected) in [
        (ClientClass::Rust, 2),
        (ClientClass::Envoy, 2),
        (ClientClass::GrpcGo, 0),
    ] {
        let proto = cluster(&config, class);
        assert_eq!(proto.transport_socket_matches.len(), expected, "{class:?}");
        assert!(
            proto
                .transport_socket_matches
                .iter()
                .all(|m| m.transport_socket.is_some())
        );
    }
    let mut endpoint = Endpoint::new(([10, 0, 0, 1], 80).into());
    endpoint.details_mut().socket_labels = Some(labels.into());
    let locality = LocalityEndpoints {
        locality: LocalityId::default(),
        priority: 0,
        weight: 1,
        endpoints: vec![endpoint],
    };
    let proto = endpoints(&ClusterEndpoints::new("c", vec![locality]));
    let metadata = proto.endpoints[0].lb_endpoints[0]
        .metadata
        .clone()
        .expect("labels");
    let labels = &metadata.filter_metadata["envoy.transport_socket_match"];
    assert!(labels.fields.contains_key("tlsMode"));
}

#[test]
fn an_envoy_that_takes_tls_reads_the_hello_before_it_chooses_a_chain() {
    let filters = |transports: &[TransportMatch], class| {
        let filters = listener(&inbound(transports), class).listener_filters;
        let names = filters.into_iter().map(|filter| filter.name);
        names.collect::<Vec<_>>()
    };
    let strict = [TransportMatch::Tls];
    let permissive = [TransportMatch::Tls, TransportMatch::RawBuffer];
    for transports in [&strict[..], &permissive] {
        let names = filters(transports, ClientClass::Envoy);
        assert_eq!(names, ["envoy.filters.listener.tls_inspector"]);
        assert_eq!(filters(transports, ClientClass::Rust), [""; 0]);
        assert_eq!(filters(transports, ClientClass::GrpcCpp), [""; 0]);
    }
    assert_eq!(filters(&[TransportMatch::Any], ClientClass::Envoy), [""; 0]);
}

#[test]
fn envoy_chooses_the_upstream_protocol_by_itself() {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
        DownstreamTlsContext, UpstreamTlsContext,
    };
    let socket = |socket: TransportSocket| match socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => any.value,
        None => panic!(),
    };
    let tls = mtls_cluster().tls.unwrap();
    let context = socket(tls::upstream(&tls, ClientClass::Envoy));
    let context = UpstreamTlsContext::decode(&context[..]).unwrap();
    let offered = context.common_tls_context.unwrap().alpn_protocols;
    assert_eq!(
        offered, [""; 0],
        "a list would hold for HTTP/1.1 requests too"
    );
    let ListenerKind::Inbound(inbound) = inbound(&[TransportMatch::Tls]).kind else {
        panic!()
    };
    let tls = inbound.filter_chains[0].tls.as_ref().unwrap();
    let context = socket(tls::downstream(tls, ClientClass::Envoy));
    let context = DownstreamTlsContext::decode(&context[..]).unwrap();
    let taken = context.common_tls_context.unwrap().alpn_protocols;
    assert_eq!(taken, ["h2", "http/1.1"]);
}

#[test]
fn every_class_gets_a_balancer_that_it_has() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::LbPolicy as Proto;
    for (policy, own) in [
        (LbPolicy::RoundRobin, &ClientClass::ALL[..]),
        (
            LbPolicy::least_request(2),
            &[ClientClass::Rust, ClientClass::GrpcJava, ClientClass::Envoy],
        ),
        (LbPolicy::Random, &[ClientClass::Rust, ClientClass::Envoy]),
        (
            LbPolicy::RingHash(RingHash::default()),
            &ClientClass::ALL[..],
        ),
        (
            LbPolicy::Maglev { table_size: 65_537 },
            &[ClientClass::Rust, ClientClass::Envoy],
        ),
    ] {
        for class in ClientClass::ALL {
            let mut config = mtls_cluster();
            config.lb_policy = policy.clone();
            let expected = match policy {
                LbPolicy::LeastRequest(_) if own.contains(&class) => Proto::LeastRequest,
                LbPolicy::Random if own.contains(&class) => Proto::Random,
                LbPolicy::RingHash(_) => Proto::RingHash,
                LbPolicy::Maglev { .. } if own.contains(&class) => Proto::Maglev,
                // Keys stay together there too.
                LbPolicy::Maglev { .. } => Proto::RingHash,
                _ => Proto::RoundRobin,
            };
            let encoded = cluster(&config, class);
            assert_eq!(encoded.lb_policy(), expected, "{class} {policy:?}");
        }
    }
}

#[test]
fn connection_settings_are_said_where_they_differ_from_the_defaults() {
    let plain = cluster(&Cluster::new("c"), ClientClass::Rust);
    let thresholds = &plain.circuit_breakers.as_ref().unwrap().thresholds[0];
    assert!(thresholds.retry_budget.is_some() && thresholds.max_connections.is_none());
    assert_eq!(plain.upstream_connection_options, None);
    let config = Cluster {
        circuit_breakers: CircuitBreakers {
            max_connections: 7,
            max_pending_requests: 8,
            max_retries: Some(9),
            max_connections_per_host: Some(2),
            ..CircuitBreakers::default()
        },
        connection: ConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive {
                probes: Some(3),
                ..TcpKeepalive::default()
            }),
            ..ConnectionOptions::default()
        },
        ..Cluster::new("c")
    };
    let encoded = cluster(&config, ClientClass::Envoy);
    let breakers = encoded.circuit_breakers.unwrap();
    let thresholds = &breakers.thresholds[0];
    assert_eq!(thresholds.max_connections, Some(uint32(7)));
    assert_eq!(thresholds.max_pending_requests, Some(uint32(8)));
    assert_eq!(thresholds.max_retries, Some(uint32(9)));
    assert_eq!(
        thresholds.retry_budget, None,
        "it would win over max_retries"
    );
    let per_host = &breakers.per_host_thresholds[0];
    assert_eq!(per_host.max_connections, Some(uint32(2)));
    let keepalive = encoded.upstream_connection_options.unwrap().tcp_keepalive;
    assert_eq!(keepalive.unwrap().keepalive_probes, Some(uint32(3)));
}

#[test]
fn metadata_of_subsets_is_the_same_at_endpoints_and_in_routes() {
    let metadata = LbMetadata::from([
        ("version".to_owned(), MetadataValue::text("v\"1")),
        ("canary".to_owned(), MetadataValue::from_json("true")),
    ]);
    let forward = Forward {
        extras: Some(Box::new(ForwardExtras {
            metadata_match: metadata.clone(),
            ..ForwardExtras::default()
        })),
        ..Forward::to("c")
    };
    let asked = action::forward(&forward, ClientClass::Rust).metadata_match;
    assert_eq!(asked, subset::metadata(&metadata, None));
    let of_lb = &asked.unwrap().filter_metadata["envoy.lb"].fields;
    use envoy_types::pb::google::protobuf::value::Kind;
    let version = of_lb["version"].kind.clone();
    assert_eq!(version, Some(Kind::StringValue("v\"1".into())));
    assert_eq!(of_lb["canary"].kind, Some(Kind::BoolValue(true)));
}

#[test]
fn what_grpc_does_not_know_of_matchers_is_said_in_what_it_knows() {
    let without = |name: &str| HeaderMatcher {
        invert: true,
        treat_missing_as_empty: true,
        ..HeaderMatcher::new(name, HeaderPredicate::String(StringMatcher::exact("x")))
    };
    let path = PathMatcher::new(PathPattern::SeparatedPrefix("/a.b".into()));
    let matcher = RouteMatch {
        headers: vec![without("h"), without("i")],
        ..RouteMatch::path(path)
    };
    let action = RouteAction::Forward(Forward::to("c"));
    let host = VirtualHost::new("h", ["*"], vec![Route::new("r", matcher, action)]);
    let config = RouteConfig::new("r", vec![host]);
    let envoy = route_config(&config, ClientClass::Envoy);
    assert_eq!(envoy.virtual_hosts[0].routes.len(), 1);
    let grpc = route_config(&config, ClientClass::GrpcGo);
    // Each header is missing, or another.
    assert_eq!(grpc.virtual_hosts[0].routes.len(), 4);
    for route in &grpc.virtual_hosts[0].routes {
        let matched = route.r#match.as_ref().unwrap();
        assert!(
            matched
                .headers
                .iter()
                .all(|header| !header.treat_missing_header_as_empty)
        );
        let expected = RegexMatcher {
            regex: r"/a\.b(/.*)?".to_owned(),
            ..RegexMatcher::default()
        };
        assert_eq!(
            matched.path_specifier,
            Some(PathSpecifier::SafeRegex(expected))
        );
    }
}

#[test]
fn filters_have_a_form_in_listeners_and_another_in_routes_and_grpc_gets_none() {
    use envoy_types::pb::envoy::extensions::filters::http::{
        buffer::v3::BufferPerRoute, header_mutation::v3::HeaderMutationPerRoute,
        stateful_session::v3::StatefulSessionPerRoute,
    };
    let cookie = SessionCookieConfig {
        name: "s".to_owned(),
        ttl: None,
        path: "/".to_owned(),
        attributes: vec![("SameSite".to_owned(), "Strict".to_owned())],
    };
    let session = StatefulSession {
        state: SessionState::Cookie(cookie),
        strict: true,
    };
    let changes = HeaderMutation {
        request: vec![HeaderChanges {
            remove: vec!["a".parse().unwrap()],
            ..HeaderChanges::default()
        }],
        ..HeaderMutation::default()
    };
    let buffer = FilterConfig::Buffer {
        max_request_bytes: 9,
    };
    let interval = Duration::from_secs(1);
    let adaptive = Arc::new(AdaptiveConcurrency::new(interval, interval));
    let filters = [
        ("s", FilterConfig::StatefulSession(Some(Arc::new(session)))),
        ("h", FilterConfig::HeaderMutation(Arc::new(changes))),
        ("b", buffer),
        ("a", FilterConfig::AdaptiveConcurrency(adaptive)),
    ];
    let mut said = FilterOverrides::default();
    for (name, config) in &filters {
        let config = FilterOverride::with(config.clone());
        said.by_name.insert((*name).into(), config);
    }
    said.by_name.insert("off".into(), FilterOverride::off());
    let of_route = filter::overrides(Some(&said), ClientClass::Envoy);
    let url = |name: &str| of_route.get(name).map(|any| any.type_url.clone());
    assert_eq!(url("s"), Some(StatefulSessionPerRoute::type_url()));
    assert_eq!(url("h"), Some(HeaderMutationPerRoute::type_url()));
    assert_eq!(url("b"), Some(BufferPerRoute::type_url()));
    assert_eq!(url("a"), None, "a route says nothing of it");
    let off = of_route["off"].clone();
    assert!(off.type_url.ends_with("envoy.config.route.v3.FilterConfig"));
    let mutation = HeaderMutationPerRoute::decode(&of_route["h"].value[..]).unwrap();
    assert_eq!(mutation.mutations.unwrap().request_mutations.len(), 1);
    assert!(filter::overrides(Some(&said), ClientClass::GrpcGo).is_empty());
    for (name, config) in filters {
        let listed = HttpFilter::new(name, config);
        for (class, is_there) in [(ClientClass::Envoy, true), (ClientClass::GrpcCpp, false)] {
            let encoded = filter::http_filter(&listed, class);
            assert_eq!(encoded.is_some(), is_there, "{name} {class}");
        }
    }
}

#[test]
fn a_subset_of_the_endpoints_is_for_our_library_alone() {
    use envoy_types::pb::envoy::extensions::load_balancing_policies::random_subsetting::v3::RandomSubsetting;
    for policy in [
        LbPolicy::RoundRobin,
        LbPolicy::least_request(3),
        LbPolicy::Random,
        LbPolicy::RingHash(RingHash::default()),
        LbPolicy::PeakEwma(PeakEwma::default()),
    ] {
        let mut config = Cluster {
            lb_policy: policy.clone(),
            ..Cluster::new("c")
        };
        let whole = |config: &Cluster| cluster(config, ClientClass::Envoy);
        let before = whole(&config);
        config.common_lb_config.subset_size = Some(5);
        assert_eq!(whole(&config), before, "{policy:?}");
        let own = cluster(&config, ClientClass::Rust).load_balancing_policy;
        let policies = own.expect("a policy").policies;
        let any = policies[0]
            .typed_extension_config
            .clone()
            .unwrap()
            .typed_config
            .unwrap();
        let subsetting = RandomSubsetting::decode(&any.value[..]).unwrap();
        assert_eq!(subsetting.subset_size, Some(uint32(5)));
        assert!(subsetting.child_policy.is_some(), "{policy:?}");
        config.common_lb_config.subsetting = Subsetting::Deterministic;
        let own = cluster(&config, ClientClass::Rust).load_balancing_policy;
        let own = own.expect("a policy").policies.remove(0);
        let own = own.typed_extension_config.unwrap().typed_config.unwrap();
        let deterministic = "type.googleapis.com/mesh.v1.DeterministicSubsetting";
        assert_eq!(own.type_url, deterministic);
        // The fields are the same.
        let own = RandomSubsetting::decode(&own.value[..]).unwrap();
        assert_eq!(own.subset_size, subsetting.subset_size);
        assert!(own.child_policy.is_some(), "{policy:?}");
    }
}
