//! What a route does: clusters, limits, retries.
//!
//! Stage 3. gRFC A28 (weighted clusters), A31 (limits), A44 (retries; HTTP conditions as in Envoy).
//! An action that cannot be done becomes [`RouteAction::Unsupported`]: only requests that reach the
//! route fail, with the reason (gRFC A28 keeps such routes too).

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy as RetryProto, RouteAction as ActionProto, WeightedCluster as WeightedProto,
    retry_policy::RetryBackOff, route::Action, route_action::ClusterSpecifier,
};
use mesh_core::config::{
    Backoff, Forward, MaxStreamDuration, RETRIES_MAX, RetryOn, RetryPolicy, RouteAction,
    WeightedCluster,
};

use super::Side;
use crate::resource::{
    canonical,
    path::Sink,
    report::report,
    value::{duration, uint32},
};

/// Shortest pause between attempts (gRFC A44).
const BACKOFF_MIN: Duration = Duration::from_millis(1);

pub(super) fn decode(
    sink: &mut Sink,
    side: Side,
    action: Option<&Action>,
    host_retry: Option<&RetryPolicy>,
) -> Option<RouteAction> {
    let unsupported =
        |what: &str| Some(RouteAction::Unsupported(format!("{what} is not supported")));
    match action {
        Some(Action::Route(_)) if side == Side::Server => Some(RouteAction::Unsupported(
            "a server cannot forward; use non_forwarding_action".into(),
        )),
        Some(Action::Route(proto)) => sink.field("route", |sink| forward(sink, proto, host_retry)),
        Some(Action::NonForwardingAction(_)) => Some(RouteAction::NonForwarding),
        Some(Action::Redirect(_)) => unsupported("redirect"),
        Some(Action::DirectResponse(_)) => unsupported("direct_response"),
        Some(Action::FilterAction(_)) => unsupported("filter_action"),
        None => unsupported("an action of this kind"),
    }
}

fn forward(
    sink: &mut Sink,
    proto: &ActionProto,
    host_retry: Option<&RetryPolicy>,
) -> Option<RouteAction> {
    sink.ignore([
        (
            "request_mirror_policies",
            !proto.request_mirror_policies.is_empty(),
        ),
        ("hash_policy", !proto.hash_policy.is_empty()),
        ("rate_limits", !proto.rate_limits.is_empty()),
        ("cors", proto.cors.is_some()),
        ("hedge_policy", proto.hedge_policy.is_some()),
        ("idle_timeout", proto.idle_timeout.is_some()),
        (
            "internal_redirect_policy",
            proto.internal_redirect_policy.is_some(),
        ),
        (
            "retry_policy_typed_config",
            proto.retry_policy_typed_config.is_some(),
        ),
        ("priority", proto.priority != 0),
    ]);
    report!(
        sink,
        proto,
        [
            append_x_forwarded_host,
            early_data_policy,
            flush_timeout,
            grpc_timeout_offset,
            include_vh_rate_limits,
            internal_redirect_action,
            max_grpc_timeout,
            max_internal_redirects,
            upgrade_configs,
        ]
    );
    if let Some(what) = unknown_specifier(proto).or_else(|| rewrites(proto)) {
        return Some(RouteAction::Unsupported(format!("{what} is not supported")));
    }
    let clusters = match &proto.cluster_specifier {
        Some(ClusterSpecifier::WeightedClusters(weighted)) => sink
            .field("weighted_clusters", |sink| {
                weighted_clusters(sink, weighted)
            }),
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Some(vec![WeightedCluster {
            name: canonical(name.clone()).into(),
            weight: 1,
        }]),
        _ => return sink.error_at("cluster", "is empty"),
    };
    let timeout = duration(sink, "timeout", proto.timeout.as_ref()).filter(|t| !t.is_zero());
    let max_stream_duration = proto.max_stream_duration.as_ref().map(|limits| {
        sink.field("max_stream_duration", |sink| MaxStreamDuration {
            max_stream_duration: duration(
                sink,
                "max_stream_duration",
                limits.max_stream_duration.as_ref(),
            ),
            grpc_timeout_header_max: duration(
                sink,
                "grpc_timeout_header_max",
                limits.grpc_timeout_header_max.as_ref(),
            ),
        })
    });
    let retry = match &proto.retry_policy {
        Some(policy) => sink.field("retry_policy", |sink| retry_policy(sink, policy))?,
        None => host_retry.cloned(),
    };
    Some(RouteAction::Forward(Forward {
        clusters: clusters?,
        timeout,
        max_stream_duration,
        retry: retry.filter(|retry| !retry.retry_on.is_empty()),
    }))
}

