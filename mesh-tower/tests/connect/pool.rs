//! How many connections there are, how long they are used, and who waits for one.

use std::sync::Arc;

use mesh_core::config::{CircuitBreakers, Cluster, Http2Keepalive};
use mesh_tower::ErrorKind;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::timeout};

use super::{server::Gate, *};

/// Tests wait this long for what must happen.
pub(super) const MUST_HAPPEN: Duration = Duration::from_secs(20);

fn cluster(
    addresses: &[SocketAddr],
    version: HttpVersion,
    set: impl FnOnce(&mut Cluster),
) -> (HandMade, Client) {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, HyperConnector::new(None)).report_endpoint(true);
    config.publish(
        &tree("l")
            .cluster_with("a", addresses, |cluster| {
                cluster.http_version = version;
                set(cluster);
            })
            .route("/", "a")
            .build(),
    );
    (config, service)
}

fn limits(connections: u32, waiting: u32, per_host: Option<u32>) -> CircuitBreakers {
    CircuitBreakers {
        max_connections: connections,
        max_pending_requests: waiting,
        max_connections_per_host: per_host,
        ..CircuitBreakers::default()
    }
}

/// The statuses and kinds of errors of `calls` calls at a time, which `gate` lets go on once `arrived`
/// of them are at the server.
async fn held_at(
    service: &Client,
    gate: &Arc<Gate>,
    calls: usize,
    arrived: usize,
) -> Vec<Result<StatusCode, ErrorKind>> {
    gate.close();
    let tasks: Vec<_> = (0..calls)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move {
                let response = service.oneshot(post("x")).await.map_err(|e| e.kind())?;
                let status = response.status();
                response.into_body().collect().await.unwrap();
                Ok(status)
            })
        })
        .collect();
    timeout(MUST_HAPPEN, gate.has(arrived))
        .await
        .expect("arrived");
    gate.open();
    let mut results = Vec::new();
    for task in tasks {
        results.push(timeout(MUST_HAPPEN, task).await.expect("an end").unwrap());
    }
    results
}

#[tokio::test]
async fn http1_requests_wait_for_a_connection_up_to_the_limit_and_the_others_fail_at_once() {
    let server = TestServer::start().await;
    let (_config, service) = cluster(&[server.address()], HttpVersion::Http1, |cluster| {
        cluster.circuit_breakers = limits(3, 4, None);
    });
    let results = held_at(&service, &server.gate, 10, 3).await;
    let served = results.iter().filter(|r| **r == Ok(StatusCode::OK)).count();
    let refused = results
        .iter()
        .filter(|r| **r == Err(ErrorKind::CircuitOpen));
    assert_eq!((served, refused.count()), (7, 3), "{results:?}");
    assert_eq!(server.most_open.load(Relaxed), 3);
    // Nothing is held back by those that waited.
    assert_eq!(load(&service, 3, 20).await, [""; 0]);
}

#[tokio::test]
async fn http1_connections_of_one_endpoint_and_of_all_are_bounded_and_each_gets_one() {
    let servers = [TestServer::start().await, TestServer::start().await];
    let addresses = servers.each_ref().map(TestServer::address);
    let (_config, service) = cluster(&addresses, HttpVersion::Http1, |cluster| {
        cluster.circuit_breakers = limits(1, 1024, None);
    });
    assert_eq!(load(&service, 16, 20).await, [""; 0]);
    for server in &servers {
        assert_eq!(server.most_open.load(Relaxed), 1);
        assert!(server.served.load(Relaxed) > 0, "both are used");
    }
    let server = TestServer::start().await;
    let (_config, service) = cluster(&[server.address()], HttpVersion::Http1, |cluster| {
        cluster.circuit_breakers = limits(1024, 1024, Some(2));
    });
    assert_eq!(load(&service, 16, 20).await, [""; 0]);
    assert!(server.most_open.load(Relaxed) <= 2);
}

#[tokio::test]
async fn http2_opens_another_connection_when_one_is_full_and_none_before() {
    let server = TestServer::start_with(|server| server.max_streams = Some(8)).await;
    let (_config, service) = cluster(&[server.address()], HttpVersion::Http2, |_| ());
    // The first call also waits for the server's settings.
    assert_eq!(load(&service, 1, 5).await, [""; 0]);
    let results = held_at(&service, &server.gate, 8, 8).await;
    assert!(
        results.iter().all(|r| *r == Ok(StatusCode::OK)),
        "{results:?}"
    );
    assert_eq!(server.connections.load(Relaxed), 1);
    let results = held_at(&service, &server.gate, 20, 20).await;
    assert!(
        results.iter().all(|r| *r == Ok(StatusCode::OK)),
        "{results:?}"
    );
    assert_eq!(server.connections.load(Relaxed), 3);
}

