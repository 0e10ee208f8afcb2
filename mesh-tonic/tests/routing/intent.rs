//! From YAML to requests: the control plane, mutual TLS and real sockets.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, StatusCode};
use mesh_tower::HttpClient;
use tower::ServiceExt;

use super::{
    echo,
    scene::{Reply, Wire},
    world::{MUST_HAPPEN, World, bind},
};

/// Servers of the mesh behind names, and somebody who calls them.
pub(super) struct Services {
    pub(super) world: World,
    client: HttpClient,
}

impl Services {
    /// Of each service, its versions.
    pub(super) async fn start(services: &[(&'static str, &[&'static str])]) -> Self {
        let world = World::start().await;
        for (service, versions) in services {
            let mut endpoints = Vec::new();
            for version in *versions {
                let router = echo::router(version, &Arc::default(), &Arc::default());
                endpoints.push((*version, server(&world, service, router).await));
            }
            world.write(&format!("{service}.yaml"), &entry(service, &endpoints));
        }
        let client = world.member("caller").await.http_client();
        Self { world, client }
    }

    pub(super) async fn ask(
        &self,
        wire: Wire,
        service: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Option<Reply> {
        let port = match wire {
            Wire::Http1 => 80,
            Wire::Http2 => 81,
            Wire::Grpc => 82,
        };
        let (mut head, body) = wire.request("/").into_parts();
        head.uri = format!("http://{service}.default:{port}{path}")
            .parse()
            .unwrap();
        for (name, value) in headers {
            let name = http::HeaderName::try_from(*name).unwrap();
            head.headers.insert(name, value.parse().unwrap());
        }
        let request = Request::from_parts(head, body);
        let response = self.client.clone().oneshot(request).await.ok()?;
        Reply::read(response).await.ok()
    }

    /// The first answer that `is_so`: what was written takes effect in a moment.
    pub(super) async fn until(
        &self,
        wire: Wire,
        service: &str,
        path: &str,
        headers: &[(&str, &str)],
        is_so: impl Fn(&Reply) -> bool,
    ) -> Reply {
        let asked = async {
            loop {
                match self.ask(wire, service, path, headers).await {
                    Some(reply) if is_so(&reply) => return reply,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(MUST_HAPPEN, asked)
            .await
            .unwrap_or_else(|_| panic!("{wire:?} {service}{path}"))
    }
}

/// A server of the mesh.
pub(super) async fn server(
    world: &World,
    service: &'static str,
    router: axum::Router,
) -> SocketAddr {
    let mesh = world.member(service).await;
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { mesh.serve(listener, router).await });
    address
}

/// A service with these versions.
pub(super) fn entry(service: &str, versions: &[(&str, SocketAddr)]) -> String {
    let endpoints: String = versions
        .iter()
        .map(|(version, address)| {
            format!(
                "  - {{address: {}, ports: {{http: {port}, http2: {port}, grpc: {port}}}, \
                 labels: {{version: {version}}}, serviceAccount: {service}}}\n",
                address.ip(),
                port = address.port(),
            )
        })
        .collect();
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {service}, namespace: default}}
spec:
  hosts: [{service}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {{number: 80, name: http, protocol: HTTP}}
  - {{number: 81, name: http2, protocol: HTTP2}}
  - {{number: 82, name: grpc, protocol: GRPC}}
  endpoints:
{endpoints}"
    )
}

fn is_from(reply: &Reply, by: &str) -> bool {
    reply.headers.contains_key(echo::SEEN) && reply.seen().by == by
}

/// Istio's example: a header for the canary, and 90 : 10 for everybody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_by_header_and_by_weight() {
    let services = Services::start(&[("reviews", &["v1", "v2"])]).await;
    services.world.write(
        "routes.yaml",
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {canary: {exact: 'true'}}}]
    route: [{destination: {host: reviews, subset: v2}, headers: {response: {add: {x-canary: 'yes'}}}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
",
    );
    for wire in Wire::ALL {
        let headers = [("canary", "true")];
        let is_so = |reply: &Reply| reply.header("x-canary") == ["yes"];
        services.until(wire, "reviews", "/", &headers, is_so).await;
        let mut counts = BTreeMap::<String, usize>::new();
        for _ in 0..500 {
            let reply = services.ask(wire, "reviews", "/", &[]).await;
            *counts.entry(reply.unwrap().seen().by).or_default() += 1;
            let reply = services.ask(wire, "reviews", "/", &headers).await;
            assert_eq!(reply.unwrap().seen().by, "v2");
        }
        // Five sigma around 450.
        assert!((416..=484).contains(&counts["v1"]), "{wire:?} {counts:?}");
    }
}

