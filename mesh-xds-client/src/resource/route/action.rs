//! What a route does: clusters, limits, retries.
//!
//! Stage 3. gRFC A28 (weighted clusters), A31 (limits), A44 (retries; HTTP conditions as in Envoy).
//! An action that cannot be done becomes [`RouteAction::Unsupported`]: only requests that reach the
//! route fail, with the reason (gRFC A28 keeps such routes too).

use envoy_types::pb::envoy::config::route::v3::{
    RouteAction as ActionProto, WeightedCluster as WeightedProto,
    route::Action,
    route_action::{ClusterSpecifier, RequestMirrorPolicy},
    weighted_cluster::{ClusterWeight, RandomValueSpecifier, cluster_weight::HostRewriteSpecifier},
};
use mesh_core::{
    config::{
        BodyBuffer, ClusterExtras, Forward, ForwardExtras, HedgePolicy, MaxStreamDuration, Mirror,
        MirrorTarget, PathMatcher, RetryPolicy, RouteAction, WeighBy, WeightedCluster,
    },
    route::Feature,
};

use super::{
    Side, hash,
    headers::{self, header_name},
    hedge, internal_redirect,
    retry::retry_policy,
    rewrite,
};
use crate::resource::{
    canonical, filter, lb_metadata,
    path::Sink,
    report::report,
    value::{self, duration, uint32},
};

/// What routes take from their virtual host when they say nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Inherited {
    pub(super) body_buffer: Option<BodyBuffer>,
    pub(super) retry: Option<RetryPolicy>,
    pub(super) hedge: Option<HedgePolicy>,
    pub(super) mirrors: Vec<Mirror>,
}

pub(super) fn decode(
    sink: &mut Sink,
    side: Side,
    path: Option<&PathMatcher>,
    action: Option<&Action>,
    inherited: &Inherited,
) -> Option<RouteAction> {
    let unsupported =
        |what: &str| Some(RouteAction::Unsupported(format!("{what} is not supported")));
    match action {
        Some(Action::Route(_)) if side == Side::Server => Some(RouteAction::Unsupported(
            "a server cannot forward; use non_forwarding_action".into(),
        )),
        Some(Action::Route(proto)) => {
            sink.field("route", |sink| forward(sink, path, proto, inherited))
        }
        Some(Action::NonForwardingAction(_)) => Some(RouteAction::NonForwarding),
        Some(Action::Redirect(proto)) => {
            sink.pending("redirect", Feature::Redirect, true);
            sink.field("redirect", |sink| rewrite::redirect(sink, proto))
        }
        Some(Action::DirectResponse(proto)) => {
            sink.pending("direct_response", Feature::DirectResponse, true);
            sink.field("direct_response", |sink| rewrite::direct(sink, proto))
        }
        Some(Action::FilterAction(_)) => unsupported("filter_action"),
        None => unsupported("an action of this kind"),
    }
}

fn forward(
    sink: &mut Sink,
    path: Option<&PathMatcher>,
    proto: &ActionProto,
    inherited: &Inherited,
) -> Option<RouteAction> {
    sink.ignore([
        ("cors", proto.cors.is_some()),
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
            early_data_policy,
            flush_timeout,
            grpc_timeout_offset,
            max_grpc_timeout,
            upgrade_configs,
        ]
    );
    if let Some(what) = unknown_specifier(proto).or_else(|| rewrite::unsupported(proto)) {
        return Some(RouteAction::Unsupported(format!("{what} is not supported")));
    }
    let mut extras = extras(sink, path, proto, inherited)?;
    let clusters = match &proto.cluster_specifier {
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            sink.field("weighted_clusters", |sink| {
                extras.weigh_by = weigh_by(sink, weighted)?;
                weighted_clusters(sink, weighted)
            })
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            sink.pending("cluster_header", Feature::ClusterHeader, true);
            extras.cluster_header = Some(header_name(sink, "cluster_header", name)?);
            Some(Vec::new())
        }
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            Some(vec![WeightedCluster::new(canonical(name.clone()), 1)])
        }
        _ => return sink.error_at("cluster", "is empty"),
    };
    let retry = match &proto.retry_policy {
        Some(policy) => sink.field("retry_policy", |sink| retry_policy(sink, policy))?,
        None => inherited.retry.clone(),
    };
    let timeout = duration(sink, "timeout", proto.timeout.as_ref()).filter(|t| !t.is_zero());
    Some(RouteAction::Forward(Forward {
        clusters: clusters?,
        timeout,
        max_stream_duration: stream_limits(sink, proto),
        retry,
        body_buffer: None,
        extras: (extras != ForwardExtras::default()).then(|| Box::new(extras)),
    }))
}

fn stream_limits(sink: &mut Sink, proto: &ActionProto) -> Option<MaxStreamDuration> {
    let limits = proto.max_stream_duration.as_ref()?;
    Some(sink.field("max_stream_duration", |sink| {
        report!(sink, limits, [grpc_timeout_header_offset]);
        MaxStreamDuration {
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
        }
    }))
}

