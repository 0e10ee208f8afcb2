//! Decision tables of the authoriser.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::config::{
    HeaderMatcher, HeaderPredicate, Permission, Principal, RbacPolicy, StringMatcher, StringPattern,
};

mod cel;
mod index;
mod rules;
mod shape;
mod texts;
mod walk;

const ALICE: &str = "spiffe://cluster.local/ns/default/sa/alice";

/// A request in a few words: caller (empty: plaintext), method, path, headers.
fn ask<'a>(
    authorizer: &'a Authorizer,
    caller: &str,
    method: &str,
    path: &str,
    headers: &str,
) -> Decision<'a> {
    let names: Vec<String> = (!caller.is_empty())
        .then(|| caller.to_owned())
        .into_iter()
        .collect();
    let mut map = HeaderMap::new();
    for pair in headers.split_whitespace() {
        let (name, value) = pair.split_once('=').expect("name=value");
        map.append(
            HeaderName::try_from(name).expect("header name"),
            HeaderValue::from_str(value).expect("header value"),
        );
    }
    authorizer.decide(&AuthzRequest {
        principals: &names,
        authenticated: !names.is_empty(),
        method,
        path,
        authority: "greeter.default:8080",
        headers: &map,
        source: [192, 0, 2, 7].into(),
        destination: ([10, 0, 0, 1], 8080).into(),
        server_name: "",
        metadata: None,
        details: Default::default(),
    })
}

fn rbac(action: RbacAction, policies: &[(&str, Principal, Permission)]) -> Rbac {
    let policies: BTreeMap<_, _> = policies
        .iter()
        .map(|(name, principal, permission)| {
            let policy = RbacPolicy {
                principals: vec![principal.clone()],
                permissions: vec![permission.clone()],
                condition: None,
            };
            ((*name).to_owned(), policy)
        })
        .collect();
    Rbac::new(action, policies)
}

fn named(name: &str) -> Principal {
    Principal::Authenticated(Some(StringMatcher::exact(name)))
}

fn path(text: &str) -> Permission {
    Permission::Path(StringMatcher::exact(text))
}

fn header(name: &str, value: &str) -> HeaderMatcher {
    HeaderMatcher::new(name, HeaderPredicate::String(StringMatcher::exact(value)))
}

#[test]
fn without_filters_everything_passes_and_an_empty_allow_refuses_everything() {
    let none = Authorizer::compile(&[]);
    assert!(none.is_empty());
    assert!(ask(&none, "", "GET", "/", "").allowed);
    let deny_all = Authorizer::compile(&[rbac(RbacAction::Allow, &[])]);
    assert!(!deny_all.is_empty());
    for caller in ["", ALICE] {
        let decision = ask(&deny_all, caller, "GET", "/", "");
        assert!(!decision.allowed);
        assert_eq!(decision.action, Some(RbacAction::Allow));
        assert_eq!(decision.policy, None);
    }
    let deny_none = Authorizer::compile(&[rbac(RbacAction::Deny, &[])]);
    assert!(ask(&deny_none, "", "GET", "/", "").allowed);
}

#[test]
fn actions_have_the_names_that_envoy_gives_them() {
    let actions = [RbacAction::Allow, RbacAction::Deny, RbacAction::Log];
    assert_eq!(actions.map(RbacAction::as_str), ["ALLOW", "DENY", "LOG"]);
}

#[test]
fn a_policy_needs_a_principal_and_a_permission() {
    let allow = Authorizer::compile(&[rbac(
        RbacAction::Allow,
        &[("alice-reads", named(ALICE), path("/read"))],
    )]);
    for (caller, path, allowed) in [
        (ALICE, "/read", true),
        (ALICE, "/write", false),
        ("spiffe://cluster.local/ns/default/sa/bob", "/read", false),
        ("", "/read", false),
    ] {
        let decision = ask(&allow, caller, "GET", path, "");
        assert_eq!(decision.allowed, allowed, "{caller} {path}");
        assert_eq!(
            decision.policy.map(|name| &**name),
            allowed.then_some("alice-reads"),
            "{caller} {path}"
        );
    }
    let mut unusable = rbac(RbacAction::Allow, &[("p", Principal::Any, Permission::Any)]);
    unusable
        .policies
        .get_mut("p")
        .expect("just made")
        .principals
        .clear();
    let none = Authorizer::compile(&[unusable]);
    assert!(!ask(&none, ALICE, "GET", "/", "").allowed, "no principals");
}

#[test]
fn filters_are_chained_and_the_first_refusal_decides() {
    let chain = Authorizer::compile(&[
        rbac(
            RbacAction::Log,
            &[("watched", Principal::Any, path("/admin"))],
        ),
        rbac(
            RbacAction::Deny,
            &[("no-admin", Principal::Any, path("/admin"))],
        ),
        rbac(
            RbacAction::Allow,
            &[("alice", named(ALICE), Permission::Any)],
        ),
    ]);
    let refused = ask(&chain, ALICE, "GET", "/admin", "");
    assert!(!refused.allowed);
    assert_eq!(refused.action, Some(RbacAction::Deny));
    assert_eq!(refused.policy.map(|name| &**name), Some("no-admin"));
    assert_eq!(refused.audit.len(), 1);
    assert_eq!(&**refused.audit[0].policy, "watched");
    assert!(ask(&chain, ALICE, "GET", "/", "").allowed);
    let stranger = ask(&chain, "", "GET", "/", "");
    assert!(!stranger.allowed && stranger.audit.is_empty());
    assert_eq!(stranger.action, Some(RbacAction::Allow));

    let log_only = Authorizer::compile(&[rbac(
        RbacAction::Log,
        &[("all", Principal::Any, Permission::Any)],
    )]);
    let logged = ask(&log_only, "", "GET", "/", "");
    assert!(logged.allowed && logged.audit.len() == 1 && logged.action.is_none());
}