/// Consul's example: a path prefix of one service leads to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_prefix_leads_to_another_service() {
    let services = Services::start(&[("web", &["web"]), ("payment", &["payment"])]).await;
    services.world.write(
        "router.yaml",
        "
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceRouter
metadata: {name: web, namespace: default}
spec:
  routes:
  - match: {http: {pathPrefix: /payment}}
    destination: {service: payment}
  - match: {http: {pathPrefix: /old}}
    destination:
      prefixRewrite: /new
      requestHeaders: {add: {x-by: mesh}, remove: [x-secret]}
      responseHeaders: {set: {x-internal: public}}
",
    );
    for wire in Wire::ALL {
        let paid = |reply: &Reply| is_from(reply, "payment");
        services.until(wire, "web", "/payment/7", &[], paid).await;
        let reply = services.ask(wire, "web", "/", &[]).await.unwrap();
        assert_eq!(reply.seen().by, "web");
        let headers = [("x-secret", "1")];
        let reply = services.ask(wire, "web", "/old/7?q", &headers).await;
        let reply = reply.unwrap();
        let seen = reply.seen();
        assert_eq!((seen.by.as_str(), seen.path.as_str()), ("web", "/new/7?q"));
        assert_eq!(seen.header("x-by"), ["mesh"], "{wire:?}");
        assert!(seen.header("x-secret").is_empty());
        assert_eq!(reply.header("x-internal"), ["public"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_virtual_service_rewrites_redirects_and_answers() {
    let services = Services::start(&[("shop", &["shop"])]).await;
    services.world.write(
        "routes.yaml",
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /here, authority: shop.example, redirectCode: 302}
  - match: [{uri: {prefix: /closed}}]
    directResponse: {status: 503, body: {string: closed}}
  - match: [{uri: {prefix: /a}}]
    rewrite: {uri: /b, authority: inner.example}
    headers: {request: {set: {x-rule: a}}, response: {remove: [x-internal]}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /items}}]
    rewrite: {uriRegexRewrite: {match: '^/items/(\\d+)$', rewrite: '/item?id=\\1'}}
    route: [{destination: {host: shop}}]
  - route: [{destination: {host: shop}}]
",
    );
    for wire in Wire::ALL {
        let moved = |reply: &Reply| reply.headers.contains_key("location");
        let reply = services.until(wire, "shop", "/moved/1", &[], moved).await;
        assert_eq!(reply.header("location"), ["http://shop.example/here"]);
        let closed = services.ask(wire, "shop", "/closed", &[]).await.unwrap();
        match wire {
            Wire::Grpc => {
                assert_eq!((reply.status, reply.grpc()), (StatusCode::OK, Some("2")));
                assert_eq!((closed.status, closed.grpc()), (StatusCode::OK, Some("14")));
                assert_eq!(closed.header("grpc-message"), ["closed"]);
            }
            _ => {
                assert_eq!(reply.status, StatusCode::FOUND);
                assert_eq!(closed.status, StatusCode::SERVICE_UNAVAILABLE);
                assert_eq!(closed.body, "closed");
            }
        }
        let reply = services.ask(wire, "shop", "/a/x", &[]).await.unwrap();
        let seen = reply.seen();
        assert_eq!(
            (seen.path.as_str(), seen.authority.as_str()),
            ("/b/x", "inner.example"),
            "{wire:?}"
        );
        assert_eq!(seen.header("x-rule"), ["a"]);
        assert!(reply.header("x-internal").is_empty());
        let reply = services.ask(wire, "shop", "/items/7", &[]).await.unwrap();
        assert_eq!(reply.seen().path, "/item?id=7", "{wire:?}");
        let reply = services.ask(wire, "shop", "/rest", &[]).await.unwrap();
        assert_eq!(reply.seen().path, "/rest");
    }
}
