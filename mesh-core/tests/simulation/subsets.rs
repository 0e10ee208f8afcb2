//! Subsets by metadata, hosts on a ring, and bounded loads, as clusters declare them.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::{
    ClusterName,
    balance::{ClusterEndpoint, PickContext, PickResult},
    config::{
        Cluster, ConsistentHashing, LbMetadata, LbPolicy, RingHash, SubsetFallback, SubsetSelector,
        Subsets,
    },
    rng::SplitMix64,
    snapshot::{ClusterSnapshot, Compiler},
    stats::Connectivity,
    testing,
};

const FIELDS: [&[(&str, &str)]; 4] = [
    &[("version", "v1"), ("stage", "prod")],
    &[("version", "v1"), ("stage", "canary")],
    &[("version", "v2"), ("stage", "prod")],
    &[],
];

fn metadata(fields: &[(&str, &str)]) -> LbMetadata {
    let fields = fields.iter();
    fields
        .map(|(key, value)| ((*key).to_owned(), (*value).into()))
        .collect()
}

/// Four endpoints with [`FIELDS`] and the host names `h0` to `h3`, all ready.
fn cluster(change: impl Fn(&mut Cluster)) -> Arc<ClusterSnapshot> {
    let addresses: Vec<_> = (1..=4)
        .map(|i| SocketAddr::from(([10, 0, 0, i], 80)))
        .collect();
    let builder = testing::tree("l").cluster_with("c", &addresses, change);
    let mut tree = builder.route("/", "c").build();
    let held = tree.clusters.get_mut(&ClusterName::from("c")).unwrap();
    let mut assignment = (**held.endpoints.as_ref().unwrap()).clone();
    for (index, endpoint) in assignment.localities[0].endpoints.iter_mut().enumerate() {
        let details = endpoint.details_mut();
        details.metadata = metadata(FIELDS[index]);
        details.hostname = format!("h{index}");
    }
    held.endpoints = Ok(Arc::new(assignment));
    let snapshot = Compiler::new(1).compile(&tree).unwrap();
    let snapshot = Arc::clone(snapshot.clusters[0].current.borrow().get());
    for endpoint in &snapshot.endpoints {
        set(endpoint, Connectivity::Ready);
    }
    snapshot
}

fn set(endpoint: &ClusterEndpoint, state: Connectivity) {
    endpoint.stats.set_connectivity(state);
}

fn selector(keys: &[&str]) -> SubsetSelector {
    SubsetSelector {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..SubsetSelector::default()
    }
}

/// The endpoints that requests with this metadata get, in order; empty when they fail.
fn served(snapshot: &ClusterSnapshot, fields: &[(&str, &str)]) -> Vec<usize> {
    let wanted = metadata(fields);
    let mut rng = SplitMix64::new(5);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let mut context = PickContext::new(&mut rng, &[]);
        context.metadata = Some(&wanted);
        match snapshot.pick(&mut context) {
            PickResult::Endpoint(index) => _ = seen.insert(index),
            PickResult::Fail => {}
            PickResult::Queue => panic!("all are ready"),
        }
    }
    seen.into_iter().collect()
}

#[test]
fn a_request_gets_an_endpoint_of_the_subset_that_it_asks_for_and_no_other() {
    for policy in [
        LbPolicy::RoundRobin,
        LbPolicy::least_request(2),
        LbPolicy::RingHash(RingHash::default()),
    ] {
        let snapshot = cluster(|cluster| {
            cluster.lb_policy = policy.clone();
            cluster.subsets = Some(Subsets {
                selectors: vec![selector(&["version"]), selector(&["version", "stage"])],
                ..Subsets::default()
            });
        });
        assert_eq!(served(&snapshot, &[("version", "v1")]), [0, 1]);
        assert_eq!(served(&snapshot, &[("version", "v2")]), [2]);
        let both = [("stage", "canary"), ("version", "v1")];
        assert_eq!(served(&snapshot, &both), [1]);
        // Nothing has it, nothing is asked by it, nothing is asked for.
        assert_eq!(served(&snapshot, &[("version", "v3")]), [0; 0]);
        assert_eq!(served(&snapshot, &[("stage", "prod")]), [0; 0]);
        assert_eq!(served(&snapshot, &[]), [0; 0]);
        set(&snapshot.endpoints[0], Connectivity::TransientFailure);
        assert_eq!(
            served(&snapshot, &[("version", "v1")]),
            [1],
            "health counts in it"
        );
    }
}

