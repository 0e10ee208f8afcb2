//! What is published when, from which resources.

mod faults;
mod follow;
mod inbound;
mod keep;
mod named;
mod secrets;
mod sources;

use mesh_core::{
    config::*,
    snapshot::{ClusterSnapshot, ListenerState, SnapshotReader, pair},
};

use super::*;
use crate::resource::{ClusterSource, ClusterSpec, Config};

struct Rig {
    graph: Graph,
    source: Source,
    /// Names that are wanted on the wire.
    wanted: BTreeSet<(Kind, String)>,
    next_id: WatchId,
}

impl Rig {
    fn new() -> Self {
        Self {
            graph: Graph::new("me".into(), "cp:1".into(), 1),
            source: Source {
                server: "cp:1".into(),
                ..Source::default()
            },
            wanted: BTreeSet::new(),
            next_id: 0,
        }
    }

    fn watch(&mut self, authority: &str) -> (WatchId, SnapshotReader) {
        let (writer, reader) = pair();
        let watcher = Watcher::Client {
            listener: "l".into(),
            authority: authority.into(),
            writer,
        };
        (self.add(watcher), reader)
    }

    fn add(&mut self, watcher: Watcher) -> WatchId {
        self.next_id += 1;
        self.graph.add(self.next_id, watcher);
        self.turn();
        self.next_id
    }

    fn remove(&mut self, id: WatchId) {
        self.graph.remove(id);
        self.turn();
    }

    fn turn(&mut self) {
        self.graph.collect();
        for change in self.graph.take_changes() {
            let key = (change.kind, change.name.to_string());
            if change.is_wanted {
                assert!(self.wanted.insert(key));
            } else {
                assert!(self.wanted.remove(&key));
            }
        }
    }

    fn update(&mut self, update: Update) {
        self.graph
            .apply(update, &self.source, SystemTime::UNIX_EPOCH);
        self.turn();
    }

    fn accept(&mut self, kind: Kind, accepted: Vec<(&str, Config)>) {
        let accepted = accepted
            .into_iter()
            .map(|(name, c)| accepted_as(name, c))
            .collect();
        self.update(Update {
            accepted,
            ..empty(kind)
        });
    }

    fn reject(&mut self, kind: Kind, name: &str) {
        let error = ConfigError::new(format!("{} {name}", kind.noun()), "field", "is bad");
        self.update(Update {
            rejected: vec![(name.to_owned(), error)],
            ..empty(kind)
        });
    }

    fn remove_resource(&mut self, kind: Kind, name: &str) {
        self.update(Update {
            removed: vec![name.to_owned()],
            ..empty(kind)
        });
    }

    fn expire(&mut self, kind: Kind, name: &str) {
        let expired = Expired {
            missing: vec![(kind, name.to_owned())],
            ended: vec![],
        };
        let now = SystemTime::UNIX_EPOCH;
        self.graph.expire(expired, &self.source, now);
        self.turn();
    }

    /// Listener, routes to `clusters`, and the clusters with their endpoints.
    fn serve(&mut self, clusters: &[&str]) {
        self.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
        self.accept(Kind::Route, vec![("r", routes(clusters))]);
        for name in clusters {
            self.accept(Kind::Cluster, vec![(name, cluster(name, name))]);
            self.accept(Kind::Endpoints, vec![(name, endpoints(name, 1))]);
        }
    }

    fn wants(&self, kind: Kind) -> Vec<&str> {
        self.wanted
            .iter()
            .filter(|(k, _)| *k == kind)
            .map(|(_, name)| name.as_str())
            .collect()
    }
}

fn accepted_as(name: &str, config: Config) -> Accepted {
    Accepted {
        name: name.to_owned(),
        config,
        version: "1".into(),
        raw: name.to_owned().into(),
        ttl: None,
        ignored: Vec::new(),
    }
}

fn empty(kind: Kind) -> Update {
    Update {
        kind,
        accepted: vec![],
        rejected: vec![],
        removed: vec![],
        errors: vec![],
        nack: None,
    }
}

fn rds_listener(route: &str) -> Config {
    Config::Listener(Arc::new(Listener {
        name: "l".into(),
        kind: ListenerKind::Api(ApiListener {
            routes: RouteSource::Rds(route.into()),
            max_stream_duration: None,
            stream_idle_timeout: None,
            filters: [].into(),
            router: RouterOptions::default(),
        }),
    }))
}

fn inbound_listener(name: &str) -> Config {
    Config::Listener(Arc::new(Listener {
        name: name.into(),
        kind: ListenerKind::Inbound(InboundListener {
            address: None,
            filter_chains: vec![],
        }),
    }))
}

