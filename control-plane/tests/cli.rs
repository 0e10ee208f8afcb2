//! The binary as operators run it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
};

use serde_json::{Value, json};
use x509_parser::pem::parse_x509_pem;

const RULE: &str = "kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a.example.com]
  http:
  - route:
    - destination: {host: a.example.com}
      weigth: 1
";
const ENTRY: &str = "kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
---
kind: PeerAuthentication
metadata: {name: a}
spec: {mtls: {mode: PERMISSIVE}}
";

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
    command.args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_points_at_each_mistake_and_fails_on_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    fs::write(folder.path().join("entry.yaml"), ENTRY).unwrap();
    let clean = run(&["check", path]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean.stdout));
    assert_eq!(text(&clean.stdout), "0 errors, 0 warnings\n");
    let limited = run(&["check", path, "--clients", "rust,grpc-go"]);
    assert_eq!(limited.status.code(), Some(0), "warnings alone do not fail");
    assert!(text(&limited.stdout).contains("clients of grpc-go do not honour this"));

    let file = folder.path().join("rule.yaml");
    fs::write(&file, RULE).unwrap();
    let broken = run(&["check", path]);
    assert_eq!(broken.status.code(), Some(1));
    let expected = format!(
        "error[MESH0102]: unknown field \"weigth\"\n   --> {}:8\n    8 |       weigth: 1\n\
         object: VirtualService default/a\n field: spec.http[0].route[0].weigth\n  \
         help: did you mean weight?\n\n1 errors, 0 warnings\n",
        file.display()
    );
    assert_eq!(text(&broken.stdout), expected);

    let machine = run(&["check", path, "-o", "json"]);
    assert_eq!(machine.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&machine.stdout).unwrap();
    assert_eq!(found[0]["code"], "MESH0102");
    assert_eq!(found[0]["line"], 8);
    assert_eq!(found[0]["severity"], "error");
}

#[test]
fn the_version_of_a_directory_is_that_of_its_objects() {
    let version = |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        text(&run(&["version", folder.path().to_str().unwrap()]).stdout)
    };
    let (first, second) = ENTRY.split_once("---\n").unwrap();
    let whole = version(&[("a.yaml", ENTRY)]);
    assert_eq!(whole.trim().len(), 16);
    assert_eq!(whole, version(&[("z.yaml", first), ("b.yaml", second)]));
    assert_ne!(whole, version(&[("a.yaml", first)]));
}

#[test]
fn bootstrap_always_has_a_provider_and_refuses_bad_names() {
    let made = run(&["bootstrap", "--service-account", "web"]);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let provider = &made["certificate_providers"]["default"];
    assert_eq!(provider, &json!({"plugin_name": "mesh_csr", "config": {}}));
    assert_eq!(made["node"]["id"], "web~ns/default/sa/web");

    let grpc = [
        "bootstrap",
        "--service-account",
        "web",
        "--cert-dir",
        "/certs",
    ];
    let made: Value = serde_json::from_slice(&run(&grpc).stdout).unwrap();
    let provider = &made["certificate_providers"]["default"];
    assert_eq!(provider["plugin_name"], "file_watcher");
    assert_eq!(provider["config"]["private_key_file"], "/certs/key.pem");
    assert_eq!(made["xds_servers"][0]["server_uri"], "127.0.0.1:18000");

    for wrong in [
        &["--service-account", "Web"][..],
        &["--service-account", "a/sa/b"],
        &["--service-account", "web", "--namespace", ""],
        &["--service-account", "web", "--xds", "nowhere"],
    ] {
        let refused = run(&[&["bootstrap"], wrong].concat());
        assert_ne!(refused.status.code(), Some(0), "{wrong:?}");
        assert_eq!(text(&refused.stdout), "", "{wrong:?}");
    }
}

