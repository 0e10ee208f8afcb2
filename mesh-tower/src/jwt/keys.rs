//! The keys of an issuer (RFC 7517), each with the algorithms that it may be used with.
//!
//! A key of a kind that is not known here, for encryption, or that cannot be read is left out.
//! Symmetric keys are left out too: a key set is public.

use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde_json::Value;

use super::{Rejected, token::Token};

/// Most keys of an issuer; more are not looked at.
pub(super) const KEYS_MAX: usize = 128;

/// The keys that can be used.
#[derive(Clone, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids = self.keys.iter().map(|key| &key.id);
        f.debug_list().entries(ids).finish()
    }
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

impl KeySet {
    /// Reads a key set.
    ///
    /// # Errors
    /// When it is none. A set without a usable key verifies nothing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let set: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let keys = set["keys"].as_array().ok_or("it has no keys")?;
        let keys = keys.iter().take(KEYS_MAX).filter_map(Key::parse).collect();
        Ok(Self { keys })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a key signed the token.
    pub(super) fn verify(&self, token: &Token<'_>) -> Result<(), Rejected> {
        let is_named = |key: &&Key| match (&key.id, &token.key_id) {
            (Some(key), Some(token)) => key == token,
            _ => true,
        };
        let mut why = Rejected::Key;
        for key in self.keys.iter().filter(is_named) {
            let mut algorithms = key.algorithms.iter();
            let Some(algorithm) = algorithms.find(|known| is_called(**known, &token.algorithm))
            else {
                why = worse(why, Rejected::Algorithm);
                continue;
            };
            let signed = token.signed.as_bytes();
            match crypto::verify(token.signature, signed, &key.key, *algorithm) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(_) => why = Rejected::Signature,
            }
        }
        Err(why)
    }
}

/// A wrong signature says more than a wrong algorithm, that more than no key.
fn worse(held: Rejected, new: Rejected) -> Rejected {
    if held == Rejected::Signature {
        held
    } else {
        new
    }
}

impl Key {
    fn parse(value: &Value) -> Option<Self> {
        let text = |name: &str| value[name].as_str();
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        if let Some(operations) = value.get("key_ops") {
            let mut operations = operations.as_array()?.iter();
            operations.find(|one| one.as_str() == Some("verify"))?;
        }
        let (key, all): (_, &'static [Algorithm]) = match (text("kty")?, text("crv")) {
            ("RSA", _) => (
                DecodingKey::from_rsa_components(text("n")?, text("e")?),
                &RSA,
            ),
            ("EC", Some("P-256")) => (ec(value)?, &[Algorithm::ES256]),
            ("EC", Some("P-384")) => (ec(value)?, &[Algorithm::ES384]),
            ("OKP", Some("Ed25519")) => (
                DecodingKey::from_ed_components(text("x")?),
                &[Algorithm::EdDSA],
            ),
            _ => return None,
        };
        // A key that says its algorithm is for that one alone.
        let algorithms = match value.get("alg") {
            None => all,
            Some(pinned) => {
                let pinned = pinned.as_str()?;
                let at = all.iter().position(|known| is_called(*known, pinned))?;
                &all[at..=at]
            }
        };
        Some(Self {
            id: text("kid").map(str::to_owned),
            algorithms,
            key: key.ok()?,
        })
    }
}

fn ec(value: &Value) -> Option<Result<DecodingKey, jsonwebtoken::errors::Error>> {
    let (x, y) = (value["x"].as_str()?, value["y"].as_str()?);
    Some(DecodingKey::from_ec_components(x, y))
}

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Whether an algorithm has this name (RFC 7518 §3.1); keyed hashes have none here.
fn is_called(algorithm: Algorithm, name: &str) -> bool {
    let known = match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::RS384 => "RS384",
        Algorithm::RS512 => "RS512",
        Algorithm::PS256 => "PS256",
        Algorithm::PS384 => "PS384",
        Algorithm::PS512 => "PS512",
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        Algorithm::EdDSA => "EdDSA",
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => return false,
    };
    known == name
}
