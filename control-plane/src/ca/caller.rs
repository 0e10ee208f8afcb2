//! Who calls: by its certificate of the mesh, its service account token, or a join token.
//!
//! In that order: a certificate proved possession of a key in the handshake, and a token beside it is
//! not looked at. Addresses and everything in a request's body prove nothing.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tonic::metadata::MetadataMap;

use super::{CaError, DenyList, Identity, JwtVerifier, TokenRefusal, Tokens, token};
use crate::audit::{self, Audit, Event};

/// What is written down about join tokens that are shown.
const USE: &str = "token.use";

/// How often the deny list is looked at when nobody asks for a certificate.
pub(crate) const DENIED_EVERY: Duration = Duration::from_secs(5);

/// The other end of the connection that a request came on; an extension of it.
#[derive(Clone, Debug)]
pub struct ConnectionPeer {
    /// Its address.
    pub address: SocketAddr,
    /// The identity of its certificate, whose chain was verified in the handshake; `None` without
    /// a certificate.
    pub identity: Option<Identity>,
}

/// How a caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A certificate of the mesh, over TLS.
    Certificate,
    /// A service account token (JWT).
    ServiceAccountToken,
    /// A join token.
    JoinToken,
}

impl Method {
    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::ServiceAccountToken => "service_account_token",
            Self::JoinToken => "join_token",
        }
    }
}

/// Somebody who proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// By what.
    pub method: Method,
}

/// Why a caller is nobody. Says nothing of the credential itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unauthenticated(String);

impl fmt::Display for Unauthenticated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unauthenticated {}

impl From<TokenRefusal> for Unauthenticated {
    fn from(refusal: TokenRefusal) -> Self {
        Self(refusal.as_str().to_owned())
    }
}

/// Everything by which callers are told.
#[derive(Debug)]
pub struct Callers {
    tokens: Tokens,
    jwt: Option<JwtVerifier>,
    denied: DenyList,
    audit: Audit,
}

impl Callers {
    /// Knows callers by `tokens`, and by service account tokens where there is a verifier; whom
    /// `denied` names gets no certificate.
    pub fn new(tokens: Tokens, jwt: Option<JwtVerifier>, denied: DenyList) -> Self {
        Self {
            tokens,
            jwt,
            denied,
            audit: Audit::default(),
        }
    }

    /// What becomes of join tokens and of the deny list is written down there.
    #[must_use]
    pub fn audited(mut self, audit: &Audit) -> Self {
        self.audit = audit.clone();
        self.denied.audited(audit.clone());
        self
    }

    /// Where that is.
    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Reads the deny list again where it changed, every [`DENIED_EVERY`] until `shutdown`: what it says
    /// is written down although nobody asks for a certificate.
    pub(crate) async fn follow_denied(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        loop {
            let callers = Arc::clone(&self);
            _ = tokio::task::spawn_blocking(move || callers.denied.refresh()).await;
            tokio::select! {
                () = sleep(DENIED_EVERY) => {}
                _ = shutdown.wait_for(|is_true| *is_true) => return,
            }
        }
    }

    /// Nothing when `identity` may have a certificate.
    ///
    /// # Errors
    /// When it may not, or when the deny list cannot be read.
    pub fn check_allowed(&self, identity: &Identity) -> Result<(), CaError> {
        self.denied.check(identity)
    }

    /// Who calls.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer: Option<&ConnectionPeer>,
    ) -> Result<Caller, Unauthenticated> {
        if let Some(identity) = peer.and_then(|peer| peer.identity.clone()) {
            let method = Method::Certificate;
            return Ok(Caller { identity, method });
        }
        let Some(bearer) = bearer(metadata) else {
            return Err(Unauthenticated(
                "a certificate of the mesh, a service account token or a join token is needed"
                    .to_owned(),
            ));
        };
        match (&self.jwt, is_jwt(bearer)) {
            (Some(jwt), true) => Ok(Caller {
                identity: jwt.verify(bearer).map_err(Unauthenticated)?,
                method: Method::ServiceAccountToken,
            }),
            (None, true) => Err(Unauthenticated(
                "service account tokens are not accepted here: neither --jwks nor --jwks-uri is set".to_owned(),
            )),
            (_, false) => {
                let identity = self.tokens.identify(bearer).inspect_err(|refusal| {
                    self.audit.refused(&Event {
                        principal: &audit::principal(None, peer.map(|peer| peer.address.ip())),
                        object: &token::name_of(bearer),
                        action: USE,
                        result: refusal.as_str(),
                    });
                })?;
                let method = Method::JoinToken;
                Ok(Caller { identity, method })
            }
        }
    }

    /// Uses up what `caller` came with, if it is good once only.
    ///
    /// # Errors
    /// When another was faster.
    pub fn redeem(&self, caller: &Caller, metadata: &MetadataMap) -> Result<(), Unauthenticated> {
        if caller.method == Method::JoinToken {
            let token = bearer(metadata).unwrap_or_default();
            let redeemed = self.tokens.redeem(token);
            self.audit.record(&Event {
                principal: &caller.identity.to_string(),
                object: &token::name_of(token),
                action: USE,
                result: redeemed.as_ref().map_or_else(|why| why.as_str(), |_| "ok"),
            });
            redeemed?;
        }
        Ok(())
    }
}

/// The bearer token of `authorization`; the scheme's case does not matter (RFC 9110 §11.1).
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Three parts (RFC 7515 §3.1); a join token has no dot.
fn is_jwt(bearer: &str) -> bool {
    bearer.bytes().filter(|byte| *byte == b'.').count() == 2
}
