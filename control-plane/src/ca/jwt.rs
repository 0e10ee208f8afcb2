//! Service account tokens as Kubernetes makes them: signed by the cluster, for an audience, about
//! `system:serviceaccount:NAMESPACE:ACCOUNT`.
//!
//! Keys come from a JWKS file, read again when it changed, or from the issuer over HTTPS, fetched again
//! and again by somebody else. A token is refused unless its signature,
//! issuer, audience, times and subject are all right; only asymmetric algorithms are known, so that a
//! public key can never be taken for a shared secret.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet},
};
use serde::Deserialize;
use tokio::sync::watch;

use super::{CaError, Identity, files};

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// How far the clocks of issuer and control plane may be apart, in seconds.
const CLOCK_SKEW_S: u64 = 60;
/// What a subject begins with.
const SUBJECT: &str = "system:serviceaccount:";

/// Which tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    /// The issuer's keys (RFC 7517).
    pub jwks: JwksSource,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must hold, for example `istio-ca`.
    pub audience: String,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwksSource {
    /// In a file.
    File(PathBuf),
    /// At an address, `https://` alone.
    Uri(String),
}

/// Keys as they were fetched last, or why there are none.
pub(crate) type FetchedKeys = watch::Receiver<Result<Arc<str>, String>>;

/// Verifies tokens.
#[derive(Debug)]
pub struct JwtVerifier {
    issuer: String,
    audience: String,
    keys: Mutex<Keys>,
}

#[derive(Debug)]
enum Keys {
    File {
        path: PathBuf,
        stamp: Stamp,
        set: JwkSet,
    },
    Fetched {
        keys: FetchedKeys,
        set: Result<JwkSet, String>,
    },
}

/// Modification time, length and inode.
type Stamp = (i64, i64, u64, u64);

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl JwtVerifier {
    /// A verifier with the keys of a file as they are now.
    ///
    /// # Errors
    /// When the file cannot be read, holds no usable key, or issuer or audience are empty.
    pub fn open(path: &Path, issuer: &str, audience: &str) -> Result<Self, CaError> {
        let (stamp, set) = read(path)?;
        let path = path.to_owned();
        Self::new(issuer, audience, Keys::File { path, stamp, set })
    }

    /// A verifier with keys that somebody else fetches. While there are none it believes nobody.
    ///
    /// # Errors
    /// When issuer or audience are empty.
    pub(crate) fn following(
        issuer: &str,
        audience: &str,
        mut keys: FetchedKeys,
    ) -> Result<Self, CaError> {
        let set = parse_fetched(&keys.borrow_and_update());
        Self::new(issuer, audience, Keys::Fetched { keys, set })
    }

    fn new(issuer: &str, audience: &str, keys: Keys) -> Result<Self, CaError> {
        for (what, value) in [("issuer", issuer), ("audience", audience)] {
            if value.is_empty() {
                return Err(CaError::InvalidName {
                    what,
                    name: String::new(),
                });
            }
        }
        Ok(Self {
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            keys: Mutex::new(keys),
        })
    }

    /// Whose token it is, or why it is nobody's; the reason quotes nothing of the token.
    pub(super) fn verify(&self, token: &str) -> Result<Identity, String> {
        let refused = |reason: &str| format!("the service account token {reason}");
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused("is too long"));
        }
        let header = decode_header(token).map_err(|_| refused("is malformed"))?;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = keys.current().map_err(|error| {
            tracing::error!(
                error,
                "no service account token is accepted until there are keys"
            );
            refused("cannot be verified now")
        })?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = CLOCK_SKEW_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let fits = |key: &&Jwk| {
            let is_named = header.kid.is_none() || key.common.key_id == header.kid;
            is_named && is_for(key, header.alg)
        };
        let mut failure = refused("is signed with a key or an algorithm that is not known");
        for key in keys.keys.iter().filter(fits) {
            let Ok(key) = DecodingKey::from_jwk(key) else {
                continue;
            };
            match decode::<Claims>(token, &key, &validation) {
                Ok(token) => {
                    return identity(&token.claims.sub).ok_or_else(|| {
                        refused("is not about system:serviceaccount:NAMESPACE:ACCOUNT")
                    });
                }
                Err(error) => failure = refused(reason(error.kind())),
            }
        }
        Err(failure)
    }
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "has expired",
        ErrorKind::ImmatureSignature => "is not valid yet",
        ErrorKind::InvalidIssuer => "is of another issuer",
        ErrorKind::InvalidAudience => "is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "lacks iss, aud, exp or sub",
        ErrorKind::InvalidSignature => "is not signed by the issuer",
        _ => "is malformed",
    }
}

