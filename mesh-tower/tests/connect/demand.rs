//! Endpoints that are connected when a request comes to them, and not before (gRFC A42, A61, A62).

use mesh_core::config::{HashPolicy, HashSource, RingHash};
use tokio::{net::TcpListener, time::timeout};

use super::{pool::MUST_HAPPEN, *};

const PICK_FIRST: LbPolicy = LbPolicy::PickFirst {
    shuffle_address_list: false,
};

/// A route by the hash of a header.
fn on_demand(
    policy: LbPolicy,
    version: HttpVersion,
    addresses: &[SocketAddr],
) -> (HandMade, Client) {
    let (mut config, reader) = HandMade::new();
    let service = MeshService::new("l", reader, HyperConnector::new(None)).report_endpoint(true);
    config.publish(
        &tree("l")
            .cluster_with("a", addresses, |cluster| {
                cluster.http_version = version;
                cluster.lb_policy = policy;
            })
            .route_with("/", "a", |forward| {
                let by_user = HashPolicy {
                    source: HashSource::Header {
                        name: "x-user".into(),
                        rewrite: None,
                    },
                    terminal: false,
                };
                forward.extras.get_or_insert_default().hash_policy = vec![by_user];
            })
            .build(),
    );
    (config, service)
}

async fn servers(count: usize) -> Vec<TestServer> {
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(TestServer::start().await);
    }
    servers
}

fn addresses(servers: &[TestServer]) -> Vec<SocketAddr> {
    servers.iter().map(TestServer::address).collect()
}

/// Who served one call of a user.
async fn call(service: &Client, user: &'static str) -> SocketAddr {
    let mut request = post("hello");
    let headers = request.headers_mut();
    headers.insert("x-user", user.parse().unwrap());
    let response = timeout(MUST_HAPPEN, service.clone().oneshot(request)).await;
    let response = response.expect("an end").unwrap();
    let selected = response.extensions().get::<SelectedEndpoint>();
    let address = selected.unwrap().address;
    response.into_body().collect().await.unwrap();
    address
}

/// Those that were ever connected to.
fn connected(servers: &[TestServer]) -> Vec<SocketAddr> {
    let is_used = |server: &&TestServer| server.connections.load(Relaxed) > 0;
    servers
        .iter()
        .filter(is_used)
        .map(TestServer::address)
        .collect()
}

const VERSIONS: [HttpVersion; 2] = [HttpVersion::Http1, HttpVersion::Http2];

#[tokio::test]
async fn on_a_ring_a_key_connects_its_endpoint_alone_and_the_next_when_that_is_gone() {
    for version in VERSIONS {
        let mut servers = servers(6).await;
        let ring = LbPolicy::RingHash(RingHash::default());
        let (_config, service) = on_demand(ring, version, &addresses(&servers));
        let own = call(&service, "ann").await;
        for _ in 0..5 {
            assert_eq!(call(&service, "ann").await, own);
        }
        assert_eq!(connected(&servers), [own], "{version:?}");

        let at = servers.iter().position(|server| server.address() == own);
        servers.remove(at.unwrap()).stop().await;
        let next = call(&service, "ann").await;
        assert_ne!(next, own);
        assert_eq!(connected(&servers), [next], "{version:?}");

        let _back = TestServer::start_at(own).await;
        let again = async { while call(&service, "ann").await != own {} };
        timeout(MUST_HAPPEN, again).await.expect("its own again");
    }
}

#[tokio::test]
async fn on_a_ring_calls_without_a_key_use_every_endpoint() {
    let servers = servers(4).await;
    let ring = LbPolicy::RingHash(RingHash::default());
    let (_config, service) = on_demand(ring, HttpVersion::Http2, &addresses(&servers));
    let all = async {
        while connected(&servers).len() < 4 {
            assert_eq!(load(&service, 4, 10).await, [""; 0]);
        }
    };
    timeout(MUST_HAPPEN, all).await.expect("all");
}

#[tokio::test]
async fn pick_first_connects_to_the_first_alone_and_to_the_second_when_that_refuses() {
    for version in VERSIONS {
        let mut servers = servers(3).await;
        let all = addresses(&servers);
        let (_config, service) = on_demand(PICK_FIRST, version, &all);
        assert_eq!(load(&service, 4, 10).await, [""; 0]);
        assert_eq!(connected(&servers), all[..1], "{version:?}");

        servers.remove(0).stop().await;
        assert_eq!(call(&service, "").await, all[1], "{version:?}");
        assert_eq!(connected(&servers), all[1..2], "{version:?}");
    }
}

#[tokio::test]
async fn pick_first_does_not_wait_for_an_endpoint_that_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = servers(2).await;
    let mut all = vec![silent.local_addr().unwrap()];
    all.extend(addresses(&servers));
    let (_config, service) = on_demand(PICK_FIRST, HttpVersion::Http2, &all);
    assert_eq!(call(&service, "").await, all[1]);
    let held = timeout(MUST_HAPPEN, silent.accept()).await;
    held.expect("it was asked first").unwrap();
}

#[tokio::test]
async fn a_connection_that_is_lost_is_made_again_by_the_next_call_and_not_before() {
    let servers = servers(2).await;
    let all = addresses(&servers);
    let (_config, service) = on_demand(PICK_FIRST, HttpVersion::Http2, &all[..1]);
    assert_eq!(call(&service, "").await, all[0]);
    let [first, other] = <[TestServer; 2]>::try_from(servers).ok().unwrap();
    first.stop().await;
    let back = TestServer::start_at(all[0]).await;
    // Time for a client that reconnects by itself: as long as it takes another one.
    let (_other_config, other_service) = on_demand(PICK_FIRST, HttpVersion::Http2, &all[1..]);
    assert_eq!(load(&other_service, 4, 50).await, [""; 0]);
    assert_eq!(other.connections.load(Relaxed), 1);
    assert_eq!(back.connections.load(Relaxed), 0);
    assert_eq!(call(&service, "").await, all[0]);
    assert_eq!(back.connections.load(Relaxed), 1);
}
