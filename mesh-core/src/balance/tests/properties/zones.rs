//! Zone-aware routing against Envoy's, written down step by step: who is counted, what stays, and by
//! which tickets the rest is given away.

use super::*;
use crate::{
    balance::zone::zone_shares,
    config::{
        ClusterEndpoints, Endpoint, LocalZones, LocalityBasis, LocalityEndpoints, ZoneAware,
        ZoneSize,
    },
};

fn place(zone: usize) -> LocalityId {
    LocalityId {
        region: "r".into(),
        zone: format!("z{zone}"),
        sub_zone: String::new(),
    }
}

/// The service of a caller, with healthy endpoints of weight 1 in each zone, and with unhealthy ones.
fn callers(own: usize, zones: &[(u64, u64)]) -> LocalZones {
    let mut port = 0;
    let mut endpoint = |health| {
        port += 1;
        let mut endpoint = Endpoint::new(SocketAddr::from(([10, 9, 9, 9], port)));
        endpoint.health = health;
        endpoint
    };
    let localities = zones
        .iter()
        .enumerate()
        .map(|(zone, (healthy, unhealthy))| {
            let healthy = (0..*healthy).map(|_| HealthStatus::Healthy);
            let unhealthy = (0..*unhealthy).map(|_| HealthStatus::Unhealthy);
            LocalityEndpoints {
                locality: place(zone),
                priority: 0,
                weight: 1,
                endpoints: healthy.chain(unhealthy).map(&mut endpoint).collect(),
            }
        });
    LocalZones::new(
        place(own),
        &ClusterEndpoints::new("own", localities.collect()),
    )
}

/// Endpoints by zone, one after the other; `true` is ready, `false` cannot be connected to.
fn zoned(zones: &[Vec<bool>]) -> (Vec<ClusterEndpoint>, Vec<Group>) {
    let of = |is_ready: &bool| match is_ready {
        true => Connectivity::Ready,
        false => Connectivity::TransientFailure,
    };
    let mut all = endpoints(&zones.iter().flatten().map(of).collect::<Vec<_>>());
    let mut groups = Vec::new();
    let mut start = 0;
    for (zone, members) in zones.iter().enumerate() {
        let range = start..start + members.len();
        start = range.end;
        let locality = Arc::new(place(zone));
        for endpoint in &mut all[range.clone()] {
            endpoint.locality = Arc::clone(&locality);
        }
        groups.push(Group {
            tier: 0,
            weight: 1,
            total: range.len(),
            range,
        });
    }
    (all, groups)
}

fn zone_aware(
    policy: &LbPolicy,
    config: ZoneAware,
    local: &Arc<LocalZones>,
    groups: Vec<Group>,
    endpoints: &[ClusterEndpoint],
) -> Picker {
    let common = CommonLbConfig {
        zone_aware: Some(config),
        ..CommonLbConfig::default()
    };
    let picker = Picker::build(&Parts {
        policy,
        common: &common,
        local: Some(local),
        overprovisioning_factor: None,
        endpoints,
        sources: &[],
        subsets: None,
        groups,
        tier_parts: vec![TierParts {
            total: endpoints.len(),
            ..TierParts::default()
        }],
        single_probe: false,
        tiers: &Arc::default(),
        factories: &LbPolicyFactories::new(),
        start: 3,
    });
    picker.unwrap()
}

/// The chances of the zones as Envoy draws them; `None`: zones say nothing.
fn model(
    usable: &[u64],
    callers: &[(u64, u64)],
    own: usize,
    config: &ZoneAware,
) -> Option<Vec<f64>> {
    let of_own_zone = callers[own].0 + callers[own].1;
    let with_callers = callers.iter().filter(|(up, down)| up + down > 0).count();
    if usable.len() < 2
        || usable.iter().sum::<u64>() < config.min_cluster_size
        || of_own_zone == 0
        || with_callers < 2 && config.force_local_zone.is_none()
    {
        return None;
    }
    let percentage = |part: u64, all: u64| if all == 0 { 0 } else { 10_000 * part / all };
    let all_usable: u64 = usable.iter().sum();
    let all_callers: u64 = callers.iter().map(|(up, _)| up).sum();
    let upstream: Vec<_> = usable.iter().map(|u| percentage(*u, all_usable)).collect();
    let local: Vec<_> = callers
        .iter()
        .map(|(up, _)| percentage(*up, all_callers))
        .collect();
    let mut chances = vec![0.0; usable.len()];
    let forced = config
        .force_local_zone
        .is_some_and(|least| usable[own] >= u64::from(least));
    if upstream[own] > 0 && upstream[own] >= local[own] || forced {
        chances[own] = 1.0;
        return Some(chances);
    }
    let stays = if local[own] > 0 {
        upstream[own] * 10_000 / local[own]
    } else {
        0
    };
    chances[own] = stays as f64 / 10_000.0;
    // One ticket for each ten thousandth that a zone has to spare.
    let mut tickets = Vec::new();
    for zone in (0..usable.len()).filter(|zone| *zone != own) {
        for _ in local[zone]..upstream[zone].max(local[zone]) {
            tickets.push(zone);
        }
    }
    if tickets.is_empty() {
        tickets = (0..usable.len()).collect();
    }
    for ticket in &tickets {
        chances[*ticket] += (1.0 - stays as f64 / 10_000.0) / tickets.len() as f64;
    }
    Some(chances)
}

