//! The index against a walk through all policies.

use super::*;
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
                let request = AuthzRequest {
                    principals: &names,
                    authenticated: true,
                    method: "GET",
                    path,
                    authority: "",
                    headers: &HeaderMap::new(),
                    source: [192, 0, 2, 7].into(),
                    destination: ([10, 0, 0, 1], 1).into(),
                    server_name: "",
                    metadata: None,
                };
                assert_eq!(
                    index.find(&request).as_deref(),
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
