//! What levels say, taken together (gRFC A39).

use super::*;
use crate::rng::Rng as _;

fn buffer(bytes: u32) -> FilterConfig {
    FilterConfig::Buffer {
        max_request_bytes: bytes,
    }
}

/// The obvious way: ask from the most specific level down to the listener.
fn obvious(filter: &HttpFilter, levels: &[FilterOverrides]) -> Option<FilterConfig> {
    let said = |level: &FilterOverrides| {
        let one = level.by_name.get(&filter.name)?.clone();
        let same = one
            .config
            .as_ref()
            .is_none_or(|c| c.is_same_kind(&filter.config));
        same.then_some(one)
    };
    let from_top = || levels.iter().rev().filter_map(said);
    let is_off = from_top()
        .next()
        .map_or(filter.disabled, |one| one.disabled);
    let config = from_top().find_map(|one| one.config);
    (!is_off).then(|| config.unwrap_or_else(|| filter.config.clone()))
}

#[test]
fn the_most_specific_level_that_says_something_wins() {
    let mut rng = SplitMix64::new(11);
    for _ in 0..5000 {
        let mut draw = |bound: u64| rng.below(bound) as u32;
        let filters: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|name| HttpFilter {
                disabled: draw(3) == 0,
                ..HttpFilter::new(*name, buffer(draw(100)))
            })
            .collect();
        let levels: Vec<_> = (0..4)
            .map(|_| {
                let mut level = FilterOverrides::default();
                for name in ["a", "b", "c", "unknown"] {
                    let config = match draw(4) {
                        0 => Some(buffer(draw(100))),
                        // An override of another type has no effect.
                        1 => Some(FilterConfig::Rbac(None)),
                        _ => None,
                    };
                    if draw(2) == 0 {
                        let disabled = draw(3) == 0;
                        let one = FilterOverride { disabled, config };
                        level.by_name.insert(name.into(), one);
                    }
                }
                level
            })
            .collect();
        let places: Vec<_> = levels
            .iter()
            .map(|level| Level {
                place: "p",
                overrides: Some(level),
            })
            .collect();
        let merged: Vec<_> = merge(&filters, &places)
            .into_iter()
            .map(|merged| (Arc::clone(&merged.filter.name), merged.config.clone()))
            .collect();
        let expected: Vec<_> = filters
            .iter()
            .filter_map(|filter| Some((Arc::clone(&filter.name), obvious(filter, &levels)?)))
            .collect();
        assert_eq!(merged, expected);
    }
}

#[test]
fn a_weighted_clusters_override_holds_for_requests_to_it() {
    let aborts = |status| {
        FilterConfig::Fault(Arc::new(Fault {
            abort: Some(FaultAbort {
                abort: Abort::Http(status),
                percentage: percent(100),
                denominator: 100,
            }),
            ..Fault::default()
        }))
    };
    let mut canary = WeightedCluster::new("canary", 1);
    canary.extras = Some(Box::new(ClusterExtras {
        filters: Some(Box::new(FilterOverrides::of("f", aborts(418)))),
        ..ClusterExtras::default()
    }));
    let forward = Forward {
        clusters: vec![WeightedCluster::new("main", 1), canary],
        ..Forward::default()
    };
    let routes = vec![Route::new(
        "r",
        RouteMatch::any(),
        RouteAction::Forward(forward),
    )];
    let config = RouteConfig::new("rc", vec![VirtualHost::new("v", ["*"], routes)]);
    let filters = [HttpFilter::new("f", FilterConfig::Fault(Arc::default()))];
    let table = FilterTable::compile(
        "l",
        &filters,
        &config,
        &config.virtual_hosts[0],
        |name| Some(u32::from(name.as_str() == "canary")),
        &mut FilterStates::new(1),
    );
    let of = |cluster| {
        table
            .route(0)
            .expect("a route with filters")
            .of(Some(cluster))
    };
    assert!(of(0).is_none(), "a fault that injects nothing is no filter");
    let head = Head::new(&[]);
    let answer = run(
        of(1).expect("filters"),
        &head,
        Instant::now(),
        &mut SplitMix64::new(1),
    )
    .1;
    assert_eq!(answer.expect("aborted").status.as_u16(), 418);
}

#[test]
fn routes_without_filters_have_an_empty_table() {
    let config = RouteConfig::new("rc", vec![VirtualHost::new("v", ["*"], vec![])]);
    for filters in [
        vec![],
        vec![HttpFilter::new("f", FilterConfig::Fault(Arc::default()))],
    ] {
        let host = &config.virtual_hosts[0];
        let mut states = FilterStates::new(1);
        let table = FilterTable::compile("l", &filters, &config, host, |_| None, &mut states);
        assert!(table.route(0).is_none());
    }
}