#[test]
fn requests_stay_in_their_zone_and_leave_it_as_in_envoy() {
    cases(|rng| {
        let count = between(rng, 2, 4) as usize;
        let zones: Vec<Vec<bool>> = (0..count)
            .map(|_| (0..between(rng, 1, 6)).map(|_| rng.below(4) > 0).collect())
            .collect();
        let usable: Vec<_> = zones
            .iter()
            .map(|zone| zone.iter().filter(|is_ready| **is_ready).count() as u64)
            .collect();
        if usable.iter().sum::<u64>() == 0 {
            return;
        }
        let of: Vec<_> = (0..count).map(|_| (rng.below(6), rng.below(2))).collect();
        let own = rng.below(count as u64) as usize;
        let local = Arc::new(callers(own, &of));
        let config = ZoneAware {
            min_cluster_size: [0, 6][rng.below(2) as usize],
            force_local_zone: [None, None, Some(1), Some(3)][rng.below(4) as usize],
            ..ZoneAware::default()
        };
        let (endpoints, groups) = zoned(&zones);
        let policy = [
            LbPolicy::RoundRobin,
            LbPolicy::least_request(2),
            LbPolicy::Random,
        ][rng.below(3) as usize]
            .clone();
        let picker = zone_aware(&policy, config, &local, groups.clone(), &endpoints);
        picker.refresh(&endpoints, Instant::now());
        let counts = count_by(&groups, &count_all(&picker, &endpoints, rng));
        // Where most callers are down, or zones say nothing, every endpoint is as good as any.
        let expected = model(&usable, &of, own, &config).filter(|_| !local.is_below(50));
        let total = usable.iter().sum::<u64>() as f64;
        let even = || usable.iter().map(|part| *part as f64 / total).collect();
        are_likely(&counts, &expected.unwrap_or_else(even));
    });
}

fn count_all(picker: &Picker, endpoints: &[ClusterEndpoint], rng: &mut SplitMix64) -> Vec<usize> {
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..20_000 {
        match picker.pick(endpoints, &mut PickContext::new(rng, &[])) {
            PickResult::Endpoint(index) => counts[index] += 1,
            other => panic!("{other:?}"),
        }
    }
    counts
}

fn count_by(groups: &[Group], counts: &[usize]) -> Vec<usize> {
    let of = |group: &Group| counts[group.range.clone()].iter().sum();
    groups.iter().map(of).collect()
}

#[test]
fn all_callers_together_load_every_endpoint_alike() {
    cases(|rng| {
        let of = |rng: &mut SplitMix64| (0..4).map(|_| 1 + rng.below(9)).collect::<Vec<_>>();
        let (calling, called) = (of(rng), of(rng));
        let (all_calling, all_called) = (calling.iter().sum::<u64>(), called.iter().sum::<u64>());
        let with_down: Vec<_> = calling.iter().map(|count| (*count, 0)).collect();
        let places: Vec<_> = (0..4).map(place).collect();
        let sizes: Vec<_> = called
            .iter()
            .zip(&places)
            .map(|(count, place)| {
                let mut size = ZoneSize::default();
                (0..*count).for_each(|_| size.add(1));
                (place, size)
            })
            .collect();
        let mut loads = [0.0; 4];
        for own in 0..4 {
            let config = ZoneAware {
                min_cluster_size: 0,
                ..ZoneAware::default()
            };
            let shares = zone_shares(&sizes, &callers(own, &with_down), &config).unwrap();
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (load, share) in loads.iter_mut().zip(shares) {
                *load += share * calling[own] as f64 / all_calling as f64;
            }
        }
        for (load, endpoints) in loads.iter().zip(&called) {
            let fair = *endpoints as f64 / all_called as f64;
            // Parts of ten thousand are rounded down.
            assert!(
                (load - fair).abs() < 0.002,
                "{calling:?} {called:?} {loads:?}"
            );
        }
    });
}

