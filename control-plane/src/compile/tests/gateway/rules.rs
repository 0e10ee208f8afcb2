//! What the conformance suite does not ask of a mesh.

use super::*;

#[test]
fn a_backend_that_is_not_there_fails_its_share_with_500() {
    let (mesh, findings) = Mesh::with_findings(&route(
        "a",
        "  - backendRefs: [{name: echo-v1, port: 80, weight: 3}, {name: nobody, port: 80, weight: 1}]\n",
    ));
    let shares = mesh.shares("echo/");
    assert!((200..300).contains(&shares["500"]), "{shares:?}");
    assert_eq!(shares["500"] + shares["echo-v1"], 1_000);
    let place =
        "HTTPRoute mesh/a: spec.rules[0].backendRefs[1].name: there is no Service mesh/nobody";
    assert!(
        findings.len() == 1 && findings[0].contains(place),
        "{findings:?}"
    );
    let conditions = mesh.conditions("HTTPRoute mesh/a");
    let unresolved = ("ResolvedRefs", "False", "BackendNotFound");
    assert_eq!(
        conditions[0].1,
        [("Accepted", "True", "Accepted"), unresolved]
    );
}

#[test]
fn a_rule_that_cannot_be_used_fails_its_own_requests_alone() {
    let rules = |rule: &str| {
        let head = "  - matches: [{path: {value: /bad}}]\n    ";
        format!("{head}{rule}\n  - backendRefs: [{{name: echo-v1, port: 80}}]\n")
    };
    let backend = "backendRefs: [{name: echo-v1, port: 80}]";
    for (rule, field) in [
        (
            format!("filters: [{{type: ExtensionRef, extensionRef: {{name: a}}}}]\n    {backend}"),
            "filters[0].type",
        ),
        (
            format!("sessionPersistence: {{type: Query}}\n    {backend}"),
            "sessionPersistence.type",
        ),
        (
            format!("filters: [{{type: URLRewrite}}]\n    {backend}"),
            "filters[0].urlRewrite",
        ),
        (
            format!(
                "filters: [{{type: RequestRedirect, requestRedirect: {{port: 1}}}}]\n    {backend}"
            ),
            "backendRefs",
        ),
        (
            format!("timeouts: {{request: 1s, backendRequest: 2s}}\n    {backend}"),
            "timeouts.backendRequest",
        ),
        (
            format!("timeouts: {{request: soon}}\n    {backend}"),
            "timeouts.request",
        ),
        (
            format!("retry: {{attempts: 9}}\n    {backend}"),
            "retry.attempts",
        ),
        (
            format!("retry: {{codes: [200]}}\n    {backend}"),
            "retry.codes[0]",
        ),
        ("backendRefs: []".to_owned(), "backendRefs"),
        (
            "backendRefs: [{name: echo, port: 80, weight: 0}]".to_owned(),
            "backendRefs",
        ),
        (
            "backendRefs: [{name: nobody, port: 80}]".to_owned(),
            "backendRefs[0].name",
        ),
        (
            "backendRefs: [{name: echo, port: 81}]".to_owned(),
            "backendRefs[0].port",
        ),
        (
            "backendRefs: [{name: echo}]".to_owned(),
            "backendRefs[0].port",
        ),
        (
            "backendRefs: [{name: echo, port: 80, kind: Backend, group: x}]".to_owned(),
            "backendRefs[0].kind",
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath}}}]"
                .to_owned(),
            "filters",
        ),
    ] {
        let (mesh, findings) = Mesh::with_findings(&route("a", &rules(&rule)));
        let place = format!("HTTPRoute mesh/a: spec.rules[0].{field}: ");
        assert!(
            findings.iter().any(|found| found.contains(&place)),
            "{rule}: {findings:?}"
        );
        assert_eq!(mesh.get("echo/bad/x").status, 500, "{rule}");
        assert_eq!(mesh.get("echo/good").backend, "echo-v1", "{rule}");
        let conditions = &mesh.conditions("HTTPRoute mesh/a")[0].1;
        assert_eq!(conditions[0], ("Accepted", "True", "Accepted"), "{rule}");
        let is_said = conditions.iter().any(|(kind, status, _)| {
            (*kind, *status) == ("PartiallyInvalid", "True")
                || (*kind, *status) == ("ResolvedRefs", "False")
        });
        assert!(is_said, "{rule}: {conditions:?}");
    }
}

