//! Hosts outside the mesh: how they are found, and what TLS they are spoken to with.

use super::*;

fn entry(spec: &str) -> String {
    format!(
        "kind: ServiceEntry
metadata: {{name: api, namespace: default}}
spec:
  hosts: [api.example]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]
  location: MESH_EXTERNAL
{spec}"
    )
}

fn rule(tls: &str) -> String {
    format!(
        "
---
kind: DestinationRule
metadata: {{name: api, namespace: default}}
spec:
  host: api.example
  trafficPolicy: {{tls: {tls}}}
"
    )
}

const CLUSTER: &str = "outbound|80||api.example";

fn compiled(text: &str) -> (Compiled, Vec<Diagnostic>) {
    let loaded = load_text("t.yaml", text);
    let (compiled, findings) = compile(&loaded.objects, &CompileOptions::default());
    (
        compiled,
        loaded.diagnostics.into_iter().chain(findings).collect(),
    )
}

fn host(name: &str, port: u16) -> DnsHost {
    DnsHost {
        name: name.to_owned(),
        port,
    }
}

#[test]
fn names_are_left_to_the_clients_to_look_up() {
    for (spec, expected) in [
        (
            "  resolution: DNS",
            Discovery::StrictDns(vec![host("api.example", 443)]),
        ),
        (
            "  resolution: DNS
  endpoints:
  - {address: B.example}
  - {address: 10.0.0.1, ports: {http: 8443}}
",
            Discovery::StrictDns(vec![host("10.0.0.1", 8443), host("b.example", 443)]),
        ),
        (
            "  resolution: DNS_ROUND_ROBIN",
            Discovery::LogicalDns(host("api.example", 443)),
        ),
    ] {
        let (compiled, findings) = compiled(&entry(spec));
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!(compiled.clusters[CLUSTER].discovery, expected);
        assert!(
            !compiled.endpoints.contains_key(CLUSTER),
            "nobody asks for them"
        );
    }
}

#[test]
fn names_that_cannot_be_looked_up_are_said() {
    for (text, field) in [
        (
            entry("  resolution: STATIC\n  endpoints: [{address: b.example}]"),
            "spec.endpoints[0].address",
        ),
        (
            entry("  resolution: DNS").replace("[api.example]", "['*.example']"),
            "spec.hosts",
        ),
        (
            entry("  resolution: DNS_ROUND_ROBIN\n  endpoints: [{address: a}, {address: b}]"),
            "spec.endpoints",
        ),
    ] {
        let (_, findings) = compiled(&text);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].field, field);
    }
}

#[test]
fn a_rule_originates_tls_to_a_host_outside() {
    let text = entry("  resolution: DNS") + &rule("{mode: SIMPLE}");
    let (compiled, findings) = compiled(&text);
    assert!(findings.is_empty(), "{findings:?}");
    let expected = UpstreamTls {
        sni: Some("api.example".into()),
        auto_sni_san_validation: true,
        ..UpstreamTls::new(TrustSource::System)
    };
    assert_eq!(compiled.clusters[CLUSTER].tls.as_ref(), Some(&expected));
}

#[test]
fn a_rule_that_cannot_be_used_does_not_fall_back_to_plaintext() {
    for tls in [
        "{mode: SIMPLE, credentialName: a}",
        "{mode: SIMPLE, insecureSkipVerify: true}",
        "{mode: MUTUAL}",
        "{mode: SIMPEL}",
    ] {
        let (compiled, findings) = compiled(&(entry("  resolution: DNS") + &rule(tls)));
        assert!(!findings.is_empty(), "{tls}");
        let used = compiled.clusters[CLUSTER].tls.as_ref().expect(tls);
        assert!(used.roots.is_of_mesh() && used.identity.is_some(), "{tls}");
    }
}

#[test]
fn endpoints_that_take_mtls_have_it_beside_those_that_do_not() {
    let text = "
kind: ServiceEntry
metadata: {name: mixed, namespace: default}
spec:
  hosts: [mixed.default.svc.cluster.local]
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, labels: {security.istio.io/tlsMode: istio}}
  - {address: 10.0.0.2}
";
    let (compiled, findings) = compiled(text);
    assert!(findings.is_empty(), "{findings:?}");
    let name = "outbound|80||mixed.default.svc.cluster.local";
    let cluster = &compiled.clusters[name];
    let endpoints = &compiled.endpoints[name].localities[0].endpoints;
    let is_mtls = endpoints.iter().map(|endpoint| {
        let tls = cluster.tls_of(endpoint.details().socket_labels.as_deref());
        (endpoint.address.to_string(), tls.is_some())
    });
    let expected = [
        ("10.0.0.1:80".to_owned(), true),
        ("10.0.0.2:80".to_owned(), false),
    ];
    assert_eq!(is_mtls.collect::<Vec<_>>(), expected);
    assert!(cluster.tls.is_none(), "what has no label takes plaintext");
}
