//! Route configurations (RDS).

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{DataSource, RuntimeFractionalPercent, data_source},
            route::v3::{
                DirectResponseAction, NonForwardingAction, RedirectAction, Route as ProtoRoute,
                RouteConfiguration, RouteMatch as ProtoRouteMatch, VirtualHost as ProtoVirtualHost,
                redirect_action::{
                    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
                },
                route,
            },
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{BoolValue, UInt64Value},
};
use mesh_core::config::{
    BodyBuffer, DirectResponse, Fraction, HeaderMatcher, Redirect, RedirectPath, Route,
    RouteAction, RouteConfig, RouteMatch,
};

use super::{
    ClientClass,
    action::{forward, regex_rewrite},
    filter, headers, hedge, matcher, uint32,
};

/// Encodes a route configuration.
pub fn route_config(config: &RouteConfig, class: ClientClass) -> RouteConfiguration {
    let hosts = config.virtual_hosts.iter().map(|host| ProtoVirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes: host
            .routes
            .iter()
            .flat_map(|route| encode_routes(route, class))
            .collect(),
        request_headers_to_add: headers::request_add(host.headers.as_deref()),
        request_headers_to_remove: headers::request_remove(host.headers.as_deref()),
        response_headers_to_add: headers::response_add(host.headers.as_deref()),
        response_headers_to_remove: headers::response_remove(host.headers.as_deref()),
        typed_per_filter_config: filter::overrides(host.filters.as_deref(), class),
        include_request_attempt_count: host.attempt_counts.in_request,
        include_attempt_count_in_response: host.attempt_counts.in_response,
        ..ProtoVirtualHost::default()
    });
    let own = config.headers.as_deref();
    RouteConfiguration {
        name: config.name.to_string(),
        virtual_hosts: hosts.collect(),
        request_headers_to_add: headers::request_add(own),
        request_headers_to_remove: headers::request_remove(own),
        response_headers_to_add: headers::response_add(own),
        response_headers_to_remove: headers::response_remove(own),
        most_specific_header_mutations_wins: config.most_specific_mutations_win,
        ignore_port_in_host_matching: config.ignore_port,
        ..RouteConfiguration::default()
    }
}

/// One route, but for gRPC where it takes several to say the same.
fn encode_routes(config: &Route, class: ClientClass) -> Vec<ProtoRoute> {
    let is_plain = |header: &HeaderMatcher| !header.treat_missing_as_empty;
    if !class.is_grpc() || config.matcher.headers.iter().all(is_plain) {
        return vec![encode_route(config, class)];
    }
    let alternatives = matcher::without_missing_as_empty(&config.matcher.headers);
    let routes = alternatives.into_iter().map(|headers| {
        let mut route = config.clone();
        route.matcher.headers = headers;
        encode_route(&route, class)
    });
    routes.collect()
}

#[expect(deprecated, reason = "the buffer limit that older Envoys know")]
fn encode_route(config: &Route, class: ClientClass) -> ProtoRoute {
    let action = match &config.action {
        RouteAction::Forward(config) => route::Action::Route(forward(config, class)),
        RouteAction::Redirect(config) => route::Action::Redirect(redirect(config)),
        RouteAction::DirectResponse(config) => route::Action::DirectResponse(direct(config)),
        RouteAction::NonForwarding => route::Action::NonForwardingAction(NonForwardingAction {}),
        // Fails its own traffic only, in every class: gRPC does not know the action and fails the
        // call that reaches it, Envoy answers.
        RouteAction::Unsupported(_) => route::Action::DirectResponse(DirectResponseAction {
            status: 500,
            ..DirectResponseAction::default()
        }),
    };
    let buffer = match &config.action {
        RouteAction::Forward(config) => config.body_buffer,
        _ => None,
    };
    ProtoRoute {
        name: config.name.clone(),
        r#match: Some(encode_match(&config.matcher, class)),
        metadata: match class {
            // Nobody else knows it.
            ClientClass::Rust => hedge::metadata(config),
            _ => None,
        },
        action: Some(action),
        request_headers_to_add: headers::request_add(config.headers.as_deref()),
        request_headers_to_remove: headers::request_remove(config.headers.as_deref()),
        response_headers_to_add: headers::response_add(config.headers.as_deref()),
        response_headers_to_remove: headers::response_remove(config.headers.as_deref()),
        typed_per_filter_config: filter::overrides(config.filters.as_deref(), class),
        per_request_buffer_limit_bytes: match buffer {
            Some(BodyBuffer::AtMost(bytes)) => Some(uint32(bytes)),
            _ => None,
        },
        request_body_buffer_limit: match buffer {
            Some(BodyBuffer::Exactly(bytes)) => Some(UInt64Value { value: bytes }),
            _ => None,
        },
        ..ProtoRoute::default()
    }
}

fn redirect(config: &Redirect) -> RedirectAction {
    let status = match config.status {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let path = config.path.as_ref().map(|path| match path {
        RedirectPath::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
        RedirectPath::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.clone()),
        RedirectPath::Regex(regex) => PathRewriteSpecifier::RegexRewrite(regex_rewrite(regex)),
    });
    RedirectAction {
        scheme_rewrite_specifier: config
            .scheme
            .clone()
            .map(SchemeRewriteSpecifier::SchemeRedirect),
        host_redirect: config.host.clone().unwrap_or_default(),
        port_redirect: config.port.map_or(0, Into::into),
        path_rewrite_specifier: path,
        response_code: status as i32,
        strip_query: config.strip_query,
    }
}

fn direct(config: &DirectResponse) -> DirectResponseAction {
    DirectResponseAction {
        status: config.status.into(),
        body: (!config.body.is_empty()).then(|| DataSource {
            specifier: Some(data_source::Specifier::InlineBytes(config.body.to_vec())),
            ..DataSource::default()
        }),
        ..DirectResponseAction::default()
    }
}

pub(super) fn runtime_fraction(fraction: Fraction) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent {
        default_value: Some(percent(fraction)),
        ..RuntimeFractionalPercent::default()
    }
}

pub(super) fn percent(fraction: Fraction) -> FractionalPercent {
    FractionalPercent {
        numerator: fraction.per_million(),
        denominator: DenominatorType::Million as i32,
    }
}

fn encode_match(config: &RouteMatch, class: ClientClass) -> ProtoRouteMatch {
    ProtoRouteMatch {
        path_specifier: Some(matcher::path(&config.path, class)),
        case_sensitive: (!config.path.case_sensitive).then_some(BoolValue { value: false }),
        headers: config.headers.iter().map(matcher::header).collect(),
        query_parameters: config.query_parameters.iter().map(matcher::query).collect(),
        runtime_fraction: config.fraction.map(runtime_fraction),
        ..ProtoRouteMatch::default()
    }
}
