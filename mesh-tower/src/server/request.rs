//! One request: may it pass, until when, and what became of it.
//!
//! The configuration is loaded once per request, so that a policy applies to the next request of a
//! live connection. The order matters: the path has one spelling and the authority one meaning
//! before anything compares them; the deadline is read before the application runs, and the
//! application is dropped with it.

use std::{borrow::Cow, convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri, header};
use http_body::Body as _;
use hyper::body::Incoming;
use mesh_core::{
    config::{HttpLimits, NormalizedPath, PathNormalization, Underscores},
    filter::{Answer, BufferLimit, FilterAction, Passed},
    route::RequestView,
};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::{
    MeshApplication, RequestBody, ServedBody,
    body::Guard,
    connection::Connection,
    filter,
    inbound::{Chain, Found, ResponseRules, Routed},
    record::Record,
    refusal::Refusal,
    request_body,
    stream_watch::{StreamWatch, Watching},
};
use crate::{
    body::HoldBackError,
    context::{GRPC_TIMEOUT, RequestContext, parse_grpc_timeout},
    telemetry::{Protocol, ServerHead},
};

pub(super) async fn serve<A: MeshApplication>(
    connection: Arc<Connection>,
    application: A,
    mut request: Request<Incoming>,
) -> Result<Response<ServedBody<A::Body>>, Infallible> {
    connection.client_cert.apply(request.headers_mut());
    let protocol = Protocol::of(request.headers());
    let record = begin(&connection, &request, protocol);
    let mut admitted = Admitted::default();
    let checked = match admit(&connection, &mut request, &record, &mut admitted) {
        Ok(Admission::Decided) => Ok(()),
        Ok(Admission::Ask(paths)) => {
            Box::pin(admit_waiting(
                &connection,
                &request,
                paths,
                &record,
                &mut admitted,
            ))
            .await
        }
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = checked {
        return Ok(refuse(&refusal, record, &admitted));
    }
    if let Some(headers) = admitted.passed.headers.take() {
        *request.headers_mut() = headers;
    }
    if let Some(uri) = admitted.passed.uri.take() {
        *request.uri_mut() = uri;
    }
    let mut request = request.map(RequestBody::new);
    if let Some(watch) = &admitted.watch {
        request = request.map(|body| body.watched(watch));
    }
    if let Some(buffer) = &admitted.passed.buffer {
        request = match hold_back(request, buffer, &admitted, &record).await {
            Ok(request) => request,
            Err(refusal) => return Ok(refuse(&refusal, record, &admitted)),
        };
    }
    let Admitted {
        deadline, watch, ..
    } = &admitted;
    if let Some(peer) = &connection.peer {
        request.extensions_mut().insert(peer.clone());
    }
    request.extensions_mut().insert(connection.info);
    let context = RequestContext {
        deadline: deadline.map(Instant::into_std),
        peer: connection.peer.clone(),
    };
    let answer = RequestContext::scope(context.clone(), application.answer(request));
    let answered = {
        let span = record.span();
        let answer = async {
            match span {
                Some(span) => span.run(answer).await,
                None => answer.await,
            }
        };
        match (*deadline, watch.as_ref()) {
            (None, None) => Ok(answer.await),
            (Some(deadline), None) => timeout_at(deadline, answer)
                .await
                .map_err(|_| Refusal::DEADLINE),
            (deadline, Some(watch)) => within(answer, deadline, watch).await,
        }
    };
    let response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::error!(target: "mesh::server", error, "the application failed");
            return Ok(refuse(&Refusal::FAILED, record, &admitted));
        }
        Err(refusal) => return Ok(refuse(&refusal, record, &admitted)),
    };
    let (mut parts, body) = response.into_parts();
    admitted.respond(parts.status, &mut parts.headers);
    let deadline: Option<Pin<Box<Sleep>>> = admitted.deadline.map(|at| Box::pin(sleep_until(at)));
    let guard = Guard {
        record,
        context,
        deadline,
        watching: admitted.watch.map(Watching::new),
        permits: admitted.passed.permits,
    };
    let body = ServedBody::streaming(body, &parts.headers, parts.status.as_u16(), guard);
    Ok(Response::from_parts(parts, body))
}

/// What was decided about a request that may pass.
#[derive(Default)]
struct Admitted {
    /// Until when it is answered.
    deadline: Option<Instant>,
    /// What its filters leave behind, also when one refused it.
    passed: Passed,
    /// What its route does to the response.
    rules: Option<Box<ResponseRules>>,
    /// Where its chain limits streams.
    watch: Option<Arc<StreamWatch>>,
}

impl Admitted {
    /// Makes the changes that the response's headers get.
    fn respond(&self, status: StatusCode, headers: &mut HeaderMap) {
        if let Some(rules) = &self.rules {
            rules.apply(status, headers);
        }
        if !self.passed.leaves_response() {
            self.passed.respond(status, headers);
        }
    }
}

