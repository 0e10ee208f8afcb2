//! Fall-back and federation, one rule each (gRFC A47, A71).

use super::*;

fn three() -> Authorities {
    let mut authorities = Authorities::default();
    authorities.add(None, vec![0, 1, 2]);
    authorities
}

fn subscribe(server: ServerId, name: &str) -> Order {
    Order::Subscribe(server, Kind::Cluster, name.into())
}

fn unsubscribe(server: ServerId, name: &str) -> Order {
    Order::Unsubscribe(server, Kind::Cluster, name.into())
}

#[test]
fn only_the_first_server_is_asked() {
    let mut authorities = three();
    let effects = authorities.subscribe(Kind::Cluster, "a").unwrap();
    assert_eq!(effects.orders, [subscribe(0, "a")]);
    assert_eq!(
        authorities.unsubscribe(Kind::Cluster, "a"),
        [unsubscribe(0, "a")]
    );
}

#[test]
fn a_failure_with_everything_known_does_not_fall_back() {
    let mut authorities = three();
    authorities.subscribe(Kind::Cluster, "a");
    assert_eq!(authorities.failed(0, |_, _| true), Effects::default());
}

#[test]
fn a_failure_with_something_unknown_asks_the_next_one_for_everything() {
    let mut authorities = three();
    authorities.subscribe(Kind::Cluster, "a");
    authorities.subscribe(Kind::Cluster, "b");
    let effects = authorities.failed(0, |_, name| name == "a");
    assert_eq!(effects.orders, [subscribe(1, "a"), subscribe(1, "b")]);
    assert!(effects.outages.is_empty(), "there is another server");
}

#[test]
fn a_new_name_while_the_first_server_is_down_falls_back() {
    let mut authorities = three();
    authorities.subscribe(Kind::Cluster, "a");
    authorities.failed(0, |_, _| true);
    let effects = authorities.subscribe(Kind::Cluster, "b").unwrap();
    let all = [subscribe(0, "b"), subscribe(1, "a"), subscribe(1, "b")];
    assert_eq!(effects.orders, all);
}

#[test]
fn an_outage_is_told_when_every_server_has_failed() {
    let mut authorities = three();
    authorities.subscribe(Kind::Cluster, "a");
    for server in [0, 1] {
        assert!(authorities.failed(server, |_, _| false).outages.is_empty());
    }
    assert_eq!(authorities.failed(2, |_, _| false).outages, [None]);
}

#[test]
fn the_first_word_of_a_better_server_ends_the_fall_back() {
    let mut authorities = three();
    authorities.subscribe(Kind::Cluster, "a");
    authorities.failed(0, |_, _| false);
    authorities.failed(1, |_, _| false);
    assert!(authorities.is_asked(2, "a"));
    let (orders, reached) = authorities.responded(1);
    assert_eq!((orders, reached), (vec![unsubscribe(2, "a")], vec![None]));
    assert!(
        !authorities.is_asked(2, "a"),
        "what it says late does not count"
    );
    assert_eq!(authorities.responded(0).0, [unsubscribe(1, "a")]);
    assert_eq!(
        authorities.responded(2),
        (vec![], vec![]),
        "it is not asked"
    );
}

#[test]
fn authorities_fall_back_apart_and_an_unknown_one_has_no_server() {
    let mut authorities = three();
    authorities.add(Some("x".into()), vec![1]);
    let name = "xdstp://x/envoy.config.cluster.v3.Cluster/c";
    let effects = authorities.subscribe(Kind::Cluster, name).unwrap();
    assert_eq!(effects.orders, [subscribe(1, name)]);
    authorities.subscribe(Kind::Cluster, "a");
    let effects = authorities.failed(1, |_, _| false);
    assert_eq!(effects.outages, [Some("x".to_owned())]);
    assert!(effects.orders.is_empty(), "the other one goes on with 0");
    let unknown = authorities.subscribe(Kind::Cluster, "xdstp://y/t/c");
    assert_eq!(unknown, None);
}

/// gRFC A95: endpoints age, so that what is known of them is no reason to wait.
#[test]
fn an_authority_may_fall_back_on_reachability_only() {
    let mut authorities = three();
    authorities.fall_back_on_reachability(None);
    assert_eq!(authorities.failed(0, |_, _| true), Effects::default());
    authorities.responded(0);
    authorities.subscribe(Kind::Cluster, "a");
    let effects = authorities.failed(0, |_, _| true);
    assert_eq!(effects.orders, [subscribe(1, "a")]);
    let (orders, _) = authorities.responded(0);
    assert_eq!(orders, [unsubscribe(1, "a")], "the better one is back");
}
