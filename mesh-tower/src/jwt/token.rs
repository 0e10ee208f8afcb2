//! A token in its parts (RFC 7515 §7.1), before anything of it is believed.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use super::Rejected;

/// Longest token that is looked at, in bytes.
pub(super) const TOKEN_LEN_MAX: usize = 16 * 1024;

/// A token that is well-formed.
#[derive(Debug)]
pub(super) struct Token<'t> {
    /// What is signed: header and payload.
    pub(super) signed: &'t str,
    /// The payload, as it is written.
    pub(super) payload: &'t str,
    /// The signature, as it is written.
    pub(super) signature: &'t str,
    pub(super) algorithm: String,
    pub(super) key_id: Option<String>,
    pub(super) claims: Value,
}

impl<'t> Token<'t> {
    pub(super) fn parse(text: &'t str) -> Result<Self, Rejected> {
        if text.len() > TOKEN_LEN_MAX {
            return Err(Rejected::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Rejected::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Rejected::Malformed)?;
        let header = object(header)?;
        // What must be understood is not (RFC 7515 §4.1.11).
        if header.get("crit").is_some() || payload.contains('.') {
            return Err(Rejected::Malformed);
        }
        let algorithm = header["alg"].as_str().ok_or(Rejected::Malformed)?;
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(Rejected::Malformed),
        };
        Ok(Self {
            signed,
            payload,
            signature,
            algorithm: algorithm.to_owned(),
            key_id,
            claims: object(payload)?,
        })
    }
}

fn object(part: &str) -> Result<Value, Rejected> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).ok();
    let value = bytes.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    value.filter(Value::is_object).ok_or(Rejected::Malformed)
}
