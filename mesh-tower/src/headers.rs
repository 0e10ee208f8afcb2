//! Looking for a header among few, and text in headers.
//!
//! A request or a response has a handful of headers: comparing names in turn is a third of what
//! hashing one costs.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Maps up to this size are read in turn.
const FEW: usize = 8;

/// The first value of `name`.
#[inline]
pub(crate) fn find<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    find_by(headers, name, |held| held == name)
}

/// The same for a name that is written out here and not one of HTTP's own, in lower case: it is
/// compared in place, where comparing [`HeaderName`]s is a call.
#[inline]
pub(crate) fn find_own<'h, const N: usize>(
    headers: &'h HeaderMap,
    name: &HeaderName,
    text: &[u8; N],
) -> Option<&'h HeaderValue> {
    debug_assert_eq!(name.as_str().as_bytes(), text);
    find_by(headers, name, |held| held.as_str().as_bytes() == text)
}

/// The first value of `name`, which is what `is_name` holds for.
#[inline]
fn find_by<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
    is_name: impl Fn(&HeaderName) -> bool,
) -> Option<&'h HeaderValue> {
    match headers.len() {
        0 => None,
        1..=FEW => {
            let mut headers = headers.iter();
            headers.find_map(|(held, value)| is_name(held).then_some(value))
        }
        _ => headers.get(name),
    }
}

/// gRPC over HTTP/2: all but printable ASCII, and `%`, is written as `%XX`.
pub(crate) fn percent_encode(message: &str) -> HeaderValue {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("100% é\n"), "100%25 %C3%A9%0A");
        assert_eq!(percent_encode("RBAC: access denied"), "RBAC: access denied");
    }
}
