//! What time does to instances, without a clock.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mesh_core::config::HealthStatus::{self, Draining, Healthy, Unhealthy};

use super::{
    CheckKind, CheckSpec, CheckStatus, DRAIN, GUARD_WINDOW, Place, RESTART_GRACE, Record,
    Registration, Source, Stored, UNNAMED, Weights, table::Table,
};

const LEASE: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(20);

fn leased(id: &str) -> Registration {
    Registration {
        namespace: "default".into(),
        service: "a".into(),
        id: id.into(),
        address: [127, 0, 0, 1].into(),
        ports: [(UNNAMED.to_owned(), 1)].into(),
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights {
            passing: 5,
            warning: 2,
        },
        locality: Place::default(),
        enable_tag_override: false,
        checks: Vec::new(),
        lease: Some(LEASE),
        source: Source::Lease,
    }
}

fn checked(id: &str, deregister_after: Option<Duration>) -> Registration {
    let check = CheckSpec {
        id: format!("service:{id}"),
        name: String::new(),
        notes: String::new(),
        kind: CheckKind::Ttl(TTL),
        initial: CheckStatus::Critical,
        success_before_passing: 0,
        failures_before_warning: None,
        failures_before_critical: 0,
        deregister_after,
    };
    Registration {
        checks: vec![check],
        lease: None,
        source: Source::Http,
        ..leased(id)
    }
}

/// A table and its clock.
struct World {
    table: Table,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            table: Table::default(),
            now: Instant::now(),
        }
    }

    fn with(registrations: impl IntoIterator<Item = Registration>) -> Self {
        let mut world = Self::new();
        for registration in registrations {
            world.table.register(registration, world.now);
        }
        world
    }

    /// Time passes, and whatever is due in it is done when it is.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.table.next().filter(|next| *next <= end) {
            let before = self.table.next();
            self.now = self.now.max(next);
            self.table.advance(self.now);
            assert_ne!(self.table.next(), before, "what was due is done");
        }
        self.now = end;
    }

    fn health(&self, id: &str) -> Option<HealthStatus> {
        Some(self.table.members().get(id)?.health)
    }

    fn tell(&mut self, id: &str, status: CheckStatus) {
        let check = format!("service:{id}");
        self.table.tell(&check, status, "", self.now).unwrap();
    }

    fn restart(&mut self, kept: &mut BTreeMap<String, Stored>) {
        for record in self.table.take_records() {
            match record {
                Record::Put(stored) => {
                    kept.insert(stored.registration.id.clone(), *stored);
                }
                Record::Delete(id) => _ = kept.remove(&id),
            }
        }
        self.table = Table::restored(kept.values().cloned().collect(), self.now);
    }
}

const ALMOST: Duration = Duration::from_millis(1);

#[test]
fn a_lease_that_nobody_renews_ends() {
    let mut world = World::with([leased("a")]);
    world.pass(LEASE - ALMOST);
    assert!(world.table.renew("a", world.now));
    world.pass(LEASE - ALMOST);
    assert_eq!(world.health("a"), Some(Healthy));
    world.pass(ALMOST);
    assert_eq!(world.health("a"), None);
    assert!(!world.table.renew("a", world.now), "it must register again");
}

#[test]
fn one_that_deregisters_drains_and_is_forgotten_then() {
    let mut world = World::with([leased("a")]);
    world.table.deregister("a", world.now).unwrap();
    world.pass(DRAIN - ALMOST);
    assert_eq!(world.health("a"), Some(Draining), "longer than its lease");
    world.pass(ALMOST);
    assert_eq!(world.health("a"), None);
    let mut back = World::with([leased("a")]);
    back.table.deregister("a", back.now).unwrap();
    back.table.register(leased("a"), back.now);
    back.pass(DRAIN / 4);
    assert_eq!(back.health("a"), Some(Healthy), "it came back");
}

#[test]
fn a_check_that_is_not_told_in_time_is_critical_and_reaped_later() {
    let after = Duration::from_secs(60);
    let mut world = World::with([checked("a", Some(after))]);
    assert_eq!(world.health("a"), Some(Unhealthy));
    world.tell("a", CheckStatus::Passing);
    world.pass(TTL - ALMOST);
    assert_eq!(world.health("a"), Some(Healthy));
    world.pass(ALMOST);
    assert_eq!(world.health("a"), Some(Unhealthy));
    world.pass(after - ALMOST);
    assert_eq!(world.health("a"), Some(Unhealthy));
    world.pass(ALMOST);
    assert_eq!(world.health("a"), None);
}

#[test]
fn a_warning_changes_the_share_and_nothing_else() {
    let mut world = World::with([checked("a", None)]);
    world.tell("a", CheckStatus::Warning);
    let member = &world.table.members()["a"];
    assert_eq!((member.health, member.weight), (Healthy, 2));
    world.tell("a", CheckStatus::Passing);
    assert_eq!(world.table.members()["a"].weight, 5);
}

