//! `Cluster` to [`Cluster`].
//!
//! Stage 3. What cannot be honoured is refused where traffic depends on it, and noted otherwise.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster as ClusterProto,
            core::v3::{
                GrpcService, TransportSocket, config_source::ConfigSourceSpecifier,
                grpc_service::TargetSpecifier, transport_socket,
            },
        },
        extensions::transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3::UpstreamTlsContext},
    },
    google::protobuf::Any,
};
use mesh_core::{
    ClusterName,
    config::{Cluster, DEFAULT_CONNECT_TIMEOUT, Discovery, UpstreamTls},
};
use prost::Name;

use super::{
    DecodeContext, balance, canonical, connection,
    discovery::{self, ClusterSource, ClusterSpec, LoadReports},
    outlier,
    path::Sink,
    report::report,
    security::tls,
    value::{duration, is, parse},
};

pub(super) fn decode(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &ClusterProto,
) -> Option<ClusterSpec> {
    report!(
        sink,
        proto,
        [
            health_checks,
            upstream_bind_config,
            close_connections_on_host_health_failure,
            connection_pool_per_downstream_connection,
            dns_failure_refresh_rate,
            dns_jitter,
            dns_lookup_family,
            dns_refresh_rate,
            dns_resolution_config,
            dns_resolvers,
            http_protocol_options,
            ignore_health_on_host_removal,
            preconnect_policy,
            protocol_selection,
            queuing_policies,
            respect_dns_ttl,
            typed_dns_resolver_config,
            upstream_config,
            upstream_http_protocol_options,
            use_tcp_for_dns_lookups
        ]
    );
    sink.refuse(
        "filters",
        !proto.filters.is_empty(),
        "network filters are not supported",
    );
    let subsets = proto.lb_subset_config.as_ref();
    sink.refuse(
        "lb_subset_config",
        subsets.is_some_and(|subsets| !subsets.subset_selectors.is_empty()),
        "subset load balancing is not supported",
    );
    let load_reports = decode_lrs(sink, context, proto);
    let source = discovery::decode(sink, proto);
    let balance = balance::decode(sink, proto);
    let outlier_detection = match &proto.outlier_detection {
        None => Some(None),
        Some(proto) => sink.field("outlier_detection", |sink| {
            outlier::decode(sink, proto).map(Some)
        }),
    };
    let circuit_breakers = connection::circuit_breakers(sink, proto);
    let connection = connection::options(sink, proto);
    let tls = decode_transport(sink, context, proto);
    let connect_timeout = match duration(sink, "connect_timeout", proto.connect_timeout.as_ref()) {
        Some(timeout) if timeout.is_zero() => {
            return sink.error_at("connect_timeout", "must not be zero");
        }
        timeout => timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
    };
    let name: ClusterName = canonical(proto.name.clone()).into();
    let source = source?;
    let (lb_policy, common_lb_config) = balance?;
    let (http_version, connection) = connection?;
    let config = Cluster {
        // Only EDS has a form there; for the others the name stands for itself.
        discovery: Discovery::Eds(match &source {
            ClusterSource::Eds(endpoints) => endpoints.clone(),
            ClusterSource::Dns(_) | ClusterSource::Aggregate(_) => name.as_str().into(),
        }),
        name,
        lb_policy,
        common_lb_config,
        subsets: None,
        outlier_detection: outlier_detection?,
        health_checks: Vec::new(),
        circuit_breakers: circuit_breakers?,
        connect_timeout,
        connection,
        http_version,
        tls: tls?,
    };
    Some(ClusterSpec {
        config: config.into(),
        source,
        load_reports,
    })
}

/// Load reports go to the server that sent the cluster, or to another one that the bootstrap knows.
fn decode_lrs(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &ClusterProto,
) -> Option<LoadReports> {
    let lrs = proto.lrs_server.as_ref();
    let specifier = lrs.and_then(|lrs| lrs.config_source_specifier.as_ref());
    let server = match specifier {
        Some(ConfigSourceSpecifier::Self_(_)) => Some(None),
        Some(ConfigSourceSpecifier::ApiConfigSource(source)) => {
            let targets = source.grpc_services.iter().filter_map(google_grpc_target);
            targets
                .filter_map(|target| context.server(target))
                .next()
                .map(Some)
        }
        _ => None,
    };
    sink.ignore([
        (
            "lrs_server (neither self nor a server of the bootstrap)",
            specifier.is_some() && server.is_none(),
        ),
        (
            "lrs_report_endpoint_metrics",
            server.is_none() && !proto.lrs_report_endpoint_metrics.is_empty(),
        ),
    ]);
    Some(LoadReports {
        server: server?,
        metrics: proto.lrs_report_endpoint_metrics.clone(),
    })
}

fn google_grpc_target(service: &GrpcService) -> Option<&str> {
    match service.target_specifier.as_ref()? {
        TargetSpecifier::GoogleGrpc(grpc) => Some(&grpc.target_uri),
        TargetSpecifier::EnvoyGrpc(_) => None,
    }
}

/// The outer `None` is an error, the inner one plaintext. What cannot be applied is refused, never
/// taken for plaintext.
fn decode_transport(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &ClusterProto,
) -> Option<Option<UpstreamTls>> {
    sink.refuse(
        "transport_socket_matches",
        !proto.transport_socket_matches.is_empty() || proto.transport_socket_matcher.is_some(),
        "is not supported; use transport_socket",
    );
    let Some(socket) = &proto.transport_socket else {
        return Some(None);
    };
    sink.field("transport_socket.typed_config", |sink| {
        let any = typed_config(sink, socket)?;
        if is::<RawBuffer>(any) {
            return Some(None);
        }
        if !is::<UpstreamTlsContext>(any) {
            return sink.error(format!(
                "{} is not supported; supported are {} and {}",
                any.type_url,
                UpstreamTlsContext::full_name(),
                RawBuffer::full_name()
            ));
        }
        let context_proto: UpstreamTlsContext = parse(sink, any)?;
        tls::decode_upstream(sink, context, &context_proto).map(Some)
    })
}

pub(super) fn typed_config<'s>(sink: &mut Sink, socket: &'s TransportSocket) -> Option<&'s Any> {
    match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => Some(any),
        None => sink.error(format!("is missing in transport socket {:?}", socket.name)),
    }
}
