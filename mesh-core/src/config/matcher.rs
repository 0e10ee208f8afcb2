//! Matchers over text, headers and paths.
//!
//! Stage: part of a route or an authorisation rule. Semantics follow gRFC A28/A63 and Envoy's
//! `StringMatcher`, `HeaderMatcher`; where they differ the stricter reading is taken.

use std::{borrow::Cow, fmt, sync::Arc};

use http::{HeaderMap, header::AsHeaderName};

use super::PathTemplate;

/// Largest compiled size of a regular expression, in bytes.
pub const REGEX_SIZE_MAX: usize = 1 << 20;

/// A regular expression that must match the full text (RE2 `FullMatch`).
#[derive(Clone)]
pub struct Regex {
    source: Arc<str>,
    compiled: regex::Regex,
}

impl Regex {
    /// Parses `source`. Linear-time engine, compiled size at most [`REGEX_SIZE_MAX`].
    ///
    /// # Errors
    /// The engine's text when `source` is not valid or too large.
    pub fn new(source: &str) -> Result<Self, String> {
        let build = |text: &str| {
            regex::RegexBuilder::new(text)
                .size_limit(REGEX_SIZE_MAX)
                .build()
                .map_err(|e| format!("regex {source:?} cannot be used: {e}"))
        };
        if source.contains(')') {
            // `a)|(b` is not an expression, and would be half of one between the anchors.
            build(source)?;
        }
        let compiled = build(&format!("^(?:{source})$"))?;
        Ok(Self {
            source: source.into(),
            compiled,
        })
    }

    /// The source of an expression that matches `text` alone.
    pub fn escaped(text: &str) -> String {
        regex::escape(text)
    }

    /// The expression as it was declared.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.compiled.is_match(text)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}
impl Eq for Regex {}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

/// How a [`StringMatcher`] compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringPattern {
    /// Equal to.
    Exact(String),
    /// Begins with; not empty.
    Prefix(String),
    /// Ends with; not empty.
    Suffix(String),
    /// Contains; not empty.
    Contains(String),
    /// Full match; `ignore_case` has no effect.
    Regex(Regex),
}

/// A text predicate (Envoy `type.matcher.v3.StringMatcher`, gRFC A63).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StringMatcher {
    /// What to compare with.
    pub pattern: StringPattern,
    /// ASCII case-insensitive comparison, for all patterns but `Regex`.
    pub ignore_case: bool,
}

impl StringMatcher {
    /// A case-sensitive matcher.
    ///
    /// # Errors
    /// When a prefix, suffix or contains pattern is empty.
    pub fn new(pattern: StringPattern) -> Result<Self, String> {
        match &pattern {
            StringPattern::Prefix(text)
            | StringPattern::Suffix(text)
            | StringPattern::Contains(text)
                if text.is_empty() =>
            {
                Err("prefix, suffix and contains must not be empty".into())
            }
            _ => Ok(Self {
                pattern,
                ignore_case: false,
            }),
        }
    }

    /// Matches exactly `text`.
    pub fn exact(text: impl Into<String>) -> Self {
        Self {
            pattern: StringPattern::Exact(text.into()),
            ignore_case: false,
        }
    }

    /// The same matcher, ASCII case-insensitive when `ignore_case`.
    #[must_use]
    pub fn ignore_case(mut self, ignore_case: bool) -> Self {
        self.ignore_case = ignore_case;
        self
    }

    /// Whether `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        let (text, pattern) = (text.as_bytes(), &self.pattern);
        let eq = |a: &[u8], b: &[u8]| {
            if self.ignore_case {
                a.eq_ignore_ascii_case(b)
            } else {
                a == b
            }
        };
        match pattern {
            StringPattern::Exact(p) => eq(text, p.as_bytes()),
            StringPattern::Prefix(p) => text.get(..p.len()).is_some_and(|t| eq(t, p.as_bytes())),
            StringPattern::Suffix(p) => text
                .len()
                .checked_sub(p.len())
                .is_some_and(|start| eq(&text[start..], p.as_bytes())),
            StringPattern::Contains(p) => {
                text.windows(p.len()).any(|window| eq(window, p.as_bytes()))
            }
            StringPattern::Regex(r) => std::str::from_utf8(text).is_ok_and(|text| r.is_match(text)),
        }
    }
}

/// What a [`HeaderMatcher`] asks of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderPredicate {
    /// The value, several values joined with `,`, matches.
    String(StringMatcher),
    /// The value is a base-10 integer in `[start, end)`.
    Range {
        /// First value inside.
        start: i64,
        /// First value past the end.
        end: i64,
    },
    /// The header is present (`true`) or absent (`false`).
    Present(bool),
}

/// A predicate over one header (Envoy `route.v3.HeaderMatcher`, gRFC A28).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatcher {
    /// Lower-case header name; `:method`, `:path` and `:authority` are pseudo-headers.
    pub name: String,
    /// The predicate.
    pub predicate: HeaderPredicate,
    /// Inverts the comparison; a missing header still does not match, except with `Present`.
    pub invert: bool,
    /// Compare a missing header as if its value were empty.
    pub treat_missing_as_empty: bool,
}

