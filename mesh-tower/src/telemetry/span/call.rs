//! Spans of calls and of their attempts.

use std::{fmt, net::SocketAddr, sync::Arc};

use http::HeaderMap;
use mesh_core::filter::FilterAction;
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{SpanContext, SpanKind, TraceContextExt},
};
use opentelemetry_http::HeaderInjector;
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};

use super::{
    super::{Code, Extra, LocalReplyReason, Protocol, Tracing},
    add_event,
    attributes::Description,
    end_span, set_local_reply,
};

/// The span of a call. Dropped without [`CallSpan::end`] it ends without a status.
#[must_use]
#[derive(Default)]
pub struct CallSpan {
    pub(super) inner: Option<Box<Call>>,
}

/// The span of an attempt that is not its call's current one.
#[must_use]
pub(crate) struct AttemptSpan {
    /// `None` when the trace is not recorded.
    context: Option<Context>,
}

impl AttemptSpan {
    /// Ends the span.
    pub(crate) fn end(self, code: Code) {
        if let Some(context) = &self.context {
            end_span(context, code, code.is_client_error());
        }
    }
}

pub(super) struct Call {
    pub(super) tracing: Arc<Tracing>,
    pub(super) protocol: Protocol,
    pub(super) context: Context,
    /// What its attempts share; `None` when the trace is not recorded.
    pub(super) described: Option<Description>,
    /// The span of the current attempt.
    pub(super) attempt: Option<Context>,
}

impl CallSpan {
    /// The context with this span, `None` when nothing is exported.
    pub fn context(&self) -> Option<&Context> {
        self.inner.as_ref().map(|call| &call.context)
    }

    /// The context with this span, in which others are recorded as `sampled` says and not as this one
    /// is. Whether they then are is up to the sampler of [`Telemetry`](crate::telemetry::Telemetry), which goes by the trace.
    pub(crate) fn context_sampled(&self, sampled: Option<bool>) -> Option<Context> {
        let context = self.context()?;
        let Some(sampled) = sampled else {
            return Some(context.clone());
        };
        let held = context.span().span_context().clone();
        let flags = held.trace_flags().with_sampled(sampled);
        let (trace, span) = (held.trace_id(), held.span_id());
        let state = held.trace_state().clone();
        let asked = SpanContext::new(trace, span, flags, held.is_remote(), state);
        Some(context.with_remote_span_context(asked))
    }

    /// Whether there is a span: what is noted in it need not be gathered otherwise.
    #[inline]
    pub(crate) fn is_some(&self) -> bool {
        self.inner.is_some()
    }

    /// Notes the cluster that the route chose.
    pub fn set_cluster(&self, cluster: &str) {
        if let Some(call) = &self.inner
            && call.described.is_some()
        {
            let attribute = KeyValue::new("mesh.cluster", cluster.to_owned());
            call.context.span().set_attribute(attribute);
        }
    }

    /// A filter did something with the request.
    #[cold]
    pub fn filtered(&self, filter: &str, action: FilterAction) {
        if let Some(call) = &self.inner {
            add_event(&call.context, filter, action);
        }
    }

    /// The answer is not an endpoint's, and why.
    #[cold]
    pub(crate) fn local_reply(&self, reason: LocalReplyReason) {
        if let Some(call) = &self.inner {
            set_local_reply(&call.context, reason);
        }
    }

    /// Begins the span of attempt `number`, counted from 1, and writes its identity into the
    /// headers that go out.
    #[inline]
    pub fn start_attempt(
        &mut self,
        number: u32,
        cluster: &str,
        endpoint: SocketAddr,
        headers: &mut HeaderMap,
    ) {
        if let Some(call) = &mut self.inner {
            call.attempt = call.start_attempt(number, cluster, endpoint, headers);
        }
    }

    /// Begins the span of an attempt beside others, see [`start_attempt`](Self::start_attempt).
    pub(crate) fn start_attempt_beside(
        &self,
        number: u32,
        cluster: &str,
        endpoint: SocketAddr,
        headers: &mut HeaderMap,
    ) -> AttemptSpan {
        let call = self.inner.as_ref();
        AttemptSpan {
            context: call.and_then(|call| call.start_attempt(number, cluster, endpoint, headers)),
        }
    }

    /// Takes the span of the current attempt.
    pub(crate) fn detach_attempt(&mut self) -> AttemptSpan {
        AttemptSpan {
            context: self.inner.as_mut().and_then(|call| call.attempt.take()),
        }
    }

    /// Makes the span that of the current attempt.
    pub(crate) fn adopt_attempt(&mut self, span: AttemptSpan) {
        if let Some(call) = &mut self.inner {
            call.attempt = span.context;
        }
    }

    /// Notes another attempt as an event.
    pub(crate) fn note_extra(&self, extra: Extra, reason: &'static str) {
        if let Some(call) = &self.inner
            && call.described.is_some()
        {
            let reason = KeyValue::new("mesh.reason", reason);
            call.context.span().add_event(extra.label(), vec![reason]);
        }
    }

    /// Ends the span of the current attempt. One that is not ended so ends without a status.
    #[inline]
    pub fn end_attempt(&mut self, code: Code) {
        if let Some(call) = &mut self.inner
            && let Some(attempt) = call.attempt.take()
        {
            end_span(&attempt, code, code.is_client_error());
        }
    }

    /// Ends the span.
    #[inline]
    pub fn end(&mut self, code: Code) {
        if let Some(call) = self.inner.take() {
            end_span(&call.context, code, code.is_client_error());
        }
    }
}

impl fmt::Debug for CallSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallSpan").finish_non_exhaustive()
    }
}

impl Call {
    fn start_attempt(
        &self,
        number: u32,
        cluster: &str,
        endpoint: SocketAddr,
        headers: &mut HeaderMap,
    ) -> Option<Context> {
        let attempt = self.described.as_ref().map(|(name, shared)| {
            let mut attributes = shared.clone();
            attributes.extend([
                KeyValue::new("network.peer.address", endpoint.ip().to_string()),
                KeyValue::new("network.peer.port", i64::from(endpoint.port())),
                KeyValue::new("mesh.cluster", cluster.to_owned()),
                KeyValue::new("mesh.endpoint", endpoint.to_string()),
                KeyValue::new("mesh.attempt", i64::from(number)),
            ]);
            if number > 1 && self.protocol == Protocol::Http {
                let count = i64::from(number) - 1;
                attributes.push(KeyValue::new("http.request.resend_count", count));
            }
            let description = || (name.clone(), attributes);
            self.tracing
                .start(SpanKind::Client, &self.context, description)
        });
        // A trace that is not recorded goes on nevertheless, and says so.
        let sent = attempt.as_ref().unwrap_or(&self.context);
        let mut injector = HeaderInjector(headers);
        TraceContextPropagator::new().inject_context(sent, &mut injector);
        BaggagePropagator::new().inject_context(sent, &mut injector);
        attempt
    }
}
