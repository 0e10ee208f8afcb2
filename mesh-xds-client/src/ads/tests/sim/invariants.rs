//! The client's half of what must hold between a control plane and its clients, one test each: (I1) no
//! route to what was not sent, (I2) equal content changes nothing, (I3) convergence, (I4) no stale
//! answers, (I5) removal after the last use, (I6) no loops of refusals, (I7) the same input gives the
//! same state, (I8) nothing is sent again to a client that has it.

use std::sync::Arc;

use super::*;
use crate::dump::ResourceStatus;
use mesh_core::config;

const STEPS: usize = 300;

/// Runs in both variants, looking after every step.
fn run(seeds: std::ops::Range<u64>, look: impl Fn(&Sim)) {
    for seed in seeds {
        let mut sim = Sim::new(seed, BOTH[seed as usize % 2]);
        for _ in 0..STEPS {
            sim.step();
            look(&sim);
        }
    }
}

/// The names of a status or better of the clusters and endpoints that the client knows.
fn known(sim: &Sim, kind: Kind) -> BTreeMap<String, ResourceStatus> {
    let of_kind = |dump: &crate::dump::ResourceDump| dump.type_url == kind.type_url();
    let dumps = sim.graph.dump().into_iter().filter(of_kind);
    dumps.map(|dump| (dump.name, dump.status)).collect()
}

fn each_published(sim: &Sim, mut look: impl FnMut(&Snapshot)) {
    for watched in &sim.watched {
        if let ListenerState::Ready(snapshot) = watched.reader.load() {
            look(&snapshot);
        }
    }
}

/// A settled client with watches of every listener.
fn settled(seed: u64, variant: Variant) -> Sim {
    let mut sim = Sim::new(seed, variant);
    for listener in LISTENERS {
        sim.watch_listener(listener);
    }
    sim.turn();
    sim.settle();
    sim.assert_converged(seed);
    sim
}

fn published(sim: &Sim) -> Vec<Arc<Snapshot>> {
    let mut all = Vec::new();
    for watched in &sim.watched {
        let ListenerState::Ready(snapshot) = watched.reader.load() else {
            panic!("{} is served", watched.listener)
        };
        all.push(snapshot);
    }
    all
}

#[test]
fn i1_no_route_leads_to_a_cluster_that_was_neither_sent_nor_is_known_to_fail() {
    run(1000..1020, |sim| {
        let clusters = known(sim, Kind::Cluster);
        each_published(sim, |snapshot| {
            for cluster in &snapshot.clusters {
                let status = clusters.get(cluster.name.as_str());
                let is_known = status.is_some_and(|s| *s != ResourceStatus::Requested);
                assert!(is_known, "{}: {status:?}", cluster.name);
            }
        });
    });
}

#[test]
fn i2_equal_content_under_a_new_version_changes_nothing() {
    for variant in BOTH {
        let mut sim = settled(1, variant);
        let before = published(&sim);
        let responses = sim.responses;
        sim.world.renew();
        for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route] {
            let streams = sim.connections.iter_mut().filter_map(|c| c.stream.as_mut());
            streams.for_each(|stream| stream.changed(kind));
        }
        sim.settle();
        assert!(sim.responses > responses, "it was sent");
        for (before, after) in before.iter().zip(published(&sim)) {
            assert!(Arc::ptr_eq(before, &after), "{}", before.listener);
        }
    }
}

/// 100,000 steps: 100 seeds of 500 in each variant.
#[test]
fn i3_a_client_converges_to_the_latest_whatever_the_interleaving() {
    let mut nacks = 0;
    let mut responses = 0;
    let (mut restarts, mut ready_at_once) = (0, 0);
    let (mut errors, mut ended) = (0, 0);
    for seed in 0..200 {
        let mut sim = Sim::new(seed, BOTH[seed as usize % 2]);
        for _ in 0..500 {
            sim.step();
        }
        sim.settle();
        sim.assert_converged(seed);
        nacks += sim.nacks;
        responses += sim.responses;
        restarts += sim.restarts;
        ready_at_once += sim.ready_at_once;
        errors += sim.errors;
        ended += sim.ended;
    }
    // The run is worth its time: enough arrives, and enough of it is bad.
    assert!(responses > 5000 && nacks > 400, "{responses}, {nacks}");
    assert!(errors > 400 && ended > 50, "{errors}, {ended}");
    assert!(restarts > 100, "{restarts}");
    assert!(
        ready_at_once > restarts / 4,
        "{ready_at_once} of {restarts}"
    );
}

