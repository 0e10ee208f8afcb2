//! Which endpoints a process uses, and which ones a request may have.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh64::xxh64;

use super::*;
use crate::{
    balance::{aperture, nearest},
    config::{ClientPosition, Endpoint, LbMetadata, SubsetFallback, SubsetSelector, Subsets},
};

fn addresses(count: u64) -> Vec<SocketAddr> {
    let of = |n: u64| SocketAddr::from(([10, 1, (n >> 8) as u8, n as u8], 80));
    (0..count).map(of).collect()
}

#[test]
fn a_process_uses_the_endpoints_with_the_lowest_scores() {
    cases(|rng| {
        let all = addresses(between(rng, 1, 200));
        let (size, seed) = (between(rng, 1, 60) as usize, rng.next_u64());
        let mut by_score = all.clone();
        by_score.sort_by_key(|address| xxh64(address.to_string().as_bytes(), seed));
        by_score.truncate(size);
        let subset = nearest(all.clone(), size, seed, |address| *address);
        let (expected, got): (BTreeSet<_>, BTreeSet<_>) = (
            by_score.into_iter().collect(),
            subset.iter().copied().collect(),
        );
        assert_eq!(got, expected);
        let mut in_order = all.iter().filter(|address| expected.contains(address));
        assert!(
            subset
                .iter()
                .all(|address| in_order.next() == Some(address))
        );
    });
}

#[test]
fn one_that_comes_takes_the_place_of_one_at_most() {
    cases(|rng| {
        let mut all = addresses(between(rng, 20, 200));
        let (size, seed) = (between(rng, 1, 19) as usize, rng.next_u64());
        let subset = |all: &[SocketAddr]| {
            let subset = nearest(all.to_vec(), size, seed, |address| *address);
            subset.into_iter().collect::<BTreeSet<_>>()
        };
        let fewer = {
            let new = all.remove(rng.below(all.len() as u64) as usize);
            let before = subset(&all);
            all.push(new);
            before
        };
        let more = subset(&all);
        assert!(more.difference(&fewer).count() <= 1);
        assert!(fewer.difference(&more).count() <= 1);
    });
}

#[test]
fn each_endpoint_is_used_by_as_many_processes_as_any_other() {
    let all = addresses(20);
    let mut users: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for seed in 0..4_000 {
        for address in nearest(all.clone(), 5, seed, |address| *address) {
            *users.entry(address).or_default() += 1;
        }
    }
    let counts: Vec<_> = all.iter().map(|address| users[address]).collect();
    are_likely(&counts, &[1.0 / 20.0; 20]);
}

/// The subsets of all clients of an aperture.
fn apertures(all: &[SocketAddr], size: usize, count: u32) -> Vec<BTreeSet<SocketAddr>> {
    let of = |index| {
        let client = ClientPosition { index, count };
        let subset = aperture(all.to_vec(), size, client, |address| *address);
        subset.into_iter().collect()
    };
    (0..count).map(of).collect()
}

#[test]
fn each_endpoint_of_an_aperture_has_as_many_clients_as_any_other_or_one_more() {
    cases(|rng| {
        let all = addresses(between(rng, 1, 60));
        let (size, clients) = (between(rng, 1, 20) as usize, between(rng, 1, 40) as u32);
        let subsets = apertures(&all, size, clients);
        let users = |address| {
            subsets
                .iter()
                .filter(|subset| subset.contains(address))
                .count()
        };
        let users: Vec<_> = all.iter().map(users).collect();
        let (least, most) = (users.iter().min().unwrap(), users.iter().max().unwrap());
        assert!(
            *least >= 1 && most - least <= 1,
            "{size} of {clients}: {users:?}"
        );
        assert!(
            subsets
                .iter()
                .all(|subset| subset.len() >= size.min(all.len()))
        );
    });
}

#[test]
fn one_that_comes_or_goes_changes_two_of_an_aperture_at_most() {
    cases(|rng| {
        let mut all = addresses(between(rng, 2, 60));
        let (size, clients) = (between(rng, 1, 20) as usize, between(rng, 1, 40) as u32);
        let more = apertures(&all, size, clients);
        all.remove(rng.below(all.len() as u64) as usize);
        let fewer = apertures(&all, size, clients);
        for (more, fewer) in more.iter().zip(&fewer) {
            let grown = more.len().saturating_sub(fewer.len());
            let shrunk = fewer.len().saturating_sub(more.len());
            assert!(
                more.difference(fewer).count() <= 2 + grown,
                "{fewer:?} {more:?}"
            );
            assert!(
                fewer.difference(more).count() <= 2 + shrunk,
                "{fewer:?} {more:?}"
            );
        }
    });
}

