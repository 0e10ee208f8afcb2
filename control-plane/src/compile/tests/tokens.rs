//! Where the keys of issuers come from.

use std::time::Duration;

use super::*;

fn rule(uri: &str) -> String {
    format!(
        "kind: RequestAuthentication\nmetadata: {{name: t}}\n\
         spec: {{jwtRules: [{{issuer: i, jwksUri: '{uri}', timeout: 2s}}]}}\n"
    )
}

const BY_SERVERS: &str =
    "---\nkind: MeshPolicy\nmetadata: {name: m}\nspec: {remoteJwks: {cacheDuration: 1m}}\n";

fn keys(objects: &str) -> (Jwks, Vec<String>) {
    let (inbound, _, findings) = filters_of(objects);
    let filters = inbound.filter_chains[0].filters.iter();
    let mut providers = filters.filter_map(|filter| match &filter.config {
        FilterConfig::JwtAuthn(tokens) => tokens.providers.first(),
        _ => None,
    });
    let provider = providers.next().expect("an issuer");
    (provider.jwks.clone(), findings)
}

#[test]
fn servers_fetch_keys_through_a_service_of_the_mesh_where_that_is_asked_for() {
    let uri = format!("https://{FQDN}:8080/keys?a=b");
    let (inline, _) = keys(&rule(&uri));
    assert!(matches!(inline, Jwks::Inline(_)), "as Istio does it");
    let (fetched, findings) = keys(&format!("{}{BY_SERVERS}", rule(&uri)));
    assert_eq!(findings, [""; 0]);
    let expected = RemoteJwks {
        prefetch: true,
        cache_duration: Duration::from_secs(60),
        ..RemoteJwks::new(
            uri.parse().expect("an address"),
            format!("outbound|8080||{FQDN}"),
            Duration::from_secs(2),
        )
    };
    assert_eq!(fetched, Jwks::from(expected));
}

#[test]
fn keys_of_nobody_in_the_mesh_are_nobodys_and_that_is_said() {
    for (uri, why) in [
        ("https://issuer.example/keys", "add a ServiceEntry"),
        ("https://greeter.default/keys", "has no port 443"),
    ] {
        let (held, findings) = keys(&format!("{}{BY_SERVERS}", rule(uri)));
        assert_eq!(held, Jwks::from(r#"{"keys":[]}"#));
        let is_said = findings.iter().any(|finding| finding.contains(why));
        assert!(is_said, "{why}: {findings:?}");
    }
}
