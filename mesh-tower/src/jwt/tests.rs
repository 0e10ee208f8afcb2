//! Tokens of real keys, and what an attacker makes of them.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::header::AUTHORIZATION;
use mesh_core::{
    config::{ClaimToHeader, HeaderLocation},
    rng::SplitMix64,
};
use ring::{
    hmac, rand,
    rsa::PublicKeyComponents,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RsaKeyPair,
    },
};
use serde_json::json;

use super::*;
use crate::fuzz;

const ISSUER: &str = "https://issuer.example";
/// A key of 2048 bits that signs nothing but the tokens of these tests.
const RSA_KEY: &[u8] = include_bytes!("testdata/rsa.pk8");
const NOW: u64 = 1_800_000_000;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::from_pkcs8(RSA_KEY).expect("a key"))
    }

    fn ec() -> Self {
        let random = rand::SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        Self::Ec(EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).expect("a key"))
    }

    fn ed() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&rand::SystemRandom::new()).expect("a key");
        Self::Ed(Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("a key"))
    }

    fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "kid": id, "use": "sig",
                    "n": b64(public.n), "e": b64(public.e)})
            }
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": id,
                    "x": b64(&point[1..33]), "y": b64(&point[33..])})
            }
            Self::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": b64(key.public_key())})
            }
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
        }
    }

    fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let random = rand::SystemRandom::new();
        let signature = match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(
                    &RSA_PKCS1_SHA256,
                    &random,
                    signed.as_bytes(),
                    &mut signature,
                )
                .expect("signed");
                signature
            }
            Self::Ec(key) => {
                let signature = key.sign(&random, signed.as_bytes()).expect("signed");
                signature.as_ref().to_vec()
            }
            Self::Ed(key) => key.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", b64(signature))
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({"alg": self.algorithm(), "kid": "k"}), claims)
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "alice", "aud": "orders", "exp": NOW + 600, "groups": ["dev"],
        "address": {"city": "Berlin"}, "level": 3})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn provider(keys: &[Value]) -> JwtProvider {
    JwtProvider {
        payload_in_metadata: "payload".into(),
        ..JwtProvider::new("test", ISSUER, set(keys))
    }
}

fn verifier(providers: Vec<JwtProvider>) -> Verifier {
    Verifier::compile(&JwtAuthn { providers }, |_| {
        unreachable!("its keys are inline")
    })
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::try_from(format!("Bearer {token}")).expect("a header");
    headers.insert(AUTHORIZATION, value);
    headers
}

/// Whether a bearer token is believed, and if not why.
fn ask(verifier: &Verifier, token: &str) -> Result<bool, Rejected> {
    let uri = Uri::from_static("/");
    let found = verifier.verify(&bearer(token), &uri, at(NOW))?;
    Ok(found.is_some())
}

#[test]
fn tokens_of_every_kind_of_key_are_believed_and_those_of_others_are_not() {
    for (signer, other) in [
        (Signer::ec(), Signer::ec()),
        (Signer::ed(), Signer::ed()),
        (Signer::rsa(), Signer::ec()),
    ] {
        let verifier = verifier(vec![provider(&[signer.jwk("k")])]);
        let token = signer.sign(&claims());
        assert_eq!(ask(&verifier, &token), Ok(true), "{}", signer.algorithm());
        assert!(ask(&verifier, &other.sign(&claims())).is_err());
        let (signed, signature) = token.rsplit_once('.').expect("parts");
        let payload = b64(with("sub", json!("admin")).to_string());
        let header = signed.split('.').next().expect("a header");
        let forged = format!("{header}.{payload}.{signature}");
        assert_eq!(ask(&verifier, &forged), Err(Rejected::Signature));
        assert!(
            ask(&verifier, &format!("{signed}.")).is_err(),
            "no signature"
        );
    }
    let none = verifier(vec![provider(&[])]);
    assert_eq!(
        ask(&none, &Signer::ec().sign(&claims())),
        Err(Rejected::Key)
    );
    let uri = Uri::from_static("/");
    let without = none.verify(&HeaderMap::new(), &uri, at(NOW));
    assert!(matches!(without, Ok(None)), "no token passes");
}