#[test]
fn the_most_specific_match_wins_whatever_the_order() {
    let rule = |matches: &str, index: usize| {
        let header = format!(
            "filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: \
             {{set: [{{name: x, value: '{index}'}}]}}}}]"
        );
        format!(
            "  - matches: [{{{matches}}}]\n    {header}\n    backendRefs: [{{name: echo-v1, port: 80}}]\n"
        )
    };
    // From the most specific to the least.
    let matches = [
        "path: {type: Exact, value: /a/b}",
        "path: {type: RegularExpression, value: '/a/b.*'}",
        "path: {value: /a/b}, method: GET",
        "path: {value: /a/b}, headers: [{name: h, value: a}, {name: i, value: b}]",
        "path: {value: /a/b}, headers: [{name: h, value: a}], queryParams: [{name: q, value: a}]",
        "path: {value: /a/b}, headers: [{name: h, value: a}]",
        "path: {value: /a/b}, queryParams: [{name: q, value: a}]",
        "path: {value: /a/b}",
        "path: {value: /a}, method: GET, headers: [{name: h, value: a}]",
        "path: {value: /}",
    ];
    let request = get("echo/a/b?q=a", &[("h", "a"), ("i", "b")]);
    for from in 0..matches.len() {
        let rest = matches[from..].iter().enumerate();
        let mut rules: Vec<_> = rest.map(|(index, text)| rule(text, from + index)).collect();
        for _ in 0..2 {
            let mesh = Mesh::new(&route("a", &rules.concat()));
            let answer = mesh.ask("mesh", &request, 1);
            assert_eq!(answer.headers["x"], from.to_string(), "{}", matches[from]);
            rules.reverse();
        }
    }
}

#[test]
fn routes_of_one_parent_are_merged_and_the_older_one_wins() {
    let made = |name: &str, time: &str, backend: &str| {
        let text = route(
            name,
            &format!("  - backendRefs: [{{name: {backend}, port: 80}}]\n"),
        );
        text.replace(
            "namespace: mesh}\nspec",
            &format!("namespace: mesh{time}}}\nspec"),
        )
    };
    let old = ", creationTimestamp: '2025-01-01T00:00:00Z'";
    let new = ", creationTimestamp: '2026-01-01T00:00:00Z'";
    for (a, b, winner) in [
        ("", "", "echo-v1"),
        (new, old, "echo-v2"),
        ("", new, "echo-v2"),
        (old, new, "echo-v1"),
    ] {
        let mesh = Mesh::new(&(made("a", a, "echo-v1") + &made("b", b, "echo-v2")));
        assert_eq!(mesh.get("echo/").backend, winner, "{a} {b}");
    }
    let narrow = route(
        "z",
        "  - matches: [{path: {value: /z}}]\n    backendRefs: [{name: echo-v2, port: 80}]\n",
    );
    let mesh = Mesh::new(&(made("a", old, "echo-v1") + &narrow));
    assert_eq!(mesh.get("echo/z").backend, "echo-v2");
    assert_eq!(mesh.get("echo/y").backend, "echo-v1");
}

#[test]
fn a_prefix_is_replaced_as_the_api_says() {
    for (prefix, replacement, path, expected) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "''", "/foo/bar", "/bar"),
        ("/foo", "''", "/foo/", "/"),
        ("/foo", "''", "/foo", "/"),
        ("/foo", "/", "/foo/", "/"),
        ("/foo", "/", "/foo", "/"),
        ("/", "/xyz", "/foo", "/xyz/foo"),
        ("/", "/", "/foo", "/foo"),
        ("/a.b", "/", "/a.b/c", "/c"),
    ] {
        let mesh = Mesh::new(&route(
            "a",
            &format!(
                "  - matches: [{{path: {{value: {prefix}}}}}]\n    filters: [{{type: URLRewrite, urlRewrite: \
                 {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {replacement}}}}}}}]\n    \
                 backendRefs: [{{name: echo-v1, port: 80}}]\n"
            ),
        ));
        let answer = mesh.get(&format!("echo{path}"));
        assert_eq!(
            answer.url,
            format!("echo{expected}"),
            "{prefix} {replacement} {path}"
        );
    }
}

