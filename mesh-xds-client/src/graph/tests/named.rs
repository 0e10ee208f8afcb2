//! Clusters that routes name beside their targets, those that requests name, and what holds for all
//! virtual hosts.

use super::{super::NAMED_CLUSTERS_MAX, *};

fn named(reader: &SnapshotReader) -> Vec<String> {
    let published = published(reader);
    published
        .iter()
        .map(|cluster| cluster.name.to_string())
        .collect()
}

/// A route whose clusters are named by a header, beside one to `clusters`.
fn by_header(clusters: &[&str]) -> Config {
    let mut host = host("a", clusters);
    let extras = ForwardExtras {
        cluster_header: Some(http::HeaderName::from_static("x-cluster")),
        ..ForwardExtras::default()
    };
    let forward = Forward {
        extras: Some(Box::new(extras)),
        ..Forward::default()
    };
    let action = RouteAction::Forward(forward);
    host.routes.push(Route::new("", RouteMatch::any(), action));
    hosts(vec![host])
}

impl Rig {
    fn serve_by_header(&mut self) {
        self.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
        self.accept(Kind::Route, vec![("r", by_header(&["x"]))]);
        self.serve_cluster("x");
    }

    fn serve_cluster(&mut self, name: &str) {
        self.accept(Kind::Cluster, vec![(name, cluster(name, name))]);
        self.accept(Kind::Endpoints, vec![(name, endpoints(name, 1))]);
    }

    fn name(&mut self, id: WatchId, cluster: &str) {
        self.graph.name_cluster(id, cluster.into());
        self.turn();
    }
}

#[test]
fn the_clusters_of_mirrors_are_part_of_the_snapshot() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    let mut host = host("a", &["x"]);
    let RouteAction::Forward(forward) = &mut host.routes[0].action else {
        unreachable!()
    };
    let mirrors = vec![Mirror {
        cluster: MirrorTarget::Cluster("copy".into()),
        fraction: None,
        shadow_suffix: true,
        trace_sampled: None,
    }];
    forward.extras = Some(Box::new(ForwardExtras {
        mirrors,
        ..ForwardExtras::default()
    }));
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    rig.accept(Kind::Route, vec![("r", hosts(vec![host]))]);
    assert_eq!(rig.wants(Kind::Cluster), ["copy", "x"]);
    rig.serve_cluster("x");
    assert!(is_pending(&reader));
    rig.serve_cluster("copy");
    assert_eq!(named(&reader), ["copy", "x"]);
}

#[test]
fn a_cluster_that_a_request_names_is_asked_for_and_published_when_it_is_known() {
    let mut rig = Rig::new();
    let (id, reader) = rig.watch("a");
    rig.serve_by_header();
    assert_eq!(named(&reader), ["x"]);
    rig.name(id, "y");
    rig.name(id, "x");
    assert_eq!(rig.wants(Kind::Cluster), ["x", "y"]);
    assert_eq!(named(&reader), ["x"]);
    rig.serve_cluster("y");
    assert_eq!(named(&reader), ["x", "y"]);

    // It stays through changes of the routes, and goes with the last route that takes names.
    rig.accept(Kind::Route, vec![("r", by_header(&["x", "z"]))]);
    rig.serve_cluster("z");
    assert_eq!(named(&reader), ["x", "y", "z"]);
    rig.accept(Kind::Route, vec![("r", routes(&["x"]))]);
    assert_eq!(named(&reader), ["x"]);
    assert_eq!(rig.wants(Kind::Cluster), ["x"]);
}

#[test]
fn a_name_that_nobody_knows_holds_nothing_back() {
    let mut rig = Rig::new();
    let (id, reader) = rig.watch("a");
    rig.serve_by_header();
    rig.name(id, "nobody");
    rig.accept(Kind::Route, vec![("r", by_header(&["x", "z"]))]);
    rig.serve_cluster("z");
    assert_eq!(named(&reader), ["x", "z"]);
    // Once the control plane says so, requests that name it fail with that.
    rig.expire(Kind::Cluster, "nobody");
    assert_eq!(named(&reader), ["nobody", "x", "z"]);
    assert!(published(&reader)[0].config.is_err());
}

#[test]
fn names_of_requests_are_bounded_and_unusable_ones_make_room_first() {
    let mut rig = Rig::new();
    let (id, reader) = rig.watch("a");
    rig.serve_by_header();
    for number in 0..NAMED_CLUSTERS_MAX {
        rig.name(id, &format!("n{number}"));
        if number != 7 {
            rig.serve_cluster(&format!("n{number}"));
        }
    }
    rig.expire(Kind::Cluster, "n7");
    assert_eq!(named(&reader).len(), NAMED_CLUSTERS_MAX + 1);
    for (new, gone) in [("one-more", "n7"), ("two-more", "n0")] {
        rig.name(id, new);
        rig.serve_cluster(new);
        let now = named(&reader);
        assert_eq!(now.len(), NAMED_CLUSTERS_MAX + 1);
        assert!(now.iter().any(|name| name == new));
        assert!(!now.iter().any(|name| name == gone), "{gone}");
        assert!(!rig.wants(Kind::Cluster).contains(&gone));
    }
}

#[test]
fn a_change_of_what_holds_for_all_virtual_hosts_is_published() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve(&["x"]);
    let generation = || match reader.load() {
        ListenerState::Ready(snapshot) => snapshot.generation,
        other => panic!("{other:?}"),
    };
    let mut config = RouteConfig::new("r", vec![host("a", &["x"])]);
    let routes = |config: &RouteConfig| Config::Route(Arc::new(config.clone()));
    let mut last = generation();
    rig.accept(Kind::Route, vec![("r", routes(&config))]);
    assert_eq!(generation(), last, "nothing has changed");
    config.headers = Some(Box::default());
    rig.accept(Kind::Route, vec![("r", routes(&config))]);
    assert!(generation() > last, "headers");
    last = generation();
    config.most_specific_mutations_win = true;
    rig.accept(Kind::Route, vec![("r", routes(&config))]);
    assert!(generation() > last, "their order");
}
