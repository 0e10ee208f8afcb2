//! When a resource counts as missing (gRFC A57), over both variants.

use std::time::Duration;

use super::*;
use crate::ads::subscription::{DOES_NOT_EXIST_AFTER, TIMED_OUT_AFTER};

fn each(test: impl Fn(&mut Rig)) {
    for variant in BOTH {
        test(&mut Rig::open(variant));
    }
}

#[test]
fn the_timer_starts_when_the_request_is_sent_on_a_stream() {
    each(|rig| {
        rig.machine.stream_closed();
        rig.subscribe(Kind::Endpoints, &["a"]);
        let deadline = rig.machine.next_deadline();
        assert_eq!(deadline, None, "not while there is no stream");
        rig.machine.stream_opened();
        assert_eq!(rig.machine.next_deadline(), None, "not before it is sent");
        rig.requests();
        let deadline = rig.now + DOES_NOT_EXIST_AFTER;
        assert_eq!(rig.machine.next_deadline(), Some(deadline));
        rig.now = deadline - Duration::from_millis(1);
        assert!(rig.missing().is_empty());
        rig.now = deadline;
        assert_eq!(rig.missing(), ["a"]);
        assert!(rig.missing().is_empty(), "once per stream");
        assert_eq!(rig.machine.next_deadline(), None);
    });
}

#[test]
fn an_answer_of_any_kind_stops_the_timer_for_good() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["good", "bad", "error", "missing"]);
        rig.requests();
        let resources = vec![cluster("good"), bad_cluster("bad")];
        let errors = vec![server_error("error", 5), server_error("other", 5)];
        let response = rig.response(Kind::Cluster, "1", resources, &[], errors);
        assert_eq!(rig.take(response).unwrap().errors.len(), 1);
        rig.now += DOES_NOT_EXIST_AFTER;
        assert_eq!(rig.missing(), ["missing"]);
        rig.reconnect();
        rig.requests();
        rig.now += DOES_NOT_EXIST_AFTER;
        assert_eq!(rig.missing(), ["missing"]);
    });
}

#[test]
fn the_timer_stops_with_the_stream_and_starts_over_on_the_next_one() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a"]);
        rig.requests();
        rig.now += Duration::from_secs(10);
        rig.reconnect();
        assert_eq!(rig.machine.next_deadline(), None);
        rig.requests();
        let deadline = rig.now + DOES_NOT_EXIST_AFTER;
        assert_eq!(rig.machine.next_deadline(), Some(deadline));
    });
}

#[test]
fn a_resource_received_on_an_earlier_stream_is_not_waited_for() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a"]);
        rig.requests();
        rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
        rig.reconnect();
        rig.requests();
        assert_eq!(rig.machine.next_deadline(), None);
    });
}

#[test]
fn a_resource_that_comes_late_is_taken() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a"]);
        rig.requests();
        rig.now += DOES_NOT_EXIST_AFTER;
        assert_eq!(rig.missing(), ["a"]);
        let update = rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
        assert_eq!(names(&update.unwrap()), ["a"]);
    });
}

#[test]
fn one_timer_per_resource_whoever_watches() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a"]);
        rig.requests();
        let deadline = rig.machine.next_deadline();
        rig.now += Duration::from_secs(5);
        rig.subscribe(Kind::Endpoints, &["a", "b"]);
        rig.requests();
        assert_eq!(rig.machine.next_deadline(), deadline, "that of a stays");
        rig.now += Duration::from_secs(10);
        assert_eq!(rig.missing(), ["a"]);
        rig.now += Duration::from_secs(5);
        assert_eq!(rig.missing(), ["b"]);
    });
}

#[test]
fn a_server_with_a_transient_timer_gets_twice_the_time() {
    for variant in BOTH {
        let mut machine = Machine::new(variant, Node::default()).with_transient_timer(true);
        machine.stream_opened();
        machine.subscribe(Kind::Cluster, "a");
        let now = Instant::now();
        machine.poll_request(now);
        assert_eq!(machine.next_deadline(), Some(now + TIMED_OUT_AFTER));
    }
}

#[test]
fn all_deadlines_move_by_the_time_in_which_nothing_was_read() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a", "b"]);
        rig.requests();
        let life = Duration::from_secs(5);
        let held = living("b", Some(5), Some(endpoints("b")));
        rig.serve(Kind::Endpoints, "1", vec![held]);
        let pause = Duration::from_secs(60);
        rig.machine.postpone(pause);
        rig.now += pause + life - Duration::from_millis(1);
        assert_eq!(rig.machine.expire(rig.now), Expired::default());
        rig.now += Duration::from_millis(1);
        let ended = vec![(Kind::Endpoints, "b".to_owned())];
        assert_eq!(rig.machine.expire(rig.now).ended, ended);
        rig.now += DOES_NOT_EXIST_AFTER - life;
        let missing = vec![(Kind::Endpoints, "a".to_owned())];
        assert_eq!(rig.machine.expire(rig.now).missing, missing);
    });
}
