//! Roots by trust domain, as SPIFFE publishes them (gRFC A87).
//!
//! ```json
//! {"trust_domains": {"example.com": {"spiffe_sequence": 1, "keys": [
//!     {"kty": "EC", "use": "x509-svid", "x5c": ["MII..."]}]}}}
//! ```
//!
//! One mistake anywhere refuses the whole file, so that no trust domain is believed by half. Of a
//! bundle `keys` and `spiffe_sequence` are read, of a key `kty`, `use` and `x5c`. Deviation from gRFC
//! A87: keys for tokens (`jwt-svid`), which SPIRE puts into the same bundle, are skipped, not refused.
//!
//! Spec: SPIFFE Trust Domain and Bundle §4, X509-SVID §6.1.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use mesh_core::config::SpiffeBundleMap;
use serde_json::{Map, Value};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a key that vouches for certificates is for.
const X509_SVID: &str = "x509-svid";
/// What a key that vouches for tokens is for.
const JWT_SVID: &str = "jwt-svid";
/// Longest trust domain, in bytes (SPIFFE-ID §2.1).
const TRUST_DOMAIN_LENGTH_MAX: usize = 255;

type Object = Map<String, Value>;

/// Reads a bundle map; `name` is what messages call it.
///
/// # Errors
/// The first mistake, with its place.
pub(super) fn parse(name: &str, text: &[u8]) -> Result<SpiffeBundleMap, String> {
    let document: Value = serde_json::from_slice(text).map_err(|e| format!("not JSON: {e}"))?;
    let domains = document.get("trust_domains").and_then(Value::as_object);
    let domains = domains.ok_or("trust_domains: must be an object")?;
    let mut bundles = BTreeMap::new();
    for (domain, bundle) in domains {
        let place = format!("trust_domains[{domain:?}]");
        check_trust_domain(domain).map_err(|reason| format!("{place}: {reason}"))?;
        let bundle = bundle
            .as_object()
            .ok_or_else(|| format!("{place}: must be an object"))?;
        let roots = roots(bundle).map_err(|reason| format!("{place}.{reason}"))?;
        bundles.insert(domain.clone(), roots);
    }
    Ok(SpiffeBundleMap {
        name: name.into(),
        bundles,
    })
}

pub(super) fn check_trust_domain(name: &str) -> Result<(), &'static str> {
    let is_allowed = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    match (1..=TRUST_DOMAIN_LENGTH_MAX).contains(&name.len()) && name.bytes().all(is_allowed) {
        true => Ok(()),
        false => Err("a trust domain is lower-case letters, digits, '.', '-', '_'"),
    }
}

fn roots(bundle: &Object) -> Result<Vec<Bytes>, String> {
    let sequence = bundle.get("spiffe_sequence");
    if sequence.is_some_and(|sequence| sequence.as_u64().is_none()) {
        return Err("spiffe_sequence: must be a whole number".into());
    }
    let keys = bundle.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or("keys: must be a list")?;
    let mut roots = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        let root = root(key).map_err(|reason| format!("keys[{i}]{reason}"))?;
        roots.extend(root);
    }
    Ok(roots)
}

