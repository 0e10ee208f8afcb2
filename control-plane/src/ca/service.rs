//! The certificate service over gRPC: a proof of identity and a CSR for a certificate chain.
//!
//! Owns the order of checks and the mapping to gRPC status codes. The identity comes from the caller's
//! credential alone; nothing in the request can name another. Each answer is written down ([`Audit`]).

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status};

use super::{
    Authority, Caller, Callers, ConnectionPeer, IssuanceLimits,
    csr::proven_key,
    limit::Limiter,
    proto::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::IstioCertificateService,
    },
};
use crate::{
    audit::{self, Audit, Event},
    metrics::Metrics,
};

/// What is written down about certificates.
pub(crate) const ISSUE: &str = "certificate.issue";

/// Serves `istio.v1.auth.IstioCertificateService`.
#[derive(Clone, Debug)]
pub struct CertificateService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    authority: Arc<Authority>,
    callers: Arc<Callers>,
    limiter: Limiter,
    metrics: Metrics,
    audit: Audit,
}

/// Why there is no certificate: the metric's word, what the caller is told, and who it is if known.
struct Refused {
    result: &'static str,
    status: Status,
    caller: Option<Caller>,
}

impl CertificateService {
    /// A service that signs with `authority` for whom `callers` knows and allows.
    pub fn new(
        authority: Arc<Authority>,
        callers: Arc<Callers>,
        limits: IssuanceLimits,
        metrics: Metrics,
        audit: Audit,
    ) -> Self {
        metrics.root_expires(authority.root_not_after());
        let shared = Shared {
            authority,
            callers,
            limiter: Limiter::new(limits),
            metrics,
            audit,
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Shared {
    fn create(
        &self,
        request: &Request<IstioCertificateRequest>,
        address: Option<IpAddr>,
    ) -> Result<IstioCertificateResponse, Refused> {
        let now = Instant::now();
        if address.is_some_and(|address| !self.limiter.may_try(address, now)) {
            let status = Status::resource_exhausted("too many failed attempts from this address");
            return Err(Refused::new("rate_limited", status));
        }
        let unauthenticated = |error: super::Unauthenticated| {
            if let Some(address) = address {
                self.limiter.failed(address, now);
            }
            Refused::new(
                "unauthenticated",
                Status::unauthenticated(error.to_string()),
            )
        };
        let peer = request.extensions().get::<ConnectionPeer>();
        let caller = self.callers.authenticate(request.metadata(), peer);
        let caller = caller.map_err(unauthenticated)?;
        self.callers
            .check_allowed(&caller.identity)
            .map_err(|error| {
                let status = Status::permission_denied(error.to_string());
                Refused::new("denied", status).of(&caller)
            })?;
        if !self.limiter.may_issue(&caller.identity, now) {
            let status = Status::resource_exhausted("too many certificates for this identity");
            return Err(Refused::new("rate_limited", status).of(&caller));
        }
        self.sign(request, &caller, unauthenticated)
    }

    fn sign(
        &self,
        request: &Request<IstioCertificateRequest>,
        caller: &Caller,
        unauthenticated: impl Fn(super::Unauthenticated) -> Refused,
    ) -> Result<IstioCertificateResponse, Refused> {
        let IstioCertificateRequest {
            csr,
            validity_duration,
            ..
        } = request.get_ref();
        let invalid =
            |message: String| Refused::new("invalid", Status::invalid_argument(message)).of(caller);
        let ttl = match u64::try_from(*validity_duration) {
            // Zero is proto3's "not set": as long as is allowed.
            Ok(0) => Duration::MAX,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(invalid("validity_duration is negative".to_owned())),
        };
        // A request that cannot be signed must not use up the token.
        let proven = proven_key(csr).map_err(|error| invalid(error.to_string()))?;
        self.callers
            .redeem(caller, request.metadata())
            .map_err(unauthenticated)?;
        match self.authority.sign(&proven, &caller.identity, &[], ttl) {
            Ok(issued) => {
                self.audit.record(&Event {
                    principal: &caller.identity.to_string(),
                    object: &format!("certificate {}", issued.serial),
                    action: ISSUE,
                    result: "ok",
                });
                Ok(IstioCertificateResponse {
                    cert_chain: issued.chain_pem,
                })
            }
            Err(error) => {
                tracing::error!(identity = %caller.identity, %error, "cannot sign");
                Err(Refused::new("error", Status::internal("cannot sign")).of(caller))
            }
        }
    }
}

impl Refused {
    fn new(result: &'static str, status: Status) -> Self {
        Self {
            result,
            status,
            caller: None,
        }
    }

    fn of(self, caller: &Caller) -> Self {
        let caller = Some(caller.clone());
        Self { caller, ..self }
    }

    /// Who asked, as far as that is known.
    fn principal(&self, address: Option<IpAddr>) -> String {
        audit::principal(self.caller.as_ref().map(|caller| &caller.identity), address)
    }

    fn log(&self, address: Option<IpAddr>) {
        let known = self.caller.as_ref();
        tracing::warn!(
            target: "audit",
            identity = known.map(|caller| caller.identity.to_string()),
            method = known.map(|caller| caller.method.as_str()),
            address = address.map(|address| address.to_string()),
            result = self.result,
            reason = self.status.message(),
            "certificate refused"
        );
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<ConnectionPeer>();
        let address = peer.map(|peer| peer.address.ip());
        // Reads files and signs: not for the threads that carry streams.
        let shared = Arc::clone(&self.shared);
        let made = tokio::task::spawn_blocking(move || {
            let made = shared.create(&request, address);
            let result = made
                .as_ref()
                .map_or_else(|refused| refused.result, |_| "ok");
            shared.metrics.csr(result);
            if let Err(refused) = &made {
                refused.log(address);
                let event = Event {
                    principal: &refused.principal(address),
                    object: "certificate",
                    action: ISSUE,
                    result: &format!("{}: {}", refused.result, refused.status.message()),
                };
                match &refused.caller {
                    Some(_) => shared.audit.record(&event),
                    None => shared.audit.refused(&event),
                }
            }
            made
        });
        match made.await {
            Ok(Ok(response)) => Ok(Response::new(response)),
            Ok(Err(refused)) => Err(refused.status),
            Err(_) => Err(Status::internal("cannot sign")),
        }
    }
}
