//! Where tokens stand, what of them applications see, and for whom and when they are good: Envoy and our
//! server do the same, over real sockets.

use std::{
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use mesh_examples::ports::free_address;
use tokio::net::TcpListener;

use super::{ask, for_envoy, listener, proxy, serve, signer::Signer};

/// Requests in flight: Envoy takes a second to close after a refusal.
const IN_FLIGHT: usize = 16;

/// Rules, and requests with the status that is right. `A(…)` and `B(…)` stand for tokens of two issuers
/// with these claims besides, `NOW+n` for a date.
type Case = (&'static str, &'static [(&'static str, u16)]);

const A: &str = "issuer: 'https://a.example', jwks: 'KEYS-A'";
const B: &str = "issuer: 'https://b.example', jwks: 'KEYS-B'";

const CASES: [Case; 9] = [
    (
        "{RULE-A, fromCookies: [session, other]}",
        &[
            ("GET / cookie=a=b;session=A();c=d", 200),
            ("GET / cookie=other=A()", 200),
            ("GET / cookie=session=B()", 401),
            ("GET / cookie=third=B()", 200),
            // Nobody looks there.
            ("GET / authorization=Bearer_B()", 200),
        ],
    ),
    (
        "{RULE-A}",
        &[
            ("GET / authorization=Bearer_A()", 200),
            ("GET /?access_token=A()", 200),
            ("GET /?a=1&access_token=A()&b=2", 200),
            ("GET / authorization=Bearer_B()", 401),
            ("GET / authorization=Bearer_x", 401),
            ("GET / authorization=Basic_eDp5", 200),
        ],
    ),
    (
        "{RULE-A, forwardOriginalToken: true}",
        &[
            ("GET / authorization=Bearer_A()", 200),
            ("GET /?a=1&access_token=A()&b=2", 200),
        ],
    ),
    (
        "{RULE-A, fromHeaders: [{name: x-t-token, prefix: 'T '}], fromParams: [t], fromCookies: [c], \
         outputPayloadToHeader: x-t-payload}",
        &[
            ("GET / x-t-token=T_A()", 200),
            ("GET / x-t-token=T_A() x-t-payload=mine", 200),
            ("GET / x-t-payload=mine", 200),
            ("GET /?t=A()", 200),
            ("GET / cookie=c=A()", 200),
            ("GET / x-t-token=T_B()", 401),
        ],
    ),
    (
        "{RULE-A, fromHeaders: [{name: x-t-token, prefix: 'T '}], fromParams: [t], fromCookies: [c], \
         forwardOriginalToken: true}",
        &[
            ("GET / x-t-token=T_A()", 200),
            ("GET /?t=A()", 200),
            ("GET / cookie=c=A()", 200),
        ],
    ),
    (
        "{RULE-A, outputClaimToHeaders: [{header: x-t-sub, claim: sub}, \
         {header: x-t-city, claim: address.city}, {header: x-t-zip, claim: address.more.zip}, \
         {header: x-t-on, claim: on}, {header: x-t-none, claim: none.at.all}]}",
        &[
            (
                "GET / authorization=Bearer_A(\"sub\":\"s\",\"on\":true,\"address\":{\"city\":\"Bonn\",\"more\":{\"zip\":53111}})",
                200,
            ),
            (
                "GET / authorization=Bearer_A(\"sub\":\"s\") x-t-city=mine x-t-none=mine",
                200,
            ),
            ("GET / x-t-sub=mine", 200),
        ],
    ),
    (
        "{RULE-A}, {RULE-B, outputClaimToHeaders: [{header: x-t-b, claim: sub}]}",
        &[
            ("GET / authorization=Bearer_A(\"sub\":\"s\")", 200),
            ("GET / authorization=Bearer_B(\"sub\":\"s\")", 200),
            ("GET / authorization=Bearer_A() x-t-b=mine", 200),
            ("GET / authorization=Bearer_x", 401),
        ],
    ),
    (
        "{RULE-A, audiences: [shop, 'https://api.example']}",
        &[
            ("GET / authorization=Bearer_A(\"aud\":\"shop\")", 200),
            (
                "GET / authorization=Bearer_A(\"aud\":[\"x\",\"http://api.example/\"])",
                200,
            ),
            ("GET / authorization=Bearer_A(\"aud\":\"bank\")", 403),
            ("GET / authorization=Bearer_A()", 403),
            ("GET /", 200),
        ],
    ),
    (
        "{RULE-A}",
        &[
            (
                "GET / authorization=Bearer_A(\"exp\":NOW+600,\"nbf\":NOW-600)",
                200,
            ),
            ("GET / authorization=Bearer_A(\"exp\":NOW-20)", 200),
            ("GET / authorization=Bearer_A(\"exp\":NOW-600)", 401),
            ("GET / authorization=Bearer_A(\"nbf\":NOW+30)", 200),
            ("GET / authorization=Bearer_A(\"nbf\":NOW+600)", 401),
        ],
    ),
];

/// Puts tokens in the place of `A(…)` and `B(…)`.
fn signed(text: &str, [a, b]: &[Signer; 2]) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut text = text.to_owned();
    for (mark, signer, issuer) in [("A(", a, "a"), ("B(", b, "b")] {
        while let Some(at) = text.find(mark) {
            let end = at + text[at..].find(')').unwrap();
            let mut claims = text[at + mark.len()..end].to_owned();
            while let Some(at) = claims.find("NOW") {
                let rest = &claims[at + 3..];
                let length = rest[1..].find(|c: char| !c.is_ascii_digit());
                let length = length.map_or(rest.len(), |length| length + 1);
                let date = now
                    .checked_add_signed(rest[..length].parse().unwrap())
                    .unwrap();
                claims.replace_range(at..at + 3 + length, &date.to_string());
            }
            let comma = if claims.is_empty() { "" } else { "," };
            let claims = format!("{{\"iss\":\"https://{issuer}.example\"{comma}{claims}}}");
            text.replace_range(at..=end, &signer.token(&claims));
        }
    }
    text
}

fn request(asked: &str) -> String {
    let mut words = asked.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: api\r\n");
    for word in words {
        let (name, value) = word.split_once('=').unwrap();
        let value = value.replacen('_', " ", 1);
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "connection: close\r\n\r\n"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_and_our_server_look_for_tokens_in_the_same_places_and_tell_applications_the_same() {
    let signers = [Signer::new(), Signer::new()];
    let (mut served, mut listeners) = (Vec::new(), Vec::new());
    for (rules, requests) in CASES {
        let envoy = free_address().unwrap();
        let rules = rules.replace("RULE-A", A).replace("RULE-B", B);
        let rules = rules
            .replace("KEYS-A", &signers[0].keys())
            .replace("KEYS-B", &signers[1].keys());
        let objects = format!(
            "---\nkind: RequestAuthentication\nmetadata: {{name: tokens}}\nspec: {{jwtRules: [{rules}]}}\n"
        );
        let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let our_address = ours.local_addr().unwrap();
        serve(&listener(&objects, our_address), ours).await;
        listeners.push(for_envoy(&listener(&objects, envoy)));
        served.push((requests, our_address, envoy));
    }
    let folder = tempfile::tempdir().unwrap();
    let last = served[served.len() - 1].2;
    let _envoy = proxy::envoy(folder.path(), listeners, last).await;
    let signers = &signers;
    let asked = served
        .iter()
        .enumerate()
        .flat_map(|(case, (requests, ours, envoy))| {
            let requests = requests.iter();
            requests.map(move |(asked, right)| (case, *asked, *right, *ours, *envoy))
        });
    let wrong = stream::iter(asked).map(|(case, asked, right, ours, envoy)| async move {
        // Underscores are blanks in what is written here, not in what is signed.
        let request = signed(&request(asked), signers);
        let ((ours, seen), (theirs, seen_there)) =
            tokio::join!(ask(ours, &request), ask(envoy, &request));
        let is_right = (ours, theirs) == (right, right) && (right != 200 || seen == seen_there);
        let text = format!(
            "{}\n{asked}: {right} is right\n  ours {ours} {seen}\n  Envoy's {theirs} {seen_there}\n",
            CASES[case].0
        );
        (!is_right).then_some(text)
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
