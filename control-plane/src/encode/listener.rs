//! Listeners (LDS).

use std::net::{Ipv4Addr, SocketAddr};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::HttpProtocolOptions,
            listener::v3::{
                ApiListener as ProtoApiListener, Filter, FilterChain as ProtoFilterChain,
                FilterChainMatch, Listener as ProtoListener, ListenerFilter, filter::ConfigType,
                listener_filter,
            },
        },
        extensions::filters::{
            http::router::v3::Router,
            listener::tls_inspector::v3::TlsInspector,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds,
                http_connection_manager::{
                    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction,
                    RouteSpecifier, SetCurrentClientCertDetails,
                },
            },
        },
    },
    google::protobuf::BoolValue,
};
use mesh_core::config::{
    ClientCertDetails, EscapedSlashes, FilterChain, ForwardClientCert, ForwardMode,
    InboundListener, Listener, ListenerKind, PathNormalization, RouteSource, TransportMatch,
};

use super::{ClientClass, ads, any, duration, filter, http_limits, route_config, socket, tls};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// Encodes a listener.
pub fn listener(config: &Listener, class: ClientClass) -> ProtoListener {
    let name = config.name.to_string();
    match &config.kind {
        ListenerKind::Api(api) => {
            let mut filters = filter::of_clients(class);
            let own = api.filters.iter();
            filters.extend(own.filter_map(|own| filter::http_filter(own, class)));
            let mut manager = manager(&api.routes, filters, class);
            manager.common_http_protocol_options =
                api.max_stream_duration.map(|limit| HttpProtocolOptions {
                    max_stream_duration: Some(duration(limit)),
                    ..HttpProtocolOptions::default()
                });
            manager.stream_idle_timeout = api.stream_idle_timeout.map(duration);
            let api_listener = Some(ProtoApiListener {
                api_listener: Some(any(&manager)),
            });
            ProtoListener {
                name,
                api_listener,
                ..ProtoListener::default()
            }
        }
        ListenerKind::Inbound(inbound) => inbound_listener(name, inbound, class),
    }
}

