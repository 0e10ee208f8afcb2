//! How many policies are looked at, and what the index holds.

use serde_json::json;

use super::*;
use crate::{
    authz::index::PolicyIndex,
    config::{DynamicMetadata, MetadataMatcher, ValueMatcher},
};

/// How many policies of `policies` are looked at for a caller and a path.
fn looked_at(policies: Vec<RbacPolicy>, callers: &[&str], path: &str) -> usize {
    let named = policies.into_iter().enumerate();
    let policies: BTreeMap<_, _> = named.map(|(at, policy)| (at.to_string(), policy)).collect();
    let names: Vec<String> = callers.iter().map(ToString::to_string).collect();
    let known = Known::new();
    PolicyIndex::compile(&policies).looked_at(&request(&names, path, &known))
}

/// What callers with these names ask: each header, claim and server name says 7.
fn request<'r>(names: &'r [String], path: &'r str, of: &'r Known) -> AuthzRequest<'r> {
    AuthzRequest {
        principals: names,
        authenticated: true,
        method: "GET",
        path,
        authority: "7",
        headers: &of.headers,
        source: [192, 0, 2, 7].into(),
        destination: ([10, 0, 0, 1], 1).into(),
        server_name: "7",
        metadata: Some(&of.metadata),
        details: Default::default(),
    }
}

struct Known {
    headers: HeaderMap,
    metadata: DynamicMetadata,
}

impl Known {
    fn new() -> Self {
        let mut known = Self {
            headers: HeaderMap::new(),
            metadata: DynamicMetadata::default(),
        };
        for name in ["x-a", "x-b", "x-c", "x-d", "x-e"] {
            known.headers.insert(name, HeaderValue::from_static("7"));
        }
        let claims = json!({"sub": "7", "groups": ["7", "other"]});
        known.metadata.set("jwt", "payload", claims);
        known
    }
}

fn policy(who: Vec<Principal>, what: Vec<Permission>) -> RbacPolicy {
    RbacPolicy {
        principals: who,
        permissions: what,
        condition: None,
    }
}

/// A thousand policies, each made by `one` of a number.
fn thousand(one: impl Fn(usize) -> RbacPolicy) -> Vec<RbacPolicy> {
    (0..1_000).map(one).collect()
}

#[test]
fn policies_that_are_not_about_a_caller_or_a_path_cost_it_nothing() {
    let who = |n: usize| named(&format!("spiffe://{n}"));
    let what = |n: usize| path(&format!("/{n}"));
    let other = || Principal::Header(header("x-a", "1"));
    let port = || Permission::DestinationPort(80);
    for (one, looked) in [
        (thousand(|n| policy(vec![who(n)], vec![Permission::Any])), 1),
        (thousand(|n| policy(vec![Principal::Any], vec![what(n)])), 1),
        (thousand(|n| policy(vec![who(n)], vec![what(n)])), 1),
        (thousand(|n| policy(vec![who(7)], vec![what(n)])), 1),
        (thousand(|n| policy(vec![who(n)], vec![what(8)])), 1),
        // Whoever has no name at all is another caller.
        (
            thousand(|_| policy(vec![named("")], vec![Permission::Any])),
            0,
        ),
        // One of all that must hold is enough to tell.
        (
            thousand(|n| {
                let who = Principal::And(vec![other(), who(n)]);
                policy(vec![who], vec![Permission::Any])
            }),
            1,
        ),
        (
            thousand(|n| {
                let what = Permission::And(vec![port(), what(n)]);
                policy(vec![Principal::Any], vec![what])
            }),
            1,
        ),
        (
            thousand(|n| {
                let who = Principal::Or(vec![who(n), who(n + 1)]);
                policy(vec![who], vec![Permission::Any])
            }),
            2,
        ),
        (
            thousand(|n| {
                let what = Permission::Or(vec![what(n), what(n + 1)]);
                policy(vec![Principal::Any], vec![what])
            }),
            2,
        ),
        // Of one that may hold without a name, or without a path, nothing is known.
        (
            thousand(|n| policy(vec![who(n), other()], vec![Permission::Any])),
            1_000,
        ),
        (
            thousand(|n| policy(vec![Principal::Any], vec![what(n), port()])),
            1_000,
        ),
        (
            thousand(|n| {
                let who = Principal::Not(Box::new(who(n)));
                policy(vec![who], vec![Permission::Not(Box::new(what(n)))])
            }),
            1_000,
        ),
    ] {
        let example = format!("{:?}", one[0]);
        let found = looked_at(one, &["spiffe://7"], "/7");
        assert_eq!(found, looked, "{example}");
    }
}

