//! Aggregates and hosts (gRFC A37, A75): xdsdepmgr's catalogue.

use super::*;
use crate::resource::{DnsHost, DnsLookup, DnsSource};

fn aggregate(name: &str, children: &[&str]) -> Config {
    let children = children.iter().map(|name| (*name).into()).collect();
    spec(name, ClusterSource::Aggregate(children))
}

fn host(name: &str, host: &str) -> Config {
    let name_of_host = host.to_owned();
    let hosts = vec![DnsHost {
        name: name_of_host,
        port: 80,
    }];
    let lookup = DnsLookup::default();
    spec(name, ClusterSource::Dns(DnsSource { hosts, lookup }))
}

fn query(name: &str) -> HostQuery {
    HostQuery {
        name: name.to_owned(),
        lookup: DnsLookup::default(),
    }
}

impl Rig {
    /// Listener and routes to `x`, which is an aggregate of `children`.
    fn serve_aggregate(&mut self, children: &[&str]) {
        self.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
        self.accept(Kind::Route, vec![("r", routes(&["x"]))]);
        self.accept(Kind::Cluster, vec![("x", aggregate("x", children))]);
    }

    fn answer(&mut self, host: &str, answer: Result<&[u8], &str>) {
        let answer = answer
            .map(|last| last.iter().map(|n| [10, 0, 0, *n].into()).collect())
            .map_err(str::to_owned);
        self.graph.resolved(&query(host), answer);
        self.turn();
    }
}

fn addresses(cluster: &ClusterSnapshot) -> Vec<String> {
    let endpoints = cluster.endpoints.iter();
    endpoints.map(|e| e.address.to_string()).collect()
}

#[test]
fn an_aggregate_is_complete_when_its_members_are() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve_aggregate(&["a", "b"]);
    assert_eq!(rig.wants(Kind::Cluster), ["a", "b", "x"]);
    rig.accept(Kind::Cluster, vec![("a", cluster("a", "a"))]);
    rig.accept(Kind::Endpoints, vec![("a", endpoints("a", 1))]);
    assert!(is_pending(&reader), "b is not known");
    rig.accept(Kind::Cluster, vec![("b", cluster("b", "b"))]);
    rig.accept(Kind::Endpoints, vec![("b", endpoints("b", 2))]);
    let published = published(&reader);
    assert_eq!(published[0].name.as_str(), "x");
    assert_eq!(ports(&published[0])[0], 1, "the first one first");
    rig.accept(Kind::Endpoints, vec![("a", endpoints("a", 5))]);
    assert_eq!(ports(&self::published(&reader)[0])[0], 5);
}

#[test]
fn members_of_an_aggregate_are_behind_each_other() {
    let mut rig = Rig::new();
    let (_, _reader) = rig.watch("a");
    rig.serve_aggregate(&["a", "b"]);
    for (name, port) in [("a", 1), ("b", 2)] {
        rig.accept(Kind::Cluster, vec![(name, cluster(name, name))]);
        rig.accept(Kind::Endpoints, vec![(name, endpoints(name, port))]);
    }
    let tree = rig.graph.clusters.tree(&"x".into()).unwrap();
    let localities = &tree.endpoints.as_ref().unwrap().localities;
    let priorities: Vec<_> = localities.iter().map(|l| l.priority).collect();
    assert_eq!(priorities, [0, 1]);
}

#[test]
fn a_member_without_a_value_is_left_out_and_without_any_the_aggregate_fails() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve_aggregate(&["a", "b"]);
    rig.reject(Kind::Cluster, "a");
    rig.accept(Kind::Cluster, vec![("b", cluster("b", "b"))]);
    rig.accept(Kind::Endpoints, vec![("b", endpoints("b", 2))]);
    assert_eq!(ports(&published(&reader)[0]), [2]);

    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve_aggregate(&["a"]);
    rig.reject(Kind::Cluster, "a");
    let error = published(&reader)[0]
        .config
        .clone()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("none of its clusters can be used: cluster a"),
        "{error}"
    );
}

#[test]
fn an_aggregate_in_a_circle_fails_alone_and_goes_with_its_watch() {
    for children in [["x", "x"], ["y", "y"]] {
        let mut rig = Rig::new();
        let (id, reader) = rig.watch("a");
        rig.serve_aggregate(&children[..1]);
        rig.accept(Kind::Cluster, vec![("y", aggregate("y", &["x"]))]);
        let error = published(&reader)[0]
            .config
            .clone()
            .unwrap_err()
            .to_string();
        assert!(error.contains("contains itself"), "{error}");
        rig.remove(id);
        assert!(rig.wanted.is_empty(), "{:?}", rig.wanted);
    }
}

