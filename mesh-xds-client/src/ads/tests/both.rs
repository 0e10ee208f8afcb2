//! Rules that both variants share, each test over both (grpc-go's catalogue, gRFC A46).

use super::*;

fn each(test: impl Fn(&mut Rig)) {
    for variant in BOTH {
        test(&mut Rig::open(variant));
    }
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn node_of(request: &Request) -> bool {
    match request {
        Request::Sotw(request) => request.head.node.is_some(),
        Request::Delta(request) => request.node.is_some(),
    }
}

#[test]
fn the_node_is_sent_only_in_the_first_request_of_each_stream() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.subscribe(Kind::Endpoints, &["a"]);
        for _ in 0..2 {
            let nodes: Vec<_> = rig.requests().iter().map(node_of).collect();
            assert_eq!(nodes, [true, false]);
            rig.reconnect();
        }
    });
}

#[test]
fn ack_nack_simple() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        assert_eq!(rig.said(), [Said::Names(list(&["a"]))]);
        rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
        assert_eq!(rig.said(), [Said::Ack("n1".into())]);
        rig.serve(Kind::Cluster, "2", vec![bad_cluster("a")]);
        let said = rig.said();
        assert!(
            matches!(&said[..], [Said::Nack(nonce, text)] if nonce == "n2" && text.contains("cluster a: type")),
            "{said:?}"
        );
        rig.serve(Kind::Cluster, "3", vec![cluster("a")]);
        assert_eq!(rig.said(), [Said::Ack("n3".into())]);
    });
}

#[test]
fn nack_of_an_invalid_first_response() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        let update = rig
            .serve(Kind::Cluster, "1", vec![bad_cluster("a")])
            .unwrap();
        assert_eq!(update.rejected.len(), 1);
        match rig.request() {
            Request::Sotw(request) => assert_eq!(request.head.version_info, ""),
            Request::Delta(request) => assert_eq!(request.response_nonce, "n1"),
        }
    });
}

#[test]
fn good_resources_apply_while_bad_ones_are_all_named_in_one_refusal() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a", "b", "c"]);
        rig.said();
        let resources = vec![cluster("a"), bad_cluster("b"), bad_cluster("c")];
        let update = rig.serve(Kind::Cluster, "1", resources).unwrap();
        assert_eq!(names(&update), ["a"]);
        let rejected: Vec<_> = update.rejected.iter().map(|(name, _)| &**name).collect();
        assert_eq!(rejected, ["b", "c"]);
        let text = update.nack.unwrap();
        for expected in ["2 of 3 resources", "cluster b: type:", "cluster c: type:"] {
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(rig.said(), [Said::Nack("n1".into(), text)]);
    });
}

#[test]
fn a_refused_resource_never_becomes_one_that_does_not_exist() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        rig.serve(Kind::Cluster, "1", vec![bad_cluster("a")]);
        rig.said();
        rig.now += std::time::Duration::from_secs(60);
        assert!(rig.missing().is_empty(), "its timer is cancelled");
        rig.reconnect();
        rig.said();
        rig.now += std::time::Duration::from_secs(60);
        assert!(rig.missing().is_empty(), "and not started again");
        let update = rig.serve(Kind::Cluster, "2", vec![]).unwrap();
        assert!(update.removed.is_empty(), "nor is absence a deletion");
    });
}

#[test]
fn a_name_twice_in_one_response_is_refused() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a", "b"]);
        rig.said();
        let twice = vec![cluster("a"), cluster("b"), cluster("a")];
        let update = rig.serve(Kind::Cluster, "1", twice).unwrap();
        assert_eq!(names(&update), ["b"]);
        assert!(
            update
                .nack
                .unwrap()
                .contains("cluster a: is in the response twice")
        );
    });
}

#[test]
fn responses_of_unknown_types_and_of_types_not_asked_for_are_not_answered() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        let early = rig.serve(Kind::Cluster, "1", vec![]);
        assert_eq!(early, None, "nothing has been sent yet");
        rig.said();
        let other = rig.serve(Kind::Endpoints, "1", vec![endpoints("a")]);
        assert_eq!(other, None);
        let unknown = match rig.response(Kind::Cluster, "1", vec![], &[], vec![]) {
            Response::Sotw(response) => Response::Sotw(DiscoveryResponse {
                type_url: "type.googleapis.com/x.Y".into(),
                ..response
            }),
            Response::Delta(response) => Response::Delta(DeltaDiscoveryResponse {
                type_url: "type.googleapis.com/x.Y".into(),
                ..response
            }),
        };
        assert_eq!(rig.take(unknown), None);
        assert!(rig.said().is_empty());
    });
}

#[test]
fn a_resource_of_another_type_than_its_response_is_refused() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        let update = rig.serve(Kind::Cluster, "1", vec![endpoints("a")]).unwrap();
        let text = update.nack.unwrap();
        assert!(text.contains("ClusterLoadAssignment\", expected"), "{text}");
        rig.serve(Kind::Cluster, "2", vec![cluster("a")]);
        assert_eq!(rig.said().last(), Some(&Said::Ack("n2".into())));
    });
}