/// Waits for the body of a request.
async fn hold_back(
    request: Request<RequestBody>,
    buffer: &BufferLimit,
    admitted: &Admitted,
    record: &Record,
) -> Result<Request<RequestBody>, Refusal> {
    let watch = admitted.watch.as_ref();
    let held = request_body::hold_back(request, buffer.max_bytes);
    let held = match (admitted.deadline, watch) {
        (None, None) => Ok(held.await),
        (Some(deadline), None) => timeout_at(deadline, held)
            .await
            .map_err(|_| Refusal::DEADLINE),
        (deadline, Some(watch)) => within(held, deadline, watch).await,
    };
    held?.map_err(|why| match why {
        HoldBackError::TooLong => {
            record.filtered(&buffer.filter, FilterAction::TooLarge);
            Refusal::filtered(Answer::too_large())
        }
        HoldBackError::Failed(error) => {
            tracing::debug!(target: "mesh::server", error, "the body of a request failed");
            Refusal::BAD_BODY
        }
    })
}

/// What comes of `future`, unless the deadline or a limit of the stream comes first.
async fn within<T>(
    future: impl Future<Output = T>,
    deadline: Option<Instant>,
    watch: &StreamWatch,
) -> Result<T, Refusal> {
    let passed = async {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        done = future => Ok(done),
        refusal = watch.late() => Err(refusal),
        () = passed => Err(Refusal::DEADLINE),
    }
}

fn begin(connection: &Connection, request: &Request<Incoming>, protocol: Protocol) -> Record {
    let span = connection
        .shared
        .options
        .telemetry
        .start_server_span(ServerHead {
            protocol,
            method: request.method(),
            path: request.uri().path(),
            authority: authority(request).unwrap_or_default(),
            is_tls: connection.info.is_tls,
            remote: connection.info.remote,
            headers: request.headers(),
        });
    if let Some(peer) = &connection.peer {
        span.set_principal(peer.principal());
    }
    Record::begin(connection, protocol, span)
}

/// How far a request has come.
enum Admission {
    /// It may pass.
    Decided,
    /// Others must be asked ([`admit_waiting`]); its path was normalised by these rules.
    Ask(PathNormalization),
}

/// Whether the request may pass; `admitted` is what is known about it by then. Gives its path the one
/// spelling that everybody behind sees.
fn admit(
    connection: &Connection,
    request: &mut Request<Incoming>,
    record: &Record,
    admitted: &mut Admitted,
) -> Result<Admission, Refusal> {
    let inbound = connection.shared.inbound.load();
    let chain = inbound
        .chain_of_live(&connection.seen, connection.peer.is_some())
        .ok_or(Refusal::NOT_SERVING)?;
    if let Some(limits) = &chain.limits {
        check_head(limits, request.headers_mut())?;
        admitted.watch = StreamWatch::begin(limits);
    }
    normalize(chain.paths, request, record.protocol())?;
    if chain.waits {
        return Ok(Admission::Ask(chain.paths));
    }
    let request = &*request;
    let view = view(request)?;
    let routed = chain.route(&view, connection.info.is_tls);
    if let Some(filters) = routed.filters {
        let has_body = !request.body().is_end_stream();
        let head = (&view, request.version(), has_body);
        let passed = &mut admitted.passed;
        filter::run((connection, chain), filters, head, record, passed)?;
    }
    conclude(chain, routed, (request, &view), None, record, admitted)?;
    Ok(Admission::Decided)
}

/// The same for requests that others may have to be asked about.
async fn admit_waiting(
    connection: &Connection,
    request: &Request<Incoming>,
    paths: PathNormalization,
    record: &Record,
    admitted: &mut Admitted,
) -> Result<(), Refusal> {
    let started = Instant::now();
    // Held for as long as others take: it must not be one of the few that are free to hold.
    let inbound = connection.shared.inbound.load_full();
    // Rules that came meanwhile may not read a path that was spelled by those before.
    let chain = inbound
        .chain_of_live(&connection.seen, connection.peer.is_some())
        .filter(|chain| chain.paths == paths)
        .ok_or(Refusal::NOT_SERVING)?;
    let view = view(request)?;
    let routed = chain.route(&view, connection.info.is_tls);
    if let Some(filters) = routed.filters {
        let has_body = !request.body().is_end_stream();
        let head = (&view, request.version(), has_body);
        let passed = &mut admitted.passed;
        filter::run_waiting((connection, chain), filters, head, record, passed).await?;
    }
    conclude(
        chain,
        routed,
        (request, &view),
        Some(started),
        record,
        admitted,
    )
}

fn view(request: &Request<Incoming>) -> Result<RequestView<'_>, Refusal> {
    let authority = authority(request)?;
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    Ok(RequestView::new(method, uri, authority, headers))
}

