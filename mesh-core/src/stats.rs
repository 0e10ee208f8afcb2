//! Counters of endpoints that outlive snapshots.
//!
//! Stage: written by requests and by connections, read by pickers. Each struct has a cache line of
//! its own, so that two endpoints never slow each other. What only some policies need is apart, and
//! made when it is first written ([`Observed`]).

use std::{
    fmt,
    sync::{OnceLock, atomic::Ordering::Relaxed},
    time::Instant,
};

use crate::{
    observed::Observed,
    outcome::Verdict,
    sync::{AtomicU8, AtomicU64},
};

/// Whether an endpoint can take a request now (gRPC connectivity).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Connectivity {
    /// No connection was wanted yet.
    Idle = 0,
    /// The first connection, or one after a failure, is being made.
    Connecting = 1,
    /// Requests can be sent.
    Ready = 2,
    /// The last attempt to connect failed; the next waits for its backoff.
    TransientFailure = 3,
}

impl fmt::Display for Connectivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::TransientFailure => "transient failure",
        })
    }
}

/// What active health checks say of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckedHealth {
    /// There is none, or it succeeds.
    Healthy,
    /// The first one has not ended yet: requests wait.
    Unchecked,
    /// It fails: requests go elsewhere.
    Unhealthy,
}

/// The bit beside the connectivity that keeps an endpoint from being ready: one comparison tells
/// both.
const EJECTED: u8 = 0x80;

/// The bit that lets one request through to an ejected endpoint.
const PROBE: u8 = 0x40;

const FLAGS: u8 = EJECTED | PROBE;

/// The bit of an endpoint that fails too often to be chosen while there are others.
const FAILING: u8 = 0x20;

/// The bit of an endpoint whose health checks fail.
const UNHEALTHY: u8 = 0x10;

/// The bit of an endpoint that waits for its first health check.
const UNCHECKED: u8 = 0x08;

const NOT_CONNECTIVITY: u8 = FLAGS | FAILING | UNHEALTHY | UNCHECKED;

/// Where the level of failures is, beside the streaks.
const LEVEL_SHIFT: u32 = 60;
/// What a failure adds to the level; a success takes one away. An endpoint that fails more than one
/// request in five rises.
const LEVEL_STEP: u64 = 4;
/// From this level on the endpoint is failing.
const LEVEL_FAILING: u64 = 8;
const LEVEL_MAX: u64 = 12;
/// The level of one that is tried again: a failure more, and it is failing.
const LEVEL_ON_TRIAL: u64 = 6;

/// One success, above the requests in flight.
const SUCCEEDED: u64 = 1 << SUCCEEDED_SHIFT;
/// 16 million requests are never in flight to one endpoint; successes have room for 10¹².
const SUCCEEDED_SHIFT: u32 = 24;

/// Requests in flight that being [failing](EndpointStats::is_failing) counts as. Others are preferred
/// up to this much, so that few good endpoints are not drowned by what many bad ones would get.
pub const FAILING_PENALTY: u32 = 256;

/// What is known of one endpoint. Belongs to the endpoint's address, not to a snapshot.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct EndpointStats {
    /// Requests in flight, and above them ([`SUCCEEDED`]) those that succeeded: a success is one
    /// operation.
    work: AtomicU64,
    /// Connectivity, and whether it is ejected.
    state: AtomicU8,
    /// Whether a pick asked for a connection, 0 or 1.
    wanted: AtomicU8,
    /// Failures in a row, see [`Streaks`], and the level of failures.
    streaks: AtomicU64,
    failed: AtomicU64,
    /// Of those that failed: without any response.
    failed_local: AtomicU64,
    observed: OnceLock<Box<Observed>>,
}

/// Failures in a row, each count at most [`STREAK_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaks {
    /// Of any kind, without a success between them.
    pub any: u32,
    /// Responses 502, 503 and 504 or none at all.
    pub any_gateway: u32,
    /// Failures that a response told of, whatever had none between them.
    pub server: u32,
    /// Responses 502, 503 and 504, whatever had none between them.
    pub gateway: u32,
    /// Without a response.
    pub local: u32,
}

/// Longest streak that is counted.
pub const STREAK_MAX: u32 = 4095;

impl Streaks {
    fn unpack(word: u64) -> Self {
        let part = |place: u32| (word >> (12 * place)) as u32 & STREAK_MAX;
        Self {
            any: part(0),
            any_gateway: part(1),
            server: part(2),
            gateway: part(3),
            local: part(4),
        }
    }

