//! One spelling for each path (Envoy's `normalize_path`, `merge_slashes` and
//! `path_with_escaped_slashes_action`).
//!
//! A server applies it before anything looks at the path, so that routes, authorisation and the
//! application see the same bytes: a policy about `/admin` also holds for `/x/../admin`,
//! `/%61dmin` and `//admin` (CVE-2021-31920, CVE-2021-39156 and their kind). The rules are those
//! of Envoy, which takes them from the URL standard; the query is never touched.

use std::borrow::Cow;

/// What is done to the path of a request. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathNormalization {
    /// Resolve `.` and `..`, decode unreserved characters, turn `\` into `/` (`normalize_path`).
    pub normalize: bool,
    /// Make one `/` of several (`merge_slashes`).
    pub merge_slashes: bool,
    /// What becomes of `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// What becomes of a path with `%2F` or `%5C` (`path_with_escaped_slashes_action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay as they are.
    #[default]
    Keep,
    /// The request is refused.
    Reject,
    /// The caller is sent to the decoded path; a gRPC call is refused.
    Redirect,
    /// They are decoded.
    Decode,
}

/// What [`PathNormalization::apply`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NormalizedPath<'p> {
    /// Serve this path and query.
    Serve(Cow<'p, str>),
    /// Send the caller to this path and query.
    Redirect(String),
    /// Refuse the request: its path has no one meaning.
    Reject,
}

impl PathNormalization {
    /// `normalize_path` alone, which is Istio's `BASE`.
    pub const BASE: Self = Self {
        normalize: true,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::Keep,
    };

    /// The one spelling of `path_and_query`. Borrows what needs no change.
    pub fn apply<'p>(&self, path_and_query: &'p str) -> NormalizedPath<'p> {
        let (path, query) = match path_and_query.find('?') {
            Some(at) => path_and_query.split_at(at),
            None => (path_and_query, ""),
        };
        let mut is_redirect = false;
        let mut now = Cow::Borrowed(path);
        if self.escaped_slashes != EscapedSlashes::Keep
            && let Some(decoded) = decode_slashes(&now)
        {
            match self.escaped_slashes {
                EscapedSlashes::Reject => return NormalizedPath::Reject,
                EscapedSlashes::Redirect => is_redirect = true,
                EscapedSlashes::Keep | EscapedSlashes::Decode => {}
            }
            now = Cow::Owned(decoded);
        }
        if self.normalize && !is_canonical(&now) {
            match canonical(&now) {
                Some(path) => now = Cow::Owned(path),
                None => return NormalizedPath::Reject,
            }
        }
        if self.merge_slashes && now.contains("//") {
            now = Cow::Owned(merged(&now));
        }
        match now {
            Cow::Borrowed(_) => NormalizedPath::Serve(Cow::Borrowed(path_and_query)),
            Cow::Owned(mut path) => {
                path.push_str(query);
                if is_redirect {
                    NormalizedPath::Redirect(path)
                } else {
                    NormalizedPath::Serve(Cow::Owned(path))
                }
            }
        }
    }
}

/// `%2F` and `%5C` decoded; `None` without any.
fn decode_slashes(path: &str) -> Option<String> {
    if !path.contains('%') {
        return None;
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1..at + 3);
        let (slash, length) = match escape {
            Some(b"2F" | b"2f") => ('/', 3),
            Some(b"5C" | b"5c") => ('\\', 3),
            _ => ('%', 1),
        };
        out.push(slash);
        rest = &rest[at + length..];
    }
    out.push_str(rest);
    (out.len() != path.len()).then_some(out)
}

/// Whether nothing would change, without allocation; may say no to a path that would not.
fn is_canonical(path: &str) -> bool {
    // Only a dot that begins a segment can mean more than itself.
    let mut before = 0;
    let is_plain = |byte: u8| {
        let is_dot = byte == b'.' && before == b'/';
        before = byte;
        !is_dot && byte != b'%' && byte != b'\\' && !is_escaped(byte)
    };
    path.starts_with('/') && path.bytes().all(is_plain)
}

/// The path as the URL standard writes it; `None` when it holds a NUL.
fn canonical(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len() + 1);
    if !matches!(bytes.first(), Some(b'/' | b'\\')) {
        out.push(b'/');
    }
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let dot = dot_len(rest);
        if dot > 0 {
            let segment = match out.last() {
                Some(b'/') => Segment::behind_dot(&rest[dot..]),
                _ => Segment::Name,
            };
            at += dot;
            match segment {
                Segment::Name => out.push(b'.'),
                Segment::Current(length) => at += length,
                Segment::Parent(length) => {
                    at += length;
                    back_up(&mut out);
                }
            }
            continue;
        }
        match rest {
            [b'\\', ..] => out.push(b'/'),
            [b'%', high, low, ..] if hex(*high).is_some() && hex(*low).is_some() => {
                let byte = hex(*high)? << 4 | hex(*low)?;
                match byte {
                    0 => return None,
                    byte if is_unreserved(byte) => out.push(byte),
                    _ => out.extend_from_slice(&rest[..3]),
                }
                at += 3;
                continue;
            }
            [0, ..] => return None,
            [byte, ..] if is_escaped(*byte) => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                let digit = |value: u8| HEX[usize::from(value)];
                out.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
            }
            [byte, ..] => out.push(*byte),
            [] => {}
        }
        at += 1;
    }
    // All bytes above ASCII were escaped.
    String::from_utf8(out).ok()
}

/// What a segment that begins with a dot is; with the length of what belongs to it.
enum Segment {
    Name,
    Current(usize),
    Parent(usize),
}

impl Segment {
    fn behind_dot(rest: &[u8]) -> Self {
        if let Some(length) = end_len(rest) {
            return Self::Current(length);
        }
        let dot = dot_len(rest);
        match end_len(&rest[dot..]) {
            Some(length) if dot > 0 => Self::Parent(dot + length),
            _ => Self::Name,
        }
    }
}

/// The length of the slash that ends a segment, 0 at the end of the path.
fn end_len(rest: &[u8]) -> Option<usize> {
    match rest.first() {
        None => Some(0),
        Some(b'/' | b'\\') => Some(1),
        Some(_) => None,
    }
}

/// The length of a dot, plain or escaped; 0 when there is none.
fn dot_len(rest: &[u8]) -> usize {
    match rest {
        [b'.', ..] => 1,
        [b'%', b'2', b'e' | b'E', ..] => 3,
        _ => 0,
    }
}

/// Drops the last segment, but never the first slash.
fn back_up(out: &mut Vec<u8>) {
    out.pop();
    let slash = out.iter().rposition(|byte| *byte == b'/');
    out.truncate(slash.map_or(0, |at| at + 1));
    if out.is_empty() {
        out.push(b'/');
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// Those that mean the same with and without an escape (RFC 3986 §2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Those that a canonical path holds in escaped form only.
fn is_escaped(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x7f || b"\"#<>?^`{|}".contains(&byte)
}

/// One slash for several.
fn merged(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests;