/// Policies for everybody that need what `one` says of a number.
fn needing(one: impl Fn(usize) -> Permission) -> Vec<RbacPolicy> {
    thousand(|n| policy(vec![Principal::Any], vec![one(n)]))
}

#[test]
fn policies_are_found_by_whatever_text_they_need() {
    let exact = |n: usize| StringMatcher::exact(n.to_string());
    let begins = |text: String| StringMatcher::new(StringPattern::Prefix(text)).expect("not empty");
    let text = |n: usize| ValueMatcher::String(exact(n));
    let claim = |path: &[&str], value| {
        let path = ["payload"].into_iter().chain(path.iter().copied());
        Permission::Metadata(MetadataMatcher::new("jwt", path, value))
    };
    let listed = |value| ValueMatcher::ListContains(Box::new(value));
    let x_a = |n: usize| Permission::Header(header("x-a", &n.to_string()));
    let inverted = |n| HeaderMatcher {
        invert: true,
        ..header("x-a", &format!("{n}"))
    };
    let upper = |n| exact(n).ignore_case(true);
    let pattern =
        |pattern| Permission::RequestedServerName(StringMatcher::new(pattern).expect("not empty"));
    for (name, policies, looked) in [
        ("header", needing(x_a), 1),
        (
            "host",
            needing(|n| Permission::Header(header("host", &n.to_string()))),
            1,
        ),
        (
            "server name",
            needing(|n| Permission::RequestedServerName(exact(n))),
            1,
        ),
        (
            "prefix",
            needing(|n| Permission::Path(begins(format!("/{n}")))),
            1,
        ),
        (
            "two prefixes",
            needing(|n| Permission::Path(begins(format!("/{}", n / 2)))),
            2,
        ),
        ("claim", needing(|n| claim(&["sub"], text(n))), 1),
        ("list", needing(|n| claim(&["groups"], listed(text(n)))), 1),
        (
            "claim or list",
            needing(|n| {
                claim(
                    &["groups"],
                    ValueMatcher::Or(vec![text(n), listed(text(n))]),
                )
            }),
            1,
        ),
        (
            "one of two claims",
            needing(|n| claim(&["sub"], ValueMatcher::Or(vec![text(n), text(n + 1)]))),
            2,
        ),
        // Of two lists the shorter, whichever is first.
        (
            "claims, and fewer",
            needing(|n| {
                let two = ValueMatcher::Or(vec![text(n), text(n + 1)]);
                Permission::And(vec![claim(&["sub"], two), claim(&["sub"], text(n))])
            }),
            1,
        ),
        (
            "a claim, and more",
            needing(|n| {
                let two = ValueMatcher::Or(vec![text(n), text(n + 1)]);
                Permission::And(vec![claim(&["sub"], text(n)), claim(&["sub"], two)])
            }),
            1,
        ),
        // Each alternative has a need for the same attribute, among others.
        (
            "alternatives",
            needing(|n| {
                let port = Permission::DestinationPort(80);
                Permission::Or(vec![
                    Permission::And(vec![port, x_a(n)]),
                    Permission::And(vec![x_a(n + 1), path("/a")]),
                ])
            }),
            2,
        ),
        (
            "alternatives of different kinds",
            needing(|n| Permission::Or(vec![x_a(n), claim(&["sub"], text(n))])),
            1_000,
        ),
        (
            "inverted",
            needing(|n| Permission::Header(inverted(n))),
            1_000,
        ),
        (
            "inverted claim",
            needing(|n| {
                Permission::Metadata(MetadataMatcher {
                    invert: true,
                    ..MetadataMatcher::new("jwt", ["payload", "sub"], text(n))
                })
            }),
            1_000,
        ),
        (
            "negated",
            needing(|n| Permission::Not(Box::new(x_a(n)))),
            1_000,
        ),
        (
            "without case",
            needing(|n| Permission::RequestedServerName(upper(n))),
            1_000,
        ),
        (
            "suffix",
            needing(|n| pattern(StringPattern::Suffix(n.to_string()))),
            1_000,
        ),
        (
            "part",
            needing(|n| pattern(StringPattern::Contains(n.to_string()))),
            1_000,
        ),
        (
            "present",
            needing(|_| claim(&["sub"], ValueMatcher::Present)),
            1_000,
        ),
        (
            "list in list",
            needing(|n| claim(&["groups"], listed(listed(text(n))))),
            1_000,
        ),
        (
            "no claim",
            needing(|_| claim(&["sub"], ValueMatcher::Or(vec![]))),
            1_000,
        ),
    ] {
        assert_eq!(looked_at(policies, &["spiffe://7"], "/7"), looked, "{name}");
    }
}