    fn pack(self) -> u64 {
        let parts = [
            self.any,
            self.any_gateway,
            self.server,
            self.gateway,
            self.local,
        ];
        let parts = parts.iter().rev();
        parts.fold(0, |word, count| {
            word << 12 | u64::from((*count).min(STREAK_MAX))
        })
    }

    fn after(self, verdict: Verdict) -> Self {
        match verdict {
            Verdict::Success => Self::default(),
            Verdict::Abandoned => self,
            Verdict::LocalFailure => Self {
                any: self.any + 1,
                any_gateway: self.any_gateway + 1,
                local: self.local + 1,
                ..self
            },
            Verdict::GatewayFailure => Self {
                any: self.any + 1,
                any_gateway: self.any_gateway + 1,
                server: self.server + 1,
                gateway: self.gateway + 1,
                local: 0,
            },
            Verdict::ServerFailure => Self {
                any: self.any + 1,
                any_gateway: 0,
                server: self.server + 1,
                gateway: 0,
                local: 0,
            },
            Verdict::NotAsked => self,
        }
    }
}

impl EndpointStats {
    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        (self.work.load(Relaxed) & (SUCCEEDED - 1)) as u32
    }

    /// A request begins.
    #[inline]
    pub fn begin(&self) {
        self.work.fetch_add(1, Relaxed);
    }

    /// A request that began has ended.
    pub fn end(&self, success: bool) {
        _ = self.end_as(if success {
            Verdict::Success
        } else {
            Verdict::ServerFailure
        });
    }

    /// A request that began has ended. Returns whether the endpoint is [failing](Self::is_failing)
    /// since this one.
    #[inline]
    pub fn end_as(&self, verdict: Verdict) -> bool {
        if verdict != Verdict::Success {
            self.work.fetch_sub(1, Relaxed);
            return self.count_failure(verdict);
        }
        self.work.fetch_add(SUCCEEDED - 1, Relaxed);
        // In steady state this is a read.
        if self.streaks.load(Relaxed) != 0 {
            self.recover();
        }
        false
    }

    /// A success ends all streaks and lowers the level of failures.
    #[cold]
    fn recover(&self) {
        let lower = |word: u64| Some((word >> LEVEL_SHIFT).saturating_sub(1) << LEVEL_SHIFT);
        _ = self.streaks.fetch_update(Relaxed, Relaxed, lower);
    }

    #[cold]
    fn count_failure(&self, verdict: Verdict) -> bool {
        if matches!(verdict, Verdict::NotAsked | Verdict::Abandoned) {
            return false;
        }
        self.failed.fetch_add(1, Relaxed);
        if verdict == Verdict::LocalFailure {
            self.failed_local.fetch_add(1, Relaxed);
        }
        let raised = |word: u64| ((word >> LEVEL_SHIFT) + LEVEL_STEP).min(LEVEL_MAX);
        let longer = |word| {
            let streaks = Streaks::unpack(word).after(verdict).pack();
            Some(streaks | raised(word) << LEVEL_SHIFT)
        };
        let before = self.streaks.fetch_update(Relaxed, Relaxed, longer);
        let is_failing = before.is_ok_and(|word| raised(word) >= LEVEL_FAILING);
        is_failing && self.state.fetch_or(FAILING, Relaxed) & FAILING == 0
    }

    /// Whether it fails so many requests that it gets none while there are others. Unlike an ejection
    /// this needs no configuration, counts for nothing where all endpoints fail, and ends by itself.
    #[inline]
    pub fn is_failing(&self) -> bool {
        self.state.load(Relaxed) & FAILING != 0
    }

    /// Lets requests try it again; only the [`Maintainer`](crate::snapshot::Maintainer) does this.
    pub(crate) fn try_again(&self) {
        let on_trial = |word: u64| {
            let streaks = word & !(u64::MAX << LEVEL_SHIFT);
            Some(streaks | LEVEL_ON_TRIAL << LEVEL_SHIFT)
        };
        _ = self.streaks.fetch_update(Relaxed, Relaxed, on_trial);
        self.state.fetch_and(!FAILING, Relaxed);
    }

    /// Requests in flight, and more where it is [failing](Self::is_failing).
    #[inline]
    pub(crate) fn load(&self) -> u32 {
        let penalty = if self.is_failing() {
            FAILING_PENALTY
        } else {
            0
        };
        self.in_flight().saturating_add(penalty)
    }

    /// Failures in a row.
    pub fn streaks(&self) -> Streaks {
        Streaks::unpack(self.streaks.load(Relaxed))
    }

    /// Counts failures in a row from the beginning.
    pub fn clear_streaks(&self) {
        let level = |word: u64| Some(word >> LEVEL_SHIFT << LEVEL_SHIFT);
        _ = self.streaks.fetch_update(Relaxed, Relaxed, level);
    }

    /// Requests that ended well, since the process started.
    pub fn succeeded(&self) -> u64 {
        self.work.load(Relaxed) >> SUCCEEDED_SHIFT
    }

    /// Requests that ended badly, since the process started.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Of those that ended [badly](Self::failed): the ones without a response.
    pub fn failed_local(&self) -> u64 {
        self.failed_local.load(Relaxed)
    }

    /// Whether a request can be sent: it is connected and not ejected.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.state.load(Relaxed) & !FAILING == Connectivity::Ready as u8
    }

    /// Whether it is ready, and not failing: what nearly all are, in one comparison.
    #[inline]
    pub(crate) fn is_good(&self) -> bool {
        self.state.load(Relaxed) == Connectivity::Ready as u8
    }

    /// Current connectivity.
    pub fn connectivity(&self) -> Connectivity {
        match self.state.load(Relaxed) & !NOT_CONNECTIVITY {
            0 => Connectivity::Idle,
            1 => Connectivity::Connecting,
            2 => Connectivity::Ready,
            _ => Connectivity::TransientFailure,
        }
    }

    /// The connectivity as requests see it: an ejected endpoint (gRFC A50) and one whose health checks
    /// fail cannot be used; one that waits for its first check is as one that connects.
    pub fn availability(&self) -> Connectivity {
        let state = self.state.load(Relaxed);
        if state & (EJECTED | UNHEALTHY) != 0 {
            return Connectivity::TransientFailure;
        }
        if state & UNCHECKED != 0 {
            return Connectivity::Connecting;
        }
        self.connectivity()
    }

    /// Sets the connectivity; only the owner of the connection does this.
    pub fn set_connectivity(&self, connectivity: Connectivity) {
        let change = |state| Some(state & NOT_CONNECTIVITY | connectivity as u8);
        let before = self.state.fetch_update(Relaxed, Relaxed, change);
        let was_ready =
            before.is_ok_and(|state| state & !NOT_CONNECTIVITY == Connectivity::Ready as u8);
        if connectivity == Connectivity::Ready
            && !was_ready
            && let Some(observed) = self.observed.get()
        {
            observed.reconnected();
        }
    }

    /// Asks for a connection, where the policy has endpoints connected that are picked and no others.
    #[cold]
    pub(crate) fn want(&self) {
        self.wanted.store(1, Relaxed);
    }

    /// Whether a pick asked for a connection since the last call of this.
    pub fn take_wanted(&self) -> bool {
        self.wanted.load(Relaxed) != 0 && self.wanted.swap(0, Relaxed) != 0
    }

    /// Whether it gets no requests because too many of them failed.
    pub fn is_ejected(&self) -> bool {
        self.state.load(Relaxed) & EJECTED != 0
    }

    /// Ejects it, or takes it back; only the sweep does this.
    pub fn set_ejected(&self, is_ejected: bool) {
        if is_ejected {
            self.state.fetch_or(EJECTED, Relaxed);
        } else {
            self.state.fetch_and(!FLAGS, Relaxed);
        }
    }

    /// Sets what its active health checks say; only they do this.
    pub fn set_checked(&self, health: CheckedHealth) {
        let bits = match health {
            CheckedHealth::Healthy => 0,
            CheckedHealth::Unchecked => UNCHECKED,
            CheckedHealth::Unhealthy => UNHEALTHY,
        };
        let change = |state| Some(state & !(UNHEALTHY | UNCHECKED) | bits);
        _ = self.state.fetch_update(Relaxed, Relaxed, change);
    }

    /// Lets one request through although it is ejected; only the sweep does this.
    pub fn ask_probe(&self) {
        self.state.fetch_or(PROBE, Relaxed);
    }

    /// Whether one request may go there although it is ejected.
    pub fn wants_probe(&self) -> bool {
        self.state.load(Relaxed) & !FAILING == FLAGS | Connectivity::Ready as u8
    }

    /// Takes the place of that one request; `false` when another one has.
    pub fn take_probe(&self) -> bool {
        self.wants_probe() && self.state.fetch_and(!PROBE, Relaxed) & PROBE != 0
    }

    /// What policies remember of it, if one has written something.
    pub fn observed(&self) -> Option<&Observed> {
        self.observed.get().map(|observed| &**observed)
    }

    /// What policies remember of it.
    pub fn observe(&self, now: Instant) -> &Observed {
        self.observed.get_or_init(|| Box::new(Observed::new(now)))
    }
}
