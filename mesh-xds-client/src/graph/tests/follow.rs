//! Watchers of single resources: the table of gRFC A88, and what they share with meshes.

use std::task::{Context, Poll};

use futures_util::task::noop_waker_ref;
use mesh_core::config::ClusterEndpoints;

use super::*;
use crate::{
    ads::ServerError,
    watcher::{News, Slot, slot},
};

impl Rig {
    fn follow<T: Resource>(&mut self, name: &str) -> (WatchId, Slot<T>) {
        let (teller, slot) = slot();
        let follower = Follower::<T>::new(name.to_owned(), teller);
        (self.add(Watcher::Resource(Box::new(follower))), slot)
    }

    fn server_error(&mut self, name: &str, is_data_error: bool) {
        let error = ServerError {
            name: name.to_owned(),
            error: ConfigError::new(format!("endpoints {name}"), "", "no"),
            is_data_error,
        };
        self.update(Update {
            errors: vec![error],
            ..empty(Kind::Endpoints)
        });
    }
}

/// All that is unread, in words.
fn unread<T>(slot: &mut Slot<T>) -> Vec<String> {
    let mut words = Vec::new();
    let mut cx = Context::from_waker(noop_waker_ref());
    while let Poll::Ready(Some(event)) = slot.poll(&mut cx) {
        words.push(match event.news {
            News::Changed(Ok(_)) => "value".to_owned(),
            News::Changed(Err(error)) => format!("error: {error}"),
            News::AmbientError(Some(error)) => format!("ambient: {error}"),
            News::AmbientError(None) => "well".to_owned(),
        });
    }
    words
}

/// How each row of the table is told, with and without a value, and with `fail_on_data_errors`.
#[test]
fn every_row_of_the_error_table_is_told_as_it_says() {
    type Row = (&'static str, fn(&mut Rig), [&'static str; 3]);
    let rows: [Row; 5] = [
        (
            "a refusal",
            |rig| rig.reject(Kind::Endpoints, "e"),
            ["error", "ambient", "error"],
        ),
        (
            "an error about the resource",
            |rig| rig.server_error("e", true),
            ["error", "ambient", "error"],
        ),
        (
            "an error that may pass",
            |rig| rig.server_error("e", false),
            ["error", "ambient", "ambient"],
        ),
        (
            "a removal",
            |rig| rig.remove_resource(Kind::Endpoints, "e"),
            // What was never there cannot be removed.
            ["", "ambient", "error"],
        ),
        (
            "no control plane",
            |rig| rig.graph.disconnected(None, "cp:1", "refused"),
            ["error", "ambient", "ambient"],
        ),
    ];
    for (what, happen, expected) in rows {
        for (setting, expected) in expected.into_iter().enumerate() {
            if expected.is_empty() {
                continue;
            }
            let mut rig = Rig::new();
            rig.source.policy.fail_on_data_errors = setting == 2;
            let (_, mut watcher) = rig.follow::<ClusterEndpoints>("e");
            if setting > 0 {
                rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
                assert_eq!(unread(&mut watcher), ["value"]);
            }
            happen(&mut rig);
            let told = unread(&mut watcher);
            let place = format!("{what}, setting {setting}: {told:?}");
            assert_eq!(told.len(), 1, "{place}");
            assert!(told[0].starts_with(expected), "{place}");
            happen(&mut rig);
            assert!(
                unread(&mut watcher).is_empty(),
                "it is not repeated: {place}"
            );
        }
    }
}

#[test]
fn what_was_not_read_gives_way_to_what_is_newer() {
    let mut rig = Rig::new();
    let (_, mut watcher) = rig.follow::<ClusterEndpoints>("e");
    for port in 1..100 {
        rig.accept(Kind::Endpoints, vec![("e", endpoints("e", port))]);
        rig.reject(Kind::Endpoints, "e");
    }
    let told = unread(&mut watcher);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "value");
    assert!(told[1].starts_with("ambient"));
}

#[test]
fn a_value_clears_the_error_beside_the_last_one() {
    let mut rig = Rig::new();
    let (_, mut watcher) = rig.follow::<ClusterEndpoints>("e");
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
    rig.reject(Kind::Endpoints, "e");
    assert_eq!(unread(&mut watcher).len(), 2);
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 2))]);
    assert_eq!(unread(&mut watcher), ["value"]);
    // The same refusal is news after a value.
    rig.reject(Kind::Endpoints, "e");
    assert_eq!(unread(&mut watcher).len(), 1);
}

#[test]
fn an_outage_says_less_than_an_error_of_the_resource() {
    let mut rig = Rig::new();
    let (_, mut watcher) = rig.follow::<ClusterEndpoints>("e");
    rig.reject(Kind::Endpoints, "e");
    assert_eq!(unread(&mut watcher).len(), 1);
    rig.graph.disconnected(None, "cp:1", "refused");
    rig.graph.connected(None);
    assert!(unread(&mut watcher).is_empty());
}

#[test]
fn an_outage_is_told_to_watchers_of_its_authority_alone() {
    let mut rig = Rig::new();
    let (_, mut old) = rig.follow::<ClusterEndpoints>("e");
    let (_, mut new) = rig.follow::<ClusterEndpoints>("xdstp://a/t/e");
    rig.graph.disconnected(Some("a"), "cp:1", "refused");
    assert!(unread(&mut old).is_empty());
    assert_eq!(unread(&mut new).len(), 1);
    rig.graph.connected(Some("a"));
    assert!(unread(&mut new).is_empty(), "there is no value to be well");
}

#[test]
fn only_what_neither_a_watcher_nor_a_mesh_uses_is_given_back() {
    let mut rig = Rig::new();
    let (mesh, _reader) = rig.watch("a");
    rig.serve(&["c"]);
    let (cluster_id, mut clusters) = rig.follow::<ClusterSpec>("c");
    let (endpoints_id, mut of_cluster) = rig.follow::<ClusterEndpoints>("c");
    assert_eq!(unread(&mut clusters), ["value"]);
    assert_eq!(unread(&mut of_cluster), ["value"]);
    rig.remove(mesh);
    assert_eq!(rig.wants(Kind::Cluster), ["c"]);
    assert_eq!(rig.wants(Kind::Endpoints), ["c"]);
    assert!(rig.wants(Kind::Listener).is_empty());
    // A mesh that comes back is served from what is held.
    let (mesh, reader) = rig.watch("a");
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    rig.accept(Kind::Route, vec![("r", routes(&["c"]))]);
    assert_eq!(published(&reader).len(), 1);
    rig.remove(cluster_id);
    rig.remove(endpoints_id);
    assert_eq!(rig.wants(Kind::Cluster), ["c"], "the mesh uses it");
    rig.remove(mesh);
    assert!(rig.wanted.is_empty(), "{:?}", rig.wanted);
}
