//! The index against a walk through all policies.

use super::*;
use crate::authz::rule::Rule;
use crate::rng::{Rng, SplitMix64};

const NAMES: [&str; 4] = ["", ALICE, "spiffe://b", "spiffe://c"];
const PATHS: [&str; 3] = ["/a", "/b", "/c"];

/// The plain meaning of rules, one after the other.
fn walk<'p>(
    policies: &'p BTreeMap<String, RbacPolicy>,
    names: &[String],
    path: &str,
) -> Option<&'p str> {
    fn who(principal: &Principal, names: &[String]) -> bool {
        match principal {
            Principal::Any => true,
            Principal::And(all) => all.iter().all(|p| who(p, names)),
            Principal::Or(any) => any.iter().any(|p| who(p, names)),
            Principal::Not(inner) => !who(inner, names),
            Principal::Authenticated(Some(matcher)) => {
                names.is_empty() && matcher.is_match("")
                    || names.iter().any(|name| matcher.is_match(name))
            }
            other => unreachable!("{other:?} is not generated"),
        }
    }
    fn what(permission: &Permission, path: &str) -> bool {
        match permission {
            Permission::Any => true,
            Permission::And(all) => all.iter().all(|p| what(p, path)),
            Permission::Or(any) => any.iter().any(|p| what(p, path)),
            Permission::Not(inner) => !what(inner, path),
            Permission::Path(matcher) => matcher.is_match(path),
            other => unreachable!("{other:?} is not generated"),
        }
    }
    let matching = policies.iter().find(|(_, policy)| {
        policy.principals.iter().any(|p| who(p, names))
            && policy.permissions.iter().any(|p| what(p, path))
    });
    matching.map(|(name, _)| name.as_str())
}

fn below(rng: &mut SplitMix64, end: usize) -> usize {
    usize::try_from(rng.next_u64() % end as u64).expect("below end")
}

fn matcher(rng: &mut SplitMix64, texts: &[&str]) -> StringMatcher {
    let text = texts[below(rng, texts.len())];
    match below(rng, 6) {
        0 if text.len() > 1 => {
            StringMatcher::new(StringPattern::Prefix(text[..2].to_owned())).expect("not empty")
        }
        1 => StringMatcher::exact(text).ignore_case(true),
        _ => StringMatcher::exact(text),
    }
}

fn principal(rng: &mut SplitMix64, depth: usize) -> Principal {
    let some = |rng: &mut SplitMix64| {
        let count = below(rng, 3) + 1;
        (0..count).map(|_| principal(rng, depth - 1)).collect()
    };
    match below(rng, if depth == 0 { 4 } else { 7 }) {
        0 => Principal::Any,
        4 => Principal::And(some(rng)),
        5 => Principal::Or(some(rng)),
        6 => Principal::Not(Box::new(principal(rng, depth - 1))),
        _ => Principal::Authenticated(Some(matcher(rng, &NAMES))),
    }
}

fn permission(rng: &mut SplitMix64, depth: usize) -> Permission {
    let some = |rng: &mut SplitMix64| {
        let count = below(rng, 3) + 1;
        (0..count).map(|_| permission(rng, depth - 1)).collect()
    };
    match below(rng, if depth == 0 { 4 } else { 7 }) {
        0 => Permission::Any,
        4 => Permission::And(some(rng)),
        5 => Permission::Or(some(rng)),
        6 => Permission::Not(Box::new(permission(rng, depth - 1))),
        _ => Permission::Path(matcher(rng, &PATHS)),
    }
}

#[test]
fn the_index_finds_what_a_walk_through_all_policies_finds() {
    let mut rng = SplitMix64::new(41);
    for _ in 0..3_000 {
        let mut filter = rbac(RbacAction::Log, &[]);
        for number in 0..below(&mut rng, 7) {
            let policy = RbacPolicy {
                principals: (0..below(&mut rng, 3))
                    .map(|_| principal(&mut rng, 2))
                    .collect(),
                permissions: (0..below(&mut rng, 3))
                    .map(|_| permission(&mut rng, 2))
                    .collect(),
                condition: None,
            };
            filter.policies.insert(format!("{number}"), policy);
        }
        let index = PolicyIndex::compile(&filter.policies);
        for callers in [
            vec![],
            vec![ALICE],
            vec!["spiffe://b"],
            vec!["spiffe://c", ALICE],
        ] {
            let names: Vec<String> = callers.into_iter().map(str::to_owned).collect();
            for path in PATHS {
                let headers = HeaderMap::new();
                assert_eq!(
                    index.find(&request(&names, path, &headers)).as_deref(),
                    walk(&filter.policies, &names, path),
                    "{names:?} {path} {filter:#?}"
                );
            }
        }
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

/// How many policies of `policies` are looked at for a caller and a path.
fn looked_at(policies: Vec<RbacPolicy>, callers: &[&str], path: &str) -> usize {
    let named = policies.into_iter().enumerate();
    let policies: BTreeMap<_, _> = named.map(|(at, policy)| (at.to_string(), policy)).collect();
    let names: Vec<String> = callers.iter().map(ToString::to_string).collect();
    let headers = HeaderMap::new();
    PolicyIndex::compile(&policies).looked_at(&request(&names, path, &headers))
}

/// What callers with these names ask.
fn request<'r>(names: &'r [String], path: &'r str, headers: &'r HeaderMap) -> AuthzRequest<'r> {
    AuthzRequest {
        principals: names,
        authenticated: true,
        method: "GET",
        path,
        authority: "",
        headers,
        source: [192, 0, 2, 7].into(),
        destination: ([10, 0, 0, 1], 1).into(),
        server_name: "",
        metadata: None,
        details: Default::default(),
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
        (thousand(|n| policy(vec![who(n)], vec![what(8)])), 0),
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

#[test]
fn the_index_of_one_policy_is_bounded_and_the_shorter_list_of_two_is_kept() {
    let who = |n: usize| (0..n).map(|n| named(&format!("spiffe://{n}"))).collect();
    let what = |n: usize| (0..n).map(|n| path(&format!("/{n}"))).collect();
    let any = |who| policy(who, vec![Permission::Any]);
    let none = ["spiffe://none"];
    // At the bound its callers tell; past it every caller is a candidate.
    assert_eq!(looked_at(vec![any(who(4_096))], &none, "/"), 0);
    assert_eq!(looked_at(vec![any(who(4_097))], &none, "/"), 1);
    // Of 64 times 64 entries both lists are kept, of 64 times 65 the shorter.
    let some = ["spiffe://1"];
    for (names, paths, other_caller, other_path) in [(64, 64, 0, 0), (64, 65, 0, 1), (65, 64, 1, 0)]
    {
        let one = || vec![policy(who(names), what(paths))];
        assert_eq!(looked_at(one(), &some, "/1"), 1);
        assert_eq!(looked_at(one(), &none, "/1"), other_caller);
        assert_eq!(looked_at(one(), &some, "/none"), other_path);
    }
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
fn a_policy_for_a_thousand_callers_or_paths_costs_one_look_up() {
    let who: Vec<_> = (0..1_000)
        .map(|n| named(&format!("spiffe://{n}")))
        .collect();
    let what: Vec<_> = (0..1_000).map(|n| path(&format!("/{n}"))).collect();
    for policy in [
        policy(who.clone(), what.clone()),
        policy(
            vec![Principal::Not(Box::new(Principal::Or(who)))],
            vec![Permission::Not(Box::new(Permission::Or(what)))],
        ),
    ] {
        let tests = Rule::compile("p", &policy).tests();
        assert!(tests <= 4, "{tests}");
    }
}
