//! Ring, table and subset: equal hashes stay together, and little moves.

use super::*;
use crate::balance::subset::nearest;

fn hashes() -> impl Iterator<Item = u64> {
    let mut rng = SplitMix64::new(11);
    std::iter::repeat_with(move || rng.next_u64()).take(20_000)
}

fn pick(picker: &Picker, endpoints: &[ClusterEndpoint], hash: u64) -> PickResult {
    let mut rng = SplitMix64::new(hash ^ 1);
    let mut context = PickContext::new(&mut rng, &[]);
    context.hash = Some(hash);
    picker.pick(endpoints, &mut context)
}

fn address(picker: &Picker, endpoints: &[ClusterEndpoint], hash: u64) -> SocketAddr {
    match pick(picker, endpoints, hash) {
        PickResult::Endpoint(index) => endpoints[index].address,
        other => panic!("{other:?}"),
    }
}

/// Ring and table, with how far shares may be off, in percent.
fn policies() -> [(LbPolicy, f64); 2] {
    let ring = RingHash {
        minimum_ring_size: 4096,
        ..RingHash::default()
    };
    [
        // A ring of 4096 entries: each endpoint has 200 of different sizes.
        (LbPolicy::RingHash(ring), 30.0),
        (LbPolicy::Maglev { table_size: 65_537 }, 8.0),
    ]
}

#[test]
fn shares_follow_weights() {
    for (policy, percent) in policies() {
        let mut endpoints = ready(20);
        for endpoint in &mut endpoints[10..] {
            endpoint.weight = 2;
        }
        let picker = picker(&policy, &endpoints);
        let mut counts = [0; 20];
        for hash in hashes() {
            if let PickResult::Endpoint(index) = pick(&picker, &endpoints, hash) {
                counts[index] += 1;
            }
        }
        for (count, endpoint) in counts.iter().zip(&endpoints) {
            let expected = 20_000.0 * f64::from(endpoint.weight) / 30.0;
            let off = (f64::from(*count) - expected).abs() / expected * 100.0;
            assert!(off < percent, "{policy:?}: {off:.0} % off, {counts:?}");
        }
    }
}

#[test]
fn the_order_of_endpoints_and_the_process_make_no_difference() {
    for (policy, _) in policies() {
        let endpoints = ready(20);
        let reversed: Vec<_> = endpoints.iter().rev().cloned().collect();
        let one = Picker::flat(&policy, &endpoints, 1).unwrap();
        let other = Picker::flat(&policy, &reversed, 2).unwrap();
        for hash in hashes() {
            let expected = address(&one, &endpoints, hash);
            assert_eq!(address(&other, &reversed, hash), expected);
        }
    }
}

#[test]
fn when_an_endpoint_leaves_little_but_its_own_share_moves() {
    for (policy, _) in policies() {
        let endpoints = ready(20);
        let fewer = &endpoints[..19];
        let (before, after) = (picker(&policy, &endpoints), picker(&policy, fewer));
        let mut moved = 0;
        for hash in hashes() {
            let from = address(&before, &endpoints, hash);
            let to = address(&after, fewer, hash);
            moved += u32::from(from != endpoints[19].address && from != to);
        }
        // A ring moves nothing else but where the number of entries changes with the number of
        // endpoints; a table some percent (section 5.3 of the paper).
        assert!(moved < 20_000 / 15, "{policy:?} moves {moved} of 20000");
    }
}

#[test]
fn a_failing_endpoint_is_passed_over_and_the_others_keep_theirs() {
    for (policy, _) in policies() {
        let endpoints = ready(10);
        let picker = picker(&policy, &endpoints);
        let before: Vec<_> = hashes()
            .map(|hash| address(&picker, &endpoints, hash))
            .collect();
        set(&endpoints[4], Connectivity::TransientFailure);
        let mut takers = std::collections::BTreeSet::new();
        for (hash, before) in hashes().zip(before) {
            let after = address(&picker, &endpoints, hash);
            if before == endpoints[4].address {
                takers.insert(after);
                assert_ne!(after, before);
            } else {
                assert_eq!(after, before);
            }
        }
        assert!(takers.len() >= 8, "not one neighbour takes all: {takers:?}");
    }
}