/// What the route of a request says that has passed its filters, and until when it may take;
/// `started` is when it came, if that was long ago.
fn conclude(
    chain: &Chain,
    routed: Routed<'_>,
    (request, view): (&Request<Incoming>, &RequestView<'_>),
    started: Option<Instant>,
    record: &Record,
    admitted: &mut Admitted,
) -> Result<(), Refusal> {
    if let Some(refusal) = routed.refusal {
        return Err(refusal);
    }
    if let Some(found) = &routed.route {
        follow(found, view, admitted);
    }
    let limit = chain.limits.as_ref();
    let limit = limit.and_then(|limits| limits.max_stream_duration);
    let asked = asked_timeout(request, record.protocol())?;
    if asked == Some(Duration::ZERO) {
        // Nobody waits for the answer any more.
        return Err(Refusal::DEADLINE);
    }
    let timeout = asked.into_iter().chain(limit).min();
    admitted.deadline = timeout.and_then(|timeout| {
        let started = started.unwrap_or_else(Instant::now);
        started.checked_add(timeout)
    });
    Ok(())
}

/// Does what a route that serves the request asks for besides.
#[cold]
fn follow(found: &Found<'_>, view: &RequestView<'_>, admitted: &mut Admitted) {
    let passed = &mut admitted.passed;
    let mut headers = passed.headers.take();
    let changed = headers.get_or_insert_with(|| view.headers.clone());
    found.change_request(view, changed);
    admitted.rules = found.response_rules(view, changed);
    passed.headers = headers;
}

/// Whether the head is within the chain's limits.
fn check_head(limits: &HttpLimits, headers: &mut HeaderMap) -> Result<(), Refusal> {
    let most = limits.max_headers_count.unwrap_or(u32::MAX);
    if headers.len() > most as usize {
        return Err(Refusal::LARGE_HEAD);
    }
    if let Some(most) = limits.max_headers_bytes {
        let sizes = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len());
        if sizes.sum::<usize>() > most as usize {
            return Err(Refusal::LARGE_HEAD);
        }
    }
    let has_underscore = |name: &&HeaderName| name.as_str().contains('_');
    match limits.underscores {
        Underscores::Allow => {}
        Underscores::Reject if headers.keys().any(|name| has_underscore(&name)) => {
            return Err(Refusal::UNDERSCORE);
        }
        Underscores::Reject => {}
        Underscores::Drop => {
            let names: Vec<_> = headers.keys().filter(has_underscore).cloned().collect();
            for name in names {
                headers.remove(name);
            }
        }
    }
    Ok(())
}

/// Gives the path its one spelling.
fn normalize(
    options: PathNormalization,
    request: &mut Request<Incoming>,
    protocol: Protocol,
) -> Result<(), Refusal> {
    let Some(path) = request.uri().path_and_query() else {
        return Ok(());
    };
    let path = match options.apply(path.as_str()) {
        NormalizedPath::Serve(Cow::Borrowed(_)) => return Ok(()),
        NormalizedPath::Serve(Cow::Owned(path)) => path,
        NormalizedPath::Redirect(path) if protocol == Protocol::Http => {
            return Err(Refusal::redirect(&path));
        }
        NormalizedPath::Redirect(_) | NormalizedPath::Reject => return Err(Refusal::BAD_PATH),
    };
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(path.try_into().map_err(|_| Refusal::BAD_PATH)?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refusal::BAD_PATH)?;
    Ok(())
}

/// The one authority of a request: `:authority`, the absolute form's, or `host`. Empty when it has
/// none.
///
/// # Errors
/// When there is more than one: what is compared here and what the application sees would differ.
fn authority(request: &Request<Incoming>) -> Result<&str, Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Refusal::AMBIGUOUS_AUTHORITY),
        (None, None) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| Refusal::AMBIGUOUS_AUTHORITY)?),
    };
    let target = request.uri().authority().map(http::uri::Authority::as_str);
    match (target, host) {
        (Some(target), Some(host)) if !target.eq_ignore_ascii_case(host) => {
            Err(Refusal::AMBIGUOUS_AUTHORITY)
        }
        (target, host) => Ok(target.or(host).unwrap_or_default()),
    }
}

/// How long the caller waits. Plain HTTP may say it too; there a malformed value is not an error.
fn asked_timeout(
    request: &Request<Incoming>,
    protocol: Protocol,
) -> Result<Option<Duration>, Refusal> {
    match (
        request.headers().get(&GRPC_TIMEOUT).map(parse_grpc_timeout),
        protocol,
    ) {
        (None, _) | (Some(None), Protocol::Http) => Ok(None),
        (Some(None), Protocol::Grpc) => Err(Refusal::MALFORMED_TIMEOUT),
        (Some(timeout), _) => Ok(timeout),
    }
}

fn refuse<B>(refusal: &Refusal, record: Record, admitted: &Admitted) -> Response<ServedBody<B>> {
    let protocol = record.protocol();
    record.end(refusal.code(protocol));
    let mut response = refusal.response(protocol);
    let status = response.status();
    admitted.passed.respond(status, response.headers_mut());
    response
}
