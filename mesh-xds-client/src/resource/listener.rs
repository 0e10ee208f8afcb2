//! `Listener` to [`Listener`].
//!
//! Stage 3. Client listeners from `api_listener` (gRFC A27), server listeners from `filter_chains`
//! (gRFC A36); their filters are in [`filter`]. Deviations: the TLS inspector is accepted because
//! servers sniff by themselves, and server routes must be inline.

use std::{net::SocketAddr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TransportSocket,
            listener::v3::{
                Filter, FilterChain as ChainProto, Listener as ListenerProto, filter,
                listener_filter,
            },
        },
        extensions::{
            filters::{
                listener::tls_inspector::v3::TlsInspector,
                network::http_connection_manager::v3::{
                    HttpConnectionManager, Rds,
                    http_connection_manager::{PathWithEscapedSlashesAction, RouteSpecifier},
                },
            },
            transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3::DownstreamTlsContext},
        },
    },
    google::protobuf::Any,
};
use mesh_core::config::{
    ApiListener, ChainMatch, DownstreamTls, EscapedSlashes, FilterChain, InboundListener, Listener,
    ListenerKind, PathNormalization, RouteSource, TransportMatch,
};
use prost::Name;

use super::{
    DecodeContext, canonical, chain_match, client_cert,
    cluster::typed_config,
    filter as http_filter,
    http_limits::{self, limit, max_stream_duration},
    path::Sink,
    report::report,
    route::{self, Side},
    security::tls,
    value::{is, parse, same_stream, socket_address},
};

/// Listener fields of both sides that ask for something that is not done here.
fn report_listener(sink: &mut Sink, proto: &ListenerProto) {
    report!(
        sink,
        proto,
        [
            access_log,
            additional_addresses,
            connection_balance_config,
            fcds_config,
            freebind,
            listener_filters_timeout,
            listener_specifier,
            socket_options,
            tcp_keepalive,
            transparent,
            udp_listener_config,
        ]
    );
}

/// The same of the HTTP connection manager.
fn report_manager(sink: &mut Sink, manager: &HttpConnectionManager) {
    report!(
        sink,
        manager,
        [
            access_log,
            add_proxy_protocol_connection_state,
            add_user_agent,
            always_set_request_id_in_response,
            append_local_overload,
            append_x_forwarded_port,
            codec_type,
            early_header_mutation_extensions,
            forward_client_cert_matcher,
            forward_proto_config,
            http2_protocol_options,
            http3_protocol_options,
            http_protocol_options,
            internal_address_config,
            local_reply_config,
            original_ip_detection_extensions,
            path_normalization_options,
            preserve_external_request_id,
            proxy_100_continue,
            proxy_status_config,
            request_id_extension,
            scheme_header_transformation,
            server_header_transformation,
            server_name,
            skip_xff_append,
            stream_error_on_invalid_http_message,
            strip_matching_host_port,
            strip_port_mode,
            strip_trailing_host_dot,
            tracing,
            typed_header_validation_config,
            upgrade_configs,
            use_remote_address,
            via,
            xff_num_trusted_hops,
        ]
    );
    report!(sink, manager, [delayed_close_timeout, drain_timeout]);
}

pub(super) fn decode(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &ListenerProto,
) -> Option<Listener> {
    let api = proto
        .api_listener
        .as_ref()
        .and_then(|api| api.api_listener.as_ref());
    report_listener(sink, proto);
    let kind = match api {
        Some(api) => sink
            .field("api_listener.api_listener", |sink| decode_api(sink, api))
            .map(ListenerKind::Api),
        None if proto.filter_chains.is_empty() && proto.default_filter_chain.is_none() => {
            sink.error("has neither an api_listener nor filter_chains")
        }
        None => decode_inbound(sink, context, proto).map(ListenerKind::Inbound),
    };
    Some(Listener {
        name: canonical(proto.name.clone()).into(),
        kind: kind?,
    })
}

