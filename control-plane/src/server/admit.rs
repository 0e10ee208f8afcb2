//! How many streams there may be, how many new ones in a second, and what each may ask.
//!
//! When a control plane comes back, all clients come at once; those that are too many are told to
//! come later instead of slowing down everybody. One identity cannot take the place of all others,
//! and one stream can neither keep the control plane busy nor fill its memory with names.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tonic::{Status, metadata::MetadataValue};

use crate::ca::Identity;

/// Streams that may be open at the same time.
const STREAMS_MAX: usize = 40_000;
/// New streams in a second, in the long run.
const STREAMS_PER_SECOND: u32 = 2_000;
/// New streams at once, after a quiet time.
const STREAMS_BURST: u32 = 4_000;
/// Requests of a stream in a second, in the long run. gRPC sends one for each name that it begins
/// to need, and one for each response.
const REQUESTS_PER_SECOND: u32 = 1_000;
/// Requests of a stream at once: a client of 10,000 clusters asks for each of its endpoints.
const REQUESTS_BURST: u32 = 50_000;
/// Requests of all streams of an identity in a second, and at once: those of twenty streams.
const STREAMS_WORTH: u32 = 20;
/// Bytes of a request: in state of the world it names everything that its client subscribes to.
const REQUEST_BYTES_MAX: usize = 32 << 20;
/// Names that a stream may subscribe to, all types together.
const NAMES_MAX: usize = 250_000;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 4_096;
/// Identities that are remembered; beyond that those at rest are forgotten.
const REMEMBERED_MAX: usize = 10_000;
/// A refused client is asked to wait so long before it comes again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How gRPC is told so (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// Characters of a name that is too long, in its refusal.
const NAME_SHOWN: usize = 64;

/// Limits on streams. What exceeds one is refused with RESOURCE_EXHAUSTED and the limit's name.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams that may be open at the same time. Default 40,000.
    pub streams: usize,
    /// New streams in a second, in the long run. Default 2,000.
    pub streams_per_second: u32,
    /// New streams at once, after a quiet time. Default 4,000.
    pub burst: u32,
    /// Streams that one identity may have open. Default half of `streams`.
    pub streams_per_identity: usize,
    /// Requests of a stream in a second, in the long run; of all streams of an identity twenty times
    /// as many. Default 1,000.
    pub requests_per_second: u32,
    /// Requests of a stream at once; of all streams of an identity twenty times as many. Default
    /// 50,000.
    pub requests_burst: u32,
    /// Bytes of a request. Default 32 MiB.
    pub request_bytes: usize,
    /// Names that a stream may subscribe to, all types together. Default 250,000.
    pub names: usize,
    /// Bytes of a name. Default 4,096.
    pub name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: STREAMS_MAX,
            streams_per_second: STREAMS_PER_SECOND,
            burst: STREAMS_BURST,
            streams_per_identity: STREAMS_MAX / 2,
            requests_per_second: REQUESTS_PER_SECOND,
            requests_burst: REQUESTS_BURST,
            request_bytes: REQUEST_BYTES_MAX,
            names: NAMES_MAX,
            name_bytes: NAME_BYTES_MAX,
        }
    }
}

/// What may be done now, as of when; full before it is first asked.
#[derive(Debug, Default)]
struct Bucket(Option<(f64, Instant)>);

impl Bucket {
    fn take(&mut self, now: Instant, per_second: u32, burst: u32) -> bool {
        let held = self.level(now, per_second, burst);
        let may = held >= 1.0;
        self.0 = Some((if may { held - 1.0 } else { held }, now));
        may
    }

    fn level(&self, now: Instant, per_second: u32, burst: u32) -> f64 {
        let (held, at) = self.0.unwrap_or_else(|| (f64::from(burst), now));
        let earned = now.saturating_duration_since(at).as_secs_f64() * f64::from(per_second);
        (held + earned).min(f64::from(burst))
    }
}

/// What an identity has of everything.
#[derive(Debug, Default)]
struct Share {
    /// Streams that are open.
    open: Arc<AtomicUsize>,
    requests: Mutex<Bucket>,
}

/// Counts streams.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    open: Arc<AtomicUsize>,
    begun: Mutex<Bucket>,
    shares: Mutex<HashMap<Identity, Arc<Share>>>,
}

/// A stream that was admitted, with what it may still ask; gives its places back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    limits: Limits,
    requests: Bucket,
    share: Option<Arc<Share>>,
    _counted: Vec<Counted>,
}