/// Which endpoints a request with this metadata may have, by looking at each.
fn allowed(subsets: &Subsets, endpoints: &[LbMetadata], wanted: &LbMetadata) -> BTreeSet<usize> {
    let matching = |asked: &LbMetadata| -> BTreeSet<usize> {
        let has = |metadata: &LbMetadata| asked.iter().all(|(k, v)| metadata.get(k) == Some(v));
        let found = endpoints
            .iter()
            .enumerate()
            .filter(|(_, metadata)| has(metadata));
        found.map(|(index, _)| index).collect()
    };
    let fall_back = |fallback| match fallback {
        SubsetFallback::AnyEndpoint => (0..endpoints.len()).collect(),
        SubsetFallback::DefaultSubset => matching(&subsets.default_subset),
        SubsetFallback::NoFallback | SubsetFallback::KeysSubset => BTreeSet::new(),
    };
    if wanted.is_empty() {
        return fall_back(subsets.fallback);
    }
    let asked: BTreeSet<_> = wanted.keys().collect();
    let is_its =
        |selector: &&SubsetSelector| selector.keys.iter().collect::<BTreeSet<_>>() == asked;
    let Some(selector) = subsets.selectors.iter().find(is_its) else {
        return fall_back(subsets.fallback);
    };
    let found = matching(wanted);
    if !found.is_empty() {
        return found;
    }
    match selector.fallback.unwrap_or(subsets.fallback) {
        SubsetFallback::KeysSubset => {
            let mut fewer = wanted.clone();
            fewer.retain(|key, _| selector.fallback_keys.contains(key));
            allowed(subsets, endpoints, &fewer)
        }
        fallback => fall_back(fallback),
    }
}

fn metadata(rng: &mut SplitMix64, keys: &[&str]) -> LbMetadata {
    let mut metadata = LbMetadata::new();
    for key in keys {
        let value = ["x", "y", "z"][rng.below(3) as usize];
        metadata.insert((*key).to_owned(), value.into());
    }
    metadata
}

fn subsets(rng: &mut SplitMix64) -> Subsets {
    use SubsetFallback::{AnyEndpoint, DefaultSubset, KeysSubset, NoFallback};
    let plain = [NoFallback, AnyEndpoint, DefaultSubset];
    let selector = |keys: &[&str], fallback, fallback_keys: &[&str]| SubsetSelector {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        fallback,
        fallback_keys: fallback_keys.iter().map(|key| (*key).to_owned()).collect(),
    };
    let own = [None, Some(AnyEndpoint), Some(NoFallback)][rng.below(3) as usize];
    Subsets {
        selectors: vec![
            selector(&["b", "a"], Some(KeysSubset), &["a"]),
            selector(&["a"], own, &[]),
        ],
        fallback: plain[rng.below(3) as usize],
        default_subset: metadata(rng, &["c"]),
        panic_mode_any: false,
    }
}

#[test]
fn a_request_gets_the_endpoints_whose_metadata_it_asks_for() {
    cases(|rng| {
        let endpoints = ready(between(rng, 1, 8) as usize);
        let keys: [&[&str]; 4] = [&["a", "b", "c"], &["a", "c"], &["a"], &["c"]];
        let of: Vec<_> = endpoints
            .iter()
            .map(|_| {
                let keys = keys[rng.below(4) as usize];
                metadata(rng, keys)
            })
            .collect();
        let declared = |(endpoint, metadata): (&ClusterEndpoint, &LbMetadata)| {
            let mut declared = Endpoint::new(endpoint.address);
            declared.details_mut().metadata = metadata.clone();
            declared
        };
        let declared: Vec<_> = endpoints.iter().zip(&of).map(declared).collect();
        let sources: Vec<_> = declared.iter().collect();
        let subsets = subsets(rng);
        let picker = Picker::build(&Parts {
            policy: &LbPolicy::Random,
            common: &CommonLbConfig::default(),
            local: None,
            overprovisioning_factor: None,
            endpoints: &endpoints,
            sources: &sources,
            subsets: Some(&subsets),
            groups: vec![Group {
                tier: 0,
                weight: 1,
                range: 0..endpoints.len(),
                total: endpoints.len(),
            }],
            tier_parts: vec![TierParts::default()],
            single_probe: false,
            tiers: &Arc::default(),
            factories: &LbPolicyFactories::new(),
            start: 0,
        });
        let picker = picker.unwrap();
        for asked in [&["a", "b"][..], &["a"], &["c"], &["b"], &[]] {
            let wanted = metadata(rng, asked);
            let expected = allowed(&subsets, &of, &wanted);
            let mut got = BTreeSet::new();
            for _ in 0..200 {
                let mut context = PickContext::new(rng, &[]);
                context.metadata = Some(&wanted);
                match picker.pick(&endpoints, &mut context) {
                    PickResult::Endpoint(index) => _ = got.insert(index),
                    PickResult::Fail => break,
                    PickResult::Queue => panic!("all are ready"),
                }
            }
            assert_eq!(got, expected, "{subsets:?} {of:?} {wanted:?}");
        }
    });
}