#[test]
fn the_key_says_which_algorithm_is_used_and_the_token_never_does() {
    let (rsa, ec) = (Signer::rsa(), Signer::ec());
    let verifier_of = |key: Value| verifier(vec![provider(&[key])]);
    let public = rsa.jwk("k");
    let of_rsa = verifier_of(public.clone());
    // A public key taken for the secret of a keyed hash.
    let signed = format!(
        "{}.{}",
        b64(json!({"alg": "HS256", "kid": "k"}).to_string()),
        b64(claims().to_string())
    );
    let modulus = BASE64_URL_SAFE_NO_PAD
        .decode(public["n"].as_str().expect("n"))
        .expect("b64");
    for secret in [modulus.as_slice(), public.to_string().as_bytes(), b""] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let forged = format!("{signed}.{}", b64(hmac::sign(&key, signed.as_bytes())));
        assert_eq!(ask(&of_rsa, &forged), Err(Rejected::Algorithm));
    }
    for algorithm in [
        "none", "None", "NONE", "", "HS256", "HS512", "ES256", "RS1", "rs256",
    ] {
        let header = json!({"alg": algorithm, "kid": "k"});
        let token = rsa.sign_as(&header, &claims());
        assert_eq!(
            ask(&of_rsa, &token),
            Err(Rejected::Algorithm),
            "{algorithm}"
        );
        let (unsigned, _) = token.rsplit_once('.').expect("parts");
        assert!(
            ask(&of_rsa, &format!("{unsigned}.")).is_err(),
            "{algorithm}"
        );
    }
    let mut pinned = rsa.jwk("k");
    pinned["alg"] = json!("RS512");
    let token = rsa.sign(&claims());
    assert_eq!(ask(&verifier_of(pinned), &token), Err(Rejected::Algorithm));
    for (name, value) in [
        ("use", json!("enc")),
        ("alg", json!("HS256")),
        ("alg", json!("ES256")),
        ("key_ops", json!(["sign"])),
        ("kty", json!("oct")),
    ] {
        let mut key = rsa.jwk("k");
        key[name] = value;
        assert_eq!(ask(&verifier_of(key), &token), Err(Rejected::Key), "{name}");
    }
    let secret = json!({"kty": "oct", "kid": "k", "k": b64("secret")});
    assert_eq!(
        ask(&verifier_of(secret), &ec.sign(&claims())),
        Err(Rejected::Key)
    );
}

#[test]
fn a_token_names_its_key_and_rotation_keeps_both_for_a_while() {
    let (old, new) = (Signer::ec(), Signer::ec());
    let named =
        |signer: &Signer, id: &str| signer.sign_as(&json!({"alg": "ES256", "kid": id}), &claims());
    let both = verifier(vec![provider(&[old.jwk("1"), new.jwk("2")])]);
    assert_eq!(ask(&both, &named(&old, "1")), Ok(true));
    assert_eq!(ask(&both, &named(&new, "2")), Ok(true));
    assert_eq!(ask(&both, &named(&new, "1")), Err(Rejected::Signature));
    assert_eq!(ask(&both, &named(&new, "3")), Err(Rejected::Key));
    let unnamed = new.sign_as(&json!({"alg": "ES256"}), &claims());
    assert_eq!(ask(&both, &unnamed), Ok(true), "any key may have signed it");
    let after = verifier(vec![provider(&[new.jwk("2")])]);
    assert_eq!(ask(&after, &named(&old, "1")), Err(Rejected::Key));
}

#[test]
fn issuer_audience_and_time_are_checked() {
    let signer = Signer::ec();
    let mut config = provider(&[signer.jwk("k")]);
    config.audiences = vec!["https://orders/".into(), "billing".into()];
    let verifier = verifier(vec![config]);
    for (name, value, expected) in [
        ("sub", json!("bob"), Ok(true)),
        ("iss", json!("https://other.example"), Err(Rejected::Issuer)),
        ("iss", json!(7), Err(Rejected::Issuer)),
        ("aud", json!("http://orders"), Ok(true)),
        ("aud", json!(["x", "billing"]), Ok(true)),
        ("aud", json!(["x"]), Err(Rejected::Audience)),
        ("aud", json!(null), Err(Rejected::Audience)),
        ("aud", json!("orders.example"), Err(Rejected::Audience)),
        ("exp", json!(NOW - 59), Ok(true)),
        ("exp", json!(NOW - 60), Err(Rejected::Expired)),
        ("exp", json!(0), Err(Rejected::Expired)),
        ("exp", json!("never"), Err(Rejected::Malformed)),
        ("exp", json!(-1), Err(Rejected::Malformed)),
        ("exp", json!(null), Err(Rejected::Malformed)),
        ("nbf", json!(NOW + 60), Ok(true)),
        ("nbf", json!(NOW + 61), Err(Rejected::NotYetValid)),
        ("nbf", json!([]), Err(Rejected::Malformed)),
    ] {
        let token = signer.sign(&with(name, value.clone()));
        assert_eq!(ask(&verifier, &token), expected, "{name} {value}");
    }
}

