//! Route configurations.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::RuntimeFractionalPercent,
            route::v3::{
                FilterConfig, HeaderMatcher as HeaderProto, NonForwardingAction, Route as RoutePb,
                RouteAction as ActionPb, RouteMatch as MatchPb, VirtualHost as HostPb,
                WeightedCluster as WeightedPb,
                header_matcher::HeaderMatchSpecifier,
                route::Action,
                route_action::{ClusterSpecifier, MaxStreamDuration as LimitsPb},
                route_match::PathSpecifier,
                weighted_cluster::ClusterWeight,
            },
        },
        extensions::filters::http::{ext_authz::v3::ExtAuthz, fault::v3::HttpFault},
        r#type::{
            matcher::v3::{RegexMatcher, StringMatcher as StringPb, string_matcher::MatchPattern},
            v3::{FractionalPercent, Int64Range},
        },
    },
    google::protobuf::{BoolValue, Duration as DurationProto},
};
use mesh_core::config::{
    Forward, HeaderPredicate, PathPattern, RouteAction, RouteConfig, WeightedCluster,
};

use super::*;

pub(super) fn seconds(seconds: i64) -> Option<DurationProto> {
    Some(DurationProto { seconds, nanos: 0 })
}

pub(super) fn millis(millis: i32) -> Option<DurationProto> {
    Some(DurationProto {
        seconds: 0,
        nanos: millis * 1_000_000,
    })
}

pub(super) fn route() -> RoutePb {
    RoutePb {
        r#match: Some(MatchPb {
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..MatchPb::default()
        }),
        action: Some(Action::Route(ActionPb {
            cluster_specifier: Some(ClusterSpecifier::Cluster("c".into())),
            ..ActionPb::default()
        })),
        ..RoutePb::default()
    }
}

pub(super) fn host(routes: Vec<RoutePb>) -> HostPb {
    HostPb {
        name: "h".into(),
        domains: vec!["*".into()],
        routes,
        ..HostPb::default()
    }
}

pub(super) fn config(virtual_hosts: Vec<HostPb>) -> Any {
    any(&RouteProto {
        name: "r".into(),
        virtual_hosts,
        ..RouteProto::default()
    })
}

pub(super) fn with(change: impl FnOnce(&mut RoutePb)) -> Any {
    let mut changed = route();
    change(&mut changed);
    config(vec![host(vec![changed])])
}

