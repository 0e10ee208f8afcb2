//! Endpoints over real sockets: protocols, reuse, and servers that come and go under load.

mod attempts;
mod backend;
mod check;
mod demand;
mod destinations;
mod outside;
mod pool;
#[allow(unreachable_pub, reason = "public where the examples share it")]
#[path = "../../../examples/src/ports.rs"]
mod ports;
mod server;

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use mesh_core::{
    config::{HttpVersion, LbPolicy, RetryOn, RetryPolicy},
    testing::{HandMade, tree},
};
use mesh_tower::{Body, ErrorKind, MeshService, SelectedEndpoint, connect::HyperConnector};
use server::TestServer;
use tower::ServiceExt;

type Client = MeshService<HyperConnector>;

fn client(addresses: &[SocketAddr], version: HttpVersion, retry: bool) -> (HandMade, Client) {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, HyperConnector::new(None)).report_endpoint(true);
    config.publish(
        &tree("l")
            .cluster_with("a", addresses, |cluster| {
                cluster.http_version = version;
                cluster.lb_policy = LbPolicy::least_request(2);
            })
            .route_with("/", "a", |forward| {
                forward.retry = retry.then(|| RetryPolicy {
                    retry_on: RetryOn::RESET | RetryOn::CONNECT_FAILURE | RetryOn::REFUSED_STREAM,
                    num_retries: 3,
                    ..RetryPolicy::default()
                });
            })
            .build(),
    );
    (config, service)
}

fn post(text: &'static str) -> Request<Body> {
    Request::post("http://l.test:80/echo?q=1")
        .body(Body::from(text))
        .unwrap()
}

/// `callers` tasks that each make `calls` calls; the errors.
async fn load(service: &Client, callers: usize, calls: usize) -> Vec<String> {
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move {
                let mut errors = Vec::new();
                for _ in 0..calls {
                    match service.clone().oneshot(post("hello")).await {
                        Ok(response) if response.status() == StatusCode::OK => {
                            if let Err(error) = response.into_body().collect().await {
                                errors.push(error.to_string());
                            }
                        }
                        Ok(response) => errors.push(response.status().to_string()),
                        Err(error) => errors.push(error.to_string()),
                    }
                }
                errors
            })
        })
        .collect();
    let mut errors = Vec::new();
    for task in tasks {
        errors.extend(task.await.unwrap());
    }
    errors
}

#[tokio::test]
async fn http1_connections_are_reused_and_carry_path_host_and_body() {
    let server = TestServer::start().await;
    let (_config, service) = client(&[server.address()], HttpVersion::Http1, false);
    for _ in 0..20 {
        let response = service.clone().oneshot(post("hello")).await.unwrap();
        let selected = response.extensions().get::<SelectedEndpoint>().unwrap();
        assert_eq!((selected.address, selected.attempts), (server.address(), 1));
        let seen = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(seen, "HTTP/1.1 /echo?q=1 host=l.test:80 hello");
    }
    let connections = server.connections.load(Relaxed);
    assert!(
        connections <= 3,
        "{connections} connections for 20 requests in a row"
    );
}

#[tokio::test]
async fn http2_is_one_connection_and_grpc_gets_it_where_the_version_follows_the_request() {
    let server = TestServer::start().await;
    let (_config, service) = client(&[server.address()], HttpVersion::Http2, false);
    assert_eq!(load(&service, 16, 10).await, [""; 0]);
    assert_eq!(server.connections.load(Relaxed), 1);

    let server = TestServer::start().await;
    let (_config, service) = client(&[server.address()], HttpVersion::ByRequest, false);
    let plain = service.clone().oneshot(post("x")).await.unwrap();
    assert_eq!(plain.version(), Version::HTTP_11);
    let mut grpc = post("x");
    grpc.headers_mut()
        .insert("content-type", "application/grpc+proto".parse().unwrap());
    let response = service.oneshot(grpc).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let seen = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(seen, "HTTP/2.0 /echo?q=1 host=l.test:80 x");
}

