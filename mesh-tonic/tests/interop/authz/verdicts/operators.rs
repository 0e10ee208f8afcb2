//! Every operator of AuthorizationPolicy, in rules that allow, that deny and that audit.

use super::{
    Asked, Verdict,
    rows::{BLUE, GOOD, OTHER, Row, TOKENS},
};

/// A rule's part with calls that it matches and that it does not.
struct Operator {
    /// `SIDE FIELD: [values]`, where a side is `source`, `operation` or a key of `when`.
    rule: &'static str,
    matching: &'static [&'static str],
    other: &'static [&'static str],
    /// Whether gRPC evaluates it.
    in_grpc: bool,
}

const fn operator(
    rule: &'static str,
    matching: &'static [&'static str],
    other: &'static [&'static str],
) -> Operator {
    Operator {
        rule,
        matching,
        other,
        in_grpc: true,
    }
}

/// One that gRPC does not know.
const fn beyond_grpc(
    rule: &'static str,
    matching: &'static [&'static str],
    other: &'static [&'static str],
) -> Operator {
    Operator {
        in_grpc: false,
        ..operator(rule, matching, other)
    }
}

const A: &str = "a /s/M";
const B: &str = "b /s/M";
const FAR: &str = "far/a /s/M";

const SOURCES: &[Operator] = &[
    operator(
        "source principals: [cluster.local/ns/default/sa/a]",
        &[A],
        &[B, FAR],
    ),
    operator(
        "source principals: ['cluster.local/ns/default/*']",
        &[A, B],
        &[FAR],
    ),
    operator("source principals: ['*/sa/a']", &[A, FAR], &[B]),
    operator("source principals: ['*']", &[A, FAR], &[]),
    operator("source namespaces: [default]", &[A, B], &[FAR]),
    operator("source namespaces: ['def*']", &[A], &[FAR]),
    operator("source namespaces: ['*ault']", &[A], &[FAR]),
    operator("source namespaces: ['*']", &[A, FAR], &[]),
    operator("source serviceAccounts: [a]", &[A], &[B, FAR]),
    operator("source serviceAccounts: [far/a, b]", &[FAR, B], &[A]),
    operator("source trustDomains: [cluster.local]", &[A, FAR], &[]),
    operator("source trustDomains: ['cluster*']", &[A], &[]),
    operator("source trustDomains: [other.example]", &[], &[A]),
    operator("source ipBlocks: [127.0.0.0/8, 10.0.0.0/8]", &[A], &[]),
    operator(
        "source ipBlocks: [192.0.2.0/24]",
        &[],
        &[A, "a /s/M x-forwarded-for=192.0.2.1"],
    ),
    operator(
        "source remoteIpBlocks: [127.0.0.0/8]",
        &[A, "a /s/M x-forwarded-for=192.0.2.1"],
        &[],
    ),
    operator(
        "source remoteIpBlocks: [192.0.2.0/24]",
        &[],
        &[A, "a /s/M x-forwarded-for=192.0.2.1"],
    ),
    beyond_grpc("source requestPrincipals: ['*']", &[GOOD, OTHER], &[A]),
    beyond_grpc(
        "source requestPrincipals: ['https://issuer.example/admin-user']",
        &[GOOD],
        &[OTHER, A],
    ),
    beyond_grpc(
        "source requestPrincipals: ['https://issuer.example/*']",
        &[GOOD, OTHER],
        &[A],
    ),
    beyond_grpc(
        "source requestPrincipals: ['*admin-user']",
        &[GOOD],
        &[OTHER, A],
    ),
];

const OPERATIONS: &[Operator] = &[
    operator(
        "operation hosts: [a.example]",
        &["a /s/M host=A.Example"],
        &["a /s/M host=b.example"],
    ),
    operator(
        "operation hosts: ['*.example']",
        &["a /s/M host=a.EXAMPLE"],
        &["a /s/M host=example.com"],
    ),
    operator(
        "operation hosts: ['a.*']",
        &["a /s/M host=A.example"],
        &["a /s/M host=b.example"],
    ),
    operator("operation hosts: ['*']", &[A], &[]),
    operator("operation ports: [PORTS]", &[A], &[]),
    operator("operation ports: ['1']", &[], &[A]),
    operator("operation methods: [POST]", &[A], &[]),
    operator("operation methods: [GET]", &[], &[A]),
    operator("operation methods: ['P*']", &[A], &[]),
    operator("operation methods: ['*ST']", &[A], &[]),
    operator("operation methods: ['*']", &[A], &[]),
    operator(
        "operation paths: [/s/M]",
        &[A, B],
        &["a /s/N", "a /s/MM", "a /t/M"],
    ),
    operator("operation paths: ['/s/*']", &["a /s/M"], &["a /t/M"]),
    operator("operation paths: ['*/M']", &["a /t/M"], &["a /s/N"]),
    operator("operation paths: ['*']", &[A], &[]),
    beyond_grpc(
        "operation paths: ['/a/{*}/c']",
        &["a /a/b/c"],
        &["a /a/b/d/c", "a /a/b"],
    ),
    beyond_grpc("operation paths: ['/a/{**}']", &["a /a/b/c"], &["a /b/c"]),
];

