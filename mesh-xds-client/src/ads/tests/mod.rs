//! The rules of the protocol, one test each.

mod timer;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster, cluster::ClusterDiscoveryType},
            core::v3::Node,
            endpoint::v3::ClusterLoadAssignment,
        },
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use super::*;

struct Rig {
    machine: Sotw,
    now: Instant,
}

impl Rig {
    /// A machine with an open stream.
    fn open() -> Self {
        let mut machine = Sotw::new(Node {
            id: "me".into(),
            ..Node::default()
        });
        machine.stream_opened();
        Self {
            machine,
            now: Instant::now(),
        }
    }

    fn subscribe(&mut self, kind: Kind, names: &[&str]) {
        for name in names {
            self.machine.subscribe(kind, name);
        }
    }

    fn requests(&mut self) -> Vec<DiscoveryRequest> {
        std::iter::from_fn(|| self.machine.poll_request(self.now)).collect()
    }

    #[track_caller]
    fn request(&mut self) -> DiscoveryRequest {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    fn receive(
        &mut self,
        kind: Kind,
        version: &str,
        nonce: &str,
        resources: Vec<Any>,
    ) -> Option<Update> {
        self.machine.receive(
            DiscoveryResponse {
                version_info: version.into(),
                nonce: nonce.into(),
                type_url: kind.type_url().into(),
                resources,
                ..DiscoveryResponse::default()
            },
            &DecodeContext::default(),
        )
    }

    fn reconnect(&mut self) {
        self.machine.stream_closed();
        self.machine.stream_opened();
    }
}

fn any<T: Message + Name>(value: &T) -> Any {
    Any {
        type_url: T::type_url(),
        value: value.encode_to_vec(),
    }
}

fn endpoints(name: &str) -> Any {
    any(&ClusterLoadAssignment {
        cluster_name: name.into(),
        ..ClusterLoadAssignment::default()
    })
}

fn cluster(name: &str) -> Any {
    use envoy_types::pb::envoy::config::{
        cluster::v3::cluster::EdsClusterConfig,
        core::v3::{AggregatedConfigSource, ConfigSource, config_source::ConfigSourceSpecifier},
    };
    any(&Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(
                    AggregatedConfigSource {},
                )),
                ..ConfigSource::default()
            }),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::default()
    })
}

/// A cluster of a type that is not supported.
fn bad_cluster(name: &str) -> Any {
    any(&Cluster {
        name: name.into(),
        ..Cluster::default()
    })
}

fn brief(request: &DiscoveryRequest) -> (&str, &str, Vec<&str>, bool) {
    (
        &request.version_info,
        &request.response_nonce,
        request.resource_names.iter().map(String::as_str).collect(),
        request.error_detail.is_some(),
    )
}

fn names(update: &Update) -> Vec<&str> {
    update
        .accepted
        .iter()
        .map(|(name, _)| name.as_str())
        .collect()
}

#[test]
fn the_node_is_sent_once_per_stream() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.subscribe(Kind::Endpoints, &["a"]);
    let nodes = |requests: &[DiscoveryRequest]| -> Vec<bool> {
        requests
            .iter()
            .map(|request| request.node.is_some())
            .collect()
    };
    assert_eq!(nodes(&rig.requests()), [true, false]);
    rig.reconnect();
    assert_eq!(nodes(&rig.requests()), [true, false]);
}

#[test]
fn an_accepted_response_is_answered_once_with_its_version_and_nonce() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Endpoints, &["b", "a"]);
    assert_eq!(brief(&rig.request()), ("", "", vec!["a", "b"], false));
    let update = rig
        .receive(Kind::Endpoints, "1", "n1", vec![endpoints("a")])
        .unwrap();
    assert_eq!(names(&update), ["a"]);
    assert_eq!(brief(&rig.request()), ("1", "n1", vec!["a", "b"], false));
    assert!(rig.requests().is_empty());
}

