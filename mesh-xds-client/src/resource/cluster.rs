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
    config::{Cluster, DEFAULT_CONNECT_TIMEOUT, Discovery, SocketMatch, UpstreamTls},
};
use prost::Name;

use super::{
    DecodeContext, balance, canonical, connection,
    discovery::{self, ClusterSource, ClusterSpec, LoadReports},
    health_check, lb_metadata, outlier,
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
            upstream_bind_config,
            close_connections_on_host_health_failure,
            connection_pool_per_downstream_connection,
            dns_resolution_config,
            dns_resolvers,
            http_protocol_options,
            ignore_health_on_host_removal,
            preconnect_policy,
            protocol_selection,
            queuing_policies,
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
    let subsets = match &proto.lb_subset_config {
        Some(config) => sink.field("lb_subset_config", |sink| {
            lb_metadata::subsets(sink, config)
        })?,
        None => None,
    };
    let has_tls = proto.transport_socket.is_some() || !proto.transport_socket_matches.is_empty();
    let checks = sink.each("health_checks", &proto.health_checks, |sink, check| {
        health_check::decode(sink, check, has_tls)
    });
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
    let sockets = decode_sockets(sink, context, proto);
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
    let (tls, socket_matches) = sockets?;
    let config = Cluster {
        // Only EDS has a form there; for the others the name stands for itself.
        discovery: Discovery::Eds(match &source {
            ClusterSource::Eds(endpoints) => endpoints.clone(),
            ClusterSource::Dns(_) | ClusterSource::Aggregate(_) => name.as_str().into(),
        }),
        name,
        lb_policy,
        common_lb_config,
        subsets,
        outlier_detection: outlier_detection?,
        health_checks: checks,
        circuit_breakers: circuit_breakers?,
        connect_timeout,
        connection,
        http_version,
        tls,
        socket_matches,
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

/// The socket of all endpoints, `None` for plaintext, and those of some. The outer `None` is an error:
/// what cannot be applied is refused, never taken for plaintext.
type Sockets = Option<(Option<UpstreamTls>, Vec<SocketMatch>)>;

fn decode_sockets(sink: &mut Sink, context: &DecodeContext, proto: &ClusterProto) -> Sockets {
    sink.refuse(
        "transport_socket_matcher",
        proto.transport_socket_matcher.is_some(),
        "is not supported; use transport_socket_matches",
    );
    let listed = &proto.transport_socket_matches;
    let matches = sink.each("transport_socket_matches", listed, |sink, proto| {
        if proto.transport_socket.is_none() {
            let reason = "is missing; say raw_buffer where plaintext is meant";
            return sink.error_at("transport_socket", reason);
        }
        let tls = decode_socket(sink, context, proto.transport_socket.as_ref())?;
        Some(SocketMatch {
            name: proto.name.clone(),
            labels: proto
                .r#match
                .as_ref()
                .map(lb_metadata::of_struct)
                .unwrap_or_default(),
            tls,
        })
    });
    let tls = decode_socket(sink, context, proto.transport_socket.as_ref())?;
    Some((tls, matches))
}

fn decode_socket(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: Option<&TransportSocket>,
) -> Option<Option<UpstreamTls>> {
    let Some(socket) = proto else {
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