#[test]
fn lives_are_written_with_units() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_str().unwrap();
    let create = |life: &str| {
        run(&[
            "token",
            "create",
            "--service-account",
            "a",
            "--data-dir",
            path,
            "--ttl",
            life,
        ])
    };
    assert_eq!(create("10m").status.code(), Some(0));
    for wrong in ["600", "0s", "soon"] {
        let refused = create(wrong);
        assert_ne!(refused.status.code(), Some(0), "{wrong}");
        assert!(text(&refused.stderr).contains("--ttl"), "{wrong}");
    }
}

fn serial(path: &Path) -> String {
    let chain = fs::read(path).unwrap();
    let (_, pem) = parse_x509_pem(&chain).unwrap();
    pem.parse_x509().unwrap().raw_serial_as_string()
}

#[test]
fn certificates_that_are_issued_at_once_do_not_mix() {
    let data = tempfile::tempdir().unwrap();
    let out = data.path().join("out");
    let issue = || {
        let (data, out) = (data.path().to_str().unwrap(), out.to_str().unwrap());
        let arguments = [
            "cert",
            "issue",
            "--service-account",
            "a",
            "--data-dir",
            data,
        ];
        run(&[&arguments[..], &["--out", out, "--ttl", "1h"]].concat())
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(issue().status.code(), Some(0)));
        }
    });
    assert!(!serial(&out.join("cert-chain.pem")).is_empty());
    let key = fs::read_to_string(out.join("key.pem")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    let chain = fs::read(out.join("cert-chain.pem")).unwrap();
    let (_, pem) = parse_x509_pem(&chain).unwrap();
    let public = rcgen::PublicKeyData::subject_public_key_info(&key);
    assert_eq!(pem.parse_x509().unwrap().public_key().raw, public);
}

#[test]
fn nothing_is_coloured_in_a_pipe() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_str().unwrap();
    let logged = run(&[
        "cert",
        "issue",
        "--service-account",
        "a",
        "--data-dir",
        path,
        "--out",
        path,
    ]);
    let logs = text(&logged.stderr);
    assert!(
        logs.contains("certificate issued") && !logs.contains('\x1b'),
        "{logs}"
    );
}

#[test]
fn explain_names_what_was_tried_and_where_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let rule = "kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a.example.com]
  http:
  - match: [{headers: {canary: {exact: 'true'}}}]
    route: [{destination: {host: a.example.com}}]
    timeout: 2s
  - match: [{uri: {prefix: /api}}]
    rewrite: {uri: /}
    route: [{destination: {host: a.example.com}}]
";
    fs::write(folder.path().join("entry.yaml"), ENTRY).unwrap();
    fs::write(folder.path().join("rule.yaml"), rule).unwrap();
    let explain = |arguments: &[&str]| {
        let output = run(&[&["explain", "--config", path], arguments].concat());
        let errors = text(&output.stderr);
        (output.status.code(), text(&output.stdout), errors)
    };
    let (code, said, errors) = explain(&["GET", "http://a.example.com/api/x"]);
    assert_eq!(code, Some(0), "{said}{errors}");
    for expected in [
        "routes outbound|80||a.example.com",
        "virtual host a.example.com:80: taken by \"a.example.com\"",
        "route a/http[0]: not taken: header canary is missing",
        "route a/http[1]: taken (VirtualService default/a spec.http[1], ",
        "rule.yaml:9)",
        "cluster outbound|80||a.example.com: 1 of 1, 0 endpoints",
        "path: what matched becomes /",
    ] {
        assert!(said.contains(expected), "{expected} in\n{said}");
    }
    let (code, said, _) = explain(&["GET", "http://a.example.com/", "-H", "canary: true"]);
    assert_eq!(code, Some(0));
    assert!(
        said.contains("http[0]: taken") && said.contains("timeout: 2s"),
        "{said}"
    );
    let (code, said, _) = explain(&["GET", "http://a.example.com/"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("the path does not match: prefix /api"),
        "{said}"
    );
    assert!(said.contains("no route takes it"), "{said}");
    let (code, said, _) = explain(&["GET", "http://nobody/"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no service is called \"nobody\""), "{said}");
    let (code, _, errors) = explain(&["GET", "http://a/", "-H", "canary"]);
    assert!(
        code == Some(2) && errors.contains("write NAME: VALUE"),
        "{errors}"
    );
}

