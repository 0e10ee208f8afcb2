//! What stays in use when something is refused, deleted, lost or not there yet.

use super::*;

#[test]
fn a_refused_or_deleted_resource_takes_nothing_away() {
    for (kind, name) in [
        (Kind::Listener, "l"),
        (Kind::Route, "r"),
        (Kind::Cluster, "x"),
        (Kind::Endpoints, "x"),
    ] {
        let mut rig = Rig::new();
        let (_, reader) = rig.watch("a");
        rig.serve(&["x"]);
        rig.reject(kind, name);
        rig.remove_resource(kind, name);
        rig.graph.disconnected(None, "cp:1", "it is gone");
        assert_eq!(ports(&published(&reader)[0]), [1], "{kind:?}");
        let (_, late) = rig.watch("a");
        assert_eq!(
            ports(&published(&late)[0]),
            [1],
            "{kind:?}: later watches see it too"
        );
    }
}

#[test]
fn without_an_earlier_value_an_error_fails_the_listener_and_says_where() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.reject(Kind::Listener, "l");
    let expected = "listener l: field: is bad (node \"me\", control plane cp:1); correct it at the control plane";
    assert_eq!(failure(&reader), expected);
    rig.graph.disconnected(None, "cp:1", "refused");
    assert_eq!(failure(&reader), expected, "the outage says less");
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    rig.expire(Kind::Route, "r");
    assert!(failure(&reader).starts_with("route configuration r: does not exist"));
    rig.serve(&["x"]);
    assert_eq!(ports(&published(&reader)[0]), [1]);
}

#[test]
fn an_outage_fails_only_those_that_have_nothing() {
    let mut rig = Rig::new();
    let (_, first) = rig.watch("a");
    rig.graph.disconnected(None, "cp:1", "connection refused");
    assert!(failure(&first).contains("cannot be reached: connection refused"));
    let (_, second) = rig.watch("a");
    assert!(failure(&second).contains("listener l: the control plane cannot be reached"));
    rig.graph.connected(None);
    let (_, third) = rig.watch("a");
    assert!(is_pending(&third));
    rig.serve(&["x"]);
    for reader in [first, second, third] {
        assert_eq!(ports(&published(&reader)[0]), [1]);
    }
}

#[test]
fn a_new_route_table_waits_for_its_clusters_while_the_old_one_serves() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve(&["x"]);
    rig.accept(Kind::Route, vec![("r", routes(&["y"]))]);
    assert_eq!(rig.wants(Kind::Cluster), ["x", "y"]);
    rig.accept(Kind::Endpoints, vec![("x", endpoints("x", 5))]);
    assert_eq!(
        ports(&published(&reader)[0]),
        [5],
        "the old cluster is still followed"
    );
    rig.accept(Kind::Cluster, vec![("y", cluster("y", "y"))]);
    rig.accept(Kind::Endpoints, vec![("y", endpoints("y", 6))]);
    assert_eq!(published(&reader)[0].name.as_str(), "y");
    assert_eq!(rig.wants(Kind::Cluster), ["y"]);
    assert_eq!(rig.wants(Kind::Endpoints), ["y"]);
}

#[test]
fn a_cluster_that_moves_to_other_endpoints_keeps_the_old_ones_until_they_come() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve(&["x"]);
    rig.accept(Kind::Cluster, vec![("x", cluster("x", "new"))]);
    assert_eq!(rig.wants(Kind::Endpoints), ["new", "x"]);
    rig.accept(Kind::Endpoints, vec![("x", endpoints("x", 3))]);
    assert_eq!(ports(&published(&reader)[0]), [3]);
    rig.accept(Kind::Endpoints, vec![("new", endpoints("new", 4))]);
    assert_eq!(ports(&published(&reader)[0]), [4]);
    assert_eq!(rig.wants(Kind::Endpoints), ["new"]);
}

/// A cluster that leaves the routes and comes back is subscribed anew and follows its endpoints.
#[test]
fn a_cluster_that_comes_back_is_fresh() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve(&["x"]);
    rig.serve(&["y"]);
    assert_eq!(rig.wants(Kind::Cluster), ["y"]);
    rig.accept(Kind::Route, vec![("r", routes(&["x"]))]);
    assert_eq!(
        published(&reader)[0].name.as_str(),
        "y",
        "x has to be asked for again"
    );
    rig.accept(Kind::Cluster, vec![("x", cluster("x", "x"))]);
    rig.accept(Kind::Endpoints, vec![("x", endpoints("x", 8))]);
    assert_eq!(ports(&published(&reader)[0]), [8]);
}
