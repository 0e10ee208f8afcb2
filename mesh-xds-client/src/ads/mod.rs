//! The xDS protocol, without I/O and without a clock.
//!
//! Stage 2: which names are wanted, which version and nonce to answer with, what is accepted, what
//! is refused, and when a resource counts as missing. A [`Variant`] takes events and time and is
//! asked for requests; [`Sotw`] is the state-of-the-world variant. It keeps no resource: those go
//! on to the cache. Rules: xDS transport protocol, gRFC A46 and A57, xRFC TP3.

mod nack;
mod sotw;
mod subscription;
#[cfg(test)]
mod tests;

use std::time::Instant;

use mesh_core::ConfigError;

use crate::resource::{Config, DecodeContext, Kind};

pub(crate) use sotw::Sotw;

/// What a response changed, resource by resource.
#[derive(Debug, PartialEq)]
pub(crate) struct Update {
    pub(crate) kind: Kind,
    /// Valid resources that were asked for.
    pub(crate) accepted: Vec<(String, Config)>,
    /// Refused resources that were asked for.
    pub(crate) rejected: Vec<(String, ConfigError)>,
    /// Resources received before, which the server says are gone.
    pub(crate) removed: Vec<String>,
    /// Resources for which the server sent an error instead (xRFC TP3).
    pub(crate) errors: Vec<(String, ConfigError)>,
}

/// One variant of the protocol on one stream after another.
///
/// Names and versions live longer than a stream, nonces do not.
pub(crate) trait Variant {
    /// What is sent.
    type Request;
    /// What is received.
    type Response;

    /// Wants a resource from now on.
    fn subscribe(&mut self, kind: Kind, name: &str);

    /// Does not want it any more.
    fn unsubscribe(&mut self, kind: Kind, name: &str);

    /// Whether anything is wanted.
    fn has_names(&self) -> bool;

    /// A stream is there; the first request on it introduces the node.
    fn stream_opened(&mut self);

    /// The stream is gone; what waited for an answer starts to wait anew on the next one.
    fn stream_closed(&mut self);

    /// Takes a response. `None` when it is not about anything asked for, and is not answered.
    fn receive(&mut self, response: Self::Response, context: &DecodeContext) -> Option<Update>;

    /// Whether [`poll_request`](Self::poll_request) has something to send.
    fn has_request(&self) -> bool;

    /// The next request. `now` is when it is sent: it starts the does-not-exist timers.
    fn poll_request(&mut self, now: Instant) -> Option<Self::Request>;

    /// When [`expire`](Self::expire) has something to say.
    fn next_deadline(&self) -> Option<Instant>;

    /// Resources that did not come in time; each is named once per stream.
    fn expire(&mut self, now: Instant) -> Vec<(Kind, String)>;
}
