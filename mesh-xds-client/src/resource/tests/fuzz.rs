//! Bounded, seeded fuzzing of every decoder: damaged forms of every resource that the other tests use.
//!
//! No panic, always an answer, errors that name the resource, and the same answer twice.

use std::{cell::RefCell, collections::BTreeMap};

use envoy_types::pb::google::protobuf::Duration as DurationProto;
use mesh_core::rng::{Rng, SplitMix64};

use super::*;
use crate::mutate;

/// Damaged resources per run, unless [`mutate::rounds`] says otherwise.
const ROUNDS: usize = 20_000;

thread_local! {
    static CORPUS: RefCell<Vec<(Kind, Any)>> = const { RefCell::new(Vec::new()) };
}

/// Called for everything that tests on this thread decode.
pub(super) fn record(kind: Kind, resources: &[Any]) {
    let with_kind = resources.iter().map(|resource| (kind, resource.clone()));
    CORPUS.with_borrow_mut(|corpus| corpus.extend(with_kind));
}

/// Every resource that the other tests decode, good and bad.
fn corpus() -> Vec<(Kind, Any)> {
    CORPUS.with_borrow_mut(Vec::clear);
    cluster::defaults();
    cluster::policies_are_taken_from_the_new_field_first();
    cluster::limits();
    cluster::http_versions();
    cluster::what_would_change_traffic_is_refused();
    cluster::every_error_is_collected();
    discovery::dns_clusters();
    discovery::aggregates();
    endpoint::weights_health_and_priorities_are_taken();
    endpoint::localities_without_weight_are_left_out();
    endpoint::assignments_that_contradict_themselves_are_refused();
    endpoint::endpoints_that_cannot_be_used_are_refused();
    listener::client_listeners();
    listener::client_filters();
    listener::server_listeners();
    listener::server_listeners_that_cannot_be_served_as_meant_are_refused();
    listener::filter_chains_that_cannot_be_told_apart_or_served_are_refused();
    listener::authorisation_filters_are_taken_in_order();
    retry::retries();
    retry::backoff_and_bounds_of_retries();
    retry::the_hosts_retry_policy_is_replaced_not_merged();
    route::paths();
    route::headers();
    route::fractions();
    route::weighted_clusters();
    route::limits();
    route::actions_that_cannot_be_done_disable_their_route_only();
    route::virtual_hosts();
    route::filter_overrides_without_effect_are_taken_and_others_refused();
    security::authorisation_rules();
    security::rules_that_cannot_be_evaluated_refuse_the_filter();
    security::secrets();
    tls::certificates_come_from_providers_in_new_and_old_fields_and_from_sds();
    tls::contexts_that_weaken_tls_are_refused();
    tls::validations_that_weaken_tls_are_refused();
    tls::tls_that_cannot_be_applied_is_never_taken_for_plaintext();
    tls::server_tls();
    CORPUS.take()
}

#[test]
fn no_damaged_resource_makes_a_decoder_panic() {
    let corpus = corpus();
    assert!(corpus.len() > 100, "{}", corpus.len());
    for kind in Kind::ALL {
        assert!(corpus.iter().any(|(of, _)| *of == kind), "{kind:?}");
    }
    let mut rng = SplitMix64::new(1);
    let context = context();
    let mut accepted = 0;
    let rounds = mutate::rounds(ROUNDS);
    for round in 0..rounds {
        let (kind, any) = &corpus[rng.below(corpus.len() as u64) as usize];
        let any = Any {
            type_url: match rng.below(50) {
                0 => mutate::text(&any.type_url, &mut rng),
                _ => any.type_url.clone(),
            },
            value: mutate::message(&any.value, &mut rng),
        };
        let decode = || decode_all(*kind, raw(*kind, vec![any.clone()]), &context, |_| true);
        let decoded = decode();
        let answers = decoded.accepted.len() + decoded.rejected.len() + decoded.heartbeats.len();
        assert!(answers <= 1, "round {round}");
        accepted += decoded.accepted.len();
        for rejected in &decoded.rejected {
            assert!(!rejected.errors.is_empty(), "round {round}");
            for error in &rejected.errors {
                assert!(!error.reason.contains("panicked"), "round {round}: {error}");
                assert!(
                    error.resource.starts_with(kind.noun()),
                    "round {round}: {error}"
                );
            }
        }
        if round % 64 == 0 {
            assert_eq!(decode().rejected, decoded.rejected, "round {round}");
        }
    }
    let share = accepted * 100 / rounds;
    assert!((10..95).contains(&share), "damage reaches deep: {share} %");
}

