//! The body of a served request.
//!
//! What hyper reads goes to the application as it is. Few requests are held back until their body is
//! there (Envoy `Buffer`), read ahead for whoever decides about them, or watched for how long they take.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use mesh_core::filter::CheckedBody;

use super::stream_watch::StreamWatch;
use crate::{BoxError, body::HoldBackError};

/// The body of a served request.
pub struct RequestBody {
    kind: Kind,
}

enum Kind {
    Incoming(Incoming),
    Watched(Incoming, Arc<StreamWatch>),
    /// It was held back to its end.
    Held(Option<Bytes>, Option<HeaderMap>),
    /// Its beginning was read ahead.
    Begun(VecDeque<Frame<Bytes>>, Box<RequestBody>),
}

/// Without any data.
impl Default for RequestBody {
    fn default() -> Self {
        let kind = Kind::Held(None, None);
        Self { kind }
    }
}

impl RequestBody {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            kind: Kind::Incoming(body),
        }
    }

    /// Notes in `watch` what is read.
    pub(super) fn watched(self, watch: &Arc<StreamWatch>) -> Self {
        let kind = match self.kind {
            Kind::Incoming(body) => {
                if body.is_end_stream() {
                    watch.end_request();
                }
                Kind::Watched(body, Arc::clone(watch))
            }
            Kind::Begun(read, rest) => Kind::Begun(read, Box::new(rest.watched(watch))),
            other => other,
        };
        Self { kind }
    }
}

impl RequestBody {
    /// Reads its first `max` bytes, or all of it; nothing is lost for whoever reads it then.
    pub(super) async fn read_ahead(&mut self, max: usize) -> Result<CheckedBody, BoxError> {
        let (mut read, mut rest) = match std::mem::take(self).kind {
            Kind::Begun(read, rest) => (read, *rest),
            kind => (VecDeque::new(), Self { kind }),
        };
        let mut length: usize = read
            .iter()
            .filter_map(Frame::data_ref)
            .map(Bytes::len)
            .sum();
        let (mut is_over, mut ended) = (false, Ok(()));
        while length < max && !rest.is_end_stream() {
            match rest.frame().await {
                None => {
                    is_over = true;
                    break;
                }
                Some(Ok(frame)) => {
                    length += frame.data_ref().map_or(0, Bytes::len);
                    read.push_back(frame);
                }
                Some(Err(error)) => {
                    ended = Err(error);
                    break;
                }
            }
        }
        let mut data = BytesMut::with_capacity(length.min(max));
        for piece in read.iter().filter_map(Frame::data_ref) {
            let room = max - data.len();
            data.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        let has_trailers = read.back().is_some_and(Frame::is_trailers);
        let is_over = is_over || has_trailers || rest.is_end_stream();
        let is_partial = length > max || !is_over;
        self.kind = Kind::Begun(read, Box::new(rest));
        ended.map(|()| CheckedBody {
            data: data.freeze(),
            is_partial,
        })
    }
}

/// Reads the body of `request`, of which there may be `max` bytes.
pub(super) async fn hold_back(
    request: Request<RequestBody>,
    max: u32,
) -> Result<Request<RequestBody>, HoldBackError> {
    let (mut head, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(Request::from_parts(head, body));
    }
    let limited = Limited::new(body, max as usize);
    let collected = limited.collect().await.map_err(HoldBackError::from)?;
    let trailers = collected.trailers().cloned();
    let data = Some(collected.to_bytes()).filter(|data| !data.is_empty());
    let body = RequestBody {
        kind: Kind::Held(data, trailers),
    };
    // As Envoy does: its length is known now.
    if !head.headers.contains_key(header::CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        head.headers.remove(header::TRANSFER_ENCODING);
        let length = HeaderValue::from(length);
        head.headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(Request::from_parts(head, body))
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.kind {
            Kind::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Watched(body, watch) => {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                match &polled {
                    Poll::Pending => {}
                    Poll::Ready(Some(Ok(_))) if !body.is_end_stream() => watch.touch(),
                    Poll::Ready(_) => watch.end_request(),
                }
                polled.map_err(Into::into)
            }
            Kind::Held(data, trailers) => {
                let data = data.take().map(Frame::data);
                let frame = data.or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Kind::Begun(read, rest) => match read.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(&mut **rest).poll_frame(cx),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Incoming(body) | Kind::Watched(body, _) => body.is_end_stream(),
            Kind::Held(data, trailers) => data.is_none() && trailers.is_none(),
            Kind::Begun(read, rest) => read.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Incoming(body) | Kind::Watched(body, _) => body.size_hint(),
            Kind::Held(data, _) => SizeHint::with_exact(data.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Begun(read, rest) => {
                let read = read.iter().filter_map(Frame::data_ref);
                let read = read.map(|data| data.len() as u64).sum::<u64>();
                let (left, mut hint) = (rest.size_hint(), SizeHint::new());
                hint.set_lower(read.saturating_add(left.lower()));
                if let Some(upper) = left.upper() {
                    hint.set_upper(read.saturating_add(upper));
                }
                hint
            }
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Incoming(_) | Kind::Watched(..) => "RequestBody(stream)",
            Kind::Held(..) => "RequestBody(held back)",
            Kind::Begun(..) => "RequestBody(read ahead)",
        })
    }
}
