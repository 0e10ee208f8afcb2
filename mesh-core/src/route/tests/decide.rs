//! What follows from a request's head.

use http::StatusCode;

use super::*;

const EVERYTHING: Features = Features::ALL;

fn compiled(config: &RouteConfig) -> RouteTable {
    let index: HashMap<ClusterName, u32> = [("a".into(), 0), ("b".into(), 1)].into();
    RouteTable::compile_for(
        EVERYTHING,
        config,
        "any",
        &StreamLimits::default(),
        &|name| index.get(name).copied(),
    )
    .unwrap()
}

fn one(action: RouteAction) -> RouteConfig {
    let path = PathMatcher::new(PathPattern::Prefix("/p".into()));
    let route = Route::new("r", RouteMatch::path(path), action);
    RouteConfig::new("c", vec![VirtualHost::new("h", ["*"], vec![route])])
}

fn forward(clusters: &[(&str, u32)], change: impl FnOnce(&mut ForwardExtras)) -> RouteAction {
    let mut extras = ForwardExtras::default();
    change(&mut extras);
    let clusters = clusters
        .iter()
        .map(|(name, weight)| WeightedCluster::new(*name, *weight));
    RouteAction::Forward(Forward {
        clusters: clusters.collect(),
        extras: Some(Box::new(extras)),
        ..Forward::default()
    })
}

fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

fn decided<T>(
    config: &RouteConfig,
    uri: &str,
    headers: &HeaderMap,
    read: impl FnOnce(Decision<'_>, RequestView<'_>) -> T,
) -> T {
    let table = compiled(config);
    let uri = uri.parse().unwrap();
    let view = RequestView::new(&Method::GET, &uri, "any:80", headers);
    let decision = table.decide(&view, &Caller::default(), &mut SplitMix64::new(1));
    read(decision.expect("a route"), view)
}

