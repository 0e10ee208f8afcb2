//! Clusters whose requests name their addresses (ORIGINAL_DST), over real sockets.

use http::HeaderValue;
use mesh_core::config::{Discovery, ORIGINAL_DST_HEADER, OriginalDst};
use tokio::time::timeout;

use super::{pool::MUST_HAPPEN, *};

fn passing(change: impl FnOnce(&mut OriginalDst)) -> (HandMade, Client) {
    passing_with(|cluster| {
        let mut config = OriginalDst::default();
        change(&mut config);
        cluster.discovery = Discovery::OriginalDst(config);
    })
}

fn passing_with(change: impl FnOnce(&mut mesh_core::config::Cluster)) -> (HandMade, Client) {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, HyperConnector::new(None)).report_endpoint(true);
    config.publish(
        &tree("l")
            .cluster_with("a", &[], change)
            .route("/", "a")
            .build(),
    );
    (config, service)
}

fn to(authority: impl std::fmt::Display) -> Request<Body> {
    Request::post(format!("http://{authority}/echo"))
        .body(Body::from("x"))
        .unwrap()
}

fn by_header(header: &str) -> Request<Body> {
    let mut request = to("l.test:80");
    let value = HeaderValue::from_str(header).unwrap();
    request.headers_mut().insert(ORIGINAL_DST_HEADER, value);
    request
}

/// Which endpoint answered.
async fn answered(service: &Client, request: Request<Body>) -> SocketAddr {
    let response = service.clone().oneshot(request).await.unwrap();
    let address = response
        .extensions()
        .get::<SelectedEndpoint>()
        .unwrap()
        .address;
    response.into_body().collect().await.unwrap();
    address
}

async fn refused(service: &Client, request: Request<Body>) -> String {
    let error = service.clone().oneshot(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    error.to_string()
}

#[tokio::test]
async fn requests_go_to_the_address_in_their_uri() {
    let servers = [TestServer::start().await, TestServer::start().await];
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let (_config, service) = passing_with(|cluster| {
            cluster.http_version = version;
            cluster.discovery = Discovery::OriginalDst(OriginalDst::default());
        });
        for _ in 0..3 {
            for server in &servers {
                let address = server.address();
                assert_eq!(answered(&service, to(address)).await, address);
            }
        }
        let text = refused(&service, to("service.example:80")).await;
        assert!(text.contains("resolution DNS"), "{text}");
    }
}

#[tokio::test]
async fn a_header_chooses_the_address_only_where_the_configuration_says_so() {
    let servers = [TestServer::start().await, TestServer::start().await];
    let (a, b) = (servers[0].address(), servers[1].address());
    let (_config, service) = passing(|config| config.http_header = Some(ORIGINAL_DST_HEADER));
    assert_eq!(answered(&service, by_header(&b.to_string())).await, b);
    assert_eq!(answered(&service, to(a)).await, a);
    refused(&service, by_header("service.example:80")).await;

    let (_config, service) = passing(|_| {});
    let mut request = to(a);
    let value = HeaderValue::from_str(&b.to_string()).unwrap();
    request.headers_mut().insert(ORIGINAL_DST_HEADER, value);
    assert_eq!(answered(&service, request).await, a);
    refused(&service, by_header(&b.to_string())).await;

    // Nor where the cluster has endpoints of its own.
    let (_config, service) = client(&[a], HttpVersion::Http1, false);
    assert_eq!(answered(&service, by_header(&b.to_string())).await, a);
}

#[tokio::test]
async fn the_port_of_the_configuration_beats_that_of_the_request() {
    let server = TestServer::start().await;
    let port = server.address().port();
    let (_config, service) = passing(|config| config.port_override = Some(port));
    assert_eq!(
        answered(&service, to("127.0.0.1:1")).await,
        server.address()
    );
}

#[tokio::test]
async fn addresses_that_nobody_names_any_more_are_disconnected_and_can_come_back() {
    let (a, b) = (TestServer::start().await, TestServer::start().await);
    let (_config, service) = passing(|config| config.cleanup_interval = Duration::from_millis(200));
    answered(&service, to(a.address())).await;
    answered(&service, to(b.address())).await;
    timeout(MUST_HAPPEN, async {
        a.has_open(0).await;
        b.has_open(0).await;
    })
    .await
    .expect("closed");
    assert_eq!(answered(&service, to(a.address())).await, a.address());
}

#[tokio::test]
async fn an_address_with_a_request_in_flight_is_not_forgotten() {
    let server = TestServer::start().await;
    let (_config, service) = passing(|config| config.cleanup_interval = Duration::from_millis(1));
    server.gate.close();
    let call = tokio::spawn({
        let (service, request) = (service.clone(), to(server.address()));
        async move { answered(&service, request).await }
    });
    timeout(MUST_HAPPEN, server.gate.has(1))
        .await
        .expect("it came");
    // Others come and go meanwhile.
    let other = TestServer::start().await;
    answered(&service, to(other.address())).await;
    timeout(MUST_HAPPEN, other.has_open(0))
        .await
        .expect("closed");
    server.gate.open();
    assert_eq!(call.await.unwrap(), server.address());
}

#[tokio::test]
async fn circuit_breakers_hold_and_an_address_where_nobody_is_says_so() {
    let server = TestServer::start().await;
    let (_config, service) = passing_with(|cluster| {
        cluster.circuit_breakers.max_requests = 1;
        cluster.discovery = Discovery::OriginalDst(OriginalDst::default());
    });
    server.gate.close();
    let call = tokio::spawn({
        let (service, request) = (service.clone(), to(server.address()));
        async move { answered(&service, request).await }
    });
    timeout(MUST_HAPPEN, server.gate.has(1))
        .await
        .expect("it came");
    let error = service
        .clone()
        .oneshot(to(server.address()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CircuitOpen, "{error}");
    server.gate.open();
    call.await.unwrap();
    let nobody = TestServer::start().await.kill().await;
    let error = service.clone().oneshot(to(nobody)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEndpoint, "{error}");
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");
}
