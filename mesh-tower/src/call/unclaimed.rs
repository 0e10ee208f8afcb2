//! Calls that wait for what comes before a cluster: a configuration, a cluster that a header names, the
//! filters of their route.
//!
//! Stages 8 and 9. From the permit on a call is its cluster's; one whose caller goes away before that is
//! counted here.

use std::sync::Arc;

use crate::{
    cluster::MakeEndpoint,
    error::Error,
    listener::ListenerRuntime,
    telemetry::{CallSpan, Code, LocalReplyReason},
};

/// A call that no cluster has. Dropped, its caller went away.
pub(super) struct Unclaimed<M: MakeEndpoint> {
    listener: Arc<ListenerRuntime<M>>,
    /// `None` once the call is somebody's or has ended.
    span: Option<CallSpan>,
}

impl<M: MakeEndpoint> Unclaimed<M> {
    pub(super) fn new(listener: &Arc<ListenerRuntime<M>>, span: CallSpan) -> Self {
        Self {
            listener: Arc::clone(listener),
            span: Some(span),
        }
    }

    pub(super) fn span(&self) -> Option<&CallSpan> {
        self.span.as_ref()
    }

    /// Somebody else ends the call.
    pub(super) fn claim(mut self) -> CallSpan {
        self.span.take().unwrap_or_default()
    }

    /// The call ends here.
    pub(super) fn end(&mut self, reason: LocalReplyReason, code: Code) {
        if let Some(mut span) = self.span.take() {
            self.listener.end_locally(&mut span, reason, code);
        }
    }

    pub(super) fn fail(&mut self, error: &Error) {
        let kind = error.kind();
        self.end(kind.into(), kind.into());
    }
}

impl<M: MakeEndpoint> Drop for Unclaimed<M> {
    fn drop(&mut self) {
        self.end(LocalReplyReason::Cancelled, Code::Cancelled);
    }
}
