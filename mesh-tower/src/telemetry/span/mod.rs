//! Spans of served requests, of calls, and of their attempts.
//!
//! Stage 13. A served request is one `SERVER` span whose parent comes from the caller's
//! `traceparent`; it is current while the application runs. A call is one `CLIENT` span, each of
//! its attempts a child, and the attempt's identity goes out as `traceparent`. Names and attributes
//! follow the OpenTelemetry conventions; `mesh.*` is ours. When nothing is exported every function
//! here is one branch.

mod attributes;
mod call;
mod server;

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use http::{HeaderMap, Method, request::Parts};
use mesh_core::filter::FilterAction;
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};

use super::{Code, LocalReplyReason, Protocol, Telemetry, Tracing, code::grpc_name};
use attributes::{Description, call_attributes, server_attributes, span_name};
use call::Call;

pub(crate) use call::AttemptSpan;
pub use call::CallSpan;
pub use server::{InContext, ServerSpan};

/// What a server span is made from.
#[derive(Clone, Copy, Debug)]
pub struct ServerHead<'r> {
    /// What is spoken.
    pub protocol: Protocol,
    /// Method.
    pub method: &'r Method,
    /// Path without query.
    pub path: &'r str,
    /// Authority or host header.
    pub authority: &'r str,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
    /// The caller's address.
    pub remote: SocketAddr,
    /// Headers, for the caller's trace.
    pub headers: &'r HeaderMap,
}

/// What a call span is made from.
#[derive(Clone, Copy, Debug)]
pub struct CallHead<'r> {
    /// What is spoken.
    pub protocol: Protocol,
    /// Method.
    pub method: &'r Method,
    /// Path without query.
    pub path: &'r str,
    /// Where the application wants to go.
    pub authority: &'r str,
}

impl<'r> CallHead<'r> {
    /// The `head` of a request, whose authority is `dialled` when it names none.
    pub fn of(dialled: &'r str, head: &'r Parts, protocol: Protocol) -> Self {
        let uri = &head.uri;
        let named = uri.authority().map(http::uri::Authority::as_str);
        Self {
            protocol,
            method: &head.method,
            path: uri.path(),
            authority: named.unwrap_or(dialled),
        }
    }
}

impl Telemetry {
    /// Begins the span of a served request.
    pub fn start_server_span(&self, head: ServerHead<'_>) -> ServerSpan {
        match &self.tracing {
            None => ServerSpan { context: None },
            Some(tracing) => ServerSpan {
                context: Some(tracing.server(&head)),
            },
        }
    }

    /// Begins the span of a call, as a child of the current one.
    #[inline]
    pub fn start_call_span<'r>(&self, head: impl FnOnce() -> CallHead<'r>) -> CallSpan {
        match &self.tracing {
            None => CallSpan { inner: None },
            Some(tracing) => CallSpan {
                inner: Some(Box::new(tracing.call(&head()))),
            },
        }
    }
}

impl Tracing {
    fn server(&self, head: &ServerHead<'_>) -> Context {
        let extractor = HeaderExtractor(head.headers);
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &extractor);
        let parent = BaggagePropagator::new().extract_with_context(&parent, &extractor);
        let description = || {
            let name = span_name(head.protocol, head.method, head.path);
            (name, server_attributes(head))
        };
        self.start(SpanKind::Server, &parent, description)
    }

    fn call(self: &Arc<Self>, head: &CallHead<'_>) -> Call {
        let mut described = None;
        let description = || {
            let name = span_name(head.protocol, head.method, head.path);
            let attributes = call_attributes(head);
            described = Some((name.clone(), attributes.clone()));
            (name, attributes)
        };
        let context = self.start(SpanKind::Client, &Context::current(), description);
        Call {
            tracing: Arc::clone(self),
            protocol: head.protocol,
            context,
            described,
            attempt: None,
        }
    }

    /// Starts a span. It is described only when it is recorded: whether it is depends on the trace
    /// alone, see [`TelemetryBuilder::sampler_ratio`](super::TelemetryBuilder::sampler_ratio).
    fn start(
        &self,
        kind: SpanKind,
        parent: &Context,
        description: impl FnOnce() -> Description,
    ) -> Context {
        let builder = SpanBuilder::from_name("").with_kind(kind);
        let mut span = self.tracer.build_with_context(builder, parent);
        if span.is_recording() {
            let (name, attributes) = description();
            span.update_name(name);
            span.set_attributes(attributes);
        }
        parent.with_span(span)
    }
}

fn add_event(context: &Context, filter: &str, action: FilterAction) {
    let attributes = vec![
        KeyValue::new("mesh.filter", filter.to_owned()),
        KeyValue::new("mesh.filter.action", action.label()),
    ];
    context.span().add_event("mesh.filter", attributes);
}

fn set_local_reply(context: &Context, reason: LocalReplyReason) {
    let reason = KeyValue::new("mesh.local_reply", reason.label());
    context.span().set_attribute(reason);
}

fn end_span(context: &Context, code: Code, is_error: bool) {
    let span = context.span();
    if !span.is_recording() {
        return span.end();
    }
    match code {
        Code::Grpc(status) => {
            span.set_attribute(KeyValue::new("rpc.response.status_code", grpc_name(status)));
        }
        Code::Http(status) => {
            span.set_attribute(KeyValue::new(
                "http.response.status_code",
                i64::from(status),
            ));
        }
        _ => {}
    }
    if is_error {
        let kind = match code {
            Code::Http(status) => Cow::Owned(status.to_string()),
            other => Cow::Borrowed(other.label()),
        };
        span.set_attribute(KeyValue::new("error.type", kind.clone()));
        span.set_status(Status::error(kind));
    }
    span.end();
}