/// The scripted server asserts it for each request; here, that it had enough to look at.
#[test]
fn i4_each_answer_is_to_the_last_response_or_to_each_in_turn_and_never_stale() {
    let mut answers = 0;
    for seed in 2000..2020 {
        let mut sim = Sim::new(seed, BOTH[seed as usize % 2]);
        for _ in 0..STEPS {
            sim.step();
        }
        answers += sim.answers();
    }
    assert!(answers > 100, "{answers}");
}

#[test]
fn i5_what_a_published_route_or_cluster_uses_stays_subscribed() {
    run(3000..3020, |sim| {
        let clusters = known(sim, Kind::Cluster);
        let endpoints = known(sim, Kind::Endpoints);
        each_published(sim, |snapshot| {
            for handle in &snapshot.clusters {
                assert!(clusters.contains_key(handle.name.as_str()));
                let cluster = handle.current.borrow().clone();
                let Ok(config) = &cluster.config else {
                    continue;
                };
                let config::Discovery::Eds(name) = &config.discovery else {
                    continue;
                };
                assert!(endpoints.contains_key(name.as_str()), "{name}");
            }
        });
    });
}

#[test]
fn i6_a_refusal_is_answered_once_and_then_there_is_silence() {
    for variant in BOTH {
        let mut rig = Rig::open(variant);
        rig.subscribe(Kind::Cluster, &["c"]);
        rig.requests();
        for _ in 0..100 {
            rig.serve(Kind::Cluster, "1", vec![bad_cluster("c")]);
            assert_eq!(rig.requests().len(), 1);
            assert_eq!(rig.requests(), [], "it says no more by itself");
        }
    }
}

#[test]
fn i7_the_same_resources_in_any_order_give_the_same_stored_bytes() {
    for variant in BOTH {
        let stored = |seed| {
            let mut sim = Sim::new(9, variant);
            // The same world, in another order and with detours.
            sim.rng = SplitMix64::new(seed);
            for listener in LISTENERS {
                sim.watch_listener(listener);
            }
            sim.turn();
            for _ in 0..STEPS {
                let server = usize::from(sim.rng.below(4) == 0);
                match sim.rng.below(4) {
                    0 => sim.deliver_to_server(server),
                    1 => sim.respond(server),
                    2 => sim.deliver_to_client(server),
                    _ => sim.open(server),
                }
                sim.turn();
            }
            sim.settle();
            let resources = sim.graph.save().into_iter();
            // Servers count versions in the order of their responses.
            let unversioned = |resource| crate::store::StoredResource {
                version: String::new(),
                ..resource
            };
            let resources: Vec<_> = resources.map(unversioned).collect();
            crate::store::encode(&resources, "cp")
        };
        let first = stored(1);
        assert!(first.len() > 500, "{}", first.len());
        for seed in 2..10 {
            assert_eq!(first, stored(seed), "{seed}");
        }
    }
}

#[test]
fn i8_after_a_reconnect_an_unchanged_control_plane_sends_nothing_again() {
    let mut sim = settled(3, Variant::Incremental);
    let before = published(&sim);
    let (responses, epoch) = (sim.responses, sim.epoch);
    for server in 0..2 {
        sim.close(server);
    }
    sim.connections[0].stream = Some(ServerStream::new(epoch));
    sim.connections[0].machine.stream_opened();
    for _ in 0..40 {
        sim.turn();
        sim.deliver_to_server(0);
        sim.respond(0);
        sim.deliver_to_client(0);
    }
    let asked = sim.connections[0].stream.as_ref().map(ServerStream::asked);
    assert_eq!(asked, Some(4), "every type was asked for anew");
    assert_eq!(sim.responses, responses, "and nothing was sent");
    for (before, after) in before.iter().zip(published(&sim)) {
        assert!(Arc::ptr_eq(before, &after));
    }
}