#[test]
fn saying_the_same_again_changes_nothing_that_can_be_seen() {
    let mut world = World::with([checked("a", None)]);
    world.tell("a", CheckStatus::Passing);
    let (members, index) = (world.table.members().clone(), world.table.index());
    world.table.take_records();
    world.tell("a", CheckStatus::Passing);
    world.table.register(checked("a", None), world.now);
    assert!(std::sync::Arc::ptr_eq(&members, world.table.members()));
    assert_eq!(world.table.index(), index);
    assert_eq!(world.table.take_records(), []);
}

#[test]
fn a_registration_with_another_port_keeps_what_its_checks_found() {
    let mut world = World::with([checked("a", None)]);
    world.tell("a", CheckStatus::Passing);
    let mut moved = checked("a", None);
    moved.ports.insert(UNNAMED.to_owned(), 2);
    world.table.register(moved, world.now);
    let member = &world.table.members()["a"];
    assert_eq!(
        (member.health, member.registration.ports[UNNAMED]),
        (Healthy, 2)
    );
}

#[test]
fn when_most_endpoints_are_lost_at_once_half_of_them_stay_until_they_are_seen() {
    let ids: Vec<_> = (0..10).map(|id| id.to_string()).collect();
    let mut world = World::with(ids.iter().map(|id| leased(id)));
    world.pass(LEASE);
    let held = |world: &World| {
        ids.iter()
            .filter(|id| world.health(id) == Some(Healthy))
            .count()
    };
    assert_eq!(held(&world), 5, "the other half is gone");
    world.pass(GUARD_WINDOW * 10);
    assert_eq!(held(&world), 5, "however long it takes");
    // All but one are seen again: that one was lost indeed.
    for id in &ids[..9] {
        world.table.register(leased(id), world.now);
    }
    world.pass(Duration::from_secs(1));
    assert_eq!(held(&world), 9);
    assert_eq!(world.health("9"), None);
}

#[test]
fn one_that_is_kept_goes_when_an_operator_says_so() {
    let mut world = World::with(["a", "b", "c"].map(leased));
    world.pass(LEASE);
    let kept: Vec<_> = world.table.members().keys().cloned().collect();
    assert_eq!(kept.len(), 2);
    world.table.deregister(&kept[0], world.now).unwrap();
    assert_eq!(world.health(&kept[0]), Some(Draining));
    world.pass(DRAIN);
    assert_eq!(world.health(&kept[0]), None);
}

#[test]
fn one_that_was_never_well_is_no_loss() {
    let after = Some(Duration::from_secs(60));
    let ids = ["a", "b", "c", "d"];
    let mut world = World::with(ids.map(|id| checked(id, after)));
    world.pass(Duration::from_secs(60));
    assert!(world.table.members().is_empty(), "nothing is kept");
}

#[test]
fn a_restart_remembers_and_gives_time_to_renew() {
    let mut kept = BTreeMap::new();
    let registrations = [
        leased("a"),
        checked("b", None),
        checked("c", None),
        leased("d"),
    ];
    let mut world = World::with(registrations);
    world.tell("b", CheckStatus::Passing);
    world.table.maintain("d", Some("x".into())).unwrap();
    // The control plane is away for longer than any lease.
    world.now += Duration::from_secs(3600);
    world.restart(&mut kept);
    world.pass(RESTART_GRACE - ALMOST);
    let health = ["a", "b", "c", "d"].map(|id| world.health(id));
    let expected = [Healthy, Healthy, Unhealthy, Draining].map(Some);
    assert_eq!(health, expected);
    world.pass(ALMOST);
    assert_eq!(world.health("b"), Some(Unhealthy));
    assert_eq!(world.health("a"), None);
    world.restart(&mut kept);
    assert_eq!(world.health("a"), None, "it does not come back");
}

#[test]
fn a_table_that_is_rebuilt_from_its_records_is_the_same_whatever_happened() {
    use mesh_core::rng::{Rng as _, SplitMix64};
    for seed in 0..200 {
        let mut random = SplitMix64::new(seed);
        let (mut world, mut kept) = (World::new(), BTreeMap::new());
        for _ in 0..60 {
            let id = random.below(4).to_string();
            match random.below(7) {
                0 => world.table.register(leased(&id), world.now),
                1 => world.table.register(checked(&id, Some(TTL * 2)), world.now),
                2 => _ = world.table.deregister(&id, world.now),
                3 => _ = world.table.maintain(&id, Some("x".into())),
                4 => _ = world.table.maintain(&id, None),
                5 => {
                    let check = format!("service:{id}");
                    let status = CheckStatus::Passing;
                    _ = world.table.tell(&check, status, "", world.now);
                }
                _ => world.pass(Duration::from_secs(random.below(30))),
            }
        }
        let shown = |table: &Table| {
            let present = table
                .entries
                .iter()
                .filter(|(_, entry)| entry.drained_at.is_none());
            present
                .map(|(id, entry)| {
                    let statuses: Vec<_> = entry.checks.iter().map(|c| c.status).collect();
                    (id.clone(), statuses, entry.maintenance.clone())
                })
                .collect::<Vec<_>>()
        };
        let before = shown(&world.table);
        world.restart(&mut kept);
        assert_eq!(shown(&world.table), before, "seed {seed}");
    }
}
