//! `fault` and `corsPolicy` of a VirtualService to filters.

use std::sync::Arc;

use mesh_core::config::{
    Abort, CorsPolicy, Delay, Fault, FaultAbort, FaultDelay, FilterConfig, Fraction, Regex,
    StringMatcher, StringPattern,
};

use super::{
    route_action::share,
    route_match::{Wrong, pattern},
};
use crate::{
    model::{CorsSpec, FaultSpec, Percent},
    value,
};

/// Names of the filters, in listeners and routes.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";
/// See [`FAULT_FILTER`].
pub const CORS_FILTER: &str = "envoy.filters.http.cors";

/// Out of a million, as shares are encoded.
const DENOMINATOR: u32 = 1_000_000;

/// Names of gRPC's statuses, in the order of their numbers.
const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The faults of a route.
pub(super) fn fault(declared: &FaultSpec) -> Result<FilterConfig, Wrong> {
    let mut fault = Fault::default();
    if let Some(delay) = &declared.delay {
        let field = |message| ("delay.fixedDelay".to_owned(), message);
        let text = delay.fixed_delay.as_deref().unwrap_or_default();
        let fixed = value::duration(text).map_err(field)?;
        let old = delay.percent.map(|value| Percent {
            value: value.into(),
        });
        if fixed.is_zero() {
            return Err(field("it must be more than zero".to_owned()));
        }
        fault.delay = Some(FaultDelay {
            delay: Delay::Fixed(fixed),
            percentage: percentage("delay", delay.percentage.as_ref().or(old.as_ref()))?,
            denominator: DENOMINATOR,
        });
    }
    if let Some(abort) = &declared.abort {
        let answer = match (abort.http_status, &abort.grpc_status) {
            (Some(status @ 200..=599), None) => Abort::Http(status),
            (Some(status), None) => {
                let message = format!("{status} is not 200 to 599");
                return Err(("abort.httpStatus".to_owned(), message));
            }
            (None, Some(status)) => Abort::Grpc(grpc_status(status)?),
            _ => {
                let message = "write one of httpStatus and grpcStatus".to_owned();
                return Err(("abort".to_owned(), message));
            }
        };
        fault.abort = Some(FaultAbort {
            abort: answer,
            percentage: percentage("abort", abort.percentage.as_ref())?,
            denominator: DENOMINATOR,
        });
    }
    Ok(FilterConfig::Fault(Arc::new(fault)))
}

/// Istio: all requests, unless it is said otherwise.
fn percentage(part: &str, declared: Option<&Percent>) -> Result<Fraction, Wrong> {
    let all = Fraction::new(1, 1).unwrap_or_else(|| unreachable!("one is not zero"));
    let share = share(declared).map_err(|message| (format!("{part}.percentage.value"), message))?;
    Ok(share.unwrap_or(all))
}

fn grpc_status(text: &str) -> Result<u32, Wrong> {
    let by_name = (0..).zip(GRPC_STATUS).find(|(_, name)| *name == text);
    let by_number = || text.parse().ok().filter(|number| *number <= 16);
    by_name
        .map(|(number, _)| number)
        .or_else(by_number)
        .ok_or_else(|| {
            let message = format!("{text:?} is not a gRPC status: write for example UNAVAILABLE");
            ("abort.grpcStatus".to_owned(), message)
        })
}

/// What pages of other origins may do.
pub(super) fn cors(declared: &CorsSpec) -> Result<FilterConfig, Wrong> {
    let mut allow_origins = Vec::new();
    for (index, origin) in declared.allow_origins.iter().enumerate() {
        let wrong = |message| (format!("allowOrigins[{index}]"), message);
        let pattern = pattern(origin).map_err(wrong)?;
        let pattern = pattern.ok_or_else(|| wrong("it is empty".to_owned()))?;
        allow_origins.push(StringMatcher::new(pattern).map_err(wrong)?);
    }
    for (index, origin) in declared.allow_origin.iter().enumerate() {
        let wrong = |message| (format!("allowOrigin[{index}]"), message);
        let pattern = match origin.as_str() {
            "*" => StringPattern::Regex(Regex::new(".*").map_err(wrong)?),
            exact => StringPattern::Exact(exact.to_owned()),
        };
        allow_origins.push(StringMatcher::new(pattern).map_err(wrong)?);
    }
    let forward = match declared.unmatched_preflights.as_deref() {
        None | Some("UNSPECIFIED" | "FORWARD") => true,
        Some("IGNORE") => false,
        Some(other) => {
            let message = format!("{other:?} is not FORWARD or IGNORE");
            return Err(("unmatchedPreflights".to_owned(), message));
        }
    };
    let max_age = declared.max_age.as_deref().map(value::duration).transpose();
    let max_age = max_age.map_err(|message| ("maxAge".to_owned(), message))?;
    Ok(FilterConfig::Cors(Some(Arc::new(CorsPolicy {
        allow_origins,
        allow_methods: declared.allow_methods.join(","),
        allow_headers: declared.allow_headers.join(","),
        expose_headers: declared.expose_headers.join(","),
        max_age: max_age.map_or_else(String::new, |age| age.as_secs().to_string()),
        allow_credentials: declared.allow_credentials,
        allow_private_network_access: None,
        forward_not_matching_preflights: Some(forward),
        enabled: None,
    }))))
}
