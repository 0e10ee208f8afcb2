//! What can be served: any Tower service over HTTP requests.
//!
//! `axum::Router` and tonic's `Routes` both are, without this crate knowing either.

use bytes::Bytes;
use http::{Request, Response};
use tower::{Service, ServiceExt};

use super::RequestBody;
use crate::BoxError;

/// An application that can be served. Implemented for every `Service<Request<RequestBody>>` that is
/// `Clone + Send` and answers with a body of bytes; do not implement it by hand.
pub trait MeshApplication: Clone + Send + 'static {
    /// Its response body.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;

    /// Answers one request.
    fn answer(
        self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Self::Body>, BoxError>> + Send;
}

impl<S, B> MeshApplication for S
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Body = B;

    async fn answer(self, request: Request<RequestBody>) -> Result<Response<B>, BoxError> {
        self.oneshot(request).await.map_err(Into::into)
    }
}
