//! Where a cluster's load is reported to (gRFC A27, A85).

use envoy_types::pb::envoy::config::{
    cluster::v3::cluster::{ClusterDiscoveryType, EdsClusterConfig},
    core::v3::{
        AggregatedConfigSource, ApiConfigSource, ConfigSource, GrpcService, SelfConfigSource,
        config_source::ConfigSourceSpecifier,
        grpc_service::{EnvoyGrpc, GoogleGrpc, TargetSpecifier},
    },
};

use super::*;
use crate::bootstrap::{Server, ServerUri};

fn grpc(target: TargetSpecifier) -> ConfigSourceSpecifier {
    ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
        grpc_services: vec![GrpcService {
            target_specifier: Some(target),
            ..GrpcService::default()
        }],
        ..ApiConfigSource::default()
    })
}

fn google(target: &str) -> ConfigSourceSpecifier {
    grpc(TargetSpecifier::GoogleGrpc(GoogleGrpc {
        target_uri: target.into(),
        ..GoogleGrpc::default()
    }))
}

/// What is reported where, and what is noted as without effect.
fn decoded(lrs: Option<&ConfigSourceSpecifier>) -> (Option<LoadReports>, Vec<String>) {
    let cluster = with(|c| {
        c.lrs_server = lrs.cloned().map(|specifier| ConfigSource {
            config_source_specifier: Some(specifier),
            ..ConfigSource::default()
        });
        c.lrs_report_endpoint_metrics = vec!["cpu_utilization".into()];
    });
    let server = Server::new(ServerUri::parse("cp2:15010").unwrap());
    let context = context().with_servers([&server].into_iter());
    let raw = raw(Kind::Cluster, vec![cluster]);
    let mut decoded = decode_all(Kind::Cluster, raw, &context, |_| true);
    let accepted = decoded.accepted.remove(0);
    let Config::Cluster(spec) = accepted.config else {
        panic!("it is a cluster")
    };
    (spec.load_reports.clone(), accepted.ignored)
}

fn with(change: impl Fn(&mut ClusterProto)) -> Any {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    let mut proto = ClusterProto {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                config_source_specifier: Some(ads),
                ..ConfigSource::default()
            }),
            ..EdsClusterConfig::default()
        }),
        ..ClusterProto::default()
    };
    change(&mut proto);
    any(&proto)
}

#[test]
fn load_goes_to_the_sender_or_to_another_server_of_the_bootstrap() {
    let metrics = vec!["cpu_utilization".to_owned()];
    let reports = |server: Option<&str>| LoadReports {
        server: server.map(Into::into),
        metrics: metrics.clone(),
    };
    let itself = ConfigSourceSpecifier::Self_(SelfConfigSource::default());
    assert_eq!(decoded(Some(&itself)), (Some(reports(None)), vec![]));
    for spelling in ["cp2:15010", "dns:///cp2:15010", "http://cp2:15010"] {
        let expected = (Some(reports(Some("cp2:15010"))), vec![]);
        assert_eq!(decoded(Some(&google(spelling))), expected, "{spelling}");
    }
}

/// A resource must not make the process connect to where its operator did not say.
#[test]
fn load_goes_nowhere_else_and_that_is_told() {
    let envoy = grpc(TargetSpecifier::EnvoyGrpc(EnvoyGrpc::default()));
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    for lrs in [google("evil:1"), google("%"), envoy, ads] {
        let (reports, ignored) = decoded(Some(&lrs));
        assert_eq!(reports, None);
        assert!(ignored[0].starts_with("lrs_server"), "{ignored:?}");
    }
    assert_eq!(decoded(None).1, ["lrs_report_endpoint_metrics"]);
}