fn identity(subject: &str) -> Option<Identity> {
    let (namespace, account) = subject.strip_prefix(SUBJECT)?.split_once(':')?;
    Identity::new(namespace, account).ok()
}

/// Whether a key is made for signatures with an algorithm; never a shared secret.
fn is_for(key: &Jwk, algorithm: Algorithm) -> bool {
    use Algorithm as A;
    match &key.algorithm {
        AlgorithmParameters::RSA(_) => matches!(
            algorithm,
            A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512
        ),
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => algorithm == A::ES256,
            EllipticCurve::P384 => algorithm == A::ES384,
            _ => false,
        },
        AlgorithmParameters::OctetKeyPair(_) => algorithm == A::EdDSA,
        AlgorithmParameters::OctetKey(_) => false,
    }
}

impl Keys {
    /// The keys as they are now.
    fn current(&mut self) -> Result<&JwkSet, String> {
        match self {
            Self::File { path, stamp, set } => {
                let meta = fs::metadata(&*path).map_err(files::at(path));
                if stamp_of(&meta.map_err(|e| e.to_string())?) != *stamp {
                    (*stamp, *set) = read(path).map_err(|e| e.to_string())?;
                }
                Ok(set)
            }
            Self::Fetched { keys, set } => {
                if keys.has_changed().unwrap_or(false) {
                    *set = parse_fetched(&keys.borrow_and_update());
                }
                set.as_ref().map_err(Clone::clone)
            }
        }
    }
}

fn read(path: &Path) -> Result<(Stamp, JwkSet), CaError> {
    let meta = fs::metadata(path).map_err(files::at(path))?;
    let text = fs::read_to_string(path).map_err(files::at(path))?;
    let set = parse(&text).map_err(|reason| CaError::Corrupt {
        path: path.into(),
        reason,
    })?;
    Ok((stamp_of(&meta), set))
}

fn parse_fetched(fetched: &Result<Arc<str>, String>) -> Result<JwkSet, String> {
    parse(fetched.as_ref().map_err(Clone::clone)?)
}

fn parse(text: &str) -> Result<JwkSet, String> {
    let set: JwkSet = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let is_usable = |key: &Jwk| !matches!(key.algorithm, AlgorithmParameters::OctetKey(_));
    match set.keys.iter().any(is_usable) {
        true => Ok(set),
        false => Err("it holds no public key".to_owned()),
    }
}

