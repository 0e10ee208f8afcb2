//! What a HedgePolicy becomes.

use std::time::Duration;

use mesh_core::config::{HedgeDelay, HedgePolicy, Percentile};

use super::*;

fn hedge(spec: &str) -> (Option<HedgePolicy>, Vec<String>) {
    let policy = "kind: HedgePolicy\napiVersion: mesh/v1\nmetadata: {name: a}\nspec:";
    let (compiled, findings) = compile_text(&format!("{GREETER}---\n{policy} {spec}\n"));
    let config = &compiled.routes[format!("outbound|8080||{FQDN}").as_str()];
    let RouteAction::Forward(forward) = &config.virtual_hosts[0].routes[0].action else {
        panic!("it is sent to its cluster")
    };
    let extras = forward.extras.as_ref();
    (extras.and_then(|extras| extras.hedge), findings)
}

#[test]
fn a_policy_is_that_of_every_route_of_its_service() {
    let millis = Duration::from_millis;
    let (fixed, findings) = hedge("{host: greeter, delay: 20ms}");
    assert!(findings.is_empty(), "{findings:?}");
    let expected = HedgePolicy {
        delay: Some(HedgeDelay::Fixed(millis(20))),
        attempts_max: 2,
        ..HedgePolicy::default()
    };
    assert_eq!(fixed, Some(expected));
    let (percentile, _) = hedge("{host: greeter, percentile: 99.5, minDelay: 5ms, maxAttempts: 3}");
    let expected = HedgePolicy {
        delay: Some(HedgeDelay::Percentile {
            percentile: Percentile::new(99.5).unwrap(),
            min: millis(5),
        }),
        attempts_max: 3,
        ..HedgePolicy::default()
    };
    assert_eq!(percentile, Some(expected));
}

#[test]
fn a_policy_that_cannot_be_meant_is_told_and_has_no_effect() {
    for (spec, expected) in [
        ("{host: greeter}", "asks for nothing"),
        ("{host: other, delay: 1ms}", "spec.host"),
        (
            "{host: greeter, delay: 1ms, percentile: 9}",
            "exclude each other",
        ),
        ("{host: greeter, delay: soon}", "spec.delay"),
        ("{host: greeter, percentile: 100}", "between 0 and 100"),
        (
            "{host: greeter, delay: 1ms, minDelay: 1ms}",
            "spec.minDelay",
        ),
        (
            "{host: greeter, delay: 1ms, maxAttempts: 1}",
            "is not 2 to 5",
        ),
        (
            "{host: greeter, delay: 1ms, maxAttempts: 6}",
            "is not 2 to 5",
        ),
    ] {
        let (hedge, findings) = hedge(spec);
        assert_eq!(hedge, None, "{spec}");
        let [finding] = &findings[..] else {
            panic!("{spec}: {findings:?}")
        };
        assert!(finding.contains(expected), "{finding}");
    }
}
