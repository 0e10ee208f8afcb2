//! Instances that registered, among what is declared.

use super::*;
use crate::registry::{Member, Place, Registration, Source, UNNAMED, Weights};

fn member(service: &str, port: u16, meta: &[(&str, &str)]) -> Members {
    let registration = Registration {
        namespace: "default".into(),
        service: service.into(),
        id: "a".into(),
        address: [127, 0, 0, 1].into(),
        ports: [(UNNAMED.to_owned(), port)].into(),
        tags: vec!["v1".into()],
        meta: meta
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        weights: Weights::default(),
        locality: Place {
            zone: "a".into(),
            ..Place::default()
        },
        enable_tag_override: false,
        checks: Vec::new(),
        lease: None,
        source: Source::Http,
    };
    let member = Member {
        registration: registration.into(),
        health: HealthStatus::Healthy,
        weight: 3,
    };
    [("a".to_owned(), Arc::new(member))].into()
}

fn with(text: &str, members: &Members) -> Compiled {
    let loaded = load_text("t.yaml", text);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    compile_with(&loaded.objects, members, &CompileOptions::default()).0
}

const OWN: &str = "outbound|80||billing.default.svc.cluster.local";

fn names_of(compiled: &Compiled, cluster: &str) -> Vec<SanMatcher> {
    let tls = compiled.clusters[cluster].tls.clone();
    tls.expect("mTLS").subject_alt_names
}

const STRICT: &str = "
kind: PeerAuthentication
metadata: {name: a}
spec: {mtls: {mode: STRICT}}
";

#[test]
fn a_service_that_nobody_declared_has_the_names_that_consul_gives_it() {
    let compiled = with("", &member("billing", 5000, &[]));
    for name in [
        "billing",
        "billing.default",
        "billing.service.consul",
        "billing:80",
    ] {
        assert!(
            compiled.resolve_listener(name, "default").is_some(),
            "{name}"
        );
    }
    let endpoints = &compiled.endpoints[OWN].localities[0];
    assert_eq!(endpoints.locality.zone, "a");
    assert_eq!(endpoints.endpoints[0].address.port(), 5000);
    assert_eq!(endpoints.endpoints[0].weight, 3);
}

#[test]
fn meta_and_tags_are_labels_of_subsets() {
    let text = "
kind: DestinationRule
metadata: {name: billing}
spec:
  host: billing
  subsets: [{name: one, labels: {tag/v1: 'true', app: x}}, {name: none, labels: {app: y}}]
";
    let compiled = with(text, &member("billing", 5000, &[("app", "x")]));
    let of = |subset| {
        compiled.endpoints[&*OWN.replace("||", &format!("|{subset}|"))]
            .localities
            .len()
    };
    assert_eq!((of("one"), of("none")), (1, 0));
}

#[test]
fn an_instance_does_not_say_who_a_declared_service_is() {
    let meta = [("service-account", "evil")];
    let undeclared = with(STRICT, &member("billing", 1, &meta));
    let evil = SanMatcher::exact("spiffe://cluster.local/ns/default/sa/evil");
    assert_eq!(names_of(&undeclared, OWN), [evil]);
    let declared = with(
        &format!("{STRICT}---{GREETER}"),
        &member("greeter", 1, &meta),
    );
    let greeter = SanMatcher::exact("spiffe://cluster.local/ns/default/sa/greeter");
    assert_eq!(
        names_of(
            &declared,
            "outbound|8080||greeter.default.svc.cluster.local"
        ),
        [greeter]
    );
}

#[test]
fn an_instance_is_not_judged_in_the_place_of_who_is_at_its_address() {
    let text = format!(
        "{STRICT}---
kind: PeerAuthentication
metadata: {{name: open}}
spec: {{selector: {{matchLabels: {{app: open}}}}, mtls: {{mode: DISABLE}}}}
"
    );
    let address = ([127, 0, 0, 1], 5000).into();
    let (nothing, nobody) = (BTreeMap::new(), Members::new());
    let judged = |members| {
        let compiled = with(&text, members);
        let listener = compiled.inbound_listener("a", address, "default", &nothing);
        (compiled, format!("{listener:?}"))
    };
    let (_, before) = judged(&nobody);
    let (compiled, after) = judged(&member("billing", 5000, &[("app", "open")]));
    assert_eq!(before, after);
    // Nor does its label make clients speak plaintext.
    assert!(compiled.clusters[OWN].tls.is_some());
}
