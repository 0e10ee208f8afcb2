//! HTTP filters of listeners, and what routes say about them (gRFC A39).
//!
//! Stage 3. [`TYPES`] is the list of what is known, and on which side. A filter of another type, or of
//! the other side, refuses the resource unless it is optional, in which case it is left out. The
//! router is last. Deviation: `TypedStruct` is not unwrapped, as nothing here is configured by it.

mod adaptive_concurrency;
mod buffer;
mod cors;
mod ext_authz;
mod ext_authz_http;
mod fault;
mod header_mutation;
mod jwt_authn;
mod local_ratelimit;
mod rate_limit;
mod rbac;
mod remote_jwks;
mod stateful_session;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{FilterConfig as FilterConfigProto, RateLimit as RateLimitProto},
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{HttpFilter as FilterProto, http_filter},
        },
    },
    google::protobuf::Any,
};
use mesh_core::config::{
    FilterConfig, FilterOverride, FilterOverrides, HttpFilter, RouterOptions, StrictHeaders,
};

use super::{
    path::Sink,
    report::report,
    route::Side,
    value::{is, parse},
};

/// A type of filter.
struct FilterType {
    /// Whether this is the configuration of such a filter in a listener.
    is: fn(&Any) -> bool,
    /// Whether this is what a route says about such a filter.
    is_override: fn(&Any) -> bool,
    /// Where it works.
    sides: &'static [Side],
    /// `None` is an error, which the sink has, or a filter that does nothing.
    decode: fn(&mut Sink, Side, &Any) -> Option<FilterConfig>,
    /// The same for an override.
    decode_override: fn(&mut Sink, Side, &Any) -> Option<FilterOverride>,
}

/// What is known.
const TYPES: [FilterType; 10] = [
    rbac::TYPE,
    jwt_authn::TYPE,
    ext_authz::TYPE,
    fault::TYPE,
    local_ratelimit::TYPE,
    adaptive_concurrency::TYPE,
    cors::TYPE,
    header_mutation::TYPE,
    buffer::TYPE,
    stateful_session::TYPE,
];

const BOTH: &[Side] = &[Side::Client, Side::Server];
const CLIENTS: &[Side] = &[Side::Client];
const SERVERS: &[Side] = &[Side::Server];

/// The filters of a listener, in order, without the router, and what that does with headers.
pub(super) fn decode(
    sink: &mut Sink,
    side: Side,
    filters: &[FilterProto],
) -> (Vec<HttpFilter>, RouterOptions) {
    let mut router = RouterOptions::default();
    let mut names = HashSet::new();
    let mut last_is_router = false;
    let decoded = sink.each("http_filters", filters, |sink, filter| {
        if filter.name.is_empty() || !names.insert(&filter.name) {
            sink.error_at::<()>("name", format!("{:?} is empty or used twice", filter.name));
        }
        if last_is_router {
            sink.error::<()>("stands behind the router, which must be last");
        }
        let any = match &filter.config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => any,
            _ if filter.disabled || filter.is_optional => return None,
            Some(http_filter::ConfigType::ConfigDiscovery(_)) => {
                return sink.error_at("config_discovery", "is not supported");
            }
            None => return sink.error_at("typed_config", "is missing"),
        };
        if is::<Router>(any) {
            last_is_router = true;
            router = sink.field("typed_config", |sink| decode_router(sink, any));
            return None;
        }
        let is_optional = filter.is_optional || filter.disabled;
        Some(HttpFilter {
            name: filter.name.as_str().into(),
            disabled: filter.disabled,
            config: sink.field("typed_config", |sink| {
                decode_filter(sink, side, any, is_optional)
            })?,
        })
    });
    if !last_is_router {
        sink.error_at::<()>("http_filters", "the router is missing; it must be last");
    }
    (decoded, router)
}

fn decode_router(sink: &mut Sink, any: &Any) -> RouterOptions {
    let Some(router) = parse::<Router>(sink, any) else {
        return RouterOptions::default();
    };
    report!(sink, router, [upstream_http_filters, upstream_log]);
    let mut strict_headers = StrictHeaders::default();
    sink.each(
        "strict_check_headers",
        &router.strict_check_headers,
        |sink, name| {
            if !strict_headers.insert(name) {
                let known = StrictHeaders::NAMES.join(", ");
                return sink.error(format!(
                    "{name:?} cannot be checked; those that can: {known}"
                ));
            }
            Some(())
        },
    );
    RouterOptions {
        suppress_envoy_headers: router.suppress_envoy_headers,
        respect_expected_rq_timeout: router.respect_expected_rq_timeout,
        strict_headers,
    }
}

fn decode_filter(
    sink: &mut Sink,
    side: Side,
    any: &Any,
    is_optional: bool,
) -> Option<FilterConfig> {
    let known = TYPES.iter().find(|known| (known.is)(any));
    match known.filter(|known| known.sides.contains(&side)) {
        Some(known) => (known.decode)(sink, side, any),
        None if fault::is_without_effect(any) => None,
        None if is_optional => {
            sink.ignore([("(optional filter)", true)]);
            None
        }
        None => {
            let who = match side {
                Side::Client => "clients",
                Side::Server => "servers",
            };
            sink.error(format!("{} is not supported on {who}", any.type_url))
        }
    }
}

/// What a level of a route configuration says about filters.
pub(super) fn overrides(
    sink: &mut Sink,
    side: Side,
    declared: &HashMap<String, Any>,
    rate_limits: &[RateLimitProto],
) -> Option<Box<FilterOverrides>> {
    let sorted: BTreeMap<&String, &Any> = declared.iter().collect();
    let mut overrides = FilterOverrides::default();
    for (name, any) in sorted {
        let one = sink.field(&format!("typed_per_filter_config[{name:?}]"), |sink| {
            decode_override(sink, side, any)
        });
        if let Some(one) = one {
            overrides.by_name.insert(Arc::from(name.as_str()), one);
        }
    }
    overrides.rate_limits = rate_limit::all(sink, "rate_limits", rate_limits);
    overrides.boxed()
}

fn decode_override(sink: &mut Sink, side: Side, any: &Any) -> Option<FilterOverride> {
    if !is::<FilterConfigProto>(any) {
        return decode_inner(sink, side, any, false);
    }
    let wrapper: FilterConfigProto = parse(sink, any)?;
    let inner = wrapper.config.as_ref();
    let decoded = sink.field("config", |sink| {
        let inner = inner?;
        decode_inner(sink, side, inner, wrapper.is_optional || wrapper.disabled)
    });
    match (wrapper.disabled, inner) {
        (true, _) => Some(FilterOverride::off()),
        // Without a configuration of its own it switches on what the listener has switched off.
        (false, None) => Some(FilterOverride {
            disabled: false,
            config: None,
        }),
        (false, Some(_)) => decoded,
    }
}

fn decode_inner(
    sink: &mut Sink,
    side: Side,
    any: &Any,
    is_optional: bool,
) -> Option<FilterOverride> {
    let known = TYPES
        .iter()
        .find(|known| (known.is_override)(any) || (known.is)(any));
    match known {
        Some(known) if known.sides.contains(&side) => (known.decode_override)(sink, side, any),
        // Routes do not say whose they are. A client has no such filter that this could override.
        Some(known) if rbac::is_rbac(any) => (known.decode_override)(sink, Side::Server, any),
        _ if is::<Router>(any) || fault::is_without_effect(any) => None,
        _ if is_optional => {
            sink.ignore([("(optional filter)", true)]);
            None
        }
        _ => sink.error(format!(
            "overriding {} for a route is not supported",
            any.type_url
        )),
    }
}