#[test]
fn a_circle_that_is_opened_is_usable() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve_aggregate(&["y"]);
    rig.accept(Kind::Cluster, vec![("y", aggregate("y", &["x"]))]);
    rig.accept(Kind::Cluster, vec![("y", cluster("y", "y"))]);
    rig.accept(Kind::Endpoints, vec![("y", endpoints("y", 3))]);
    assert_eq!(ports(&published(&reader)[0]), [3]);
}

#[test]
fn aggregates_nest_to_the_bound_and_not_beyond() {
    for (depth, is_good) in [(15, true), (16, false), (5000, false)] {
        let mut rig = Rig::new();
        let (_, reader) = rig.watch("a");
        rig.serve_aggregate(&["n1"]);
        for i in 1..depth {
            let (name, child) = (format!("n{i}"), format!("n{}", i + 1));
            rig.accept(Kind::Cluster, vec![(&name, aggregate(&name, &[&child]))]);
        }
        let leaf = format!("n{depth}");
        rig.accept(Kind::Cluster, vec![(&leaf, cluster(&leaf, "e"))]);
        rig.accept(Kind::Endpoints, vec![("e", endpoints("e", 1))]);
        let config = &published(&reader)[0].config;
        assert_eq!(config.is_ok(), is_good, "{depth}: {config:?}");
    }
}

#[test]
fn members_that_leave_an_aggregate_are_unsubscribed() {
    let mut rig = Rig::new();
    let (id, reader) = rig.watch("a");
    rig.serve_aggregate(&["a", "b"]);
    for (name, port) in [("a", 1), ("b", 2)] {
        rig.accept(Kind::Cluster, vec![(name, cluster(name, name))]);
        rig.accept(Kind::Endpoints, vec![(name, endpoints(name, port))]);
    }
    rig.accept(Kind::Cluster, vec![("x", aggregate("x", &["b"]))]);
    assert_eq!(rig.wants(Kind::Cluster), ["b", "x"]);
    assert_eq!(rig.wants(Kind::Endpoints), ["b"]);
    assert_eq!(ports(&published(&reader)[0]), [2]);
    rig.remove(id);
    assert!(rig.wanted.is_empty());
}

#[test]
fn members_that_differ_in_security_are_not_mixed() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve_aggregate(&["a", "b"]);
    for (name, port) in [("a", 1), ("b", 2)] {
        rig.accept(Kind::Cluster, vec![(name, cluster(name, name))]);
        rig.accept(Kind::Endpoints, vec![(name, endpoints(name, port))]);
    }
    let Config::Cluster(plain) = cluster("b", "b") else {
        panic!("it is a cluster")
    };
    let other = Cluster {
        http_version: HttpVersion::Http1,
        ..Cluster::clone(&plain.config)
    };
    let other = Config::Cluster(Arc::new(ClusterSpec {
        config: Arc::new(other),
        source: plain.source.clone(),
        load_reports: None,
    }));
    rig.accept(Kind::Cluster, vec![("b", other)]);
    let error = published(&reader)[0]
        .config
        .clone()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a and b differ in TLS or HTTP version"),
        "{error}"
    );
}

#[test]
fn hosts_are_looked_up_followed_and_kept_on_failure() {
    let mut rig = Rig::new();
    let (id, reader) = rig.watch("a");
    rig.accept(Kind::Listener, vec![("l", rds_listener("r"))]);
    rig.accept(Kind::Route, vec![("r", routes(&["x"]))]);
    rig.accept(Kind::Cluster, vec![("x", host("x", "db.example"))]);
    let wanted = rig.graph.take_host_changes();
    assert_eq!(wanted, [(query("db.example"), true)]);
    assert!(is_pending(&reader));
    rig.answer("db.example", Ok(&[2, 1]));
    let first = published(&reader);
    assert_eq!(addresses(&first[0]), ["10.0.0.1:80", "10.0.0.2:80"]);
    rig.answer("db.example", Ok(&[1, 2]));
    assert!(
        Arc::ptr_eq(&first[0], &published(&reader)[0]),
        "another order"
    );
    rig.answer("db.example", Err("SERVFAIL"));
    assert!(Arc::ptr_eq(&first[0], &published(&reader)[0]), "it stays");
    rig.answer("db.example", Ok(&[3]));
    assert_eq!(addresses(&published(&reader)[0]), ["10.0.0.3:80"]);
    rig.remove(id);
    let unwanted = rig.graph.take_host_changes();
    assert_eq!(unwanted, [(query("db.example"), false)]);
}

