//! One request: may it pass, until when, and what became of it.
//!
//! The configuration is loaded once per request, so that a policy applies to the next request of a
//! live connection. The order matters: the path has one spelling and the authority one meaning
//! before anything compares them; the deadline is read before the application runs, and the
//! application is dropped with it.

use std::{borrow::Cow, convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderName, Request, Response, Uri, header};
use hyper::body::{Body as _, Incoming};
use mesh_core::{
    config::{NormalizedPath, PathNormalization},
    filter::Passed,
    route::RequestView,
};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::{
    MeshApplication, ServedBody, body::Guard, connection::Connection, filter, record::Record,
    refusal::Refusal,
};
use crate::{
    context::{GRPC_TIMEOUT, RequestContext, parse_grpc_timeout},
    telemetry::{Protocol, ServerHead},
};

/// Written by proxies that terminate TLS. We are the one who terminates it, so a value that comes
/// in is the caller's own claim.
const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

pub(super) async fn serve<A: MeshApplication>(
    connection: Arc<Connection>,
    application: A,
    mut request: Request<Incoming>,
) -> Result<Response<ServedBody<A::Body>>, Infallible> {
    request.headers_mut().remove(FORWARDED_CLIENT_CERT);
    let protocol = Protocol::of(request.headers());
    let record = begin(&connection, &request, protocol);
    let (checked, mut passed) = match check(&connection, &mut request, &record) {
        Some(checked) => checked,
        None => Box::pin(check_waiting(&connection, &request, &record)).await,
    };
    let deadline = match checked {
        Ok(deadline) => deadline,
        Err(refusal) => return Ok(refuse(&refusal, record, &passed)),
    };
    if let Some(headers) = passed.headers.take() {
        *request.headers_mut() = headers;
    }
    if let Some(uri) = passed.uri.take() {
        *request.uri_mut() = uri;
    }
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
        match deadline {
            Some(deadline) => timeout_at(deadline, answer).await,
            None => Ok(answer.await),
        }
    };
    let response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::error!(target: "mesh::server", error, "the application failed");
            return Ok(refuse(&Refusal::FAILED, record, &passed));
        }
        Err(_) => return Ok(refuse(&Refusal::DEADLINE, record, &passed)),
    };
    let (mut parts, body) = response.into_parts();
    if !passed.leaves_response() {
        passed.respond(parts.status, &mut parts.headers);
    }
    let deadline: Option<Pin<Box<Sleep>>> = deadline.map(|at| Box::pin(sleep_until(at)));
    let guard = Guard {
        record,
        context,
        deadline,
        permits: passed.permits,
    };
    let body = ServedBody::streaming(body, &parts.headers, parts.status.as_u16(), guard);
    Ok(Response::from_parts(parts, body))
}

fn begin(connection: &Connection, request: &Request<Incoming>, protocol: Protocol) -> Record {
    let shared = &connection.shared;
    let span = shared.options.telemetry.start_server_span(ServerHead {
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
    Record::begin(shared, protocol, span)
}

/// Until when a request may take, or why it is refused; and what its filters leave behind.
type Verdict = (Result<Option<Instant>, Refusal>, Passed);

/// Whether the request may pass; `None` when others must be asked ([`check_waiting`]). Gives its path
/// the one spelling that everybody behind sees.
fn check(
    connection: &Connection,
    request: &mut Request<Incoming>,
    record: &Record,
) -> Option<Verdict> {
    let mut passed = Passed::default();
    let checked = pass(connection, request, record, &mut passed).transpose()?;
    Some((checked, passed))
}

fn pass(
    connection: &Connection,
    request: &mut Request<Incoming>,
    record: &Record,
    passed: &mut Passed,
) -> Result<Option<Option<Instant>>, Refusal> {
    let inbound = connection.shared.inbound.load();
    let chain = inbound
        .chain_of_live(&connection.seen, connection.peer.is_some())
        .ok_or(Refusal::NOT_SERVING)?;
    normalize(chain.paths, request, record.protocol())?;
    if chain.waits {
        return Ok(None);
    }
    let request = &*request;
    let view = view(request)?;
    let routed = chain.route(&view);
    if let Some(filters) = routed.filters {
        let has_body = !request.body().is_end_stream();
        filter::run(
            (connection, chain),
            filters,
            (&view, request.version(), has_body),
            record,
            passed,
        )?;
    }
    if let Some(refusal) = routed.refusal {
        return Err(refusal);
    }
    let deadline = deadline(request, record.protocol(), Instant::now())?;
    Ok(Some(deadline))
}

/// The same for requests that others may have to be asked about. Their path is normalised.
async fn check_waiting(
    connection: &Connection,
    request: &Request<Incoming>,
    record: &Record,
) -> Verdict {
    let mut passed = Passed::default();
    let checked = pass_waiting(connection, request, record, &mut passed).await;
    (checked, passed)
}

async fn pass_waiting(
    connection: &Connection,
    request: &Request<Incoming>,
    record: &Record,
    passed: &mut Passed,
) -> Result<Option<Instant>, Refusal> {
    let started = Instant::now();
    // Held for as long as others take: it must not be one of the few that are free to hold.
    let inbound = connection.shared.inbound.load_full();
    let chain = inbound
        .chain_of_live(&connection.seen, connection.peer.is_some())
        .ok_or(Refusal::NOT_SERVING)?;
    let view = view(request)?;
    let routed = chain.route(&view);
    let deadline = deadline(request, record.protocol(), started);
    if let Some(filters) = routed.filters {
        let has_body = !request.body().is_end_stream();
        filter::run_waiting(
            (connection, chain),
            filters,
            (&view, request.version(), has_body),
            record,
            passed,
        )
        .await?;
    }
    match routed.refusal {
        Some(refusal) => Err(refusal),
        None => deadline,
    }
}

fn view(request: &Request<Incoming>) -> Result<RequestView<'_>, Refusal> {
    let authority = authority(request)?;
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    Ok(RequestView::new(method, uri, authority, headers))
}

/// Until when a request that began at `started` may take.
fn deadline(
    request: &Request<Incoming>,
    protocol: Protocol,
    started: Instant,
) -> Result<Option<Instant>, Refusal> {
    match asked_timeout(request, protocol)? {
        // Nobody waits for the answer any more.
        Some(Duration::ZERO) => Err(Refusal::DEADLINE),
        Some(timeout) => Ok(started.checked_add(timeout)),
        None => Ok(None),
    }
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

fn refuse<B>(refusal: &Refusal, record: Record, passed: &Passed) -> Response<ServedBody<B>> {
    let protocol = record.protocol();
    record.end(refusal.code(protocol));
    let mut response = refusal.response(protocol);
    let status = response.status();
    passed.respond(status, response.headers_mut());
    response
}
