//! Requests that stay on an endpoint because they have something in common.

use std::collections::BTreeSet;

use envoy_types::pb::{
    envoy::config::{
        cluster::v3::cluster::LbPolicy,
        route::v3::{
            WeightedCluster,
            route_action::{
                ClusterSpecifier, HashPolicy,
                hash_policy::{
                    ConnectionProperties, Cookie, FilterState, Header, PolicySpecifier,
                    QueryParameter,
                },
            },
            weighted_cluster::{ClusterWeight, RandomValueSpecifier},
        },
    },
    google::protobuf::{BoolValue, Duration, UInt32Value},
};

use super::{
    echo::Echo,
    scene::{Scene, Wire, forward, host, prefix},
    world::MUST_HAPPEN,
};

fn by(policy_specifier: PolicySpecifier, terminal: bool) -> HashPolicy {
    HashPolicy {
        terminal,
        policy_specifier: Some(policy_specifier),
    }
}

fn header(name: &str) -> PolicySpecifier {
    PolicySpecifier::Header(Header {
        header_name: name.into(),
        ..Header::default()
    })
}

fn cookie() -> PolicySpecifier {
    PolicySpecifier::Cookie(Cookie {
        name: "who".into(),
        ttl: Some(Duration {
            seconds: 60,
            nanos: 0,
        }),
        path: "/".into(),
        ..Cookie::default()
    })
}

struct Ring {
    scene: Scene,
    _servers: Vec<Echo>,
}

impl Ring {
    /// Eight endpoints behind a route with these policies.
    async fn start(wire: Wire, policy: LbPolicy, hash: Vec<HashPolicy>) -> Self {
        let action = forward("c", |action| action.hash_policy = hash);
        let scene = Scene::start(wire, host(vec![prefix("/", action)])).await;
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let servers = futures_util::future::join_all(names.map(Echo::start)).await;
        let all: Vec<_> = servers.iter().collect();
        scene.serve_with("c", &all, |cluster| cluster.lb_policy = policy as i32);
        Self {
            scene,
            _servers: servers,
        }
    }

    /// Waits until requests without a hash have found every endpoint: those of one that is still
    /// connecting are served by others.
    async fn connected(self) -> Self {
        let mut seen = BTreeSet::new();
        let all = async {
            while seen.len() < 8 {
                seen.insert(self.scene.get("/").await.seen().by);
            }
        };
        tokio::time::timeout(MUST_HAPPEN, all).await.expect("all");
        self
    }

    /// Waits until every such request is served by the same endpoint.
    async fn settled(&self, path: &str) {
        let settled = async { while self.servers(path, &[]).await.len() > 1 {} };
        tokio::time::timeout(MUST_HAPPEN, settled)
            .await
            .expect("one endpoint");
    }

    /// Who serves ten such requests.
    async fn servers(&self, path: &str, headers: &[(&str, &str)]) -> BTreeSet<String> {
        let mut servers = BTreeSet::new();
        for _ in 0..10 {
            servers.insert(self.scene.get_with(path, headers).await.seen().by);
        }
        servers
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_hashes_go_to_one_endpoint_and_others_spread() {
    for wire in Wire::ALL {
        for policy in [LbPolicy::RingHash, LbPolicy::Maglev] {
            let query = PolicySpecifier::QueryParameter(QueryParameter { name: "k".into() });
            let hash = vec![by(header("x-user"), true), by(query, false)];
            let ring = Ring::start(wire, policy, hash).await.connected().await;
            let mut all = BTreeSet::new();
            for user in ["1", "2", "3", "4", "5", "6"] {
                let of_header = ring.servers("/?k=z", &[("x-user", user)]).await;
                assert_eq!(of_header.len(), 1, "{wire:?} {policy:?}");
                all.extend(of_header);
                let of_query = ring.servers(&format!("/?k={user}"), &[]).await;
                assert_eq!(of_query.len(), 1, "{wire:?} {policy:?}");
            }
            assert!(all.len() > 1, "{wire:?} {policy:?}");
            // Nothing in common: anywhere.
            assert!(ring.servers("/", &[]).await.len() > 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_caller_and_one_channel_stay_on_their_endpoint() {
    for wire in Wire::ALL {
        let source =
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true });
        let channel = PolicySpecifier::FilterState(FilterState {
            key: "io.grpc.channel_id".into(),
        });
        for specifier in [source, channel] {
            let ring = Ring::start(wire, LbPolicy::RingHash, vec![by(specifier, false)]).await;
            ring.settled("/").await;
            assert_eq!(ring.servers("/", &[]).await.len(), 1, "{wire:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_a_cookie_gets_one_that_brings_it_back() {
    for wire in Wire::ALL {
        let hash = vec![by(cookie(), false)];
        let ring = Ring::start(wire, LbPolicy::RingHash, hash).await;
        let ring = ring.connected().await;
        for _ in 0..3 {
            let reply = ring.scene.get("/").await;
            let [cookie] = reply.header("set-cookie")[..] else {
                panic!("{reply:?}")
            };
            assert!(cookie.ends_with("; Max-Age=60; Path=/; HttpOnly"));
            let (pair, _) = cookie.split_once(';').unwrap();
            let servers = ring.servers("/", &[("cookie", pair)]).await;
            assert_eq!(servers, BTreeSet::from([reply.seen().by]), "{wire:?}");
            let again = ring.scene.get_with("/", &[("cookie", pair)]).await;
            assert!(again.header("set-cookie").is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_without_hashes_takes_no_notice() {
    let ring = Ring::start(
        Wire::Http1,
        LbPolicy::RoundRobin,
        vec![by(header("x-user"), false)],
    )
    .await;
    assert!(ring.servers("/", &[("x-user", "1")]).await.len() > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hash_decides_among_weighted_clusters() {
    for wire in Wire::ALL {
        let (one, two) = (Echo::start("one").await, Echo::start("two").await);
        let weight = |name: &str| ClusterWeight {
            name: name.to_owned(),
            weight: Some(UInt32Value { value: 1 }),
            ..ClusterWeight::default()
        };
        let action = forward("", |action| {
            action.hash_policy = vec![by(header("x-user"), false)];
            action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: vec![weight("one"), weight("two")],
                random_value_specifier: Some(RandomValueSpecifier::UseHashPolicy(BoolValue {
                    value: true,
                })),
                ..WeightedCluster::default()
            }));
        });
        let scene = Scene::start(wire, host(vec![prefix("/", action)])).await;
        scene.serve("one", &[&one]);
        scene.serve("two", &[&two]);
        let mut all = BTreeSet::new();
        for user in 0..12 {
            let user = user.to_string();
            let mut servers = BTreeSet::new();
            for _ in 0..4 {
                let reply = scene.get_with("/", &[("x-user", &user)]).await;
                servers.insert(reply.seen().by);
            }
            assert_eq!(servers.len(), 1, "{wire:?} {user}");
            all.extend(servers);
        }
        assert_eq!(all.len(), 2, "{wire:?}");
    }
}
