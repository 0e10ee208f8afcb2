//! What cannot be read opens nothing, and what it does not concern stays as it is.

use crate::{
    diagnostic::{FAILS_CLOSED, UNREADABLE},
    model::Spec,
    source::{Loaded, load_text},
};

fn closed(loaded: &Loaded) -> Vec<String> {
    let objects = loaded.objects.values();
    let closed = objects.filter(|object| matches!(object.spec, Spec::Unreadable(_)));
    closed.map(|object| object.key.to_string()).collect()
}

#[test]
fn a_file_that_is_not_yaml_names_itself_and_closes_what_it_seems_to_close() {
    for (text, expected) in [
        (
            "kind: PeerAuthentication\nmetadata: {name: a, namespace: b\n",
            "PeerAuthentication b/a",
        ),
        // Its kind is misspelt, or is not there at all.
        (
            "kind: AuthorisationPolicy\nmetadata: {name: a\n",
            "AuthorizationPolicy default/a",
        ),
        (
            "kind AuthorizationPolicy\nmetadata: {name: a}\n  spec: [\n",
            "AuthorizationPolicy default/a",
        ),
    ] {
        let loaded = load_text("x/policy.yaml", text);
        assert_eq!(closed(&loaded), [expected], "{text}");
        let codes: Vec<_> = loaded.diagnostics.iter().map(|found| found.code).collect();
        assert_eq!(codes, [UNREADABLE, FAILS_CLOSED], "{text}");
        assert!(
            { &loaded.diagnostics }
                .iter()
                .all(|found| found.file == "x/policy.yaml")
        );
    }
}

#[test]
fn a_kind_that_is_misspelt_closes_what_was_meant() {
    let text = "kind: PeerAuthentcation\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n";
    assert_eq!(
        closed(&load_text("a.yaml", text)),
        ["PeerAuthentication default/a"]
    );
}

#[test]
fn what_is_no_security_object_closes_nothing_when_it_cannot_be_read() {
    for text in [
        "kind: VirtualService\nmetadata: {name: a\n",
        "kind: Service\nmetadata: {name: a\n# not an AuthorizationPolicy\n",
        "# kind: PeerAuthentication\nhosts: [a\n",
        "kind: Gateway\nmetadata: {name: a}\nspec: {servers: []}\n",
    ] {
        let loaded = load_text("a.yaml", text);
        assert!(loaded.objects.is_empty(), "{text}");
        assert_eq!(loaded.diagnostics.len(), 1, "{text}: it is said");
    }
}

#[test]
fn a_destination_rule_that_is_not_yaml_leaves_nobody_in_plaintext() {
    let rule = |tls: &str| {
        format!(
            "kind: DestinationRule\nmetadata: {{name: a}}\nspec:\n  host: greeter\n  {tls}: [\n"
        )
    };
    let host = |loaded: &Loaded| {
        let object = loaded.objects.values().next()?;
        match &object.spec {
            Spec::DestinationRule(rule) => {
                let tls = rule.traffic_policy.as_ref()?.tls.as_ref()?;
                Some((rule.host.clone(), tls.mode.clone()))
            }
            _ => None,
        }
    };
    let mutual = Some(("greeter".to_owned(), "ISTIO_MUTUAL".to_owned()));
    for tls in ["trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n  x", "tls"] {
        let loaded = load_text("rule.yaml", &rule(tls));
        assert_eq!(host(&loaded), mutual, "{tls}");
        let last = loaded.diagnostics.last().unwrap();
        assert!(last.message.contains("mTLS"), "{last}");
        assert_eq!(last.file, "rule.yaml");
    }
    for tls in ["trafficPolicy: {tls: {mode: DISABLE}}\n  x", "subsets"] {
        assert!(
            load_text("rule.yaml", &rule(tls)).objects.is_empty(),
            "{tls}"
        );
    }
}
