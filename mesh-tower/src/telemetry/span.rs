//! Spans of served requests, of calls, and of their attempts.
//!
//! Stage 13. A served request is one `SERVER` span whose parent comes from the caller's
//! `traceparent`; it is current while the application runs. A call is one `CLIENT` span, each of
//! its attempts a child, and the attempt's identity goes out as `traceparent`. Names and attributes
//! follow the OpenTelemetry conventions; `mesh.*` is ours. When nothing is exported every function
//! here is one branch.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use http::{HeaderMap, Method, request::Parts};
use mesh_core::filter::FilterAction;
use opentelemetry::{
    Context, ContextGuard, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use pin_project_lite::pin_project;

use super::{Code, Extra, LocalReplyReason, Protocol, Telemetry, Tracing, code::grpc_name};

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

/// Name and attributes of a span.
type Description = (Cow<'static, str>, Vec<KeyValue>);

fn server_attributes(head: &ServerHead<'_>) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(8);
    describe(
        &mut attributes,
        head.protocol,
        head.method,
        head.path,
        head.authority,
    );
    attributes.push(KeyValue::new(
        "network.peer.address",
        head.remote.ip().to_string(),
    ));
    attributes.push(KeyValue::new(
        "network.peer.port",
        i64::from(head.remote.port()),
    ));
    if head.protocol == Protocol::Http {
        attributes.push(KeyValue::new("url.path", head.path.to_owned()));
        let scheme = if head.is_tls { "https" } else { "http" };
        attributes.push(KeyValue::new("url.scheme", scheme));
    }
    attributes
}

fn call_attributes(head: &CallHead<'_>) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(6);
    describe(
        &mut attributes,
        head.protocol,
        head.method,
        head.path,
        head.authority,
    );
    if head.protocol == Protocol::Http {
        // The query may hold secrets.
        let url = format!("http://{}{}", head.authority, head.path);
        attributes.push(KeyValue::new("url.full", url));
    }
    attributes
}

/// The span of a served request. Dropped without [`ServerSpan::end`] it ends without a status.
#[must_use]
pub struct ServerSpan {
    context: Option<Context>,
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

/// The span of a call. Dropped without [`CallSpan::end`] it ends without a status.
#[must_use]
#[derive(Default)]
pub struct CallSpan {
    inner: Option<Box<Call>>,
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

struct Call {
    tracing: Arc<Tracing>,
    protocol: Protocol,
    context: Context,
    /// What its attempts share; `None` when the trace is not recorded.
    described: Option<Description>,
    /// The span of the current attempt.
    attempt: Option<Context>,
}

impl CallSpan {
    /// The context with this span, `None` when nothing is exported.
    pub fn context(&self) -> Option<&Context> {
        self.inner.as_ref().map(|call| &call.context)
    }

    /// The context with this span, in which others are recorded as `sampled` says and not as this one
    /// is. Whether they then are is up to the sampler of [`Telemetry`], which goes by the trace.
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

macro_rules! opaque_debug {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque_debug!(ServerSpan CallSpan);

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

fn span_name(protocol: Protocol, method: &Method, path: &str) -> Cow<'static, str> {
    match protocol {
        Protocol::Grpc => Cow::Owned(path.trim_start_matches('/').to_owned()),
        Protocol::Http => Cow::Borrowed(known_method(method).unwrap_or("HTTP")),
    }
}

/// A method of a client's own invention must not become a name.
fn known_method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT",
    ];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

fn describe(
    attributes: &mut Vec<KeyValue>,
    protocol: Protocol,
    method: &Method,
    path: &str,
    authority: &str,
) {
    match protocol {
        Protocol::Grpc => {
            attributes.push(KeyValue::new("rpc.system.name", "grpc"));
            let full = path.trim_start_matches('/').to_owned();
            attributes.push(KeyValue::new("rpc.method", full));
        }
        Protocol::Http => {
            let known = known_method(method);
            attributes.push(KeyValue::new(
                "http.request.method",
                known.unwrap_or("_OTHER"),
            ));
            if known.is_none() {
                let original = method.as_str().to_owned();
                attributes.push(KeyValue::new("http.request.method_original", original));
            }
        }
    }
    let (host, port) = host_and_port(authority);
    if !host.is_empty() {
        attributes.push(KeyValue::new("server.address", host.to_owned()));
    }
    if let Some(port) = port {
        attributes.push(KeyValue::new("server.port", i64::from(port)));
    }
}

fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_split() {
        for (authority, expected) in [
            ("a.b:80", ("a.b", Some(80))),
            ("a.b", ("a.b", None)),
            ("[::1]:80", ("[::1]", Some(80))),
            ("[::1]", ("[::1]", None)),
            ("a:x", ("a:x", None)),
            ("", ("", None)),
        ] {
            assert_eq!(host_and_port(authority), expected, "{authority}");
        }
    }
}