#[test]
fn resources_not_asked_for_are_ignored_and_the_response_accepted() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        let resources = vec![bad_cluster("other"), cluster("a")];
        let update = rig.serve(Kind::Cluster, "1", resources).unwrap();
        assert_eq!(names(&update), ["a"]);
        assert_eq!(rig.said(), [Said::Ack("n1".into())]);
    });
}

#[test]
fn names_wanted_before_the_stream_and_after_a_restart_are_asked_for() {
    each(|rig| {
        rig.machine.stream_closed();
        rig.subscribe(Kind::Cluster, &["a"]);
        assert!(rig.said().is_empty());
        rig.machine.stream_opened();
        assert_eq!(rig.said(), [Said::Names(list(&["a"]))]);
        rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
        rig.reconnect();
        rig.said();
        assert_eq!(rig.known(Kind::Cluster), ["a"], "received ones, too");
    });
}

#[test]
fn with_no_names_of_a_type_nothing_is_sent_for_it_on_a_new_stream() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        rig.machine.unsubscribe(Kind::Cluster, "a");
        assert_eq!(rig.said(), [Said::Names(vec![])], "unsubscribed from all");
        rig.reconnect();
        assert!(rig.said().is_empty(), "it would ask for everything");
        rig.subscribe(Kind::Cluster, &["b"]);
        rig.machine.unsubscribe(Kind::Cluster, "b");
        assert!(rig.said().is_empty());
    });
}

#[test]
fn a_name_that_goes_and_comes_back_is_first_unsubscribed() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a", "b"]);
        rig.said();
        let both = vec![endpoints("a"), endpoints("b")];
        rig.serve(Kind::Endpoints, "1", both);
        rig.said();
        rig.machine.unsubscribe(Kind::Endpoints, "a");
        rig.subscribe(Kind::Endpoints, &["a"]);
        let expected = [Said::Names(list(&["b"])), Said::Names(list(&["a", "b"]))];
        assert_eq!(rig.said(), expected);
        assert!(
            rig.machine.next_deadline().is_some(),
            "it is waited for anew"
        );
    });
}

#[test]
fn what_a_response_brings_before_its_name_is_told_is_still_asked_for() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a"]);
        rig.said();
        rig.subscribe(Kind::Endpoints, &["b"]);
        rig.serve(Kind::Endpoints, "1", vec![endpoints("b")]);
        rig.said();
        assert_eq!(rig.known(Kind::Endpoints), ["a", "b"]);
    });
}

#[test]
fn a_deletion_is_told_once_and_a_resource_can_come_back() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a", "b"]);
        rig.said();
        let both = vec![cluster("a"), cluster("b")];
        rig.serve(Kind::Cluster, "1", both);
        assert_eq!(rig.remove("2", "a", vec![cluster("b")]).removed, ["a"]);
        let again = rig.serve(Kind::Cluster, "3", vec![cluster("b")]).unwrap();
        assert!(again.removed.is_empty(), "once");
        let both = vec![cluster("a"), cluster("b")];
        let back = rig.serve(Kind::Cluster, "4", both).unwrap();
        assert_eq!(names(&back), ["a", "b"]);
    });
}

#[test]
fn a_deletion_across_streams() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        rig.serve(Kind::Cluster, "1", vec![cluster("a")]);
        rig.reconnect();
        rig.said();
        assert_eq!(rig.remove("2", "a", vec![]).removed, ["a"]);
    });
}

#[test]
fn an_answer_that_was_not_sent_does_not_go_to_the_next_stream() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        rig.serve(Kind::Cluster, "1", vec![bad_cluster("a")]);
        rig.reconnect();
        assert_eq!(rig.said(), [Said::Names(list(&["a"]))]);
    });
}

#[test]
fn the_wildcard_takes_all_resources_and_ends_with_its_name() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["*", "a"]);
        assert_eq!(rig.said(), [Said::Names(list(&["*", "a"]))]);
        let both = vec![cluster("a"), cluster("b")];
        let update = rig.serve(Kind::Cluster, "1", both).unwrap();
        assert_eq!(names(&update), ["a", "b"]);
        rig.said();
        let update = rig.remove("2", "b", vec![cluster("a")]);
        assert_eq!(update.removed, ["b"]);
        rig.machine.unsubscribe(Kind::Cluster, "*");
        rig.said();
        assert_eq!(rig.known(Kind::Cluster), ["a"]);
        let both = vec![cluster("a"), cluster("b")];
        let update = rig.serve(Kind::Cluster, "3", both).unwrap();
        assert_eq!(names(&update), ["a"]);
    });
}

#[test]
fn the_wildcard_is_not_waited_for() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["*"]);
        rig.said();
        assert_eq!(rig.machine.next_deadline(), None);
    });
}

