//! When a resource counts as missing (gRFC A57).

use std::time::Duration;

use envoy_types::pb::{
    envoy::service::discovery::v3::{ResourceError, ResourceName},
    google::rpc::Status,
};

use super::*;
use crate::ads::subscription::DOES_NOT_EXIST_AFTER;

#[test]
fn the_timer_starts_when_the_request_is_sent() {
    let mut rig = Rig::open();
    rig.machine.stream_closed();
    rig.subscribe(Kind::Endpoints, &["a"]);
    assert_eq!(
        rig.machine.next_deadline(),
        None,
        "not while there is no stream"
    );
    rig.machine.stream_opened();
    assert_eq!(rig.machine.next_deadline(), None, "not before it is sent");
    rig.requests();
    assert_eq!(
        rig.machine.next_deadline(),
        Some(rig.now + DOES_NOT_EXIST_AFTER)
    );
    let early = rig.now + DOES_NOT_EXIST_AFTER - Duration::from_millis(1);
    assert!(rig.machine.expire(early).is_empty());
    let late = rig.now + DOES_NOT_EXIST_AFTER;
    assert_eq!(
        rig.machine.expire(late),
        [(Kind::Endpoints, "a".to_owned())]
    );
    assert!(rig.machine.expire(late).is_empty(), "once per stream");
    assert_eq!(rig.machine.next_deadline(), None);
}

#[test]
fn an_answer_of_any_kind_stops_the_timer_for_good() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Cluster, &["good", "bad", "error", "missing"]);
    rig.requests();
    let named = |name: &str| ResourceError {
        resource_name: Some(ResourceName {
            name: name.into(),
            ..ResourceName::default()
        }),
        error_detail: Some(Status {
            code: 5,
            message: "no such thing".into(),
            details: vec![],
        }),
    };
    let update = rig.machine.receive(
        DiscoveryResponse {
            type_url: Kind::Cluster.type_url().into(),
            resources: vec![cluster("good"), bad_cluster("bad")],
            resource_errors: vec![named("error"), named("not asked for")],
            ..DiscoveryResponse::default()
        },
        &DecodeContext::default(),
    );
    let errors = update.unwrap().errors;
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].1.reason.contains("no such thing (code 5)"),
        "{errors:?}"
    );
    let late = rig.now + DOES_NOT_EXIST_AFTER;
    assert_eq!(
        rig.machine.expire(late),
        [(Kind::Cluster, "missing".to_owned())]
    );
    rig.reconnect();
    rig.requests();
    assert_eq!(
        rig.machine.expire(late),
        [(Kind::Cluster, "missing".to_owned())]
    );
}

#[test]
fn the_timer_starts_over_on_the_next_stream() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    rig.now += Duration::from_secs(10);
    rig.reconnect();
    assert_eq!(rig.machine.next_deadline(), None);
    rig.requests();
    assert_eq!(
        rig.machine.next_deadline(),
        Some(rig.now + DOES_NOT_EXIST_AFTER)
    );
}

#[test]
fn a_resource_that_comes_late_is_taken() {
    let mut rig = Rig::open();
    rig.subscribe(Kind::Endpoints, &["a"]);
    rig.requests();
    rig.machine.expire(rig.now + DOES_NOT_EXIST_AFTER);
    let update = rig
        .receive(Kind::Endpoints, "1", "n", vec![endpoints("a")])
        .unwrap();
    assert_eq!(names(&update), ["a"]);
}
