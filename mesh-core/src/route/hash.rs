//! What a request has in common with those that should go to the same endpoint.
//!
//! Envoy's combination (gRFC A42): each part is rotated into what the parts before it gave; a
//! terminal part ends it when there is a hash. Text is hashed with XXH64, seed 0.

use http::header::COOKIE;
use xxhash_rust::xxh64::xxh64;

use super::{Caller, GeneratedCookie, RequestView};
use crate::{
    config::{HashPolicy, HashSource, query_parameter},
    rng::Rng,
};

/// The hash, and a cookie that the response should set.
pub(super) fn hash(
    policies: &[HashPolicy],
    request: &RequestView<'_>,
    caller: &Caller,
    rng: &mut impl Rng,
) -> (Option<u64>, Option<GeneratedCookie>) {
    let mut all: Option<u64> = None;
    let mut cookie = None;
    for policy in policies {
        let part = match &policy.source {
            HashSource::Cookie {
                name,
                ttl: Some(ttl),
                path,
                attributes,
            } if find_cookie(request, name).is_none() => {
                let value = format!("{:016x}", rng.next_u64());
                let part = text(&value);
                cookie = Some(GeneratedCookie::new(name, &value, *ttl, path, attributes));
                Some(part)
            }
            source => part(source, request, caller),
        };
        if let Some(part) = part {
            all = Some(all.map_or(part, |all| all.rotate_left(1) ^ part));
        }
        if policy.terminal && all.is_some() {
            break;
        }
    }
    (all, cookie)
}

fn part(source: &HashSource, request: &RequestView<'_>, caller: &Caller) -> Option<u64> {
    match source {
        HashSource::Header { name, rewrite } => {
            let value = request.header(name)?;
            Some(match rewrite {
                Some(rewrite) => text(&rewrite.replace_all(&value)),
                None => text(&value),
            })
        }
        HashSource::Cookie { name, .. } => find_cookie(request, name).map(|value| text(&value)),
        HashSource::QueryParameter(name) => query_parameter(request.query()?, name).map(text),
        HashSource::SourceIp => caller.source_ip.map(|ip| text(&ip.to_string())),
        HashSource::Channel => caller.channel,
        HashSource::Unknown => None,
    }
}

fn text(value: &str) -> u64 {
    xxh64(value.as_bytes(), 0)
}

/// The value of a cookie, without quotes (RFC 6265).
pub(crate) fn find_cookie(request: &RequestView<'_>, name: &str) -> Option<String> {
    let lines = request.headers.get_all(COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().trim_matches('"').to_owned())
}
