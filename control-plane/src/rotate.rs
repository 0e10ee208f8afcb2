//! Drives a change of roots: takes each step when it is safe, and says what it waits for.
//!
//! A step that changes what clients trust is safe when every client has confirmed it: those that are
//! connected by their ACK of the trust bundle, those that were connected when the step began and are
//! not now by being away for [`ABSENT_MAX`]. Clients that do not subscribe to the bundle, such as gRPC
//! with certificate files, confirm nothing; the operator says when they are ready. The step that waits
//! for certificates waits for their end. Owns no state that matters: what a restart forgets is who was
//! away.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use crate::{
    audit::Audit,
    ca::{Authority, CaError, Rotation, Step},
    cache::TRUST_BUNDLE,
    metrics::Metrics,
    server::Clients,
};

/// How often the conditions are looked at, besides when a client has come further.
const LOOK: Duration = Duration::from_millis(500);
/// Everybody must have confirmed for so long: an ACK says that the bundle was read, and handshakes
/// that began before it are still going on.
const SETTLE: Duration = Duration::from_secs(2);
/// A client that went away is waited for so long: it may only be between two streams.
pub const ABSENT_MAX: Duration = Duration::from_secs(60);
/// Clients that an answer names.
const NAMED_MAX: usize = 20;
/// Whoever shows the admin key.
/// What changes.
const ROOTS: &str = "roots";

/// How far a change of roots has come.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RotationStatus {
    /// The step; `None` when no change is going on.
    pub step: Option<Step>,
    /// Since when the step goes on, in seconds since the epoch.
    pub since: u64,
    /// Clients that have confirmed what the step asks for.
    pub confirmed: usize,
    /// How many did not confirm yet, or are away.
    pub waiting: usize,
    /// Some of them.
    pub waiting_for: Vec<String>,
    /// Clients that confirm nothing, as they do not subscribe to the trust bundle.
    pub unobserved: usize,
    /// Some of them.
    pub unobserved_nodes: Vec<String>,
    /// When the last certificate of the other root ends, in seconds since the epoch; 0 while unknown.
    pub leaves_end: u64,
    /// What it waits for now, for people.
    pub waits_for: String,
}

/// A handle to the change of roots. Clones share it.
#[derive(Clone, Debug)]
pub struct Rotator {
    authority: Arc<Authority>,
    clients: Clients,
    metrics: Metrics,
    shared: Arc<Mutex<Memory>>,
    audit: Audit,
}

#[derive(Debug, Default)]
struct Memory {
    /// The step that the rest is about.
    step: Option<(Step, u64)>,
    /// Clients that were seen during the step, and when they were seen last.
    seen: BTreeMap<String, Instant>,
    /// Since when everybody has confirmed.
    settled: Option<Instant>,
    /// The operator vouches for clients that confirm nothing.
    ignores_unobserved: bool,
    status: RotationStatus,
}

impl Rotator {
    /// A handle for `authority`, whose roots `clients` are given.
    pub fn new(authority: Arc<Authority>, clients: Clients, metrics: Metrics) -> Self {
        Self {
            authority,
            clients,
            metrics,
            shared: Arc::default(),
            audit: Audit::default(),
        }
    }

