//! Keys of an issuer that servers fetch (Envoy `RemoteJwks`).
//!
//! They are asked for through a cluster, with its TLS. Deviations from Envoy: listeners never wait for
//! keys, whatever `fast_listener` says, as tokens do; a `cache_duration` or `failed_refetch_duration` that
//! is next to nothing is raised to what an issuer can bear.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::core::v3::{BackoffStrategy, HttpUri, RetryPolicy, http_uri::HttpUpstreamType},
    extensions::filters::http::jwt_authn::v3::{JwksAsyncFetch, RemoteJwks as RemoteProto},
};
use http::Uri;
use mesh_core::{
    config::{
        Backoff, JWKS_CACHE_DURATION_MIN, JWKS_FAILED_REFETCH_MIN, JWKS_RETRIES_MAX, RemoteJwks,
    },
    name::ClusterName,
};

use crate::resource::{canonical, path::Sink, report::report, value::duration};

/// Retries of a policy that does not say how many (Envoy's).
const RETRIES_DEFAULT: u32 = 1;

pub(super) fn decode(sink: &mut Sink, proto: &RemoteProto) -> Option<RemoteJwks> {
    let found = match &proto.http_uri {
        Some(uri) => sink.field("http_uri", |sink| decode_uri(sink, uri)),
        None => sink.error_at("http_uri", "is missing"),
    };
    let cache = duration(sink, "cache_duration", proto.cache_duration.as_ref());
    let policy = proto.retry_policy.as_ref();
    let retries = policy.map(|policy| sink.field("retry_policy", |sink| retries(sink, policy)));
    let (uri, cluster, timeout) = found?;
    let mut remote = RemoteJwks::new(uri, cluster, timeout);
    if let Some(cache) = cache {
        remote.cache_duration = cache.max(JWKS_CACHE_DURATION_MIN);
    }
    if let Some(fetch) = &proto.async_fetch {
        remote.prefetch = true;
        sink.field("async_fetch", |sink| ahead(sink, fetch, &mut remote));
    }
    if let Some(retries) = retries {
        let (retries, backoff) = retries?;
        remote.retries = retries;
        remote.backoff = backoff.unwrap_or(remote.backoff);
    }
    Some(remote)
}

fn decode_uri(sink: &mut Sink, proto: &HttpUri) -> Option<(Uri, ClusterName, Duration)> {
    let uri = proto.uri.parse::<Uri>().ok().filter(|uri| {
        uri.authority().is_some() && matches!(uri.scheme_str(), Some("http" | "https"))
    });
    let uri = match uri {
        Some(uri) => Some(uri),
        None => sink.error_at(
            "uri",
            format!("{:?} is not an http or https address", proto.uri),
        ),
    };
    let cluster = match &proto.http_upstream_type {
        Some(HttpUpstreamType::Cluster(name)) if !name.is_empty() => {
            Some(canonical(name.clone()).into())
        }
        _ => sink.error_at("cluster", "is missing: keys are asked for through one"),
    };
    let timeout = match duration(sink, "timeout", proto.timeout.as_ref()) {
        Some(limit) if !limit.is_zero() => Some(limit),
        _ => sink.error_at("timeout", "must be greater than 0"),
    };
    Some((uri?, cluster?, timeout?))
}

fn ahead(sink: &mut Sink, proto: &JwksAsyncFetch, remote: &mut RemoteJwks) {
    let pause = duration(
        sink,
        "failed_refetch_duration",
        proto.failed_refetch_duration.as_ref(),
    );
    if let Some(pause) = pause {
        remote.failed_refetch = pause.max(JWKS_FAILED_REFETCH_MIN);
    }
}

fn retries(sink: &mut Sink, proto: &RetryPolicy) -> Option<(u32, Option<Backoff>)> {
    report!(
        sink,
        proto,
        [
            retry_on,
            retry_priority,
            retry_host_predicate,
            host_selection_retry_max_attempts
        ]
    );
    let retries = proto
        .num_retries
        .map_or(RETRIES_DEFAULT, |value| value.value);
    let pauses = proto.retry_back_off.as_ref();
    let pauses = pauses.map(|pauses| sink.field("retry_back_off", |sink| backoff(sink, pauses)));
    match pauses {
        None => Some((retries.min(JWKS_RETRIES_MAX), None)),
        Some(pauses) => Some((retries.min(JWKS_RETRIES_MAX), Some(pauses?))),
    }
}

fn backoff(sink: &mut Sink, proto: &BackoffStrategy) -> Option<Backoff> {
    let base = match duration(sink, "base_interval", proto.base_interval.as_ref()) {
        Some(base) if base >= Duration::from_millis(1) => base,
        _ => return sink.error_at("base_interval", "must be 1ms or more"),
    };
    let max = match duration(sink, "max_interval", proto.max_interval.as_ref()) {
        Some(max) if max < base => {
            return sink.error_at("max_interval", "is less than base_interval");
        }
        Some(max) => max,
        None => base.saturating_mul(10),
    };
    Some(Backoff { base, max })
}