#[test]
fn every_policy_but_those_of_one_list_stays_in_its_zone() {
    let (endpoints, groups) = zoned(&[vec![true; 4], vec![true; 4]]);
    let local = Arc::new(callers(1, &[(3, 0), (3, 0)]));
    for policy in all() {
        let picker = zone_aware(
            &policy,
            ZoneAware::default(),
            &local,
            groups.clone(),
            &endpoints,
        );
        let mut rng = SplitMix64::new(1);
        let by_zone = count_by(&groups, &count_all(&picker, &endpoints, &mut rng));
        match policy.is_one_list() {
            true => assert_eq!(by_zone.iter().sum::<usize>(), 20_000),
            false => assert_eq!(by_zone, [0, 20_000], "{policy:?}"),
        }
    }
}

#[test]
fn weights_are_the_size_of_a_zone_where_that_is_asked_for() {
    let place = [place(0), place(1)];
    let size = |endpoints, weight| ZoneSize { endpoints, weight };
    let zones = [(&place[0], size(1, 30)), (&place[1], size(9, 10))];
    let local = callers(0, &[(1, 0), (1, 0)]);
    let shares = |basis| {
        let config = ZoneAware {
            locality_basis: basis,
            ..ZoneAware::default()
        };
        zone_shares(&zones, &local, &config).unwrap()
    };
    assert_eq!(shares(LocalityBasis::HealthyHostsNum), [0.2, 0.8]);
    assert_eq!(shares(LocalityBasis::HealthyHostsWeight), [1.0, 0.0]);
}

#[test]
fn a_part_of_the_requests_does_not_look_at_zones() {
    let (endpoints, groups) = zoned(&[vec![true; 4], vec![true; 4]]);
    let local = Arc::new(callers(0, &[(3, 0), (3, 0)]));
    let config = ZoneAware {
        routing_enabled: 40.0,
        ..ZoneAware::default()
    };
    let picker = zone_aware(
        &LbPolicy::Random,
        config,
        &local,
        groups.clone(),
        &endpoints,
    );
    let mut rng = SplitMix64::new(1);
    let counts = count_by(&groups, &count_all(&picker, &endpoints, &mut rng));
    are_likely(&counts, &[0.4 + 0.6 / 2.0, 0.6 / 2.0]);
}

#[test]
fn a_zone_without_a_connection_gives_its_requests_away_and_queues_none() {
    let (endpoints, groups) = zoned(&[vec![true; 3], vec![true; 3]]);
    let local = Arc::new(callers(0, &[(3, 0), (3, 0)]));
    let config = ZoneAware::default();
    let picker = zone_aware(
        &LbPolicy::RoundRobin,
        config,
        &local,
        groups.clone(),
        &endpoints,
    );
    for endpoint in &endpoints[..3] {
        set(endpoint, Connectivity::Connecting);
    }
    let mut rng = SplitMix64::new(1);
    let counts = count_by(&groups, &count_all(&picker, &endpoints, &mut rng));
    assert_eq!(counts, [0, 20_000]);
    // A retry leaves its zone when it has used all of it.
    for endpoint in &endpoints[..3] {
        set(endpoint, Connectivity::Ready);
    }
    let used: Vec<_> = endpoints[..3]
        .iter()
        .map(|endpoint| endpoint.address)
        .collect();
    for _ in 0..100 {
        let mut context = PickContext::new(&mut rng, &used);
        let picked = picker.pick(&endpoints, &mut context);
        assert!(matches!(picked, PickResult::Endpoint(3..)), "{picked:?}");
    }
}

#[test]
fn in_a_panic_requests_fail_where_that_is_asked_for() {
    for (fails, expected) in [(true, PickResult::Fail), (false, PickResult::Endpoint(0))] {
        let config = ZoneAware {
            min_cluster_size: 0,
            fail_traffic_on_panic: fails,
            ..ZoneAware::default()
        };
        let mut rng = SplitMix64::new(1);
        // One of four is left: below Envoy's 50 %.
        let (endpoints, groups) = zoned(&[vec![true, false], vec![false, false]]);
        let local = Arc::new(callers(0, &[(3, 0), (3, 0)]));
        let picker = zone_aware(&LbPolicy::Random, config, &local, groups, &endpoints);
        picker.refresh(&endpoints, Instant::now());
        let picked = picker.pick(&endpoints, &mut PickContext::new(&mut rng, &[]));
        assert_eq!(picked, expected, "of those that are called");
        let (endpoints, groups) = zoned(&[vec![true], vec![true]]);
        let local = Arc::new(callers(0, &[(1, 4), (1, 4)]));
        let picker = zone_aware(&LbPolicy::Random, config, &local, groups, &endpoints);
        let picked = picker.pick(&endpoints, &mut PickContext::new(&mut rng, &[]));
        assert_eq!(picked == PickResult::Fail, fails, "of those that call");
    }
}
