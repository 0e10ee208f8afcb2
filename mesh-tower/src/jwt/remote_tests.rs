//! Keys that are fetched, in simulated time: their limits, and what becomes of tokens meanwhile.

use std::sync::Mutex;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::header::AUTHORIZATION;
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::json;

use super::*;
use crate::telemetry::Metrics;

/// What the issuer answers, one after the other; then it is silent.
struct Answers(Mutex<Vec<Result<Bytes, String>>>);

impl KeySource for Answers {
    fn fetch(&self) -> KeysFuture {
        let mut left = self.0.lock().expect("answers");
        if left.is_empty() {
            return Box::pin(std::future::pending());
        }
        let answer = left.remove(0);
        Box::pin(async move { answer })
    }
}

/// A key set and a token of its key.
fn issued() -> (String, HeaderMap) {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
    let key = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key");
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let x = encode(key.public_key().as_ref());
    let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x}]});
    let header = json!({"alg": "EdDSA", "kid": "k"}).to_string();
    let signed = format!(
        "{}.{}",
        encode(header.as_bytes()),
        encode(br#"{"iss":"i"}"#)
    );
    let signature = encode(key.sign(signed.as_bytes()).as_ref());
    let mut headers = HeaderMap::new();
    let value = format!("Bearer {signed}.{signature}");
    headers.insert(AUTHORIZATION, value.parse().expect("a header"));
    (keys.to_string(), headers)
}

fn verifier(config: RemoteJwks, answers: Vec<Result<Bytes, String>>) -> Verifier {
    let provider = JwtProvider::new("p", "i", config);
    let tokens = JwtAuthn {
        providers: vec![provider],
    };
    let source = Arc::new(Answers(Mutex::new(answers)));
    Verifier::compile(&tokens, |config| {
        RemoteKeys::start(Arc::clone(config), Some(source.clone()), Metrics::new())
    })
}

fn config() -> RemoteJwks {
    let uri = Uri::from_static("https://issuer.example/keys");
    RemoteJwks::new(uri, "issuer", Duration::from_secs(5))
}

async fn verdict(verifier: &Verifier, headers: &HeaderMap) -> Result<(), Rejected> {
    let uri = Uri::from_static("/");
    let verified = verifier.verify_waiting(headers, &uri).await?;
    assert!(verified.is_some(), "there is a token");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn keys_are_as_long_as_the_limit_and_no_longer() {
    let (keys, headers) = issued();
    for (length, expected) in [
        (JWKS_BYTES_MAX, Ok(())),
        (JWKS_BYTES_MAX + 1, Err(Rejected::KeysMissing)),
    ] {
        let padded = format!("{keys}{}", " ".repeat(length - keys.len()));
        let verifier = verifier(config(), vec![Ok(padded.into())]);
        assert_eq!(verdict(&verifier, &headers).await, expected, "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_is_tried_as_often_as_its_policy_says() {
    let (keys, headers) = issued();
    let away = || Err("away".to_owned());
    for (retries, expected) in [(1, Err(Rejected::KeysMissing)), (2, Ok(()))] {
        let config = RemoteJwks {
            retries,
            ..config()
        };
        let answers = vec![away(), away(), Ok(keys.clone().into())];
        let verifier = verifier(config, answers);
        assert_eq!(verdict(&verifier, &headers).await, expected, "{retries}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_issuer_keeps_a_token_waiting_for_its_timeout_or_the_limit() {
    let (_, headers) = issued();
    for (timeout, expected) in [(7, 7), (3600, JWKS_WAIT_MAX.as_secs())] {
        let config = RemoteJwks {
            timeout: Duration::from_secs(timeout),
            ..config()
        };
        let verifier = verifier(config, Vec::new());
        let began = tokio::time::Instant::now();
        let found = verdict(&verifier, &headers).await;
        assert_eq!(found, Err(Rejected::KeysMissing));
        assert_eq!(began.elapsed().as_secs(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_tokens_wait_for_keys_and_the_next_is_refused_at_once() {
    let (keys, headers) = issued();
    let config = RemoteJwks {
        retries: 1,
        ..config()
    };
    // The first answer says nothing, so that all wait for the second.
    let verifier = verifier(config, vec![Err("not yet".to_owned()), Ok(keys.into())]);
    let tokens = (0..=JWKS_WAITING_MAX).map(|_| verdict(&verifier, &headers));
    let mut tokens: FuturesUnordered<_> = tokens.collect();
    assert_eq!(tokens.next().await, Some(Err(Rejected::KeysMissing)));
    let rest: Vec<_> = tokens.collect().await;
    assert_eq!(rest, vec![Ok(()); JWKS_WAITING_MAX]);
}
