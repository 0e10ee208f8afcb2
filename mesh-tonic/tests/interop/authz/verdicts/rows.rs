//! Rows that are not about one operator: tokens, intentions, several policies, and what fails closed.

use super::{
    Asked,
    Verdict::{self, Denied, Passes, Refused, Unauthenticated},
};

/// Objects for one server, and calls of it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) title: String,
    /// `SELECTOR` selects the server, `NAME` is its service, `PORTS` are its ports at the three
    /// servers, and `KEYS` is the issuer's key set.
    pub(super) objects: String,
    pub(super) asked: Vec<Asked>,
    /// The mode of PeerAuthentication.
    pub(super) mode: &'static str,
    /// Whether the objects do not compile.
    pub(super) is_broken: bool,
    /// Whether the server has a certificate.
    pub(super) has_certificate: bool,
}

impl Default for Row {
    fn default() -> Self {
        Self {
            title: String::new(),
            objects: String::new(),
            asked: Vec::new(),
            mode: "STRICT",
            is_broken: false,
            has_certificate: true,
        }
    }
}

/// Whose tokens are believed.
pub(super) const TOKENS: &str = "---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: NAME}
spec: {SELECTOR, jwtRules: [{issuer: 'https://issuer.example', jwks: 'KEYS'}]}
";

pub(super) const GOOD: &str = "a /s/M authorization=TOKEN({\"iss\":\"https://issuer.example\",\
    \"sub\":\"admin-user\",\"aud\":[\"a\",\"b\"],\"azp\":\"app\",\"groups\":[\"dev\"],\
    \"nested\":{\"team\":\"blue\"}})";
pub(super) const OTHER: &str = "a /s/M authorization=TOKEN({\"iss\":\"https://issuer.example\",\
    \"sub\":\"someone\",\"aud\":\"c\",\"groups\":\"ops\"})";
pub(super) const BLUE: &str = "a /s/M x-team=blue";
const FOREIGN: &str = "a /s/M authorization=TOKEN({\"iss\":\"https://other.example\"})";
const EXPIRED: &str =
    "a /s/M authorization=TOKEN({\"iss\":\"https://issuer.example\",\"exp\":1000})";

type Calls = &'static [(&'static str, Verdict)];

fn row(title: &str, objects: &str, calls: Calls) -> Row {
    let asked = calls.iter().map(|(call, verdict)| Asked {
        call: (*call).to_owned(),
        mesh: verdict.clone(),
        grpc: verdict.clone(),
    });
    Row {
        title: title.to_owned(),
        objects: objects.to_owned(),
        asked: asked.collect(),
        ..Row::default()
    }
}

/// A policy with the rest of its `spec`.
fn policy(rest: &str) -> String {
    named_policy("NAME", rest)
}

fn named_policy(name: &str, rest: &str) -> String {
    format!("kind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {{SELECTOR, {rest}}}\n")
}

fn intentions(sources: &str) -> String {
    format!(
        "kind: ServiceIntentions\nmetadata: {{name: NAME}}\n\
         spec: {{destination: {{name: NAME}}, sources: {sources}}}\n"
    )
}

const ANYBODY: Calls = &[("a /s/M", Passes), ("far/b /t/N", Passes)];
const NOBODY: Calls = &[("a /s/M", Denied), ("far/b /t/N", Denied)];

pub(super) fn rows() -> Vec<Row> {
    let parts = [connections(), tokens(), policies(), consul(), broken()];
    parts.into_iter().flatten().collect()
}

fn connections() -> Vec<Row> {
    let with_mode = |mode, row| Row { mode, ..row };
    vec![
        row(
            "STRICT, no policy",
            "",
            &[
                ("a /s/M", Passes),
                ("plain /s/M", Refused),
                ("nobody /s/M", Refused),
                ("stranger /s/M", Refused),
            ],
        ),
        with_mode(
            "DISABLE",
            row(
                "DISABLE: nobody has a name",
                &policy("rules: [{from: [{source: {principals: ['*']}}]}]"),
                &[("plain /s/M", Denied), ("a /s/M", Refused)],
            ),
        ),
        with_mode(
            "DISABLE",
            row(
                "DISABLE: nobody has a name that is denied",
                &policy("action: DENY, rules: [{from: [{source: {namespaces: [default]}}]}]"),
                &[("plain /s/M", Passes)],
            ),
        ),
        with_mode(
            "DISABLE",
            row(
                "DISABLE: who has no name is not in any namespace",
                &policy("rules: [{from: [{source: {notNamespaces: [default]}}]}]"),
                &[("plain /s/M", Passes)],
            ),
        ),
        with_mode("PERMISSIVE", permissive()),
        Row {
            has_certificate: false,
            ..row(
                "STRICT, and the server has no certificate",
                "",
                &[("a /s/M", Refused)],
            )
        },
    ]
}