#[test]
fn a_refusal_keeps_the_version_names_every_bad_resource_and_applies_the_good_ones() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a", "b", "c"]);
    rig.requests();
    rig.receive(Kind::Cluster, "1", "n1", vec![cluster("a")]);
    rig.requests();
    let resources = vec![cluster("a"), bad_cluster("b"), bad_cluster("c")];
    let update = rig.receive(Kind::Cluster, "2", "n2", resources).unwrap();
    assert_eq!(names(&update), ["a"]);
    let rejected: Vec<_> = update
        .rejected
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(rejected, ["b", "c"]);
    assert!(
        update.removed.is_empty(),
        "a refused resource is not a missing one"
    );
    let request = rig.request();
    assert_eq!(brief(&request), ("1", "n2", vec!["a", "b", "c"], true));
    let detail = request.error_detail.unwrap();
    assert_eq!(detail.code, 3);
    for text in [
        "2 of 3 resources refused",
        "cluster b: type: ",
        "cluster c: type: ",
    ] {
        assert!(detail.message.contains(text), "{}", detail.message);
    }
    rig.receive(
        Kind::Cluster,
        "3",
        "n3",
        vec![cluster("a"), cluster("b"), cluster("c")],
    );
    assert_eq!(
        brief(&rig.request()),
        ("3", "n3", vec!["a", "b", "c"], false)
    );
}

#[test]
fn the_nonce_dies_with_the_stream_and_the_version_does_not() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    rig.receive(Kind::Endpoints, "7", "n", vec![endpoints("a")]);
    rig.requests();
    rig.reconnect();
    assert_eq!(brief(&rig.request()), ("7", "", vec!["a"], false));
}

#[test]
fn an_answer_that_was_not_sent_does_not_go_to_the_next_stream() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.receive(Kind::Cluster, "1", "n", vec![bad_cluster("a")]);
    rig.reconnect();
    assert_eq!(brief(&rig.request()), ("", "", vec!["a"], false));
}

#[test]
fn a_subscription_change_carries_version_and_nonce_and_joins_the_answer() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    rig.receive(Kind::Endpoints, "1", "n1", vec![endpoints("a")]);
    rig.subscribe(Kind::Endpoints, &["b"]);
    assert_eq!(brief(&rig.request()), ("1", "n1", vec!["a", "b"], false));
    rig.machine.unsubscribe(Kind::Endpoints, "a");
    assert_eq!(brief(&rig.request()), ("1", "n1", vec!["b"], false));
    rig.machine.unsubscribe(Kind::Endpoints, "never");
    rig.subscribe(Kind::Endpoints, &["b"]);
    assert!(rig.requests().is_empty(), "nothing has changed");
}

#[test]
fn an_empty_list_unsubscribes_and_is_never_the_first_of_a_stream() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.machine.unsubscribe(Kind::Cluster, "a");
    assert!(rig.requests().is_empty(), "it would ask for everything");
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.machine.unsubscribe(Kind::Cluster, "a");
    assert_eq!(brief(&rig.request()).2, Vec::<&str>::new());
    rig.reconnect();
    assert!(rig.requests().is_empty());
}

#[test]
fn a_name_that_goes_and_comes_back_is_left_out_of_one_request() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Endpoints, &["a", "b"]);
    rig.requests();
    rig.receive(
        Kind::Endpoints,
        "1",
        "n",
        vec![endpoints("a"), endpoints("b")],
    );
    rig.requests();
    rig.machine.unsubscribe(Kind::Endpoints, "a");
    rig.subscribe(Kind::Endpoints, &["a"]);
    let requests = rig.requests();
    let lists: Vec<_> = requests.iter().map(|request| brief(request).2).collect();
    assert_eq!(lists, [vec!["b"], vec!["a", "b"]]);
    assert!(
        rig.machine.next_deadline().is_some(),
        "it is waited for anew"
    );
}

#[test]
fn responses_of_types_not_asked_for_are_ignored_without_an_answer() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a"]);
    assert_eq!(
        rig.receive(Kind::Cluster, "1", "n", vec![]),
        None,
        "nothing has been sent yet"
    );
    rig.requests();
    assert_eq!(
        rig.receive(Kind::Endpoints, "1", "n", vec![endpoints("a")]),
        None
    );
    let unknown = DiscoveryResponse {
        type_url: "type.googleapis.com/x.Y".into(),
        ..DiscoveryResponse::default()
    };
    assert_eq!(
        rig.machine.receive(unknown, &DecodeContext::default()),
        None
    );
    assert!(rig.requests().is_empty());
}

#[test]
fn resources_not_asked_for_are_ignored_and_the_response_accepted() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    let resources = vec![bad_cluster("other"), cluster("a")];
    let update = rig.receive(Kind::Cluster, "1", "n", resources).unwrap();
    assert_eq!(names(&update), ["a"]);
    assert_eq!(brief(&rig.request()), ("1", "n", vec!["a"], false));
}

