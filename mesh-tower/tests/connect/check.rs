//! Active health checks over real sockets.

use mesh_core::config::{HealthCheck, HealthCheckKind, HttpHealthCheck};
use mesh_tower::ErrorKind;
use tokio::time::timeout;

use super::{pool::MUST_HAPPEN, *};

fn http() -> HealthCheckKind {
    HealthCheckKind::Http(HttpHealthCheck {
        host: String::new(),
        path: "/healthz".into(),
        method: http::Method::GET,
        headers: http::HeaderMap::new(),
        expected_statuses: Vec::new(),
        retriable_statuses: Vec::new(),
        is_http2: false,
    })
}

fn grpc() -> HealthCheckKind {
    HealthCheckKind::Grpc {
        service_name: "greeter".into(),
        authority: String::new(),
    }
}

fn checked(addresses: &[SocketAddr], kind: HealthCheckKind) -> (HandMade, Client) {
    checked_over(HttpVersion::Http2, addresses, kind)
}

fn checked_over(
    version: HttpVersion,
    addresses: &[SocketAddr],
    kind: HealthCheckKind,
) -> (HandMade, Client) {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, HyperConnector::new(None)).report_endpoint(true);
    config.publish(
        &tree("l")
            .cluster_with("a", addresses, |cluster| {
                cluster.http_version = version;
                let interval = Duration::from_millis(20);
                let mut check = HealthCheck::new(Duration::from_secs(5), interval, kind);
                check.healthy_threshold = 1;
                check.unhealthy_threshold = 1;
                cluster.health_checks = vec![check];
            })
            .route("/", "a")
            .build(),
    );
    (config, service)
}

/// Calls until one is answered by `server`, or by none if it is `None`.
async fn becomes(service: &Client, server: Option<SocketAddr>) {
    let so = async {
        loop {
            match service.clone().oneshot(post("x")).await {
                Ok(response) => {
                    let selected = response.extensions().get::<SelectedEndpoint>().unwrap();
                    if Some(selected.address) == server {
                        return;
                    }
                }
                Err(error) if server.is_none() => {
                    assert_eq!(error.kind(), ErrorKind::NoEndpoint, "{error}");
                    return;
                }
                Err(_) => {}
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(MUST_HAPPEN, so).await.expect("it becomes so");
}

#[tokio::test]
async fn a_sick_endpoint_gets_no_request_from_the_first_on_and_comes_back() {
    for kind in [http(), grpc()] {
        let sick = TestServer::start_with(|server| server.is_sick = true).await;
        let well = TestServer::start().await;
        let addresses = [sick.address(), well.address()];
        let (_config, service) = checked(&addresses, kind);
        assert_eq!(load(&service, 4, 25).await, [""; 0]);
        assert_eq!(sick.served.load(Relaxed), 0, "it is not even tried");
        sick.is_healthy.store(true, Relaxed);
        becomes(&service, Some(sick.address())).await;
        well.is_healthy.store(false, Relaxed);
        sick.is_healthy.store(false, Relaxed);
        // No endpoint is well: calls fail at once, with the reason.
        becomes(&service, None).await;
        well.is_healthy.store(true, Relaxed);
        becomes(&service, Some(well.address())).await;
    }
}

#[tokio::test]
async fn a_check_by_tcp_asks_for_a_connection_and_for_bytes() {
    use tokio::io::AsyncWriteExt as _;
    let connects = HealthCheckKind::Tcp {
        send: Vec::new(),
        receive: Vec::new(),
    };
    let server = TestServer::start().await;
    let gone = TestServer::start().await.stop().await;
    let (_config, service) = checked(&[server.address(), gone], connects);
    assert_eq!(load(&service, 4, 10).await, [""; 0]);

    // It says `hello` to everybody, which is not HTTP.
    let greets = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = greets.local_addr().unwrap();
    let greeted = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = greets.accept().await.unwrap();
            stream.write_all(b"well, hello there").await.unwrap();
            held.push(stream);
        }
    });
    let asks = |part: &str| HealthCheckKind::Tcp {
        send: b"who?".to_vec(),
        receive: vec![b"well".to_vec(), part.as_bytes().to_vec()],
    };
    let (_config, service) = checked_over(HttpVersion::Http1, &[address], asks("there"));
    let error = service.clone().oneshot(post("x")).await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NoEndpoint, "it passed: {error}");
    greeted.abort();
}

#[tokio::test]
async fn checks_end_with_their_endpoint_and_their_connections_with_them() {
    let (stays, leaves) = (TestServer::start().await, TestServer::start().await);
    let addresses = [stays.address(), leaves.address()];
    let (mut config, service) = checked(&addresses, grpc());
    assert_eq!(load(&service, 4, 10).await, [""; 0]);
    let without = tree("l").cluster_with("a", &addresses[..1], |cluster| {
        cluster.http_version = HttpVersion::Http2;
    });
    config.publish(&without.route("/", "a").build());
    timeout(MUST_HAPPEN, leaves.has_open(0))
        .await
        .expect("closed");
    // The call's own connection stays.
    timeout(MUST_HAPPEN, stays.has_open(1))
        .await
        .expect("closed");
    assert_eq!(load(&service, 4, 10).await, [""; 0]);
}