#[test]
fn principals_table() {
    let any_mtls = Principal::Authenticated(None);
    let not = |p: &Principal| Principal::Not(Box::new(p.clone()));
    let prefix = Principal::Authenticated(Some(
        StringMatcher::new(StringPattern::Prefix("spiffe://cluster.local/".into()))
            .expect("not empty"),
    ));
    let empty = named("");
    for (principal, caller, expected) in [
        (&Principal::Any, "", true),
        (&any_mtls, ALICE, true),
        (&any_mtls, "", false),
        (&not(&any_mtls), "", true),
        (&not(&any_mtls), ALICE, false),
        (&not(&named(ALICE)), "", true),
        (&prefix, ALICE, true),
        (&prefix, "spiffe://other/ns/default/sa/alice", false),
        (&empty, "", false),
        (
            &Principal::And(vec![any_mtls.clone(), named(ALICE)]),
            ALICE,
            true,
        ),
        (
            &Principal::Or(vec![named("x"), any_mtls.clone()]),
            ALICE,
            true,
        ),
        (&Principal::And(vec![]), "", true),
        (&Principal::Or(vec![]), "", false),
        (&Principal::Header(header("x-user", "a")), "", false),
    ] {
        let authorizer = Authorizer::compile(&[rbac(
            RbacAction::Allow,
            &[("p", principal.clone(), Permission::Any)],
        )]);
        let allowed = ask(&authorizer, caller, "GET", "/", "").allowed;
        assert_eq!(allowed, expected, "{principal:?} for {caller:?}");
    }
}

#[test]
fn a_certificate_without_a_name_is_compared_as_empty() {
    let authorizer = Authorizer::compile(&[rbac(
        RbacAction::Allow,
        &[("p", named(""), Permission::Any)],
    )]);
    let headers = HeaderMap::new();
    let decision = authorizer.decide(&AuthzRequest {
        principals: &[],
        authenticated: true,
        method: "GET",
        path: "/",
        authority: "",
        headers: &headers,
        source: [192, 0, 2, 7].into(),
        destination: ([10, 0, 0, 1], 1).into(),
        server_name: "",
        metadata: None,
        details: Default::default(),
    });
    assert!(decision.allowed);
}

#[test]
fn permissions_table() {
    let not = |p: &Permission| Permission::Not(Box::new(p.clone()));
    let present = Permission::Header(HeaderMatcher::new("x-a", HeaderPredicate::Present(true)));
    let range = |start, end| {
        Permission::Header(HeaderMatcher::new(
            "x-n",
            HeaderPredicate::Range { start, end },
        ))
    };
    let te = Permission::Header(HeaderMatcher::new("te", HeaderPredicate::Present(true)));
    for (permission, headers, expected) in [
        (Permission::Header(header(":method", "POST")), "", true),
        (Permission::Header(header(":method", "GET")), "", false),
        (Permission::Header(header(":path", "/p")), "", true),
        (
            Permission::Header(header(":authority", "greeter.default:8080")),
            "",
            true,
        ),
        (
            Permission::Header(header("host", "greeter.default:8080")),
            "host=evil",
            true,
        ),
        (
            Permission::Header(header("X-A", "1,2")),
            "x-a=1 x-a=2",
            true,
        ),
        (Permission::Header(header("x-a", "1")), "x-a=1 x-a=2", false),
        (
            Permission::Header(header("x-bin", "AAE=")),
            "x-bin=AAE=",
            true,
        ),
        (te.clone(), "te=trailers", false),
        (not(&te), "te=trailers", true),
        (present.clone(), "x-a=", true),
        (present.clone(), "", false),
        (not(&present), "", true),
        (not(&Permission::Header(header("x-a", "1"))), "", true),
        (range(5, 10), "x-n=5", true),
        (range(5, 10), "x-n=10", false),
        (range(5, 10), "x-n=x", false),
        (Permission::DestinationPort(8080), "", true),
        (Permission::DestinationPort(80), "", false),
        (
            Permission::And(vec![path("/p"), Permission::DestinationPort(8080)]),
            "",
            true,
        ),
        (
            Permission::Or(vec![path("/q"), Permission::DestinationPort(80)]),
            "",
            false,
        ),
    ] {
        let authorizer = Authorizer::compile(&[rbac(
            RbacAction::Allow,
            &[("p", Principal::Any, permission.clone())],
        )]);
        let allowed = ask(&authorizer, "", "POST", "/p", headers).allowed;
        assert_eq!(allowed, expected, "{permission:?} with {headers:?}");
    }
}
