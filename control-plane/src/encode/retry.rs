//! Retry policies of routes.

use std::num::NonZeroU32;

use envoy_types::pb::{
    envoy::{
        config::route::v3::{RetryPolicy as ProtoRetryPolicy, retry_policy},
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
use mesh_core::config::{RateLimitedBackoff, RetryExtras, RetryPolicy};

use super::{any, duration, matcher, subset, uint32};

/// Encodes a retry policy.
pub(super) fn policy(config: &RetryPolicy) -> ProtoRetryPolicy {
    ProtoRetryPolicy {
        retry_on: config.retry_on.to_string(),
        num_retries: Some(uint32(config.num_retries)),
        per_try_timeout: config.per_try_timeout.map(duration),
        retriable_status_codes: config
            .retriable_status_codes
            .iter()
            .map(|c| (*c).into())
            .collect(),
        retry_back_off: Some(retry_policy::RetryBackOff {
            base_interval: Some(duration(config.backoff.base)),
            max_interval: Some(duration(config.backoff.max)),
        }),
        ..extras(config.extras.as_deref())
    }
}

fn extras(config: Option<&RetryExtras>) -> ProtoRetryPolicy {
    let Some(config) = config else {
        return ProtoRetryPolicy::default();
    };
    let mut predicates = Vec::new();
    if config.avoid_previous_hosts {
        let name = "envoy.retry_host_predicates.previous_hosts";
        predicates.push(predicate(name, any(&PreviousHostsPredicate {})));
    }
    if config.avoid_canary_hosts {
        let name = "envoy.retry_host_predicates.omit_canary_hosts";
        predicates.push(predicate(name, any(&OmitCanaryHostsPredicate {})));
    }
    for metadata in &config.avoid_metadata {
        let name = "envoy.retry_host_predicates.omit_host_metadata";
        let omitted = OmitHostMetadataConfig {
            metadata_match: subset::metadata(metadata, None),
        };
        predicates.push(predicate(name, any(&omitted)));
    }
    ProtoRetryPolicy {
        retriable_headers: config
            .retriable_headers
            .iter()
            .map(matcher::header)
            .collect(),
        retriable_request_headers: config
            .retriable_request_headers
            .iter()
            .map(matcher::header)
            .collect(),
        rate_limited_retry_back_off: config.rate_limited.as_ref().map(rate_limited),
        per_try_idle_timeout: config.per_try_idle_timeout.map(duration),
        retry_host_predicate: predicates,
        host_selection_retry_max_attempts: config.host_selection_attempts.into(),
        retry_priority: config.previous_priorities.map(previous_priorities),
        ..ProtoRetryPolicy::default()
    }
}

fn previous_priorities(update_frequency: NonZeroU32) -> retry_policy::RetryPriority {
    let config = PreviousPrioritiesConfig {
        update_frequency: i32::try_from(update_frequency.get()).unwrap_or(i32::MAX),
    };
    retry_policy::RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_policy::retry_priority::ConfigType::TypedConfig(any(
            &config,
        ))),
    }
}

fn predicate(name: &str, config: Any) -> retry_policy::RetryHostPredicate {
    retry_policy::RetryHostPredicate {
        name: name.to_owned(),
        config_type: Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(
            config,
        )),
    }
}

fn rate_limited(config: &RateLimitedBackoff) -> retry_policy::RateLimitedRetryBackOff {
    let headers = config
        .reset_headers
        .iter()
        .map(|header| retry_policy::ResetHeader {
            name: header.name.to_string(),
            format: i32::from(header.is_unix_time),
        });
    retry_policy::RateLimitedRetryBackOff {
        reset_headers: headers.collect(),
        max_interval: Some(duration(config.max_interval)),
    }
}
