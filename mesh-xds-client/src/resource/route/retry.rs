//! Retry policies (gRFC A44; HTTP conditions and the rest as in Envoy).
//!
//! Stage 3.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            RetryPolicy as RetryProto,
            retry_policy::{
                RateLimitedRetryBackOff, ResetHeaderFormat, RetryBackOff, RetryHostPredicate,
                RetryPriority, retry_host_predicate, retry_priority,
            },
        },
        extensions::retry::{
            host::{
                omit_canary_hosts::v3::OmitCanaryHostsPredicate,
                omit_host_metadata::v3::OmitHostMetadataConfig,
                previous_hosts::v3::PreviousHostsPredicate,
            },
            priority::previous_priorities::v3::PreviousPrioritiesConfig,
        },
    },
    google::protobuf::Any,
};
use mesh_core::{
    config::{
        Backoff, RETRIES_MAX, RateLimitedBackoff, ResetHeader, RetryExtras, RetryOn, RetryPolicy,
    },
    route::Feature,
};

use super::{headers::header_name, matcher::header};
use crate::resource::{
    lb_metadata,
    path::Sink,
    report::report,
    value::{duration, is, parse, uint32},
};

/// Shortest pause between attempts (gRFC A44).
const BACKOFF_MIN: Duration = Duration::from_millis(1);

/// Longest pause that a server can ask for, by default (Envoy).
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

/// Conditions that ask for headers of the response.
const ON_HEADERS: RetryOn = RetryOn::RETRIABLE_HEADERS;

/// The outer `None` is an error. The inner one never is: a policy without a known condition means
/// "no retry", and still stands in for the virtual host's (gRFC A44).
pub(super) fn retry_policy(sink: &mut Sink, proto: &RetryProto) -> Option<Option<RetryPolicy>> {
    report!(
        sink,
        proto,
        [refresh_cluster_on_retry, retry_options_predicates]
    );
    let (mut retry_on, unknown) = RetryOn::parse(&proto.retry_on);
    // Istio writes codes into the list of conditions.
    let mut codes: Vec<u16> = unknown
        .iter()
        .filter_map(|token| token.parse().ok())
        .collect();
    if !codes.is_empty() {
        retry_on |= RetryOn::RETRIABLE_STATUS_CODES;
    }
    sink.ignore([("retry_on (some conditions)", codes.len() < unknown.len())]);
    sink.pending(
        "retry_on (response headers)",
        Feature::RetriableHeaders,
        retry_on.intersects(ON_HEADERS | RetryOn::ENVOY_RATE_LIMITED),
    );
    sink.ignore([(
        "retry_on (http3-post-connect-failure)",
        retry_on.intersects(RetryOn::HTTP3_POST_CONNECT_FAILURE),
    )]);
    for code in &proto.retriable_status_codes {
        match u16::try_from(*code) {
            Ok(code) if (100..600).contains(&code) => codes.push(code),
            _ => sink
                .error_at::<()>(
                    "retriable_status_codes",
                    format!("{code} is not an HTTP status"),
                )
                .unwrap_or_default(),
        }
    }
    let num_retries = uint32(proto.num_retries.as_ref()).unwrap_or(1);
    sink.refuse(
        "num_retries",
        num_retries == 0,
        "must not be 0; leave retry_policy out instead",
    );
    let per_try_timeout = duration(sink, "per_try_timeout", proto.per_try_timeout.as_ref());
    let backoff = match &proto.retry_back_off {
        Some(backoff) => sink.field("retry_back_off", |sink| decode_backoff(sink, backoff)),
        None => Some(Backoff::default()),
    };
    Some(Some(RetryPolicy {
        retry_on,
        retriable_status_codes: codes,
        num_retries: num_retries.min(RETRIES_MAX),
        per_try_timeout: per_try_timeout.filter(|timeout| !timeout.is_zero()),
        backoff: backoff?,
        extras: extras(sink, proto)?,
    }))
}

/// The outer `None` is an error.
fn extras(sink: &mut Sink, proto: &RetryProto) -> Option<Option<Arc<RetryExtras>>> {
    let by_header =
        !proto.retriable_headers.is_empty() || !proto.retriable_request_headers.is_empty();
    let attempts = proto.host_selection_retry_max_attempts;
    for (name, feature, is_set) in [
        ("retriable_headers", Feature::RetriableHeaders, by_header),
        (
            "rate_limited_retry_back_off",
            Feature::RateLimitedBackoff,
            proto.rate_limited_retry_back_off.is_some(),
        ),
        (
            "per_try_idle_timeout",
            Feature::PerTryIdleTimeout,
            proto.per_try_idle_timeout.is_some(),
        ),
        (
            "retry_host_predicate",
            Feature::HostPredicates,
            !proto.retry_host_predicate.is_empty(),
        ),
        (
            "host_selection_retry_max_attempts",
            Feature::HostPredicates,
            attempts != 0,
        ),
    ] {
        sink.pending(name, feature, is_set);
    }
    let mut extras = RetryExtras {
        retriable_headers: sink.each("retriable_headers", &proto.retriable_headers, header),
        retriable_request_headers: sink.each(
            "retriable_request_headers",
            &proto.retriable_request_headers,
            header,
        ),
        rate_limited: None,
        per_try_idle_timeout: duration(
            sink,
            "per_try_idle_timeout",
            proto.per_try_idle_timeout.as_ref(),
        )
        .filter(|timeout| !timeout.is_zero()),
        avoid_previous_hosts: false,
        avoid_canary_hosts: false,
        avoid_metadata: Vec::new(),
        host_selection_attempts: u32::try_from(attempts).unwrap_or(0),
        previous_priorities: None,
    };
    if let Some(priority) = &proto.retry_priority {
        extras.previous_priorities =
            sink.field("retry_priority", |sink| previous_priorities(sink, priority));
    }
    if let Some(backoff) = &proto.rate_limited_retry_back_off {
        extras.rate_limited = Some(sink.field("rate_limited_retry_back_off", |sink| {
            rate_limited(sink, backoff)
        })?);
    }
    sink.each(
        "retry_host_predicate",
        &proto.retry_host_predicate,
        |sink, predicate| host_predicate(sink, predicate, &mut extras),
    );
    if extras == RetryExtras::default() {
        return Some(None);
    }
    extras.host_selection_attempts = extras.host_selection_attempts.max(1);
    Some(Some(Arc::new(extras)))
}

