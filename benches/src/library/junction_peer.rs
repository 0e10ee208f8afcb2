//! junction-core, which decides and sends nothing: a call here is one `resolve_http`.
//!
//! Routes are static, the backend is a name of the resolver; each decision still asks the task
//! that follows the control plane.

use std::sync::Arc;

use http::{HeaderMap, Method};
use junction_api::{
    Name, Service,
    backend::{Backend, LbPolicy},
    http::{BackendRef, Route, RouteRule},
};
use junction_core::{Client, Url};

use crate::{harness::load::Call, wire::world::World};

/// Resolves a URL to an endpoint.
#[derive(Clone)]
pub(super) struct Junction {
    client: Client,
    url: Url,
    headers: HeaderMap,
    _world: Arc<World>,
}

impl Junction {
    pub(super) async fn new() -> anyhow::Result<Self> {
        // It only starts when a control plane answers.
        let world = World::start(false).await?;
        let address = format!("http://{}", world.xds_addr());
        let client = Client::build(address, "bench".into(), "bench".into()).await;
        let client = client.map_err(|error| anyhow::anyhow!("{error}"))?;
        let service = Service::dns("localhost")?;
        let route = Route {
            id: Name::from_static("bench"),
            hostnames: vec![service.hostname().into()],
            ports: vec![],
            tags: Default::default(),
            rules: vec![RouteRule {
                backends: vec![BackendRef {
                    service: service.clone(),
                    port: Some(80),
                    weight: 1,
                }],
                ..Default::default()
            }],
        };
        let backend = Backend {
            id: service.as_backend_id(80),
            lb: LbPolicy::Unspecified,
        };
        let made = Self {
            client: client.with_static_config(vec![route], vec![backend]),
            url: "http://localhost/bench.v1.Service00000/SayHello".parse()?,
            headers: HeaderMap::new(),
            _world: Arc::new(world),
        };
        made.fork(0).call().await?;
        Ok(made)
    }
}

impl Call for Junction {
    fn fork(&self, _: usize) -> Self {
        self.clone()
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let resolved = self
            .client
            .resolve_http(&Method::POST, &self.url, &self.headers);
        resolved.await?;
        Ok(())
    }
}
