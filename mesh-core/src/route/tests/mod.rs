//! Decision tables of domain choice, route matching and weights.

mod decide;
mod index;
mod matcher;

use std::{collections::HashMap, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::*;
use crate::{
    config::*,
    name::ClusterName,
    rng::{Rng as _, SplitMix64},
};

fn config(hosts: &[(&str, &[&str])]) -> RouteConfig {
    let hosts = hosts
        .iter()
        .map(|(name, domains)| VirtualHost::new(*name, domains.iter().copied(), vec![]));
    RouteConfig::new("r", hosts.collect())
}

#[test]
fn the_most_specific_domain_wins_without_case_and_wildcards_need_a_character() {
    let config = config(&[
        ("any", &["*"]),
        ("prefix", &["foo.*"]),
        ("suffix", &["*.bar.com"]),
        ("longer suffix", &["*.foo.bar.com"]),
        ("exact", &["foo.bar.com"]),
        ("malformed", &["a*b", ""]),
    ]);
    for (authority, expected) in [
        ("foo.bar.com", "exact"),
        ("FOO.Bar.com", "exact"),
        ("x.foo.bar.com", "longer suffix"),
        ("x.bar.com", "suffix"),
        (".bar.com", "any"),
        ("foo.org", "prefix"),
        ("foo.", "any"),
        ("a1b", "any"),
    ] {
        assert_eq!(
            virtual_host(&config, authority).unwrap().name,
            expected,
            "{authority}"
        );
    }
}

fn route(name: &str, path: PathPattern, headers: Vec<HeaderMatcher>) -> Route {
    let mut matcher = RouteMatch::path(PathMatcher::new(path));
    matcher.headers = headers;
    Route::new(name, matcher, RouteAction::NonForwarding)
}

fn table(routes: Vec<Route>) -> RouteTable {
    let mut config = config(&[("host", &["*"])]);
    config.virtual_hosts[0].routes = routes;
    RouteTable::compile(&config, "any", &StreamLimits::default(), |_| Some(0)).unwrap()
}

#[test]
fn the_first_route_whose_parts_all_match_wins() {
    let exact = |name: &str, value: &str| {
        HeaderMatcher::new(name, HeaderPredicate::String(StringMatcher::exact(value)))
    };
    let table = table(vec![
        route(
            "canary",
            PathPattern::Prefix(String::new()),
            vec![exact("Canary", "true")],
        ),
        route(
            "joined",
            PathPattern::Prefix(String::new()),
            vec![exact("many", "a,b")],
        ),
        route(
            "binary",
            PathPattern::Prefix(String::new()),
            vec![exact("x-bin", "a")],
        ),
        route(
            "method",
            PathPattern::Exact("/m".into()),
            vec![exact(":method", "PUT")],
        ),
        route(
            "separated",
            PathPattern::SeparatedPrefix("/pay".into()),
            vec![],
        ),
        route(
            "regex",
            PathPattern::Regex(Regex::new("/v[0-9]+").unwrap()),
            vec![],
        ),
        route("rest", PathPattern::Prefix("/".into()), vec![]),
    ]);
    for (method, path, headers, expected) in [
        ("GET", "/", &[("canary", "true")][..], "canary"),
        ("GET", "/", &[("canary", "TRUE")], "rest"),
        ("GET", "/", &[("many", "a"), ("many", "b")], "joined"),
        ("GET", "/", &[("x-bin", "a")], "rest"),
        ("PUT", "/m", &[], "method"),
        ("GET", "/m", &[], "rest"),
        ("GET", "/pay", &[], "separated"),
        ("GET", "/pay/1", &[], "separated"),
        ("GET", "/payment", &[], "rest"),
        ("GET", "/v12", &[], "regex"),
        ("GET", "/v12/x", &[], "rest"),
    ] {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let uri = path.parse::<Uri>().unwrap();
        let view = RequestView::new(&method, &uri, "any", &map);
        let (index, found) = table.lookup(&view, &mut SplitMix64::new(1)).unwrap();
        assert!(std::ptr::eq(&table.routes()[index as usize], found));
        assert_eq!(&*found.name, expected, "{method} {path} {headers:?}");
    }
}

#[test]
fn header_matchers_follow_grfc_a28() {
    let matcher = |predicate, invert| HeaderMatcher {
        invert,
        ..HeaderMatcher::new("x", predicate)
    };
    let exact = || HeaderPredicate::String(StringMatcher::exact("a"));
    for (matcher, value, expected) in [
        (matcher(exact(), false), Some("a"), true),
        (matcher(exact(), true), Some("b"), true),
        (matcher(exact(), true), None, false),
        (matcher(HeaderPredicate::Present(true), false), None, false),
        (matcher(HeaderPredicate::Present(false), false), None, true),
        (matcher(HeaderPredicate::Present(true), true), None, true),
        (
            // An empty header is one that is there, as Envoy has it.
            HeaderMatcher {
                treat_missing_as_empty: true,
                ..matcher(HeaderPredicate::Present(false), false)
            },
            None,
            false,
        ),
        (
            matcher(HeaderPredicate::Range { start: 1, end: 3 }, false),
            Some("1"),
            true,
        ),
        (
            matcher(HeaderPredicate::Range { start: 1, end: 3 }, false),
            Some("3"),
            false,
        ),
        (
            matcher(HeaderPredicate::Range { start: 1, end: 3 }, true),
            Some("x"),
            true,
        ),
    ] {
        assert_eq!(matcher.is_match(value), expected, "{matcher:?} {value:?}");
    }
}

#[test]
fn clusters_are_drawn_by_weight_and_zero_weights_never() {
    let forward = |weights: &[(&str, u32)]| Forward {
        clusters: weights
            .iter()
            .map(|(name, weight)| WeightedCluster::new(*name, *weight))
            .collect(),
        ..Forward::default()
    };
    let compile = |weights: &[(&str, u32)]| {
        let mut config = config(&[("host", &["*"])]);
        config.virtual_hosts[0].routes = vec![Route::new(
            "",
            RouteMatch::any(),
            RouteAction::Forward(forward(weights)),
        )];
        let index: HashMap<ClusterName, u32> =
            [("a".into(), 0), ("b".into(), 1), ("c".into(), 2)].into();
        RouteTable::compile(
            &config,
            "any",
            &StreamLimits {
                max_duration: Some(Duration::ZERO),
                idle: None,
            },
            |name| index.get(name).copied(),
        )
    };
    let table = compile(&[("a", 90), ("b", 0), ("c", 10)]).unwrap();
    let CompiledAction::Forward(forward) = &table.routes()[0].action else {
        panic!()
    };
    assert_eq!(forward.stream_limit, None, "zero is no limit");
    let (mut drawn, mut rng) = ([0u32; 3], SplitMix64::new(7));
    for _ in 0..100_000 {
        drawn[forward.cluster(&mut rng) as usize] += 1;
    }
    assert_eq!(drawn[1], 0);
    assert!((9_500..10_500).contains(&drawn[2]), "{drawn:?}");

    assert!(
        compile(&[("a", 0)])
            .unwrap_err()
            .reason
            .contains("sum up to 0")
    );
    assert!(
        compile(&[("a", u32::MAX), ("b", 1)])
            .unwrap_err()
            .reason
            .contains("2^32")
    );
    assert!(
        compile(&[("unknown", 1)])
            .unwrap_err()
            .reason
            .contains("unknown")
    );
}
