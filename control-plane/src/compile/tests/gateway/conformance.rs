//! The mesh tests of Gateway API's conformance suite, under their names.

use super::*;

#[test]
fn mesh_basic() {
    let mesh = Mesh::new("");
    for url in ["echo/", "echo:80/any", "echo.mesh/"] {
        assert_eq!(mesh.get(url).backend, "echo", "{url}");
    }
}

#[test]
fn mesh_traffic_split() {
    let mesh = Mesh::new(&route(
        "mesh-split",
        "  - matches: [{path: {type: Exact, value: /v1}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: Exact, value: /v2}}]
    backendRefs: [{name: echo-v2, port: 80}]
",
    ));
    assert_eq!(mesh.get("echo/v1").backend, "echo-v1");
    assert_eq!(mesh.get("echo/v2").backend, "echo-v2");
    assert_eq!(mesh.get("echo/v3").status, 404, "what no rule takes fails");
}

#[test]
fn mesh_http_route_weight() {
    let mesh = Mesh::new(&route(
        "weighted",
        "  - backendRefs: [{name: echo-v1, port: 80, weight: 70}, {name: echo-v2, port: 80, weight: 30}, \
         {name: echo, port: 80, weight: 0}]\n",
    ));
    let shares = mesh.shares("echo/");
    assert_eq!(shares.len(), 2, "{shares:?}");
    assert!((640..760).contains(&shares["echo-v1"]), "{shares:?}");
}

#[test]
fn mesh_ports() {
    let parent = |name: &str, port: &str| {
        format!(
            "kind: HTTPRoute\nmetadata: {{name: {name}, namespace: mesh}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: {name}{port}}}]\n  rules:\n  \
             - filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: \
             {{set: [{{name: X-Header-Set, value: set}}]}}}}]\n    \
             backendRefs: [{{name: {name}, port: 80}}]\n---\n"
        )
    };
    let text = parent("echo-v1", ", port: 80")
        + &parent("echo-v2", "")
        + &parent("echo", ", sectionName: grpc");
    let mesh = Mesh::new(&text);
    for (url, is_set) in [
        ("echo-v1/", true),
        ("echo-v1:8080/", false),
        ("echo-v2/", true),
        ("echo-v2:8080/", true),
        ("echo:7070/", true),
        ("echo/", false),
    ] {
        let answer = mesh.get(url);
        assert_eq!(answer.headers.contains_key("x-header-set"), is_set, "{url}");
        assert_eq!(answer.backend, url.split([':', '/']).next().unwrap());
    }
}

#[test]
fn mesh_frontend_hostname() {
    let mesh = Mesh::new(
        "kind: HTTPRoute
metadata: {name: a, namespace: mesh}
spec:
  parentRefs: [{group: '', kind: Service, name: echo-v2}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: X-Header-Set, value: set}]}
    backendRefs: [{name: echo-v2, port: 80}]
",
    );
    assert!(mesh.get("echo-v2/").headers.contains_key("x-header-set"));
    let own = get("echo-v1/", &[("host", "echo-v2")]);
    let other = mesh.ask("mesh", &own, 1);
    assert_eq!(other.backend, "echo-v1", "the name that is dialled decides");
    assert!(!other.headers.contains_key("x-header-set"));
}

