//! What tower offers for balancing: power of two choices by peak EWMA, behind a `Buffer` to share
//! it.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tower::{
    BoxError, Service, ServiceExt,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwma},
};

use super::{
    ours::ENDPOINTS,
    stub::{Paths, RequestBody, Trailers, answer, finish},
};
use crate::harness::load::Call;

/// Requests that a buffer holds, as many as tonic's.
const BUFFER: usize = 1024;

/// An endpoint that answers at once.
#[derive(Clone, Copy, Debug)]
pub struct InstantService;

impl<B> Service<Request<B>> for InstantService {
    type Response = Response<Trailers>;
    type Error = BoxError;
    type Future = Ready<Result<Response<Trailers>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(answer(request)))
    }
}

type Balanced = Balance<ServiceList<Vec<PeakEwma<InstantService>>>, Request<RequestBody>>;
type Shared = Buffer<Request<RequestBody>, <Balanced as Service<Request<RequestBody>>>::Future>;

/// Calls through tower's balancer.
#[derive(Clone)]
pub struct TowerBalance {
    services: Vec<Shared>,
    paths: Paths,
}

impl std::fmt::Debug for TowerBalance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TowerBalance").finish_non_exhaustive()
    }
}

impl TowerBalance {
    /// A balancer over ten endpoints for each of `services` services. Nothing routes: that is not
    /// tower's part.
    pub fn new(services: usize) -> Self {
        let balance = || {
            let endpoint = |_| {
                PeakEwma::new(
                    InstantService,
                    Duration::from_millis(30),
                    1e7,
                    CompleteOnResponse::default(),
                )
            };
            let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
            Buffer::new(
                Balance::new(ServiceList::new::<Request<RequestBody>>(endpoints)),
                BUFFER,
            )
        };
        Self {
            services: (0..services).map(|_| balance()).collect(),
            paths: Paths::new(services),
        }
    }
}

impl Call for TowerBalance {
    fn fork(&self, caller: usize) -> Self {
        Self {
            services: self.services.clone(),
            paths: self.paths.fork(caller),
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let at = self.paths.step();
        let request = self.paths.request(at);
        let ready = self.services[at].ready().await;
        let response = ready.map_err(anyhow::Error::from_boxed)?.call(request);
        finish(response.await.map_err(anyhow::Error::from_boxed)?).await
    }
}