/// What was accepted, by name.
#[derive(Default)]
struct Accepting(BTreeMap<(Kind, String), Same>);

impl Known for Accepting {
    fn known(&self, kind: Kind, name: &str, bytes: &[u8]) -> Option<Same> {
        let same = self.0.get(&(kind, name.to_owned()))?;
        (same.raw == bytes).then(|| same.clone())
    }
}

#[test]
fn what_is_known_already_is_taken_as_if_it_had_been_decoded_again() {
    let corpus = corpus();
    let mut rng = SplitMix64::new(4);
    let context = context();
    let mut known = Accepting::default();
    let mut repeated = 0;
    for round in 0..mutate::rounds(ROUNDS) {
        let (kind, any) = &corpus[rng.below(corpus.len() as u64) as usize];
        let any = match rng.below(3) {
            0 => Any {
                value: mutate::message(&any.value, &mut rng),
                ..any.clone()
            },
            _ => any.clone(),
        };
        let name = known::first_name(&any.value).unwrap_or_default().to_owned();
        let mut wrapper = Resource {
            name: name.clone(),
            version: round.to_string(),
            resource: Some(any.clone()),
            ..Resource::default()
        };
        match rng.below(6) {
            0 => wrapper.name = "other".to_owned(),
            1 => wrapper.aliases = vec!["alias".to_owned()],
            2 => {
                wrapper.ttl = Some(DurationProto {
                    seconds: 1,
                    nanos: 0,
                })
            }
            _ => {}
        }
        let one = match rng.below(2) {
            0 => Raw::from_wrapper(*kind, wrapper),
            _ => raw(*kind, vec![any.clone()]).remove(0),
        };
        let resources = || vec![one.clone(); 1 + round % 2];
        let wants = rng.below(4) != 0;
        let is_wanted =
            |asked: &str| wants && asked != "alias" || asked == "alias" && round % 3 == 0;
        let fresh = decode_all(*kind, resources(), &context, is_wanted);
        let same = decode_new(*kind, resources(), &context, is_wanted, &known);
        assert_eq!(same, fresh, "round {round}");
        for accepted in fresh.accepted {
            let key = (*kind, accepted.name);
            repeated += usize::from(known.known(*kind, &key.1, &accepted.raw).is_some());
            let value = Same {
                config: accepted.config,
                raw: accepted.raw,
                ignored: accepted.ignored,
            };
            known.0.insert(key, value);
        }
    }
    assert!(repeated > 20, "it happens often enough: {repeated}");
}

#[test]
fn damaged_bytes_beside_a_good_resource_do_not_hold_it_back() {
    let mut rng = SplitMix64::new(2);
    let context = context();
    let good = endpoints_named("good");
    for round in 0..5000 {
        let bad = Any {
            type_url: Kind::Endpoints.type_url().into(),
            value: mutate::damage(&good.value, &mut rng),
        };
        let resources = raw(Kind::Endpoints, vec![bad, good.clone()]);
        let decoded = decode_all(Kind::Endpoints, resources, &context, |name| name == "good");
        let is_there = decoded
            .accepted
            .iter()
            .any(|accepted| accepted.name == "good");
        let is_twice = decoded
            .rejected
            .iter()
            .any(|r| r.name.as_deref() == Some("good"));
        assert!(is_there || is_twice, "round {round}");
    }
}

#[test]
fn names_have_one_spelling_however_odd() {
    let mut rng = SplitMix64::new(3);
    for name in [
        "xdstp://x/t/c?b=2&a=1#f",
        "xdstp:",
        "plain",
        "xdstp:///t/c?&&=",
    ] {
        for _ in 0..5000 {
            let odd = mutate::text(name, &mut rng);
            let once = canonical(odd.clone());
            assert_eq!(canonical(once.clone()), once, "{odd:?}");
            assert_eq!(authority(&once), authority(&odd), "{odd:?}");
        }
    }
}
