//! Servers' listeners whose routes are resources of their own.

use mesh_core::config::{ChainMatch, FilterChain, PathNormalization, RouteSource, TransportMatch};

use super::*;

/// A listener with a chain for each of these route configurations.
fn listener(routes: &[&str]) -> Config {
    let chain = |name: &&str| FilterChain {
        client_cert: Default::default(),
        limits: Default::default(),
        name: (*name).to_owned(),
        transport: TransportMatch::Any,
        matches: ChainMatch::default(),
        tls: None,
        path_normalization: PathNormalization::BASE,
        filters: Vec::new(),
        routes: RouteSource::Rds((*name).into()),
    };
    Config::Listener(Arc::new(Listener {
        name: "in".into(),
        kind: ListenerKind::Inbound(InboundListener {
            address: None,
            filter_chains: routes.iter().map(chain).collect(),
        }),
    }))
}

fn named_hosts(name: &str, hosts: &[&str]) -> Config {
    let hosts = hosts.iter().map(|name| host(name, &[])).collect();
    Config::Route(Arc::new(RouteConfig::new(name, hosts)))
}

pub(super) fn watch(rig: &mut Rig) -> watch::Receiver<InboundState> {
    let (tx, inbound) = watch::channel(InboundState::Pending);
    let listener = "in".into();
    rig.add(Watcher::Inbound { listener, tx });
    inbound
}

/// The virtual hosts of each chain; `None` when nothing is served.
fn served(state: &watch::Receiver<InboundState>) -> Option<Vec<Vec<String>>> {
    let InboundState::Ready(listener) = &*state.borrow() else {
        return None;
    };
    let hosts = |chain: &FilterChain| match &chain.routes {
        RouteSource::Inline(routes) => {
            let hosts = routes.virtual_hosts.iter();
            hosts.map(|host| host.name.to_string()).collect()
        }
        RouteSource::Rds(name) => panic!("{name} is left"),
    };
    Some(listener.filter_chains.iter().map(hosts).collect())
}

#[test]
fn a_server_serves_when_all_of_its_routes_are_there_and_keeps_the_old_ones_until_then() {
    let mut rig = Rig::new();
    let inbound = watch(&mut rig);
    rig.accept(Kind::Listener, vec![("in", listener(&["one", "two"]))]);
    assert_eq!(rig.wants(Kind::Route), ["one", "two"]);
    rig.accept(Kind::Route, vec![("one", named_hosts("one", &["a"]))]);
    assert_eq!(
        served(&inbound),
        None,
        "half of it would refuse the other half"
    );
    rig.accept(Kind::Route, vec![("two", named_hosts("two", &["b"]))]);
    assert_eq!(
        served(&inbound),
        Some(vec![vec!["a".into()], vec!["b".into()]])
    );

    rig.accept(Kind::Listener, vec![("in", listener(&["three"]))]);
    assert_eq!(served(&inbound).expect("the old one").len(), 2);
    assert_eq!(
        rig.wants(Kind::Route),
        ["one", "three", "two"],
        "the old ones live on"
    );
    rig.accept(Kind::Route, vec![("three", named_hosts("three", &["c"]))]);
    assert_eq!(served(&inbound), Some(vec![vec!["c".into()]]));
    assert_eq!(rig.wants(Kind::Route), ["three"]);
}

#[test]
fn a_change_of_routes_is_a_change_of_the_server_and_a_refused_one_is_not() {
    let mut rig = Rig::new();
    let mut inbound = watch(&mut rig);
    rig.accept(Kind::Listener, vec![("in", listener(&["one"]))]);
    rig.accept(Kind::Route, vec![("one", named_hosts("one", &["a"]))]);
    rig.accept(Kind::Route, vec![("one", named_hosts("one", &["b"]))]);
    assert_eq!(served(&inbound), Some(vec![vec!["b".into()]]));
    inbound.mark_unchanged();
    rig.reject(Kind::Route, "one");
    rig.remove_resource(Kind::Route, "one");
    assert_eq!(served(&inbound), Some(vec![vec!["b".into()]]));
    assert!(!inbound.has_changed().expect("it is watched"));
}

#[test]
fn routes_that_do_not_exist_serve_nothing_and_do_not_hold_the_others_back() {
    let mut rig = Rig::new();
    let inbound = watch(&mut rig);
    rig.accept(Kind::Listener, vec![("in", listener(&["one", "two"]))]);
    rig.accept(Kind::Route, vec![("one", named_hosts("one", &["a"]))]);
    rig.expire(Kind::Route, "two");
    assert_eq!(served(&inbound), Some(vec![vec!["a".into()], vec![]]));
    rig.accept(Kind::Route, vec![("two", named_hosts("two", &["b"]))]);
    assert_eq!(
        served(&inbound),
        Some(vec![vec!["a".into()], vec!["b".into()]])
    );
}

#[test]
fn who_stops_serving_wants_no_routes() {
    let mut rig = Rig::new();
    let (tx, _inbound) = watch::channel(InboundState::Pending);
    let listener_name = "in".into();
    let id = rig.add(Watcher::Inbound {
        listener: listener_name,
        tx,
    });
    rig.accept(Kind::Listener, vec![("in", listener(&["one"]))]);
    rig.remove(id);
    assert!(rig.wanted.is_empty());
}
