//! Route configurations (RDS).

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::RuntimeFractionalPercent,
            route::v3::{
                DirectResponseAction, NonForwardingAction, RetryPolicy as ProtoRetryPolicy,
                Route as ProtoRoute, RouteAction as ProtoRouteAction, RouteConfiguration,
                RouteMatch as ProtoRouteMatch, VirtualHost as ProtoVirtualHost, WeightedCluster,
                retry_policy, route, route_action, weighted_cluster,
            },
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::BoolValue,
};
use mesh_core::config::{Forward, RetryPolicy, Route, RouteAction, RouteConfig, RouteMatch};

use super::{ClientClass, duration, matcher, uint32};

/// Encodes a route configuration.
pub fn route_config(config: &RouteConfig, class: ClientClass) -> RouteConfiguration {
    let hosts = config.virtual_hosts.iter().map(|host| ProtoVirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes: host
            .routes
            .iter()
            .map(|route| encode_route(route, class))
            .collect(),
        ..ProtoVirtualHost::default()
    });
    RouteConfiguration {
        name: config.name.to_string(),
        virtual_hosts: hosts.collect(),
        ..RouteConfiguration::default()
    }
}

fn encode_route(config: &Route, class: ClientClass) -> ProtoRoute {
    let action = match &config.action {
        RouteAction::Forward(forward) => route::Action::Route(encode_forward(forward, class)),
        RouteAction::NonForwarding => route::Action::NonForwardingAction(NonForwardingAction {}),
        // Fails its own traffic only, in every class: gRPC does not know the action and fails the
        // call that reaches it, Envoy answers.
        RouteAction::Unsupported(_) => route::Action::DirectResponse(DirectResponseAction {
            status: 500,
            ..DirectResponseAction::default()
        }),
    };
    ProtoRoute {
        name: config.name.clone(),
        r#match: Some(encode_match(&config.matcher)),
        action: Some(action),
        ..ProtoRoute::default()
    }
}

fn encode_match(config: &RouteMatch) -> ProtoRouteMatch {
    let fraction = config.fraction.map(|fraction| RuntimeFractionalPercent {
        default_value: Some(FractionalPercent {
            numerator: fraction.per_million(),
            denominator: DenominatorType::Million as i32,
        }),
        ..RuntimeFractionalPercent::default()
    });
    ProtoRouteMatch {
        path_specifier: Some(matcher::path(&config.path.pattern)),
        case_sensitive: (!config.path.case_sensitive).then_some(BoolValue { value: false }),
        headers: config.headers.iter().map(matcher::header).collect(),
        runtime_fraction: fraction,
        ..ProtoRouteMatch::default()
    }
}

fn encode_forward(config: &Forward, class: ClientClass) -> ProtoRouteAction {
    let specifier = match &config.clusters[..] {
        [only] => route_action::ClusterSpecifier::Cluster(only.name.to_string()),
        several => route_action::ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|cluster| weighted_cluster::ClusterWeight {
                    name: cluster.name.to_string(),
                    weight: Some(uint32(cluster.weight)),
                    ..weighted_cluster::ClusterWeight::default()
                })
                .collect(),
            ..WeightedCluster::default()
        }),
    };
    let declared = config.max_stream_duration.unwrap_or_default();
    // gRPC ignores `timeout`; the nearest that it has is the limit of the stream.
    let limit = if class.is_grpc() {
        declared.max_stream_duration.or(config.timeout)
    } else {
        declared.max_stream_duration
    };
    let stream = (limit.is_some() || declared.grpc_timeout_header_max.is_some()).then(|| {
        route_action::MaxStreamDuration {
            max_stream_duration: limit.map(duration),
            grpc_timeout_header_max: declared.grpc_timeout_header_max.map(duration),
            ..route_action::MaxStreamDuration::default()
        }
    });
    ProtoRouteAction {
        cluster_specifier: Some(specifier),
        // An absent timeout means 15 s to Envoy, zero means none.
        timeout: Some(duration(config.timeout.unwrap_or_default())),
        max_stream_duration: stream,
        retry_policy: config.retry.as_ref().map(encode_retry),
        ..ProtoRouteAction::default()
    }
}

fn encode_retry(config: &RetryPolicy) -> ProtoRetryPolicy {
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
        ..ProtoRetryPolicy::default()
    }
}
