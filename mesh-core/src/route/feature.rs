//! What a route can ask for beyond sending a request to a cluster, and what of it is executed.
//!
//! The engine decides all of it. Until the data plane executes a feature, the decoders report its
//! fields, and a route that must not be followed without it fails its requests.

use std::fmt;

use crate::config::{Forward, RouteAction};

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $text:literal;)*) => {
        /// Something that a route can ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Feature { $($(#[$doc])* $name,)* }

        impl Feature {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            const fn bit(self) -> u32 {
                match self { $(Self::$name => 1 << $bit,)* }
            }
        }

        impl fmt::Display for Feature {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

features! {
    /// [`RouteAction::Redirect`].
    Redirect = 0, "redirect";
    /// [`RouteAction::DirectResponse`].
    DirectResponse = 1, "direct_response";
    /// `prefix_rewrite`, `regex_rewrite`, `path_rewrite_policy`.
    PathRewrite = 2, "a path rewrite";
    /// `host_rewrite_*`, `auto_host_rewrite`, `append_x_forwarded_host`.
    HostRewrite = 3, "a host rewrite";
    /// The cluster that a header names.
    ClusterHeader = 4, "cluster_header";
    /// Changes of headers.
    HeaderMutations = 5, "a change of headers";
    /// Weighted clusters by hash or by header.
    StickyWeights = 6, "random_value_specifier";
    /// The hash that is given to the picker, and the cookie that it may come from.
    HashPolicy = 7, "hash_policy";
    /// Copies of requests.
    Mirror = 8, "request_mirror_policies";
    /// Attempts side by side.
    Hedge = 9, "hedge_policy";
    /// Streams without data.
    IdleTimeout = 10, "idle_timeout";
    /// `retriable_headers`, `retriable_request_headers`, `envoy-ratelimited`.
    RetriableHeaders = 11, "retry on headers";
    /// `rate_limited_retry_back_off`.
    RateLimitedBackoff = 12, "rate_limited_retry_back_off";
    /// `per_try_idle_timeout`.
    PerTryIdleTimeout = 13, "per_try_idle_timeout";
    /// `retry_host_predicate`, `host_selection_retry_max_attempts`.
    HostPredicates = 14, "retry_host_predicate";
}

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// What the data plane executes. The one place to change when it learns another feature.
    pub const EXECUTED: Self = Self::of(&[
        Feature::Redirect,
        Feature::DirectResponse,
        Feature::PathRewrite,
        Feature::HostRewrite,
        Feature::ClusterHeader,
        Feature::HeaderMutations,
        Feature::StickyWeights,
        Feature::HashPolicy,
        Feature::Mirror,
        Feature::Hedge,
        Feature::IdleTimeout,
        Feature::RetriableHeaders,
        Feature::RateLimitedBackoff,
        Feature::PerTryIdleTimeout,
        Feature::HostPredicates,
    ]);
    /// All.
    pub const ALL: Self = Self::of(Feature::ALL);

    /// These.
    pub const fn of(features: &[Feature]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < features.len() {
            bits |= features[i].bit();
            i += 1;
        }
        Self(bits)
    }

    /// Whether `feature` is among them.
    pub const fn contains(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }
}

impl Feature {
    /// Whether the data plane executes it.
    pub const fn is_executed(self) -> bool {
        Features::EXECUTED.contains(self)
    }

    /// The features without which `action` would send a request to a wrong place, or not answer
    /// it as asked.
    pub fn required_by(action: &RouteAction) -> Vec<Self> {
        match action {
            RouteAction::Redirect(_) => vec![Self::Redirect],
            RouteAction::DirectResponse(_) => vec![Self::DirectResponse],
            RouteAction::Forward(forward) => Self::required_to_forward(forward),
            RouteAction::NonForwarding | RouteAction::Unsupported(_) => Vec::new(),
        }
    }

    fn required_to_forward(forward: &Forward) -> Vec<Self> {
        let mut needed = Vec::new();
        if let Some(extras) = &forward.extras {
            let asked = [
                (Self::ClusterHeader, extras.cluster_header.is_some()),
                (Self::PathRewrite, extras.path_rewrite.is_some()),
                (Self::HostRewrite, extras.host_rewrite.is_some()),
            ];
            needed.extend(asked.into_iter().filter(|(_, is)| *is).map(|(f, _)| f));
        }
        let mut clusters = forward.clusters.iter().flat_map(|c| &c.extras);
        if clusters.any(|extras| extras.host_rewrite.is_some()) {
            needed.push(Self::HostRewrite);
        }
        needed
    }
}
