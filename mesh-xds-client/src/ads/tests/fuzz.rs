//! Bounded, seeded fuzzing of the machines with all that is behind them.
//!
//! Damaged responses of both variants go through a machine into a graph that serves something good.
//! No panic; each response that is taken is answered once; a refusal changes nothing that is served.

use mesh_core::{
    rng::{Rng, SplitMix64},
    snapshot::{ListenerState, pair},
};

use super::{sim::world, *};
use crate::{
    graph::{Graph, Source, Watcher},
    mutate,
};

const ROUNDS: usize = 3000;

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
            true => rig.machine.subscribe(change.kind, &change.name),
            false => rig.machine.unsubscribe(change.kind, &change.name),
        }
    }
    rig.requests();
}

fn apply(rig: &mut Rig, graph: &mut Graph, response: Response) -> Option<bool> {
    let update = rig.take(response)?;
    let is_refused = update.nack.is_some() && update.accepted.is_empty();
    let now = std::time::SystemTime::UNIX_EPOCH;
    graph.apply(update, &Source::default(), now);
    Some(is_refused)
}

#[test]
fn damaged_responses_are_answered_and_a_refusal_changes_nothing() {
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
        let mut refused = 0;
        for round in 0..ROUNDS {
            let original = &originals[rng.below(originals.len() as u64) as usize];
            let Some(damaged) = damage(original, &mut rng) else {
                continue;
            };
            let Some(is_refused) = apply(&mut rig, &mut graph, damaged) else {
                assert!(
                    !rig.machine.has_request(),
                    "round {round}: an answer to nothing"
                );
                continue;
            };
            assert!(rig.machine.has_request(), "round {round}: no answer");
            if is_refused {
                refused += 1;
                use futures_util::FutureExt as _;
                let is_told = reader.changed().now_or_never().is_some();
                assert!(!is_told, "round {round}: a refusal is published");
            }
            turn(&mut rig, &mut graph);
            // What is valid may change everything: start from what is good again.
            for original in &originals {
                apply(&mut rig, &mut graph, original.clone());
                turn(&mut rig, &mut graph);
            }
            let state = reader.load_and_mark();
            assert!(
                matches!(state, ListenerState::Ready(_)),
                "round {round}: {state:?}"
            );
        }
        assert!(refused > 100, "{refused}");
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
