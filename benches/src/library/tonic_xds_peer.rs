//! tonic-xds over the endpoint that answers at once, driven by our control plane.

use std::{sync::Arc, time::Duration};

use http::Request;
use tonic_xds::{
    BootstrapConfig, BoxFuture, ClusterConfig, Connector, EndpointAddress, MakeConnector,
    XdsChannelBuilder, XdsChannelConfig, XdsTransportChannel, XdsUri,
};
use tower::{
    BoxError, Service, ServiceExt,
    load::{CompleteOnResponse, PendingRequests},
};

use super::{
    ours::addresses,
    stub::{Paths, RequestBody, Trailers, finish},
    tower_peer::InstantService,
};
use crate::{harness::load::Call, wire::world::World};

struct Connectors;

impl MakeConnector for Connectors {
    type Service = PendingRequests<InstantService>;

    fn make_connector(
        &self,
        _: ClusterConfig<'_>,
    ) -> Result<Arc<dyn Connector<Service = Self::Service> + Send + Sync>, BoxError> {
        Ok(Arc::new(Self))
    }
}

impl Connector for Connectors {
    type Service = PendingRequests<InstantService>;

    fn connect(&self, _: &EndpointAddress) -> BoxFuture<Self::Service> {
        Box::pin(async { PendingRequests::new(InstantService, CompleteOnResponse::default()) })
    }
}

/// Calls through it.
pub(super) struct TonicXds {
    channel: XdsTransportChannel<RequestBody, Trailers>,
    paths: Paths,
    _world: Option<World>,
}

impl TonicXds {
    pub(super) async fn new() -> anyhow::Result<Self> {
        let world = World::start(false).await?;
        world.service("bench", "GRPC", &addresses(0))?;
        let bootstrap = BootstrapConfig::from_json(&world.bootstrap("client")?)?;
        let target = XdsUri::parse("xds:///bench.default:8080")?;
        let config = XdsChannelConfig::new(target).with_bootstrap(bootstrap);
        let channel = XdsChannelBuilder::new(config).build_transport_channel(Connectors)?;
        let mut made = Self {
            channel,
            paths: Paths::new(1),
            _world: None,
        };
        tokio::time::timeout(Duration::from_secs(20), made.call()).await??;
        made._world = Some(world);
        Ok(made)
    }
}

impl Call for TonicXds {
    fn fork(&self, caller: usize) -> Self {
        Self {
            channel: self.channel.clone(),
            paths: self.paths.fork(caller),
            _world: None,
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let service = self.paths.step();
        let request: Request<RequestBody> = self.paths.request(service);
        let ready = self.channel.ready().await;
        let response = ready.map_err(anyhow::Error::from_boxed)?.call(request);
        finish(response.await.map_err(anyhow::Error::from_boxed)?).await
    }
}
