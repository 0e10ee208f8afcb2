//! Our library over the endpoint that answers at once.

use std::net::SocketAddr;

use mesh_core::{
    config::{LbPolicy, RetryOn, RetryPolicy},
    testing::{HandMade, tree},
};
use mesh_tonic::Channel;
use mesh_tower::MeshService;
use tower::Service;

use super::stub::{Instant, Paths, finish, prefix};
use crate::harness::load::Call;

/// Endpoints of each cluster.
pub const ENDPOINTS: usize = 10;

/// How a configuration is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A name for each service, as an application with many channels has.
    Names,
    /// One name with a route for each service.
    Routes,
}

/// Calls through `MeshService`.
#[derive(Debug)]
pub struct Http {
    services: Vec<MeshService<Instant>>,
    paths: Paths,
    _configs: Vec<HandMade>,
}

impl Http {
    /// `services` services laid out as said, with a retry policy or without.
    pub async fn new(services: usize, layout: Layout, with_retry: bool) -> anyhow::Result<Self> {
        let (configs, made) = world(services, layout, with_retry).await?;
        Ok(Self {
            services: made,
            paths: Paths::new(services),
            _configs: configs,
        })
    }
}

impl Call for Http {
    fn fork(&self, caller: usize) -> Self {
        Self {
            services: self.services.clone(),
            paths: self.paths.fork(caller),
            _configs: Vec::new(),
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let at = self.paths.step();
        let request = self.paths.request(at);
        let service = at % self.services.len();
        finish(self.services[service].call(request).await?).await
    }
}

/// Calls through `mesh_tonic::Channel`.
#[derive(Debug)]
pub struct Grpc {
    channels: Vec<Channel<Instant>>,
    paths: Paths,
    _configs: Vec<HandMade>,
}

impl Grpc {
    /// As [`Http::new`].
    pub async fn new(services: usize, layout: Layout, with_retry: bool) -> anyhow::Result<Self> {
        let (configs, made) = world(services, layout, with_retry).await?;
        let channels: Result<_, _> = made.into_iter().map(Channel::new).collect();
        Ok(Self {
            channels: channels?,
            paths: Paths::new(services),
            _configs: configs,
        })
    }
}

impl Call for Grpc {
    fn fork(&self, caller: usize) -> Self {
        Self {
            channels: self.channels.clone(),
            paths: self.paths.fork(caller),
            _configs: Vec::new(),
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let at = self.paths.step();
        let request = self.paths.request(at);
        let channel = at % self.channels.len();
        finish(self.channels[channel].call(request).await?).await
    }
}

type World = (Vec<HandMade>, Vec<MeshService<Instant>>);

async fn world(services: usize, layout: Layout, with_retry: bool) -> anyhow::Result<World> {
    let per_name = match layout {
        Layout::Names => 1,
        Layout::Routes => services,
    };
    let mut world = World::default();
    for first in (0..services).step_by(per_name) {
        let (mut config, reader) = HandMade::new();
        let name = format!("bench-{first}");
        let service = MeshService::new(&name, reader, Instant);
        let mut declared = tree(&name);
        for at in first..first + per_name {
            let cluster = format!("cluster-{at}");
            declared = declared
                .cluster_with(&cluster, &addresses(at), |cluster| {
                    cluster.lb_policy = LbPolicy::least_request(2);
                })
                .route_with(&prefix(at), &cluster, |forward| {
                    forward.retry = with_retry.then(retry);
                });
        }
        config.publish(&declared.build());
        service.ready().await?;
        world.0.push(config);
        world.1.push(service);
    }
    Ok(world)
}

fn retry() -> RetryPolicy {
    RetryPolicy {
        retry_on: RetryOn::UNAVAILABLE,
        num_retries: 2,
        ..RetryPolicy::default()
    }
}

/// Made-up addresses of a cluster's endpoints.
pub fn addresses(cluster: usize) -> Vec<SocketAddr> {
    let [_, high, middle, low] = (cluster as u32).to_be_bytes();
    let address = |endpoint| SocketAddr::from(([10 + high, middle, low, 1], 1 + endpoint as u16));
    (0..ENDPOINTS).map(address).collect()
}