#[test]
fn what_is_no_token_is_refused_before_anything_is_believed() {
    let signer = Signer::ec();
    let verifier = verifier(vec![provider(&[signer.jwk("k")])]);
    let good = signer.sign(&claims());
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        format!("{good}.x"),
        format!("x.{good}"),
        format!("{good}="),
        good.replacen('.', "=.", 1),
        signer.sign(&json!([1, 2])),
        signer.sign(&json!("text")),
        signer.sign_as(&json!({"alg": "ES256", "crit": ["exp"]}), &claims()),
        signer.sign_as(&json!({"alg": "ES256", "kid": 7}), &claims()),
        signer.sign_as(&json!({"kid": "k"}), &claims()),
        signer.sign(&with("pad", json!("x".repeat(token::TOKEN_LEN_MAX)))),
    ] {
        assert!(ask(&verifier, &bad).is_err(), "{bad}");
    }
    assert_eq!(ask(&verifier, &good), Ok(true));
}

#[test]
fn tokens_are_found_where_a_rule_looks_and_nowhere_else() {
    let signer = Signer::ec();
    let token = signer.sign(&claims());
    let plain = provider(&[signer.jwk("k")]);
    let placed = JwtProvider {
        from_headers: vec![HeaderLocation {
            name: "x-token".into(),
            value_prefix: "T ".into(),
        }],
        from_params: vec!["t".into()],
        from_cookies: vec!["c".into()],
        ..plain.clone()
    };
    let request = |header: &str, value: &str, path: &str| {
        let mut headers = HeaderMap::new();
        if !header.is_empty() {
            let name = HeaderName::try_from(header).expect("a name");
            headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        }
        (headers, path.parse::<Uri>().expect("a path"))
    };
    for (config, (headers, uri), is_found) in [
        (
            &plain,
            request("authorization", &format!("Bearer {token}"), "/"),
            true,
        ),
        (
            &plain,
            request("", "", &format!("/?a=b&access_token={token}")),
            true,
        ),
        (
            &plain,
            request("authorization", &format!("Basic {token}"), "/"),
            false,
        ),
        (
            &plain,
            request("x-token", &format!("T {token}"), "/"),
            false,
        ),
        (
            &placed,
            request("authorization", &format!("Bearer {token}"), "/"),
            false,
        ),
        (
            &placed,
            request("x-token", &format!("T {token}"), "/"),
            true,
        ),
        (&placed, request("x-token", &token, "/"), false),
        (&placed, request("", "", &format!("/?t={token}")), true),
        (
            &placed,
            request("cookie", &format!("a=b; c={token}"), "/"),
            true,
        ),
        (
            &placed,
            request("cookie", &format!("cc={token}"), "/"),
            false,
        ),
    ] {
        let verifier = verifier(vec![config.clone()]);
        let found = verifier
            .verify(&headers, &uri, at(NOW))
            .expect("it is valid");
        assert_eq!(found.is_some(), is_found, "{headers:?} {uri}");
        let Some(found) = found else { continue };
        let mut seen = headers.clone();
        let after = found.apply(&mut seen, &uri);
        let text = format!("{after:?}");
        let is_in_cookie = headers.contains_key("cookie");
        assert_eq!(
            format!("{seen:?}").contains(&token),
            is_in_cookie,
            "taken away"
        );
        assert!(!text.contains(&token), "{text}");
        if let Some(query) = uri.query().filter(|query| query.contains('&')) {
            assert_eq!(after.expect("another").query(), query.split('&').next());
        }
    }
}

