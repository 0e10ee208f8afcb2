//! Secrets that clusters and servers' listeners name.

use mesh_core::{
    config::{ChainMatch, FilterChain, PathNormalization, TransportMatch},
    secrets::{self, SecretReader},
};

use super::{inbound::watch as watch_inbound, *};

fn rig() -> (Rig, SecretReader) {
    let (writer, reader) = secrets::pair();
    let mut rig = Rig::new();
    rig.graph = rig.graph.with_secrets(writer);
    (rig, reader)
}

/// A cluster whose TLS trusts these secrets, each for some endpoints.
fn trusting(name: &str, endpoints: &str, roots: &[&str]) -> Config {
    let mut config = Cluster::new(name);
    let socket = |roots: &&str| SocketMatch {
        name: (*roots).to_owned(),
        labels: LbMetadata::new(),
        tls: Some(UpstreamTls::new(TrustSource::Sds((*roots).into()))),
    };
    config.socket_matches = roots.iter().map(socket).collect();
    Config::Cluster(Arc::new(ClusterSpec {
        config: Arc::new(config),
        source: ClusterSource::Eds(endpoints.into()),
        load_reports: None,
    }))
}

/// Roots that are told apart by a byte.
fn bundle(name: &str, byte: u8) -> Config {
    Config::Secret(Arc::new(Secret::TrustBundle(TrustBundle {
        name: name.into(),
        roots: vec![vec![byte].into()],
    })))
}

fn held(secrets: &SecretReader, name: &str) -> Option<Result<u8, String>> {
    let state = secrets.get(&name.into())?;
    Some(match state {
        Ok(secret) => match &*secret {
            Secret::TrustBundle(bundle) => Ok(bundle.roots[0][0]),
            Secret::Certificate { .. } => panic!("a certificate"),
        },
        Err(error) => Err(error.to_string()),
    })
}

/// Everything of a client's listener but the cluster `c`.
fn routed(rig: &mut Rig) -> SnapshotReader {
    let (_, reader) = rig.watch("a");
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    rig.accept(Kind::Route, vec![("r", routes(&["c"]))]);
    reader
}

#[test]
fn a_cluster_is_complete_with_every_secret_that_it_names() {
    let (mut rig, secrets) = rig();
    let reader = routed(&mut rig);
    let cluster = trusting("c", "e", &["one", "two", "ROOTCA"]);
    rig.accept(Kind::Cluster, vec![("c", cluster)]);
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
    assert_eq!(
        rig.wants(Kind::Secret),
        ["one", "two"],
        "ROOTCA is the process's own"
    );
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);
    assert!(is_pending(&reader), "TLS would fail");
    rig.accept(Kind::Secret, vec![("two", bundle("two", 2))]);
    assert_eq!(ports(&published(&reader)[0]), [1]);
    assert_eq!(held(&secrets, "one"), Some(Ok(1)));
    assert_eq!(held(&secrets, "two"), Some(Ok(2)));
}

/// Whoever reads the published cluster may make a connection at once.
#[test]
fn all_secrets_of_a_response_are_held_before_a_cluster_is_complete_with_one_of_them() {
    let (mut rig, secrets) = rig();
    let reader = routed(&mut rig);
    rig.accept(
        Kind::Cluster,
        vec![("c", trusting("c", "e", &["one", "two"]))],
    );
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
    let seen = std::thread::spawn(move || {
        while is_pending(&reader) {
            std::thread::yield_now();
        }
        ["one", "two"].map(|name| held(&secrets, name))
    });
    rig.accept(
        Kind::Secret,
        vec![("one", bundle("one", 1)), ("two", bundle("two", 2))],
    );
    assert_eq!(seen.join().unwrap(), [Some(Ok(1)), Some(Ok(2))]);
}

#[test]
fn a_rotation_is_seen_by_tls_and_changes_no_cluster() {
    let (mut rig, secrets) = rig();
    let reader = routed(&mut rig);
    rig.accept(Kind::Cluster, vec![("c", trusting("c", "e", &["one"]))]);
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);
    let before = published(&reader);
    rig.accept(Kind::Secret, vec![("one", bundle("one", 2))]);
    assert_eq!(held(&secrets, "one"), Some(Ok(2)));
    assert!(Arc::ptr_eq(&before[0], &published(&reader)[0]));
    // What is refused, deleted or lost takes nothing away (gRFC A88).
    rig.reject(Kind::Secret, "one");
    rig.remove_resource(Kind::Secret, "one");
    assert_eq!(held(&secrets, "one"), Some(Ok(2)));
    assert!(Arc::ptr_eq(&before[0], &published(&reader)[0]));
}

#[test]
fn a_cluster_that_moves_to_another_secret_keeps_the_old_one_until_it_is_there() {
    let (mut rig, secrets) = rig();
    let reader = routed(&mut rig);
    rig.accept(Kind::Cluster, vec![("c", trusting("c", "e", &["one"]))]);
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);

    rig.accept(Kind::Cluster, vec![("c", trusting("c", "e", &["two"]))]);
    let tls = |reader: &SnapshotReader| {
        let cluster = &published(reader)[0];
        cluster.config.as_ref().unwrap().socket_matches[0]
            .name
            .clone()
    };
    assert_eq!(tls(&reader), "one");
    assert_eq!(rig.wants(Kind::Secret), ["one", "two"]);
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 2))]);
    assert_eq!(
        (tls(&reader), ports(&published(&reader)[0])),
        ("one".into(), vec![2])
    );

    rig.accept(Kind::Secret, vec![("two", bundle("two", 2))]);
    assert_eq!(tls(&reader), "two");
    assert_eq!(
        rig.wants(Kind::Secret),
        ["two"],
        "nobody uses the other one"
    );
    assert_eq!(held(&secrets, "one"), None);
}