/// What names the cluster, when it is neither a name nor a list of weights.
fn unknown_specifier(proto: &ActionProto) -> Option<&'static str> {
    match &proto.cluster_specifier {
        Some(ClusterSpecifier::Cluster(_) | ClusterSpecifier::WeightedClusters(_)) => None,
        Some(ClusterSpecifier::ClusterHeader(_)) => Some("cluster_header"),
        Some(_) => Some("a cluster specifier plugin"),
        None => Some("a cluster specifier of this kind"),
    }
}

/// The first field that would change what is sent or to whom.
fn rewrites(proto: &ActionProto) -> Option<&'static str> {
    let weighted = match &proto.cluster_specifier {
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted.clusters.as_slice(),
        _ => &[],
    };
    [
        ("prefix_rewrite", !proto.prefix_rewrite.is_empty()),
        ("regex_rewrite", proto.regex_rewrite.is_some()),
        ("path_rewrite_policy", proto.path_rewrite_policy.is_some()),
        ("path_rewrite", !proto.path_rewrite.is_empty()),
        ("a host rewrite", proto.host_rewrite_specifier.is_some()),
        ("metadata_match", proto.metadata_match.is_some()),
        (
            "weighted_clusters.metadata_match",
            weighted
                .iter()
                .any(|cluster| cluster.metadata_match.is_some()),
        ),
        (
            "weighted_clusters.host_rewrite_literal",
            weighted
                .iter()
                .any(|cluster| cluster.host_rewrite_specifier.is_some()),
        ),
    ]
    .into_iter()
    .find_map(|(name, is_set)| is_set.then_some(name))
}

fn weighted_clusters(sink: &mut Sink, proto: &WeightedProto) -> Option<Vec<WeightedCluster>> {
    sink.ignore([(
        "random_value_specifier",
        proto.random_value_specifier.is_some(),
    )]);
    let mut sum = 0u64;
    let clusters = sink.each("clusters", &proto.clusters, |sink, cluster| {
        for (name, any) in &cluster.typed_per_filter_config {
            sink.field(&format!("typed_per_filter_config[{name:?}]"), |sink| {
                super::check_override(sink, Side::Client, any);
            });
        }
        report!(
            sink,
            cluster,
            [
                cluster_header,
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            ]
        );
        let weight = uint32(cluster.weight.as_ref()).unwrap_or(0);
        sum += u64::from(weight);
        if weight == 0 {
            return None;
        }
        if cluster.name.is_empty() {
            return sink.error_at("name", "is missing; cluster_header is not supported");
        }
        Some(WeightedCluster {
            name: canonical(cluster.name.clone()).into(),
            weight,
        })
    });
    if sum == 0 || sum > u64::from(u32::MAX) {
        let reason = format!("the weights sum up to {sum}, which is not 1 to 2^32 - 1");
        return sink.error_at("clusters", reason);
    }
    Some(clusters)
}

/// The outer `None` is an error. The inner one never is: a policy without a known condition means
/// "no retry", and still stands in for the virtual host's (gRFC A44).
pub(super) fn retry_policy(sink: &mut Sink, proto: &RetryProto) -> Option<Option<RetryPolicy>> {
    report!(
        sink,
        proto,
        [
            retry_priority,
            retry_host_predicate,
            retriable_headers,
            retriable_request_headers,
            rate_limited_retry_back_off,
            per_try_idle_timeout,
            host_selection_retry_max_attempts,
            refresh_cluster_on_retry,
            retry_options_predicates
        ]
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
    }))
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
