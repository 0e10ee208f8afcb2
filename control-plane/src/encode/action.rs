//! Forwarding actions of routes.

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TypedExtensionConfig,
            route::v3::{
                RouteAction as ProtoRouteAction, WeightedCluster, route_action, weighted_cluster,
            },
        },
        extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig,
        r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
    },
    google::protobuf::BoolValue,
};
use mesh_core::config::{
    self, Forward, ForwardExtras, HashPolicy, HashSource, HostRewrite, Mirror, MirrorTarget,
    PathRewrite, RegexRewrite, TemplateRewrite, WeighBy,
};

use super::{
    ClientClass, any, duration, headers, hedge, internal_redirect, retry, route::runtime_fraction,
    subset, uint32,
};

/// Encodes a forwarding action.
pub(super) fn forward(config: &Forward, class: ClientClass) -> ProtoRouteAction {
    let none = ForwardExtras::default();
    let extras = config.extras.as_deref().unwrap_or(&none);
    let specifier = match &config.clusters[..] {
        [] => route_action::ClusterSpecifier::ClusterHeader(
            extras
                .cluster_header
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
        ),
        [only] if only.extras.is_none() => {
            route_action::ClusterSpecifier::Cluster(only.name.to_string())
        }
        several => route_action::ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several.iter().map(cluster_weight).collect(),
            random_value_specifier: weigh_by(&extras.weigh_by),
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
        retry_policy: config.retry.as_ref().map(retry::policy),
        prefix_rewrite: match &extras.path_rewrite {
            Some(PathRewrite::Prefix(prefix)) => prefix.clone(),
            _ => String::new(),
        },
        regex_rewrite: match &extras.path_rewrite {
            Some(PathRewrite::Regex(regex)) => Some(regex_rewrite(regex)),
            _ => None,
        },
        path_rewrite_policy: match &extras.path_rewrite {
            Some(PathRewrite::Template(template)) => Some(template_rewrite(template)),
            _ => None,
        },
        host_rewrite_specifier: extras.host_rewrite.as_ref().map(host_rewrite),
        append_x_forwarded_host: extras.append_x_forwarded_host,
        idle_timeout: extras.idle_timeout.map(duration),
        hash_policy: extras.hash_policy.iter().filter_map(hash_policy).collect(),
        request_mirror_policies: extras.mirrors.iter().map(mirror).collect(),
        hedge_policy: extras.hedge.as_ref().map(hedge::policy),
        metadata_match: subset::metadata(&extras.metadata_match, None),
        internal_redirect_policy: extras
            .internal_redirect
            .as_deref()
            .map(internal_redirect::policy),
        ..ProtoRouteAction::default()
    }
}

fn cluster_weight(config: &config::WeightedCluster) -> weighted_cluster::ClusterWeight {
    let extras = config.extras.as_deref();
    let own = extras.map(|extras| &extras.headers);
    weighted_cluster::ClusterWeight {
        name: config.name.to_string(),
        weight: Some(uint32(config.weight)),
        request_headers_to_add: headers::request_add(own),
        request_headers_to_remove: headers::request_remove(own),
        response_headers_to_add: headers::response_add(own),
        response_headers_to_remove: headers::response_remove(own),
        host_rewrite_specifier: extras
            .and_then(|extras| extras.host_rewrite.clone())
            .map(weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
        metadata_match: extras.and_then(|extras| subset::metadata(&extras.metadata_match, None)),
        ..weighted_cluster::ClusterWeight::default()
    }
}

fn weigh_by(config: &WeighBy) -> Option<weighted_cluster::RandomValueSpecifier> {
    use weighted_cluster::RandomValueSpecifier as Specifier;
    match config {
        WeighBy::Random => None,
        WeighBy::Hash => Some(Specifier::UseHashPolicy(BoolValue { value: true })),
        WeighBy::Header(name) => Some(Specifier::HeaderName(name.to_string())),
    }
}

fn host_rewrite(config: &HostRewrite) -> route_action::HostRewriteSpecifier {
    use route_action::HostRewriteSpecifier as Specifier;
    match config {
        HostRewrite::Literal(host) => Specifier::HostRewriteLiteral(host.clone()),
        HostRewrite::Header(name) => Specifier::HostRewriteHeader(name.clone()),
        HostRewrite::PathRegex(regex) => Specifier::HostRewritePathRegex(regex_rewrite(regex)),
        HostRewrite::Endpoint => Specifier::AutoHostRewrite(BoolValue { value: true }),
    }
}

fn template_rewrite(config: &TemplateRewrite) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: "envoy.path.rewrite.uri_template.uri_template_rewriter".to_owned(),
        typed_config: Some(any(&UriTemplateRewriteConfig {
            path_template_rewrite: config.as_str().to_owned(),
        })),
    }
}

pub(super) fn regex_rewrite(config: &RegexRewrite) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher {
            regex: config.pattern().to_owned(),
            ..RegexMatcher::default()
        }),
        substitution: config.substitution().to_owned(),
    }
}

/// `None` for what no client could evaluate.
fn hash_policy(config: &HashPolicy) -> Option<route_action::HashPolicy> {
    use route_action::hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, FilterState, Header, PolicySpecifier,
        QueryParameter,
    };
    let specifier = match &config.source {
        HashSource::Header { name, rewrite } => PolicySpecifier::Header(Header {
            header_name: name.clone(),
            regex_rewrite: rewrite.as_ref().map(regex_rewrite),
        }),
        HashSource::Cookie {
            name,
            ttl,
            path,
            attributes,
        } => PolicySpecifier::Cookie(Cookie {
            name: name.clone(),
            ttl: ttl.map(duration),
            path: path.clone(),
            attributes: attributes
                .iter()
                .map(|(name, value)| CookieAttribute {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
        }),
        HashSource::QueryParameter(name) => {
            PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
        }
        HashSource::SourceIp => {
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
        }
        HashSource::Channel => PolicySpecifier::FilterState(FilterState {
            key: "io.grpc.channel_id".to_owned(),
        }),
        HashSource::Unknown => return None,
    };
    Some(route_action::HashPolicy {
        terminal: config.terminal,
        policy_specifier: Some(specifier),
    })
}

fn mirror(config: &Mirror) -> route_action::RequestMirrorPolicy {
    let (cluster, cluster_header) = match &config.cluster {
        MirrorTarget::Cluster(name) => (name.to_string(), String::new()),
        MirrorTarget::Header(name) => (String::new(), name.to_string()),
    };
    route_action::RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction: config.fraction.map(runtime_fraction),
        disable_shadow_host_suffix_append: !config.shadow_suffix,
        trace_sampled: config.trace_sampled.map(|value| BoolValue { value }),
        ..route_action::RequestMirrorPolicy::default()
    }
}