pub(super) fn with_match(change: impl FnOnce(&mut MatchPb)) -> Any {
    with(|route| change(route.r#match.as_mut().unwrap()))
}

pub(super) fn with_action(change: impl FnOnce(&mut ActionPb)) -> Any {
    with(|route| match route.action.as_mut().unwrap() {
        Action::Route(action) => change(action),
        other => panic!("{other:?}"),
    })
}

#[track_caller]
pub(super) fn accepted(resource: Any) -> Arc<RouteConfig> {
    match decode(Kind::Route, resource).unwrap() {
        Config::Route(routes) => routes,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(super) fn forward(resource: Any) -> Forward {
    match &accepted(resource).virtual_hosts[0].routes[0].action {
        RouteAction::Forward(forward) => forward.clone(),
        other => panic!("{other:?}"),
    }
}

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher {
        regex: text.into(),
        ..RegexMatcher::default()
    }
}

#[test]
pub(super) fn paths() {
    let path = |specifier: PathSpecifier| {
        let routes = accepted(with_match(|m| {
            m.path_specifier = Some(specifier);
            m.case_sensitive = Some(BoolValue { value: false });
        }));
        let matcher = routes.virtual_hosts[0].routes[0].matcher.path.clone();
        assert!(!matcher.case_sensitive);
        matcher.pattern
    };
    assert_eq!(
        path(PathSpecifier::Prefix("/a".into())),
        PathPattern::Prefix("/a".into())
    );
    assert_eq!(
        path(PathSpecifier::Path("/a".into())),
        PathPattern::Exact("/a".into())
    );
    assert_eq!(
        path(PathSpecifier::PathSeparatedPrefix("/a".into())),
        PathPattern::SeparatedPrefix("/a".into())
    );
    match path(PathSpecifier::SafeRegex(regex("/a.*"))) {
        PathPattern::Regex(regex) => assert_eq!(regex.as_str(), "/a.*"),
        other => panic!("{other:?}"),
    }
    let place = "virtual_hosts[0].routes[0].match";
    for (specifier, expected) in [
        (None, format!("{place}: names no path")),
        (
            Some(PathSpecifier::SafeRegex(regex("("))),
            format!("{place}.safe_regex: regex \"(\" cannot be used"),
        ),
        (
            Some(PathSpecifier::PathSeparatedPrefix("/a/".into())),
            format!("{place}.path_separated_prefix: \"/a/\" must"),
        ),
        (
            Some(PathSpecifier::ConnectMatcher(Default::default())),
            format!("{place}.connect_matcher: "),
        ),
    ] {
        refused(
            Kind::Route,
            with_match(|m| m.path_specifier = specifier),
            &expected,
        );
    }
}

#[test]
pub(super) fn headers() {
    let header = |specifier: Option<HeaderMatchSpecifier>| HeaderProto {
        name: "X-A".into(),
        invert_match: true,
        header_match_specifier: specifier,
        ..HeaderProto::default()
    };
    let with_header = |header: HeaderProto| with_match(|m| m.headers = vec![header]);
    let string = |pattern: MatchPattern| {
        HeaderMatchSpecifier::StringMatch(StringPb {
            ignore_case: true,
            match_pattern: Some(pattern),
        })
    };
    for specifier in [
        HeaderMatchSpecifier::ExactMatch(String::new()),
        HeaderMatchSpecifier::PrefixMatch("a".into()),
        HeaderMatchSpecifier::SuffixMatch("a".into()),
        HeaderMatchSpecifier::ContainsMatch("a".into()),
        HeaderMatchSpecifier::SafeRegexMatch(regex("a+")),
        HeaderMatchSpecifier::RangeMatch(Int64Range { start: 1, end: 2 }),
        HeaderMatchSpecifier::PresentMatch(true),
        string(MatchPattern::Exact("a".into())),
    ] {
        let routes = accepted(with_header(header(Some(specifier))));
        let got = &routes.virtual_hosts[0].routes[0].matcher.headers[0];
        assert_eq!((got.name.as_str(), got.invert), ("x-a", true));
        if let HeaderPredicate::Range { start, end } = got.predicate {
            assert_eq!((start, end), (1, 2));
        }
    }
    let place = "virtual_hosts[0].routes[0].match.headers[0]";
    for (specifier, expected) in [
        (None, format!("{place}: holds no predicate")),
        (
            Some(HeaderMatchSpecifier::PrefixMatch(String::new())),
            format!("{place}.prefix_match: "),
        ),
        (
            Some(string(MatchPattern::Contains(String::new()))),
            format!("{place}.string_match.contains: "),
        ),
        (
            Some(string(MatchPattern::SafeRegex(regex("[")))),
            format!("{place}.string_match.safe_regex: "),
        ),
    ] {
        refused(Kind::Route, with_header(header(specifier)), &expected);
    }
    let routes = accepted(with_match(|m| m.grpc = Some(Default::default())));
    assert_eq!(
        routes.virtual_hosts[0].routes[0].matcher.headers[0].name,
        "content-type"
    );
}

#[test]
pub(super) fn fractions() {
    let fraction = |numerator, denominator| {
        with_match(|m| {
            m.runtime_fraction = Some(RuntimeFractionalPercent {
                default_value: Some(FractionalPercent {
                    numerator,
                    denominator,
                }),
                ..RuntimeFractionalPercent::default()
            });
        })
    };
    for (numerator, denominator, expected) in [
        (10, 0, 100_000),
        (10, 1, 1_000),
        (10, 2, 10),
        (200, 0, 1_000_000),
    ] {
        let routes = accepted(fraction(numerator, denominator));
        let got = routes.virtual_hosts[0].routes[0].matcher.fraction.unwrap();
        assert_eq!(got.per_million(), expected);
    }
    refused(
        Kind::Route,
        fraction(1, 9),
        "virtual_hosts[0].routes[0].match.runtime_fraction.default_value.denominator: 9 is not",
    );
}

#[test]
pub(super) fn weighted_clusters() {
    let weighted = |weights: &[u32]| {
        let clusters = weights.iter().enumerate().map(|(i, weight)| ClusterWeight {
            name: format!("c{i}"),
            weight: uint32(*weight),
            ..ClusterWeight::default()
        });
        let clusters = WeightedPb {
            clusters: clusters.collect(),
            // Deprecated, and not read.
            total_weight: uint32(3),
            ..WeightedPb::default()
        };
        with_action(|a| a.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(clusters)))
    };
    let expected = |name: &str, weight| WeightedCluster::new(name, weight);
    assert_eq!(
        forward(weighted(&[90, 0, 10])).clusters,
        [expected("c0", 90), expected("c2", 10)]
    );
    assert_eq!(
        forward(weighted(&[u32::MAX])).clusters,
        [expected("c0", u32::MAX)]
    );
    let place = "virtual_hosts[0].routes[0].route.weighted_clusters.clusters: the weights sum";
    for weights in [&[][..], &[0, 0], &[u32::MAX, 1]] {
        refused(Kind::Route, weighted(weights), place);
    }
}

#[test]
pub(super) fn limits() {
    let got = forward(with_action(|a| {
        a.timeout = seconds(3);
        a.max_stream_duration = Some(LimitsPb {
            max_stream_duration: seconds(0),
            grpc_timeout_header_max: seconds(9),
            ..LimitsPb::default()
        });
    }));
    assert_eq!(got.timeout, Some(Duration::from_secs(3)));
    let limits = got.max_stream_duration.unwrap();
    assert_eq!(
        limits.max_stream_duration,
        Some(Duration::ZERO),
        "zero is kept: it means none"
    );
    assert_eq!(limits.grpc_timeout_header_max, Some(Duration::from_secs(9)));
    for timeout in [None, seconds(0)] {
        assert_eq!(forward(with_action(|a| a.timeout = timeout)).timeout, None);
    }
    refused(
        Kind::Route,
        with_action(|a| a.timeout = seconds(-1)),
        "virtual_hosts[0].routes[0].route.timeout: is not a duration",
    );
}

#[test]
pub(super) fn actions_that_cannot_be_done_disable_their_route_only() {
    let unsupported = |resource: Any| match &accepted(resource).virtual_hosts[0].routes[0].action {
        RouteAction::Unsupported(reason) => reason.clone(),
        other => panic!("{other:?}"),
    };
    for (resource, expected) in [
        (with(|r| r.action = None), "an action of this kind"),
        (
            with_action(|a| a.cluster_specifier = None),
            "a cluster specifier of this kind",
        ),
        (
            with_action(|a| a.path_rewrite = "/x".into()),
            "path_rewrite",
        ),
        (
            with_action(|a| a.metadata_match = Some(Default::default())),
            "metadata_match",
        ),
    ] {
        assert_eq!(
            unsupported(resource),
            format!("{expected} is not supported")
        );
    }
    let serve = with(|r| r.action = Some(Action::NonForwardingAction(NonForwardingAction {})));
    assert_eq!(
        accepted(serve).virtual_hosts[0].routes[0].action,
        RouteAction::NonForwarding
    );
}

#[test]
pub(super) fn virtual_hosts() {
    let named = |name: &str, domains: &[&str]| HostPb {
        name: name.into(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        routes: vec![route()],
        ..HostPb::default()
    };
    accepted(config(vec![named("a", &["a", "*.a", "a.*", "*"])]));
    for (hosts, expected) in [
        (
            vec![named("a", &[])],
            "virtual_hosts[0].domains: must not be empty",
        ),
        (
            vec![named("a", &[""])],
            "virtual_hosts[0].domains[0]: must not be empty",
        ),
        (
            vec![named("a", &["a.*.b"])],
            "virtual_hosts[0].domains[0]: \"a.*.b\" has a *",
        ),
        (
            vec![named("a", &["**"])],
            "virtual_hosts[0].domains[0]: \"**\" has a *",
        ),
        (
            vec![named("a", &["x.y"]), named("b", &["X.Y"])],
            "virtual_hosts: domain \"X.Y\" is listed twice",
        ),
        (
            vec![named("a", &["x"]), named("a", &["y"])],
            "virtual_hosts: name \"a\" is used twice",
        ),
    ] {
        refused(Kind::Route, config(hosts), expected);
    }
    refused(
        Kind::Route,
        with(|r| r.r#match = None),
        "virtual_hosts[0].routes[0].match: is missing",
    );
    refused(
        Kind::Route,
        with_match(|m| m.query_parameters = vec![Default::default()]),
        "virtual_hosts[0].routes[0].match.query_parameters[0].name: is missing",
    );
}

#[test]
pub(super) fn filter_overrides_without_effect_are_taken_and_others_refused() {
    let with_override = |config: Any| {
        with(|r| {
            r.typed_per_filter_config.insert("f".into(), config);
        })
    };
    let limit = any(&ExtAuthz::default());
    let optional = any(&FilterConfig {
        config: Some(limit.clone()),
        is_optional: true,
        disabled: false,
    });
    accepted(with_override(optional));
    accepted(with_override(any(&HttpFault::default())));
    let delay = any(&HttpFault {
        delay: Some(Default::default()),
        ..HttpFault::default()
    });
    let place = "virtual_hosts[0].routes[0].typed_per_filter_config[\"f\"]";
    for (config, what) in [(limit, ": overriding"), (delay, ".delay: has neither")] {
        refused(
            Kind::Route,
            with_override(config),
            &format!("{place}{what}"),
        );
    }
}