/// gRPC cannot tell TLS from plaintext on one port: PERMISSIVE is plaintext there.
fn permissive() -> Row {
    let mut row = row(
        "PERMISSIVE, and who has no name is denied",
        &policy("action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]"),
        &[
            ("a /s/M", Passes),
            ("plain /s/M", Denied),
            ("stranger /s/M", Refused),
            ("nobody /s/M", Refused),
        ],
    );
    row.asked[0].grpc = Refused;
    row
}

/// gRPC verifies no tokens: calls with one are refused.
fn tokens() -> Vec<Row> {
    let mut tokens = row(
        "tokens",
        TOKENS,
        &[
            ("a /s/M", Passes),
            (GOOD, Passes),
            (OTHER, Passes),
            (FOREIGN, Unauthenticated),
            (EXPIRED, Unauthenticated),
            ("a /s/M authorization=Bearer+a.b.c", Unauthenticated),
            ("a /s/M authorization=Basic+a", Passes),
        ],
    );
    for asked in &mut tokens.asked {
        if asked.call.contains("TOKEN") || asked.call.contains("Bearer") {
            asked.grpc = Denied;
        }
    }
    vec![tokens]
}

fn policies() -> Vec<Row> {
    let both = |first: &str, second: &str| {
        let second = named_policy("NAME-2", second);
        format!("{}---\n{second}", policy(first))
    };
    vec![
        row("no policy", "", ANYBODY),
        row(
            "ALLOW without rules allows nothing",
            &policy("rules: []"),
            NOBODY,
        ),
        row("ALLOW of an empty rule", &policy("rules: [{}]"), ANYBODY),
        row(
            "DENY of an empty rule",
            &policy("action: DENY, rules: [{}]"),
            NOBODY,
        ),
        row(
            "DENY without rules",
            &policy("action: DENY, rules: []"),
            ANYBODY,
        ),
        row("AUDIT", &policy("action: AUDIT, rules: [{}]"), ANYBODY),
        row(
            "DENY beats ALLOW",
            &both(
                "rules: [{}]",
                "action: DENY, rules: [{to: [{operation: {paths: [/s/M]}}]}]",
            ),
            &[("a /s/M", Denied), ("a /s/N", Passes)],
        ),
        row(
            "one of two ALLOW policies",
            &both(
                "rules: [{from: [{source: {serviceAccounts: [a]}}]}]",
                "rules: [{to: [{operation: {paths: [/s/N]}}]}]",
            ),
            &[("a /s/M", Passes), ("b /s/N", Passes), ("b /s/M", Denied)],
        ),
        row(
            "all parts of a rule, one of its sources, one of its operations",
            &policy(
                "rules: [{from: [{source: {serviceAccounts: [a]}}, {source: {namespaces: [far]}}], \
                 to: [{operation: {paths: [/s/M]}}, {operation: {paths: ['/t/*'], \
                 notPaths: [/t/N]}}], when: [{key: 'request.headers[x-team]', values: [blue]}]}]",
            ),
            &[
                (BLUE, Passes),
                ("far/z /t/M x-team=blue", Passes),
                ("a /s/M", Denied),
                ("b /s/M x-team=blue", Denied),
                ("a /t/N x-team=blue", Denied),
                ("a /s/N x-team=blue", Denied),
            ],
        ),
        row(
            "dry run decides nothing",
            "kind: AuthorizationPolicy\n\
             metadata: {name: NAME, annotations: {istio.io/dry-run: 'true'}}\n\
             spec: {SELECTOR, action: DENY, rules: [{}]}\n",
            ANYBODY,
        ),
    ]
}

