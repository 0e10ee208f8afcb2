//! Bounded, seeded fuzzing of the machines with all that is behind them.
//!
//! Damaged responses of both variants go through a machine into a graph that serves something good.
//! No panic; each response that is taken is answered; a refused resource leaves its last good value in
//! use, and a response of nothing else changes nothing.

use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use mesh_core::{
    rng::{Rng, SplitMix64},
    snapshot::{ListenerState, pair},
};

use super::{sim::world, *};
use crate::{
    graph::{Graph, Source, Watcher},
    mutate,
};

/// Damaged responses per run, unless [`mutate::rounds`] says otherwise.
const ROUNDS: usize = 6000;

/// Serves one listener; returns what was sent for it.
fn serve(rig: &mut Rig, graph: &mut Graph) -> Vec<Response> {
    let specs = world::chain();
    let mut responses = Vec::new();
    for (kind, name, spec) in specs {
        turn(rig, graph);
        let resources = vec![world::encode(kind, name, &spec)];
        let response = rig.response(kind, "1", resources, &[], vec![server_error("x", 5)]);
        responses.push(response.clone());
        apply(rig, graph, response);
    }
    turn(rig, graph);
    responses
}

fn turn(rig: &mut Rig, graph: &mut Graph) {
    graph.collect();
    for change in graph.take_changes() {
        match change.is_wanted {
            true => rig.machine.subscribe(change.kind, change.name),
            false => rig.machine.unsubscribe(change.kind, &change.name),
        }
    }
    rig.requests();
}

/// What became of a response.
struct Applied {
    /// Names of refused resources.
    refused: Vec<(Kind, String)>,
    /// Whether anything else was in it.
    is_refused_alone: bool,
}

fn apply(rig: &mut Rig, graph: &mut Graph, response: Response) -> Option<Applied> {
    let update = rig.take(response)?;
    let kind = update.kind;
    let names = update.rejected.iter().map(|(name, _)| (kind, name.clone()));
    let applied = Applied {
        refused: names.collect(),
        is_refused_alone: update.nack.is_some()
            && update.accepted.is_empty()
            && update.removed.is_empty()
            && update.errors.is_empty(),
    };
    let now = std::time::SystemTime::UNIX_EPOCH;
    graph.apply(update, &Source::default(), now);
    Some(applied)
}

/// What is in use of each resource, as received.
fn in_use(graph: &Graph) -> BTreeMap<(String, String), Option<bytes::Bytes>> {
    let dumps = graph.dump().into_iter();
    dumps
        .map(|dump| ((dump.type_url.to_owned(), dump.name), dump.config))
        .collect()
}

/// A million with `MESH_FUZZ_ROUNDS=1000000 cargo test -p mesh-xds-client --lib damaged_responses`.
#[test]
fn damaged_responses_are_answered_and_the_last_good_values_kept() {
    for variant in BOTH {
        let mut rng = SplitMix64::new(4);
        let mut rig = Rig::open(variant);
        let mut graph = Graph::new("me".into(), "cp".into(), 1);
        let (writer, mut reader) = pair();
        let watcher = Watcher::Client {
            listener: "l0".into(),
            authority: "a".into(),
            writer,
        };
        graph.add(1, watcher);
        let originals = serve(&mut rig, &mut graph);
        assert!(matches!(reader.load_and_mark(), ListenerState::Ready(_)));
        let rounds = mutate::rounds(ROUNDS) / BOTH.len();
        let mut updates = 0;
        let mut refused = 0;
        while updates < rounds {
            let original = &originals[rng.below(originals.len() as u64) as usize];
            let Some(damaged) = damage(original, &mut rng) else {
                continue;
            };
            updates += 1;
            let before = in_use(&graph);
            let Some(applied) = apply(&mut rig, &mut graph, damaged) else {
                let is_silent = !rig.machine.has_request();
                assert!(is_silent, "update {updates}: an answer to nothing");
                continue;
            };
            assert!(rig.machine.has_request(), "update {updates}: no answer");
            let after = in_use(&graph);
            for (kind, name) in &applied.refused {
                let key = (kind.type_url().to_owned(), name.clone());
                assert_eq!(
                    after.get(&key),
                    before.get(&key),
                    "update {updates}: {key:?}"
                );
            }
            refused += applied.refused.len();
            turn(&mut rig, &mut graph);
            if applied.is_refused_alone {
                assert_eq!(before, after, "update {updates}");
                let is_told = reader.changed().now_or_never().is_some();
                assert!(!is_told, "update {updates}: a refusal is published");
                continue;
            }
            // What is valid may change everything: start from what is good again.
            for original in &originals {
                apply(&mut rig, &mut graph, original.clone());
                turn(&mut rig, &mut graph);
            }
            let state = reader.load_and_mark();
            let is_ready = matches!(state, ListenerState::Ready(_));
            assert!(is_ready, "update {updates}: {state:?}");
        }
        assert!(refused > rounds / 100, "{refused}");
    }
}

fn damage(original: &Response, rng: &mut SplitMix64) -> Option<Response> {
    match original {
        Response::Sotw(response) => {
            let bytes = mutate::message(&response.encode_to_vec(), rng);
            let damaged = DiscoveryResponse::decode(&*bytes).ok()?;
            Some(Response::Sotw(damaged))
        }
        Response::Delta(response) => {
            let bytes = mutate::message(&response.encode_to_vec(), rng);
            let damaged = DeltaDiscoveryResponse::decode(&*bytes).ok()?;
            Some(Response::Delta(damaged))
        }
    }
}
