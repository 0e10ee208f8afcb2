//! Conditions of authorisation rules, in the Common Expression Language (Envoy `Policy.condition`).
//!
//! A tree that was checked when it was read: no loops, no functions but those here, a bounded size. What it
//! means is in [`authz`](crate::authz).

use super::Regex;

/// Most nodes of a condition; it costs a request at most one visit of each.
pub const CEL_NODES_MAX: usize = 256;

/// Deepest nesting of a condition.
pub const CEL_DEPTH_MAX: usize = 32;

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cel {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A text.
    Text(String),
    /// `[a, b]`.
    List(Vec<Self>),
    /// Something that is known of the request.
    Attribute(CelAttribute),
    /// `a.b`, `a['b']`, `a[0]`.
    Index(Box<[Self; 2]>),
    /// `has(a.b)`.
    Has(Box<Self>),
    /// `!a`.
    Not(Box<Self>),
    /// `a && b`.
    And(Box<[Self; 2]>),
    /// `a || b`.
    Or(Box<[Self; 2]>),
    /// `a ? b : c`.
    If(Box<[Self; 3]>),
    /// `a == b` and the like.
    Compare(CelComparison, Box<[Self; 2]>),
    /// `a in b`.
    In(Box<[Self; 2]>),
    /// `a.startsWith(b)` and the like.
    TextTest(CelTextTest, Box<[Self; 2]>),
    /// `a.matches('b')`, which some part of `a` must.
    Matches(Box<Self>, Regex),
    /// `size(a)`.
    Size(Box<Self>),
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CelComparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// A test of a text by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CelTextTest {
    /// `startsWith`
    StartsWith,
    /// `endsWith`
    EndsWith,
    /// `contains`
    Contains,
}

macro_rules! attributes {
    ($($root:literal . $field:literal $variant:ident $(#[$doc:meta])*,)*) => {
        /// What is known of a request (Envoy's attributes).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CelAttribute {
            $($(#[$doc])* $variant,)*
        }

        impl CelAttribute {
            /// The attribute `root.field`; `None` for one that is not known here.
            pub fn of(root: &str, field: &str) -> Option<Self> {
                match (root, field) {
                    $(($root, $field) => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

attributes! {
    "request"."path" RequestPath /** Path with its query. */,
    "request"."url_path" RequestUrlPath /** Path without it. */,
    "request"."query" RequestQuery /** Query; empty without one. */,
    "request"."host" RequestHost /** Authority. */,
    "request"."scheme" RequestScheme /** `http` or `https`. */,
    "request"."method" RequestMethod /** Method. */,
    "request"."headers" RequestHeaders /** Headers, by name in lower case. */,
    "request"."referer" RequestReferer /** The header `referer`. */,
    "request"."useragent" RequestUserAgent /** The header `user-agent`. */,
    "request"."protocol" RequestProtocol /** `HTTP/1.1` or `HTTP/2`. */,
    "connection"."mtls" ConnectionMtls /** Whether the caller showed a certificate. */,
    "connection"."requested_server_name" ConnectionServerName /** The name asked for in the handshake. */,
    "connection"."uri_san_peer_certificate" ConnectionUriSan /** The caller's first name that is a URI. */,
    "source"."address" SourceAddress /** The caller's address and port. */,
    "source"."port" SourcePort /** The caller's port. */,
    "destination"."address" DestinationAddress /** Address and port that the request arrived on. */,
    "destination"."port" DestinationPort /** The port that it arrived on. */,
    "metadata"."filter_metadata" FilterMetadata /** What filters found out, by their names. */,
}
