//! Who signs tokens, and the keys that prove it.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

pub(crate) struct Signer {
    id: String,
    key: Ed25519KeyPair,
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self::named("k")
    }

    /// The key is called `id`.
    pub(crate) fn named(id: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let id = id.to_owned();
        Self { id, key }
    }

    pub(crate) fn keys(&self) -> String {
        Self::keys_of(&[self])
    }

    /// The key set of all these.
    pub(crate) fn keys_of(signers: &[&Self]) -> String {
        let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
        json!({"keys": keys}).to_string()
    }

    fn jwk(&self) -> Value {
        let x = BASE64_URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": self.id, "x": x})
    }

    pub(crate) fn token(&self, claims: &str) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.id, "typ": "JWT"}).to_string();
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}