#[test]
fn the_application_gets_what_was_verified_and_nothing_that_a_caller_made_up() {
    let signer = Signer::ec();
    let claim = |header: &str, claim: &str| ClaimToHeader {
        header: header.into(),
        claim: claim.into(),
    };
    let verifier = verifier(vec![JwtProvider {
        forward: true,
        forward_payload_header: Some("x-payload".into()),
        claim_to_headers: vec![
            claim("x-sub", "sub"),
            claim("x-city", "address.city"),
            claim("x-level", "level"),
            claim("x-groups", "groups"),
        ],
        ..provider(&[signer.jwk("k")])
    }]);
    let uri = Uri::from_static("/");
    let mut headers = bearer(&signer.sign(&claims()));
    for name in ["x-payload", "x-sub", "x-city", "x-level", "x-groups"] {
        headers.insert(name, HeaderValue::from_static("forged"));
    }
    verifier.sanitize(&mut headers);
    assert_eq!(headers.len(), 1, "only the token is left");
    let found = verifier
        .verify(&headers, &uri, at(NOW))
        .expect("valid")
        .expect("found");
    assert_eq!(found.apply(&mut headers, &uri), None);
    assert!(headers.contains_key(AUTHORIZATION), "forwarded");
    assert_eq!(headers["x-sub"], "alice");
    assert_eq!(headers["x-city"], "Berlin");
    assert_eq!(headers["x-level"], "3");
    assert!(!headers.contains_key("x-groups"), "lists have no one text");
    let payload = BASE64_URL_SAFE_NO_PAD.decode(headers["x-payload"].as_bytes());
    let payload: Value = serde_json::from_slice(&payload.expect("b64")).expect("json");
    assert_eq!(payload, claims());
    let mut metadata = DynamicMetadata::default();
    found.tell(&mut metadata);
    assert_eq!(metadata.get(NAMESPACE).expect("known")["payload"], claims());
}

#[test]
fn of_several_issuers_each_verifies_its_own_and_one_good_token_is_enough() {
    let (first, second) = (Signer::ec(), Signer::ed());
    let other = JwtProvider {
        issuer: "https://second.example".into(),
        ..provider(&[second.jwk("k")])
    };
    let verifier = verifier(vec![provider(&[first.jwk("k")]), other]);
    assert_eq!(ask(&verifier, &first.sign(&claims())), Ok(true));
    let of_second = with("iss", json!("https://second.example"));
    assert_eq!(ask(&verifier, &second.sign(&of_second)), Ok(true));
    assert!(
        ask(&verifier, &second.sign(&claims())).is_err(),
        "another's key"
    );
    let third = with("iss", json!("https://third.example"));
    assert_eq!(ask(&verifier, &first.sign(&third)), Err(Rejected::Issuer));
    let mut headers = bearer("x.y.z");
    let good = HeaderValue::try_from(format!("Bearer {}", first.sign(&claims())));
    headers.append(AUTHORIZATION, good.expect("a header"));
    let found = verifier.verify(&headers, &Uri::from_static("/"), at(NOW));
    assert!(matches!(found, Ok(Some(_))));
}

/// Rounds of damage, unless `MESH_FUZZ_ROUNDS` asks for others.
const ROUNDS: u64 = 2_000;

fn damage(text: &str, rng: &mut SplitMix64) -> String {
    fuzz::damage(text, b".={}[]\",:09aA_-", rng)
}

#[test]
fn damaged_tokens_are_never_believed() {
    let signer = Signer::ed();
    let verifier = verifier(vec![provider(&[signer.jwk("k")])]);
    let good = signer.sign(&claims());
    let mut rng = SplitMix64::new(5);
    for _ in 0..fuzz::rounds(ROUNDS) {
        let damaged = damage(&good, &mut rng);
        if damaged != good {
            assert!(ask(&verifier, &damaged).is_err(), "{damaged}");
        }
    }
}

#[test]
fn damaged_key_sets_believe_nobody_else() {
    let (signer, other) = (Signer::ec(), Signer::ec());
    let good = set(&[signer.jwk("k"), Signer::rsa().jwk("r")]);
    let forged = other.sign(&claims());
    let mut rng = SplitMix64::new(6);
    for _ in 0..fuzz::rounds(ROUNDS) {
        if let Ok(keys) = KeySet::parse(&damage(&good, &mut rng)) {
            let token = Token::parse(&forged).expect("well-formed");
            assert!(keys.verify(&token).is_err());
        }
    }
    for bad in ["", "null", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":null}"#] {
        assert!(KeySet::parse(bad).is_err(), "{bad}");
    }
    let many: Vec<_> = (0..=keys::KEYS_MAX)
        .map(|n| other.jwk(&n.to_string()))
        .collect();
    let last = format!("{}", keys::KEYS_MAX);
    let token = other.sign_as(&json!({"alg": "ES256", "kid": last}), &claims());
    let verifier = verifier(vec![provider(&many)]);
    assert_eq!(ask(&verifier, &token), Err(Rejected::Key), "bounded");
}
