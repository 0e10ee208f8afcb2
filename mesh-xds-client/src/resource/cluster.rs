//! `Cluster` to [`Cluster`].
//!
//! Stage 3. Limits by gRFC A32 and Envoy's retry budget. Health checks have no effect and are noted.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{self as proto, Cluster as ClusterProto, circuit_breakers::Thresholds},
            core::v3::{
                GrpcService, RoutingPriority, TransportSocket,
                config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
                transport_socket,
            },
        },
        extensions::{
            transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3::UpstreamTlsContext},
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    google::protobuf::Any,
};
use mesh_core::{
    ClusterName,
    config::{
        CircuitBreakers, Cluster, DEFAULT_CONNECT_TIMEOUT, Discovery, HttpVersion, RetryBudget,
        UpstreamTls,
    },
};
use prost::Name;

use super::{
    DecodeContext, balance, canonical,
    discovery::{self, ClusterSource, ClusterSpec, LoadReports},
    outlier,
    path::Sink,
    report::report,
    security::tls,
    value::{duration, is, parse, uint32},
};

/// Key of the HTTP options in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

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
            common_http_protocol_options,
            connection_pool_per_downstream_connection,
            dns_failure_refresh_rate,
            dns_jitter,
            dns_lookup_family,
            dns_refresh_rate,
            dns_resolution_config,
            dns_resolvers,
            http_protocol_options,
            ignore_health_on_host_removal,
            max_requests_per_connection,
            preconnect_policy,
            protocol_selection,
            queuing_policies,
            respect_dns_ttl,
            typed_dns_resolver_config,
            upstream_config,
            upstream_connection_options,
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
    let circuit_breakers = decode_circuit_breakers(sink, proto);
    let http_version = decode_http_version(sink, proto);
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
        connection: Default::default(),
        http_version: http_version?,
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

fn decode_circuit_breakers(sink: &mut Sink, proto: &ClusterProto) -> Option<CircuitBreakers> {
    let Some(breakers) = &proto.circuit_breakers else {
        return Some(CircuitBreakers::default());
    };
    report!(sink, breakers, [per_host_thresholds]);
    let is_default =
        |thresholds: &&Thresholds| thresholds.priority == RoutingPriority::Default as i32;
    let Some(found) = breakers.thresholds.iter().position(|t| is_default(&t)) else {
        return Some(CircuitBreakers::default());
    };
    let thresholds = &breakers.thresholds[found];
    sink.field(&format!("circuit_breakers.thresholds[{found}]"), |sink| {
        report!(sink, thresholds, [max_connection_pools]);
        report!(
            sink,
            thresholds,
            [max_connections, max_pending_requests, max_retries]
        );
        let defaults = CircuitBreakers::default();
        let retry_budget = match &thresholds.retry_budget {
            Some(budget) => sink.field("retry_budget", |sink| decode_budget(sink, budget))?,
            None => defaults.retry_budget,
        };
        Some(CircuitBreakers {
            max_requests: uint32(thresholds.max_requests.as_ref()).unwrap_or(defaults.max_requests),
            retry_budget,
            ..defaults
        })
    })
}

fn decode_budget(
    sink: &mut Sink,
    proto: &proto::circuit_breakers::thresholds::RetryBudget,
) -> Option<RetryBudget> {
    let defaults = RetryBudget::default();
    let percent = match &proto.budget_percent {
        None => defaults.percent,
        Some(percent) if (0.0..=100.0).contains(&percent.value) => percent.value.round() as u32,
        Some(percent) => {
            return sink.error_at(
                "budget_percent",
                format!("{} is not 0 to 100", percent.value),
            );
        }
    };
    Some(RetryBudget {
        percent,
        min_retry_concurrency: uint32(proto.min_retry_concurrency.as_ref())
            .unwrap_or(defaults.min_retry_concurrency),
    })
}

fn decode_http_version(sink: &mut Sink, proto: &ClusterProto) -> Option<HttpVersion> {
    let Some(any) = proto.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        // The deprecated form: HTTP/2 options without a choice of protocol mean HTTP/2.
        return Some(match proto.http2_protocol_options {
            Some(_) if proto.protocol_selection == 0 => HttpVersion::Http2,
            _ => HttpVersion::ByRequest,
        });
    };
    sink.field(
        &format!("typed_extension_protocol_options[{HTTP_OPTIONS:?}]"),
        |sink| {
            if !is::<HttpProtocolOptions>(any) {
                return sink.error(format!("holds {}", any.type_url));
            }
            let options: HttpProtocolOptions = parse(sink, any)?;
            report!(
                sink,
                options,
                [
                    common_http_protocol_options,
                    hash_policy,
                    header_validation_config,
                    outlier_detection,
                    request_mirror_policies,
                    retry_policy,
                    upstream_http_protocol_options,
                ]
            );
            let is_filtered = options
                .http_filters
                .iter()
                .any(|filter| !filter.is_optional);
            let filters = options.http_filters.len();
            // One filter is the codec, which says nothing.
            sink.ignore([("http_filters", is_filtered && filters > 1)]);
            match options.upstream_protocol_options {
                Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
                    match explicit.protocol_config {
                        Some(ProtocolConfig::HttpProtocolOptions(_)) => Some(HttpVersion::Http1),
                        Some(ProtocolConfig::Http2ProtocolOptions(_)) => Some(HttpVersion::Http2),
                        Some(ProtocolConfig::Http3ProtocolOptions(_)) => sink.error_at(
                            "explicit_http_config.http3_protocol_options",
                            "HTTP/3 is not supported",
                        ),
                        None => sink.error_at("explicit_http_config", "names no protocol"),
                    }
                }
                Some(
                    UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)
                    | UpstreamProtocolOptions::AutoConfig(_),
                )
                | None => Some(HttpVersion::ByRequest),
            }
        },
    )
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