#[test]
fn mesh_http_route_matching() {
    let mesh = Mesh::new(&route(
        "matching",
        "  - matches:
    - path: {type: PathPrefix, value: /}
    - headers: [{name: version, value: one}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches:
    - path: {type: PathPrefix, value: /v2}
    - headers: [{name: version, value: two}]
    backendRefs: [{name: echo-v2, port: 80}]
",
    ));
    for (path, header, backend) in [
        ("/", None, "echo-v1"),
        ("/example", None, "echo-v1"),
        ("/", Some("one"), "echo-v1"),
        ("/v2", None, "echo-v2"),
        ("/v2/example", None, "echo-v2"),
        ("/", Some("two"), "echo-v2"),
        ("/v2/", None, "echo-v2"),
        ("/v2example", None, "echo-v1"),
        ("/foo/v2/example", None, "echo-v1"),
    ] {
        let headers: Vec<_> = header.map(|value| ("version", value)).into_iter().collect();
        let answer = mesh.ask("mesh", &get(&format!("echo{path}"), &headers), 1);
        assert_eq!(answer.backend, backend, "{path} {header:?}");
    }
}

#[test]
fn mesh_http_route_query_param_matching() {
    let mesh = Mesh::new(&route(
        "query",
        "  - matches: [{queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{queryParams: [{name: animal, value: dolphin}]}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{path: {value: /path1}, queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches:
    - {path: {value: /path3}, queryParams: [{name: animal, value: shark}]}
    - {path: {value: /path4}, headers: [{name: version, value: three}], queryParams: [{name: animal, value: kraken}]}
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /path5}, queryParams: [{name: animal, value: hydra}]}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{queryParams: [{name: animal, value: hydra}]}]
    backendRefs: [{name: echo-v2, port: 80}]
",
    ));
    for (path, header, backend) in [
        ("/?animal=whale", None, "echo-v1"),
        ("/?animal=dolphin", None, "echo-v2"),
        ("/?animal=whale&otherparam=irrelevant", None, "echo-v1"),
        ("/?animal=dolphin&color=yellow", None, "echo-v2"),
        ("/?color=blue", None, ""),
        ("/?animal=dog", None, ""),
        ("/?animal=whaledolphin", None, ""),
        ("/", None, ""),
        ("/path1?animal=whale", None, "echo-v1"),
        ("/?animal=whale", Some("one"), "echo-v2"),
        ("/path3?animal=shark", None, "echo-v1"),
        ("/path4?animal=kraken", Some("three"), "echo-v1"),
        ("/?animal=shark", None, ""),
        ("/path4?animal=kraken", None, ""),
        ("/path5?animal=hydra", None, "echo-v1"),
    ] {
        let headers: Vec<_> = header.map(|value| ("version", value)).into_iter().collect();
        let answer = mesh.ask("mesh", &get(&format!("echo{path}"), &headers), 1);
        assert_eq!(answer.backend, backend, "{path} {header:?}");
        assert_eq!(answer.status, if backend.is_empty() { 404 } else { 200 });
    }
}

#[test]
fn mesh_http_route_rewrite_path() {
    let modify = "- type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Header-Set, value: set-overwrites-values}]
        add: [{name: X-Header-Add, value: header-val-1}, {name: X-Header-Add-Append, value: header-val-2}]
        remove: [X-Header-Remove]
";
    let rule = |prefix: &str, kind: &str, field: &str, to: &str, more: &str| {
        format!(
            "  - matches: [{{path: {{value: {prefix}}}}}]
    filters:
    - type: URLRewrite
      urlRewrite: {{path: {{type: {kind}, {field}: {to}}}}}
    {more}
    backendRefs: [{{name: echo-v1, port: 80}}]
"
        )
    };
    let part = ("ReplacePrefixMatch", "replacePrefixMatch");
    let full = ("ReplaceFullPath", "replaceFullPath");
    let rules = [
        rule("/prefix/one", part.0, part.1, "/one", ""),
        rule("/strip-prefix", part.0, part.1, "/", ""),
        rule("/full/one", full.0, full.1, "/one", ""),
        rule(
            "/full/rewrite-path-and-modify-headers",
            full.0,
            full.1,
            "/test",
            modify,
        ),
        rule(
            "/prefix/rewrite-path-and-modify-headers",
            part.0,
            part.1,
            "/prefix",
            modify,
        ),
    ];
    let mesh = Mesh::new(&route("rewrite", &rules.concat()));
    for (path, expected) in [
        ("/prefix/one/two", "echo/one/two"),
        ("/strip-prefix/three", "echo/three"),
        ("/strip-prefix", "echo/"),
        ("/full/one/two", "echo/one"),
        ("/full/one/two?a=b", "echo/one?a=b"),
    ] {
        assert_eq!(mesh.get(&format!("echo{path}")).url, expected, "{path}");
    }
    for (path, expected) in [
        ("/full/rewrite-path-and-modify-headers/test", "echo/test"),
        (
            "/prefix/rewrite-path-and-modify-headers/one",
            "echo/prefix/one",
        ),
    ] {
        let headers = [
            ("X-Header-Remove", "remove-val"),
            ("X-Header-Add-Append", "append-val-1"),
            ("X-Header-Set", "set-val"),
        ];
        let answer = mesh.ask("mesh", &get(&format!("echo{path}"), &headers), 1);
        assert_eq!(answer.url, expected);
        let values = |name: &str| answer.sent.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(values("x-header-add"), ["header-val-1"]);
        assert_eq!(
            values("x-header-add-append"),
            ["append-val-1", "header-val-2"]
        );
        assert_eq!(values("x-header-set"), ["set-overwrites-values"]);
        assert_eq!(values("x-header-remove"), [""; 0]);
    }
}