fn host(name: &str, clusters: &[&str]) -> VirtualHost {
    let route = |cluster: &&str| {
        let action = RouteAction::Forward(Forward::to(*cluster));
        Route::new("", RouteMatch::any(), action)
    };
    VirtualHost::new(name, [name], clusters.iter().map(route).collect())
}

fn hosts(virtual_hosts: Vec<VirtualHost>) -> Config {
    Config::Route(Arc::new(RouteConfig::new("r", virtual_hosts)))
}

fn routes(clusters: &[&str]) -> Config {
    hosts(vec![host("a", clusters)])
}

fn cluster(name: &str, endpoints: &str) -> Config {
    spec(name, ClusterSource::Eds(endpoints.into()))
}

fn spec(name: &str, source: ClusterSource) -> Config {
    let config = Arc::new(Cluster::new(name));
    Config::Cluster(Arc::new(ClusterSpec {
        config,
        source,
        load_reports: None,
    }))
}

fn endpoints(name: &str, port: u16) -> Config {
    let locality = LocalityEndpoints {
        locality: LocalityId::default(),
        priority: 0,
        weight: 1,
        endpoints: vec![Endpoint {
            address: ([10, 0, 0, 1], port).into(),
            weight: 1,
            health: HealthStatus::Healthy,
            details: None,
        }],
    };
    Config::Endpoints(Arc::new(ClusterEndpoints::new(name, vec![locality])))
}

