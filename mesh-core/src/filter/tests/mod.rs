//! Filters: decisions, in simulated time and by property.

mod concurrency;
mod ext_authz;
mod fault;
mod key_refresh;
mod limit;
mod merge;
mod run;

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::*;
use crate::{config::*, rng::SplitMix64};

/// A request to build views from.
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

impl Head {
    pub(super) fn new(headers: &[(&'static str, &str)]) -> Self {
        let pairs = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        });
        Self {
            method: Method::GET,
            uri: Uri::from_static("/"),
            headers: pairs.collect(),
        }
    }

    pub(super) fn request(&self) -> FilterRequest<'_> {
        FilterRequest {
            view: RequestView::new(&self.method, &self.uri, "a", &self.headers),
            route: "r",
            cluster: "c",
            remote: None,
            peer: None,
        }
    }
}

pub(super) fn percent(number: u32) -> Fraction {
    Fraction::new(number, 100).expect("not zero")
}

pub(super) fn bucket(max_tokens: u32, tokens_per_fill: u32, millis: u64) -> TokenBucket {
    TokenBucket {
        max_tokens,
        tokens_per_fill,
        fill_interval: Duration::from_millis(millis),
    }
}

pub(super) fn compiled(filters: &[HttpFilter]) -> Filters {
    compile("test", filters, &mut FilterStates::new(1)).expect("filters that do something")
}

pub(super) fn limited(limit: LocalRateLimit) -> HttpFilter {
    HttpFilter::new("limit", FilterConfig::LocalRateLimit(Arc::new(limit)))
}

/// Runs a request through filters without waiting: delays, and the answer.
pub(super) fn run(
    filters: &[Filter],
    head: &Head,
    now: Instant,
    rng: &mut SplitMix64,
) -> (Duration, Option<Answer>, Passed) {
    let mut run = Run::new(filters);
    let mut delay = Duration::ZERO;
    let answer = loop {
        match run.advance(&head.request(), now, rng) {
            Step::Wait(more) => delay += more,
            Step::Answer(answer) => break Some(*answer),
            Step::Authorize(_) | Step::Authenticate(_) | Step::Check(_) => {}
            Step::Pass => break None,
        }
    };
    (delay, answer, run.end())
}