impl HeaderMatcher {
    /// A plain matcher over `name`, which is lower-cased.
    pub fn new(name: &str, predicate: HeaderPredicate) -> Self {
        Self {
            name: name.to_ascii_lowercase(),
            predicate,
            invert: false,
            treat_missing_as_empty: false,
        }
    }

    /// Whether the header's joined value (`None`: missing) matches.
    pub fn is_match(&self, value: Option<&str>) -> bool {
        if let HeaderPredicate::Present(present) = self.predicate {
            let is_there = value.is_some() || self.treat_missing_as_empty;
            return (is_there == present) != self.invert;
        }
        let value = match value {
            Some(value) => value,
            None if self.treat_missing_as_empty => "",
            None => return false,
        };
        let matched = match &self.predicate {
            HeaderPredicate::String(matcher) => matcher.is_match(value),
            HeaderPredicate::Range { start, end } => value
                .parse::<i64>()
                .is_ok_and(|n| (*start..*end).contains(&n)),
            HeaderPredicate::Present(_) => unreachable!("answered above"),
        };
        matched != self.invert
    }
}

/// The values of `name` joined with `,` (gRFC A28), or `None` when the header is missing.
///
/// Borrows when there is one value, which is the common case.
pub(crate) fn joined(headers: &HeaderMap, name: impl AsHeaderName) -> Option<Cow<'_, str>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(String::from_utf8_lossy(first.as_bytes()));
    };
    let mut all = String::from_utf8_lossy(first.as_bytes()).into_owned();
    for value in std::iter::once(second).chain(values) {
        all.push(',');
        all.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    Some(Cow::Owned(all))
}

/// A predicate over one query parameter (Envoy `QueryParameterMatcher`).
///
/// The first value of the name counts, as it is written in the URI; escapes are not resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatcher {
    /// Name, compared with case.
    pub name: String,
    /// The value's predicate; `None` asks for presence alone.
    pub value: Option<StringMatcher>,
    /// Without a predicate: whether the parameter must be there, or must not.
    pub present: bool,
}

impl QueryMatcher {
    /// Asks for presence.
    pub fn present(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: None,
            present: true,
        }
    }

    /// Asks for a value.
    pub fn value(name: impl Into<String>, value: StringMatcher) -> Self {
        Self {
            value: Some(value),
            ..Self::present(name)
        }
    }

    /// Whether a request with this query matches.
    pub fn is_match(&self, query: Option<&str>) -> bool {
        let found = query.and_then(|query| query_parameter(query, &self.name));
        match &self.value {
            Some(matcher) => found.is_some_and(|value| matcher.is_match(value)),
            None => found.is_some() == self.present,
        }
    }
}

/// The first value of the query parameter `name`; empty when it has no `=`.
pub(crate) fn query_parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// How a [`PathMatcher`] compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// The path begins with this; an empty prefix matches everything.
    Prefix(String),
    /// The path is equal to this, or goes on after it with `/`.
    SeparatedPrefix(String),
    /// The path is equal to this.
    Exact(String),
    /// The whole path matches.
    Regex(Regex),
    /// The whole path matches; always with case.
    Template(PathTemplate),
}

/// A predicate over a request's path, without its query (gRFC A28).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathMatcher {
    /// What to compare with.
    pub pattern: PathPattern,
    /// Default true. Has no effect on `Regex`.
    pub case_sensitive: bool,
}

impl PathMatcher {
    /// A case-sensitive matcher.
    pub fn new(pattern: PathPattern) -> Self {
        Self {
            pattern,
            case_sensitive: true,
        }
    }

    /// Matches every path.
    pub fn any() -> Self {
        Self::new(PathPattern::Prefix(String::new()))
    }

    /// Whether `path` matches.
    pub fn is_match(&self, path: &str) -> bool {
        let eq = |a: &[u8], b: &[u8]| {
            if self.case_sensitive {
                a == b
            } else {
                a.eq_ignore_ascii_case(b)
            }
        };
        let bytes = path.as_bytes();
        let starts = |p: &str| {
            bytes
                .get(..p.len())
                .is_some_and(|head| eq(head, p.as_bytes()))
        };
        match &self.pattern {
            PathPattern::Prefix(p) => starts(p),
            PathPattern::SeparatedPrefix(p) => {
                starts(p) && matches!(bytes.get(p.len()), None | Some(b'/'))
            }
            PathPattern::Exact(p) => eq(bytes, p.as_bytes()),
            PathPattern::Regex(r) => r.is_match(path),
            PathPattern::Template(t) => t.is_match(path),
        }
    }
}

/// A share of traffic, in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    per_million: u32,
}

impl Fraction {
    /// Nothing.
    pub const NONE: Self = Self { per_million: 0 };

    /// `numerator / denominator`, capped at 1. `None` when `denominator` is 0.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        let scaled = (u64::from(numerator) * 1_000_000).checked_div(u64::from(denominator))?;
        Some(Self {
            per_million: scaled.min(1_000_000) as u32,
        })
    }

    /// Parts per million, at most 1,000,000.
    pub fn per_million(self) -> u32 {
        self.per_million
    }

    /// Whether a draw, uniform over all of `u64`, falls inside. Zero never does (Envoy's `<`).
    pub fn contains(self, draw: u64) -> bool {
        draw % 1_000_000 < u64::from(self.per_million)
    }
}