/// A service with most of what can be said about the requests to it.
const SHOP: &str = "kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 10.0.0.1, labels: {app: shop, version: v1}}
  - {address: 10.0.0.2, labels: {app: shop, version: v2}}
---
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - name: old
    match: [{uri: {prefix: /old}}]
    redirect: {uri: /new, authority: elsewhere, redirectCode: 308}
  - name: closed
    match: [{uri: {prefix: /closed}}]
    directResponse: {status: 410, body: {string: gone}}
  - name: tested
    match: [{uri: {prefix: /tested}}]
    fault: {delay: {fixedDelay: 5s, percentage: {value: 10}}, abort: {httpStatus: 503}}
    mirror: {host: shop, subset: v2}
    mirrorPercentage: {value: 1}
    route: [{destination: {host: shop, subset: v1}}]
  - name: main
    headers: {request: {set: {x-a: a}}, response: {remove: [x-b]}}
    route:
    - {destination: {host: shop, subset: v1}, weight: 90}
    - {destination: {host: shop, subset: v2}, weight: 10}
---
apiVersion: mesh/v1
kind: RateLimit
metadata: {name: clients}
spec: {host: shop, limits: [{requests: 7}, {requests: 1, interval: 1m, per: {header: x-user}}]}
---
apiVersion: mesh/v1
kind: FilterPolicy
metadata: {name: clients}
spec: {host: shop, session: {header: x-session}, buffer: {maxRequestBytes: 99}}
---
apiVersion: mesh/v1
kind: HedgePolicy
metadata: {name: shop}
spec: {host: shop, delay: 20ms}
---
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  selector: {matchLabels: {version: v2}}
  action: DENY
  rules: [{to: [{operation: {paths: [/admin]}}]}]
---
kind: RequestAuthentication
metadata: {name: tokens}
spec: {jwtRules: [{issuer: 'https://a.example', jwks: '{\"keys\":[]}'}]}
---
apiVersion: mesh/v1
kind: RateLimit
metadata: {name: servers}
spec: {selector: {matchLabels: {app: shop}}, limits: [{requests: 5}]}
";

