//! Why a request failed.
//!
//! Stage 13. Every error says what failed and why in one line, where it came from, and whether
//! sending the request again is safe.

use std::{error, fmt, net::SocketAddr};

use http::Request;
use mesh_core::outcome::Outcome;

use crate::{
    Body,
    telemetry::{Code, Protocol},
};

/// A boxed error of a body or a connection.
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// A request that got no response.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    attempts: u32,
    endpoint: Option<SocketAddr>,
    source: Option<BoxError>,
}

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself cannot be sent, for example because it names no authority.
    InvalidRequest,
    /// There is no configuration for the dialled name.
    NoConfig,
    /// No route matches the request.
    NoRoute,
    /// The route or the cluster cannot be used by this version.
    Unsupported,
    /// The cluster has no endpoint, or none that can be reached.
    NoEndpoint,
    /// The cluster has as many requests in flight, or waiting for a connection, as its limits allow.
    CircuitOpen,
    /// The control plane wants this share of requests refused.
    Dropped,
    /// The deadline passed.
    DeadlineExceeded,
    /// No connection could be made.
    Connect,
    /// The endpoint did not take the request; it was never processed.
    Refused,
    /// The connection or the stream ended before the response.
    Reset,
    /// An attempt took longer than its limit.
    PerTryTimeout,
    /// Nothing was sent or received for longer than the limit.
    IdleTimeout,
}

/// Where an [`Error`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Decided in this process.
    Local,
    /// The endpoint or the way to it.
    Upstream,
    /// Configuration that is missing or unusable.
    ControlPlane,
}

impl From<ErrorKind> for Code {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidRequest
            | ErrorKind::NoConfig
            | ErrorKind::NoRoute
            | ErrorKind::Unsupported
            | ErrorKind::NoEndpoint => Self::Unroutable,
            ErrorKind::CircuitOpen | ErrorKind::Dropped => Self::Overload,
            ErrorKind::DeadlineExceeded | ErrorKind::PerTryTimeout | ErrorKind::IdleTimeout => {
                Self::Timeout
            }
            ErrorKind::Connect => Self::ConnectFailure,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Reset => Self::Reset,
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            inner: Box::new(Inner {
                kind,
                message,
                attempts: 0,
                endpoint: None,
                source: None,
            }),
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    pub(crate) fn with_attempt(mut self, attempts: u32, endpoint: Option<SocketAddr>) -> Self {
        self.inner.attempts = attempts;
        self.inner.endpoint = endpoint;
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        match self.inner.kind {
            ErrorKind::NoConfig | ErrorKind::NoRoute | ErrorKind::Unsupported => {
                Origin::ControlPlane
            }
            ErrorKind::InvalidRequest
            | ErrorKind::CircuitOpen
            | ErrorKind::Dropped
            | ErrorKind::DeadlineExceeded => Origin::Local,
            ErrorKind::NoEndpoint
            | ErrorKind::Connect
            | ErrorKind::Refused
            | ErrorKind::Reset
            | ErrorKind::PerTryTimeout
            | ErrorKind::IdleTimeout => Origin::Upstream,
        }
    }

    /// Whether no endpoint can have processed the request.
    pub fn is_retry_safe(&self) -> bool {
        !matches!(
            self.inner.kind,
            ErrorKind::Reset
                | ErrorKind::DeadlineExceeded
                | ErrorKind::PerTryTimeout
                | ErrorKind::IdleTimeout
        )
    }

    /// Attempts that were made.
    pub fn attempts(&self) -> u32 {
        self.inner.attempts
    }

    /// The endpoint of the last attempt.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.inner.endpoint
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        if let Some(endpoint) = self.inner.endpoint {
            write!(f, " (endpoint {endpoint}, attempt {})", self.inner.attempts)?;
        }
        match &self.inner.source {
            Some(source) => write!(f, ": {}", Causes(&**source)),
            None => Ok(()),
        }
    }
}

/// Shows an error with everything that caused it.
pub(crate) struct Causes<'e>(pub(crate) &'e (dyn error::Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.inner.kind)
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.inner
            .source
            .as_deref()
            .map(|e| e as &(dyn error::Error + 'static))
    }
}

/// How the errors of calls are shown to a kind of callers: generated gRPC clients want a status.
pub trait ShowError: Send + Unpin + 'static {
    /// What the callers see.
    type Error: Send + 'static;

    /// What all of their requests speak; `None` when each says so itself, which is looked up.
    const PROTOCOL: Option<Protocol> = None;

    /// Makes it.
    fn show(error: Error) -> Self::Error;
}

/// Errors are shown as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsError;

impl ShowError for AsError {
    type Error = Error;

    fn show(error: Error) -> Error {
        error
    }
}

/// Why an endpoint gave no response.
#[derive(Debug)]
pub struct DispatchError {
    kind: DispatchErrorKind,
    source: BoxError,
    unsent: Option<Box<Request<Body>>>,
}

/// What an endpoint knows of its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatchErrorKind {
    /// No connection could be made.
    Connect,
    /// The request was not processed.
    Refused,
    /// It is not known whether the request was processed.
    Reset,
    /// A limit of this process on connections or on requests that wait for one.
    Overflow,
}

impl DispatchError {
    /// An error of `kind` caused by `source`.
    pub fn new(kind: DispatchErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: source.into(),
            unsent: None,
        }
    }

    /// Nobody has looked at the request, and here it is as it was, with the authority in its URI or
    /// in `host`: it can be sent elsewhere.
    #[must_use]
    pub fn unsent(mut self, request: Request<Body>) -> Self {
        self.unsent = Some(Box::new(request));
        self
    }

    /// What the endpoint knows of its failure.
    pub fn kind(&self) -> DispatchErrorKind {
        self.kind
    }

    pub(crate) fn is_unsent(&self) -> bool {
        self.unsent.is_some()
    }

    pub(crate) fn take_unsent(&mut self) -> Option<Request<Body>> {
        self.unsent.take().map(|request| *request)
    }

    pub(crate) fn outcome(&self) -> Outcome {
        match self.kind {
            DispatchErrorKind::Connect => Outcome::ConnectFailure,
            DispatchErrorKind::Refused => Outcome::Refused,
            DispatchErrorKind::Reset => Outcome::Reset,
            DispatchErrorKind::Overflow => Outcome::Overflow,
        }
    }

    pub(crate) fn into_error(self, cluster: &str) -> Error {
        let (kind, text) = match self.kind {
            DispatchErrorKind::Connect => (ErrorKind::Connect, "cannot connect"),
            DispatchErrorKind::Refused => (ErrorKind::Refused, "the request was not taken"),
            DispatchErrorKind::Reset => (ErrorKind::Reset, "no response"),
            DispatchErrorKind::Overflow => (ErrorKind::CircuitOpen, "no room"),
        };
        Error::new(kind, format!("cluster {cluster}: {text}")).with_source(self.source)
    }
}

impl fmt::Display for DispatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl error::Error for DispatchError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.source()
    }
}
