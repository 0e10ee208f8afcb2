//! One HTTP/2 connection, and how a request becomes a stream on it.
//!
//! Stage 12, over the `h2` crate. A request is encoded into the connection's buffer by the task that
//! sends it, and its response is read by the same task: nothing is queued, spawned or boxed in
//! between. Only a streaming request body that outlives its response's head gets a task of its own.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header, request::Parts,
};
use http_body::{Body as _, Frame, SizeHint};

use mesh_core::config::{Cluster, Http2Options};
use tokio::time::timeout;

use super::{
    dial::Stream,
    driver::{Driver, Streams},
};
use crate::{
    Body, BoxError, Outgoing,
    error::{DispatchError, DispatchErrorKind},
    head::Head,
    telemetry::Protocol,
};

/// Flow-control windows; the default of 64 KiB stalls bodies larger than that on a real network.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a streaming body that wait in a stream at most.
const SEND_BUFFER: usize = 1 << 20;
/// Stands for streams that may be open before the server has said how many: nothing that it can say.
const STREAMS_UNTOLD: usize = usize::MAX - 1;
/// Longest list of response headers.
const HEADERS_MAX: u32 = 64 << 10;

/// A connection that takes requests.
pub(super) struct Connection {
    handle: SendRequest<Bytes>,
    /// Whether it is the keeper's, and so what makes its endpoint ready.
    pub(super) is_kept: bool,
    streams: Arc<Streams>,
    /// Streams that were begun while the endpoint was [crowded](super::crowd).
    pub(super) counted: AtomicU32,
    quota: Option<Quota>,
}

/// Requests that a connection takes in all (`max_requests_per_connection`).
struct Quota {
    taken: AtomicU32,
    max: u32,
}

/// What a connection's quota says of a request.
pub(super) enum Admission {
    Yes,
    /// Yes, and it is time for another connection.
    Renew,
    No,
}

impl Quota {
    fn admit(&self) -> Admission {
        let taken = self.taken.fetch_add(1, Relaxed);
        // A tenth before the end: the next connection is there when this one is used up.
        let renew_at = self.max - (self.max / 10).max(1);
        match taken {
            taken if taken >= self.max => {
                self.taken.store(self.max, Relaxed);
                Admission::No
            }
            taken if taken == renew_at => Admission::Renew,
            _ => Admission::Yes,
        }
    }
}

/// Speaks HTTP/2 on `stream`, and waits for the server to do so: one whose listener is closing takes
/// connections that nobody will look at, and so does a proxy without its backend. The second half must
/// be polled for anything to happen; it ends with the connection, or after the last stream once nobody
/// holds the first.
///
/// # Errors
/// When the connection ends, or the server says nothing within the cluster's connect timeout.
pub(super) async fn handshake(
    stream: Stream,
    is_kept: bool,
    cluster: &Cluster,
) -> Result<(Connection, Driver), BoxError> {
    let (options, limit) = (&cluster.connection, cluster.connect_timeout);
    let Http2Options {
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        keepalive,
    } = options.http2;
    let (handle, connection) = h2::client::Builder::new()
        .initial_window_size(initial_stream_window_size.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(initial_connection_window_size.unwrap_or(CONNECTION_WINDOW))
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADERS_MAX)
        .enable_push(false)
        .initial_max_send_streams(STREAMS_UNTOLD)
        .handshake(stream)
        .await?;
    let streams = Streams::new(max_concurrent_streams);
    let mut driver = Driver::new(connection, keepalive, Arc::clone(&streams));
    let begun = poll_fn(|cx| driver.poll_begun(cx, STREAMS_UNTOLD));
    let begun = timeout(limit, begun).await;
    begun.map_err(|_| format!("the server speaks no HTTP/2 within {limit:?}"))??;
    let quota = options.max_requests_per_connection.map(|max| Quota {
        taken: AtomicU32::new(0),
        max,
    });
    let connection = Connection {
        handle,
        is_kept,
        streams,
        counted: AtomicU32::new(0),
        quota,
    };
    Ok((connection, driver))
}

