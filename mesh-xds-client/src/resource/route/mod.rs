//! `RouteConfiguration` to [`RouteConfig`].
//!
//! Stage 3. Virtual hosts and what their routes match (gRFC A27, A28); actions are in [`action`].
//! Deviation: conditions that gRPC ignores and that cannot be evaluated here refuse the resource.
//! What the data plane does not execute yet is decoded and noted ([`mesh_core::route::Feature`]).

mod action;
mod hash;
pub(super) mod headers;
mod hedge;
mod internal_redirect;
pub(crate) mod matcher;
mod retry;
mod rewrite;

use std::collections::HashSet;

use envoy_types::pb::envoy::config::route::v3::{
    Route as RouteProto, RouteConfiguration, VirtualHost as VirtualHostProto, route::Action,
};
use mesh_core::config::{
    AttemptCounts, BodyBuffer, Mirror, Route, RouteAction, RouteConfig, VirtualHost,
};

use self::action::Inherited;

use super::{canonical, filter, path::Sink, report::report};

/// The changes of headers of a message that has them.
macro_rules! mutations {
    ($sink:expr, $proto:expr) => {
        headers::mutations(
            $sink,
            &$proto.request_headers_to_add,
            &$proto.request_headers_to_remove,
            &$proto.response_headers_to_add,
            &$proto.response_headers_to_remove,
        )
    };
}

/// How much of bodies a message has kept for other attempts.
macro_rules! body_buffer {
    ($sink:expr, $proto:expr) => {{
        let (old, new) = (
            &$proto.per_request_buffer_limit_bytes,
            &$proto.request_body_buffer_limit,
        );
        $sink.refuse(
            "per_request_buffer_limit_bytes",
            old.is_some() && new.is_some(),
            "and request_body_buffer_limit exclude each other",
        );
        match (old, new) {
            (_, Some(limit)) => Some(BodyBuffer::Exactly(limit.value)),
            (Some(limit), None) => Some(BodyBuffer::AtMost(limit.value)),
            (None, None) => None,
        }
    }};
}

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
            cluster_specifier_plugins,
            ignore_path_parameters_in_path_matching,
            internal_only_headers,
            vhost_header
        ]
    );
    sink.refuse("vhds", proto.vhds.is_some(), "is not supported");
    let filters = filter::overrides(sink, side, &proto.typed_per_filter_config, &[]);
    let headers = mutations!(sink, proto);
    let mirrors = action::mirrors(sink, &proto.request_mirror_policies);
    let virtual_hosts = sink.each("virtual_hosts", &proto.virtual_hosts, |sink, host| {
        virtual_host(sink, side, &mirrors, host)
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
        headers: headers?,
        most_specific_mutations_win: proto.most_specific_header_mutations_wins,
        ignore_port: proto.ignore_port_in_host_matching,
        filters,
    })
}

fn virtual_host(
    sink: &mut Sink,
    side: Side,
    mirrors: &[Mirror],
    proto: &VirtualHostProto,
) -> Option<VirtualHost> {
    report!(
        sink,
        proto,
        [
            cors,
            retry_policy_typed_config,
            include_is_timeout_retry_header
        ]
    );
    sink.refuse(
        "matcher",
        proto.matcher.is_some(),
        "is not supported; use routes",
    );
    sink.refuse("require_tls", proto.require_tls != 0, "is not supported");
    sink.refuse("domains", proto.domains.is_empty(), "must not be empty");
    let declared = &proto.typed_per_filter_config;
    let filters = filter::overrides(sink, side, declared, &proto.rate_limits);
    sink.each("domains", &proto.domains, |sink, domain| {
        check_domain(sink, domain)
    });
    let retry = match &proto.retry_policy {
        Some(policy) => sink.field("retry_policy", |sink| retry::retry_policy(sink, policy))?,
        None => None,
    };
    let hedge = match &proto.hedge_policy {
        Some(policy) => Some(hedge::policy(sink, policy)?),
        None => None,
    };
    let own = action::mirrors(sink, &proto.request_mirror_policies);
    let inherited = Inherited {
        body_buffer: body_buffer!(sink, proto),
        retry,
        hedge,
        mirrors: if own.is_empty() {
            mirrors.to_vec()
        } else {
            own
        },
    };
    let headers = mutations!(sink, proto);
    let routes = sink.each("routes", &proto.routes, |sink, proto| {
        route(sink, side, proto, &inherited)
    });
    Some(VirtualHost {
        name: proto.name.clone(),
        domains: proto.domains.clone(),
        routes,
        headers: headers?,
        filters,
        attempt_counts: AttemptCounts {
            in_request: proto.include_request_attempt_count,
            in_response: proto.include_attempt_count_in_response,
        },
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

fn route(sink: &mut Sink, side: Side, proto: &RouteProto, inherited: &Inherited) -> Option<Route> {
    report!(sink, proto, [tracing]);
    let (rate_limits, include_vh) = match &proto.action {
        Some(Action::Route(action)) => {
            let include = action.include_vh_rate_limits.as_ref();
            (&action.rate_limits[..], include.is_some_and(|v| v.value))
        }
        _ => (&[][..], false),
    };
    let declared = &proto.typed_per_filter_config;
    let mut filters = filter::overrides(sink, side, declared, rate_limits);
    if include_vh {
        filters.get_or_insert_default().include_vh_rate_limits = true;
    }
    let matcher = match &proto.r#match {
        Some(proto) => sink.field("match", |sink| matcher::route_match(sink, proto)),
        None => sink.error_at("match", "is missing"),
    };
    let path = matcher.as_ref().map(|matcher| &matcher.path);
    let mut action = action::decode(sink, side, path, proto.action.as_ref(), inherited);
    if let Some(action) = &mut action {
        hedge::from_metadata(sink, proto, action);
    }
    let body_buffer = body_buffer!(sink, proto).or(inherited.body_buffer);
    if let Some(RouteAction::Forward(forward)) = &mut action {
        forward.body_buffer = body_buffer;
    }
    let headers = mutations!(sink, proto);
    Some(Route {
        headers: headers?,
        filters,
        ..Route::new(proto.name.clone(), matcher?, action?)
    })
}
