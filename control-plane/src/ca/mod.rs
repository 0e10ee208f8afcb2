//! The certificate authority: who a caller is, and the certificate that says so.
//!
//! [`Tokens`] turns a join token into an [`Identity`], [`Authority`] signs certificates that carry
//! exactly that identity as a SPIFFE ID, [`CertificateService`] offers both over gRPC. Nothing here
//! decides what an identity may do: that is policy, and the data plane's. The names follow SPIFFE
//! X.509-SVID; the service is Istio's `istio.v1.auth.IstioCertificateService`.

mod authority;
mod error;
mod files;
mod identity;
mod service;
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

pub use authority::{Authority, Issued};
pub use error::CaError;
pub use identity::Identity;
pub use proto::istio_certificate_service_server::IstioCertificateServiceServer;
pub use service::CertificateService;
pub(crate) use service::bearer;
pub use token::{Tokens, create_token};