fn forwarding<T>(
    action: RouteAction,
    uri: &str,
    headers: &HeaderMap,
    read: impl FnOnce(Forwarding<'_>) -> T,
) -> T {
    decided(&one(action), uri, headers, |decision, _| {
        match decision.action {
            DecisionAction::Forward(forwarding) => read(forwarding),
            other => panic!("{other:?}"),
        }
    })
}

#[test]
fn what_is_not_executed_yet_fails_its_requests_and_no_others() {
    let index = |_: &ClusterName| Some(0);
    let compile =
        |action| RouteTable::compile(&one(action), "any", &StreamLimits::default(), index).unwrap();
    let rewritten = forward(&[("a", 1)], |extras| {
        extras.path_rewrite = Some(PathRewrite::Prefix("/q".into()));
    });
    for (action, feature) in [
        (RouteAction::Redirect(Box::default()), Feature::Redirect),
        (rewritten, Feature::PathRewrite),
    ] {
        let table = compile(action);
        let is_refused = matches!(table.routes()[0].action, CompiledAction::Unsupported(_));
        assert_eq!(is_refused, !feature.is_executed(), "{feature}");
    }
    let plain = compile(RouteAction::Forward(Forward::to("a")));
    assert!(matches!(
        plain.routes()[0].action,
        CompiledAction::Forward(_)
    ));
}

#[test]
fn clusters_are_chosen_by_header_or_hash_where_asked() {
    let by_header = || {
        forward(&[("a", 1), ("b", 2)], |extras| {
            extras.weigh_by = WeighBy::Header(HeaderName::from_static("w"));
        })
    };
    for (value, expected) in [("0", 0), ("1", 1), ("2", 1), ("3", 0), ("300", 0)] {
        let request = headers(&[("w", value)]);
        let cluster = forwarding(by_header(), "/p", &request, |f| f.cluster);
        assert_eq!(cluster, ChosenCluster::Index(expected), "{value}");
    }
    let by_hash = || {
        forward(&[("a", 1), ("b", 1)], |extras| {
            extras.weigh_by = WeighBy::Hash;
            extras.hash_policy = vec![HashPolicy {
                source: HashSource::Header {
                    name: "k".into(),
                    rewrite: None,
                },
                terminal: false,
            }];
        })
    };
    for key in ["x", "y", "z"] {
        let request = headers(&[("k", key)]);
        let hash = xxhash_rust::xxh64::xxh64(key.as_bytes(), 0);
        forwarding(by_hash(), "/p", &request, |forwarding| {
            assert_eq!(forwarding.hash, Some(hash));
            assert_eq!(forwarding.cluster, ChosenCluster::Index((hash % 2) as u32));
        });
    }
    let by_name = || {
        forward(&[], |extras| {
            extras.cluster_header = Some(HeaderName::from_static("c"))
        })
    };
    let named = forwarding(by_name(), "/p", &headers(&[("c", "b")]), |f| f.cluster);
    assert_eq!(named, ChosenCluster::Named("b".into()));
    decided(&one(by_name()), "/p", &headers(&[]), |decision, _| {
        assert!(matches!(decision.action, DecisionAction::NoClusterHeader(name) if name == "c"));
    });
}

#[test]
fn hashes_are_combined_in_order_and_end_at_a_terminal_one() {
    let hash = |text: &str| xxhash_rust::xxh64::xxh64(text.as_bytes(), 0);
    let header = |name: &str, terminal| HashPolicy {
        source: HashSource::Header {
            name: name.into(),
            rewrite: None,
        },
        terminal,
    };
    let check = |policies: Vec<HashPolicy>, expected: Option<u64>| {
        let action = forward(&[("a", 1)], |extras| extras.hash_policy = policies);
        let request = headers(&[
            ("x", "1"),
            ("y", "2"),
            ("z-bin", "3"),
            ("cookie", "s=abc; t=d"),
        ]);
        let actual = forwarding(action, "/p?q=7", &request, |f| f.hash);
        assert_eq!(actual, expected);
    };
    let both = hash("1").rotate_left(1) ^ hash("2");
    check(vec![], None);
    check(vec![header("x", false), header("y", false)], Some(both));
    check(vec![header("x", true), header("y", false)], Some(hash("1")));
    check(
        vec![header("none", true), header("y", false)],
        Some(hash("2")),
    );
    check(vec![header("z-bin", false)], None);
    let part = |source| HashPolicy {
        source,
        terminal: false,
    };
    check(
        vec![part(HashSource::QueryParameter("q".into()))],
        Some(hash("7")),
    );
    check(
        vec![part(HashSource::SourceIp), part(HashSource::Channel)],
        None,
    );
    let cookie = |name: &str| {
        part(HashSource::Cookie {
            name: name.into(),
            ttl: Some(Duration::from_secs(60)),
            path: "/".into(),
            attributes: vec![("SameSite".into(), "Lax".into())],
        })
    };
    check(vec![cookie("t")], Some(hash("d")));
    let action = forward(&[("a", 1)], |extras| {
        extras.hash_policy = vec![cookie("new")]
    });
    forwarding(action, "/p", &headers(&[]), |forwarding| {
        let header = forwarding.cookie.expect("a cookie is made").header;
        let value = header.split('"').nth(1).unwrap();
        assert_eq!(
            forwarding.hash,
            Some(hash(value)),
            "the next request has the same hash"
        );
        let attributes = header.split_once("; ").unwrap().1;
        assert_eq!(attributes, "Max-Age=60; Path=/; SameSite=Lax; HttpOnly");
    });
}

#[test]
fn headers_change_from_the_most_specific_level_or_towards_it() {
    let add = |value: &str| {
        let mut mutations = HeaderMutations::default();
        mutations.request.add = vec![crate::config::HeaderValue {
            name: HeaderName::from_static("level"),
            value: ValueTemplate::new(value, false).unwrap(),
            action: AppendAction::Overwrite,
            keep_empty: false,
        }];
        mutations
    };
    let mut cluster = WeightedCluster::new("a", 1);
    cluster.extras = Some(Box::new(ClusterExtras {
        headers: add("cluster %REQ(level)% %UPSTREAM_CLUSTER%"),
        ..ClusterExtras::default()
    }));
    let mut config = one(RouteAction::Forward(Forward {
        clusters: vec![cluster],
        ..Forward::default()
    }));
    config.virtual_hosts[0].routes[0].headers = Some(Box::new(add("route %REQ(level):5%")));
    config.headers = Some(Box::new(add("config %REQ(level?x)%")));
    for (wins, expected) in [(false, "config route clust"), (true, "route confi")] {
        config.most_specific_mutations_win = wins;
        let mut changed = HeaderMap::new();
        decided(&config, "/p", &headers(&[]), |decision, view| {
            decision.apply_request_headers(&view, &mut changed);
        });
        assert_eq!(changed["level"], expected);
    }
}

#[test]
fn response_headers_know_both_heads() {
    let mut config = one(RouteAction::DirectResponse(Box::new(DirectResponse {
        status: 418,
        body: "tea".into(),
    })));
    let mut mutations = HeaderMutations::default();
    mutations.response.remove = vec![HeaderName::from_static("server")];
    mutations.response.add = vec![crate::config::HeaderValue {
        name: HeaderName::from_static("x"),
        value: ValueTemplate::new(
            "%ROUTE_NAME%%%%RESPONSE_CODE% %REQ(:METHOD)% %REQ(a)% %RESP(b)%",
            true,
        )
        .unwrap(),
        action: AppendAction::Append,
        keep_empty: false,
    }];
    config.virtual_hosts[0].headers = Some(Box::new(mutations));
    let mut changed = headers(&[("server", "s"), ("b", "2")]);
    decided(&config, "/p", &headers(&[("a", "1")]), |decision, view| {
        assert!(matches!(
            decision.action,
            DecisionAction::DirectResponse { status: 418, .. }
        ));
        decision.apply_response_headers(&view, StatusCode::IM_A_TEAPOT, &mut changed);
    });
    assert_eq!(changed["x"], "r%418 GET 1 2");
    assert!(!changed.contains_key("server"));
    for wrong in [
        "%",
        "%NONE%",
        "%REQ(a%",
        "%REQ()%",
        "%REQ(a):x%",
        "%REQ(a)b%",
    ] {
        assert!(ValueTemplate::new(wrong, true).is_err(), "{wrong}");
    }
    assert!(
        ValueTemplate::new("%RESP(b)%", false).is_err(),
        "there is no response yet"
    );
}

#[test]
fn an_explanation_names_what_does_not_fit() {
    let mut config = one(RouteAction::Forward(Forward::to("a")));
    let exact = HeaderPredicate::String(StringMatcher::exact("true"));
    let mut canary = Route::new("canary", RouteMatch::any(), RouteAction::NonForwarding);
    canary.matcher.headers = vec![HeaderMatcher::new("canary", exact)];
    let mut query = Route::new("query", RouteMatch::any(), RouteAction::NonForwarding);
    query.matcher.query_parameters = vec![QueryMatcher::present("q")];
    let path = PathMatcher::new(PathPattern::Exact("/x".into()));
    let path = Route::new("path", RouteMatch::path(path), RouteAction::NonForwarding);
    config.virtual_hosts[0]
        .routes
        .splice(0..0, [canary, query, path]);
    config
        .virtual_hosts
        .push(VirtualHost::new("other", ["other"], vec![]));
    let uri = "/p".parse().unwrap();
    let request = headers(&[("canary", "no")]);
    let view = RequestView::new(&Method::GET, &uri, "any", &request);
    let explanation = explain(&config, "any", &view);
    assert_eq!((explanation.host, explanation.route), (Some(0), Some(3)));
    assert_eq!(explanation.hosts[1].domain, None);
    let why: Vec<String> = explanation
        .routes
        .iter()
        .map(|route| {
            route
                .mismatch
                .as_ref()
                .map_or_else(String::new, ToString::to_string)
        })
        .collect();
    assert!(why[0].contains("header canary is \"no\""), "{why:?}");
    assert!(why[1].contains("query parameter q"), "{why:?}");
    assert!(
        why[2].contains("the path does not match: exact /x"),
        "{why:?}"
    );
    assert_eq!(why[3], "");
}
