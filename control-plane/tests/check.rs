//! What an operator is told about a folder, and what the mesh does with what cannot be read.

use std::{collections::BTreeMap, fs, net::SocketAddr};

use control_plane::{
    check::check,
    class::Classes,
    compile::{CompileOptions, Compiled, compile},
    source::load_text,
};
use mesh_core::config::{
    HeaderPredicate, InboundListener, LbPolicy, ListenerKind, RbacAction, RouteAction,
    StringMatcher, TransportMatch,
};

const GREETER: &str = "
kind: ServiceEntry
metadata: {name: greeter}
spec:
  hosts: [greeter.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC}, {number: 81, name: http, protocol: HTTP}]
  endpoints:
  - {address: 127.0.0.1, ports: {grpc: 1, http: 2}, labels: {version: v1}}
";
const CLUSTER: &str = "outbound|80||greeter.default.svc.cluster.local";
const SUBSET: &str = "outbound|80|v1|greeter.default.svc.cluster.local";

/// The greeter and another document, and the findings about both.
fn compile_with(document: &str) -> (Compiled, Vec<String>) {
    let loaded = load_text("t.yaml", &format!("{GREETER}{document}"));
    let (compiled, findings) = compile(&loaded.objects, &CompileOptions::default());
    let findings = loaded.diagnostics.iter().chain(&findings);
    (compiled, findings.map(ToString::to_string).collect())
}

fn inbound(compiled: &Compiled) -> InboundListener {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    match compiled
        .inbound_listener("l", address, "elsewhere", &BTreeMap::new())
        .kind
    {
        ListenerKind::Inbound(inbound) => inbound,
        ListenerKind::Api(_) => panic!("not a server's listener"),
    }
}

#[test]
fn a_folder_is_checked_once_with_the_place_of_each_mistake() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), GREETER).unwrap();
    fs::create_dir(folder.path().join("more")).unwrap();
    let rule = "kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy: {connectionPool: {tcp: {connectTimeout: soon}}}
";
    fs::write(folder.path().join("more/b.yml"), rule).unwrap();
    let findings = check(folder.path(), &CompileOptions::default(), &Classes::new()).unwrap();
    // Once, although there are two ports.
    let [finding] = &findings[..] else {
        panic!("{findings:?}")
    };
    assert_eq!((finding.code, finding.line), ("MESH0105", 8));
    assert_eq!(finding.object, "DestinationRule default/greeter");
    let field = "spec.subsets[0].trafficPolicy.connectionPool.tcp.connectTimeout";
    assert_eq!(finding.field, field);
    assert!(finding.file.ends_with("b.yml"));
}

#[test]
fn weights_and_headers_become_routes() {
    let (compiled, findings) = compile_with(
        "---
kind: VirtualService
metadata: {name: greeter}
spec:
  hosts: [greeter]
  http:
  - match: [{headers: {X-Canary: {exact: 'yes'}}}]
    route: [{destination: {host: greeter, port: {number: 81}}}]
    retries: {attempts: 0}
  - route:
    - {destination: {host: greeter}, weight: 90}
    - {destination: {host: greeter, port: {number: 81}}, weight: 10}
  - route:
    - {destination: {host: greeter}, weight: 4294967295}
    - {destination: {host: greeter}, weight: 1}
",
    );
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].contains("spec.http[2].route"), "{findings:?}");
    let routes = &compiled.routes[CLUSTER].virtual_hosts[0].routes;
    let canary = &routes[0].matcher.headers[0];
    assert_eq!(canary.name, "x-canary");
    let yes = HeaderPredicate::String(StringMatcher::exact("yes"));
    assert_eq!(canary.predicate, yes);
    let held: Vec<_> = routes
        .iter()
        .map(|route| match &route.action {
            RouteAction::Forward(forward) => {
                let weights = forward.clusters.iter().map(|c| c.weight).collect();
                (weights, forward.retry.as_ref().map(|r| r.num_retries))
            }
            _ => (Vec::new(), None),
        })
        .collect();
    let expected = [(vec![1], None), (vec![90, 10], Some(2)), (Vec::new(), None)];
    assert_eq!(held, expected);
}

#[test]
fn a_subset_inherits_what_it_does_not_say() {
    let (compiled, findings) = compile_with(
        "---
kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
",
    );
    assert_eq!(findings, [""; 0]);
    for name in [CLUSTER, SUBSET] {
        assert!(compiled.clusters[name].tls.is_some(), "{name}");
    }
    assert_eq!(compiled.clusters[SUBSET].lb_policy, LbPolicy::Random);
    assert_ne!(compiled.clusters[CLUSTER].lb_policy, LbPolicy::Random);
}

#[test]
fn security_that_cannot_be_read_closes_its_namespace() {
    // Each would have been weaker, or nothing at all, had it been taken for an empty object.
    let authentication = "kind: PeerAuthentication\nmetadata: {name: a}\n";
    let good =
        "---\nkind: PeerAuthentication\nmetadata: {name: z}\nspec: {mtls: {mode: DISABLE}}\n";
    for document in [
        format!("---\n{authentication}sepc: {{mtls: {{mode: STRICT}}}}\n{good}"),
        format!("---\n{authentication}spec: {{mtls: {{moed: STRICT}}}}\n{good}"),
        format!("---\n{authentication}spec: {{mtls: [STRICT\n{good}"),
        "--- {kind: PeerAuthentication, metadata: {name: a}, spec: {mtls: {mode: STRICT}}}\n"
            .to_owned(),
    ] {
        let (compiled, _) = compile_with(&document);
        let chains = inbound(&compiled).filter_chains;
        assert_eq!(chains.len(), 1, "{document}");
        assert_eq!(chains[0].transport, TransportMatch::Tls, "{document}");
        assert!(compiled.clusters[CLUSTER].tls.is_some(), "{document}");
    }
    for spec in ["spec: {}", "spec: {rulez: []}", "spec: {rules: [{}"] {
        let head = "---\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: default}\n";
        let (compiled, _) = compile_with(&format!("{head}{spec}\n"));
        for chain in inbound(&compiled).filter_chains {
            let rbac = chain.filters[0].rbac().expect("authorisation");
            // An empty policy allows nothing, one that cannot be read refuses everything.
            let is_empty = spec == "spec: {}";
            assert_eq!(rbac.action == RbacAction::Allow, is_empty, "{spec}");
            assert_eq!(rbac.policies.is_empty(), is_empty, "{spec}");
        }
    }
}
