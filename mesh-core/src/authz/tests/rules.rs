//! Every principal and permission, with its contrary.

use serde_json::json;

use super::*;
use crate::config::{
    DynamicMetadata, IpRange, MetadataMatcher, PathTemplate, SELECTION_PREFIX, ShadowRules,
    ValueMatcher,
};

fn range(text: &str) -> IpRange {
    text.parse().expect("a range")
}

fn text(pattern: StringPattern) -> StringMatcher {
    StringMatcher::new(pattern).expect("a matcher")
}

/// What alice asks: GET /orders/7 from 192.0.2.7 to 10.0.0.1:8080, with a token.
fn alice(authorizer: &Authorizer) -> Decision<'_> {
    let mut headers = HeaderMap::new();
    headers.insert("x-team", HeaderValue::from_static("blue"));
    let mut metadata = DynamicMetadata::default();
    let claims = json!({"sub": "alice", "groups": ["dev", "ops"], "admin": true, "none": null,
        "address": {"city": "Berlin"}});
    metadata.set("jwt", "payload", claims);
    authorizer.decide(&AuthzRequest {
        principals: &[ALICE.to_owned()],
        authenticated: true,
        method: "GET",
        path: "/orders/7",
        authority: "greeter.default:8080",
        headers: &headers,
        source: [192, 0, 2, 7].into(),
        destination: ([10, 0, 0, 1], 8080).into(),
        server_name: "greeter.default",
        metadata: Some(&metadata),
        details: Default::default(),
    })
}

fn claim(path: &[&str], value: ValueMatcher) -> MetadataMatcher {
    let path = ["payload"].into_iter().chain(path.iter().copied());
    MetadataMatcher::new("jwt", path, value)
}

fn is(value: &str) -> ValueMatcher {
    ValueMatcher::String(StringMatcher::exact(value))
}

fn holds(value: &str) -> ValueMatcher {
    ValueMatcher::ListContains(Box::new(is(value)))
}

fn claims() -> Vec<(MetadataMatcher, bool)> {
    let inverted = |matcher| MetadataMatcher {
        invert: true,
        ..matcher
    };
    vec![
        (claim(&["sub"], is("alice")), true),
        (claim(&["sub"], is("bob")), false),
        (inverted(claim(&["sub"], is("bob"))), true),
        (inverted(claim(&["sub"], is("alice"))), false),
        (claim(&["sub"], ValueMatcher::Present), true),
        (claim(&["missing"], ValueMatcher::Present), false),
        (inverted(claim(&["missing"], is("x"))), true),
        (claim(&["groups"], holds("ops")), true),
        (claim(&["groups"], holds("sales")), false),
        (claim(&["groups"], is("ops")), false),
        (claim(&["sub"], holds("alice")), false),
        (claim(&["admin"], ValueMatcher::Bool(true)), true),
        (claim(&["admin"], ValueMatcher::Bool(false)), false),
        (claim(&["none"], ValueMatcher::Null), true),
        (claim(&["sub"], ValueMatcher::Null), false),
        (claim(&["address", "city"], is("Berlin")), true),
        (
            claim(&["address", "city", "more"], ValueMatcher::Present),
            false,
        ),
        (
            claim(&["sub"], ValueMatcher::Or(vec![is("bob"), is("alice")])),
            true,
        ),
        (
            claim(&["sub"], ValueMatcher::Or(vec![is("bob"), holds("alice")])),
            false,
        ),
        (
            MetadataMatcher::new("other", ["payload"], ValueMatcher::Present),
            false,
        ),
    ]
}

#[test]
fn every_principal_decides_as_it_says_and_its_contrary_the_other_way() {
    let mut table = vec![
        (Principal::Any, true),
        (Principal::Authenticated(None), true),
        (named(ALICE), true),
        (named("spiffe://cluster.local/ns/default/sa/bob"), false),
        (Principal::DirectRemoteIp(range("192.0.2.0/24")), true),
        (Principal::DirectRemoteIp(range("192.0.3.0/24")), false),
        (Principal::RemoteIp(range("192.0.2.7")), true),
        (Principal::RemoteIp(range("::/0")), false),
        (Principal::Header(header("x-team", "blue")), true),
        (Principal::Header(header("x-team", "red")), false),
        (
            Principal::Path(text(StringPattern::Prefix("/orders".into()))),
            true,
        ),
        (
            Principal::Path(text(StringPattern::Suffix("/8".into()))),
            false,
        ),
        (Principal::And(vec![named(ALICE), Principal::Any]), true),
        (Principal::And(vec![named(ALICE), named("b")]), false),
        (Principal::Or(vec![named("b"), named(ALICE)]), true),
        (Principal::Or(vec![named("b"), named("c")]), false),
        (
            Principal::Or(vec![named("b"), Principal::RemoteIp(range("192.0.2.7"))]),
            true,
        ),
    ];
    table.extend(
        claims()
            .into_iter()
            .map(|(matcher, is)| (Principal::Metadata(matcher), is)),
    );
    for (principal, is_match) in table {
        let not = Principal::Not(Box::new(principal.clone()));
        for (principal, is_match) in [(principal, is_match), (not, !is_match)] {
            let rules = [("p", principal.clone(), Permission::Any)];
            let allow = Authorizer::compile(&[rbac(RbacAction::Allow, &rules)]);
            assert_eq!(alice(&allow).allowed, is_match, "{principal:?}");
            let deny = Authorizer::compile(&[rbac(RbacAction::Deny, &rules)]);
            assert_eq!(alice(&deny).allowed, !is_match, "{principal:?}");
        }
    }
}