/// Asserts where redirects lead; the rules have the prefixes `/0`, `/1` and so on.
fn redirects(cases: &[(&str, &str, u16, &str)]) {
    let rule = |(index, (declared, ..)): (usize, &(&str, &str, u16, &str))| {
        format!(
            "  - matches: [{{path: {{value: /{index}}}}}]\n    \
             filters: [{{type: RequestRedirect, requestRedirect: {{{declared}}}}}]\n"
        )
    };
    let rules: String = cases.iter().enumerate().map(rule).collect();
    let mesh = Mesh::new(&route("redirect", &rules));
    for (index, (declared, authority, status, expected)) in cases.iter().enumerate() {
        let answer = mesh.get(&format!("{authority}/{index}/lemon?a=b"));
        assert_eq!(
            (answer.status, &*answer.url),
            (*status, *expected),
            "{declared}"
        );
    }
}

#[test]
fn mesh_http_route_redirect_host_and_status() {
    redirects(&[
        (
            "hostname: example.org",
            "echo",
            302,
            "http://example.org/0/lemon?a=b",
        ),
        (
            "hostname: example.org, statusCode: 301",
            "echo",
            301,
            "http://example.org/1/lemon?a=b",
        ),
        (
            "hostname: example.org, statusCode: 303",
            "echo",
            303,
            "http://example.org/2/lemon?a=b",
        ),
        (
            "hostname: example.org, statusCode: 307",
            "echo",
            307,
            "http://example.org/3/lemon?a=b",
        ),
        (
            "hostname: example.org, statusCode: 308",
            "echo",
            308,
            "http://example.org/4/lemon?a=b",
        ),
        (
            "hostname: example.org",
            "echo:8080",
            302,
            "http://example.org:8080/5/lemon?a=b",
        ),
    ]);
}

#[test]
fn mesh_http_route_redirect_path() {
    let prefix = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}";
    let full = "path: {type: ReplaceFullPath, replaceFullPath: /full}";
    let root = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}";
    redirects(&[
        (prefix, "echo", 302, "http://echo/new/lemon?a=b"),
        (full, "echo", 302, "http://echo/full?a=b"),
        (
            &format!("hostname: example.org, {prefix}"),
            "echo",
            302,
            "http://example.org/new/lemon?a=b",
        ),
        (
            &format!("statusCode: 301, {full}"),
            "echo",
            301,
            "http://echo/full?a=b",
        ),
        (root, "echo", 302, "http://echo/lemon?a=b"),
    ]);
}

#[test]
fn mesh_http_route_redirect_port() {
    redirects(&[
        ("port: 8083", "echo", 302, "http://echo:8083/0/lemon?a=b"),
        (
            "port: 8083, hostname: example.org",
            "echo",
            302,
            "http://example.org:8083/1/lemon?a=b",
        ),
        (
            "port: 8083, statusCode: 301",
            "echo",
            301,
            "http://echo:8083/2/lemon?a=b",
        ),
        ("port: 80", "echo", 302, "http://echo/3/lemon?a=b"),
        (
            "port: 8083",
            "echo:8080",
            302,
            "http://echo:8083/4/lemon?a=b",
        ),
    ]);
}

#[test]
fn mesh_http_route_scheme_redirect() {
    redirects(&[
        ("scheme: https", "echo", 302, "https://echo/0/lemon?a=b"),
        (
            "scheme: https, hostname: example.org",
            "echo",
            302,
            "https://example.org/1/lemon?a=b",
        ),
        (
            "scheme: https, statusCode: 301",
            "echo:80",
            301,
            "https://echo/2/lemon?a=b",
        ),
        // The port of the scheme, not the one that was dialled.
        (
            "scheme: https",
            "echo:8080",
            302,
            "https://echo:443/3/lemon?a=b",
        ),
    ]);
}