/// What few routes ask for.
fn extras(
    sink: &mut Sink,
    path: Option<&PathMatcher>,
    proto: &ActionProto,
    inherited: &Inherited,
) -> Option<ForwardExtras> {
    sink.pending(
        "idle_timeout",
        Feature::IdleTimeout,
        proto.idle_timeout.is_some(),
    );
    sink.pending(
        "hash_policy",
        Feature::HashPolicy,
        !proto.hash_policy.is_empty(),
    );
    let mirrors = mirrors(sink, &proto.request_mirror_policies);
    let hedge = match &proto.hedge_policy {
        Some(policy) => Some(hedge::policy(sink, policy)?),
        None => inherited.hedge,
    };
    sink.pending(
        "append_x_forwarded_host",
        Feature::HostRewrite,
        proto.append_x_forwarded_host,
    );
    Some(ForwardExtras {
        cluster_header: None,
        weigh_by: WeighBy::Random,
        path_rewrite: rewrite::path(sink, path, proto)?,
        host_rewrite: rewrite::host(sink, proto)?,
        append_x_forwarded_host: proto.append_x_forwarded_host,
        idle_timeout: duration(sink, "idle_timeout", proto.idle_timeout.as_ref()),
        hash_policy: sink.each("hash_policy", &proto.hash_policy, hash::policy),
        mirrors: match mirrors.is_empty() {
            true => inherited.mirrors.clone(),
            false => mirrors,
        },
        hedge,
        metadata_match: lb_metadata::of_lb(proto.metadata_match.as_ref()),
        internal_redirect: internal_redirect::policy(sink, proto),
    })
}

pub(super) fn mirrors(sink: &mut Sink, protos: &[RequestMirrorPolicy]) -> Vec<Mirror> {
    let name = "request_mirror_policies";
    sink.pending(name, Feature::Mirror, !protos.is_empty());
    sink.each(name, protos, |sink, proto| {
        report!(
            sink,
            proto,
            [request_headers_mutations, host_rewrite_literal]
        );
        let cluster = match (proto.cluster.as_str(), proto.cluster_header.as_str()) {
            ("", "") => return sink.error_at("cluster", "is missing"),
            ("", header) => MirrorTarget::Header(header_name(sink, "cluster_header", header)?),
            (cluster, "") => MirrorTarget::Cluster(canonical(cluster.to_owned()).into()),
            _ => return sink.error("only one of cluster and cluster_header can be set"),
        };
        let fraction = proto.runtime_fraction.as_ref().map(|fraction| {
            sink.field("runtime_fraction.default_value", |sink| {
                match &fraction.default_value {
                    Some(value) => value::fraction(sink, value),
                    None => sink.error("is missing"),
                }
            })
        });
        Some(Mirror {
            cluster,
            fraction: match fraction {
                Some(fraction) => Some(fraction?),
                None => None,
            },
            shadow_suffix: !proto.disable_shadow_host_suffix_append,
            trace_sampled: proto.trace_sampled.as_ref().map(|sampled| sampled.value),
        })
    })
}

/// What names the cluster, when it is nothing that is known.
fn unknown_specifier(proto: &ActionProto) -> Option<&'static str> {
    match &proto.cluster_specifier {
        Some(
            ClusterSpecifier::Cluster(_)
            | ClusterSpecifier::WeightedClusters(_)
            | ClusterSpecifier::ClusterHeader(_),
        ) => None,
        Some(_) => Some("a cluster specifier plugin"),
        None => Some("a cluster specifier of this kind"),
    }
}

fn weigh_by(sink: &mut Sink, proto: &WeightedProto) -> Option<WeighBy> {
    let specifier = proto.random_value_specifier.as_ref();
    sink.pending(
        "random_value_specifier",
        Feature::StickyWeights,
        specifier.is_some(),
    );
    Some(match specifier {
        Some(RandomValueSpecifier::HeaderName(name)) => {
            WeighBy::Header(header_name(sink, "header_name", name)?)
        }
        Some(RandomValueSpecifier::UseHashPolicy(value)) if value.value => WeighBy::Hash,
        _ => WeighBy::Random,
    })
}

fn weighted_clusters(sink: &mut Sink, proto: &WeightedProto) -> Option<Vec<WeightedCluster>> {
    let mut sum = 0u64;
    let clusters = sink.each("clusters", &proto.clusters, |sink, cluster| {
        report!(sink, cluster, [cluster_header]);
        let extras = cluster_extras(sink, cluster);
        let weight = uint32(cluster.weight.as_ref()).unwrap_or(0);
        sum += u64::from(weight);
        if weight == 0 {
            return None;
        }
        if cluster.name.is_empty() {
            return sink.error_at("name", "is missing; cluster_header is not supported");
        }
        Some(WeightedCluster {
            extras: extras?,
            ..WeightedCluster::new(canonical(cluster.name.clone()), weight)
        })
    });
    if sum == 0 || sum > u64::from(u32::MAX) {
        let reason = format!("the weights sum up to {sum}, which is not 1 to 2^32 - 1");
        return sink.error_at("clusters", reason);
    }
    Some(clusters)
}

/// The outer `None` is an error.
fn cluster_extras(sink: &mut Sink, proto: &ClusterWeight) -> Option<Option<Box<ClusterExtras>>> {
    let headers = headers::mutations(
        sink,
        &proto.request_headers_to_add,
        &proto.request_headers_to_remove,
        &proto.response_headers_to_add,
        &proto.response_headers_to_remove,
    )?;
    let host_rewrite = proto
        .host_rewrite_specifier
        .as_ref()
        .map(|HostRewriteSpecifier::HostRewriteLiteral(host)| host.clone());
    sink.pending(
        "host_rewrite_literal",
        Feature::HostRewrite,
        host_rewrite.is_some(),
    );
    let extras = ClusterExtras {
        headers: headers.map(|headers| *headers).unwrap_or_default(),
        host_rewrite,
        filters: filter::overrides(sink, Side::Client, &proto.typed_per_filter_config, &[]),
        metadata_match: lb_metadata::of_lb(proto.metadata_match.as_ref()),
    };
    Some((extras != ClusterExtras::default()).then(|| Box::new(extras)))
}