/// One of those that are open.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Counted first, so that two cannot take the last place.
    fn new(open: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let before = open.fetch_add(1, Relaxed);
        let counted = Self(Arc::clone(open));
        (before < limit).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: Arc::default(),
            begun: Mutex::default(),
            shares: Mutex::default(),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A place for a stream, or RESOURCE_EXHAUSTED with the reason.
    pub(super) fn admit(&self, identity: Option<&Identity>, now: Instant) -> Result<Place, Status> {
        let limits = self.limits;
        let mut counted = Vec::new();
        let Some(one) = Counted::new(&self.open, limits.streams) else {
            let message = format!("{} streams are open, which is the limit", limits.streams);
            return Err(exhausted(message));
        };
        counted.push(one);
        let share = identity.map(|identity| self.share(identity, now));
        if let (Some(share), Some(identity)) = (&share, identity) {
            let Some(one) = Counted::new(&share.open, limits.streams_per_identity) else {
                return Err(exhausted(format!(
                    "{identity} has {} streams open, which is the limit for an identity",
                    limits.streams_per_identity
                )));
            };
            counted.push(one);
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = limits.streams_per_second;
        if !begun.take(now, per_second, limits.burst) {
            let message = format!("more than {per_second} new streams in a second");
            return Err(exhausted(message));
        }
        Ok(Place {
            limits,
            requests: Bucket::default(),
            share,
            _counted: counted,
        })
    }

    fn share(&self, identity: &Identity, now: Instant) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() >= REMEMBERED_MAX && !shares.contains_key(identity) {
            shares.retain(|_, share| !share.is_at_rest(&self.limits, now));
        }
        Arc::clone(shares.entry(identity.clone()).or_default())
    }
}

impl Limits {
    /// Requests of an identity in a second, and at once.
    fn requests_of_identity(&self) -> (u32, u32) {
        let worth = |one: u32| one.saturating_mul(STREAMS_WORTH);
        (worth(self.requests_per_second), worth(self.requests_burst))
    }
}

impl Share {
    fn take(&self, limits: &Limits, now: Instant) -> bool {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (per_second, burst) = limits.requests_of_identity();
        requests.take(now, per_second, burst)
    }

    fn is_at_rest(&self, limits: &Limits, now: Instant) -> bool {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (per_second, burst) = limits.requests_of_identity();
        self.open.load(Relaxed) == 0 && requests.level(now, per_second, burst) >= f64::from(burst)
    }
}

impl Place {
    /// Whether another request, which names `names`, may be looked at.
    pub(super) fn request<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str>,
        now: Instant,
    ) -> Result<(), Status> {
        let limits = self.limits;
        let per_second = limits.requests_per_second;
        if !self.requests.take(now, per_second, limits.requests_burst) {
            return Err(exhausted(format!(
                "more than {per_second} requests in a second on a stream"
            )));
        }
        if let Some(share) = &self.share
            && !share.take(&limits, now)
        {
            let (per_second, _) = limits.requests_of_identity();
            return Err(exhausted(format!(
                "more than {per_second} requests in a second of an identity"
            )));
        }
        let mut count = 0;
        for name in names {
            count += 1;
            if name.len() > limits.name_bytes {
                let begin: String = name.chars().take(NAME_SHOWN).collect();
                return Err(exhausted(format!(
                    "{begin:?}…: a name has {} bytes at most",
                    limits.name_bytes
                )));
            }
        }
        self.subscribed(count)
    }

    /// Whether a stream may subscribe to so many names.
    pub(super) fn subscribed(&self, names: usize) -> Result<(), Status> {
        let limit = self.limits.names;
        if names <= limit {
            return Ok(());
        }
        Err(exhausted(format!(
            "{names} names on a stream, of which there may be {limit}"
        )))
    }

    /// What is said of a request that could not be read.
    pub(super) fn unread(&self, error: &Status) -> Option<Status> {
        // This is how tonic says that a message is too long.
        (error.code() == tonic::Code::OutOfRange).then(|| {
            let limit = self.limits.request_bytes;
            exhausted(format!("a request has {limit} bytes at most"))
        })
    }
}