const CONDITIONS: &[Operator] = &[
    operator(
        "request.headers[x-team] values: [blue]",
        &[BLUE],
        &["a /s/M x-team=red", A],
    ),
    operator("request.headers[x-team] values: ['b*']", &[BLUE], &[A]),
    operator(
        "request.headers[x-team] values: ['*e']",
        &[BLUE],
        &["a /s/M x-team=red"],
    ),
    operator(
        "request.headers[x-team] values: ['*']",
        &[BLUE, "a /s/M x-team=red"],
        &[A],
    ),
    operator("source.ip values: [127.0.0.0/8]", &[A], &[]),
    operator("source.ip values: [192.0.2.1]", &[], &[A]),
    operator("remote.ip values: [127.0.0.0/8]", &[A], &[]),
    operator(
        "remote.ip values: [192.0.2.1]",
        &[],
        &["a /s/M x-forwarded-for=192.0.2.1"],
    ),
    operator("source.namespace values: [default]", &[A], &[FAR]),
    operator(
        "source.principal values: [cluster.local/ns/default/sa/a]",
        &[A],
        &[B],
    ),
    operator("source.principal values: ['*/sa/a']", &[FAR], &[B]),
    operator("source.serviceAccount values: [default/a]", &[A], &[B, FAR]),
    operator("destination.ip values: [127.0.0.0/8]", &[A], &[]),
    operator("destination.ip values: [192.0.2.1]", &[], &[A]),
    operator("destination.port values: [PORTS]", &[A], &[]),
    operator("destination.port values: ['1']", &[], &[A]),
    beyond_grpc(
        "connection.sni values: [a.example]",
        &["a /s/M sni=a.example"],
        &["a /s/M sni=b.example", A],
    ),
    beyond_grpc(
        "connection.sni values: ['*.example']",
        &["a /s/M sni=a.example"],
        &["a /s/M sni=a.other"],
    ),
    beyond_grpc(
        "connection.sni values: ['*']",
        &["a /s/M sni=a.example"],
        &[A],
    ),
    beyond_grpc(
        "request.auth.principal values: ['https://issuer.example/admin-user']",
        &[GOOD],
        &[OTHER, A],
    ),
    beyond_grpc("request.auth.audiences values: [b]", &[GOOD], &[OTHER, A]),
    beyond_grpc("request.auth.presenter values: [app]", &[GOOD], &[OTHER, A]),
    beyond_grpc(
        "request.auth.claims[groups] values: [dev]",
        &[GOOD],
        &[OTHER, A],
    ),
    beyond_grpc(
        "request.auth.claims[sub] values: ['admin*']",
        &[GOOD],
        &[OTHER, A],
    ),
    beyond_grpc(
        "request.auth.claims[nested][team] values: ['*lue']",
        &[GOOD],
        &[OTHER],
    ),
    beyond_grpc(
        "request.auth.claims[azp] values: ['*']",
        &[GOOD],
        &[OTHER, A],
    ),
];

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for operator in SOURCES.iter().chain(OPERATIONS).chain(CONDITIONS) {
        let (matching, other) = (operator.matching, operator.other);
        let is = operator.rule(false);
        rows.push(operator.row("ALLOW", &is, matching, other));
        rows.push(operator.row("DENY", &is, other, matching));
        let is_not = operator.rule(true);
        rows.push(operator.row("ALLOW", &is_not, other, matching));
        rows.push(operator.row("DENY", &is_not, matching, other));
    }
    for operator in [&SOURCES[0], &OPERATIONS[11], &CONDITIONS[0]] {
        let all = [operator.matching, operator.other].concat();
        rows.push(operator.row("AUDIT", &operator.rule(false), &all, &[]));
    }
    rows
}

impl Operator {
    /// The rule that says it, or its opposite.
    fn rule(&self, negated: bool) -> String {
        let (side, said) = self.rule.split_once(' ').unwrap();
        let said = if negated {
            let (first, rest) = said.split_at(1);
            format!("not{}{rest}", first.to_ascii_uppercase())
        } else {
            said.to_owned()
        };
        match side {
            "source" => format!("from: [{{source: {{{said}}}}}]"),
            "operation" => format!("to: [{{operation: {{{said}}}}}]"),
            key => format!("when: [{{key: '{key}', {said}}}]"),
        }
    }

    fn row(&self, action: &str, rule: &str, passing: &[&str], denied: &[&str]) -> Row {
        let passing = passing.iter().map(|call| (*call, Verdict::Passes));
        let denied = denied.iter().map(|call| (*call, Verdict::Denied));
        let asked = passing.chain(denied).map(|(call, mesh)| Asked {
            call: call.to_owned(),
            grpc: match self.in_grpc {
                true => mesh.clone(),
                // What allows allows nothing there, and what denies denies everything.
                false => Verdict::Denied,
            },
            mesh,
        });
        let tokens = if rule.contains("equest") && !rule.contains("request.headers") {
            TOKENS
        } else {
            ""
        };
        Row {
            title: format!("{action} {rule}"),
            objects: format!(
                "kind: AuthorizationPolicy\nmetadata: {{name: NAME}}\n\
                 spec: {{SELECTOR, action: {action}, rules: [{{{rule}}}]}}\n{tokens}"
            ),
            asked: asked.collect(),
            ..Row::default()
        }
    }
}