impl Connection {
    /// Whether requests can be sent: no GOAWAY, not closed.
    pub(super) fn is_usable(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        // A clone has no stream of its own that it would wait for.
        !matches!(self.handle.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Streams that may be open at a time.
    #[inline]
    pub(super) fn streams_max(&self) -> u32 {
        self.streams.max()
    }

    /// Whether it takes one more request, of all that it may take.
    #[inline]
    pub(super) fn admit(&self) -> Admission {
        match &self.quota {
            None => Admission::Yes,
            Some(quota) => quota.admit(),
        }
    }

    /// Begins a stream with `request`.
    ///
    /// # Errors
    /// When the connection takes no more requests; the request is then given back.
    pub(super) fn begin(&self, outgoing: &mut Outgoing<'_>) -> Result<Exchange, DispatchError> {
        let mut handle = self.handle.clone();
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Err(error)) = handle.poll_ready(&mut cx) {
            let refused = DispatchError::new(DispatchErrorKind::Refused, error);
            return Err(refused.unsent(outgoing.take()));
        }
        let buffer = outgoing.body_mut().take_buffer();
        prepare(outgoing.head_mut(), buffer.as_ref());
        // What a server says that it did not look at can go to another one.
        let kept = buffer
            .as_ref()
            .map(|buffer| (Head::of(outgoing.head()), buffer.clone()));
        let (head, body) = outgoing.take_parts();
        let is_empty = buffer.as_ref().is_some_and(Bytes::is_empty);
        let sent = handle
            .send_request(Request::from_parts(head, ()), is_empty)
            .map(|(response, mut stream)| match buffer {
                Some(buffer) => {
                    if !buffer.is_empty() {
                        // The server may have answered the head before: the response tells.
                        _ = stream.send_data(buffer, true);
                    }
                    (response, None)
                }
                None => (response, Some(stream)),
            });
        match sent {
            Ok((response, stream)) => Ok(Exchange {
                response,
                kept,
                pump: stream.map(|stream| {
                    Box::new(Pump {
                        stream,
                        body,
                        waiting: None,
                    })
                }),
            }),
            Err(error) => Err(failed(error, kept, true)),
        }
    }
}

/// Makes the head one of HTTP/2.
fn prepare(head: &mut Parts, buffer: Option<&Bytes>) {
    let is_grpc = Protocol::of(&head.headers) == Protocol::Grpc;
    let has_payload = !matches!(head.method, Method::GET | Method::HEAD | Method::CONNECT);
    head.version = Version::HTTP_2;
    let headers = &mut head.headers;
    strip_connection_headers(headers);
    if let Some(buffer) = buffer.filter(|buffer| !is_grpc && (has_payload || !buffer.is_empty()))
        && !headers.contains_key(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(buffer.len()));
    }
}

/// RFC 9113, 8.2.2: what is about an HTTP/1.1 connection.
fn strip_connection_headers(headers: &mut HeaderMap) {
    const NAMES: [HeaderName; 5] = [
        header::HOST,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    if headers.is_empty() {
        return;
    }
    for name in &NAMES {
        headers.remove(name);
    }
    if headers
        .get(header::TE)
        .is_some_and(|value| value != "trailers")
    {
        headers.remove(header::TE);
    }
    if let Some(named) = headers.remove(header::CONNECTION) {
        for name in named.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
}

type Kept = Option<(Head, Bytes)>;

/// The error of a stream. A request that was not processed is given back if it was kept.
fn failed(error: h2::Error, kept: Kept, is_new: bool) -> DispatchError {
    let is_refused = is_new || error.reason() == Some(Reason::REFUSED_STREAM)
        // The stream came after the last one that the server looks at.
        || error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    match kept {
        Some((head, buffer)) if is_refused => {
            let request = head.request(buffer.into());
            DispatchError::new(DispatchErrorKind::Refused, error).unsent(request)
        }
        _ if is_refused => DispatchError::new(DispatchErrorKind::Refused, error),
        _ => DispatchError::new(DispatchErrorKind::Reset, error),
    }
}

/// A request on its way to a response.
pub(super) struct Exchange {
    response: ResponseFuture,
    kept: Kept,
    pump: Option<Box<Pump>>,
}

impl Exchange {
    /// The response's head, or the error with a request that was refused.
    pub(super) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Http2Body>, DispatchError>> {
        if let Some(pump) = &mut self.pump
            && Pin::new(&mut **pump).poll(cx).is_ready()
        {
            // An error of the body resets the stream, which the response tells.
            self.pump = None;
        }
        Poll::Ready(match ready!(Pin::new(&mut self.response).poll(cx)) {
            Ok(response) => {
                if let Some(pump) = self.pump.take() {
                    tokio::spawn(pump);
                }
                Ok(Http2Body::of(response))
            }
            Err(error) => Err(failed(error, self.kept.take(), false)),
        })
    }
}

/// Sends a streaming body as fast as the peer takes it.
struct Pump {
    stream: SendStream<Bytes>,
    body: Body,
    /// Data that waits for room.
    waiting: Option<Bytes>,
}

impl Future for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let finished = ready!(this.poll_all(cx));
        if finished.is_err() {
            this.stream.send_reset(Reason::CANCEL);
        }
        Poll::Ready(())
    }
}

impl Pump {
    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            if self.stream.poll_reset(cx)?.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if let Some(data) = &self.waiting {
                // Asked for only when there is something to send: a reserved window is lost to
                // the other streams.
                self.stream.reserve_capacity(data.len().min(SEND_BUFFER));
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(granted) => _ = granted?,
                        None => return Poll::Ready(Ok(())),
                    }
                }
                let data = self.waiting.take().unwrap_or_default();
                let is_last = self.body.is_end_stream();
                self.stream.send_data(data, is_last)?;
                if is_last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
                Some(frame) => match frame?.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => self.waiting = Some(data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.stream.send_trailers(trailers)?;
                        return Poll::Ready(Ok(()));
                    }
                },
            }
        }
    }
}

/// The body of an HTTP/2 response.
#[derive(Debug)]
pub(super) struct Http2Body {
    stream: RecvStream,
    has_data: bool,
    /// Bytes to come, when the head says.
    left: Option<u64>,
}

impl Http2Body {
    fn of(response: Response<RecvStream>) -> Response<Self> {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|stream| Self {
            stream,
            has_data: true,
            left,
        })
    }
}

impl http_body::Body for Http2Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.has_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The buffer is the reader's now: the peer may send as much again.
                    _ = self.stream.flow_control().release_capacity(data.len());
                    let length = data.len() as u64;
                    self.left = self.left.map(|left| left.saturating_sub(length));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // The server is done before the request is (RFC 9113, 8.1).
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => {
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.has_data = false,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
