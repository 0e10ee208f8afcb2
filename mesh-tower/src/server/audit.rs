//! The record of who was refused what, and by which policy.
//!
//! One record for each refusal by authorisation and for each match of a `LOG` policy. It is always
//! logged with target `mesh::audit`; a sink can collect it too. Headers and queries are not part of
//! it, because they may hold secrets.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::{
    authz::{AuthzRequest, Decision},
    config::RbacAction,
};

use super::Options;

/// Who asked for what, and what authorisation said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// The caller's name; `None` without mutual TLS.
    pub principal: Option<String>,
    /// The caller's address.
    pub remote: SocketAddr,
    /// Method.
    pub method: String,
    /// Authority or host header.
    pub authority: String,
    /// Path without query.
    pub path: String,
    /// The policy that decided; `None` when no `ALLOW` policy matched.
    pub policy: Option<Arc<str>>,
    /// Action of the filter: `ALLOW`, `DENY` or `LOG`.
    pub action: &'static str,
    /// Whether the request passed.
    pub authorized: bool,
}

impl AuditRecord {
    /// The record as JSON, with the field names of the struct.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "principal": self.principal,
            "remote": self.remote.to_string(),
            "method": self.method,
            "authority": self.authority,
            "path": self.path,
            "policy": self.policy.as_deref(),
            "action": self.action,
            "authorized": self.authorized,
        })
    }
}

/// Collects audit records. Called on the request path: it must not block.
pub trait AuditSink: Send + Sync {
    /// Takes one record.
    fn record(&self, record: &AuditRecord);
}

impl<F: Fn(&AuditRecord) + Send + Sync> AuditSink for F {
    fn record(&self, record: &AuditRecord) {
        self(record);
    }
}

/// Writes the records that a decision asks for.
pub(super) fn write(
    options: &Options,
    request: &AuthzRequest<'_>,
    remote: SocketAddr,
    decision: &Decision,
) {
    let write = |policy: Option<&Arc<str>>, action| {
        let record = AuditRecord {
            principal: request.principals.first().cloned(),
            remote,
            method: request.method.to_owned(),
            authority: request.authority.to_owned(),
            path: request.path.to_owned(),
            policy: policy.cloned(),
            action,
            authorized: decision.allowed,
        };
        log(&record);
        if let Some(sink) = &options.audit {
            sink.record(&record);
        }
    };
    for matched in &decision.audit {
        write(Some(&matched.policy), "LOG");
    }
    if !decision.allowed {
        let action = match decision.action {
            Some(RbacAction::Deny) => "DENY",
            _ => "ALLOW",
        };
        write(decision.policy.as_ref(), action);
    }
}

fn log(record: &AuditRecord) {
    tracing::info!(
        target: "mesh::audit",
        principal = record.principal.as_deref(),
        remote = %record.remote,
        method = record.method,
        authority = record.authority,
        path = record.path,
        policy = record.policy.as_deref(),
        action = record.action,
        authorized = record.authorized,
    );
}