/// Tells one version of a file from another.
fn stamp_of(meta: &fs::Metadata) -> Stamp {
    (meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino())
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use jsonwebtoken::{EncodingKey, Header, encode};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::*;

    struct Issuer {
        key: EncodingKey,
        jwk: Value,
    }

    fn issuer(kid: &str) -> Issuer {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        Issuer {
            key: EncodingKey::from_ed_der(pkcs8.as_ref()),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig",
                        "x": base64_url(pair.public_key().as_ref())}),
        }
    }

    fn base64_url(bytes: &[u8]) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
    }

    fn now() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.unwrap().as_secs()
    }

    fn claims(change: impl FnOnce(&mut Value)) -> Value {
        let mut claims = json!({
            "iss": "https://kubernetes.default.svc", "aud": ["istio-ca"], "exp": now() + 600,
            "sub": "system:serviceaccount:default:greeter",
        });
        change(&mut claims);
        claims
    }

    fn token(issuer: &Issuer, kid: &str, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(kid.to_owned());
        encode(&header, claims, &issuer.key).unwrap()
    }

    #[test]
    fn a_token_is_its_subjects_when_everything_about_it_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let jwks_file = dir.path().join("jwks.json");
        let (ours, next, stranger) = (issuer("k1"), issuer("k2"), issuer("k1"));
        let write = |keys: Value| {
            let text = json!({"keys": keys}).to_string();
            files::replace(&jwks_file, text.as_bytes()).unwrap();
        };
        write(json!([ours.jwk]));
        let verifier =
            JwtVerifier::open(&jwks_file, "https://kubernetes.default.svc", "istio-ca").unwrap();
        let good = claims(|_| {});
        let verified = verifier.verify(&token(&ours, "k1", &good));
        assert_eq!(verified, Ok(Identity::new("default", "greeter").unwrap()));
        let in_bounds = claims(|claims| claims["exp"] = json!(now() - CLOCK_SKEW_S + 10));
        assert!(verifier.verify(&token(&ours, "k1", &in_bounds)).is_ok());

        for (what, change) in [
            ("has expired", json!({"exp": now() - CLOCK_SKEW_S - 10})),
            (
                "is not valid yet",
                json!({"nbf": now() + CLOCK_SKEW_S + 10}),
            ),
            ("is of another issuer", json!({"iss": "https://evil"})),
            ("is for another audience", json!({"aud": ["vault"]})),
            ("lacks", json!({"aud": null})),
            ("lacks", json!({"exp": null})),
            (
                "is not about",
                json!({"sub": "system:serviceaccount:default"}),
            ),
            (
                "is not about",
                json!({"sub": "system:node:default:greeter"}),
            ),
            (
                "is not about",
                json!({"sub": "system:serviceaccount:a:b/sa/c"}),
            ),
        ] {
            let claims = claims(|claims| {
                for (key, value) in change.as_object().unwrap() {
                    match value {
                        Value::Null => _ = claims.as_object_mut().unwrap().remove(key),
                        value => claims[key] = value.clone(),
                    }
                }
            });
            let error = verifier.verify(&token(&ours, "k1", &claims)).unwrap_err();
            assert!(error.contains(what), "{change}: {error}");
        }
        for (what, token) in [
            ("is not signed by the issuer", token(&stranger, "k1", &good)),
            ("not known", token(&next, "k2", &good)),
            ("is malformed", "a.b.c".to_owned()),
            ("is too long", "a".repeat(TOKEN_BYTES_MAX + 1)),
        ] {
            let error = verifier.verify(&token).unwrap_err();
            assert!(error.contains(what), "{error}");
            assert!(!error.contains(&token), "a token is not quoted");
        }
        // A public key is no shared secret.
        let x = ours.jwk["x"].as_str().unwrap();
        let forged = EncodingKey::from_secret(x.as_bytes());
        let forged = encode(&Header::new(Algorithm::HS256), &good, &forged).unwrap();
        assert!(verifier.verify(&forged).unwrap_err().contains("not known"));

        write(json!([ours.jwk, next.jwk]));
        assert!(
            verifier.verify(&token(&next, "k2", &good)).is_ok(),
            "keys rotate"
        );
        files::replace(&jwks_file, b"{").unwrap();
        let error = verifier.verify(&token(&ours, "k1", &good)).unwrap_err();
        assert!(error.contains("cannot be verified now"), "{error}");
    }

    #[test]
    fn keys_that_are_shared_secrets_are_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        let jwks_file = dir.path().join("jwks.json");
        fs::write(&jwks_file, r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#).unwrap();
        let error = JwtVerifier::open(&jwks_file, "i", "a")
            .unwrap_err()
            .to_string();
        assert!(error.contains("no public key"), "{error}");
    }
}