#[test]
fn explain_tells_what_filters_and_servers_do_and_which_objects_say_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("shop.yaml"), SHOP).unwrap();
    let path = folder.path().to_str().unwrap();
    let explain = |url: &str| {
        let output = run(&["explain", "--config", path, "GET", url]);
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{said}{errors}");
        said
    };
    for (url, lines) in [
        (
            "http://shop/old/x",
            &["    answers: 308, a redirect to host elsewhere, path /new"][..],
        ),
        ("http://shop/closed", &["    answers: 410 \"gone\""]),
        (
            "http://shop/tested",
            &[
                "    filter envoy.filters.http.fault: delays by 5s for 10 %, answers 503",
                "    copy: 1 % to cluster outbound|80|v2|shop.default.svc.cluster.local",
            ],
        ),
        (
            "http://shop/",
            &[
                "    headers of the request: sets x-a: a",
                "    headers of the response: removes x-b",
                "    hedging: another attempt after 20ms, at most 2 at a time",
                "    filter envoy.filters.http.stateful_session: header x-session names the \
                 endpoint; without it another one is taken",
                "    filter envoy.filters.http.buffer: waits for the request's body; one of more \
                 than 99 bytes gets 413",
                "    filter envoy.filters.http.local_ratelimit: 7 requests in 1s, 7 at once; 1 \
                 requests in 60s, 1 at once for limit default/clients/1, each header; over it 429",
                "    cluster outbound|80|v1|shop.default.svc.cluster.local: 90 of 100, 1 endpoint",
                "    cluster outbound|80|v2|shop.default.svc.cluster.local: 10 of 100, 1 endpoint",
                "      retries in flight: at most 20 % of the requests, and 3 in any case",
                "      1 server takes mTLS alone",
                "        filter envoy.filters.http.jwt_authn: believes tokens of \
                 https://a.example; others get 401, requests without one pass",
                "        filter envoy.filters.http.rbac.0: what default/no-admin[0] matches is \
                 refused",
                "        filter envoy.filters.http.local_ratelimit: 5 requests in 1s, 5 at once; \
                 over it 429",
            ],
        ),
    ] {
        let said = explain(url);
        for line in lines {
            assert!(
                said.lines().any(|found| found == *line),
                "{line} in\n{said}"
            );
        }
    }
    let said = explain("http://shop/");
    for (object, line) in [
        ("      from ServiceEntry default/shop", 1),
        ("      from RateLimit default/clients", 41),
        ("      from FilterPolicy default/clients", 46),
        ("        from PeerAuthentication default/strict", 56),
        ("        from RequestAuthentication default/tokens", 67),
        ("        from AuthorizationPolicy default/no-admin", 60),
        ("        from RateLimit default/servers", 71),
    ] {
        let is_it = |found: &&str| {
            found.starts_with(&format!("{object}, ")) && found.ends_with(&format!(":{line}"))
        };
        assert!(
            said.lines().any(|found| is_it(&found)),
            "{object}:{line} in\n{said}"
        );
    }
    let denied = said.matches("default/no-admin[0]").count();
    assert_eq!(denied, 1, "it is for v2 alone: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_are_changed_from_the_command_line_with_progress() {
    let dir = tempfile::tempdir().unwrap();
    let (config, data) = (dir.path().join("config"), dir.path().join("data"));
    fs::create_dir(&config).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let running = control_plane::ControlPlane::builder(&config, &data)
        .xds_listen(any)
        .http_listen(any)
        .start()
        .await
        .unwrap();
    let root = || {
        fs::read_dir(data.join("ca"))
            .unwrap()
            .map(|f| f.unwrap().file_name())
    };
    let before: Vec<_> = root().collect();
    let (http, data_dir) = (running.http_addr().to_string(), data.display().to_string());
    let ca = move |what: &'static str, data_dir: String| {
        let http = http.clone();
        tokio::task::spawn_blocking(move || {
            run(&["ca", what, "--http", &http, "--data-dir", &data_dir])
        })
    };
    let idle = ca("status", data_dir.clone()).await.unwrap();
    assert_eq!(text(&idle.stdout), "no change of roots is going on\n");
    let nothing = ca("abort", data_dir.clone()).await.unwrap();
    assert!(text(&nothing.stderr).contains("no change of roots is going on"));
    let elsewhere = ca("rotate", dir.path().display().to_string())
        .await
        .unwrap();
    assert!(
        text(&elsewhere.stderr).contains("admin.key in"),
        "no key, no change"
    );

    let rotated = ca("rotate", data_dir).await.unwrap();
    let progress = text(&rotated.stdout);
    assert!(rotated.status.success(), "{}", text(&rotated.stderr));
    for step in ["1/3", "2/3", "3/3", "no change of roots is going on"] {
        assert!(progress.contains(step), "{progress}");
    }
    assert_ne!(before, root().collect::<Vec<_>>());
    running.shutdown().await;
}

