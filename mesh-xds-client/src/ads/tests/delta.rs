//! What only the incremental variant has.

use super::*;

fn rig() -> Rig {
    Rig::open(Variant::Incremental)
}

fn delta(request: Request) -> DeltaDiscoveryRequest {
    match request {
        Request::Delta(request) => request,
        Request::Sotw(request) => panic!("{request:?}"),
    }
}

#[test]
fn initial_versions_are_sent_only_in_the_first_request_of_a_type_after_a_reconnect() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a", "b"]);
    let first = delta(rig.request());
    assert!(first.initial_resource_versions.is_empty());
    assert_eq!(first.resource_names_subscribe, ["a", "b"]);
    rig.serve(Kind::Cluster, "7", vec![cluster("a")]);
    rig.request();
    rig.reconnect();
    rig.subscribe(Kind::Cluster, &["c"]);
    let again = delta(rig.request());
    assert_eq!(again.resource_names_subscribe, ["a", "b", "c"]);
    assert_eq!(
        again.initial_resource_versions,
        [("a".to_owned(), "7".to_owned())].into()
    );
    rig.subscribe(Kind::Cluster, &["d"]);
    let later = delta(rig.request());
    assert!(later.initial_resource_versions.is_empty());
    assert_eq!(later.resource_names_subscribe, ["d"]);
}

#[test]
fn a_version_that_was_refused_is_not_claimed() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a", "b"]);
    rig.requests();
    rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
    let both = vec![bad_cluster("a"), bad_cluster("b")];
    rig.serve(Kind::Cluster, "2", both);
    rig.reconnect();
    let versions = delta(rig.request()).initial_resource_versions;
    assert_eq!(versions, [("a".to_owned(), "1".to_owned())].into());
}

#[test]
fn what_was_removed_expired_or_dropped_is_not_claimed() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a", "b", "c", "d"]);
    rig.requests();
    let brief = living("b", Some(1), Some(cluster("b")));
    let all = vec![cluster("a"), brief, cluster("c"), cluster("d")];
    rig.serve(Kind::Cluster, "1", all);
    rig.remove("2", "a", vec![]);
    let deadline = rig.machine.next_deadline().unwrap();
    rig.machine.expire(deadline);
    rig.machine.unsubscribe(Kind::Cluster, "c");
    rig.reconnect();
    let request = delta(rig.request());
    assert_eq!(request.resource_names_subscribe, ["a", "b", "d"]);
    let versions = request.initial_resource_versions;
    assert_eq!(versions, [("d".to_owned(), "1".to_owned())].into());
}

#[test]
fn a_spontaneous_request_has_no_nonce_and_says_only_what_changes() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["a", "b"]);
    rig.requests();
    rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
    rig.requests();
    rig.subscribe(Kind::Endpoints, &["c"]);
    rig.machine.unsubscribe(Kind::Endpoints, "a");
    let request = delta(rig.request());
    assert_eq!(request.response_nonce, "");
    assert_eq!(request.resource_names_subscribe, ["c"]);
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    assert!(rig.requests().is_empty());
}

#[test]
fn an_answer_carries_no_changes_and_changes_follow_it() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
    rig.subscribe(Kind::Endpoints, &["b"]);
    let mut requests = rig.requests().into_iter().map(delta);
    let answer = requests.next().unwrap();
    assert_eq!(answer.response_nonce, "n1");
    assert!(answer.resource_names_subscribe.is_empty());
    let change = requests.next().unwrap();
    assert_eq!(change.response_nonce, "");
    assert_eq!(change.resource_names_subscribe, ["b"]);
    assert_eq!(requests.next(), None);
}

#[test]
fn every_response_is_answered_by_its_own_nonce() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    for version in ["1", "2", "3"] {
        rig.serve(Kind::Endpoints, version, vec![endpoints("a")]);
    }
    let nonces: Vec<_> = rig
        .requests()
        .into_iter()
        .map(|request| delta(request).response_nonce)
        .collect();
    assert_eq!(nonces, ["n1", "n2", "n3"]);
}

#[test]
fn a_flood_of_responses_is_not_read_before_answers_went_out() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    let mut taken = 0;
    while rig.machine.is_receptive() {
        rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
        taken += 1;
        assert!(taken < 10_000, "there is a bound");
    }
    rig.request_all();
    assert!(rig.machine.is_receptive());
}

#[test]
fn absence_means_nothing() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a", "b"]);
    rig.requests();
    let both = vec![cluster("a"), cluster("b")];
    rig.serve(Kind::Cluster, "1", both);
    let update = rig.serve(Kind::Cluster, "2", vec![]).unwrap();
    assert!(update.removed.is_empty());
}

#[test]
fn a_removal_counts_for_what_never_came_and_not_for_what_is_not_wanted() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    let response = rig.response(Kind::Cluster, "1", vec![], &["a", "other"], vec![]);
    assert_eq!(rig.take(response).unwrap().removed, ["a"]);
    assert_eq!(rig.machine.next_deadline(), None, "it has been answered");
}

#[test]
fn a_removal_by_resource_name_counts_as_well() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    let mut response = rig.response(Kind::Cluster, "1", vec![], &[], vec![]);
    if let Response::Delta(response) = &mut response {
        response.removed_resource_names.push(ResourceName {
            name: "a".into(),
            ..ResourceName::default()
        });
    }
    assert_eq!(rig.take(response).unwrap().removed, ["a"]);
}

#[test]
fn a_resource_both_sent_and_removed_is_there() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    let response = rig.response(Kind::Cluster, "1", vec![cluster("a")], &["a"], vec![]);
    let update = rig.take(response).unwrap();
    assert_eq!(names(&update), ["a"]);
    assert!(update.removed.is_empty());
}

#[test]
fn an_alias_counts_as_the_name_that_was_asked_for() {
    let mut rig = rig();
    rig.subscribe(Kind::Endpoints, &["short"]);
    rig.requests();
    let mut response = rig.response(Kind::Endpoints, "1", vec![endpoints("long")], &[], vec![]);
    if let Response::Delta(response) = &mut response {
        response.resources[0].aliases = vec!["other".into(), "short".into()];
    }
    assert_eq!(names(&rig.take(response).unwrap()), ["short"]);
    assert_eq!(rig.machine.next_deadline(), None);
}

#[test]
fn a_name_dropped_while_everything_is_wanted_stays_when_the_server_answers_with_it() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["*", "a"]);
    rig.requests();
    rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
    rig.requests();
    rig.machine.unsubscribe(Kind::Cluster, "a");
    let request = delta(rig.request());
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    let update = rig.serve(Kind::Cluster, "2", vec![cluster("a")]).unwrap();
    assert_eq!(names(&update), ["a"]);
}

#[test]
fn a_server_that_does_not_speak_it_is_asked_for_everything_in_the_other_variant() {
    let mut rig = rig();
    rig.subscribe(Kind::Cluster, &["a"]);
    rig.requests();
    rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
    rig.machine.set_variant(Variant::StateOfTheWorld);
    rig.reconnect();
    match rig.request() {
        Request::Sotw(request) => {
            let request = request.read();
            assert_eq!(request.version_info, "", "versions mean nothing there");
            assert_eq!(request.resource_names, ["a"]);
        }
        Request::Delta(request) => panic!("{request:?}"),
    }
}

impl Rig {
    fn request_all(&mut self) {
        assert!(!self.requests().is_empty());
    }
}
