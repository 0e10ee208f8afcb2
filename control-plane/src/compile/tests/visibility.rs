//! What differs between clients.

use super::*;

const ROUTES: &str = "outbound|8080||greeter.default.svc.cluster.local";

fn viewer<'v>(namespace: &'v str, labels: &'v BTreeMap<String, String>) -> Viewer<'v> {
    Viewer {
        labels,
        ..namespace.into()
    }
}

/// The names of the routes that a client gets.
fn names<'v>(compiled: &Compiled, viewer: impl Into<Viewer<'v>>) -> Vec<String> {
    let view = compiled.view(ROUTES, viewer).expect("routes");
    let routes = &view.config.virtual_hosts[0].routes;
    assert_eq!(view.origins.len(), routes.len());
    routes.iter().map(|route| route.name.clone()).collect()
}

#[test]
fn a_match_on_the_client_is_decided_for_it() {
    let (compiled, findings) = compile_text(&format!(
        "{GREETER}---
kind: VirtualService
metadata: {{name: v}}
spec:
  hosts: [greeter]
  http:
  - name: canary
    match: [{{sourceLabels: {{app: web, tier: front}}}}, {{sourceNamespace: test, uri: {{prefix: /t}}}}]
    route: [{{destination: {{host: greeter, subset: v2}}}}]
  - name: rest
    route: [{{destination: {{host: greeter, subset: v1}}}}]
"
    ));
    assert_eq!(findings, [""; 0]);
    let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let front = BTreeMap::from([("app", "web"), ("tier", "front")].map(label));
    let back = BTreeMap::from([("app", "web"), ("tier", "back")].map(label));
    assert_eq!(
        names(&compiled, viewer("default", &front)),
        ["canary.0", "rest"]
    );
    assert_eq!(names(&compiled, viewer("default", &back)), ["rest"]);
    assert_eq!(names(&compiled, "test"), ["canary.1", "rest"]);
    assert_eq!(
        names(&compiled, viewer("test", &front)),
        ["canary.0", "canary.1", "rest"]
    );
    let key = |viewer: Viewer<'_>| compiled.view(ROUTES, viewer).expect("routes").key;
    assert_eq!(
        key(viewer("a", &back)),
        key("b".into()),
        "one group, one configuration"
    );
    assert_ne!(key(viewer("a", &front)), key("b".into()));
}

#[test]
fn a_virtual_service_is_followed_where_it_is_exported_to() {
    let exported = |name: &str, list: &str| {
        format!(
            "---\nkind: VirtualService\nmetadata: {{name: {name}, namespace: team}}\nspec:\n  \
             hosts: [greeter.default.svc.cluster.local]\n  exportTo: {list}\n  \
             http: [{{name: {name}, route: [{{destination: {{host: greeter.default.svc.cluster.local}}}}]}}]\n"
        )
    };
    let text = GREETER.to_owned() + &exported("own", "[.]") + &exported("some", "[a, b]");
    let (compiled, findings) = compile_text(&(text.clone() + &exported("all", "['*']")));
    assert_eq!(findings, [""; 0]);
    for (namespace, name) in [("team", "own"), ("a", "some"), ("b", "some"), ("c", "all")] {
        assert_eq!(names(&compiled, namespace), [name], "{namespace}");
    }
    let (compiled, _) = compile_text(&text);
    assert_eq!(names(&compiled, "c"), ["default"]);
    let twice = text + &exported("zz", "[a]");
    let (compiled, findings) = compile_text(&twice);
    assert_eq!(names(&compiled, "a"), ["some"]);
    assert!(
        findings.len() == 1 && findings[0].contains("VirtualService team/zz"),
        "{findings:?}"
    );
}

#[test]
fn a_delegate_is_merged_as_istio_does() {
    let child = "---
kind: VirtualService
metadata: {name: child, namespace: team}
spec:
  http:
  - name: exact
    match: [{uri: {exact: /api/x}}]
    route: [{destination: {host: greeter.default.svc.cluster.local}}]
  - name: outside
    match: [{uri: {prefix: /other}}]
    route: [{destination: {host: greeter.default.svc.cluster.local}}]
  - timeout: 1s
    route: [{destination: {host: greeter.default.svc.cluster.local}}]
";
    let root = |delegate: &str| {
        format!(
            "{GREETER}---
kind: VirtualService
metadata: {{name: root}}
spec:
  hosts: [greeter]
  http:
  - name: api
    match: [{{uri: {{prefix: /api}}, headers: {{h: {{exact: a}}}}}}]
    timeout: 9s
    fault: {{abort: {{httpStatus: 418}}}}
    delegate: {delegate}
  - name: rest
    route: [{{destination: {{host: greeter}}}}]
"
        )
    };
    let (compiled, findings) = compile_text(&(root("{name: child, namespace: team}") + child));
    assert_eq!(names(&compiled, "default"), ["api-exact", "api", "rest"]);
    assert!(
        findings.len() == 1
            && findings[0]
                .contains("VirtualService team/child: spec.http[1].match: its match contradicts"),
        "{findings:?}"
    );
    let routes = &compiled.routes[ROUTES].virtual_hosts[0].routes;
    let exact = PathPattern::Exact("/api/x".into());
    assert_eq!(routes[0].matcher.path.pattern, exact);
    assert_eq!(
        routes[0].matcher.headers.len(),
        1,
        "the root's header is asked for, too"
    );
    assert_eq!(
        routes[1].matcher.path.pattern,
        PathPattern::Prefix("/api".into())
    );
    let timeout = |route: &Route| match &route.action {
        RouteAction::Forward(forward) => forward.timeout.map(|timeout| timeout.as_secs()),
        _ => None,
    };
    assert_eq!(
        (timeout(&routes[0]), timeout(&routes[1])),
        (Some(9), Some(1))
    );
    for (number, is_faulty) in [(0, true), (1, true), (2, false)] {
        assert_eq!(routes[number].filters.is_some(), is_faulty, "{number}");
    }

    for (delegate, child) in [
        ("{name: nobody}", child.to_owned()),
        (
            "{name: child, namespace: team}",
            child.replace("spec:", "spec:\n  exportTo: [.]"),
        ),
        (
            "{name: child, namespace: team}",
            child.replace("spec:", "spec:\n  hosts: [greeter.default]"),
        ),
    ] {
        let (compiled, findings) = compile_text(&(root(delegate) + &child));
        let place = "VirtualService default/root: spec.http[0].delegate.name";
        assert!(
            findings.iter().any(|found| found.contains(place)),
            "{findings:?}"
        );
        let routes = &compiled.routes[ROUTES].virtual_hosts[0].routes;
        assert_eq!(routes.len(), 2);
        assert!(matches!(routes[0].action, RouteAction::Unsupported(_)));
    }
}