/// `None` is an error, or something that is not known.
fn previous_priorities(sink: &mut Sink, proto: &RetryPriority) -> Option<NonZeroU32> {
    match &proto.config_type {
        Some(retry_priority::ConfigType::TypedConfig(any))
            if is::<PreviousPrioritiesConfig>(any) =>
        {
            sink.field("typed_config", |sink| {
                let proto: PreviousPrioritiesConfig = parse(sink, any)?;
                let frequency = u32::try_from(proto.update_frequency).ok();
                let frequency = frequency.and_then(NonZeroU32::new);
                sink.refuse("update_frequency", frequency.is_none(), "must be above 0");
                frequency
            })
        }
        Some(retry_priority::ConfigType::TypedConfig(_)) => {
            sink.ignore([("typed_config", true)]);
            None
        }
        // It has no default.
        None if proto.name.ends_with("previous_priorities") => {
            sink.error_at("typed_config", "is missing, and with it update_frequency")
        }
        None => {
            sink.ignore([("name", true)]);
            None
        }
    }
}

fn host_predicate(
    sink: &mut Sink,
    proto: &RetryHostPredicate,
    extras: &mut RetryExtras,
) -> Option<()> {
    match &proto.config_type {
        Some(retry_host_predicate::ConfigType::TypedConfig(any)) => {
            if is::<PreviousHostsPredicate>(any) {
                extras.avoid_previous_hosts = true;
            } else if is::<OmitCanaryHostsPredicate>(any) {
                extras.avoid_canary_hosts = true;
            } else if is::<OmitHostMetadataConfig>(any) {
                return sink.field("typed_config", |sink| omitted_metadata(sink, any, extras));
            } else {
                sink.ignore([("typed_config", true)]);
            }
        }
        // The older form says it by name alone.
        None if proto.name.ends_with("previous_hosts") => extras.avoid_previous_hosts = true,
        None if proto.name.ends_with("omit_canary_hosts") => {
            extras.avoid_canary_hosts = true;
        }
        None => sink.ignore([("name", true)]),
    }
    None
}

fn omitted_metadata(sink: &mut Sink, any: &Any, extras: &mut RetryExtras) -> Option<()> {
    let proto: OmitHostMetadataConfig = parse(sink, any)?;
    let omitted = lb_metadata::of_lb(proto.metadata_match.as_ref());
    if omitted.is_empty() {
        return sink.error_at("metadata_match", "says nothing about envoy.lb");
    }
    extras.avoid_metadata.push(omitted);
    None
}

fn rate_limited(sink: &mut Sink, proto: &RateLimitedRetryBackOff) -> Option<RateLimitedBackoff> {
    sink.refuse("reset_headers", proto.reset_headers.is_empty(), "is empty");
    let reset_headers = sink.each("reset_headers", &proto.reset_headers, |sink, header| {
        Some(ResetHeader {
            name: header_name(sink, "name", &header.name)?,
            is_unix_time: header.format == ResetHeaderFormat::UnixTimestamp as i32,
        })
    });
    let max = duration(sink, "max_interval", proto.max_interval.as_ref());
    Some(RateLimitedBackoff {
        reset_headers,
        max_interval: max.filter(|max| !max.is_zero()).unwrap_or(RATE_LIMITED_MAX),
    })
}

fn decode_backoff(sink: &mut Sink, proto: &RetryBackOff) -> Option<Backoff> {
    if proto.base_interval.is_none() {
        return sink.error_at("base_interval", "is missing");
    }
    let base = duration(sink, "base_interval", proto.base_interval.as_ref())?;
    if base.is_zero() {
        return sink.error_at("base_interval", "must not be zero");
    }
    let max = match &proto.max_interval {
        None => base.saturating_mul(10),
        some => {
            let max = duration(sink, "max_interval", some.as_ref())?;
            if max < base {
                return sink.error_at("max_interval", "must not be less than base_interval");
            }
            max
        }
    };
    Some(Backoff {
        base: base.max(BACKOFF_MIN),
        max: max.max(BACKOFF_MIN),
    })
}
