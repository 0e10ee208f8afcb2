//! `RouteConfiguration` to [`RouteConfig`].
//!
//! Stage 3. Virtual hosts and what their routes match (gRFC A27, A28); actions are in [`action`].
//! Deviations: conditions that gRPC ignores and that cannot be evaluated here refuse the resource,
//! and changes of headers have no effect and are noted.

mod action;
pub(crate) mod matcher;

use std::collections::{BTreeMap, HashMap, HashSet};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            FilterConfig, Route as RouteProto, RouteConfiguration, VirtualHost as VirtualHostProto,
        },
        extensions::filters::http::{
            fault::v3::HttpFault,
            rbac::v3::{Rbac, RbacPerRoute},
            router::v3::Router,
        },
    },
    google::protobuf::Any,
};
use mesh_core::config::{Route, RouteConfig, VirtualHost};

use super::{
    canonical,
    listener::is_without_effect,
    path::Sink,
    report::report,
    value::{is, parse},
};

/// Which side the routes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

pub(crate) fn decode(
    sink: &mut Sink,
    side: Side,
    proto: &RouteConfiguration,
) -> Option<RouteConfig> {
    report!(
        sink,
        proto,
        [
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            request_mirror_policies,
            ignore_port_in_host_matching,
            cluster_specifier_plugins,
            ignore_path_parameters_in_path_matching,
            internal_only_headers,
            most_specific_header_mutations_wins,
            vhost_header
        ]
    );
    sink.refuse("vhds", proto.vhds.is_some(), "is not supported");
    check_overrides(sink, side, &proto.typed_per_filter_config);
    let virtual_hosts = sink.each("virtual_hosts", &proto.virtual_hosts, |sink, host| {
        virtual_host(sink, side, host)
    });
    let mut names = HashSet::new();
    let mut domains = HashSet::new();
    for host in &virtual_hosts {
        if !host.name.is_empty() && !names.insert(&host.name) {
            sink.error_at::<()>(
                "virtual_hosts",
                format!("name {:?} is used twice", host.name),
            );
        }
        for domain in &host.domains {
            if !domains.insert(domain.to_ascii_lowercase()) {
                let reason = format!("domain {domain:?} is listed twice");
                sink.error_at::<()>("virtual_hosts", reason);
            }
        }
    }
    Some(RouteConfig {
        name: canonical(proto.name.clone()).into(),
        virtual_hosts,
    })
}

fn virtual_host(sink: &mut Sink, side: Side, proto: &VirtualHostProto) -> Option<VirtualHost> {
    report!(
        sink,
        proto,
        [
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            request_mirror_policies,
            rate_limits,
            cors,
            hedge_policy,
            retry_policy_typed_config,
            include_attempt_count_in_response,
            include_is_timeout_retry_header,
            include_request_attempt_count,
            per_request_buffer_limit_bytes,
            request_body_buffer_limit
        ]
    );
    sink.refuse(
        "matcher",
        proto.matcher.is_some(),
        "is not supported; use routes",
    );
    sink.refuse("require_tls", proto.require_tls != 0, "is not supported");
    sink.refuse("domains", proto.domains.is_empty(), "must not be empty");
    check_overrides(sink, side, &proto.typed_per_filter_config);
    sink.each("domains", &proto.domains, |sink, domain| {
        check_domain(sink, domain)
    });
    let retry = match &proto.retry_policy {
        Some(policy) => sink.field("retry_policy", |sink| action::retry_policy(sink, policy))?,
        None => None,
    };
    let routes = sink.each("routes", &proto.routes, |sink, proto| {
        route(sink, side, proto, retry.as_ref())
    });
    Some(VirtualHost {
        name: proto.name.clone(),
        domains: proto.domains.clone(),
        routes,
    })
}

fn check_domain(sink: &mut Sink, domain: &str) -> Option<()> {
    let inner = domain
        .strip_prefix('*')
        .or_else(|| domain.strip_suffix('*'))
        .unwrap_or(domain);
    if domain.is_empty() {
        sink.error("must not be empty")
    } else if inner.contains('*') {
        sink.error(format!(
            "{domain:?} has a * that is neither first nor last, or two of them"
        ))
    } else {
        Some(())
    }
}

fn route(
    sink: &mut Sink,
    side: Side,
    proto: &RouteProto,
    host_retry: Option<&mesh_core::config::RetryPolicy>,
) -> Option<Route> {
    report!(
        sink,
        proto,
        [
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            per_request_buffer_limit_bytes,
            request_body_buffer_limit,
            tracing
        ]
    );
    check_overrides(sink, side, &proto.typed_per_filter_config);
    let matcher = match &proto.r#match {
        Some(proto) => sink.field("match", |sink| matcher::route_match(sink, proto)),
        None => sink.error_at("match", "is missing"),
    };
    let action = action::decode(sink, side, proto.action.as_ref(), host_retry);
    Some(Route {
        name: proto.name.clone(),
        matcher: matcher?,
        action: action?,
    })
}

/// Checks overrides of filters. None has an effect here, so those that should have one are refused.
fn check_overrides(sink: &mut Sink, side: Side, overrides: &HashMap<String, Any>) {
    let sorted: BTreeMap<&String, &Any> = overrides.iter().collect();
    for (name, any) in sorted {
        sink.field(&format!("typed_per_filter_config[{name:?}]"), |sink| {
            check_override(sink, side, any);
        });
    }
}

pub(super) fn check_override(sink: &mut Sink, side: Side, any: &Any) {
    let (inner, is_optional) = if is::<FilterConfig>(any) {
        let Some(config) = parse::<FilterConfig>(sink, any) else {
            return;
        };
        if config.disabled && side == Side::Server {
            sink.error::<()>("switching a filter off for a route is not supported");
        }
        (config.config, config.is_optional)
    } else {
        (Some(any.clone()), false)
    };
    let Some(inner) = inner else {
        return;
    };
    let is_rbac = is::<RbacPerRoute>(&inner) || is::<Rbac>(&inner);
    let is_known =
        is::<Router>(&inner) || (is::<HttpFault>(&inner) && is_without_effect(sink, &inner));
    if is_known || (is_optional && !is_rbac) {
        return;
    }
    if is_rbac && side == Side::Client {
        // Authorisation is the server's; clients have no such filter that this could override.
        return;
    }
    sink.error::<()>(format!(
        "overriding {} for a route is not supported",
        inner.type_url
    ));
}