#[test]
fn on_a_ring_a_request_waits_for_its_own_endpoint_while_that_connects() {
    let endpoints = ready(3);
    let policy = LbPolicy::RingHash(RingHash::default());
    let picker = picker(&policy, &endpoints);
    let hash = 7;
    let PickResult::Endpoint(own) = pick(&picker, &endpoints, hash) else {
        panic!()
    };
    for state in [Connectivity::Connecting, Connectivity::Idle] {
        set(&endpoints[own], state);
        assert_eq!(pick(&picker, &endpoints, hash), PickResult::Queue);
        let is_wanted = endpoints[own].stats.take_wanted();
        assert_eq!(is_wanted, state == Connectivity::Idle);
        // Any request will do with any endpoint once that is being connected, and a retry does not wait.
        set(&endpoints[own], Connectivity::Connecting);
        let mut rng = SplitMix64::new(1);
        let previous = [endpoints[(own + 1) % 3].address];
        for previous in [&[][..], &previous] {
            let mut context = PickContext::new(&mut rng, previous);
            context.hash = (!previous.is_empty()).then_some(hash);
            let picked = picker.pick(&endpoints, &mut context);
            assert!(matches!(picked, PickResult::Endpoint(other) if other != own));
        }
    }
    for endpoint in &endpoints {
        set(endpoint, Connectivity::TransientFailure);
    }
    assert_eq!(pick(&picker, &endpoints, hash), PickResult::Fail);
}

#[test]
fn on_a_ring_only_what_requests_come_to_is_connected_and_the_next_one_when_that_fails() {
    let endpoints = endpoints(&[Connectivity::Idle; 5]);
    let picker = picker(&LbPolicy::RingHash(RingHash::default()), &endpoints);
    assert!((0..5).all(|index| !picker.connects(index)));
    let wanted = || {
        let is_wanted = |index: &usize| endpoints[*index].stats.take_wanted();
        (0..5).filter(is_wanted).collect::<Vec<_>>()
    };
    let hash = 7;
    let mut failed = std::collections::BTreeSet::new();
    while failed.len() < 4 {
        assert_eq!(pick(&picker, &endpoints, hash), PickResult::Queue);
        let [next] = wanted()[..] else {
            panic!("one at a time")
        };
        assert!(failed.insert(next), "another one");
        set(&endpoints[next], Connectivity::Connecting);
        assert_eq!(pick(&picker, &endpoints, hash), PickResult::Queue);
        assert_eq!(wanted(), [0; 0], "it is being connected");
        set(&endpoints[next], Connectivity::TransientFailure);
    }
    assert_eq!(pick(&picker, &endpoints, hash), PickResult::Queue);
    let last = wanted()[0];
    set(&endpoints[last], Connectivity::Ready);
    assert_eq!(pick(&picker, &endpoints, hash), PickResult::Endpoint(last));
    // It is lost, and the request that comes then has it connected again.
    set(&endpoints[last], Connectivity::Idle);
    assert_eq!(wanted(), [0; 0]);
    assert_eq!(pick(&picker, &endpoints, hash), PickResult::Queue);
    assert_eq!(wanted(), [last]);
}

/// The picks that gRPC and Envoy make: entries are `xxh64("ADDRESS_NUMBER")`.
#[test]
fn a_ring_is_that_of_grpc_and_envoy() {
    use xxhash_rust::xxh64::xxh64;
    let endpoints = ready(3);
    let ring = RingHash {
        minimum_ring_size: 6,
        maximum_ring_size: 6,
    };
    let picker = picker(&LbPolicy::RingHash(ring), &endpoints);
    for endpoint in &endpoints {
        for number in 0..2 {
            let key = format!("{}_{number}", endpoint.address);
            let hash = xxh64(key.as_bytes(), 0);
            assert_eq!(address(&picker, &endpoints, hash), endpoint.address);
        }
    }
}

#[test]
fn a_subset_changes_by_one_when_one_endpoint_does() {
    let all: Vec<_> = ready(100)
        .into_iter()
        .map(|endpoint| endpoint.address)
        .collect();
    let subset = |of: &[SocketAddr], seed| nearest(of.to_vec(), 10, seed, |address| *address);
    let mut used = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let before = subset(&all, seed);
        assert_eq!(before.len(), 10);
        used.extend(before.iter().copied());
        for gone in 0..100 {
            let mut fewer = all.clone();
            fewer.remove(gone);
            let after = subset(&fewer, seed);
            let kept = after
                .iter()
                .filter(|address| before.contains(address))
                .count();
            assert!(kept >= 9 && after.len() == 10);
        }
    }
    assert_eq!(used.len(), 100, "processes together use all");
    assert_eq!(subset(&all[..7], 1), all[..7]);
}