    /// Who changes roots is written down there.
    #[must_use]
    pub fn audited(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    /// Begins a change of roots, as `who` asked.
    ///
    /// # Errors
    /// When one is going on already, or the authority is plugged in.
    pub fn begin(&self, who: &str) -> Result<(), CaError> {
        let done = self.authority.begin_rotation();
        self.audit.outcome((who, "roots.begin"), ROOTS, &done);
        done
    }

    /// Goes back to the old root, as `who` asked.
    ///
    /// # Errors
    /// When nothing is going on, or the old root has left already.
    pub fn abort(&self, who: &str) -> Result<(), CaError> {
        let done = self.authority.abort_rotation();
        self.audit.outcome((who, "roots.abort"), ROOTS, &done);
        done
    }

    /// Clients that confirm nothing have the bundle by other means, says `who`.
    pub fn ignore_unobserved(&self, who: &str) {
        let done: Result<(), CaError> = Ok(());
        self.audit
            .outcome((who, "roots.ignore_unobserved"), ROOTS, &done);
        self.memory().ignores_unobserved = true;
    }

    /// How far it has come.
    pub fn status(&self) -> RotationStatus {
        self.look(Instant::now(), SystemTime::now());
        self.memory().status.clone()
    }

    /// Takes steps until `shutdown`.
    pub(crate) async fn run(self, mut shutdown: watch::Receiver<bool>) {
        loop {
            if self.look(Instant::now(), SystemTime::now())
                && let Err(error) = self.authority.advance_rotation()
            {
                tracing::error!(%error, "a change of roots cannot go on");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = shutdown.wait_for(|shutdown| *shutdown) => return,
            }
        }
    }

    /// Looks at the step's condition; whether the next step may be taken.
    fn look(&self, now: Instant, wall: SystemTime) -> bool {
        let rotation = self.authority.rotation();
        self.metrics
            .root_rotation(match rotation.as_ref().map(|r| r.step) {
                None => 0,
                Some(Step::Distribute) => 1,
                Some(Step::Issue) => 2,
                Some(Step::Retire) => 3,
            });
        let mut memory = self.memory();
        let Some(rotation) = rotation else {
            *memory = Memory::default();
            return false;
        };
        let step = Some((rotation.step, rotation.since));
        if memory.step != step {
            let object = format!("{ROOTS}: {:?}", rotation.step);
            let done: Result<(), CaError> = Ok(());
            self.audit
                .outcome(("control-plane", "roots.step"), &object, &done);
            let ignores_unobserved = memory.ignores_unobserved;
            *memory = Memory {
                step,
                ignores_unobserved,
                ..Memory::default()
            };
        }
        let confirmed = self
            .clients
            .confirmed(TRUST_BUNDLE, &self.authority.roots().borrow());
        memory.look(&rotation, confirmed, now, wall)
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nodes, by what they said of the trust bundle.
#[derive(Debug, Default)]
pub(crate) struct Confirmed {
    pub(crate) yes: BTreeSet<String>,
    pub(crate) not_yet: BTreeSet<String>,
    pub(crate) unobserved: BTreeSet<String>,
}

impl Memory {
    fn look(
        &mut self,
        rotation: &Rotation,
        found: Confirmed,
        now: Instant,
        wall: SystemTime,
    ) -> bool {
        for node in found.yes.iter().chain(&found.not_yet) {
            self.seen.insert(node.clone(), now);
        }
        self.seen
            .retain(|_, at| now.saturating_duration_since(*at) < ABSENT_MAX);
        let mut waiting = found.not_yet;
        let is_away = |node: &&String| !found.yes.contains(*node);
        waiting.extend(self.seen.keys().filter(is_away).cloned());
        let blocks_unobserved = !found.unobserved.is_empty() && !self.ignores_unobserved;
        let leaves = UNIX_EPOCH + Duration::from_secs(rotation.leaves_end);
        let waits_for = match rotation.step {
            Step::Issue if wall <= leaves => {
                let left = leaves.duration_since(wall).unwrap_or_default().as_secs();
                format!("the last certificate of the other root, which ends in {left} s")
            }
            // Who needs the bundle was settled before.
            Step::Issue => String::new(),
            _ if !waiting.is_empty() => "clients to confirm the trust bundle".to_owned(),
            _ if blocks_unobserved => {
                "clients that do not say what they trust: give them root-cert.pem, then go on with \
                 --ignore-unobserved"
                    .to_owned()
            }
            _ => String::new(),
        };
        let is_met = waits_for.is_empty();
        let settled = is_met.then(|| self.settled.unwrap_or(now));
        self.settled = settled;
        let some = |nodes: &BTreeSet<String>| nodes.iter().take(NAMED_MAX).cloned().collect();
        self.status = RotationStatus {
            step: Some(rotation.step),
            since: rotation.since,
            confirmed: found.yes.len(),
            waiting: waiting.len(),
            waiting_for: some(&waiting),
            unobserved: found.unobserved.len(),
            unobserved_nodes: some(&found.unobserved),
            leaves_end: rotation.leaves_end,
            waits_for,
        };
        settled.is_some_and(|since| now.saturating_duration_since(since) >= SETTLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(yes: &[&str], not_yet: &[&str], unobserved: &[&str]) -> Confirmed {
        let set = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect();
        Confirmed {
            yes: set(yes),
            not_yet: set(not_yet),
            unobserved: set(unobserved),
        }
    }

    fn rotation(step: Step, leaves_end: u64) -> Rotation {
        Rotation {
            step,
            other: "x".into(),
            since: 0,
            leaves_end,
        }
    }

    #[tokio::test]
    async fn a_step_waits_for_everybody_and_for_those_who_went_away() {
        let mut memory = Memory::default();
        let rotation = rotation(Step::Distribute, 0);
        let begin = Instant::now();
        let mut look = |found, after: Duration| {
            let is_due = memory.look(&rotation, found, begin + after, UNIX_EPOCH);
            (is_due, memory.status.waiting)
        };
        let second = Duration::from_secs(1);
        assert_eq!(look(found(&["a"], &["b"], &[]), Duration::ZERO), (false, 1));
        assert_eq!(
            look(found(&["a"], &[], &[]), second),
            (false, 1),
            "b went away"
        );
        assert_eq!(look(found(&["a", "b"], &[], &[]), 2 * second), (false, 0));
        let before = 2 * second + SETTLE - Duration::from_millis(1);
        assert_eq!(look(found(&["a", "b"], &[], &[]), before), (false, 0));
        // One that comes in between begins the wait anew.
        assert_eq!(
            look(found(&["a", "b"], &["c"], &[]), 4 * second),
            (false, 1)
        );
        assert_eq!(look(found(&["a", "b"], &[], &[]), 5 * second), (false, 1));
        let gone = 4 * second + ABSENT_MAX;
        assert_eq!(look(found(&["a", "b"], &[], &[]), gone), (false, 0));
        assert_eq!(look(found(&["a", "b"], &[], &[]), gone + SETTLE), (true, 0));
    }

    #[tokio::test]
    async fn clients_that_confirm_nothing_need_the_operators_word() {
        let mut memory = Memory::default();
        let distribute = rotation(Step::Distribute, 0);
        let begin = Instant::now();
        let grpc = || found(&[], &[], &["grpc"]);
        assert!(!memory.look(&distribute, grpc(), begin, UNIX_EPOCH));
        assert!(!memory.look(&distribute, grpc(), begin + 2 * SETTLE, UNIX_EPOCH));
        assert!(memory.status.waits_for.contains("--ignore-unobserved"));
        memory.ignores_unobserved = true;
        memory.look(&distribute, grpc(), begin + 2 * SETTLE, UNIX_EPOCH);
        assert!(memory.look(&distribute, grpc(), begin + 3 * SETTLE, UNIX_EPOCH));
    }

    #[tokio::test]
    async fn the_old_root_leaves_when_its_last_certificate_has_ended() {
        let mut memory = Memory::default();
        let issue = rotation(Step::Issue, 100);
        let begin = Instant::now();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!memory.look(&issue, found(&[], &["b"], &[]), begin, at(0)));
        assert!(!memory.look(&issue, found(&[], &[], &[]), begin + 2 * SETTLE, at(100)));
        assert!(!memory.look(&issue, found(&[], &[], &[]), begin + 2 * SETTLE, at(101)));
        assert!(memory.look(&issue, found(&[], &[], &[]), begin + 3 * SETTLE, at(103)));
    }
}
