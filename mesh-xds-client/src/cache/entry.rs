//! What is known of one resource.
//!
//! Stage 4. The error model of gRFC A88: a failure either stands in for a value, or is ambient
//! beside a value that stays in use. An identical failure is not told twice.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use mesh_core::ConfigError;

use crate::{
    dump::{ResourceDump, ResourceStatus},
    metrics::CacheState,
};

/// A value with what people and storage want to know of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Good<T> {
    pub(crate) value: Arc<T>,
    pub(crate) about: About,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) version: Arc<str>,
    /// As received.
    pub(crate) raw: Bytes,
    /// Fields that are set and have no effect here.
    pub(crate) ignored: Vec<String>,
    pub(crate) updated: SystemTime,
    /// From an earlier run, and not confirmed by the control plane since.
    pub(crate) is_stored: bool,
}

/// Why there is no current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    pub(crate) error: ConfigError,
    pub(crate) since: SystemTime,
}

/// What went wrong with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It was refused.
    Rejected,
    /// The server says that there is none any more.
    Removed,
    /// The server sent an error in its place that is about the resource.
    DataError,
    /// The server sent an error in its place that may pass.
    ServerError,
    /// It did not come in time.
    Missing,
    /// It did not come in time, which with this server does not mean that there is none.
    TimedOut,
    /// Its time to live is over.
    Expired,
}

impl Cause {
    fn status(self) -> ResourceStatus {
        match self {
            Self::Rejected => ResourceStatus::Nacked,
            Self::Removed | Self::Missing | Self::Expired => ResourceStatus::DoesNotExist,
            Self::DataError | Self::ServerError => ResourceStatus::ReceivedError,
            Self::TimedOut => ResourceStatus::Timeout,
        }
    }
}

/// The value or error to use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resolved<T> {
    Value(Arc<T>),
    /// There never was a value.
    Error(ConfigError),
    /// There was one, which must not be used any more.
    Dropped(ConfigError),
}

impl<T> Resolved<T> {
    pub(crate) fn into_result(self) -> Result<Arc<T>, ConfigError> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Error(error) | Self::Dropped(error) => Err(error),
        }
    }
}

/// One resource.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    good: Option<Good<T>>,
    failure: Option<Box<Failure>>,
    is_dropped: bool,
}

/// What a value or a failure changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing that anybody is told.
    Nothing,
    /// What is known beside the value that stays in use.
    Beside,
    /// What is used.
    Used,
}

/// All that is known of a resource.
#[derive(Debug)]
pub(crate) struct Known<'c, T> {
    /// In use.
    pub(crate) value: Option<Arc<T>>,
    /// Why there is no current one.
    pub(crate) error: Option<&'c ConfigError>,
}

impl<T: PartialEq> Entry<T> {
    /// Asked for; `stored` is what an earlier run knew.
    pub(super) fn requested(stored: Option<Good<T>>) -> Self {
        Self {
            good: stored,
            failure: None,
            is_dropped: false,
        }
    }

    /// What to use; `None` while neither value nor error is known.
    pub(super) fn resolved(&self) -> Option<Resolved<T>> {
        match (&self.good, self.failure.as_deref()) {
            (Some(good), _) => Some(Resolved::Value(Arc::clone(&good.value))),
            (None, Some(failure)) if self.is_dropped => {
                Some(Resolved::Dropped(failure.error.clone()))
            }
            (None, Some(failure)) => Some(Resolved::Error(failure.error.clone())),
            (None, None) => None,
        }
    }

    pub(super) fn known(&self) -> Known<'_, T> {
        Known {
            value: self.good.as_ref().map(|good| Arc::clone(&good.value)),
            error: self.failure.as_ref().map(|failure| &failure.error),
        }
    }

    /// Whether what is used is from an earlier run.
    pub(super) fn is_stale(&self) -> bool {
        self.good.as_ref().is_some_and(|good| good.about.is_stored)
    }

    pub(super) fn good(&self) -> Option<&Good<T>> {
        self.good.as_ref()
    }

    /// A good value came.
    pub(super) fn accept(&mut self, name: &str, mut good: Good<T>) -> Effect {
        let is_good_again = self.failure.take().is_some();
        if is_good_again {
            tracing::info!(resource = name, "is good again");
        }
        self.is_dropped = false;
        if let Some(held) = &mut self.good
            && (Arc::ptr_eq(&held.value, &good.value) || held.value == good.value)
        {
            // The old pointer stays, so that nothing downstream moves.
            good.value = Arc::clone(&held.value);
            *held = good;
            return match is_good_again {
                true => Effect::Beside,
                false => Effect::Nothing,
            };
        }
        self.good = Some(good);
        Effect::Used
    }

    /// A failure came; `drops` is whether it takes the value with it.
    pub(super) fn fail(&mut self, failure: Failure, drops: bool) -> Effect {
        let held = self.failure.as_deref();
        if held.is_some_and(|held| held.cause == failure.cause && held.error == failure.error) {
            return Effect::Nothing;
        }
        let error = &failure.error;
        let is_dropped = drops && self.good.is_some();
        match (&self.good, is_dropped) {
            (Some(_), true) => tracing::warn!(%error, "the last good value is dropped"),
            (Some(_), false) => tracing::warn!(%error, "the last good value stays in use"),
            (None, _) => tracing::warn!(%error, "there is no earlier value to use"),
        }
        self.failure = Some(Box::new(failure));
        if is_dropped {
            self.good = None;
            self.is_dropped = true;
        }
        match self.good {
            Some(_) => Effect::Beside,
            None => Effect::Used,
        }
    }

    /// For metrics.
    pub(super) fn state(&self) -> CacheState {
        let status = match (&self.failure, &self.good) {
            (Some(failure), _) => failure.cause.status(),
            (None, Some(_)) => ResourceStatus::Acked,
            (None, None) => ResourceStatus::Requested,
        };
        CacheState {
            status,
            is_but_cached: self.failure.is_some() && self.good.is_some(),
        }
    }

    pub(super) fn dump(&self, type_url: &'static str, name: &str) -> ResourceDump {
        let about = self.good.as_ref().map(|good| &good.about);
        ResourceDump {
            type_url,
            name: name.to_owned(),
            status: self.state().status,
            version: about.map_or_else(String::new, |about| about.version.to_string()),
            config: about.map(|about| about.raw.clone()),
            updated: about.map(|about| about.updated),
            error: self.failure.as_ref().map(|failure| failure.error.clone()),
            failed_at: self.failure.as_ref().map(|failure| failure.since),
            ignored_fields: about.map(|about| about.ignored.clone()).unwrap_or_default(),
            is_stored: about.is_some_and(|about| about.is_stored),
        }
    }
}