/// Services `a.one`, `b.one` and `c.two` with ports 80 and 81.
fn services(annotation: &str) -> String {
    let service = |name: &str, namespace: &str, annotation: &str| {
        format!(
            "kind: Service\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotation}}}}}\n\
             spec: {{ports: [{{name: http, port: 80}}, {{name: other, port: 81}}]}}\n---\n"
        )
    };
    service("a", "one", annotation) + &service("b", "one", "") + &service("c", "two", "")
}

#[test]
fn what_is_not_exported_cannot_be_dialled_but_is_led_to() {
    let annotation = "networking.istio.io/exportTo: '., three'";
    let text = services(annotation)
        + "kind: ServiceEntry
metadata: {name: e, namespace: two}
spec:
  hosts: [e.example.com]
  exportTo: [.]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
---
kind: VirtualService
metadata: {name: v, namespace: two}
spec: {hosts: [c], http: [{route: [{destination: {host: a.one.svc.cluster.local}}]}]}
";
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings, [""; 0]);
    let sees = |namespace: &str, name: &str| compiled.resolve_listener(name, namespace).is_some();
    for (namespace, is_seen) in [("one", true), ("two", false), ("three", true)] {
        assert_eq!(sees(namespace, "a.one"), is_seen, "{namespace}");
        assert!(sees(namespace, "b.one"));
    }
    assert!(sees("two", "e.example.com") && !sees("one", "e.example.com"));
    let clusters = compiled.visible_clusters("two");
    let a = "outbound|80||a.one.svc.cluster.local";
    assert!(
        clusters.iter().any(|name| name == a),
        "its route leads there"
    );
    assert!(
        !clusters
            .iter()
            .any(|name| name == "outbound|82||a.one.svc.cluster.local")
    );
}

#[test]
fn a_sidecar_lists_what_its_clients_see() {
    let sidecar = |name: &str, namespace: &str, spec: &str| {
        format!(
            "kind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
        )
    };
    let text = services("")
        + &sidecar("all", "one", "{egress: [{hosts: [./*]}]}")
        + &sidecar(
            "web",
            "one",
            "{workloadSelector: {labels: {app: web}}, egress: [{port: {number: 81}, \
             hosts: ['*/c.two.svc.cluster.local', 'one/b.one.svc.cluster.local']}]}",
        )
        + &sidecar(
            "root",
            "istio-system",
            "{egress: [{hosts: ['two/*.two.svc.cluster.local', ~/*]}]}",
        );
    let (compiled, findings) = compile_text(&text);
    assert_eq!(findings, [""; 0]);
    let web = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let all = ["a.one:80", "b.one:80", "b.one:81", "c.two:80", "c.two:81"];
    let seen = |viewer: Viewer<'_>| {
        let names = all.into_iter();
        let names = names.filter(|name| compiled.resolve_listener(name, viewer).is_some());
        names.collect::<Vec<_>>()
    };
    assert_eq!(seen("one".into()), ["a.one:80", "b.one:80", "b.one:81"]);
    assert_eq!(seen(viewer("one", &web)), ["b.one:81", "c.two:81"]);
    assert_eq!(seen("elsewhere".into()), ["c.two:80", "c.two:81"]);
    let clusters = compiled.visible_clusters(viewer("one", &web));
    let name = |port: u16, host: &str| format!("outbound|{port}||{host}.svc.cluster.local");
    assert_eq!(clusters, [name(81, "b.one"), name(81, "c.two")]);
    let (_, findings) = compile_text(&sidecar("x", "one", "{egress: [{hosts: [a]}]}"));
    assert!(
        findings[0].contains("spec.egress[0].hosts[0]: \"a\" has no namespace"),
        "{findings:?}"
    );
}
