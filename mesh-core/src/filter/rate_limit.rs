//! Rate limits of this process (Envoy `LocalRateLimit`).
//!
//! A request takes a token from the bucket of each of its descriptors, the slowest first, and from the
//! filter's own. Descriptors without a value have a bucket for each value that comes; the one that was
//! not used for the longest time makes room for the next, so that their number is bounded.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};

use super::{Answer, FilterRequest, bucket::AtomicBucket, status_of};
use crate::{
    config::{DescriptorSource, HeaderChanges, LocalRateLimit, RateLimit, TokenBucket},
    rng::Rng,
};

/// What Envoy says.
const BODY: &str = "local_rate_limited";
/// `RESOURCE_EXHAUSTED`.
const RESOURCE_EXHAUSTED: u32 = 8;
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Buckets of one configuration.
#[derive(Debug)]
pub struct RateLimiter {
    config: Arc<LocalRateLimit>,
    own: Option<Arc<AtomicBucket>>,
    /// The slowest first, so that a request which is refused takes from few others.
    descriptors: Box<[Descriptor]>,
}

#[derive(Debug)]
struct Descriptor {
    entries: Box<[(Arc<str>, Arc<str>)]>,
    buckets: Buckets,
}

#[derive(Debug)]
enum Buckets {
    One(Arc<AtomicBucket>),
    EachValue(Mutex<Lru>),
}

/// What became of a request.
#[derive(Debug)]
pub enum Limited {
    /// Nobody counted it.
    NotCounted,
    /// It may pass; responses get these headers.
    Passes(HeaderMap),
    /// It is over the limit, which is not enforced.
    OverLimit(HeaderMap),
    /// It is refused.
    Refused(Answer),
}

impl RateLimiter {
    pub(super) fn new(config: &Arc<LocalRateLimit>) -> Self {
        let mut descriptors: Vec<_> = config.descriptors.iter().collect();
        descriptors.sort_by(|a, b| rate(&a.token_bucket).total_cmp(&rate(&b.token_bucket)));
        let descriptors = descriptors.into_iter().map(|descriptor| {
            let bucket = descriptor.token_bucket;
            let is_open = descriptor.entries.iter().any(|(_, value)| value.is_empty());
            Descriptor {
                entries: descriptor.entries.clone().into(),
                buckets: match is_open {
                    true => {
                        let max = config.max_dynamic_descriptors as usize;
                        Buckets::EachValue(Mutex::new(Lru::new(bucket, max)))
                    }
                    false => Buckets::One(Arc::new(AtomicBucket::new(bucket))),
                },
            }
        });
        Self {
            config: Arc::clone(config),
            own: config
                .token_bucket
                .map(|bucket| Arc::new(AtomicBucket::new(bucket))),
            descriptors: descriptors.collect(),
        }
    }

    /// What it was made from.
    pub fn config(&self) -> &Arc<LocalRateLimit> {
        &self.config
    }

    pub(super) fn is_without_effect(config: &LocalRateLimit) -> bool {
        config.filter_enabled.is_none()
            || (config.token_bucket.is_none() && config.descriptors.is_empty())
    }

    pub(super) fn request_headers_when_not_enforced(&self) -> &HeaderChanges {
        &self.config.request_headers_when_not_enforced
    }

    pub(super) fn response_headers(&self) -> &HeaderChanges {
        &self.config.response_headers
    }

    /// Counts a request whose descriptors are made by `rate_limits`.
    pub fn decide(
        &self,
        request: &FilterRequest<'_>,
        rate_limits: &[RateLimit],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Limited {
        let config = &*self.config;
        let enabled = config.filter_enabled;
        if !enabled.is_some_and(|share| share.contains(rng.next_u64())) {
            return Limited::NotCounted;
        }
        let (is_allowed, bucket) = self.take(request, rate_limits, now);
        let mut headers = HeaderMap::new();
        if let Some(bucket) = bucket.as_ref().filter(|_| config.x_ratelimit_headers) {
            headers.insert(LIMIT, HeaderValue::from(bucket.config().max_tokens));
            headers.insert(REMAINING, HeaderValue::from(bucket.remaining(now)));
            let reset = bucket.reset(now).as_secs_f64().ceil() as u64;
            headers.insert(RESET, HeaderValue::from(reset));
        }
        if is_allowed {
            return Limited::Passes(headers);
        }
        let enforced = config.filter_enforced;
        if !enforced.is_some_and(|share| share.contains(rng.next_u64())) {
            return Limited::OverLimit(headers);
        }
        if let Some(bucket) = bucket.filter(|_| config.retry_after_header) {
            let wait = bucket.next_token(now).as_secs_f64().ceil() as u64;
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.max(1)));
        }
        let exhausted = config.rate_limited_as_resource_exhausted;
        Limited::Refused(Answer {
            grpc_status: exhausted.then_some(RESOURCE_EXHAUSTED),
            headers,
            ..Answer::new(status_of(config.status), BODY)
        })
    }

    /// Whether there is a token in each bucket of the request, and the bucket that decided.
    fn take(
        &self,
        request: &FilterRequest<'_>,
        rate_limits: &[RateLimit],
        now: Instant,
    ) -> (bool, Option<Arc<AtomicBucket>>) {
        let mut decisive = None;
        if !self.descriptors.is_empty() {
            let made: Vec<_> = rate_limits
                .iter()
                .filter_map(|limit| descriptor(limit, request))
                .collect();
            for descriptor in &self.descriptors {
                let Some(of_request) = made.iter().find(|made| descriptor.is_match(made)) else {
                    continue;
                };
                let bucket = descriptor.bucket(of_request);
                if !bucket.try_take(now) {
                    return (false, Some(bucket));
                }
                decisive.get_or_insert(bucket);
            }
        }
        if decisive.is_some() && !self.config.always_consume_default_token_bucket {
            return (true, decisive);
        }
        match &self.own {
            Some(own) if !own.try_take(now) => (false, Some(Arc::clone(own))),
            own => (true, decisive.or_else(|| own.clone())),
        }
    }
}