fn decode_api(sink: &mut Sink, api: &Any) -> Option<ApiListener> {
    if !is::<HttpConnectionManager>(api) {
        let expected = HttpConnectionManager::full_name();
        return sink.error(format!(
            "{} is not supported; supported is {expected}",
            api.type_url
        ));
    }
    let manager: HttpConnectionManager = parse(sink, api)?;
    report!(
        sink,
        manager,
        [forward_client_cert_details, set_current_client_cert_details]
    );
    report_manager(sink, &manager);
    report!(
        sink,
        manager,
        [
            merge_slashes,
            normalize_path,
            path_with_escaped_slashes_action,
        ]
    );
    http_limits::report(sink, &manager);
    let (filters, router) = http_filter::decode(sink, Side::Client, &manager.http_filters);
    let routes = decode_routes(sink, Side::Client, manager.route_specifier.as_ref());
    Some(ApiListener {
        routes: routes?,
        max_stream_duration: max_stream_duration(sink, &manager),
        stream_idle_timeout: limit(
            sink,
            "stream_idle_timeout",
            manager.stream_idle_timeout.as_ref(),
        ),
        filters: filters.into(),
        router,
    })
}

fn decode_rds(sink: &mut Sink, rds: &Rds) -> Option<RouteSource> {
    same_stream(sink, "config_source", rds.config_source.as_ref());
    match rds.route_config_name.as_str() {
        "" => sink.error_at("route_config_name", "is missing"),
        name => Some(RouteSource::Rds(canonical(name.to_owned()).into())),
    }
}

fn decode_routes(
    sink: &mut Sink,
    side: Side,
    specifier: Option<&RouteSpecifier>,
) -> Option<RouteSource> {
    match specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => {
            let routes = sink.field("route_config", |sink| route::decode(sink, side, routes))?;
            Some(RouteSource::Inline(Arc::new(routes)))
        }
        Some(RouteSpecifier::Rds(rds)) => sink.field("rds", |sink| decode_rds(sink, rds)),
        Some(RouteSpecifier::ScopedRoutes(_)) => sink.error_at("scoped_routes", "is not supported"),
        None => sink.error("has no routes: rds or route_config is needed"),
    }
}

fn decode_inbound(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &ListenerProto,
) -> Option<InboundListener> {
    let unsupported = "is not supported";
    sink.refuse(
        "use_original_dst",
        proto
            .use_original_dst
            .as_ref()
            .is_some_and(|value| value.value),
        unsupported,
    );
    sink.refuse(
        "filter_chain_matcher",
        proto.filter_chain_matcher.is_some(),
        unsupported,
    );
    sink.each(
        "listener_filters",
        &proto.listener_filters,
        |sink, filter| match &filter.config_type {
            Some(listener_filter::ConfigType::TypedConfig(any)) if is::<TlsInspector>(any) => None,
            _ => sink.error::<()>(format!("{:?} is not supported", filter.name)),
        },
    );
    let address = match &proto.address {
        None => None,
        some => sink.field("address", |sink| {
            let (ip, port) = socket_address(sink, some.as_ref())?;
            // A port of zero stands for whatever the server listens on.
            Some(SocketAddr::new(ip, port)).filter(|_| port != 0)
        }),
    };
    let mut taken: Vec<(TransportMatch, ChainMatch)> = Vec::new();
    let mut filter_chains = sink.each("filter_chains", &proto.filter_chains, |sink, chain| {
        let decoded = decode_chain(sink, context, chain);
        let (transport, matches) = sink.field("filter_chain_match", |sink| {
            chain_match::decode(sink, chain.filter_chain_match.as_ref())
        })?;
        let is_same =
            |(other, others): &(_, ChainMatch)| *other == transport && others.overlaps(&matches);
        if taken.iter().any(is_same) {
            let reason = "is the same as that of another chain, for some connections";
            sink.error_at::<()>("filter_chain_match", reason);
        }
        taken.push((transport, matches.clone()));
        Some(FilterChain {
            transport,
            matches,
            ..decoded?
        })
    });
    if let Some(default) = &proto.default_filter_chain {
        let chain = sink.field("default_filter_chain", |sink| {
            decode_chain(sink, context, default)
        });
        filter_chains.extend(chain.map(|mut chain| {
            chain.matches.is_default = true;
            chain
        }));
    }
    Some(InboundListener {
        address,
        filter_chains,
    })
}