#[test]
fn another_namespace_must_grant_what_is_no_parent() {
    let rule = "kind: HTTPRoute
metadata: {name: a, namespace: other}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, namespace: mesh}]
  rules: [{backendRefs: [{name: echo-v1, namespace: mesh, port: 80}]}]
";
    let grant = |to: &str, kind: &str| {
        format!(
            "{rule}---\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: mesh}}\nspec:\n  \
             from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: other}}]\n  \
             to: [{{group: '', kind: Service{to}}}]\n"
        )
    };
    for (text, is_granted) in [
        (rule.to_owned(), false),
        (grant("", "HTTPRoute"), true),
        (grant(", name: echo-v1", "HTTPRoute"), true),
        (grant(", name: echo-v2", "HTTPRoute"), false),
        (grant("", "GRPCRoute"), false),
    ] {
        let (mesh, findings) = Mesh::with_findings(&text);
        let answer = mesh.ask("other", &get("echo.mesh/", &[]), 1);
        let expected = if is_granted { 200 } else { 500 };
        assert_eq!(answer.status, expected, "{text} {findings:?}");
        let resolved = mesh.conditions("HTTPRoute other/a")[0].1[1];
        let reason = if is_granted {
            "ResolvedRefs"
        } else {
            "RefNotPermitted"
        };
        assert_eq!(resolved.2, reason);
    }
}

#[test]
fn a_consumers_route_stands_in_the_place_of_the_producers() {
    let mesh = Mesh::new(
        &(route("producer", "  - backendRefs: [{name: echo-v1, port: 80}]\n")
            + "kind: HTTPRoute
metadata: {name: consumer, namespace: other}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, namespace: mesh, port: 80}]
  rules: [{matches: [{path: {value: /own}}], backendRefs: [{name: echo, namespace: mesh, port: 80}]}]
"),
    );
    let ask = |namespace: &str, url: &str| mesh.ask(namespace, &get(url, &[]), 1);
    assert_eq!(ask("mesh", "echo.mesh/own").backend, "echo-v1");
    assert_eq!(ask("other", "echo.mesh/own").backend, "echo");
    assert_eq!(ask("other", "echo.mesh/else").status, 404);
    let port = ask("other", "echo.mesh:8080/else");
    assert_eq!(
        port.backend, "echo-v1",
        "on another port the producer's holds"
    );
}

#[test]
fn a_parent_that_is_none_is_said() {
    let parent = |parent: &str| {
        format!(
            "kind: HTTPRoute\nmetadata: {{name: a, namespace: mesh}}\nspec:\n  \
             parentRefs: [{{{parent}}}]\n  rules: [{{backendRefs: [{{name: echo-v1, port: 80}}]}}]\n"
        )
    };
    for (declared, field, status) in [
        (
            "name: gateway",
            "parentRefs[0].kind: Gateway of the group",
            None,
        ),
        (
            "name: echo, kind: Service",
            "parentRefs[0].kind: Service of the group \"gateway",
            None,
        ),
        (
            "name: nobody, kind: Service, group: ''",
            "parentRefs[0].name",
            Some("NoMatchingParent"),
        ),
        (
            "name: echo, kind: Service, group: '', port: 1",
            "parentRefs[0].port",
            Some("NoMatchingParent"),
        ),
        (
            "name: echo, kind: Service, group: '', sectionName: a",
            "parentRefs[0].sectionName",
            Some("NoMatchingParent"),
        ),
    ] {
        let (mesh, findings) = Mesh::with_findings(&parent(declared));
        assert!(
            findings.len() == 1 && findings[0].contains(field),
            "{findings:?}"
        );
        assert_eq!(mesh.get("echo/").backend, "echo", "{declared}");
        let conditions = mesh.conditions("HTTPRoute mesh/a");
        let reason = conditions.first().map(|(_, conditions)| conditions[0].2);
        assert_eq!(reason, status, "{declared}");
    }
}

