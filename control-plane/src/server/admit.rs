//! How many streams there may be, and how many new ones in a second.
//!
//! When a control plane comes back, all clients come at once; those that are too many are told to
//! come later instead of slowing down everybody.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tonic::{Status, metadata::MetadataValue};

/// Streams that may be open at the same time.
const STREAMS_MAX: usize = 40_000;
/// New streams in a second, in the long run.
const STREAMS_PER_SECOND: u32 = 2_000;
/// New streams at once, after a quiet time.
const STREAMS_BURST: u32 = 4_000;
/// A refused client is asked to wait so long before it comes again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How gRPC is told so (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Limits on streams.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams that may be open at the same time. Default 40,000.
    pub streams: usize,
    /// New streams in a second, in the long run. Default 2,000.
    pub streams_per_second: u32,
    /// New streams at once, after a quiet time. Default 4,000.
    pub burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: STREAMS_MAX,
            streams_per_second: STREAMS_PER_SECOND,
            burst: STREAMS_BURST,
        }
    }
}

/// Counts streams.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    open: Arc<AtomicUsize>,
    /// Streams that may begin now, as of when.
    tokens: Mutex<Option<(f64, Instant)>>,
}

/// A stream that was admitted; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: Arc::default(),
            tokens: Mutex::default(),
        }
    }

    /// A place for a stream, or RESOURCE_EXHAUSTED with the reason.
    pub(super) fn admit(&self, now: Instant) -> Result<Place, Status> {
        let Limits {
            streams,
            streams_per_second,
            burst,
        } = self.limits;
        // Counted first, so that two cannot take the last place.
        let open = self.open.fetch_add(1, Relaxed);
        let place = Place(Arc::clone(&self.open));
        if open >= streams {
            return Err(exhausted(format!(
                "{streams} streams are open, which is the limit"
            )));
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, at) = tokens.unwrap_or((f64::from(burst), now));
        let earned =
            now.saturating_duration_since(at).as_secs_f64() * f64::from(streams_per_second);
        let held = (held + earned).min(f64::from(burst));
        if held < 1.0 {
            *tokens = Some((held, now));
            let message = format!("more than {streams_per_second} new streams in a second");
            return Err(exhausted(message));
        }
        *tokens = Some((held - 1.0, now));
        Ok(place)
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
        let places = [admission.admit(now).unwrap(), admission.admit(now).unwrap()];
        let refused = admission.admit(now).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.metadata().get(PUSHBACK).unwrap(), "1000");
        drop(places);
        assert!(admission.admit(now).is_ok());
    }

    #[test]
    fn new_streams_come_at_a_rate() {
        let admission = Admission::new(Limits {
            streams: 100,
            streams_per_second: 10,
            burst: 3,
        });
        let begin = Instant::now();
        let mut places = Vec::new();
        let mut admitted = |after: Duration| {
            let count = places.len();
            while let Ok(place) = admission.admit(begin + after) {
                places.push(place);
            }
            places.len() - count
        };
        assert_eq!(admitted(Duration::ZERO), 3);
        assert_eq!(admitted(Duration::from_millis(100)), 1);
        assert_eq!(admitted(Duration::from_millis(199)), 0);
        assert_eq!(admitted(Duration::from_secs(60)), 3);
    }
}