/// The clusters of what is published.
#[track_caller]
fn published(reader: &SnapshotReader) -> Vec<Arc<ClusterSnapshot>> {
    match reader.load() {
        ListenerState::Ready(snapshot) => snapshot
            .clusters
            .iter()
            .map(|handle| Arc::clone(handle.current.borrow().get()))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn ports(cluster: &ClusterSnapshot) -> Vec<u16> {
    cluster
        .endpoints
        .iter()
        .map(|endpoint| endpoint.address.port())
        .collect()
}

fn is_pending(reader: &SnapshotReader) -> bool {
    matches!(reader.load(), ListenerState::Pending)
}

#[track_caller]
fn failure(reader: &SnapshotReader) -> String {
    match reader.load() {
        ListenerState::Failed(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_published_until_every_cluster_is_known() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    assert_eq!(rig.wants(Kind::Listener), ["l"]);
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    assert_eq!(rig.wants(Kind::Route), ["r"]);
    rig.accept(Kind::Route, vec![("r", routes(&["x", "y"]))]);
    assert_eq!(rig.wants(Kind::Cluster), ["x", "y"]);
    rig.accept(
        Kind::Cluster,
        vec![("x", cluster("x", "x-endpoints")), ("y", cluster("y", "y"))],
    );
    assert_eq!(rig.wants(Kind::Endpoints), ["x-endpoints", "y"]);
    rig.accept(Kind::Endpoints, vec![("y", endpoints("y", 1))]);
    assert!(is_pending(&reader));
    rig.accept(
        Kind::Endpoints,
        vec![("x-endpoints", endpoints("x-endpoints", 2))],
    );
    let clusters = published(&reader);
    assert_eq!(
        (ports(&clusters[0]), ports(&clusters[1])),
        (vec![2], vec![1])
    );
}

#[test]
fn an_error_of_a_cluster_or_its_endpoints_is_recorded_and_completes_the_tree() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    rig.accept(Kind::Route, vec![("r", routes(&["x", "y"]))]);
    rig.accept(Kind::Cluster, vec![("y", cluster("y", "y"))]);
    rig.reject(Kind::Cluster, "x");
    rig.expire(Kind::Endpoints, "y");
    let clusters = published(&reader);
    let error = clusters[0].config.as_ref().unwrap_err().to_string();
    assert_eq!(
        error,
        "cluster x: field: is bad (node \"me\", control plane cp:1); correct it at the control plane"
    );
    assert!(clusters[1].config.is_ok());
    let note = clusters[1].resolution_note.as_ref().unwrap().to_string();
    assert!(note.starts_with("endpoints y: does not exist"), "{note}");
    rig.accept(Kind::Cluster, vec![("x", cluster("x", "x"))]);
    assert!(
        published(&reader)[0].config.is_err(),
        "its endpoints are not there yet"
    );
    rig.accept(
        Kind::Endpoints,
        vec![("x", endpoints("x", 1)), ("y", endpoints("y", 2))],
    );
    let clusters = published(&reader);
    assert_eq!(
        (ports(&clusters[0]), ports(&clusters[1])),
        (vec![1], vec![2])
    );
}

#[test]
fn endpoints_swap_their_cluster_alone() {
    let mut rig = Rig::new();
    let (_, mut reader) = rig.watch("a");
    rig.serve(&["x", "y"]);
    let ListenerState::Ready(before) = reader.load_and_mark() else {
        panic!()
    };
    rig.accept(Kind::Endpoints, vec![("x", endpoints("x", 9))]);
    let ListenerState::Ready(after) = reader.load() else {
        panic!()
    };
    assert!(
        Arc::ptr_eq(&before, &after),
        "the routes are not compiled anew"
    );
    assert_eq!(ports(&published(&reader)[0]), [9]);
    let unchanged = published(&reader);
    rig.accept(
        Kind::Endpoints,
        vec![("x", endpoints("x", 9)), ("y", endpoints("y", 1))],
    );
    rig.accept(
        Kind::Cluster,
        vec![("x", cluster("x", "x")), ("y", cluster("y", "y"))],
    );
    rig.accept(Kind::Route, vec![("r", routes(&["x", "y"]))]);
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    let again = published(&reader);
    assert!(unchanged.iter().zip(&again).all(|(a, b)| Arc::ptr_eq(a, b)));
    let ListenerState::Ready(last) = reader.load() else {
        panic!()
    };
    assert!(
        Arc::ptr_eq(&before, &last),
        "equal resources publish nothing"
    );
}

#[test]
fn only_the_virtual_host_of_the_authority_matters() {
    let mut rig = Rig::new();
    let (_, mut reader) = rig.watch("a");
    rig.serve(&["x"]);
    reader.load_and_mark();
    let ListenerState::Ready(before) = reader.load() else {
        panic!()
    };
    let both = vec![host("b", &["other"]), host("a", &["x"])];
    rig.accept(Kind::Route, vec![("r", hosts(both))]);
    assert_eq!(
        rig.wants(Kind::Cluster),
        ["x"],
        "other hosts' clusters are not asked for"
    );
    let ListenerState::Ready(after) = reader.load() else {
        panic!()
    };
    assert!(Arc::ptr_eq(&before, &after));
    rig.accept(Kind::Route, vec![("r", hosts(vec![host("b", &["other"])]))]);
    assert!(failure(&reader).contains("no domain matches the dialled authority \"a\""));
    assert!(rig.wants(Kind::Cluster).is_empty());
}

#[test]
fn the_last_watch_gives_everything_back() {
    let mut rig = Rig::new();
    let (first, _first) = rig.watch("a");
    let (second, reader) = rig.watch("a");
    rig.serve(&["x"]);
    rig.remove(first);
    assert_eq!(rig.wanted.len(), 4);
    assert_eq!(ports(&published(&reader)[0]), [1]);
    rig.remove(second);
    assert!(rig.wanted.is_empty(), "{:?}", rig.wanted);
}

#[test]
fn a_resource_that_changes_hands_within_a_turn_keeps_its_value() {
    let mut rig = Rig::new();
    let (first, _first) = rig.watch("a");
    rig.serve(&["x"]);
    rig.graph.remove(first);
    let (_, second) = rig.watch("a");
    assert_eq!(ports(&published(&second)[0]), [1]);
    assert_eq!(rig.wanted.len(), 4);
}

#[test]
fn inbound_listeners_and_trust_bundles() {
    let mut rig = Rig::new();
    let (tx, inbound) = watch::channel(InboundState::Pending);
    rig.add(Watcher::Inbound {
        listener: "in".into(),
        tx,
    });
    let (tx, bundle) = watch::channel(None);
    let id = rig.add(Watcher::TrustBundle {
        name: "ROOTCA".into(),
        tx,
    });
    assert_eq!(rig.wants(Kind::Secret), ["ROOTCA"]);
    rig.expire(Kind::Listener, "in");
    assert!(matches!(&*inbound.borrow(), InboundState::Failed(_)));
    rig.accept(Kind::Listener, vec![("in", inbound_listener("in"))]);
    rig.reject(Kind::Listener, "in");
    assert!(matches!(&*inbound.borrow(), InboundState::Ready(_)));
    let value = |root: &'static [u8]| {
        Config::Secret(Arc::new(Secret::TrustBundle(TrustBundle {
            name: "ROOTCA".into(),
            roots: vec![bytes::Bytes::from_static(root)],
        })))
    };
    for root in [b"one", b"two"] {
        rig.accept(Kind::Secret, vec![("ROOTCA", value(root))]);
        assert_eq!(bundle.borrow().as_ref().unwrap().roots[0].as_ref(), root);
    }
    rig.remove(id);
    assert!(rig.wants(Kind::Secret).is_empty());
}

#[test]
fn a_listener_of_the_other_side_is_an_error() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.accept(Kind::Listener, vec![("l", inbound_listener("l"))]);
    assert!(failure(&reader).contains("is a server's, not a client's"));
}