#[test]
fn absence_deletes_only_listeners_and_clusters_that_had_been_received() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a", "b"]);
    rig.subscribe(Kind::Endpoints, &["a", "b"]);
    rig.requests();
    let first = rig
        .receive(Kind::Cluster, "1", "n1", vec![cluster("a")])
        .unwrap();
    assert!(first.removed.is_empty(), "b has only been asked for");
    let second = rig
        .receive(Kind::Cluster, "2", "n2", vec![cluster("b")])
        .unwrap();
    assert_eq!(second.removed, ["a"]);
    let third = rig.receive(Kind::Cluster, "3", "n3", vec![]).unwrap();
    assert_eq!(third.removed, ["a", "b"]);
    rig.receive(Kind::Endpoints, "1", "n1", vec![endpoints("a")]);
    let none = rig.receive(Kind::Endpoints, "2", "n2", vec![]).unwrap();
    assert!(none.removed.is_empty());
}

#[test]
fn absence_deletes_nothing_when_a_resource_cannot_be_named() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.receive(Kind::Cluster, "1", "n1", vec![cluster("a")]);
    let broken = Any {
        type_url: Kind::Cluster.type_url().into(),
        value: vec![0xff],
    };
    let update = rig.receive(Kind::Cluster, "2", "n2", vec![broken]).unwrap();
    assert!(update.removed.is_empty() && update.rejected.is_empty());
    let message = rig.request().error_detail.unwrap().message;
    assert!(message.contains("resources[0]"), "{message}");
}

#[test]
fn absence_deletes_across_streams() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.receive(Kind::Cluster, "1", "n1", vec![cluster("a")]);
    rig.reconnect();
    rig.requests();
    assert_eq!(
        rig.receive(Kind::Cluster, "2", "n1", vec![])
            .unwrap()
            .removed,
        ["a"]
    );
}

#[test]
fn a_long_refusal_still_names_every_resource() {
    let mut rig = Rig::open();
    let all: Vec<String> = (0..2000).map(|i| format!("cluster-{i:04}")).collect();
    for name in &all {
        rig.machine.subscribe(Kind::Cluster, name);
    }
    rig.requests();
    rig.receive(
        Kind::Cluster,
        "1",
        "n",
        all.iter().map(|name| bad_cluster(name)).collect(),
    );
    let message = rig.request().error_detail.unwrap().message;
    assert!(all.iter().all(|name| message.contains(name.as_str())));
    assert!(message.len() < 100_000, "{}", message.len());
}

/// Whatever the order of events, what the server was last told is what is wanted, and each
/// response on the stream is answered.
#[test]
fn any_order_of_events_ends_with_the_server_knowing_what_is_wanted() {
    use mesh_core::rng::{Rng as _, SplitMix64};
    for seed in 0..300 {
        let mut rng = SplitMix64::new(seed);
        let mut rig = Rig::open();
        let mut wanted = std::collections::BTreeSet::new();
        let mut known: Vec<String> = Vec::new();
        let mut nonce = String::new();
        for step in 0..60 {
            let name = ["a", "b", "c"][rng.below(3) as usize];
            match rng.below(6) {
                0 | 1 => {
                    wanted.insert(name.to_owned());
                    rig.machine.subscribe(Kind::Endpoints, name);
                }
                2 => {
                    wanted.remove(name);
                    rig.machine.unsubscribe(Kind::Endpoints, name);
                }
                3 => {
                    let fresh = format!("n{step}");
                    let resources = vec![endpoints(name)];
                    if rig
                        .receive(Kind::Endpoints, "v", &fresh, resources)
                        .is_some()
                    {
                        nonce = fresh;
                    }
                }
                4 => {
                    if let Some(request) = rig.machine.poll_request(rig.now) {
                        known = request.resource_names;
                    }
                }
                _ if rng.below(4) == 0 => {
                    rig.reconnect();
                    known.clear();
                    nonce.clear();
                }
                _ => {}
            }
        }
        for request in rig.requests() {
            assert_eq!(request.response_nonce, nonce, "seed {seed}");
            known = request.resource_names;
        }
        assert!(
            known.iter().eq(&wanted),
            "seed {seed}: {known:?} is not {wanted:?}"
        );
    }
}
