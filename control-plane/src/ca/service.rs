//! The certificate service over gRPC: a join token and a CSR for a certificate chain.
//!
//! Owns the mapping to gRPC status codes. The identity comes from the token alone; nothing in the
//! request can name another. Issuing is logged by [`Authority`] with the target `audit`.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    Authority, CaError, Tokens,
    proto::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::IstioCertificateService,
    },
};
use crate::metrics::Metrics;

/// Serves `istio.v1.auth.IstioCertificateService`.
#[derive(Clone, Debug)]
pub struct CertificateService {
    authority: Arc<Authority>,
    tokens: Arc<Tokens>,
    metrics: Metrics,
}

impl CertificateService {
    /// A service that signs with `authority` for the holders of `tokens`.
    pub fn new(authority: Arc<Authority>, tokens: Arc<Tokens>, metrics: Metrics) -> Self {
        metrics.root_expires(authority.root_not_after());
        Self {
            authority,
            tokens,
            metrics,
        }
    }

    fn create(
        &self,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, (&'static str, Status)> {
        let identity = bearer(request.metadata())
            .and_then(|token| self.tokens.authenticate(token))
            .ok_or_else(|| {
                let status = Status::unauthenticated("a known join token is needed");
                ("unauthenticated", status)
            })?;
        let IstioCertificateRequest {
            csr,
            validity_duration,
            ..
        } = request.get_ref();
        let ttl = match u64::try_from(*validity_duration) {
            // Zero is proto3's "not set": as long as is allowed.
            Ok(0) => Duration::MAX,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let status = Status::invalid_argument("validity_duration is negative");
                return Err(("invalid", status));
            }
        };
        match self.authority.sign_csr(csr, &identity, ttl) {
            Ok(issued) => Ok(IstioCertificateResponse {
                cert_chain: issued.chain_pem,
            }),
            Err(error @ CaError::InvalidCsr(_)) => {
                tracing::warn!(target: "audit", %identity, %error, "certificate refused");
                Err(("invalid", Status::invalid_argument(error.to_string())))
            }
            Err(error) => {
                tracing::error!(%identity, %error, "cannot sign");
                Err(("error", Status::internal("cannot sign")))
            }
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match self.create(&request) {
            Ok(response) => {
                self.metrics.csr("ok");
                Ok(Response::new(response))
            }
            Err((result, status)) => {
                self.metrics.csr(result);
                Err(status)
            }
        }
    }
}

/// The bearer token of `authorization`; the scheme's case does not matter (RFC 9110 §11.1).
pub(crate) fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