#[test]
fn an_error_in_place_of_a_resource_says_whether_it_is_about_the_resource() {
    each(|rig| {
        let all = ["missing", "forbidden", "busy"];
        rig.subscribe(Kind::Cluster, &all);
        rig.said();
        let errors = vec![
            server_error("missing", 5),
            server_error("forbidden", 7),
            server_error("busy", 14),
            server_error("not asked for", 5),
        ];
        let response = rig.response(Kind::Cluster, "1", vec![], &[], errors);
        let update = rig.take(response).unwrap();
        let flags: Vec<_> = update
            .errors
            .iter()
            .map(|error| (&*error.name, error.is_data_error))
            .collect();
        let expected = [("missing", true), ("forbidden", true), ("busy", false)];
        assert_eq!(flags, expected);
        let text = &update.errors[0].error.reason;
        assert!(text.contains("no such thing (code 5)"), "{text}");
        assert_eq!(rig.said(), [Said::Ack("n1".into())]);
    });
}

#[test]
fn the_order_of_context_parameters_means_nothing() {
    each(|rig| {
        let one = crate::resource::canonical("xdstp://x/t/c?b=2&a=1".into());
        rig.subscribe(Kind::Endpoints, &[&one]);
        rig.said();
        let other = vec![endpoints("xdstp://x/t/c?b=2&a=1")];
        let update = rig.serve(Kind::Endpoints, "1", other).unwrap();
        assert_eq!(names(&update), [one]);
    });
}

#[test]
fn a_resource_with_a_time_to_live_expires_by_itself() {
    each(|rig| {
        rig.subscribe(Kind::Endpoints, &["a", "b"]);
        rig.said();
        let resources = vec![living("a", Some(10), Some(endpoints("a"))), endpoints("b")];
        rig.serve(Kind::Endpoints, "1", resources);
        let deadline = rig.machine.next_deadline().unwrap();
        assert_eq!(deadline, rig.now + std::time::Duration::from_secs(10));
        rig.reconnect();
        let expired = rig.machine.expire(deadline);
        assert_eq!(expired.ended, [(Kind::Endpoints, "a".to_owned())]);
        assert_eq!(rig.machine.next_deadline(), None);
    });
}

#[test]
fn a_heartbeat_prolongs_a_life_and_is_no_update() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a", "b"]);
        rig.said();
        let alive = living("a", Some(10), Some(cluster("a")));
        rig.serve(Kind::Cluster, "1", vec![alive, cluster("b")]);
        rig.said();
        rig.now += std::time::Duration::from_secs(9);
        let update = rig
            .serve(Kind::Cluster, "1", vec![living("a", Some(10), None)])
            .unwrap();
        assert!(update.accepted.is_empty() && update.removed.is_empty());
        assert_eq!(update.nack, None);
        let deadline = rig.now + std::time::Duration::from_secs(10);
        assert_eq!(rig.machine.next_deadline(), Some(deadline));
        rig.serve(Kind::Cluster, "1", vec![living("a", None, None)]);
        assert_eq!(rig.machine.next_deadline(), None, "without one it lives on");
        rig.serve(
            Kind::Cluster,
            "1",
            vec![living("never seen", Some(1), None)],
        );
        assert_eq!(rig.machine.next_deadline(), None);
    });
}

#[test]
fn a_negative_time_to_live_is_refused() {
    each(|rig| {
        rig.subscribe(Kind::Cluster, &["a"]);
        rig.said();
        let bad = living("a", Some(-1), Some(cluster("a")));
        let update = rig.serve(Kind::Cluster, "1", vec![bad]).unwrap();
        assert!(
            update
                .nack
                .unwrap()
                .contains("cluster a: its ttl is negative")
        );
    });
}

/// Whatever the order of events, what the server was last told is what is wanted, and no response
/// of a stream is left without an answer.
#[test]
fn any_order_of_events_ends_with_the_server_knowing_what_is_wanted() {
    use mesh_core::rng::{Rng as _, SplitMix64};
    for seed in 0..600 {
        let mut rng = SplitMix64::new(seed);
        let mut rig = Rig::open(BOTH[seed as usize % 2]);
        let mut wanted = std::collections::BTreeSet::new();
        for _ in 0..60 {
            let name = ["a", "b", "c"][rng.below(3) as usize];
            match rng.below(6) {
                0 | 1 => {
                    wanted.insert(name);
                    rig.subscribe(Kind::Endpoints, &[name]);
                }
                2 => {
                    wanted.remove(name);
                    rig.machine.unsubscribe(Kind::Endpoints, name);
                }
                3 => _ = rig.serve(Kind::Endpoints, "v", vec![endpoints(name)]),
                4 => {
                    if let Some(request) = rig.machine.poll_request(rig.now) {
                        rig.hear(&request);
                    }
                }
                _ if rng.below(4) == 0 => rig.reconnect(),
                _ => {}
            }
        }
        rig.said();
        let known = rig.known(Kind::Endpoints);
        assert!(
            known.iter().eq(wanted.iter()),
            "seed {seed}: {known:?} is not {wanted:?}"
        );
        assert!(!rig.machine.has_request());
    }
}
