//! Answers that this process gives by itself, by what they are and why.
//!
//! What Envoy calls local replies. Every call and every served request that is answered without an
//! endpoint, or without the application, is counted here once. The reasons are a fixed set, so that no
//! series grows with traffic.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use mesh_core::{
    filter::FilterAction,
    shard::{Padded, Sharded},
};

use super::code::{CODES, Code};
use crate::ErrorKind;

/// Why a request is answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalReplyReason {
    /// It cannot go where it should.
    Error(ErrorKind),
    /// What a filter did.
    Filter(FilterAction),
    /// Its route, or the spelling of its path, leads elsewhere.
    Redirect,
    /// Its route has the answer.
    DirectResponse,
    /// None of its tokens is believed.
    Unauthenticated,
    /// Authorisation refuses it.
    Denied,
    /// It names more than one authority.
    BadAuthority,
    /// Its path has no one meaning.
    BadPath,
    /// Its `grpc-timeout` cannot be read.
    BadTimeout,
    /// A header has a name that is not taken.
    BadHeader,
    /// Its body cannot be read.
    BadBody,
    /// Its headers are too many or too long.
    HeadersTooLarge,
    /// It took too long to come.
    RequestTimeout,
    /// Its connection is not served any more.
    NotServing,
    /// The application failed.
    ApplicationFailed,
    /// Its caller went away first: nobody was answered.
    Cancelled,
}

impl From<FilterAction> for LocalReplyReason {
    fn from(action: FilterAction) -> Self {
        Self::Filter(action)
    }
}

impl From<ErrorKind> for LocalReplyReason {
    fn from(kind: ErrorKind) -> Self {
        Self::Error(kind)
    }
}

impl LocalReplyReason {
    const OWN: [Self; 14] = [
        Self::Redirect,
        Self::DirectResponse,
        Self::Unauthenticated,
        Self::Denied,
        Self::BadAuthority,
        Self::BadPath,
        Self::BadTimeout,
        Self::BadHeader,
        Self::BadBody,
        Self::HeadersTooLarge,
        Self::RequestTimeout,
        Self::NotServing,
        Self::ApplicationFailed,
        Self::Cancelled,
    ];
    const COUNT: usize = Self::OWN.len() + FilterAction::ALL.len() + ErrorKind::ALL.len();

    /// All of them, in the order of their indexes.
    fn all() -> impl Iterator<Item = Self> {
        let filters = FilterAction::ALL.into_iter().map(Self::Filter);
        let errors = ErrorKind::ALL.into_iter().map(Self::Error);
        Self::OWN.into_iter().chain(filters).chain(errors)
    }

    /// A number below [`COUNT`](Self::COUNT).
    fn index(self) -> usize {
        let found = Self::all().position(|other| other == self);
        found.unwrap_or(Self::COUNT - 1)
    }

    /// The label of metrics and spans.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Error(kind) => kind.label(),
            Self::Filter(action) => action.label(),
            Self::Redirect => "redirect",
            Self::DirectResponse => "direct_response",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::BadAuthority => "bad_authority",
            Self::BadPath => "bad_path",
            Self::BadTimeout => "bad_timeout",
            Self::BadHeader => "bad_header",
            Self::BadBody => "bad_body",
            Self::HeadersTooLarge => "headers_too_large",
            Self::RequestTimeout => "request_timeout",
            Self::NotServing => "not_serving",
            Self::ApplicationFailed => "application_failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How many answers were given here, by reason and how they look to the caller.
#[derive(Default)]
pub(super) struct LocalReplies {
    /// Made by the first one of each reason: most are never given.
    counts: OnceLock<Box<[OfReason; LocalReplyReason::COUNT]>>,
}

type OfReason = OnceLock<Sharded<Padded<Ended>>>;

#[derive(Default)]
struct Ended {
    codes: [AtomicU64; CODES],
}

impl LocalReplies {
    #[cold]
    pub(super) fn count(&self, reason: LocalReplyReason, code: Code) {
        let empty = || Box::new([const { OnceLock::new() }; LocalReplyReason::COUNT]);
        let of_reason = &self.counts.get_or_init(empty)[reason.index()];
        let (shard, adder) = of_reason.get_or_init(Sharded::default).counters();
        adder.add(&shard.codes[code.index()], 1);
    }

    /// Adds what was counted so far to `totals`.
    pub(super) fn add_to(&self, totals: &mut LocalReplyTotals) {
        let reasons = self.counts.get().map(|counts| &counts[..]);
        for (place, shards) in reasons.unwrap_or_default().iter().enumerate() {
            for shard in shards.get().iter().flat_map(|shards| shards.iter()) {
                for (code, count) in shard.codes.iter().enumerate() {
                    totals.0[place][code] += count.load(Relaxed);
                }
            }
        }
    }
}

impl fmt::Debug for LocalReplies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalReplies").finish_non_exhaustive()
    }
}

/// The sum over all shards.
#[derive(Debug)]
pub(super) struct LocalReplyTotals([[u64; CODES]; LocalReplyReason::COUNT]);

impl Default for LocalReplyTotals {
    fn default() -> Self {
        Self([[0; CODES]; LocalReplyReason::COUNT])
    }
}

impl LocalReplyTotals {
    /// How many of which reason and code; only what happened.
    pub(super) fn counted(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let reasons = LocalReplyReason::all().zip(&self.0);
        reasons.flat_map(|(reason, codes)| {
            let counted = codes.iter().enumerate().filter(|(_, count)| **count > 0);
            counted.map(move |(code, count)| (reason.label(), Code::label_of(code), *count))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_reason_has_a_label_and_a_counter_of_its_own() {
        let labels: BTreeSet<_> = LocalReplyReason::all()
            .map(LocalReplyReason::label)
            .collect();
        assert_eq!(labels.len(), LocalReplyReason::COUNT);
        let replies = LocalReplies::default();
        for (index, reason) in LocalReplyReason::all().enumerate() {
            assert_eq!(reason.index(), index, "{reason:?}");
            replies.count(reason, Code::Http(503));
        }
        replies.count(LocalReplyReason::Denied, Code::Grpc(7));
        let mut totals = LocalReplyTotals::default();
        replies.add_to(&mut totals);
        assert_eq!(totals.counted().count(), LocalReplyReason::COUNT + 1);
        assert!(
            totals
                .counted()
                .any(|held| held == ("denied", "PERMISSION_DENIED", 1))
        );
    }
}