#[test]
fn a_host_that_never_resolved_fails_its_cluster_alone_and_says_so() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve(&["y"]);
    rig.accept(Kind::Route, vec![("r", routes(&["x", "y"]))]);
    rig.accept(Kind::Cluster, vec![("x", host("x", "nowhere"))]);
    rig.answer("nowhere", Err("NXDOMAIN"));
    let clusters = published(&reader);
    let note = clusters[0].resolution_note.clone().unwrap().to_string();
    assert!(
        note.contains("host \"nowhere\" cannot be resolved: NXDOMAIN"),
        "{note}"
    );
    assert_eq!(ports(&clusters[1]), [1]);
}

#[test]
fn a_cluster_that_moves_to_hosts_keeps_its_endpoints_until_they_are_known() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve(&["x"]);
    rig.accept(Kind::Cluster, vec![("x", host("x", "db"))]);
    assert_eq!(ports(&published(&reader)[0]), [1]);
    rig.answer("db", Ok(&[9]));
    assert_eq!(addresses(&published(&reader)[0]), ["10.0.0.9:80"]);
    assert!(rig.wants(Kind::Endpoints).is_empty());
}

#[test]
fn an_aggregate_of_eds_and_hosts_falls_back_to_the_hosts() {
    let mut rig = Rig::new();
    let (_, reader) = rig.watch("a");
    rig.serve_aggregate(&["a", "b"]);
    rig.accept(Kind::Cluster, vec![("a", cluster("a", "a"))]);
    rig.accept(Kind::Cluster, vec![("b", host("b", "db"))]);
    rig.expire(Kind::Endpoints, "a");
    rig.answer("db", Ok(&[7]));
    assert_eq!(addresses(&published(&reader)[0]), ["10.0.0.7:80"]);
}

/// An assignment with one locality for each of `localities`: priority, weight, and the endpoint's
/// port, weight and health.
fn assignment(name: &str, localities: &[(u32, u32, u16, u32, HealthStatus)]) -> Config {
    let Config::Endpoints(template) = endpoints(name, 1) else {
        unreachable!("they are endpoints")
    };
    let mut assignment = ClusterEndpoints::clone(&template);
    let one = assignment.localities.remove(0);
    for (priority, weight, port, endpoint_weight, health) in localities {
        let mut locality = one.clone();
        (locality.priority, locality.weight) = (*priority, *weight);
        locality.locality.zone = port.to_string();
        let endpoint = &mut locality.endpoints[0];
        endpoint.address.set_port(*port);
        (endpoint.weight, endpoint.health) = (*endpoint_weight, *health);
        assignment.localities.push(locality);
    }
    Config::Endpoints(assignment.into())
}

#[test]
fn priorities_weights_and_health_reach_the_compiler_member_after_member() {
    use HealthStatus::{Degraded, Draining, Healthy, Unhealthy};
    let mut rig = Rig::new();
    let (_, _reader) = rig.watch("a");
    rig.serve_aggregate(&["a", "b"]);
    for name in ["a", "b"] {
        rig.accept(Kind::Cluster, vec![(name, cluster(name, name))]);
    }
    let of_a = [
        (0, 3, 1, 5, Unhealthy),
        (0, 4, 2, 6, Healthy),
        (1, 1, 3, 7, Draining),
    ];
    let of_b = [(0, 9, 4, 8, Degraded), (1, 2, 5, 9, Healthy)];
    rig.accept(Kind::Endpoints, vec![("a", assignment("a", &of_a))]);
    rig.accept(Kind::Endpoints, vec![("b", assignment("b", &of_b))]);
    let seen = |name: &str| -> Vec<_> {
        let tree = rig.graph.clusters.tree(&name.into()).unwrap();
        let localities = &tree.endpoints.as_ref().unwrap().localities;
        let flat = |l: &LocalityEndpoints| {
            let e = &l.endpoints[0];
            (l.priority, l.weight, e.address.port(), e.weight, e.health)
        };
        localities.iter().map(flat).collect()
    };
    assert_eq!(seen("a"), of_a);
    let behind = of_b
        .map(|(priority, weight, port, share, health)| (priority + 2, weight, port, share, health));
    assert_eq!(seen("x"), [&of_a[..], &behind].concat());
}
