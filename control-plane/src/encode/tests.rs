//! What differs between the classes.

use mesh_core::config::*;

use super::*;

fn mtls_cluster() -> Cluster {
    Cluster {
        name: "c".into(),
        discovery: Discovery::Eds("c".into()),
        lb_policy: LbPolicy::LeastRequest { choice_count: 2 },
        circuit_breakers: CircuitBreakers::default(),
        connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        http_version: HttpVersion::Http2,
        tls: Some(UpstreamTls {
            identity: Some(CertificateSource::Provider {
                instance: "default".into(),
            }),
            roots: TrustSource::Sds("ROOTCA".into()),
            subject_alt_names: vec![StringMatcher::exact("spiffe://td/ns/a/sa/b")],
            sni: None,
        }),
    }
}

#[test]
fn certificates_come_by_provider_by_sds_or_by_both() {
    for (class, by_sds, by_provider) in [
        (ClientClass::Rust, 1, 1),
        (ClientClass::Grpc, 0, 2),
        (ClientClass::Envoy, 2, 0),
    ] {
        let text = format!(
            "{:?}",
            cluster(&mtls_cluster(), class).transport_socket.unwrap()
        );
        assert!(text.contains("envoy.transport_sockets.tls"), "{text}");
        let context = tls::upstream(mtls_cluster().tls.as_ref().unwrap(), class);
        let Some(
            envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType::TypedConfig(
                any,
            ),
        ) = context.config_type
        else {
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
    let config = |timeout| RouteConfig {
        name: "r".into(),
        virtual_hosts: vec![VirtualHost {
            name: "h".into(),
            domains: vec!["*".into()],
            routes: vec![Route {
                name: String::new(),
                matcher: RouteMatch {
                    path: PathMatcher::any(),
                    headers: vec![],
                    fraction: None,
                },
                action: RouteAction::Forward(Forward {
                    clusters: vec![WeightedCluster {
                        name: "c".into(),
                        weight: 1,
                    }],
                    timeout,
                    max_stream_duration: None,
                    retry: None,
                }),
            }],
        }],
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
    assert_eq!(action(second, ClientClass::Grpc), (1, true));
    assert_eq!(action(second, ClientClass::Envoy), (1, false));
    assert_eq!(action(None, ClientClass::Envoy), (0, false));
    assert_eq!(action(None, ClientClass::Grpc), (0, false));
}