/// The one listener of an Envoy beside an application: HTTP on the loopback address, routed by
/// authority with the route configuration `outbound`.
pub fn envoy_outbound_listener(name: &str, port: u16) -> ProtoListener {
    let routes = RouteSource::Rds(name.into());
    let manager = manager(
        &routes,
        filter::of_clients(ClientClass::Envoy),
        ClientClass::Envoy,
    );
    ProtoListener {
        name: name.to_owned(),
        address: Some(socket(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
        filter_chains: vec![ProtoFilterChain {
            filters: vec![manager_filter(&manager)],
            ..ProtoFilterChain::default()
        }],
        ..ProtoListener::default()
    }
}

fn inbound_listener(name: String, config: &InboundListener, class: ClientClass) -> ProtoListener {
    let mut chains: Vec<&FilterChain> = config.filter_chains.iter().collect();
    if class.is_grpc() && chains.len() > 1 {
        // A gRPC server cannot tell TLS from plaintext on one port: PERMISSIVE is plaintext there.
        tracing::warn!(
            listener = name,
            "PERMISSIVE is served as plaintext by gRPC servers: use STRICT or DISABLE"
        );
        chains.retain(|chain| chain.transport != TransportMatch::Tls);
    }
    let reads_hello = chains
        .iter()
        .any(|chain| chain.transport != TransportMatch::Any);
    ProtoListener {
        name,
        address: config.address.map(socket),
        // Without it Envoy takes every connection for plaintext; gRPC refuses it.
        listener_filters: match class {
            ClientClass::Envoy if reads_hello => vec![tls_inspector()],
            _ => Vec::new(),
        },
        filter_chains: chains
            .into_iter()
            .map(|chain| filter_chain(chain, class))
            .collect(),
        ..ProtoListener::default()
    }
}

fn tls_inspector() -> ListenerFilter {
    let config = any(&TlsInspector::default());
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    }
}

fn filter_chain(config: &FilterChain, class: ClientClass) -> ProtoFilterChain {
    let transport = match config.transport {
        TransportMatch::Any => "",
        _ if class.is_grpc() => "",
        TransportMatch::RawBuffer => "raw_buffer",
        TransportMatch::Tls => "tls",
    };
    let chain_match = (!transport.is_empty()).then(|| FilterChainMatch {
        transport_protocol: transport.to_owned(),
        ..FilterChainMatch::default()
    });
    let filters = config.filters.iter();
    let filters = filters.filter_map(|filter| filter::http_filter(filter, class));
    let mut manager = manager(&config.routes, filters.collect(), class);
    inbound_paths(&mut manager, config.path_normalization);
    http_limits::write(&mut manager, &config.limits);
    client_cert(&mut manager, &config.client_cert);
    if class == ClientClass::Envoy {
        // The caller is who is at the other end of the connection, whatever it says of itself.
        manager.use_remote_address = Some(BoolValue { value: true });
        manager.skip_xff_append = true;
    }
    ProtoFilterChain {
        name: config.name.clone(),
        filter_chain_match: chain_match,
        filters: vec![manager_filter(&manager)],
        transport_socket: config.tls.as_ref().map(|tls| tls::downstream(tls, class)),
        ..ProtoFilterChain::default()
    }
}

fn inbound_paths(manager: &mut HttpConnectionManager, options: PathNormalization) {
    let action = match options.escaped_slashes {
        EscapedSlashes::Keep => PathWithEscapedSlashesAction::KeepUnchanged,
        EscapedSlashes::Reject => PathWithEscapedSlashesAction::RejectRequest,
        EscapedSlashes::Redirect => PathWithEscapedSlashesAction::UnescapeAndRedirect,
        EscapedSlashes::Decode => PathWithEscapedSlashesAction::UnescapeAndForward,
    };
    manager.normalize_path = Some(BoolValue {
        value: options.normalize,
    });
    manager.merge_slashes = options.merge_slashes;
    manager.path_with_escaped_slashes_action = action as i32;
}

fn client_cert(manager: &mut HttpConnectionManager, config: &ForwardClientCert) {
    let mode = match config.mode {
        ForwardMode::Sanitize => ForwardClientCertDetails::Sanitize,
        ForwardMode::ForwardOnly => ForwardClientCertDetails::ForwardOnly,
        ForwardMode::AppendForward => ForwardClientCertDetails::AppendForward,
        ForwardMode::SanitizeSet => ForwardClientCertDetails::SanitizeSet,
        ForwardMode::AlwaysForwardOnly => ForwardClientCertDetails::AlwaysForwardOnly,
    };
    manager.forward_client_cert_details = mode as i32;
    let details = &config.details;
    if *details != ClientCertDetails::default() {
        manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
            subject: details.subject.then_some(BoolValue { value: true }),
            cert: details.cert,
            chain: details.chain,
            dns: details.dns,
            uri: details.uri,
            issuer: details.issuer,
            ..SetCurrentClientCertDetails::default()
        });
    }
}

fn manager_filter(manager: &HttpConnectionManager) -> Filter {
    Filter {
        name: MANAGER.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(manager))),
    }
}

fn manager(
    routes: &RouteSource,
    mut http_filters: Vec<HttpFilter>,
    class: ClientClass,
) -> HttpConnectionManager {
    let router = filter::named("envoy.filters.http.router", any(&Router::default()));
    http_filters.push(router);
    let route_specifier = match routes {
        RouteSource::Rds(name) => RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: name.to_string(),
        }),
        RouteSource::Inline(config) => RouteSpecifier::RouteConfig(route_config(config, class)),
    };
    HttpConnectionManager {
        codec_type: CodecType::Auto as i32,
        stat_prefix: "mesh".to_owned(),
        http_filters,
        route_specifier: Some(route_specifier),
        ..HttpConnectionManager::default()
    }
}
