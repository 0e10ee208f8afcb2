//! How a server is known and how we are known to it (gRFC A65, A97).
//!
//! Of the channel credentials the first known one counts; of the call credentials all known ones. A
//! token only goes over TLS or to a socket of this machine: anything else is refused here, before
//! anything is sent.

use std::path::PathBuf;

use serde::Deserialize;

use super::ServerUri;

/// The channel credentials this library has.
pub(super) const CHANNEL_CREDS: [&str; 2] = ["insecure", "tls"];

/// Name of the call credentials with a token from a file (gRFC A97).
const JWT_TOKEN_FILE: &str = "jwt_token_file";

/// How the connection is secured.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ChannelCredentials {
    /// Plaintext.
    #[default]
    Insecure,
    /// TLS with files (gRFC A65).
    Tls(TlsFiles),
}

/// Files in PEM form. They are read for every connection, so a rotation needs no restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct TlsFiles {
    /// Trusted roots; `None` takes those of the system.
    pub ca_certificate_file: Option<PathBuf>,
    /// Our certificate; with [`private_key_file`](Self::private_key_file) or not at all.
    pub certificate_file: Option<PathBuf>,
    /// Its key.
    pub private_key_file: Option<PathBuf>,
    /// Trusted roots by trust domain, in SPIFFE's bundle format, in place of
    /// [`ca_certificate_file`](Self::ca_certificate_file) (gRFC A87). The control plane's certificate
    /// must have a SPIFFE ID of one of them, and the name that is dialled.
    pub spiffe_trust_bundle_map_file: Option<PathBuf>,
}

impl TlsFiles {
    /// Trusts the roots in this file, and shows no certificate.
    pub fn with_roots(file: impl Into<PathBuf>) -> Self {
        Self {
            ca_certificate_file: Some(file.into()),
            ..Self::default()
        }
    }

    /// Trusts the roots by trust domain in this file, and shows no certificate.
    pub fn with_bundle_map(file: impl Into<PathBuf>) -> Self {
        Self {
            spiffe_trust_bundle_map_file: Some(file.into()),
            ..Self::default()
        }
    }

    /// Shows this certificate.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.certificate_file = Some(certificate.into());
        self.private_key_file = Some(key.into());
        self
    }
}

/// What each call carries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallCredentials {
    /// A bearer token from a file, read for every stream (gRFC A97).
    JwtTokenFile(PathBuf),
}

#[derive(Deserialize)]
pub(super) struct CredsDocument {
    pub(super) r#type: String,
    #[serde(default)]
    config: serde_json::Value,
}

#[derive(Default, Deserialize)]
struct TlsDocument {
    ca_certificate_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    private_key_file: Option<PathBuf>,
    spiffe_trust_bundle_map_file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct JwtDocument {
    jwt_token_file: PathBuf,
}

type FieldError = (String, String);

fn config<T: for<'d> Deserialize<'d> + Default>(
    place: &str,
    value: serde_json::Value,
) -> Result<T, FieldError> {
    match value {
        serde_json::Value::Null => Ok(T::default()),
        value => serde_path_to_error::deserialize(value).map_err(|e| {
            let path = e.path().to_string();
            (format!("{place}.config.{path}"), e.inner().to_string())
        }),
    }
}

/// The first channel credentials that are known.
pub(super) fn channel(offered: Vec<CredsDocument>) -> Result<ChannelCredentials, FieldError> {
    let names: Vec<_> = offered.iter().map(|creds| creds.r#type.clone()).collect();
    let known = |creds: &CredsDocument| CHANNEL_CREDS.contains(&&*creds.r#type);
    let Some(i) = offered.iter().position(known) else {
        return Err((
            "channel_creds".into(),
            format!("none of {names:?} is supported; supported are \"insecure\", \"tls\""),
        ));
    };
    let chosen = offered.into_iter().nth(i);
    let Some(creds) = chosen.filter(|creds| creds.r#type == "tls") else {
        return Ok(ChannelCredentials::Insecure);
    };
    let place = format!("channel_creds[{i}]");
    let tls: TlsDocument = config(&place, creds.config)?;
    if tls.certificate_file.is_some() != tls.private_key_file.is_some() {
        return Err((
            format!("{place}.config"),
            "certificate_file and private_key_file go together".into(),
        ));
    }
    Ok(ChannelCredentials::Tls(TlsFiles {
        ca_certificate_file: tls.ca_certificate_file,
        certificate_file: tls.certificate_file,
        private_key_file: tls.private_key_file,
        spiffe_trust_bundle_map_file: tls.spiffe_trust_bundle_map_file,
    }))
}

/// All call credentials that are known.
pub(super) fn calls(offered: Vec<CredsDocument>) -> Result<Vec<CallCredentials>, FieldError> {
    let mut known = Vec::new();
    for (i, creds) in offered.into_iter().enumerate() {
        if creds.r#type != JWT_TOKEN_FILE {
            tracing::warn!(kind = creds.r#type, "call credentials are not known");
            continue;
        }
        let jwt: Option<JwtDocument> = config(&format!("call_creds[{i}]"), creds.config)?;
        let jwt = jwt.ok_or_else(|| {
            let field = format!("call_creds[{i}].config.jwt_token_file");
            (field, "is missing".to_owned())
        })?;
        known.push(CallCredentials::JwtTokenFile(jwt.jwt_token_file));
    }
    Ok(known)
}

/// Whether a token may be sent there.
pub(super) fn check(
    uri: &ServerUri,
    channel: &ChannelCredentials,
    calls: &[CallCredentials],
) -> Result<(), String> {
    if calls.is_empty() || *channel != ChannelCredentials::Insecure || uri.is_local() {
        return Ok(());
    }
    Err(format!(
        "a token would travel in the clear to {uri}; use channel_creds \"tls\" or a unix: socket"
    ))
}