const ROUTES: &str = "kind: Service
metadata: {name: echo, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
kind: DestinationRule
metadata: {name: echo, namespace: shop}
spec: {host: echo, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
---
kind: HTTPRoute
metadata: {name: bad, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: echo}]
  rules: [{backendRefs: [{name: echo, port: 80, weight: 9}, {name: gone, port: 80}]}]
---
kind: HTTPRoute
metadata: {name: good, namespace: test}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, namespace: shop}]
  rules:
  - matches: [{path: {value: /t}}]
    timeouts: {request: 2s}
    backendRefs: [{name: echo, namespace: shop, port: 80}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_explains_what_a_directory_does() {
    let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("routes.yaml"), ROUTES).unwrap();
    let any = ([127, 0, 0, 1], 0).into();
    let running = control_plane::ControlPlane::builder(folder.path(), data.path())
        .xds_listen(any)
        .http_listen(any)
        .start()
        .await
        .unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let server = format!("http://{}", running.http_addr());
    let ask = async |arguments: &[&str], code: i32| {
        let mut answers = Vec::new();
        for of in [["--config", &path], ["--server", &server]] {
            let all: Vec<_> = arguments
                .iter()
                .chain(&of)
                .map(ToString::to_string)
                .collect();
            let output = tokio::task::spawn_blocking(move || {
                run(&all.iter().map(String::as_str).collect::<Vec<_>>())
            });
            let output = output.await.unwrap();
            let errors = text(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{arguments:?} {of:?}: {errors}"
            );
            answers.push(text(&output.stdout));
        }
        assert_eq!(answers[0], answers[1], "{arguments:?}");
        answers.swap_remove(0)
    };
    let url = "http://echo.shop/t?a=b";
    let said = ask(
        &[
            "explain",
            "GET",
            url,
            "-H",
            "x: a, b",
            "--from",
            "test/app=web",
        ],
        0,
    )
    .await;
    for expected in [
        "route good/rules[0]: taken (HTTPRoute test/good spec.rules[0], ",
        "routes.yaml:20)",
        "timeout: 2s",
        "balancing: random",
        "from DestinationRule shop/echo, ",
        "routes.yaml:5",
        "route bad/rules[0]: not tried: what is for fewer clients goes before it",
    ] {
        assert!(said.contains(expected), "{expected} in\n{said}");
    }
    let said = ask(&["explain", "GET", url, "-o", "json"], 0).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["tried"][0]["why"], "taken by 10 % of such requests");
    assert_eq!(
        said["left_out"][0]["why"],
        "not tried: it is for clients of namespace test"
    );
    assert_eq!(said["left_out"][0]["origin"]["line"], 20);
    let said = ask(
        &["explain", "GET", "http://echo.shop/x", "--from", "test"],
        1,
    )
    .await;
    assert!(said.contains("no route takes it"), "{said}");

    let said = ask(&["status"], 1).await;
    for expected in [
        "HTTPRoute shop/bad (",
        "    ResolvedRefs False, BackendNotFound: there is no Service shop/gone",
        "  Service shop/echo\n    Accepted True, Accepted",
    ] {
        assert!(said.contains(expected), "{expected} in\n{said}");
    }
    let said = ask(&["status", "HTTPRoute test/good", "-o", "json"], 0).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said[0]["parents"][0]["conditions"][1]["type"],
        "ResolvedRefs"
    );
    running.shutdown().await;
    let both = run(&["status", "--config", "a", "--server", "http://b"]);
    assert_eq!(both.status.code(), Some(2), "one of the two");
}

/// A control plane that speaks TLS, its directory, and a join token of `default/web` in a file.
async fn secured() -> (tempfile::TempDir, control_plane::Running) {
    let dir = tempfile::tempdir().unwrap();
    let (config, data) = (dir.path().join("config"), dir.path().join("data"));
    fs::create_dir(&config).unwrap();
    let any = ([127, 0, 0, 1], 0).into();
    let running = control_plane::ControlPlane::builder(&config, &data)
        .xds_listen(any)
        .http_listen(any)
        .tls(control_plane::Tls::Always)
        .start()
        .await
        .unwrap();
    let whose = control_plane::ca::Identity::new("default", "web").unwrap();
    let life = std::time::Duration::from_secs(600);
    let token =
        control_plane::ca::create_token_for(&data, &whose, life, control_plane::ca::TokenUse::Once);
    fs::write(dir.path().join("token"), token.unwrap()).unwrap();
    (dir, running)
}

