//! The error model of gRFC A88, row by row.

use mesh_core::{ConfigError, config::ClusterEndpoints};

use super::*;
use crate::dump::ResourceStatus;

const NAME: &str = "e";

struct Rig {
    cache: Cache,
    policy: ErrorPolicy,
}

impl Rig {
    fn new() -> Self {
        let mut cache = Cache::default();
        cache.request(&Reference::Endpoints(NAME.into()));
        Self {
            cache,
            policy: ErrorPolicy::default(),
        }
    }

    /// With a good value, as version 1.
    fn cached() -> Self {
        let mut rig = Self::new();
        assert!(rig.accept("1"));
        rig
    }

    fn strict(mut self) -> Self {
        self.policy.fail_on_data_errors = true;
        self
    }

    /// Returns whether what is used changes.
    fn accept(&mut self, version: &str) -> bool {
        let accepted = Accepted {
            name: NAME.into(),
            config: Config::Endpoints(Arc::new(ClusterEndpoints::new(NAME, vec![]))),
            version: version.into(),
            raw: Default::default(),
            ttl: None,
            ignored: vec![],
        };
        let now = SystemTime::UNIX_EPOCH;
        self.cache.accept(accepted, now).is_some()
    }

    fn fail(&mut self, cause: Cause, text: &str) -> bool {
        let failure = Failure {
            cause,
            error: ConfigError::new("endpoints e", "", text),
            since: SystemTime::UNIX_EPOCH,
        };
        let policy = self.policy;
        let changed = self.cache.fail(Kind::Endpoints, NAME, failure, policy);
        changed.is_some()
    }

    fn used(&self) -> Option<Resolved<ClusterEndpoints>> {
        self.cache.endpoints.resolved(&NAME.into())
    }

    fn is_good(&self) -> bool {
        matches!(self.used(), Some(Resolved::Value(_)))
    }

    fn seen(&self) -> ResourceDump {
        self.cache.dump().remove(0)
    }
}

const DATA_ERRORS: [Cause; 3] = [Cause::Rejected, Cause::Removed, Cause::DataError];
const OTHERS: [Cause; 3] = [Cause::ServerError, Cause::Missing, Cause::TimedOut];

#[test]
fn with_nothing_cached_every_failure_stands_in_for_the_value() {
    for cause in DATA_ERRORS.into_iter().chain(OTHERS) {
        let mut rig = Rig::new();
        assert_eq!(rig.used(), None);
        assert!(rig.fail(cause, "no"));
        assert!(matches!(rig.used(), Some(Resolved::Error(_))), "{cause:?}");
    }
}

#[test]
fn with_a_value_cached_every_failure_is_ambient() {
    for cause in DATA_ERRORS.into_iter().chain(OTHERS) {
        let mut rig = Rig::cached();
        assert!(!rig.fail(cause, "no"), "{cause:?}");
        assert!(rig.is_good());
        let seen = rig.seen();
        assert_eq!(seen.error.unwrap().reason, "no", "a watcher learns of both");
        assert_eq!(seen.version, "1");
        assert_ne!(seen.status, ResourceStatus::Acked);
    }
}

#[test]
fn fail_on_data_errors_drops_the_value_for_data_errors_only() {
    for cause in DATA_ERRORS {
        let mut rig = Rig::cached().strict();
        assert!(rig.fail(cause, "no"), "{cause:?}");
        assert!(matches!(rig.used(), Some(Resolved::Dropped(_))));
    }
    for cause in OTHERS {
        let mut rig = Rig::cached().strict();
        assert!(!rig.fail(cause, "no"), "{cause:?}");
        assert!(rig.is_good());
    }
}

#[test]
fn ignore_resource_deletion_is_stronger_for_deletions_only() {
    let mut rig = Rig::cached().strict();
    rig.policy.ignore_resource_deletion = true;
    assert!(!rig.fail(Cause::Removed, "gone"));
    assert!(rig.is_good());
    assert!(rig.fail(Cause::Rejected, "bad"));
    assert!(!rig.is_good());
}

#[test]
fn a_life_that_is_over_ends_the_value_whatever_the_features() {
    let mut rig = Rig::cached();
    assert!(rig.fail(Cause::Expired, "over"));
    assert!(matches!(rig.used(), Some(Resolved::Dropped(_))));
}

