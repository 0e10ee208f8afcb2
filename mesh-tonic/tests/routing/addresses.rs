//! Endpoints with several addresses (gRFC A61): one endpoint, whichever address takes the connection.

use std::{collections::BTreeMap, net::SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            Cluster, LoadBalancingPolicy, cluster::LbPolicy, load_balancing_policy::Policy,
        },
        core::v3::TypedExtensionConfig,
        endpoint::v3::{LbEndpoint, endpoint::AdditionalAddress, lb_endpoint::HostIdentifier},
    },
    extensions::load_balancing_policies::pick_first::v3::PickFirst,
};
use mesh_examples::ports::free_address;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{
    echo::Echo,
    resources::{any, endpoint, listener_with},
    scene::{Scene, Wire, forward, host, prefix},
    stateful,
};

/// An address that does not answer, as long as this lives: its one place is taken.
struct Hangs {
    address: SocketAddr,
    _held: (TcpListener, TcpStream),
}

impl Hangs {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let first = TcpStream::connect(address).await.unwrap();
        Self {
            address,
            _held: (listener, first),
        }
    }
}

/// One endpoint with these addresses.
fn at(addresses: &[SocketAddr]) -> LbEndpoint {
    let of = |address: &SocketAddr| endpoint(&address.ip().to_string(), address.port());
    let mut first = of(&addresses[0]);
    let additional = addresses[1..]
        .iter()
        .map(|address| match of(address).host_identifier {
            Some(HostIdentifier::Endpoint(other)) => AdditionalAddress {
                address: other.address,
            },
            other => panic!("{other:?}"),
        });
    if let Some(HostIdentifier::Endpoint(endpoint)) = &mut first.host_identifier {
        endpoint.additional_addresses = additional.collect();
    }
    first
}

async fn scene(wire: Wire) -> Scene {
    Scene::start(wire, host(vec![prefix("/", forward("c", |_| {}))])).await
}

fn pick_first(cluster: &mut Cluster) {
    cluster.load_balancing_policy = Some(LoadBalancingPolicy {
        policies: vec![Policy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: "pick_first".into(),
                typed_config: Some(any(&PickFirst::default())),
            }),
        }],
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_policy_an_endpoint_is_reached_by_the_address_that_answers() {
    let policies = [
        LbPolicy::RoundRobin,
        LbPolicy::LeastRequest,
        LbPolicy::Random,
        LbPolicy::RingHash,
        LbPolicy::Maglev,
    ];
    let policies = policies.into_iter().map(Some).chain([None]);
    for (index, policy) in policies.enumerate() {
        let wire = Wire::ALL[index % 3];
        let (one, hangs) = (Echo::start("one").await, Hangs::start().await);
        let addresses = [hangs.address, free_address().unwrap(), one.address];
        let scene = scene(wire).await;
        scene.serve_endpoints("c", vec![at(&addresses)], |cluster| match policy {
            Some(policy) => cluster.lb_policy = policy as i32,
            None => pick_first(cluster),
        });
        for _ in 0..3 {
            let seen = scene.get("/").await.seen();
            assert_eq!(seen.by, "one", "{wire:?} {policy:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_counts_once_however_many_addresses_it_has() {
    for wire in Wire::ALL {
        let servers = [
            Echo::start("one").await,
            Echo::start("two").await,
            Echo::start("three").await,
        ];
        let [one, two, three] = servers.each_ref().map(|server| server.address);
        let scene = scene(wire).await;
        scene.serve_endpoints("c", vec![at(&[one, two]), at(&[three])], |_| {});
        // Until both are connected.
        for name in ["one", "three"] {
            let is_there = |reply: &Result<_, _>| {
                let reply: &super::scene::Reply = reply.as_ref().unwrap();
                reply.seen().by == name
            };
            scene.until("/", &[], is_there).await.unwrap();
        }
        let mut counts = BTreeMap::new();
        for _ in 0..40 {
            *counts.entry(scene.get("/").await.seen().by).or_insert(0) += 1;
        }
        let expected = BTreeMap::from([("one".to_owned(), 20), ("three".to_owned(), 20)]);
        assert_eq!(counts, expected, "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_may_name_any_address_of_its_endpoint() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let scene = scene(wire).await;
        let filter = stateful::filter(&stateful::session("", false));
        scene.plane.set([listener_with(vec![filter])]);
        let endpoints = vec![
            at(&[free_address().unwrap(), one.address]),
            at(&[two.address]),
        ];
        scene.serve_endpoints("c", endpoints, |_| {});
        let cookie = STANDARD.encode(format!("{};c", one.address));
        let cookie = format!("stay={cookie}");
        for _ in 0..6 {
            let reply = scene.get_with("/", &[("cookie", &cookie)]).await;
            assert_eq!(reply.seen().by, "one", "{wire:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_goes_on_at_another_address_when_its_own_is_gone() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let addresses = [one.address, two.address];
        let scene = scene(wire).await;
        scene.serve_endpoints("c", vec![at(&addresses)], |_| {});
        assert_eq!(scene.get("/").await.seen().by, "one");
        drop(one);
        let moved = |reply: &Result<super::scene::Reply, _>| {
            reply.as_ref().is_ok_and(|reply| reply.seen().by == "two")
        };
        scene.until("/", &[], moved).await.unwrap();
    }
}
