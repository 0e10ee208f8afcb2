//! What may fail a build: instructions, allocations and sizes of a call, which are the same on
//! every machine, against the numbers in `gate.toml`.
//!
//! A count above its number by more than the tolerance fails; so does one that is as far below,
//! since the number would then hide the next loss. Raising a number is a reviewed change.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, ensure};
use mesh_tonic::Channel;
use mesh_tower::{MeshService, connect::HyperConnector};
use serde::{Deserialize, Serialize};

use crate::library::{
    allocations, instructions,
    stub::{Instant, RequestBody},
};

/// What is counted: calls above the stub alone.
const SCENARIOS: [&str; 3] = [
    "ours, MeshService",
    "ours, tonic Channel",
    "ours, tonic Channel, retry policy",
];
const STUB: &str = "stub alone";

/// The numbers of `gate.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gate {
    /// Share by which an instruction count may differ; other counts may not.
    tolerance: f64,
    /// By scenario.
    call: BTreeMap<String, Counts>,
    /// Bytes of a type.
    size: BTreeMap<String, usize>,
}

/// Of one call, above the stub.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    instructions: u64,
    allocations: u64,
    allocated_bytes: u64,
}

impl Gate {
    fn measure(tolerance: f64) -> anyhow::Result<Self> {
        let stub = count(STUB)?;
        let mut call = BTreeMap::new();
        for name in SCENARIOS {
            let with = count(name)?;
            let above = Counts {
                instructions: with.instructions - stub.instructions,
                allocations: with.allocations - stub.allocations,
                allocated_bytes: with.allocated_bytes - stub.allocated_bytes,
            };
            call.insert(name.to_owned(), above);
        }
        Ok(Self {
            tolerance,
            call,
            size: sizes(),
        })
    }

    /// Everything that differs from `held`, as text.
    fn differences(&self, held: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: String, now: u64, then: Option<u64>, tolerance: f64| {
            let verdict = match then {
                None => "is not in gate.toml",
                Some(then) if now as f64 > then as f64 * (1.0 + tolerance) => "got worse",
                Some(then) if (now as f64) < then as f64 * (1.0 - tolerance) => {
                    "got better: lower the number in gate.toml"
                }
                Some(_) => "",
            };
            let then = then.map_or_else(|| "-".to_owned(), |then| then.to_string());
            println!("{what:60} {now:>8} {then:>8}  {verdict}");
            if !verdict.is_empty() {
                found.push(format!("{what}: {now}, gate.toml has {then}: {verdict}"));
            }
        };
        println!("{:60} {:>8} {:>8}", "", "now", "gate");
        for (name, now) in &self.call {
            let then = held.call.get(name).copied();
            let what = |count| format!("{name}: {count}");
            compare(
                what("instructions"),
                now.instructions,
                then.map(|then| then.instructions),
                held.tolerance,
            );
            compare(
                what("allocations"),
                now.allocations,
                then.map(|then| then.allocations),
                0.0,
            );
            compare(
                what("allocated bytes"),
                now.allocated_bytes,
                then.map(|then| then.allocated_bytes),
                0.0,
            );
        }
        for (name, now) in &self.size {
            let then = held.size.get(name).map(|then| *then as u64);
            compare(format!("size of {name}"), *now as u64, then, 0.0);
        }
        found
    }
}

fn count(scenario: &str) -> anyhow::Result<Counts> {
    let (allocations, bytes) = allocations(scenario)?;
    Ok(Counts {
        instructions: instructions(scenario)?.round() as u64,
        allocations: allocations.round() as u64,
        allocated_bytes: bytes.round() as u64,
    })
}

/// Futures are boxed or moved with every call: their size is copied bytes.
fn sizes() -> BTreeMap<String, usize> {
    type Future<S> = <S as tower::Service<http::Request<RequestBody>>>::Future;
    let sizes = [
        ("MeshService", size_of::<MeshService<HyperConnector>>()),
        ("Channel", size_of::<Channel<HyperConnector>>()),
        (
            "a call's future, stub",
            size_of::<Future<MeshService<Instant>>>(),
        ),
        (
            "a call's future, hyper",
            size_of::<Future<MeshService<HyperConnector>>>(),
        ),
        (
            "a channel's future, hyper",
            size_of::<Future<Channel<HyperConnector>>>(),
        ),
    ];
    sizes.map(|(name, size)| (name.to_owned(), size)).into()
}

/// Measures and compares; with `is_write` takes the measured numbers as new ones.
///
/// # Errors
/// When a number is off.
pub fn run(is_write: bool) -> anyhow::Result<()> {
    const DEFAULT_TOLERANCE: f64 = 0.02;
    let held = fs::read_to_string(path()).ok();
    let held = held.map(|text| toml::from_str::<Gate>(&text)).transpose();
    let held = held.context("gate.toml")?;
    let tolerance = held
        .as_ref()
        .map_or(DEFAULT_TOLERANCE, |held| held.tolerance);
    let now = Gate::measure(tolerance)?;
    if is_write {
        let text = toml::to_string(&now)?;
        return fs::write(path(), format!("{HEAD}{text}")).context("gate.toml");
    }
    let held = held.context("gate.toml is missing: run the gate with --write")?;
    let differences = now.differences(&held);
    ensure!(
        differences.is_empty(),
        "{}\nif that is meant, run the gate with --write and commit gate.toml",
        differences.join("\n")
    );
    Ok(())
}

fn path() -> PathBuf {
    crate::harness::root().join("benches/gate.toml")
}

const HEAD: &str = "# Costs of one call above the stub, checked by `cargo run --profile bench -p mesh-benches --bin gate`.
# Written by the same with `-- --write`; a raised number is a reviewed change.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(instructions: u64, allocations: u64) -> Gate {
        let counts = Counts {
            instructions,
            allocations,
            allocated_bytes: 0,
        };
        Gate {
            tolerance: 0.02,
            call: [("ours".to_owned(), counts)].into(),
            size: BTreeMap::new(),
        }
    }

    #[test]
    fn only_what_is_outside_of_the_tolerance_differs() {
        let held = gate(1000, 5);
        for (now, count) in [
            (gate(1020, 5), 0),
            (gate(980, 5), 0),
            (gate(1021, 5), 1),
            (gate(979, 5), 1),
            (gate(1000, 6), 1),
            (gate(2000, 4), 2),
        ] {
            assert_eq!(now.differences(&held).len(), count, "{now:?}");
        }
    }
}