async fn run_beside(arguments: Vec<String>) -> Output {
    let run = move || run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_needs_a_token_once_and_its_certificate_from_then_on() {
    let (dir, running) = secured().await;
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let agent = async |server: String, more: &[&str]| {
        let mut arguments = ["agent", "--once", "--xds"].map(str::to_owned).to_vec();
        arguments.extend([server, "--out".into(), at("out")]);
        arguments.extend(["--ca".into(), at("data/ca/trust-bundle.pem")]);
        arguments.extend(more.iter().map(ToString::to_string));
        run_beside(arguments).await
    };
    let server = format!("https://{}", running.xds_addr());
    let nobody = agent(server.clone(), &[]).await;
    assert_eq!(nobody.status.code(), Some(1));
    let errors = text(&nobody.stderr);
    assert!(
        errors.contains("Unauthenticated: a certificate"),
        "{errors}"
    );
    assert!(!dir.path().join("out/key.pem").exists());

    let (token, bootstrap) = (at("token"), at("bootstrap.json"));
    let first = agent(
        server.clone(),
        &["--token-file", &token, "--bootstrap", &bootstrap],
    )
    .await;
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(
        text(&first.stdout),
        "RESULT   LEFT      NEXT      IDENTITY OR REASON\n\
         written  23h59m    -         spiffe://cluster.local/ns/default/sa/web\n"
    );
    let made: Value = serde_json::from_slice(&fs::read(&bootstrap).unwrap()).unwrap();
    assert_eq!(made["node"]["id"], "web~ns/default/sa/web");
    assert_eq!(made["xds_servers"][0]["channel_creds"][0]["type"], "tls");
    let files = &made["certificate_providers"]["default"]["config"];
    assert_eq!(files["refresh_interval"], "600s");
    for name in [
        "certificate_file",
        "private_key_file",
        "ca_certificate_file",
    ] {
        assert!(Path::new(files[name].as_str().unwrap()).exists(), "{name}");
    }

    // The token is used up.
    let chain = dir.path().join("out/cert-chain.pem");
    let before = serial(&chain);
    let second = agent(server.clone(), &["--token-file", &token]).await;
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert_ne!(serial(&chain), before);

    // What went wrong is said, and what was there stays.
    let before = serial(&chain);
    running.shutdown().await;
    let alone = agent(server, &[]).await;
    assert_eq!(alone.status.code(), Some(1));
    let errors = text(&alone.stderr);
    assert!(errors.contains("127.0.0.1:"), "{errors}");
    assert_eq!(serial(&chain), before);
    let clear = agent("http://10.0.0.1:1".into(), &["--token-file", &token]).await;
    let errors = text(&clear.stderr);
    assert!(errors.contains("in the clear"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_endpoint_is_asked_over_tls_and_only_with_roots_that_vouch_for_it() {
    let (dir, running) = secured().await;
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let status = async |server: String, more: &[&str]| {
        let mut arguments = ["ca", "status", "--data-dir"].map(str::to_owned).to_vec();
        arguments.extend([at("data"), "--http".into(), server]);
        arguments.extend(more.iter().map(ToString::to_string));
        run_beside(arguments).await
    };
    let server = format!("https://{}", running.http_addr());
    let said = status(server.clone(), &[]).await;
    assert_eq!(
        text(&said.stdout),
        "no change of roots is going on\n",
        "{}",
        text(&said.stderr)
    );
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(dir.path().join("other.pem"), other.cert.pem()).unwrap();
    let refused = status(server, &["--ca", &at("other.pem")]).await;
    assert_eq!(refused.status.code(), Some(1));
    let errors = text(&refused.stderr);
    assert!(errors.contains("UnknownIssuer"), "{errors}");
    let clear = status("http://10.0.0.1:1".to_owned(), &[]).await;
    let errors = text(&clear.stderr);
    assert!(
        errors.contains("admin key would travel in the clear"),
        "{errors}"
    );
    running.shutdown().await;
}
