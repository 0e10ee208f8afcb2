//! The record of who was refused what, and by which policy.
//!
//! One record for each refusal by authorisation, for each match of a `LOG` policy, for what shadow
//! rules said, and, on request, for a share of what passed. Refusals are never sampled. It is always
//! logged with target `mesh::audit`; a sink can collect it too. Headers and queries are not part of
//! it, because they may hold secrets.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use mesh_core::{
    authz::{AuthzRequest, Decision},
    config::RbacAction,
    rng::Rng as _,
};

use super::Options;
use crate::rng;

/// Who asked for what, and what authorisation said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// When.
    pub time: SystemTime,
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
    /// Whether the request passed, or would have passed shadow rules.
    pub authorized: bool,
    /// Whether it is what shadow rules said, which decide nothing.
    pub is_shadow: bool,
}

impl AuditRecord {
    /// The record as one JSON object with what gRFC A59 records and the address, authority and action:
    /// `timestamp` (seconds since the epoch), `rpc_method` (the path), `principal`, `policy_name` (the
    /// object, for rules that are named `OBJECT[RULE]`), `matched_rule`, `authorized`.
    pub fn to_json(&self) -> serde_json::Value {
        let rule = self.policy.as_deref();
        let object = rule.map(|rule| rule.split_once('[').map_or(rule, |(object, _)| object));
        let time = self.time.duration_since(SystemTime::UNIX_EPOCH);
        serde_json::json!({
            "timestamp": time.map_or(0, |time| time.as_secs()),
            "rpc_method": self.path,
            "principal": self.principal,
            "policy_name": object,
            "matched_rule": rule,
            "authorized": self.authorized,
            "shadow": self.is_shadow,
            "action": self.action,
            "remote": self.remote.to_string(),
            "method": self.method,
            "authority": self.authority,
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

/// Writes the records that a decision asks for: every refusal, every match of a `LOG` policy, what
/// shadow rules said, and the share of what passed that was asked for.
pub(super) fn write(
    options: &Options,
    request: &AuthzRequest<'_>,
    remote: SocketAddr,
    decision: &Decision<'_>,
) {
    let write = |policy: Option<&Arc<str>>, action, authorized, is_shadow| {
        let record = AuditRecord {
            time: SystemTime::now(),
            principal: request.principals.first().cloned(),
            remote,
            method: request.method.to_owned(),
            authority: request.authority.to_owned(),
            path: request.path.to_owned(),
            policy: policy.cloned(),
            action,
            authorized,
            is_shadow,
        };
        log(&record);
        if let Some(sink) = &options.audit {
            sink.record(&record);
        }
    };
    let allowed = decision.allowed;
    for matched in &decision.audit {
        write(Some(matched.policy), "LOG", allowed, false);
    }
    for shadow in decision.shadow.iter().filter(|shadow| !shadow.is_selection) {
        let action = shadow.action.as_str();
        write(shadow.policy, action, shadow.allowed, true);
    }
    let action = decision.action.unwrap_or(RbacAction::Allow).as_str();
    if !allowed {
        write(decision.policy, action, false, false);
    } else if options
        .audit_allowed
        .is_some_and(|share| share.contains(rng::fork().next_u64()))
    {
        write(decision.policy, action, true, false);
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
        shadow = record.is_shadow,
    );
}
