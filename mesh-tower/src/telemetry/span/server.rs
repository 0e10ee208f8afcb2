//! Spans of served requests.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as TaskContext, Poll},
};

use mesh_core::filter::FilterAction;
use opentelemetry::{Context, ContextGuard, KeyValue, trace::TraceContextExt};
use pin_project_lite::pin_project;

use super::{
    super::{Code, LocalReplyReason},
    add_event, end_span, set_local_reply,
};

/// The span of a served request. Dropped without [`ServerSpan::end`] it ends without a status.
#[must_use]
pub struct ServerSpan {
    pub(super) context: Option<Context>,
}

impl ServerSpan {
    /// The context with this span, `None` when nothing is exported.
    pub fn context(&self) -> Option<&Context> {
        self.context.as_ref()
    }

    /// Notes who called.
    pub fn set_principal(&self, principal: &str) {
        if let Some(context) = &self.context {
            context
                .span()
                .set_attribute(KeyValue::new("mesh.principal", principal.to_owned()));
        }
    }

    /// A filter did something with the request.
    pub fn filtered(&self, filter: &str, action: FilterAction) {
        if let Some(context) = &self.context {
            add_event(context, filter, action);
        }
    }

    /// The answer is not the application's, and why.
    pub(crate) fn local_reply(&self, reason: LocalReplyReason) {
        if let Some(context) = &self.context {
            set_local_reply(context, reason);
        }
    }

    /// Runs `future` with this span as the current one.
    pub fn run<F: Future>(&self, future: F) -> InContext<F> {
        InContext {
            context: self.context.clone(),
            future,
        }
    }

    /// Makes this span the current one of this thread while the guard lives.
    pub(crate) fn enter(&self) -> Option<ContextGuard> {
        self.context.clone().map(Context::attach)
    }

    /// Ends the span.
    pub fn end(self, code: Code) {
        if let Some(context) = &self.context {
            end_span(context, code, code.is_server_error());
        }
    }
}

impl fmt::Debug for ServerSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSpan").finish_non_exhaustive()
    }
}

pin_project! {
    /// A future that runs with a span as the current one.
    pub struct InContext<F> {
        context: Option<Context>,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for InContext<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _guard = this.context.clone().map(Context::attach);
        this.future.poll(cx)
    }
}

impl<F> fmt::Debug for InContext<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InContext").finish_non_exhaustive()
    }
}
