//! The certificate authority: who a caller is, and the certificate that says so.
//!
//! [`Callers`] tells who calls, [`Authority`] signs certificates that carry exactly that
//! [`Identity`] as a SPIFFE ID, [`CertificateService`] offers both over gRPC. Nothing here
//! decides what an identity may do: that is policy, and the data plane's. The names follow SPIFFE
//! X.509-SVID; the service is Istio's `istio.v1.auth.IstioCertificateService`.

mod authority;
mod caller;
mod csr;
mod deny;
mod error;
mod files;
mod identity;
mod jwt;
mod ledger;
mod limit;
mod own;
pub(crate) mod rotation;
mod service;
mod signer;
mod token;

/// The certificate service's protobuf.
pub mod proto {
    #![allow(
        missing_docs,
        unused_qualifications,
        clippy::all,
        reason = "generated code"
    )]
    tonic::include_proto!("istio.v1.auth");
}

pub use authority::{Authority, Issued, LEAF_TTL_MAX, LEAF_TTL_MIN};
pub use caller::{Caller, Callers, ConnectionPeer, Method, Unauthenticated};
pub use deny::DenyList;
pub use error::CaError;
pub use identity::Identity;
pub use jwt::{JwksSource, JwtOptions, JwtVerifier};
pub use limit::IssuanceLimits;
pub use proto::istio_certificate_service_server::IstioCertificateServiceServer;
pub use rotation::{Rotation, Step};
pub use service::CertificateService;
pub(crate) use service::ISSUE;
pub use token::{TokenRefusal, TokenUse, Tokens, create_token, create_token_for};

pub(crate) use authority::TRUST_BUNDLE;
pub(crate) use own::{OwnCertificate, OwnLeaf};
pub(crate) use token::is_equal;

/// A new secret in hex.
pub(crate) fn random_hex() -> Result<String, CaError> {
    token::secret()
}

/// Replaces a file with one that its owner alone can read.
pub(crate) fn write_private(path: &std::path::Path, text: &str) -> Result<(), CaError> {
    files::replace(path, text.as_bytes())
}
