//! Names and attributes of spans, by the OpenTelemetry conventions.

use std::borrow::Cow;

use http::Method;
use opentelemetry::KeyValue;

use super::{super::Protocol, CallHead, ServerHead};

/// Name and attributes of a span.
pub(super) type Description = (Cow<'static, str>, Vec<KeyValue>);

pub(super) fn server_attributes(head: &ServerHead<'_>) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(8);
    describe(
        &mut attributes,
        head.protocol,
        head.method,
        head.path,
        head.authority,
    );
    attributes.push(KeyValue::new(
        "network.peer.address",
        head.remote.ip().to_string(),
    ));
    attributes.push(KeyValue::new(
        "network.peer.port",
        i64::from(head.remote.port()),
    ));
    if head.protocol == Protocol::Http {
        attributes.push(KeyValue::new("url.path", head.path.to_owned()));
        let scheme = if head.is_tls { "https" } else { "http" };
        attributes.push(KeyValue::new("url.scheme", scheme));
    }
    attributes
}

pub(super) fn call_attributes(head: &CallHead<'_>) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(6);
    describe(
        &mut attributes,
        head.protocol,
        head.method,
        head.path,
        head.authority,
    );
    if head.protocol == Protocol::Http {
        // The query may hold secrets.
        let url = format!("http://{}{}", head.authority, head.path);
        attributes.push(KeyValue::new("url.full", url));
    }
    attributes
}

pub(super) fn span_name(protocol: Protocol, method: &Method, path: &str) -> Cow<'static, str> {
    match protocol {
        Protocol::Grpc => Cow::Owned(path.trim_start_matches('/').to_owned()),
        Protocol::Http => Cow::Borrowed(known_method(method).unwrap_or("HTTP")),
    }
}

/// A method of a client's own invention must not become a name.
fn known_method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT",
    ];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

fn describe(
    attributes: &mut Vec<KeyValue>,
    protocol: Protocol,
    method: &Method,
    path: &str,
    authority: &str,
) {
    match protocol {
        Protocol::Grpc => {
            attributes.push(KeyValue::new("rpc.system.name", "grpc"));
            let full = path.trim_start_matches('/').to_owned();
            attributes.push(KeyValue::new("rpc.method", full));
        }
        Protocol::Http => {
            let known = known_method(method);
            attributes.push(KeyValue::new(
                "http.request.method",
                known.unwrap_or("_OTHER"),
            ));
            if known.is_none() {
                let original = method.as_str().to_owned();
                attributes.push(KeyValue::new("http.request.method_original", original));
            }
        }
    }
    let (host, port) = host_and_port(authority);
    if !host.is_empty() {
        attributes.push(KeyValue::new("server.address", host.to_owned()));
    }
    if let Some(port) = port {
        attributes.push(KeyValue::new("server.port", i64::from(port)));
    }
}

fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_split() {
        for (authority, expected) in [
            ("a.b:80", ("a.b", Some(80))),
            ("a.b", ("a.b", None)),
            ("[::1]:80", ("[::1]", Some(80))),
            ("[::1]", ("[::1]", None)),
            ("a:x", ("a:x", None)),
            ("", ("", None)),
        ] {
            assert_eq!(host_and_port(authority), expected, "{authority}");
        }
    }
}
