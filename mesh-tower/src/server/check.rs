//! Requests that another service must permit (Envoy `ext_authz`; gRFC A92).
//!
//! Stage: server, among the filters. Whom to ask and what about is decided by
//! [`mesh_core::filter::ExternalCheck`]; who carries the question there is given to the server
//! ([`ServerBuilder::authorization_services`](super::ServerBuilder::authorization_services)). Fails
//! closed: no verdict in time, one that cannot be carried out, or nobody to ask refuses the request,
//! unless the configuration lets requests pass when the service cannot be asked, which is the first of
//! the three alone.

use std::{borrow::Cow, fmt, future::Future, pin::Pin, sync::Arc};

use http::StatusCode;
use mesh_core::{
    config::ExtAuthz,
    filter::{Allowed, CheckRequest, CheckVerdict, Denied, ExternalCheck, FilterAction},
};

use super::refusal::Refusal;

/// A verdict on its way.
pub type CheckFuture = Pin<Box<dyn Future<Output = Result<CheckVerdict, CheckError>> + Send>>;

/// Says of requests whether they may pass.
pub trait AuthorizationService: Send + Sync {
    /// Asks about one request. The server waits for as long as the configuration says.
    fn check(&self, request: &CheckRequest<'_>) -> CheckFuture;
}

/// Where a server finds the services that its configuration names.
pub trait AuthorizationServices: Send + Sync {
    /// The service of a configuration. Called when the configuration comes, not for each request.
    fn service(&self, config: &Arc<ExtAuthz>) -> Arc<dyn AuthorizationService>;
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckError {
    /// The service could not be asked.
    Unavailable(String),
    /// It said something that cannot be carried out. Requests never pass by this.
    Invalid(String),
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the service cannot be asked: {why}"),
            Self::Invalid(why) => write!(f, "the service's answer cannot be used: {why}"),
        }
    }
}

impl std::error::Error for CheckError {}

/// The services of a configuration, each with what asks for it.
pub(super) struct Checks(Box<[Known]>);

type Known = (Arc<ExtAuthz>, Arc<dyn AuthorizationService>);

impl Checks {
    /// Finds the service of each of `configs`; those of `previous` stay.
    pub(super) fn compile<'c>(
        configs: impl Iterator<Item = &'c Arc<ExtAuthz>>,
        previous: impl Fn(&ExtAuthz) -> Option<Arc<dyn AuthorizationService>>,
        services: Option<&dyn AuthorizationServices>,
    ) -> Self {
        let found = configs.filter_map(|config| {
            let service = previous(config).or_else(|| Some(services?.service(config)));
            if service.is_none() {
                let cluster = &config.cluster;
                tracing::error!(
                    target: "mesh::server", %cluster,
                    "requests are refused: this server was given nobody who asks authorization services"
                );
            }
            Some((Arc::clone(config), service?))
        });
        Self(found.collect())
    }

    pub(super) fn find(&self, config: &ExtAuthz) -> Option<Arc<dyn AuthorizationService>> {
        let mut held = self.0.iter();
        let found = held.find(|(known, _)| **known == *config);
        found.map(|(_, service)| Arc::clone(service))
    }
}

/// What comes of a check.
pub(super) enum Checked {
    /// The request passes, changed like this.
    Passes(Box<Allowed>),
    /// It passes, as the service could not be asked.
    Unchecked,
    Refused(Refusal, FilterAction),
}

/// Asks about a request.
pub(super) async fn ask(
    check: &ExternalCheck,
    service: Option<Arc<dyn AuthorizationService>>,
    request: &CheckRequest<'_>,
) -> Checked {
    let config = check.config();
    let Some(service) = service else {
        return Checked::Refused(failed(config, None), FilterAction::CheckFailed);
    };
    let answered = tokio::time::timeout(config.timeout, service.check(request)).await;
    let verdict = answered.unwrap_or_else(|_| {
        let why = format!("no answer within {:?}", config.timeout);
        Err(CheckError::Unavailable(why))
    });
    let said = match verdict {
        Ok(CheckVerdict::Allowed(allowed)) => return Checked::Passes(allowed),
        Ok(CheckVerdict::Denied(denied)) => {
            let action = FilterAction::CheckDenied;
            let refusal = refusal(*denied, StatusCode::FORBIDDEN, action);
            return Checked::Refused(refusal, action);
        }
        Ok(CheckVerdict::Failed(said)) => Some(said),
        Err(CheckError::Invalid(error)) => {
            let cluster = &config.cluster;
            tracing::warn!(target: "mesh::server", %cluster, error, "refused: a verdict cannot be used");
            return Checked::Refused(Refusal::FAILED_CHECK, FilterAction::CheckFailed);
        }
        Err(error) => {
            let cluster = &config.cluster;
            let passes = config.failure_mode_allow;
            tracing::warn!(target: "mesh::server", %cluster, %error, passes, "a request is not checked");
            None
        }
    };
    match config.failure_mode_allow {
        true => Checked::Unchecked,
        false => Checked::Refused(failed(config, said), FilterAction::CheckFailed),
    }
}

/// The answer where there is no verdict.
pub(super) fn failed(config: &ExtAuthz, said: Option<Box<Denied>>) -> Refusal {
    let status = StatusCode::from_u16(config.status_on_error).unwrap_or(StatusCode::FORBIDDEN);
    let said = said.map_or_else(Denied::default, |said| *said);
    refusal(said, status, FilterAction::CheckFailed)
}

fn refusal(denied: Denied, default: StatusCode, action: FilterAction) -> Refusal {
    let status = denied
        .status
        .and_then(|code| StatusCode::from_u16(code).ok())
        // Anything else is no end of a request.
        .filter(|status| !status.is_informational())
        .unwrap_or(default);
    let mut headers = http::HeaderMap::new();
    for edit in &denied.headers {
        edit.apply(&mut headers);
    }
    Refusal::checked(action, status, Cow::Owned(denied.body), headers)
}