#[test]
fn a_few_policies_are_walked_and_one_more_is_not() {
    let some = |count: usize| -> Vec<_> {
        let one = |n| policy(vec![named(&format!("spiffe://{n}"))], vec![Permission::Any]);
        (0..count).map(one).collect()
    };
    assert_eq!(looked_at(some(3), &["spiffe://2"], "/"), 3);
    assert_eq!(looked_at(some(4), &["spiffe://2"], "/"), 1);
    // Those that all need the same are left out for whom they are not about.
    for count in [4, 5] {
        let same = (0..count).map(|_| policy(vec![named("a")], vec![Permission::Any]));
        assert_eq!(looked_at(same.collect(), &["b"], "/"), 0, "{count}");
    }
    // Half of them must be left out.
    let half = |without: usize| -> Vec<_> {
        let mut policies = some(4);
        let any = |_| policy(vec![Principal::Any], vec![Permission::Any]);
        policies.extend((0..without).map(any));
        policies
    };
    assert_eq!(looked_at(half(4), &["spiffe://2"], "/"), 5);
    assert_eq!(looked_at(half(5), &["spiffe://2"], "/"), 9);
}

#[test]
fn policies_are_found_by_four_attributes_at_most() {
    let digit = |name: &str, n: usize, place: u32| {
        let value = (n / 5_usize.pow(place)) % 5 + 5;
        Permission::Header(header(name, &value.to_string()))
    };
    let names = ["x-a", "x-b", "x-c", "x-d", "x-e"];
    let by = |count: usize| {
        let one = |n| {
            let digits = names[..count]
                .iter()
                .zip(0..)
                .map(|(name, place)| digit(name, n, place));
            policy(
                vec![Principal::Any],
                vec![Permission::And(digits.collect())],
            )
        };
        (0..5_usize.pow(u32::try_from(count).expect("small")))
            .map(one)
            .collect()
    };
    assert_eq!(looked_at(by(3), &[], "/"), 1);
    assert_eq!(looked_at(by(4), &[], "/"), 1);
    assert_eq!(looked_at(by(5), &[], "/"), 5);
}

#[test]
fn the_index_holds_what_policies_name_a_few_times_at_most() {
    // Each is for callers and paths that all share, and for some of its own.
    let own = |n: usize| (0..40).map(move |m| if m < 20 { m } else { n * 100 + m });
    let one = |n: usize| {
        let who = own(n).map(|n| named(&format!("spiffe://{n}"))).collect();
        let what = own(n).map(|n| path(&format!("/{n}"))).collect();
        policy(who, what)
    };
    let policies: BTreeMap<_, _> = (0..100).map(|n| (format!("{n:03}"), one(n))).collect();
    let index = PolicyIndex::compile(&policies);
    let (named, held) = (100 * (40 + 40), index.held());
    assert!(held > 2 * named && held <= 8 * named, "{held} of {named}");
    let (names, known) = (["spiffe://1".to_owned()], Known::new());
    let found = index.find(&request(&names, "/2", &known));
    assert_eq!(found.map(|name| &**name), Some("000"));
    let names = ["spiffe://9921".to_owned()];
    let found = index.find(&request(&names, "/9922", &known));
    assert_eq!(found.map(|name| &**name), Some("099"));
}

#[test]
fn a_text_that_is_compared_without_case_is_found_in_any_case() {
    let any_case = |text: &str| StringMatcher::exact(text).ignore_case(true);
    let who = Principal::Authenticated(Some(any_case("spiffe://A")));
    let allow = [("p", who, Permission::Path(any_case("/Admin")))];
    let allow = Authorizer::compile(&[rbac(RbacAction::Allow, &allow)]);
    for (caller, path, is_allowed) in [
        ("spiffe://a", "/admin", true),
        ("spiffe://A", "/ADMIN", true),
        ("spiffe://b", "/admin", false),
        ("spiffe://a", "/admins", false),
    ] {
        let decision = ask(&allow, caller, "GET", path, "");
        assert_eq!(decision.allowed, is_allowed, "{caller} {path}");
    }
}

#[test]
fn one_policy_about_many_callers_and_many_paths_is_found_and_bounded() {
    let names: Vec<_> = (0..3_000)
        .map(|n| named(&format!("spiffe://{n}")))
        .collect();
    let paths: Vec<_> = (0..5_000).map(|n| path(&format!("/{n}"))).collect();
    let many = [("many", Principal::Or(names), Permission::Or(paths))];
    let allow = Authorizer::compile(&[rbac(RbacAction::Allow, &many)]);
    assert!(ask(&allow, "spiffe://2999", "GET", "/4999", "").allowed);
    assert!(!ask(&allow, "spiffe://3000", "GET", "/4999", "").allowed);
    assert!(!ask(&allow, "spiffe://2999", "GET", "/5000", "").allowed);
}