impl Descriptor {
    fn is_match(&self, made: &[(&str, Cow<'_, str>)]) -> bool {
        self.entries.len() == made.len()
            && self
                .entries
                .iter()
                .zip(made)
                .all(|((key, value), (made_key, made_value))| {
                    **key == **made_key && (value.is_empty() || **value == **made_value)
                })
    }

    fn bucket(&self, made: &[(&str, Cow<'_, str>)]) -> Arc<AtomicBucket> {
        match &self.buckets {
            Buckets::One(bucket) => Arc::clone(bucket),
            Buckets::EachValue(buckets) => {
                let values = made.iter().map(|(_, value)| &**value).collect();
                let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
                buckets.bucket(values)
            }
        }
    }
}

/// The descriptor that `limit` makes of a request.
fn descriptor<'r>(
    limit: &'r RateLimit,
    request: &FilterRequest<'r>,
) -> Option<Vec<(&'r str, Cow<'r, str>)>> {
    let mut made = Vec::with_capacity(limit.entries.len());
    for entry in &limit.entries {
        let value = match &entry.source {
            DescriptorSource::Constant(value) => Cow::Borrowed(&**value),
            DescriptorSource::DestinationCluster => Cow::Borrowed(request.cluster),
            DescriptorSource::Header {
                name,
                skip_if_absent,
            } => match request.view.headers.get(name) {
                Some(value) => String::from_utf8_lossy(value.as_bytes()),
                None if *skip_if_absent => continue,
                None => return None,
            },
            DescriptorSource::RemoteAddress => Cow::Owned(request.remote?.to_string()),
            DescriptorSource::PeerIdentity => Cow::Borrowed(request.peer?),
            DescriptorSource::HeaderMatch {
                matchers,
                expect,
                value,
            } => {
                let is_match = matchers
                    .iter()
                    .all(|header| header.is_match(request.view.header(&header.name).as_deref()));
                if is_match != *expect {
                    return None;
                }
                Cow::Borrowed(&**value)
            }
        };
        made.push((&*entry.key, value));
    }
    (!made.is_empty()).then_some(made)
}

/// Tokens in a second.
fn rate(bucket: &TokenBucket) -> f64 {
    f64::from(bucket.tokens_per_fill) / bucket.fill_interval.as_secs_f64()
}

type Values = Box<[String]>;

/// A bucket for each of the values that were used last.
#[derive(Debug)]
struct Lru {
    config: TokenBucket,
    max: usize,
    buckets: HashMap<Arc<Values>, (u64, Arc<AtomicBucket>)>,
    /// Uses in order; the first is the oldest.
    used: BTreeMap<u64, Arc<Values>>,
    uses: u64,
}

impl Lru {
    fn new(config: TokenBucket, max: usize) -> Self {
        Self {
            config,
            max,
            buckets: HashMap::new(),
            used: BTreeMap::new(),
            uses: 0,
        }
    }

    fn bucket(&mut self, values: Vec<&str>) -> Arc<AtomicBucket> {
        let values: Values = values.into_iter().map(str::to_owned).collect();
        self.uses += 1;
        if let Some((used, bucket)) = self.buckets.get_mut(&values) {
            if let Some(values) = self.used.remove(used) {
                self.used.insert(self.uses, values);
            }
            *used = self.uses;
            return Arc::clone(bucket);
        }
        if self.buckets.len() >= self.max
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.buckets.remove(&oldest);
        }
        let (values, bucket) = (Arc::new(values), Arc::new(AtomicBucket::new(self.config)));
        self.used.insert(self.uses, Arc::clone(&values));
        self.buckets
            .insert(values, (self.uses, Arc::clone(&bucket)));
        bucket
    }
}
