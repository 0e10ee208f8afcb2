//! Other paths, other authorities, and answers that no cluster gives (Envoy `RouteAction`,
//! `RedirectAction`, `DirectResponseAction`).

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::{REGEX_SIZE_MAX, TemplateRewrite};

/// How the path changes. The query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// What the route matched on is replaced: a prefix, or the whole path for other matchers.
    Prefix(String),
    /// Every match in the path is replaced.
    Regex(RegexRewrite),
    /// The path is put together anew from the parts of the template that it matched.
    Template(TemplateRewrite),
}

/// How the authority changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRewrite {
    /// This one.
    Literal(String),
    /// The value of a header; without it the authority stays.
    Header(String),
    /// The path without its query, with every match replaced.
    PathRegex(RegexRewrite),
    /// The hostname of the endpoint that is picked (`auto_host_rewrite`).
    Endpoint,
}

/// A replacement of all matches of a regular expression (Envoy `RegexMatchAndSubstitute`).
#[derive(Clone)]
pub struct RegexRewrite {
    pattern: Arc<str>,
    substitution: Arc<str>,
    regex: regex::Regex,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Group(usize),
}

impl RegexRewrite {
    /// `pattern` is linear-time and of bounded size; `substitution` is text with `\0` to `\9` for
    /// the match and its groups, and `\\` for a backslash (RE2's rewrite).
    ///
    /// # Errors
    /// When either cannot be used.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, String> {
        let regex = regex::RegexBuilder::new(pattern)
            .size_limit(REGEX_SIZE_MAX)
            .build()
            .map_err(|e| format!("regex {pattern:?} cannot be used: {e}"))?;
        let parts = parse_substitution(substitution, regex.captures_len())?;
        Ok(Self {
            pattern: pattern.into(),
            substitution: substitution.into(),
            regex,
            parts,
        })
    }

    /// The expression as it was declared.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The replacement as it was declared.
    pub fn substitution(&self) -> &str {
        &self.substitution
    }

    /// `text` with every match replaced.
    pub fn replace_all(&self, text: &str) -> String {
        let replaced = self.regex.replace_all(text, |found: &regex::Captures<'_>| {
            let mut out = String::new();
            for part in &self.parts {
                match part {
                    Part::Text(text) => out.push_str(text),
                    Part::Group(number) => {
                        out.push_str(found.get(*number).map_or("", |group| group.as_str()));
                    }
                }
            }
            out
        });
        replaced.into_owned()
    }
}

fn parse_substitution(text: &str, groups: usize) -> Result<Box<[Part]>, String> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('\\') => plain.push('\\'),
            Some(digit) if digit.is_ascii_digit() => {
                let number = digit as usize - '0' as usize;
                if number >= groups {
                    return Err(format!(
                        "substitution {text:?} asks for group {number}, the regex has {}",
                        groups - 1
                    ));
                }
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Group(number));
            }
            _ => {
                return Err(format!(
                    "substitution {text:?}: a backslash stands before a digit or a backslash"
                ));
            }
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts.into())
}

impl PartialEq for RegexRewrite {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern && self.substitution == other.substitution
    }
}
impl Eq for RegexRewrite {}

impl fmt::Debug for RegexRewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s/{}/{}/", self.pattern, self.substitution)
    }
}

/// An answer with another address (Envoy `RedirectAction`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Another scheme.
    pub scheme: Option<String>,
    /// Another host, which may have a port.
    pub host: Option<String>,
    /// Another port.
    pub port: Option<u16>,
    /// Another path.
    pub path: Option<RedirectPath>,
    /// 301, 302, 303, 307 or 308. Default 301.
    pub status: u16,
    /// Whether the request's query is left out.
    pub strip_query: bool,
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            scheme: None,
            host: None,
            port: None,
            path: None,
            status: 301,
            strip_query: false,
        }
    }
}

/// Another path for a [`Redirect`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// All of it; if it has a query, that takes the place of the request's.
    Full(String),
    /// What the route matched on is replaced.
    Prefix(String),
    /// Every match in the path is replaced.
    Regex(RegexRewrite),
}

/// An answer without asking anybody (Envoy `DirectResponseAction`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}
