//! The decision table: objects, requests, and whether each may pass.

use std::net::{Ipv4Addr, SocketAddr};

use futures_util::{StreamExt as _, stream};
use mesh_examples::ports::free_address;
use tokio::net::TcpListener;

use super::{ask, for_envoy, listener, proxy, serve, signer::Signer};

/// Requests at a time.
const IN_FLIGHT: usize = 32;

/// A request: `METHOD PATH [header=value]…`; `TOKEN(claims)` stands for a signed token.
type Asked = (&'static str, u16);

struct Case {
    /// Objects; `PORT` stands for the server's.
    objects: String,
    requests: &'static [Asked],
}

fn case(objects: &str, requests: &'static [Asked]) -> Case {
    Case {
        objects: objects.to_owned(),
        requests,
    }
}

/// One policy with these rules.
fn policy(action: &str, rules: &str, requests: &'static [Asked]) -> Case {
    let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n";
    let spec = format!("spec: {{action: {action}, rules: {rules}}}\n");
    case(&format!("{head}metadata: {{name: p}}\n{spec}"), requests)
}

/// Whose tokens are believed; `KEYS` stands for the key set.
const TOKENS: &str = "
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec: {jwtRules: [{issuer: 'https://issuer.example', jwks: 'KEYS'}]}
";

const GOOD: &str = "GET / authorization=TOKEN({\"iss\":\"https://issuer.example\",\"sub\":\"admin-user\",\"aud\":[\"a\",\"b\"],\"azp\":\"app\",\"groups\":[\"dev\"],\"nested\":{\"team\":\"blue\"}})";
const OTHER: &str = "GET / authorization=TOKEN({\"iss\":\"https://issuer.example\",\"sub\":\"someone\",\"aud\":\"c\",\"groups\":\"ops\"})";
const FOREIGN: &str =
    "GET / authorization=TOKEN({\"iss\":\"https://other.example\",\"sub\":\"admin-user\"})";
const EXPIRED: &str = "GET / authorization=TOKEN({\"iss\":\"https://issuer.example\",\"sub\":\"admin-user\",\"exp\":1000})";

fn operations() -> Vec<Case> {
    let mut all = Vec::new();
    for (operation, matching, other) in [
        ("paths: [/a]", "GET /a", "GET /a/b"),
        ("paths: [/a]", "GET /a?b", "GET /b"),
        ("paths: ['/a*']", "GET /ab", "GET /b"),
        ("paths: ['*/a']", "GET /b/a", "GET /a/b"),
        ("paths: ['*']", "GET /", ""),
        ("paths: ['/a/{*}/c']", "GET /a/b/c", "GET /a/b/d/c"),
        ("paths: ['/a/{**}']", "GET /a/b/c", "GET /b"),
        ("methods: [POST]", "POST /", "GET /"),
        ("methods: ['P*']", "PUT /", "GET /"),
        (
            "hosts: [a.example]",
            "GET / host=A.Example",
            "GET / host=b.example",
        ),
        (
            "hosts: ['*.example']",
            "GET / host=a.EXAMPLE",
            "GET / host=example.com",
        ),
        ("ports: ['PORT']", "GET /", ""),
        ("ports: ['1']", "", "GET /"),
        ("paths: [/a], methods: [GET]", "GET /a", "POST /a"),
        // Other spellings of the same path.
        ("paths: [/admin]", "GET /x/../admin", "GET /admin/"),
        ("paths: [/admin]", "GET /%61dmin", "GET /admin%2F"),
        ("paths: [/admin]", "GET /x/%2e%2e/admin", "GET //admin"),
    ] {
        all.push(matches(
            &format!("to: [{{operation: {{{operation}}}}}]"),
            matching,
            other,
        ));
        let (field, rest) = operation.split_once(':').unwrap();
        if !operation.contains("],") {
            let mut not = field.to_owned();
            not[..1].make_ascii_uppercase();
            let negated = format!("to: [{{operation: {{not{not}:{rest}}}}}]");
            all.push(matches(&negated, other, matching));
        }
    }
    all.into_iter().flatten().collect()
}

fn sources() -> Vec<Case> {
    let mut all = Vec::new();
    for (source, matching, other) in [
        ("ipBlocks: [127.0.0.1]", "GET /", ""),
        ("ipBlocks: [127.0.0.0/8, 10.0.0.0/8]", "GET /", ""),
        (
            "ipBlocks: [192.0.2.0/24]",
            "",
            "GET / x-forwarded-for=192.0.2.1",
        ),
        ("notIpBlocks: [192.0.2.0/24]", "GET /", ""),
        ("notIpBlocks: [127.0.0.1]", "", "GET /"),
        (
            "remoteIpBlocks: [127.0.0.1]",
            "GET / x-forwarded-for=192.0.2.1",
            "",
        ),
        (
            "remoteIpBlocks: [192.0.2.0/24]",
            "",
            "GET / x-forwarded-for=192.0.2.1",
        ),
        ("notRemoteIpBlocks: [127.0.0.1]", "", "GET /"),
        // In plaintext nobody has a name.
        ("principals: ['*']", "", "GET /"),
        ("principals: [cluster.local/ns/default/sa/a]", "", "GET /"),
        ("notPrincipals: ['*']", "GET /", ""),
        ("namespaces: [default]", "", "GET /"),
        ("notNamespaces: [default]", "GET /", ""),
        ("serviceAccounts: [default/a]", "", "GET /"),
        ("notServiceAccounts: [a]", "GET /", ""),
        ("trustDomains: [cluster.local]", "", "GET /"),
        ("notTrustDomains: ['*']", "GET /", ""),
    ] {
        all.extend(matches(
            &format!("from: [{{source: {{{source}}}}}]"),
            matching,
            other,
        ));
    }
    all
}

fn conditions() -> Vec<Case> {
    let mut all = Vec::new();
    for (condition, matching, other) in [
        (
            "key: 'request.headers[x-team]', values: [blue]",
            "GET / x-team=blue",
            "GET / x-team=red",
        ),
        (
            "key: 'request.headers[x-team]', values: ['b*']",
            "GET / x-team=blue",
            "GET /",
        ),
        (
            "key: 'request.headers[x-team]', values: ['*']",
            "GET / x-team=a",
            "GET /",
        ),
        (
            "key: 'request.headers[x-team]', notValues: [blue]",
            "GET /",
            "GET / x-team=blue",
        ),
        ("key: source.ip, values: [127.0.0.0/8]", "GET /", ""),
        ("key: source.ip, notValues: [127.0.0.0/8]", "", "GET /"),
        ("key: remote.ip, values: [127.0.0.1]", "GET /", ""),
        ("key: destination.ip, values: [127.0.0.1]", "GET /", ""),
        ("key: destination.ip, notValues: [127.0.0.1]", "", "GET /"),
        ("key: destination.port, values: ['PORT']", "GET /", ""),
        ("key: destination.port, notValues: ['PORT']", "", "GET /"),
        ("key: source.namespace, values: [default]", "", "GET /"),
        ("key: source.principal, notValues: ['*']", "GET /", ""),
        ("key: connection.sni, values: [a.example]", "", "GET /"),
        ("key: connection.sni, notValues: [a.example]", "GET /", ""),
    ] {
        all.extend(matches(
            &format!("when: [{{{condition}}}]"),
            matching,
            other,
        ));
    }
    all
}

/// What a rule allows, and what the same rule denies.
fn matches(rule: &str, matching: &str, other: &str) -> Vec<Case> {
    let leak = |requests: Vec<Asked>| -> &'static [Asked] { requests.leak() };
    let of = |verdicts: [u16; 2]| {
        let asked = [(matching, verdicts[0]), (other, verdicts[1])];
        let asked = asked.into_iter().filter(|(request, _)| !request.is_empty());
        let asked = asked.map(|(request, verdict)| (&*request.to_owned().leak(), verdict));
        leak(asked.collect())
    };
    vec![
        policy("ALLOW", &format!("[{{{rule}}}]"), of([200, 403])),
        policy("DENY", &format!("[{{{rule}}}]"), of([403, 200])),
    ]
}

fn tokens() -> Vec<Case> {
    let mut all = vec![case(
        TOKENS,
        &[
            (GOOD, 200),
            (OTHER, 200),
            ("GET /", 200),
            (FOREIGN, 401),
            (EXPIRED, 401),
            ("GET / authorization=Bearer_a.b.c", 401),
            ("GET / authorization=Basic_a", 200),
        ],
    )];
    let both = |rule: &str, requests| {
        let with = policy("ALLOW", &format!("[{{{rule}}}]"), requests);
        case(&format!("{}{TOKENS}", with.objects), requests)
    };
    let only_admin: &[Asked] = &[(GOOD, 200), (OTHER, 403), ("GET /", 403), (EXPIRED, 401)];
    let anybody: &[Asked] = &[(GOOD, 200), (OTHER, 200), ("GET /", 403), (FOREIGN, 401)];
    let without: &[Asked] = &[(GOOD, 403), (OTHER, 403), ("GET /", 200)];
    for (rule, requests) in [
        ("from: [{source: {requestPrincipals: ['*']}}]", anybody),
        (
            "from: [{source: {requestPrincipals: ['https://issuer.example/*']}}]",
            anybody,
        ),
        (
            "from: [{source: {requestPrincipals: ['https://issuer.example/admin-user']}}]",
            only_admin,
        ),
        (
            "from: [{source: {requestPrincipals: ['*admin-user']}}]",
            only_admin,
        ),
        ("from: [{source: {notRequestPrincipals: ['*']}}]", without),
        (
            "when: [{key: 'request.auth.claims[sub]', values: [admin-user]}]",
            only_admin,
        ),
        (
            "when: [{key: 'request.auth.claims[groups]', values: [dev]}]",
            only_admin,
        ),
        (
            "when: [{key: 'request.auth.claims[nested][team]', values: [blue]}]",
            only_admin,
        ),
        (
            "when: [{key: request.auth.audiences, values: [b]}]",
            only_admin,
        ),
        (
            "when: [{key: request.auth.presenter, values: [app]}]",
            only_admin,
        ),
        (
            "when: [{key: request.auth.principal, values: ['https://issuer.example/admin-user']}]",
            only_admin,
        ),
    ] {
        all.push(both(rule, requests));
    }
    all
}

fn whole() -> Vec<Case> {
    let intentions = |sources: &str| {
        format!(
            "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceIntentions\n\
             metadata: {{name: api}}\nspec: {{destination: {{name: api}}, sources: {sources}}}\n"
        )
    };
    let own = |objects: String, requests| Case { objects, requests };
    vec![
        case("# nothing", &[("GET /", 200)]),
        // Deny-all denies, and so does the mesh when it is told to.
        case(
            "kind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {}\n",
            &[("GET /", 403)],
        ),
        case(
            "kind: MeshPolicy\nmetadata: {name: a}\nspec: {defaultDeny: true}\n",
            &[("GET /", 403)],
        ),
        policy("ALLOW", "[{}]", &[("GET /", 200)]),
        policy("DENY", "[{}]", &[("GET /", 403)]),
        policy("DENY", "[]", &[("GET /", 200)]),
        policy("AUDIT", "[{}]", &[("GET /", 200)]),
        own(
            intentions("[{name: web, action: allow}]"),
            &[("GET /", 403)],
        ),
        own(intentions("[{name: web, action: deny}]"), &[("GET /", 200)]),
        own(intentions("[{name: '*', action: deny}]"), &[("GET /", 403)]),
        own(
            intentions(
                "[{name: '*', permissions: [{action: deny, http: {pathPrefix: /admin}}, \
                 {action: deny, http: {methods: [POST]}}]}]",
            ),
            &[
                ("GET /", 200),
                ("GET /admin/x", 403),
                ("POST /", 403),
                ("GET /x/../admin", 403),
            ],
        ),
    ]
}

impl Signer {
    /// The bytes of a request.
    fn request(&self, asked: &str) -> String {
        let mut words = asked.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut headers = String::new();
        for word in words {
            let (name, value) = word.split_once('=').unwrap();
            let claims = value
                .strip_prefix("TOKEN(")
                .and_then(|rest| rest.strip_suffix(')'));
            let value = match claims {
                Some(claims) => format!("Bearer {}", self.token(claims)),
                None => value.replace('_', " "),
            };
            headers.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.contains("host: ") {
            headers.push_str("host: api\r\n");
        }
        let length = if method == "GET" {
            ""
        } else {
            "content-length: 0\r\n"
        };
        format!("{method} {path} HTTP/1.1\r\n{headers}{length}connection: close\r\n\r\n")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_and_our_server_come_to_the_verdicts_of_the_table() {
    let signer = Signer::new();
    let cases: Vec<Case> = [whole(), operations(), sources(), conditions(), tokens()]
        .into_iter()
        .flatten()
        .collect();
    let (mut served, mut listeners) = (Vec::new(), Vec::new());
    for case in &cases {
        let envoy = free_address().unwrap();
        let objects = |address: SocketAddr| {
            let objects = case.objects.replace("PORT", &address.port().to_string());
            objects.replace("KEYS", &signer.keys())
        };
        let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let our_address = ours.local_addr().unwrap();
        serve(&listener(&objects(our_address), our_address), ours).await;
        listeners.push(for_envoy(&listener(&objects(envoy), envoy)));
        served.push((our_address, envoy));
    }
    let folder = tempfile::tempdir().unwrap();
    let last = served[served.len() - 1].1;
    let _envoy = proxy::envoy(folder.path(), listeners, last).await;
    let asked = cases.iter().zip(&served).flat_map(|(case, (ours, envoy))| {
        let requests = case.requests.iter();
        requests.map(move |(asked, verdict)| (case, asked, verdict, *ours, *envoy))
    });
    // Envoy takes a second to close after a refusal.
    let wrong = stream::iter(asked).map(|(case, asked, verdict, ours, envoy)| {
        let request = signer.request(asked);
        async move {
            let ((ours, _), (theirs, _)) = tokio::join!(ask(ours, &request), ask(envoy, &request));
            let is_right = (ours, theirs) == (*verdict, *verdict);
            let text = format!("{asked}: {verdict} is right, ours {ours}, Envoy's {theirs}\n");
            (!is_right).then(|| text + &case.objects)
        }
    });
    let wrong: Vec<_> = wrong.buffer_unordered(IN_FLIGHT).collect().await;
    let wrong: Vec<_> = wrong.into_iter().flatten().collect();
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