#[test]
fn what_no_subset_matches_falls_back_as_declared() {
    let missing = [("version", "v9")];
    for (fallback, expected) in [
        (SubsetFallback::NoFallback, vec![]),
        (SubsetFallback::AnyEndpoint, vec![0, 1, 2, 3]),
        (SubsetFallback::DefaultSubset, vec![0, 2]),
    ] {
        let with = |selector: SubsetSelector, fallback| {
            cluster(|cluster| {
                cluster.subsets = Some(Subsets {
                    selectors: vec![selector.clone()],
                    fallback,
                    default_subset: metadata(&[("stage", "prod")]),
                    ..Subsets::default()
                });
            })
        };
        let snapshot = with(selector(&["version"]), fallback);
        assert_eq!(served(&snapshot, &missing), expected, "{fallback:?}");
        assert_eq!(
            served(&snapshot, &[]),
            expected,
            "{fallback:?}, nothing asked for"
        );
        // The selector's own wins.
        let own = SubsetSelector {
            fallback: Some(fallback),
            ..selector(&["version"])
        };
        let snapshot = with(own, SubsetFallback::NoFallback);
        assert_eq!(
            served(&snapshot, &missing),
            expected,
            "{fallback:?} of the selector"
        );
    }
    let snapshot = cluster(|cluster| {
        let fewer = SubsetSelector {
            fallback: Some(SubsetFallback::KeysSubset),
            fallback_keys: vec!["version".to_owned()],
            ..selector(&["version", "stage"])
        };
        cluster.subsets = Some(Subsets {
            selectors: vec![fewer, selector(&["version"])],
            ..Subsets::default()
        });
    });
    let asked = [("version", "v2"), ("stage", "canary")];
    assert_eq!(served(&snapshot, &asked), [2]);
}

#[test]
fn a_subset_that_is_down_gives_its_requests_to_any_if_it_may() {
    for (panic_mode_any, expected) in [(false, vec![]), (true, vec![0, 1, 3])] {
        let snapshot = cluster(|cluster| {
            cluster.subsets = Some(Subsets {
                selectors: vec![selector(&["version"])],
                panic_mode_any,
                ..Subsets::default()
            });
        });
        set(&snapshot.endpoints[2], Connectivity::TransientFailure);
        assert_eq!(served(&snapshot, &[("version", "v2")]), expected);
    }
}

/// Where keys go.
fn places(snapshot: &ClusterSnapshot) -> Vec<usize> {
    let mut rng = SplitMix64::new(5);
    let pick = |hash: u64| {
        let mut context = PickContext::new(&mut rng, &[]);
        context.hash = Some(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        match snapshot.pick(&mut context) {
            PickResult::Endpoint(index) => index,
            other => panic!("{other:?}"),
        }
    };
    (0..400).map(pick).collect()
}

fn hashed(policy: &LbPolicy, hashing: ConsistentHashing) -> Arc<ClusterSnapshot> {
    cluster(|cluster| {
        cluster.lb_policy = policy.clone();
        cluster.common_lb_config.consistent_hashing = hashing;
    })
}

#[test]
fn by_host_name_keys_go_elsewhere_than_by_address() {
    let ring = LbPolicy::RingHash(RingHash::default());
    for policy in [ring, LbPolicy::Maglev { table_size: 251 }] {
        let by_address = hashed(&policy, ConsistentHashing::default());
        let by_host = hashed(
            &policy,
            ConsistentHashing {
                use_hostname_for_hashing: true,
                ..ConsistentHashing::default()
            },
        );
        assert_ne!(places(&by_address), places(&by_host));
    }
}

#[test]
fn with_a_bound_no_endpoint_has_more_than_its_part_of_the_mean_and_idle_keys_stay() {
    let ring = LbPolicy::RingHash(RingHash::default());
    for policy in [ring, LbPolicy::Maglev { table_size: 251 }] {
        let free = hashed(&policy, ConsistentHashing::default());
        let bounded = hashed(
            &policy,
            ConsistentHashing {
                hash_balance_factor: Some(125),
                ..ConsistentHashing::default()
            },
        );
        // Nothing is in flight: the same places.
        assert_eq!(places(&free), places(&bounded));
        // One key, again and again: all would go to one endpoint.
        let mut rng = SplitMix64::new(5);
        let mut total = 0u32;
        for _ in 0..200 {
            let mut context = PickContext::new(&mut rng, &[]);
            context.hash = Some(42);
            let PickResult::Endpoint(index) = bounded.pick(&mut context) else {
                panic!()
            };
            bounded.endpoints[index].stats.begin();
            total += 1;
            for endpoint in &bounded.endpoints {
                let limit = (f64::from(total) * 1.25 / 4.0).ceil();
                assert!(f64::from(endpoint.stats.in_flight()) <= limit, "of {total}");
            }
        }
    }
}