/// A chain for all connections; the caller narrows it down.
fn decode_chain(
    sink: &mut Sink,
    context: &DecodeContext,
    proto: &ChainProto,
) -> Option<FilterChain> {
    sink.refuse(
        "use_proxy_proto",
        proto
            .use_proxy_proto
            .as_ref()
            .is_some_and(|value| value.value),
        "is not supported",
    );
    report!(sink, proto, [transport_socket_connect_timeout]);
    let tls = match &proto.transport_socket {
        Some(socket) => sink.field("transport_socket.typed_config", |sink| {
            decode_transport(sink, context, socket)
        }),
        None => Some(None),
    };
    let manager = match proto.filters.as_slice() {
        [filter] => sink.field("filters[0]", |sink| connection_manager(sink, filter)),
        filters => sink.error_at(
            "filters",
            format!(
                "must be one HTTP connection manager, there are {}",
                filters.len()
            ),
        ),
    };
    let (path_normalization, limits, client_cert, filters, routes) =
        sink.field("filters[0].typed_config", |sink| {
            let manager = manager?;
            let path_normalization = normalization(sink, &manager);
            report_manager(sink, &manager);
            let limits = http_limits::decode(sink, &manager);
            let client_cert = client_cert::decode(sink, &manager);
            let (filters, _) = http_filter::decode(sink, Side::Server, &manager.http_filters);
            let routes = decode_routes(sink, Side::Server, manager.route_specifier.as_ref())?;
            Some((path_normalization?, limits?, client_cert?, filters, routes))
        })?;
    Some(FilterChain {
        name: proto.name.clone(),
        transport: TransportMatch::Any,
        matches: ChainMatch::default(),
        tls: tls?,
        client_cert,
        path_normalization,
        limits,
        filters,
        routes,
    })
}

/// What routes, authorisation and the application see of a path.
fn normalization(sink: &mut Sink, manager: &HttpConnectionManager) -> Option<PathNormalization> {
    let action = manager.path_with_escaped_slashes_action;
    let escaped_slashes = match PathWithEscapedSlashesAction::try_from(action) {
        Ok(
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged,
        ) => EscapedSlashes::Keep,
        Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Reject,
        Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => EscapedSlashes::Redirect,
        Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => EscapedSlashes::Decode,
        Err(_) => {
            let name = "path_with_escaped_slashes_action";
            return sink.error_at(name, format!("{action} is not known"));
        }
    };
    let normalize = manager.normalize_path.as_ref();
    Some(PathNormalization {
        normalize: normalize.is_some_and(|value| value.value),
        merge_slashes: manager.merge_slashes,
        escaped_slashes,
    })
}

fn connection_manager(sink: &mut Sink, filter: &Filter) -> Option<HttpConnectionManager> {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) if is::<HttpConnectionManager>(any) => {
            sink.field("typed_config", |sink| parse(sink, any))
        }
        Some(filter::ConfigType::TypedConfig(any)) => sink.error_at(
            "typed_config",
            format!("{} is not an HTTP connection manager", any.type_url),
        ),
        _ => sink.error_at("typed_config", "is missing"),
    }
}

fn decode_transport(
    sink: &mut Sink,
    context: &DecodeContext,
    socket: &TransportSocket,
) -> Option<Option<DownstreamTls>> {
    let any = typed_config(sink, socket)?;
    if is::<RawBuffer>(any) {
        return Some(None);
    }
    if !is::<DownstreamTlsContext>(any) {
        return sink.error(format!(
            "{} is not supported; supported are {} and {}",
            any.type_url,
            DownstreamTlsContext::full_name(),
            RawBuffer::full_name()
        ));
    }
    let proto: DownstreamTlsContext = parse(sink, any)?;
    tls::decode_downstream(sink, context, &proto).map(Some)
}
