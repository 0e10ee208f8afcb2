//! The counters and the span of one served request, which end exactly once.
//!
//! Stage 13. Dropping a record that was not ended means that the caller went away.

use std::{sync::Arc, time::Instant};

use mesh_core::filter::FilterAction;

use super::{
    Shared,
    connection::Connection,
    life::{Alive, Life},
};
use crate::telemetry::{Code, LocalReplyReason, Protocol, ServerSpan};

pub(super) struct Record {
    shared: Arc<Shared>,
    protocol: Protocol,
    started: Instant,
    span: Option<ServerSpan>,
    /// What is recorded when nobody says how it ended.
    code: Code,
    /// Keeps its connection alive, where that is limited.
    _alive: Option<Alive>,
}

impl Record {
    pub(super) fn begin(connection: &Connection, protocol: Protocol, span: ServerSpan) -> Self {
        let shared = &connection.shared;
        shared.options.telemetry.metrics().server().start();
        Self {
            shared: Arc::clone(shared),
            protocol,
            started: tokio::time::Instant::now().into_std(),
            span: Some(span),
            code: Code::Cancelled,
            _alive: connection.life.as_ref().map(Life::request),
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) fn span(&self) -> Option<&ServerSpan> {
        self.span.as_ref()
    }

    /// Counts a refusal by authorisation.
    pub(super) fn denied(&self, policy: Option<&str>) {
        self.shared
            .options
            .telemetry
            .metrics()
            .server()
            .denied(policy);
    }

    /// Counts what shadow rules would have said.
    pub(super) fn shadow(&self, allowed: bool, policy: Option<&str>) {
        let metrics = self.shared.options.telemetry.metrics();
        metrics.server().shadow(allowed, policy);
    }

    /// Counts what a filter did.
    pub(super) fn filtered(&self, filter: &str, action: FilterAction) {
        let metrics = self.shared.options.telemetry.metrics();
        metrics.filtered("server", filter, action);
        if let Some(span) = &self.span {
            span.filtered(filter, action);
        }
    }

    /// An HTTP response counts by its head, even if the caller does not read all of its body.
    pub(super) fn head(&mut self, code: Code) {
        self.code = code;
    }

    pub(super) fn end(mut self, code: Code) {
        self.code = code;
    }

    /// It is answered in place of the application.
    #[cold]
    pub(super) fn end_locally(self, reason: LocalReplyReason, code: Code) {
        let metrics = self.shared.options.telemetry.metrics();
        metrics.server().local_reply(reason, code);
        if let Some(span) = &self.span {
            span.local_reply(reason);
        }
        self.end(code);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = tokio::time::Instant::now()
            .into_std()
            .saturating_duration_since(self.started);
        let metrics = self.shared.options.telemetry.metrics().server();
        metrics.finish(self.protocol, self.code, elapsed);
        if let Some(span) = self.span.take() {
            span.end(self.code);
        }
    }
}