#[test]
fn grpc_routes_go_by_service_and_method() {
    let rule = |matches: &str, backend: &str| {
        format!("  - matches: [{matches}]\n    backendRefs: [{{name: {backend}, port: 7070}}]\n")
    };
    let text = format!(
        "kind: GRPCRoute\nmetadata: {{name: a, namespace: mesh}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: echo}}]\n  rules:\n{}{}{}{}",
        rule("{method: {method: Echo}}", "echo"),
        rule("{method: {service: a.B}}", "echo-v1"),
        rule(
            "{method: {service: a.B, method: Echo}}, {headers: [{name: v, value: two}]}",
            "echo-v2"
        ),
        rule(
            "{method: {type: RegularExpression, service: 'c[.]D+'}}",
            "echo-v2"
        ),
    );
    let mesh = Mesh::new(&text);
    for (method, header, backend) in [
        ("a.B/Echo", None, "echo-v2"),
        ("a.B/Other", None, "echo-v1"),
        ("x.Y/Echo", None, "echo"),
        ("c.DD/Any", None, "echo-v2"),
        ("x.Y/Any", Some("two"), "echo-v2"),
        ("x.Y/Any", None, ""),
        ("a.Bee/Any", None, ""),
    ] {
        let headers: Vec<_> = header.map(|value| ("v", value)).into_iter().collect();
        let answer = mesh.ask("mesh", &call(method, &headers), 1);
        assert_eq!(answer.backend, backend, "{method} {header:?}");
    }
}

#[test]
fn limits_and_retries_are_compiled() {
    let mesh = Mesh::new(&route(
        "a",
        "  - timeouts: {request: 5s, backendRequest: 1s}
    retry: {codes: [500, 503], attempts: 3, backoff: 100ms}
    backendRefs: [{name: echo-v1, port: 80}]
",
    ));
    let routes = &mesh.0.routes["outbound|80||echo.mesh.svc.cluster.local"];
    let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else {
        panic!()
    };
    let seconds = std::time::Duration::from_secs;
    assert_eq!(forward.timeout, Some(seconds(5)));
    let retry = forward.retry.as_ref().expect("retries");
    assert_eq!(
        (retry.num_retries, retry.per_try_timeout),
        (3, Some(seconds(1)))
    );
    assert_eq!(retry.retriable_status_codes, [500, 503]);
    assert!(
        retry
            .retry_on
            .contains(RetryOn::RETRIABLE_STATUS_CODES | RetryOn::CONNECT_FAILURE)
    );
    assert_eq!(retry.backoff.base.as_millis(), 100);
}

#[test]
fn routes_of_gateway_api_go_before_other_dialects_and_that_is_said() {
    let others = "kind: VirtualService
metadata: {name: v, namespace: mesh}
spec: {hosts: [echo], http: [{route: [{destination: {host: echo-v2}}]}]}
---
kind: ServiceRouter
metadata: {name: echo, namespace: mesh}
spec: {routes: [{destination: {service: echo-v2}}]}
";
    let own = route("a", "  - backendRefs: [{name: echo-v1, port: 80}]\n");
    let (mesh, findings) = Mesh::with_findings(&(own + others));
    assert_eq!(mesh.get("echo/").backend, "echo-v1");
    for object in ["VirtualService mesh/v", "ServiceRouter mesh/echo"] {
        let said = format!("warning[MESH0113]: {object}: spec: requests to echo.mesh");
        assert!(
            findings.iter().any(|found| found.contains(&said)),
            "{findings:?}"
        );
    }
    let (mesh, findings) = Mesh::with_findings(others);
    assert_eq!(mesh.get("echo/").backend, "echo-v2");
    assert!(
        findings.len() == 1 && findings[0].contains("follow VirtualService mesh/v"),
        "{findings:?}"
    );
}

#[test]
fn a_retry_constraint_is_the_budget_of_its_service() {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\nkind: XBackendTrafficPolicy\nmetadata: {{name: {name}, namespace: mesh}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, name: echo}}], {spec}}}\n"
        )
    };
    let constraint = "retryConstraint: {budget: {percent: 5}, minRetryRate: {count: 2}}";
    let (mesh, findings) = Mesh::with_findings(&(policy("a", constraint) + &policy("b", "")));
    assert!(
        findings.len() == 1 && findings[0].contains("XBackendTrafficPolicy mesh/b: spec: "),
        "{findings:?}"
    );
    let budget = |host: &str| {
        let name = format!("outbound|80||{host}.mesh.svc.cluster.local");
        mesh.0.clusters[name.as_str()].circuit_breakers.retry_budget
    };
    assert_eq!(
        (budget("echo").percent, budget("echo").min_retry_concurrency),
        (5, 2)
    );
    assert_eq!(budget("echo-v1"), RetryBudget::default());
    let (_, findings) =
        Mesh::with_findings(&policy("a", "retryConstraint: {budget: {percent: 101}}"));
    assert!(
        findings[0].contains("spec.retryConstraint.budget.percent"),
        "{findings:?}"
    );
}

