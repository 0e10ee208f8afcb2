//! What routing costs by itself: a look-up among few routes and among many, and a call whose route asks
//! for everything.

use std::{hint::black_box, sync::Arc};

use anyhow::Context;
use http::{HeaderName, Method, Uri};
use mesh_core::{
    config::{
        AppendAction, Forward, ForwardExtras, HashPolicy, HashSource, HeaderMutations, HeaderValue,
        HostRewrite, LbPolicy, PathMatcher, PathPattern, PathRewrite, RetryOn, RetryPolicy,
        RingHash, Route, RouteAction, RouteMatch, ValueTemplate,
    },
    rng::SplitMix64,
    route::{RequestView, RouteTable, StreamLimits},
    testing::{HandMade, tree},
};
use mesh_tower::MeshService;
use tower::Service;

use super::{
    ours::addresses,
    stub::{Instant, Paths, finish, prefix},
};
use crate::harness::load::Call;

/// Look-ups in a table of routes, each of another one.
#[derive(Debug)]
pub struct Lookup {
    table: Arc<RouteTable>,
    uris: Arc<[Uri]>,
    at: usize,
    rng: SplitMix64,
}

impl Lookup {
    /// A table of this many routes.
    pub fn new(routes: usize) -> anyhow::Result<Self> {
        let mut declared = tree("bench");
        for at in 0..routes {
            declared = declared.route(&prefix(at), "c");
        }
        let tree = declared.build();
        let table = RouteTable::compile(
            &tree.routes,
            &tree.authority,
            &StreamLimits::default(),
            |_| Some(0),
        )?;
        let uris: Result<_, _> = (0..routes)
            .map(|at| format!("http://bench{}Call", prefix(at)).parse())
            .collect();
        Ok(Self {
            table: Arc::new(table),
            uris: uris?,
            at: 0,
            rng: SplitMix64::new(1),
        })
    }
}

impl Call for Lookup {
    fn fork(&self, caller: usize) -> Self {
        Self {
            table: Arc::clone(&self.table),
            uris: Arc::clone(&self.uris),
            at: caller,
            rng: SplitMix64::new(caller as u64),
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        // A stride that no cache line or branch predictor follows.
        self.at = (self.at + 7_919) % self.uris.len();
        let headers = http::HeaderMap::new();
        let view = RequestView::new(&Method::POST, &self.uris[self.at], "bench", &headers);
        let found = self.table.lookup(black_box(&view), &mut self.rng);
        black_box(found).context("a route")?;
        Ok(())
    }
}

/// Calls through a route that asks for everything: rewrites, changed headers both ways, a hash for
/// ring hash, and retries.
#[derive(Debug)]
pub struct FullStack {
    service: MeshService<Instant>,
    paths: Paths,
    _config: Option<HandMade>,
}

impl FullStack {
    /// One cluster behind one such route.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn new() -> anyhow::Result<Self> {
        let (mut config, reader) = HandMade::new();
        let service = MeshService::new("bench", reader, Instant);
        let declared = tree("bench").cluster_with("c", &addresses(0), |cluster| {
            cluster.lb_policy = LbPolicy::RingHash(RingHash::default());
        });
        config.publish(&declared.add_route(route()).build());
        service.ready().await?;
        Ok(Self {
            service,
            paths: Paths::new(1),
            _config: Some(config),
        })
    }
}

impl Call for FullStack {
    fn fork(&self, caller: usize) -> Self {
        Self {
            service: self.service.clone(),
            paths: self.paths.fork(caller),
            _config: None,
        }
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let at = self.paths.step();
        let request = self.paths.request(at);
        finish(self.service.call(request).await?).await
    }
}

fn route() -> Route {
    let mut forward = Forward::to("c");
    forward.retry = Some(RetryPolicy {
        retry_on: RetryOn::UNAVAILABLE,
        num_retries: 2,
        ..RetryPolicy::default()
    });
    forward.extras = Some(Box::new(ForwardExtras {
        path_rewrite: Some(PathRewrite::Prefix("/bench.v2.".into())),
        host_rewrite: Some(HostRewrite::Literal("inner".into())),
        append_x_forwarded_host: true,
        hash_policy: vec![HashPolicy {
            source: HashSource::Header {
                name: ":path".into(),
                rewrite: None,
            },
            terminal: false,
        }],
        ..ForwardExtras::default()
    }));
    let path = PathMatcher::new(PathPattern::Prefix("/bench.v1.".into()));
    let mut route = Route::new("all", RouteMatch::path(path), RouteAction::Forward(forward));
    let header = |name, value: &str, is_response| HeaderValue {
        name: HeaderName::from_static(name),
        value: ValueTemplate::new(value, is_response)
            .unwrap_or_else(|_| ValueTemplate::text(value)),
        action: AppendAction::Overwrite,
        keep_empty: false,
    };
    let mut headers = HeaderMutations::default();
    headers.request.add = vec![header("x-route", "%ROUTE_NAME%", false)];
    headers.response.add = vec![header("x-cluster", "%UPSTREAM_CLUSTER%", true)];
    headers.response.remove = vec![HeaderName::from_static("x-internal")];
    route.headers = Some(Box::new(headers));
    route
}
