//! What only state of the world has.

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::*;

fn rig() -> Rig {
    Rig::open(Variant::StateOfTheWorld)
}

fn sotw(request: Request) -> DiscoveryRequest {
    match request {
        Request::Sotw(request) => request.read(),
        Request::Delta(request) => panic!("{request:?}"),
    }
}

/// Version, nonce, names, and whether it is a refusal.
fn brief(request: Request) -> (String, String, Vec<String>, bool) {
    let request = sotw(request);
    (
        request.version_info,
        request.response_nonce,
        request.resource_names,
        request.error_detail.is_some(),
    )
}

fn said(
    version: &str,
    nonce: &str,
    names: &[&str],
    refused: bool,
) -> (String, String, Vec<String>, bool) {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    (version.into(), nonce.into(), names, refused)
}

#[test]
fn an_accepted_response_is_answered_once_with_its_version_and_nonce() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["b", "a"]);
    assert_eq!(brief(rig.request()), said("", "", &["a", "b"], false));
    let update = rig
        .serve(Kind::Endpoints, "1", vec![endpoints("a")])
        .unwrap();
    assert_eq!(names(&update), ["a"]);
    assert_eq!(brief(rig.request()), said("1", "n1", &["a", "b"], false));
    assert!(rig.requests().is_empty());
}

#[test]
fn a_refusal_keeps_the_version_names_every_bad_resource_and_applies_the_good_ones() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a", "b", "c"]);
    rig.requests();
    rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
    rig.requests();
    let resources = vec![cluster("a"), bad_cluster("b"), bad_cluster("c")];
    let update = rig.serve(Kind::Cluster, "2", resources).unwrap();
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
    assert_eq!(
        brief(request.clone()),
        said("1", "n2", &["a", "b", "c"], true)
    );
    let detail = sotw(request).error_detail.unwrap();
    assert_eq!(detail.code, 3);
    for text in [
        "2 of 3 resources refused",
        "cluster b: type: ",
        "cluster c: type: ",
    ] {
        assert!(detail.message.contains(text), "{}", detail.message);
    }
    rig.serve(
        Kind::Cluster,
        "3",
        vec![cluster("a"), cluster("b"), cluster("c")],
    );
    assert_eq!(
        brief(rig.request()),
        said("3", "n3", &["a", "b", "c"], false)
    );
}

#[test]
fn the_nonce_dies_with_the_stream_and_the_version_does_not() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    rig.serve(Kind::Endpoints, "7", vec![endpoints("a")]);
    rig.requests();
    rig.reconnect();
    assert_eq!(brief(rig.request()), said("7", "", &["a"], false));
}

#[test]
fn a_subscription_change_carries_version_and_nonce_and_joins_the_answer() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
    rig.subscribe(Kind::Endpoints, &["b"]);
    assert_eq!(brief(rig.request()), said("1", "n1", &["a", "b"], false));
    rig.machine.unsubscribe(Kind::Endpoints, "a");
    assert_eq!(brief(rig.request()), said("1", "n1", &["b"], false));
    rig.machine.unsubscribe(Kind::Endpoints, "never");
    rig.subscribe(Kind::Endpoints, &["b"]);
    assert!(rig.requests().is_empty(), "nothing has changed");
}

#[test]
fn an_empty_list_unsubscribes_and_is_never_the_first_of_a_stream() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.machine.unsubscribe(Kind::Cluster, "a");
    assert!(rig.requests().is_empty(), "it would ask for everything");
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.machine.unsubscribe(Kind::Cluster, "a");
    assert_eq!(brief(rig.request()).2, Vec::<String>::new());
    rig.reconnect();
    assert!(rig.requests().is_empty());
}

#[test]
fn absence_deletes_only_listeners_and_clusters_that_had_been_received() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a", "b"]);
    rig.subscribe(Kind::Endpoints, &["a", "b"]);
    rig.requests();
    let first = rig.serve(Kind::Cluster, "1", vec![cluster("a")]).unwrap();
    assert!(first.removed.is_empty(), "b has only been asked for");
    let second = rig.serve(Kind::Cluster, "2", vec![cluster("b")]).unwrap();
    assert_eq!(second.removed, ["a"]);
    let third = rig.serve(Kind::Cluster, "3", vec![]).unwrap();
    assert_eq!(third.removed, ["b"], "a is gone already");
    rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
    let none = rig.serve(Kind::Endpoints, "2", vec![]).unwrap();
    assert!(none.removed.is_empty());
}

#[test]
fn absence_deletes_nothing_when_a_resource_cannot_be_named() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
    let broken = Any {
        type_url: Kind::Cluster.type_url().into(),
        value: vec![0xff],
    };
    let update = rig.serve(Kind::Cluster, "2", vec![broken]).unwrap();
    assert!(update.removed.is_empty() && update.rejected.is_empty());
    let message = sotw(rig.request()).error_detail.unwrap().message;
    assert!(message.contains("resources[0]"), "{message}");
}

#[test]
fn a_long_refusal_still_names_every_resource() {
    let mut rig = rig();
    let all: Vec<String> = (0..2000).map(|i| format!("cluster-{i:04}")).collect();
    for name in &all {
        rig.machine.subscribe(Kind::Cluster, name.as_str());
    }
    rig.requests();
    rig.serve(
        Kind::Cluster,
        "1",
        all.iter().map(|name| bad_cluster(name)).collect(),
    );
    let message = sotw(rig.request()).error_detail.unwrap().message;
    assert!(all.iter().all(|name| message.contains(name.as_str())));
    assert!(message.len() < 100_000, "{}", message.len());
}

/// ADS_ACK_NACK_ResourceIsNotRequestedAnymore.
#[test]
fn a_name_that_is_wanted_again_is_asked_for_with_the_last_accepted_version() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
    rig.requests();
    rig.serve(Kind::Cluster, "2", vec![bad_cluster("a")]);
    rig.requests();
    rig.machine.unsubscribe(Kind::Cluster, "a");
    let request = sotw(rig.request());
    assert_eq!(
        (&*request.version_info, request.resource_names.len()),
        ("1", 0)
    );
    rig.subscribe(Kind::Cluster, &["b"]);
    let request = sotw(rig.request());
    assert_eq!(
        (&*request.version_info, &*request.response_nonce),
        ("1", "n2")
    );
    assert_eq!(request.resource_names, ["b"]);
}