/// The session that holds for a route, or for the virtual host of all.
fn session_of(filters: Option<&FilterOverrides>) -> Option<SessionState> {
    let said = filters?.by_name.get(SESSION_FILTER)?;
    match said.config.as_ref()? {
        FilterConfig::StatefulSession(session) => {
            Some(session.as_deref().expect("one").state.clone())
        }
        other => panic!("{other:?}"),
    }
}

/// The cookie by which it is kept.
fn cookie_of(filters: Option<&FilterOverrides>) -> SessionCookieConfig {
    match session_of(filters) {
        Some(SessionState::Cookie(cookie)) => cookie,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sessions_and_origins_are_what_a_rule_says_of_filters() {
    let (mesh, findings) = Mesh::with_findings(&route(
        "a",
        "  - sessionPersistence: {absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
    filters: [{type: CORS, cors: {allowOrigins: ['https://*.example.com'], allowMethods: [GET, PUT]}}]
    backendRefs: [{name: echo-v1, port: 80}]\n",
    ));
    assert_eq!(findings, [""; 0]);
    let name = "outbound|80||echo.mesh.svc.cluster.local";
    let host = &mesh.0.routes[name].virtual_hosts[0];
    let filters = host.routes[0].filters.as_deref();
    let session = cookie_of(filters);
    assert_eq!(
        (session.name.as_str(), session.path.as_str()),
        ("mesh-session-a", "/")
    );
    assert_eq!(session.ttl.map(|ttl| ttl.as_secs()), Some(3600));
    let cors = filters.and_then(|filters| filters.by_name[CORS_FILTER].config.clone());
    let Some(FilterConfig::Cors(Some(cors))) = cors else {
        panic!("{cors:?}")
    };
    assert_eq!(cors.allow_methods, "GET,PUT");
    let is_allowed = |origin: &str| cors.allow_origins[0].is_match(origin);
    assert!(is_allowed("https://a.example.com") && !is_allowed("https://a.example.org"));
    assert_eq!(session_of(host.filters.as_deref()), None);
}

#[test]
fn a_traffic_policy_makes_sessions_of_all_requests_to_a_service() {
    let policy = |session: &str| {
        format!(
            "kind: XBackendTrafficPolicy\nmetadata: {{name: p, namespace: mesh}}\nspec:\n  \
             targetRefs: [{{group: '', kind: Service, name: echo}}]\n  sessionPersistence: {session}\n"
        )
    };
    let (mesh, findings) = Mesh::with_findings(&policy("{sessionName: own}"));
    assert_eq!(findings, [""; 0]);
    let host = &mesh.0.routes["outbound|80||echo.mesh.svc.cluster.local"].virtual_hosts[0];
    let session = cookie_of(host.filters.as_deref());
    assert_eq!((session.name.as_str(), session.ttl), ("own", None));
    let (mesh, findings) = Mesh::with_findings(&policy("{type: Header}"));
    assert_eq!(findings, [""; 0]);
    let host = &mesh.0.routes["outbound|80||echo.mesh.svc.cluster.local"].virtual_hosts[0];
    let by_header = SessionState::Header("mesh-session-echo".parse().expect("a name"));
    assert_eq!(session_of(host.filters.as_deref()), Some(by_header));
    for (session, expected) in [
        ("{sessionName: 'a b'}", "sessionName"),
        ("{cookieConfig: {lifetimeType: Permanent}}", "lifetimeType"),
        ("{absoluteTimeout: soon}", "absoluteTimeout"),
        ("{type: Query}", "type"),
        ("{type: Header, sessionName: 'a b'}", "sessionName"),
        ("{type: Header, absoluteTimeout: 1h}", "absoluteTimeout"),
        (
            "{type: Header, cookieConfig: {lifetimeType: Session}}",
            "cookieConfig",
        ),
    ] {
        let (_, findings) = Mesh::with_findings(&policy(session));
        assert!(
            findings.len() == 1 && findings[0].contains(expected),
            "{findings:?}"
        );
    }
}