#[test]
fn endpoints_of_another_source_are_not_called_with_the_tls_of_the_old_one() {
    let (mut rig, _) = rig();
    let reader = routed(&mut rig);
    rig.serve(&["c"]);
    rig.accept(
        Kind::Cluster,
        vec![("c", trusting("c", "behind-tls", &["one"]))],
    );
    rig.accept(
        Kind::Endpoints,
        vec![("behind-tls", endpoints("behind-tls", 9))],
    );
    assert_eq!(ports(&published(&reader)[0]), [1], "it would be plaintext");
    rig.accept(
        Kind::Endpoints,
        vec![("behind-tls", endpoints("behind-tls", 10))],
    );
    assert_eq!(
        ports(&published(&reader)[0]),
        [1],
        "for as long as it takes"
    );
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);
    assert_eq!(ports(&published(&reader)[0]), [10]);
}

#[test]
fn a_secret_that_does_not_exist_fails_its_cluster_by_name_until_it_does() {
    let (mut rig, secrets) = rig();
    let reader = routed(&mut rig);
    rig.accept(Kind::Cluster, vec![("c", trusting("c", "e", &["one"]))]);
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
    rig.expire(Kind::Secret, "one");
    let cluster = &published(&reader)[0];
    assert_eq!(ports(cluster), [0; 0]);
    let error = held(&secrets, "one").unwrap().unwrap_err();
    assert!(error.contains("secret one"), "{error}");
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);
    assert_eq!(ports(&published(&reader)[0]), [1]);
}

#[test]
fn a_secret_that_the_control_plane_takes_away_closes_its_cluster() {
    let (mut rig, secrets) = rig();
    rig.source.policy.fail_on_data_errors = true;
    let reader = routed(&mut rig);
    rig.accept(Kind::Cluster, vec![("c", trusting("c", "e", &["one"]))]);
    rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);
    rig.remove_resource(Kind::Secret, "one");
    assert!(held(&secrets, "one").unwrap().is_err());
    assert_eq!(ports(&published(&reader)[0]), [0; 0]);
}

#[test]
fn secrets_go_with_the_last_that_names_them() {
    let (mut rig, secrets) = rig();
    let (id, _reader) = rig.watch("a");
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    rig.accept(Kind::Route, vec![("r", routes(&["c", "d"]))]);
    for name in ["c", "d"] {
        rig.accept(Kind::Cluster, vec![(name, trusting(name, name, &["one"]))]);
    }
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);
    rig.accept(Kind::Route, vec![("r", routes(&["d"]))]);
    assert_eq!(rig.wants(Kind::Secret), ["one"]);
    rig.remove(id);
    assert_eq!(rig.wants(Kind::Secret), [""; 0]);
    assert_eq!(held(&secrets, "one"), None);
}

fn server(secret: &str) -> Config {
    let tls = DownstreamTls {
        identity: CertificateSource::Sds(secret.into()),
        roots: None,
        require_client_certificate: false,
    };
    let chain = FilterChain {
        client_cert: Default::default(),
        limits: Default::default(),
        name: "in".into(),
        transport: TransportMatch::Any,
        matches: ChainMatch::default(),
        tls: Some(tls),
        path_normalization: PathNormalization::BASE,
        filters: Vec::new(),
        routes: RouteSource::Inline(Arc::new(RouteConfig::new("in", vec![]))),
    };
    Config::Listener(Arc::new(Listener {
        name: "in".into(),
        kind: ListenerKind::Inbound(InboundListener {
            address: None,
            filter_chains: vec![chain],
        }),
    }))
}

#[test]
fn a_server_serves_with_the_secrets_of_its_chains_and_gives_them_up_with_them() {
    let (mut rig, secrets) = rig();
    let inbound = watch_inbound(&mut rig);
    let is_served = || matches!(&*inbound.borrow(), InboundState::Ready(_));
    rig.accept(Kind::Listener, vec![("in", server("one"))]);
    assert_eq!(rig.wants(Kind::Secret), ["one"]);
    assert!(!is_served());
    rig.accept(Kind::Secret, vec![("one", bundle("one", 1))]);
    assert!(is_served());
    assert_eq!(held(&secrets, "one"), Some(Ok(1)));

    rig.accept(Kind::Listener, vec![("in", server("two"))]);
    let served = |name: &str| match &*inbound.borrow() {
        InboundState::Ready(listener) => {
            let tls = listener.filter_chains[0].tls.as_ref().expect("TLS");
            tls.identity.secret() == Some(&name.into())
        }
        _ => false,
    };
    assert!(served("one"), "until the new one is there");
    // One that never comes closes its chain, and the listener says so no longer.
    rig.expire(Kind::Secret, "two");
    assert!(served("two"));
    assert!(held(&secrets, "two").unwrap().is_err());
    assert_eq!(rig.wants(Kind::Secret), ["two"]);
    assert_eq!(held(&secrets, "one"), None);
}