fn consul() -> Vec<Row> {
    vec![
        row(
            "intention: allow one",
            &intentions("[{name: a, action: allow}]"),
            &[
                ("a /s/M", Passes),
                ("b /s/M", Denied),
                ("far/a /s/M", Denied),
            ],
        ),
        row(
            "intention: deny one",
            &intentions("[{name: a, action: deny}]"),
            &[("a /s/M", Denied), ("b /s/M", Passes)],
        ),
        row(
            "intention: exact before *, deny",
            &intentions("[{name: '*', action: allow}, {name: a, action: deny}]"),
            &[("a /s/M", Denied), ("b /s/M", Passes)],
        ),
        row(
            "intention: exact before *, allow",
            &intentions("[{name: '*', action: deny}, {name: a, action: allow}]"),
            &[
                ("a /s/M", Passes),
                ("b /s/M", Denied),
                ("far/a /s/M", Denied),
            ],
        ),
        row(
            "intention: a namespace before every one",
            &intentions(
                "[{name: '*', namespace: '*', action: allow}, \
                 {name: '*', namespace: default, action: deny}]",
            ),
            &[("a /s/M", Denied), ("far/a /s/M", Passes)],
        ),
        row(
            "intention: another namespace",
            &intentions("[{name: a, namespace: far, action: allow}]"),
            &[("a /s/M", Denied), ("far/a /s/M", Passes)],
        ),
        row(
            "intention: permissions, the first that matches",
            &intentions(
                "[{name: a, permissions: [{action: deny, http: {pathExact: /s/M}}, \
                 {action: allow, http: {pathPrefix: /s/}}, \
                 {action: allow, http: {pathRegex: '/[tu]/M+'}}]}]",
            ),
            &[
                ("a /s/M", Denied),
                ("a /s/N", Passes),
                ("a /t/MM", Passes),
                ("a /t/N", Denied),
                ("b /s/N", Denied),
            ],
        ),
        row(
            "intention: permissions by method",
            &intentions(
                "[{name: a, permissions: [{action: allow, http: {methods: [GET, POST]}}]}, \
                 {name: b, permissions: [{action: allow, http: {methods: [GET]}}]}]",
            ),
            &[("a /s/M", Passes), ("b /s/M", Denied)],
        ),
        row(
            "intention: permissions by header",
            &intentions(
                "[{name: a, permissions: [\
                 {action: deny, http: {header: [{name: x-no, present: true}]}}, \
                 {action: allow, http: {header: [{name: x-team, exact: blue}]}}, \
                 {action: allow, http: {header: [{name: x-team, prefix: gr}]}}, \
                 {action: allow, http: {header: [{name: x-team, suffix: ow}]}}, \
                 {action: allow, http: {header: [{name: x-team, regex: 'o.+e'}]}}, \
                 {action: allow, http: {header: [{name: x-not, exact: red, invert: true}, \
                 {name: x-not, present: true}]}}]}]",
            ),
            &[
                (BLUE, Passes),
                ("a /s/M x-team=blue x-no=1", Denied),
                ("a /s/M x-team=green", Passes),
                ("a /s/M x-team=yellow", Passes),
                ("a /s/M x-team=orange", Passes),
                ("a /s/M x-team=red", Denied),
                ("a /s/M x-not=blue", Passes),
                ("a /s/M x-not=red", Denied),
                ("b /s/M x-team=blue", Denied),
            ],
        ),
        row(
            "intention and policy: both must let pass",
            &format!(
                "{}---\n{}",
                intentions("[{name: a, action: deny}]"),
                policy("rules: [{from: [{source: {serviceAccounts: [a, b]}}]}]")
            ),
            &[
                ("a /s/M", Denied),
                ("b /s/M", Passes),
                ("far/a /s/M", Denied),
            ],
        ),
    ]
}

/// What cannot be used closes what it is about.
fn broken() -> Vec<Row> {
    let other = named_policy("NAME-2", "rules: [{}]");
    let rows = [
        row(
            "unknown action",
            &format!("{}---\n{other}", policy("action: MAYBE, rules: [{}]")),
            NOBODY,
        ),
        row(
            "unknown field",
            &format!("{}---\n{other}", policy("rule: [{}]")),
            NOBODY,
        ),
        row(
            "DENY with a broken rule",
            &policy("action: DENY, rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]"),
            NOBODY,
        ),
        row(
            "ALLOW with a broken rule",
            &policy("rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]"),
            NOBODY,
        ),
        row(
            "ALLOW with a broken rule and another",
            &policy(
                "rules: [{to: [{operation: {ports: [http]}}]}, \
                 {from: [{source: {serviceAccounts: [a]}}]}]",
            ),
            &[("a /s/M", Passes), ("b /s/M", Denied)],
        ),
        row(
            "ALLOW under an unknown condition",
            &policy("rules: [{when: [{key: source.mood, values: [good]}]}]"),
            NOBODY,
        ),
        row(
            "DENY under an unknown condition",
            &policy("action: DENY, rules: [{when: [{key: source.mood, values: [good]}]}]"),
            NOBODY,
        ),
        row(
            "intention with an action that nobody knows",
            &intentions("[{name: '*', action: maybe}]"),
            NOBODY,
        ),
        row(
            "intention with a broken regular expression",
            &intentions("[{name: a, permissions: [{action: allow, http: {pathRegex: '('}}]}]"),
            NOBODY,
        ),
        row(
            "tokens of keys that cannot be read",
            "kind: RequestAuthentication\nmetadata: {name: NAME}\n\
             spec: {SELECTOR, jwtRules: [{issuer: '', jwks: 'KEYS'}]}\n",
            NOBODY,
        ),
    ];
    let broken = rows.into_iter().map(|row| Row {
        is_broken: true,
        ..row
    });
    broken.collect()
}