#[test]
fn every_permission_decides_as_it_says_and_its_contrary_the_other_way() {
    let template = |text: &str| Permission::Template(PathTemplate::new(text).expect("a template"));
    let mut table = vec![
        (Permission::Any, true),
        (path("/orders/7"), true),
        (path("/orders"), false),
        (template("/orders/*"), true),
        (template("/*"), false),
        (template("/**"), true),
        (Permission::Header(header(":method", "GET")), true),
        (Permission::Header(header(":path", "/orders/7")), true),
        (
            Permission::Header(header("host", "greeter.default:8080")),
            true,
        ),
        (Permission::Header(header(":scheme", "http")), false),
        (Permission::DestinationIp(range("10.0.0.0/8")), true),
        (Permission::DestinationIp(range("11.0.0.0/8")), false),
        (Permission::DestinationPort(8080), true),
        (Permission::DestinationPort(8081), false),
        (
            Permission::DestinationPorts {
                start: 8080,
                end: 8081,
            },
            true,
        ),
        (
            Permission::DestinationPorts {
                start: 8079,
                end: 8080,
            },
            false,
        ),
        (
            Permission::RequestedServerName(StringMatcher::exact("greeter.default")),
            true,
        ),
        (
            Permission::RequestedServerName(StringMatcher::exact("")),
            false,
        ),
        (
            Permission::And(vec![path("/orders/7"), Permission::Any]),
            true,
        ),
        (Permission::And(vec![path("/orders/7"), path("/b")]), false),
        (Permission::Or(vec![path("/b"), path("/orders/7")]), true),
        (Permission::Or(vec![path("/b"), path("/c")]), false),
        (
            Permission::Or(vec![path("/b"), Permission::DestinationPort(8080)]),
            true,
        ),
    ];
    table.extend(
        claims()
            .into_iter()
            .map(|(matcher, is)| (Permission::Metadata(matcher), is)),
    );
    for (permission, is_match) in table {
        let not = Permission::Not(Box::new(permission.clone()));
        for (permission, is_match) in [(permission, is_match), (not, !is_match)] {
            let rules = [("p", Principal::Any, permission.clone())];
            let allow = Authorizer::compile(&[rbac(RbacAction::Allow, &rules)]);
            assert_eq!(alice(&allow).allowed, is_match, "{permission:?}");
        }
    }
}

#[test]
fn shadow_rules_are_reported_and_never_decide() {
    let nobody = |action| {
        let policies = rbac(action, &[("x", Principal::Any, path("/x"))]).policies;
        Box::new(ShadowRules {
            stat_prefix: String::new(),
            action,
            policies,
        })
    };
    for (action, would_pass) in [
        (RbacAction::Allow, false),
        (RbacAction::Deny, true),
        (RbacAction::Log, true),
    ] {
        let filter = Rbac {
            shadow: Some(nobody(action)),
            ..Rbac::without_rules()
        };
        let authorizer = Authorizer::compile(&[filter]);
        let decision = alice(&authorizer);
        assert!(decision.allowed, "{action:?}");
        let shadow = ShadowDecision {
            allowed: would_pass,
            action,
            policy: None,
            stat_prefix: "",
            is_selection: false,
        };
        assert_eq!(decision.shadow, [shadow]);
    }
    let matching = rbac(
        RbacAction::Deny,
        &[("all", Principal::Any, Permission::Any)],
    );
    let filter = Rbac {
        shadow: Some(Box::new(ShadowRules {
            stat_prefix: String::new(),
            action: matching.action,
            policies: matching.policies.clone(),
        })),
        ..rbac(RbacAction::Allow, &[("p", Principal::Any, Permission::Any)])
    };
    let authorizer = Authorizer::compile(&[filter, matching]);
    let decision = alice(&authorizer);
    assert!(!decision.allowed, "the second filter decides");
    assert_eq!(decision.shadow.len(), 1);
    assert!(!decision.shadow[0].allowed);
    assert_eq!(decision.shadow[0].policy.map(|name| &**name), Some("all"));
}

#[test]
fn what_rules_select_is_said_in_the_metadata_under_their_prefix() {
    let matching = rbac(
        RbacAction::Deny,
        &[("all", Principal::Any, Permission::Any)],
    );
    let filter = |policies| Rbac {
        shadow: Some(Box::new(ShadowRules {
            stat_prefix: format!("{SELECTION_PREFIX}a_"),
            action: RbacAction::Deny,
            policies,
        })),
        ..Rbac::without_rules()
    };
    let said = |policies| {
        let authorizer = Authorizer::compile(&[filter(policies)]);
        let decision = alice(&authorizer);
        assert!(decision.allowed && decision.shadow[0].is_selection);
        let mut metadata = DynamicMetadata::default();
        decision.tell(&mut metadata);
        metadata.get("envoy.filters.http.rbac").cloned()
    };
    assert_eq!(
        said(matching.policies),
        Some(json!({
            "istio_ext_authz_a_shadow_effective_policy_id": "all",
            "istio_ext_authz_a_shadow_engine_result": "denied",
        }))
    );
    assert_eq!(
        said(BTreeMap::new()),
        Some(json!({"istio_ext_authz_a_shadow_engine_result": "allowed"}))
    );
}
