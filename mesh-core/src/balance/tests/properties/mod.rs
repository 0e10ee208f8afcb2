//! Policies against slow and obvious models of them, over generated clusters.
//!
//! `MESH_PROPERTY_CASES` says how many of each; a failure names its seed.

mod fairness;
mod hashing;
mod priorities;
mod subsets;
mod weights;
mod zones;

use super::*;

/// Generated cases of each property.
const CASES: u64 = 40;

/// Runs `check` on so many generated cases.
pub(super) fn cases(check: impl Fn(&mut SplitMix64)) {
    let asked = std::env::var("MESH_PROPERTY_CASES");
    let count = asked.map_or(CASES, |count| count.parse().unwrap());
    for seed in 0..count {
        let _named = Seed(seed);
        check(&mut SplitMix64::new(seed));
    }
}

/// Tells which case it was.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

fn between(rng: &mut SplitMix64, least: u64, most: u64) -> u64 {
    least + rng.below(most - least + 1)
}

/// Some endpoints, at least one of them ready.
fn some_ready(rng: &mut SplitMix64, most: u64) -> Vec<ClusterEndpoint> {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    let count = between(rng, 1, most);
    let states: Vec<_> = (0..count)
        .map(|_| [Ready, Ready, Ready, Idle, Connecting, TransientFailure][rng.below(6) as usize])
        .collect();
    let endpoints = endpoints(&states);
    set(&endpoints[rng.below(count) as usize], Ready);
    endpoints
}

/// Whether counts are what chances make of so many picks: within five standard deviations, which is
/// exceeded once in two million times.
#[track_caller]
fn are_likely(counts: &[usize], chances: &[f64]) {
    let picks: usize = counts.iter().sum();
    for (count, chance) in counts.iter().zip(chances) {
        let expected = picks as f64 * chance;
        let deviation = (expected * (1.0 - chance)).sqrt();
        let off = (*count as f64 - expected).abs();
        assert!(
            off <= 5.0 * deviation + 1.0,
            "{counts:?} of {picks}, chances {chances:?}"
        );
    }
}
