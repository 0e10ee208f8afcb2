//! What watchers and calls learn of failures (gRFC A54, A88).

use super::*;

fn strict() -> Rig {
    let mut rig = Rig::new();
    rig.source.policy.fail_on_data_errors = true;
    rig
}

#[test]
fn with_fail_on_data_errors_a_deleted_or_refused_listener_or_route_fails_calls_until_it_is_back() {
    for (kind, name) in [(Kind::Listener, "l"), (Kind::Route, "r")] {
        for is_deleted in [true, false] {
            let mut rig = strict();
            let (_, reader) = rig.watch("a");
            rig.serve(&["x"]);
            published(&reader);
            match is_deleted {
                true => rig.remove_resource(kind, name),
                false => rig.reject(kind, name),
            }
            assert!(failure(&reader).starts_with(&format!("{} {name}: ", kind.noun())));
            let (_, late) = rig.watch("a");
            failure(&late);
            rig.serve(&["x"]);
            assert_eq!(ports(&published(&reader)[0]), [1]);
            assert_eq!(ports(&published(&late)[0]), [1]);
        }
    }
}

#[test]
fn with_fail_on_data_errors_a_deleted_cluster_fails_alone() {
    let mut rig = strict();
    let (_, reader) = rig.watch("a");
    rig.serve(&["x", "y"]);
    rig.remove_resource(Kind::Cluster, "x");
    let clusters = published(&reader);
    assert!(clusters[0].config.is_err(), "calls to it fail");
    assert_eq!(ports(&clusters[1]), [1], "the other one serves");
}

#[test]
fn with_fail_on_data_errors_an_inbound_listener_and_a_trust_bundle_end() {
    let mut rig = strict();
    let (tx, inbound) = watch::channel(InboundState::Pending);
    let listener = "in".into();
    rig.add(Watcher::Inbound { listener, tx });
    let (tx, bundle) = watch::channel(None);
    let name = "ROOTCA".into();
    rig.add(Watcher::TrustBundle { name, tx });
    rig.accept(Kind::Listener, vec![("in", inbound_listener("in"))]);
    let value = Config::Secret(Arc::new(Secret::TrustBundle(TrustBundle {
        name: "ROOTCA".into(),
        roots: vec![],
    })));
    rig.accept(Kind::Secret, vec![("ROOTCA", value)]);
    rig.remove_resource(Kind::Listener, "in");
    rig.remove_resource(Kind::Secret, "ROOTCA");
    assert!(matches!(&*inbound.borrow(), InboundState::Failed(_)));
    assert!(bundle.borrow().is_none(), "without roots nobody is trusted");
}

#[test]
fn a_life_that_is_over_ends_what_was_published() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve(&["x"]);
    let expired = Expired {
        missing: vec![],
        ended: vec![(Kind::Listener, "l".into())],
    };
    let now = SystemTime::UNIX_EPOCH;
    rig.graph.expire(expired, &rig.source, now);
    assert!(failure(&reader).contains("its time to live is over"));
}

#[test]
fn an_identical_error_is_not_repeated_to_watchers_and_a_different_one_is_told() {
    let mut rig = Rig::new();
    let (_, mut reader) = rig.watch("a");
    rig.reject(Kind::Listener, "l");
    reader.load_and_mark();
    rig.reject(Kind::Listener, "l");
    let is_told = |reader: &mut SnapshotReader| {
        use futures_util::FutureExt as _;
        reader.changed().now_or_never().is_some()
    };
    assert!(!is_told(&mut reader));
    rig.remove_resource(Kind::Listener, "l");
    assert!(is_told(&mut reader));
}

#[test]
fn an_error_names_the_resource_the_node_the_server_the_last_nack_and_what_to_do() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.update(Update {
        nack: Some("1 of 1 resources refused: cluster q: lb_policy: no".into()),
        ..empty(Kind::Cluster)
    });
    rig.expire(Kind::Listener, "l");
    assert_eq!(
        failure(&reader),
        "listener l: does not exist: the control plane did not send it within 15 s (node \"me\", \
         control plane cp:1; last NACK: 1 of 1 resources refused: cluster q: lb_policy: no); check \
         that the control plane has it and shows it to this node"
    );
}

#[test]
fn a_long_nack_is_cut_in_the_error_of_a_call() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.update(Update {
        nack: Some("ä".repeat(10_000)),
        ..empty(Kind::Cluster)
    });
    rig.expire(Kind::Listener, "l");
    assert!(failure(&reader).len() < 1000);
}

#[test]
fn a_slow_server_is_not_taken_for_a_missing_resource() {
    let mut rig = Rig::new();
    rig.source.policy.resource_timer_is_transient = true;
    let (_, reader) = rig.watch("a");
    rig.expire(Kind::Listener, "l");
    let text = failure(&reader);
    assert!(text.contains("did not send it within 30 s"), "{text}");
    assert!(!text.contains("does not exist"), "{text}");
}

#[test]
fn an_outage_of_one_authority_fails_only_what_waits_for_it() {
    let mut rig = Rig::new();
    let (_, old) = rig.watch("a");
    let (writer, named) = pair();
    rig.add(Watcher::Client {
        listener: "xdstp://x/envoy.config.listener.v3.Listener/l".into(),
        authority: "a".into(),
        writer,
    });
    rig.graph.disconnected(Some("x"), "cp:2", "refused");
    assert!(is_pending(&old));
    let text = failure(&named);
    assert!(text.contains("control plane cp:2"), "{text}");
}

#[test]
fn an_outage_hits_what_waits_for_a_later_resource_of_the_authority() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    let route = "xdstp://x/envoy.config.route.v3.RouteConfiguration/r";
    rig.accept(Kind::Listener, vec![("l", rds_listener(route))]);
    rig.graph.disconnected(Some("y"), "cp:3", "refused");
    assert!(is_pending(&reader));
    rig.graph.disconnected(Some("x"), "cp:2", "refused");
    assert!(failure(&reader).contains("control plane cp:2"));
}

#[test]
fn a_name_of_an_unknown_authority_fails_at_once() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    let reason = "its authority is not among authorities of the bootstrap";
    let now = SystemTime::UNIX_EPOCH;
    rig.graph.refuse_name(Kind::Listener, "l", reason, now);
    assert!(failure(&reader).contains(reason));
}

#[test]
fn an_equal_update_publishes_nothing() {
    let mut rig = Rig::new();
    let (_, mut reader) = rig.watch("a");
    rig.serve(&["x"]);
    let before = published(&reader);
    reader.load_and_mark();
    rig.serve(&["x"]);
    use futures_util::FutureExt as _;
    assert!(reader.changed().now_or_never().is_none());
    let after = published(&reader);
    assert!(Arc::ptr_eq(&before[0], &after[0]));
}
