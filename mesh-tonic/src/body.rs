//! The response body of a channel: mesh errors become statuses.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use mesh_tower::{MakeEndpoint, connect::HyperConnector};
use tonic::Status;

use crate::to_status;

/// The body of a gRPC response.
pub struct ResponseBody<M: MakeEndpoint = HyperConnector> {
    inner: mesh_tower::ResponseBody<M>,
}

impl<M: MakeEndpoint> ResponseBody<M> {
    pub(crate) fn new(inner: mesh_tower::ResponseBody<M>) -> Self {
        Self { inner }
    }
}

impl<M: MakeEndpoint> fmt::Debug for ResponseBody<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<M: MakeEndpoint> Body for ResponseBody<M> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx).map_err(to_status)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