#[test]
fn an_identical_failure_is_not_told_twice_and_a_different_one_is() {
    let mut rig = Rig::new();
    assert!(rig.fail(Cause::Rejected, "one"));
    assert!(!rig.fail(Cause::Rejected, "one"));
    assert!(rig.fail(Cause::Rejected, "two"));
    assert!(rig.fail(Cause::Missing, "two"), "another cause is news");
}

#[test]
fn an_equal_value_clears_the_error_and_moves_nothing() {
    let mut rig = Rig::cached();
    let before = rig.used();
    rig.fail(Cause::Rejected, "bad");
    assert_eq!(rig.seen().status, ResourceStatus::Nacked);
    assert!(!rig.accept("2"), "what is used is the same");
    let seen = rig.seen();
    assert_eq!((seen.status, &*seen.version), (ResourceStatus::Acked, "2"));
    assert_eq!(seen.error, None);
    match (before, rig.used()) {
        (Some(Resolved::Value(before)), Some(Resolved::Value(after))) => {
            assert!(Arc::ptr_eq(&before, &after));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_value_after_a_drop_is_used_again() {
    let mut rig = Rig::cached().strict();
    rig.fail(Cause::Removed, "gone");
    assert!(rig.accept("2"));
    assert!(rig.is_good());
}

#[test]
fn an_error_of_the_server_lasts_until_the_resource_comes() {
    let mut rig = Rig::new();
    rig.fail(Cause::DataError, "no such thing");
    assert_eq!(rig.seen().status, ResourceStatus::ReceivedError);
    assert!(matches!(rig.used(), Some(Resolved::Error(_))));
    assert!(rig.accept("1"));
    assert_eq!(rig.seen().status, ResourceStatus::Acked);
}

#[test]
fn every_state_has_its_name() {
    let mut rig = Rig::new();
    assert_eq!(rig.seen().status.as_str(), "requested");
    for (cause, name) in [
        (Cause::Rejected, "nacked"),
        (Cause::Removed, "does_not_exist"),
        (Cause::Missing, "does_not_exist"),
        (Cause::TimedOut, "timeout"),
        (Cause::ServerError, "received_error"),
    ] {
        rig.fail(cause, "no");
        assert_eq!(rig.seen().status.as_str(), name);
    }
    rig.accept("1");
    assert_eq!(rig.seen().status.as_str(), "acked");
}

fn stored() -> Vec<(Accepted, SystemTime, u8)> {
    let accepted = Accepted {
        name: NAME.into(),
        config: Config::Endpoints(Arc::new(ClusterEndpoints::new(NAME, vec![]))),
        version: "old".into(),
        raw: "bytes".into(),
        ttl: None,
        ignored: vec![],
    };
    vec![(accepted, SystemTime::UNIX_EPOCH, 1)]
}

#[test]
fn a_stored_value_is_used_at_once_and_is_stale_until_confirmed() {
    let mut rig = Rig {
        cache: Cache::default(),
        policy: ErrorPolicy::default(),
    };
    rig.cache.preload(stored());
    assert_eq!(rig.cache.stored_in_use(), 0, "nobody has asked for it");
    rig.cache.request(&Reference::Endpoints(NAME.into()));
    assert!(rig.is_good());
    assert_eq!(rig.cache.take_changes().len(), 1, "it is asked for as well");
    assert_eq!(rig.cache.stored_in_use(), 1);
    assert!(!rig.fail(Cause::Missing, "not in time"), "it serves on");
    assert!(!rig.accept("new"));
    assert_eq!(rig.cache.stored_in_use(), 0);
}

#[test]
fn what_is_saved_counts_the_runs_that_did_not_ask_for_it() {
    let mut cache = Cache::default();
    cache.preload(stored());
    assert_eq!(cache.save()[0].unused_runs, 2);
    cache.request(&Reference::Endpoints(NAME.into()));
    let saved = cache.save();
    assert_eq!((saved[0].unused_runs, &*saved[0].version), (0, "old"));
}

#[test]
fn private_keys_are_not_saved() {
    let mut cache = Cache::default();
    let secret = Secret::Certificate {
        name: "default".into(),
        chain_pem: "chain".into(),
        key_pem: "key".into(),
    };
    cache.request(&Reference::Secret("default".into()));
    let accepted = Accepted {
        name: "default".into(),
        config: Config::Secret(Arc::new(secret)),
        version: "1".into(),
        raw: "key".into(),
        ttl: None,
        ignored: vec![],
    };
    cache.accept(accepted, SystemTime::UNIX_EPOCH);
    assert!(cache.save().is_empty());
}