/// The certificate of a key; `None` when it is for tokens.
fn root(key: &Value) -> Result<Option<Bytes>, String> {
    let key = key.as_object().ok_or(": must be an object")?;
    let text = |field: &str| key.get(field).and_then(Value::as_str);
    match text("use") {
        Some(X509_SVID) => {}
        Some(JWT_SVID) => return Ok(None),
        _ => return Err(format!(".use: must be {X509_SVID:?}")),
    }
    if !matches!(text("kty"), Some("RSA" | "EC")) {
        return Err(".kty: must be \"RSA\" or \"EC\"".into());
    }
    let Some([certificate]) = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice) else {
        return Err(".x5c: must hold exactly one certificate".into());
    };
    let base64 = certificate.as_str().ok_or(".x5c[0]: must be text")?;
    let der = STANDARD
        .decode(base64)
        .map_err(|e| format!(".x5c[0]: not base64: {e}"))?;
    match X509Certificate::from_der(&der) {
        Ok(([], _)) => Ok(Some(der.into())),
        Ok(_) => Err(".x5c[0]: there is more behind the certificate".into()),
        Err(e) => Err(format!(".x5c[0]: not X.509: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn certificate() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::default();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn key(der: &[u8]) -> Value {
        json!({"kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(der)], "kid": "ignored"})
    }

    fn parsed(map: &Value) -> Result<SpiffeBundleMap, String> {
        parse("map.json", map.to_string().as_bytes())
    }

    #[test]
    fn each_trust_domain_has_its_own_roots_and_keys_for_tokens_are_none() {
        let (a, b, c) = (certificate(), certificate(), certificate());
        let token = json!({"kty": "EC", "use": "jwt-svid", "kid": "k", "crv": "P-256"});
        let map = parsed(&json!({"trust_domains": {
            "a.example": {"spiffe_sequence": 12, "spiffe_refresh_hint": 60, "keys": [key(&a), token, key(&b)]},
            "b.example": {"keys": [key(&c)]},
            "none.example": {"keys": []},
        }}));
        let map = map.unwrap();
        let of = |domain: &str| {
            map.bundles[domain]
                .iter()
                .map(|der| der.to_vec())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("a.example"), [a, b]);
        assert_eq!(of("b.example"), [c]);
        assert!(of("none.example").is_empty());
        let empty = parsed(&json!({"trust_domains": {}})).unwrap();
        assert!(empty.bundles.is_empty(), "an empty map is one");
    }

    #[test]
    fn one_mistake_refuses_the_file_and_is_named_with_its_place() {
        let der = certificate();
        let good = key(&der);
        let with = |field: &str, value: Value| {
            let mut changed = good.clone();
            changed[field] = value;
            json!({"trust_domains": {"t": {"keys": [good, changed]}}})
        };
        let longer = [&der[..], b"x"].concat();
        let base64 = STANDARD.encode(&der);
        let at = "trust_domains[\"t\"].keys[1]";
        for (map, expected) in [
            (json!([]), "trust_domains: must be an object".to_owned()),
            (
                json!({"keys": [good]}),
                "trust_domains: must be an object".into(),
            ),
            (
                json!({"trust_domains": []}),
                "trust_domains: must be an object".into(),
            ),
            (
                json!({"trust_domains": {"T": {"keys": []}}}),
                "trust_domains[\"T\"]: a trust".into(),
            ),
            (
                json!({"trust_domains": {"": {"keys": []}}}),
                "trust_domains[\"\"]: a trust".into(),
            ),
            (
                json!({"trust_domains": {"t": 1}}),
                "trust_domains[\"t\"]: must be".into(),
            ),
            (
                json!({"trust_domains": {"t": {}}}),
                "trust_domains[\"t\"].keys: must".into(),
            ),
            (
                json!({"trust_domains": {"t": {"keys": [], "spiffe_sequence": "1"}}}),
                "trust_domains[\"t\"].spiffe_sequence: must".into(),
            ),
            (
                json!({"trust_domains": {"t": {"keys": [], "spiffe_sequence": -1}}}),
                "trust_domains[\"t\"].spiffe_sequence: must".into(),
            ),
            (
                json!({"trust_domains": {"t": {"keys": [1]}}}),
                "keys[0]: must be".into(),
            ),
            (with("kty", json!("OKP")), format!("{at}.kty: must be")),
            (with("kty", Value::Null), format!("{at}.kty: must be")),
            (with("use", json!("sig")), format!("{at}.use: must be")),
            (with("use", Value::Null), format!("{at}.use: must be")),
            (
                with("x5c", Value::Null),
                format!("{at}.x5c: must hold exactly one"),
            ),
            (
                with("x5c", json!([])),
                format!("{at}.x5c: must hold exactly one"),
            ),
            (
                with("x5c", json!([base64, base64])),
                format!("{at}.x5c: must hold exactly one"),
            ),
            (
                with("x5c", json!([1])),
                format!("{at}.x5c[0]: must be text"),
            ),
            (
                with("x5c", json!(["%"])),
                format!("{at}.x5c[0]: not base64"),
            ),
            (
                with("x5c", json!(["AAAA"])),
                format!("{at}.x5c[0]: not X.509"),
            ),
            (
                with("x5c", json!([STANDARD.encode(longer)])),
                format!("{at}.x5c[0]: there is more"),
            ),
        ] {
            let error = parsed(&map).unwrap_err();
            assert!(error.contains(&expected), "{map}: {error}");
        }
        let error = parse("map.json", b"{").unwrap_err();
        assert!(error.contains("not JSON"), "{error}");
    }
}