#[tokio::test]
async fn http2_connections_are_bounded_and_the_rest_waits_or_fails() {
    let server = TestServer::start_with(|server| server.max_streams = Some(4)).await;
    let (_config, service) = cluster(&[server.address()], HttpVersion::Http2, |cluster| {
        cluster.circuit_breakers = limits(1024, 5, Some(2));
    });
    assert_eq!(load(&service, 1, 5).await, [""; 0]);
    let results = held_at(&service, &server.gate, 16, 8).await;
    let served = results.iter().filter(|r| **r == Ok(StatusCode::OK)).count();
    let refused = results
        .iter()
        .filter(|r| **r == Err(ErrorKind::CircuitOpen));
    // Those that fail did so while the second connection was being made, or after.
    assert!(
        refused.count() == 16 - served && (8..=13).contains(&served),
        "{results:?}"
    );
    assert!(server.connections.load(Relaxed) <= 2);
    assert_eq!(load(&service, 8, 20).await, [""; 0]);
}

#[tokio::test]
async fn our_own_limit_of_streams_holds_as_the_servers_does() {
    let server = TestServer::start().await;
    let (_config, service) = cluster(&[server.address()], HttpVersion::Http2, |cluster| {
        cluster.connection.http2.max_concurrent_streams = Some(2);
    });
    let results = held_at(&service, &server.gate, 6, 6).await;
    assert!(
        results.iter().all(|r| *r == Ok(StatusCode::OK)),
        "{results:?}"
    );
    assert_eq!(server.connections.load(Relaxed), 3);
}

#[tokio::test]
async fn a_connection_takes_so_many_requests_and_the_next_one_is_there_before_it_ends() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = TestServer::start().await;
        let (_config, service) = cluster(&[server.address()], version, |cluster| {
            cluster.connection.max_requests_per_connection = Some(10);
        });
        assert_eq!(load(&service, 1, 100).await, [""; 0]);
        let connections = server.connections.load(Relaxed);
        assert!(
            (10..=12).contains(&connections),
            "{version:?}: {connections}"
        );
        assert!(server.most_requests.load(Relaxed) <= 10, "{version:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_old_is_replaced_while_it_is_used() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = TestServer::start().await;
        let (_config, service) = cluster(&[server.address()], version, |cluster| {
            cluster.connection.max_connection_duration = Some(Duration::from_millis(100));
        });
        let replaced = async {
            while server.connections.load(Relaxed) < 4 {
                assert_eq!(load(&service, 2, 5).await, [""; 0]);
            }
        };
        timeout(MUST_HAPPEN, replaced)
            .await
            .expect("new connections");
    }
}

#[tokio::test]
async fn an_idle_connection_ends_and_the_next_request_makes_another() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let server = TestServer::start().await;
        let (_config, service) = cluster(&[server.address()], version, |cluster| {
            cluster.connection.idle_timeout = Some(Duration::from_millis(100));
        });
        for _ in 0..2 {
            assert_eq!(load(&service, 1, 3).await, [""; 0]);
            timeout(MUST_HAPPEN, server.has_open(0))
                .await
                .expect("closed");
        }
        assert_eq!(load(&service, 4, 3).await, [""; 0], "{version:?}");
    }
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_loses_its_connection() {
    // Takes connections, says so once, and never reads.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_config, service) = cluster(
        &[silent.local_addr().unwrap()],
        HttpVersion::Http2,
        |cluster| {
            cluster.connection.http2.keepalive = Some(Http2Keepalive {
                interval: Duration::from_millis(50),
                timeout: Duration::from_millis(50),
                interval_jitter_percent: 0,
            });
        },
    );
    let call = tokio::spawn(service.clone().oneshot(post("x")));
    let held = timeout(MUST_HAPPEN, silent.accept()).await;
    let (mut held, _) = held.expect("a connection").unwrap();
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    held.write_all(&EMPTY_SETTINGS).await.unwrap();
    let error = timeout(MUST_HAPPEN, call).await.expect("an end").unwrap();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Reset);
}