fn exhausted(message: String) -> Status {
    let mut status = Status::resource_exhausted(message);
    let pushback = MetadataValue::from(RETRY_AFTER.as_millis() as u64);
    status.metadata_mut().insert(PUSHBACK, pushback);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_given_back_and_the_one_past_it_is_refused() {
        let admission = Admission::new(Limits {
            streams: 2,
            ..Limits::default()
        });
        let now = Instant::now();
        let places = [
            admission.admit(None, now).unwrap(),
            admission.admit(None, now).unwrap(),
        ];
        let refused = admission.admit(None, now).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.metadata().get(PUSHBACK).unwrap(), "1000");
        drop(places);
        assert!(admission.admit(None, now).is_ok());
    }

    #[test]
    fn new_streams_come_at_a_rate() {
        let admission = Admission::new(Limits {
            streams: 100,
            streams_per_second: 10,
            burst: 3,
            ..Limits::default()
        });
        let begin = Instant::now();
        let mut places = Vec::new();
        let mut admitted = |after: Duration| {
            let count = places.len();
            while let Ok(place) = admission.admit(None, begin + after) {
                places.push(place);
            }
            places.len() - count
        };
        assert_eq!(admitted(Duration::ZERO), 3);
        assert_eq!(admitted(Duration::from_millis(100)), 1);
        assert_eq!(admitted(Duration::from_millis(199)), 0);
        assert_eq!(admitted(Duration::from_secs(60)), 3);
    }

    fn web() -> Identity {
        Identity::new("default", "web").unwrap()
    }

    #[test]
    fn an_identity_leaves_places_for_others() {
        let admission = Admission::new(Limits {
            streams_per_identity: 1,
            ..Limits::default()
        });
        let (now, web) = (Instant::now(), web());
        let place = admission.admit(Some(&web), now).unwrap();
        let refused = admission.admit(Some(&web), now).unwrap_err();
        assert!(
            refused.message().contains("sa/web has 1 streams"),
            "{refused}"
        );
        let other = Identity::new("default", "api").unwrap();
        let others = [
            admission.admit(Some(&other), now),
            admission.admit(None, now),
        ];
        assert!(others.iter().all(Result::is_ok));
        drop(place);
        assert!(admission.admit(Some(&web), now).is_ok());
        assert_eq!(admission.open.load(Relaxed), 2, "refusals hold no place");
    }

    #[test]
    fn requests_come_at_a_rate_by_stream_and_by_identity() {
        let admission = Admission::new(Limits {
            requests_per_second: 10,
            requests_burst: 2,
            ..Limits::default()
        });
        let (begin, web) = (Instant::now(), web());
        let ask = |place: &mut Place, after: u64| {
            let now = begin + Duration::from_millis(after);
            place.request(std::iter::empty(), now)
        };
        let mut one = admission.admit(None, begin).unwrap();
        assert!(ask(&mut one, 0).is_ok() && ask(&mut one, 0).is_ok());
        let refused = ask(&mut one, 99).unwrap_err();
        assert!(
            refused
                .message()
                .contains("10 requests in a second on a stream")
        );
        assert!(ask(&mut one, 100).is_ok());
        // Twenty streams' worth for all of an identity, and no more when it comes back.
        for _ in 0..20 {
            let mut stream = admission.admit(Some(&web), begin).unwrap();
            assert!(ask(&mut stream, 0).is_ok() && ask(&mut stream, 0).is_ok());
        }
        let mut stream = admission.admit(Some(&web), begin).unwrap();
        let refused = ask(&mut stream, 0).unwrap_err();
        assert!(
            refused
                .message()
                .contains("200 requests in a second of an identity")
        );
        assert!(ask(&mut stream, 5).is_ok());
    }

    #[test]
    fn names_are_bounded_in_number_and_length() {
        let admission = Admission::new(Limits {
            names: 2,
            name_bytes: 4,
            ..Limits::default()
        });
        let now = Instant::now();
        let mut place = admission.admit(None, now).unwrap();
        assert!(place.request(["abcd", "b"].into_iter(), now).is_ok());
        let refused = place.request(["a", "b", "c"].into_iter(), now).unwrap_err();
        assert!(refused.message().contains("there may be 2"), "{refused}");
        let refused = place.request(["abcde"].into_iter(), now).unwrap_err();
        assert!(refused.message().contains("4 bytes at most"), "{refused}");
        assert!(place.subscribed(3).is_err());
    }

    #[test]
    fn identities_that_are_gone_are_forgotten_and_those_at_work_are_not() {
        let admission = Admission::new(Limits::default());
        let now = Instant::now();
        let _place = admission.admit(Some(&web()), now).unwrap();
        for number in 0..2 * REMEMBERED_MAX {
            let identity = Identity::new("default", format!("a{number}")).unwrap();
            admission.share(&identity, now);
        }
        let shares = admission.shares.lock().unwrap();
        assert!(shares.len() <= REMEMBERED_MAX);
        assert!(shares.contains_key(&web()));
    }
}