#[test]
fn mesh_http_route_request_header_modifier() {
    let mesh = Mesh::new(&route(
        "headers",
        "  - matches: [{path: {value: /set}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: X-Header-Set, value: 100%}]}
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /add}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {add: [{name: X-Header-Add, value: more}]}
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /remove}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {remove: [X-Header-Remove]}
    backendRefs: [{name: echo-v1, port: 80}]
",
    ));
    let headers = [
        ("x-header-set", "some"),
        ("x-header-add", "some"),
        ("x-header-remove", "some"),
    ];
    for (path, name, expected) in [
        ("set", "x-header-set", &["100%"][..]),
        ("add", "x-header-add", &["some", "more"]),
        ("remove", "x-header-remove", &[]),
    ] {
        let answer = mesh.ask("mesh", &get(&format!("echo/{path}"), &headers), 1);
        let values: Vec<_> = answer.sent.get_all(name).iter().collect();
        assert_eq!(values, expected, "{path}");
    }
}

#[test]
fn mesh_http_route_simple_same_namespace() {
    let mesh = Mesh::new(&route(
        "simple",
        "  - backendRefs: [{name: echo-v1, port: 80}]\n",
    ));
    assert_eq!(mesh.get("echo/").backend, "echo-v1");
    let conditions = mesh.conditions("HTTPRoute mesh/simple");
    let good = vec![
        ("Accepted", "True", "Accepted"),
        ("ResolvedRefs", "True", "ResolvedRefs"),
    ];
    assert_eq!(conditions, [("Service mesh/echo".to_owned(), good)]);
}

#[test]
fn mesh_http_route_named_rule() {
    let mesh = Mesh::new(&route(
        "named",
        "  - name: named-rule
    matches: [{path: {value: /named}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /unnamed}}]
    backendRefs: [{name: echo-v2, port: 80}]
",
    ));
    assert_eq!(mesh.get("echo/named").backend, "echo-v1");
    assert_eq!(mesh.get("echo/unnamed").backend, "echo-v2");
    let routes = &mesh.0.routes["outbound|80||echo.mesh.svc.cluster.local"];
    let names: Vec<_> = routes.virtual_hosts[0]
        .routes
        .iter()
        .map(|r| &*r.name)
        .collect();
    assert_eq!(names, ["named/rules[1]", "named-rule"]);
}

#[test]
fn mesh_http_route_backend_request_header_modifier() {
    let mesh = Mesh::new(&route(
        "backend-headers",
        "  - backendRefs:
    - name: echo-v1
      port: 80
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: X-Header-Set, value: set}]}
",
    ));
    assert_eq!(mesh.get("echo/").sent["x-header-set"], "set");
}

#[test]
fn mesh_http_route_request_mirror() {
    let mesh = Mesh::new(&route(
        "mirror",
        "  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo-v2, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo, port: 80}, percent: 0}}
    backendRefs: [{name: echo-v1, port: 80}]
",
    ));
    let answer = mesh.get("echo/");
    assert_eq!((&*answer.backend, answer.mirrors), ("echo-v1", 1));
}

#[test]
fn mesh_grpc_route_weight() {
    let mesh = Mesh::new(
        "kind: GRPCRoute
metadata: {name: weighted, namespace: mesh}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 7070}]
  rules:
  - backendRefs: [{name: echo-v1, port: 7070, weight: 9}, {name: echo-v2, port: 7070, weight: 1}]
",
    );
    let shares = mesh.shares("echo:7070/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/Echo");
    assert!((860..940).contains(&shares["echo-v1"]), "{shares:?}");
    assert_eq!(shares["echo-v1"] + shares["echo-v2"], 1_000);
}

#[test]
fn mesh_consumer_route() {
    let mesh = Mesh::new(
        "kind: HTTPRoute
metadata: {name: consumer, namespace: consumer}
spec:
  parentRefs: [{group: '', kind: Service, name: echo-v1, namespace: mesh}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: X-Header-Set, value: set}]}
    backendRefs: [{name: echo-v1, namespace: mesh, port: 80}]
",
    );
    for (namespace, is_set) in [("consumer", true), ("mesh", false), ("other", false)] {
        let answer = mesh.ask(namespace, &get("echo-v1.mesh/", &[]), 1);
        assert_eq!(answer.backend, "echo-v1", "{namespace}");
        assert_eq!(
            answer.headers.contains_key("x-header-set"),
            is_set,
            "{namespace}"
        );
    }
}
