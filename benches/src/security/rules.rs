//! What a call pays for authorisation, by the number of rules: our engine beside a walk through all
//! rules, on the same requests, with the same verdicts.
//!
//! A rule allows one caller one method, which is what services with many callers write. The worst
//! case is the caller of the last rule; who is refused costs a walk all rules.

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use anyhow::ensure;
use futures_util::{FutureExt as _, future};
use http::{HeaderMap, HeaderValue};
use mesh_core::{
    authz::{Authorizer, AuthzRequest},
    config::{
        HeaderMatcher, HeaderPredicate, Permission, Principal, Rbac, RbacAction, RbacPolicy,
        StringMatcher, StringPattern,
    },
};

use crate::harness::{Contender, Plan, Results, Turn, cpu, take_turns};

const RULES: [usize; 3] = [10, 100, 1_000];
/// Requests of a turn of ours.
const REQUESTS: usize = 2_000_000;
/// Rules that a walk looks at in a turn, in all: it takes as long whatever their number.
const WALKED: usize = 20_000_000;

pub(super) fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for (table, kind) in [
        ("RBAC, a name and a path in each rule", Kind::Exact),
        ("RBAC, patterns in each rule", Kind::Patterns),
    ] {
        for rules in RULES {
            let filter = filter(kind, rules);
            let ours = Authorizer::compile([&filter]);
            for asked in Asked::ALL {
                let request = Request::new(asked, rules);
                let (ours, filter, request) = (&ours, &filter, &request);
                ensure!(
                    ours.decide(&request.view()).allowed == walk(filter, &request.view())
                        && walk(filter, &request.view()) == (asked != Asked::Nobody),
                    "{kind:?} {rules} {asked:?}: both decide alike"
                );
                let case = format!("{rules:5} rules, {}", asked.as_str());
                let walked = plan.scaled(WALKED / rules);
                let many = match kind {
                    Kind::Exact => plan.scaled(REQUESTS),
                    // No index helps: each rule is looked at.
                    Kind::Patterns => walked,
                };
                let contenders = vec![
                    contender("ours", many, request, move |view| ours.decide(view).allowed),
                    contender("a walk", walked, request, move |view| walk(filter, view)),
                ];
                runtime.block_on(take_turns(plan, results, (table, &case), contenders));
            }
        }
    }
    Ok(())
}

fn contender<'a>(
    name: &str,
    count: usize,
    request: &'a Request,
    decide: impl Fn(&AuthzRequest<'_>) -> bool + Copy + Send + 'a,
) -> Contender<'a> {
    Contender {
        name: name.to_owned(),
        turn: Box::new(move || future::ready(Ok(turn(count, request, decide))).boxed()),
    }
}

fn turn(count: usize, request: &Request, decide: impl Fn(&AuthzRequest<'_>) -> bool) -> Turn {
    let (cpu_before, start) = (cpu::own(), Instant::now());
    for _ in 0..count {
        black_box(decide(black_box(&request.view())));
    }
    let (cpu, wall) = (cpu::own() - cpu_before, start.elapsed());
    vec![
        ("CPU ns/call", cpu.as_secs_f64() * 1e9 / count as f64),
        ("M calls/s", count as f64 / wall.as_secs_f64() / 1e6),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A name and a path.
    Exact,
    /// A namespace, the beginning of a path, and a header.
    Patterns,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    First,
    Last,
    Nobody,
}

impl Asked {
    const ALL: [Self; 3] = [Self::First, Self::Last, Self::Nobody];

    fn as_str(self) -> &'static str {
        match self {
            Self::First => "the first allows",
            Self::Last => "the last allows",
            Self::Nobody => "none allows",
        }
    }
}

/// Names in the order of their numbers.
fn caller(number: usize) -> String {
    format!("spiffe://cluster.local/ns/team-{number:04}/sa/web")
}

fn filter(kind: Kind, rules: usize) -> Rbac {
    let text = |pattern| StringMatcher::new(pattern).expect("it is not empty");
    let policies = (0..rules).map(|number| {
        let (principal, permission) = match kind {
            Kind::Exact => (
                Principal::Authenticated(Some(StringMatcher::exact(caller(number)))),
                Permission::Path(StringMatcher::exact(format!("/shop.Orders/Get{number:04}"))),
            ),
            Kind::Patterns => {
                let namespace = format!("spiffe://cluster.local/ns/team-{number:04}/sa/");
                let method = StringMatcher::exact("POST");
                let header = HeaderMatcher::new(":method", HeaderPredicate::String(method));
                let path = text(StringPattern::Prefix(format!(
                    "/shop.Orders/Get{number:04}"
                )));
                (
                    Principal::Authenticated(Some(text(StringPattern::Prefix(namespace)))),
                    Permission::And(vec![Permission::Header(header), Permission::Path(path)]),
                )
            }
        };
        let policy = RbacPolicy {
            principals: vec![principal],
            permissions: vec![permission],
            condition: None,
        };
        (format!("default/rule[{number:04}]"), policy)
    });
    Rbac::new(RbacAction::Allow, policies.collect::<BTreeMap<_, _>>())
}

struct Request {
    names: [String; 1],
    path: String,
    headers: HeaderMap,
}

impl Request {
    fn new(asked: Asked, rules: usize) -> Self {
        let number = match asked {
            Asked::First => 0,
            Asked::Last => rules - 1,
            Asked::Nobody => rules,
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "mesh"),
            ("grpc-timeout", "1S"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Self {
            names: [caller(number)],
            path: format!("/shop.Orders/Get{number:04}"),
            headers,
        }
    }

    fn view(&self) -> AuthzRequest<'_> {
        AuthzRequest {
            principals: &self.names,
            authenticated: true,
            method: "POST",
            path: &self.path,
            authority: "orders.shop:8080",
            headers: &self.headers,
            source: [10, 0, 0, 7].into(),
            destination: ([10, 0, 0, 1], 8080).into(),
            server_name: "",
            metadata: None,
            details: Default::default(),
        }
    }
}

/// The plain meaning of the rules that this benchmark has, one after the other.
fn walk(filter: &Rbac, request: &AuthzRequest<'_>) -> bool {
    fn who(principal: &Principal, request: &AuthzRequest<'_>) -> bool {
        match principal {
            Principal::Authenticated(Some(matcher)) => {
                let mut names = request.principals.iter();
                request.authenticated && names.any(|name| matcher.is_match(name))
            }
            other => unreachable!("{other:?} is in no rule"),
        }
    }
    fn what(permission: &Permission, request: &AuthzRequest<'_>) -> bool {
        match permission {
            Permission::And(all) => all.iter().all(|one| what(one, request)),
            Permission::Path(matcher) => matcher.is_match(request.path),
            Permission::Header(matcher) => matcher.is_match(Some(request.method)),
            other => unreachable!("{other:?} is in no rule"),
        }
    }
    filter.policies.values().any(|policy| {
        policy.principals.iter().any(|one| who(one, request))
            && policy.permissions.iter().any(|one| what(one, request))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_measured_and_both_decide_alike() {
        let mut results = Results::default();
        let plan = Plan {
            rounds: 1,
            length: 0.0001,
            filter: None,
        };
        run(&plan, &mut results).unwrap();
        let rows = 2 * RULES.len() * Asked::ALL.len() * 2;
        assert_eq!((results.rows.len(), results.notes.len()), (rows, 0));
    }
}