#[tokio::test]
async fn an_endpoint_that_refuses_costs_no_error_at_one_and_at_many_callers() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let servers = [
            TestServer::start().await,
            TestServer::start().await,
            TestServer::start().await,
        ];
        let refusing = TestServer::start().await.stop().await;
        let mut addresses: Vec<_> = servers.iter().map(TestServer::address).collect();
        addresses.push(refusing);
        for callers in [1, 32] {
            let (_config, service) = client(&addresses, version, false);
            assert_eq!(
                load(&service, callers, 100).await,
                [""; 0],
                "{version:?} {callers}"
            );
        }
    }
}

#[tokio::test]
async fn a_listener_that_nobody_serves_takes_connections_and_gets_no_call_over_http2() {
    // The kernel takes them: a server that is stopping, or a proxy whose backend is gone, is like this.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = TestServer::start().await;
    let addresses = [silent.local_addr().unwrap(), server.address()];
    let (_config, service) = client(&addresses, HttpVersion::Http2, false);
    for callers in [1, 32] {
        assert_eq!(load(&service, callers, 50).await, [""; 0], "{callers}");
    }
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_costs_no_idempotent_call() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let (stays, leaves) = (TestServer::start().await, TestServer::start().await);
        let addresses = [stays.address(), leaves.address()];
        let (_config, service) = client(&addresses, version, true);
        let under_load = tokio::spawn({
            let service = service.clone();
            async move { load(&service, 8, 400).await }
        });
        leaves.served_at_least(100).await;
        let address = leaves.kill().await;
        stays
            .served_at_least(stays.served.load(Relaxed) + 100)
            .await;
        let back = TestServer::start_at(address).await;
        assert_eq!(under_load.await.unwrap(), [""; 0], "{version:?}");
        // It is used again once its backoff has passed.
        let again = async {
            while back.served.load(Relaxed) == 0 {
                assert_eq!(load(&service, 1, 5).await, [""; 0]);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), again)
            .await
            .expect("used again");
    }
}

#[tokio::test]
async fn a_graceful_restart_costs_no_call_without_any_retry_policy() {
    let (stays, leaves) = (TestServer::start().await, TestServer::start().await);
    let addresses = [stays.address(), leaves.address()];
    let (_config, service) = client(&addresses, HttpVersion::Http2, false);
    let under_load = tokio::spawn({
        let service = service.clone();
        async move { load(&service, 16, 200).await }
    });
    leaves.served_at_least(100).await;
    let address = leaves.stop().await;
    let _back = TestServer::start_at(address).await;
    assert_eq!(under_load.await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn an_only_endpoint_that_ends_its_connections_all_the_time_costs_no_call() {
    let server = TestServer::start_with(|settings| settings.max_requests = Some(20)).await;
    let (_config, service) = client(&[server.address()], HttpVersion::Http2, false);
    assert_eq!(load(&service, 8, 100).await, [""; 0]);
    assert!(server.connections.load(Relaxed) > 10);
}

#[tokio::test]
async fn a_call_without_a_reachable_endpoint_is_told_why() {
    let address = TestServer::start().await.kill().await;
    let (_config, service) = client(&[address], HttpVersion::Http2, false);
    let error = service.oneshot(post("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoint, "{error}");
    let (text, address) = (error.to_string(), address.to_string());
    for part in [
        "none of its 1 endpoints",
        "1 not connected",
        &address,
        "refused",
    ] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

#[tokio::test]
async fn endpoints_leave_and_come_under_load_without_a_failed_call() {
    let servers = [
        TestServer::start().await,
        TestServer::start().await,
        TestServer::start().await,
        TestServer::start().await,
    ];
    let all: Vec<_> = servers.iter().map(TestServer::address).collect();
    let world = |from: usize| {
        let two = [all[from % 4], all[(from + 1) % 4]];
        tree("l")
            .cluster_with("a", &two, |cluster| {
                cluster.http_version = HttpVersion::Http2
            })
            .route("/", "a")
            .build()
    };
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, HyperConnector::new(None)).report_endpoint(true);
    config.publish(&world(0));
    let under_load = tokio::spawn({
        let service = service.clone();
        async move { load(&service, 8, 300).await }
    });
    for step in 1..12 {
        let busy = &servers[step % 4];
        busy.served_at_least(busy.served.load(Relaxed) + 5).await;
        config.publish(&world(step));
    }
    assert_eq!(under_load.await.unwrap(), [""; 0]);
}
