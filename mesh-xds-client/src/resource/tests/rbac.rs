//! Bounded, seeded fuzzing of authorisation: what is taken means what it says.
//!
//! Filters are made up, damaged on the wire and read. One that is taken is asked beside a plain reading
//! of the protobuf, rule by rule; one with a part that nobody can evaluate must be refused whole.

use std::collections::HashMap;

use envoy_types::pb::envoy::{
    config::{
        core::v3::CidrRange,
        rbac::v3::{
            Permission, Policy, Principal, Rbac as RulesProto, permission,
            permission::Rule,
            principal,
            principal::{Authenticated, Identifier},
            rbac::Action,
        },
        route::v3::{HeaderMatcher as HeaderProto, header_matcher::HeaderMatchSpecifier},
    },
    extensions::filters::http::rbac::v3::Rbac as FilterProto,
    r#type::{
        matcher::v3::{
            PathMatcher, StringMatcher as StringProto, path_matcher, string_matcher::MatchPattern,
        },
        v3::{Int32Range, Int64Range},
    },
};
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::{
    authz::{Authorizer, AuthzRequest},
    rng::{Rng, SplitMix64},
};

use super::*;
use crate::{mutate, resource::security::rbac::decode_filter, resource::tests::tls::part};

const ALICE: &str = "spiffe://t/ns/default/sa/alice";
const TEXTS: [&str; 8] = ["", "a", "A", "/a", "/a/b", "80", ALICE, "spiffe://t/"];

fn one<'t>(rng: &mut SplitMix64, of: &[&'t str]) -> &'t str {
    of[rng.below(of.len() as u64) as usize]
}

fn text(rng: &mut SplitMix64) -> StringProto {
    let text = one(rng, &TEXTS).to_owned();
    let pattern = match rng.below(6) {
        0 => MatchPattern::Prefix(text),
        1 => MatchPattern::Suffix(text),
        2 => MatchPattern::Contains(text),
        _ => MatchPattern::Exact(text),
    };
    StringProto {
        match_pattern: Some(pattern),
        ignore_case: rng.below(4) == 0,
    }
}

fn path(rng: &mut SplitMix64) -> PathMatcher {
    PathMatcher {
        rule: Some(path_matcher::Rule::Path(text(rng))),
    }
}

fn range(rng: &mut SplitMix64) -> CidrRange {
    CidrRange {
        address_prefix: one(rng, &["192.0.2.0", "10.0.0.1", "::1", "0.0.0.0"]).to_owned(),
        prefix_len: (rng.below(5) > 0).then(|| UInt32Value {
            value: rng.below(40) as u32,
        }),
    }
}

#[expect(deprecated, reason = "older control planes write these")]
fn header(rng: &mut SplitMix64) -> HeaderProto {
    let name = one(
        rng,
        &["x-a", ":method", ":path", ":authority", "host", "te", "X-A"],
    );
    let specifier = match rng.below(5) {
        0 => HeaderMatchSpecifier::PresentMatch(rng.below(2) == 0),
        1 => HeaderMatchSpecifier::RangeMatch(Int64Range { start: 1, end: 81 }),
        2 => HeaderMatchSpecifier::ExactMatch(one(rng, &TEXTS).to_owned()),
        _ => HeaderMatchSpecifier::StringMatch(text(rng)),
    };
    HeaderProto {
        name: name.to_owned(),
        invert_match: rng.below(3) == 0,
        treat_missing_header_as_empty: rng.below(4) == 0,
        header_match_specifier: Some(specifier),
    }
}

fn permission(rng: &mut SplitMix64, depth: u64) -> Permission {
    let some = |rng: &mut SplitMix64| permission::Set {
        rules: (0..=rng.below(3))
            .map(|_| permission(rng, depth - 1))
            .collect(),
    };
    let rule = match rng.below(if depth == 0 { 7 } else { 10 }) {
        0 => Rule::Any(true),
        1 => Rule::UrlPath(path(rng)),
        2 => Rule::Header(header(rng)),
        3 => Rule::DestinationIp(range(rng)),
        4 => Rule::DestinationPort([80, 8080][rng.below(2) as usize]),
        5 => Rule::DestinationPortRange(Int32Range {
            start: 80,
            end: 80 + rng.below(3) as i32,
        }),
        6 => Rule::RequestedServerName(text(rng)),
        7 => Rule::AndRules(some(rng)),
        8 => Rule::OrRules(some(rng)),
        _ => Rule::NotRule(Box::new(permission(rng, depth - 1))),
    };
    Permission { rule: Some(rule) }
}

#[expect(deprecated, reason = "older control planes write these")]
fn principal(rng: &mut SplitMix64, depth: u64) -> Principal {
    let some = |rng: &mut SplitMix64| principal::Set {
        ids: (0..=rng.below(3))
            .map(|_| principal(rng, depth - 1))
            .collect(),
    };
    let identifier = match rng.below(if depth == 0 { 7 } else { 10 }) {
        0 => Identifier::Any(true),
        1 | 2 => Identifier::Authenticated(Authenticated {
            principal_name: (rng.below(4) > 0).then(|| text(rng)),
        }),
        3 => Identifier::SourceIp(range(rng)),
        4 => Identifier::DirectRemoteIp(range(rng)),
        5 => Identifier::Header(header(rng)),
        6 => Identifier::UrlPath(path(rng)),
        7 => Identifier::AndIds(some(rng)),
        8 => Identifier::OrIds(some(rng)),
        _ => Identifier::NotId(Box::new(principal(rng, depth - 1))),
    };
    Principal {
        identifier: Some(identifier),
    }
}

fn filter(rng: &mut SplitMix64) -> FilterProto {
    let policies = (0..rng.below(4)).map(|number| {
        let policy = Policy {
            permissions: (0..=rng.below(2)).map(|_| permission(rng, 2)).collect(),
            principals: (0..=rng.below(2)).map(|_| principal(rng, 2)).collect(),
            ..Policy::default()
        };
        (number.to_string(), policy)
    });
    let policies: HashMap<_, _> = policies.collect();
    FilterProto {
        rules: Some(RulesProto {
            action: [Action::Allow, Action::Deny][rng.below(2) as usize] as i32,
            policies,
            ..RulesProto::default()
        }),
        ..FilterProto::default()
    }
}

/// Why a plain reading has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    /// Nobody can evaluate it.
    Refuse,
    /// What this reading does not know.
    Unread,
}

type Read = Result<bool, Odd>;

/// Whether all parts can be read, then whether they match: nothing is skipped by an early answer.
fn every(parts: impl Iterator<Item = Read>) -> Result<Vec<bool>, Odd> {
    let parts: Vec<_> = parts.collect();
    if parts.contains(&Err(Odd::Refuse)) {
        return Err(Odd::Refuse);
    }
    parts.into_iter().collect()
}

fn read_text(proto: &StringProto, value: &str) -> Read {
    let fold = |text: &str| match proto.ignore_case {
        true => text.to_ascii_lowercase(),
        false => text.to_owned(),
    };
    let value = fold(value);
    match &proto.match_pattern {
        Some(MatchPattern::Exact(text)) => Ok(value == fold(text)),
        // An empty one would match everything (Envoy's validation).
        Some(
            MatchPattern::Prefix(text) | MatchPattern::Suffix(text) | MatchPattern::Contains(text),
        ) if text.is_empty() => Err(Odd::Refuse),
        Some(MatchPattern::Prefix(text)) => Ok(value.starts_with(&fold(text))),
        Some(MatchPattern::Suffix(text)) => Ok(value.ends_with(&fold(text))),
        Some(MatchPattern::Contains(text)) => Ok(value.contains(&fold(text))),
        Some(MatchPattern::SafeRegex(_)) => Err(Odd::Unread),
        Some(MatchPattern::Custom(_)) | None => Err(Odd::Refuse),
    }
}

#[expect(deprecated, reason = "older control planes write these")]
fn read_header(proto: &HeaderProto, request: &AuthzRequest<'_>) -> Read {
    use HeaderMatchSpecifier as Specifier;
    let name = proto.name.to_ascii_lowercase();
    if name.is_empty() || name == ":scheme" || name.starts_with("grpc-") {
        return Err(Odd::Refuse);
    }
    let value = match name.as_str() {
        ":method" => Some(request.method.to_owned()),
        ":path" => Some(request.path.to_owned()),
        ":authority" | "host" => Some(request.authority.to_owned()),
        "te" => None,
        name if name.starts_with(':') => None,
        name => {
            let values = request.headers.get_all(name).iter();
            let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
            (!values.is_empty()).then(|| values.join(","))
        }
    };
    let value = value.or_else(|| proto.treat_missing_header_as_empty.then(String::new));
    let plain = |pattern: MatchPattern| StringProto {
        match_pattern: Some(pattern),
        ignore_case: false,
    };
    let of = |proto: &StringProto, value: &Option<String>| {
        // What is wrong is wrong without the header, too.
        let read = read_text(proto, value.as_deref().unwrap_or_default())?;
        Ok(value.is_some() && read)
    };
    let matched = match &proto.header_match_specifier {
        Some(Specifier::PresentMatch(present)) => {
            return Ok((value.is_some() == *present) != proto.invert_match);
        }
        Some(Specifier::RangeMatch(range)) => {
            let number = value.as_deref().and_then(|value| value.parse::<i64>().ok());
            Ok(number.is_some_and(|number| (range.start..range.end).contains(&number)))
        }
        Some(Specifier::StringMatch(proto)) => of(proto, &value),
        Some(Specifier::ExactMatch(text)) => of(&plain(MatchPattern::Exact(text.clone())), &value),
        Some(Specifier::PrefixMatch(text)) => {
            of(&plain(MatchPattern::Prefix(text.clone())), &value)
        }
        Some(Specifier::SuffixMatch(text)) => {
            of(&plain(MatchPattern::Suffix(text.clone())), &value)
        }
        Some(Specifier::ContainsMatch(text)) => {
            of(&plain(MatchPattern::Contains(text.clone())), &value)
        }
        Some(Specifier::SafeRegexMatch(_)) => Err(Odd::Unread),
        None => Err(Odd::Refuse),
    }?;
    // A header that is missing is never taken for a match, inverted or not.
    Ok(value.is_some() && matched != proto.invert_match)
}

fn read_range(proto: &CidrRange, address: std::net::IpAddr) -> Read {
    let prefix: std::net::IpAddr = proto.address_prefix.parse().map_err(|_| Odd::Refuse)?;
    let length = proto.prefix_len.as_ref().map_or(0, |length| length.value);
    let bits = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        std::net::IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((prefix_bits, width), (bits, _)) = (bits(prefix), bits(address));
    if length > width {
        // gRPC takes a longer one for the longest, Envoy refuses it.
        return Err(Odd::Unread);
    }
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    Ok(prefix.is_ipv4() == address.is_ipv4() && prefix_bits & mask == bits & mask)
}

fn read_path(proto: &PathMatcher, request: &AuthzRequest<'_>) -> Read {
    match &proto.rule {
        Some(path_matcher::Rule::Path(text)) => read_text(text, request.path),
        None => Err(Odd::Refuse),
    }
}

fn read_permission(proto: &Permission, request: &AuthzRequest<'_>) -> Read {
    let set = |set: &permission::Set| match set.rules.as_slice() {
        [] => Err(Odd::Refuse),
        rules => every(rules.iter().map(|rule| read_permission(rule, request))),
    };
    match proto.rule.as_ref().ok_or(Odd::Refuse)? {
        Rule::Any(is) => is.then_some(true).ok_or(Odd::Refuse),
        Rule::AndRules(rules) => Ok(set(rules)?.into_iter().all(|is| is)),
        Rule::OrRules(rules) => Ok(set(rules)?.into_iter().any(|is| is)),
        Rule::NotRule(rule) => Ok(!read_permission(rule, request)?),
        Rule::Header(header) => read_header(header, request),
        Rule::UrlPath(path) => read_path(path, request),
        Rule::DestinationIp(range) => read_range(range, request.destination.ip()),
        Rule::DestinationPort(port) => match u16::try_from(*port) {
            Ok(port) => Ok(port == request.destination.port()),
            Err(_) => Err(Odd::Refuse),
        },
        Rule::DestinationPortRange(range) if range.start < 0 || range.end <= range.start => {
            Err(Odd::Refuse)
        }
        Rule::DestinationPortRange(range) if range.end > 65_536 => Err(Odd::Refuse),
        Rule::DestinationPortRange(range) => {
            Ok((range.start..range.end).contains(&request.destination.port().into()))
        }
        Rule::RequestedServerName(text) => read_text(text, request.server_name),
        Rule::Matcher(_) => Err(Odd::Refuse),
        Rule::SourcedMetadata(rule) if rule.metadata_source != 0 => Err(Odd::Refuse),
        _ => Err(Odd::Unread),
    }
}

#[expect(deprecated, reason = "older control planes write these")]
fn read_principal(proto: &Principal, request: &AuthzRequest<'_>) -> Read {
    let set = |set: &principal::Set| match set.ids.as_slice() {
        [] => Err(Odd::Refuse),
        ids => every(ids.iter().map(|id| read_principal(id, request))),
    };
    match proto.identifier.as_ref().ok_or(Odd::Refuse)? {
        Identifier::Any(is) => is.then_some(true).ok_or(Odd::Refuse),
        Identifier::AndIds(ids) => Ok(set(ids)?.into_iter().all(|is| is)),
        Identifier::OrIds(ids) => Ok(set(ids)?.into_iter().any(|is| is)),
        Identifier::NotId(id) => Ok(!read_principal(id, request)?),
        Identifier::Authenticated(Authenticated {
            principal_name: None,
        }) => Ok(request.authenticated),
        Identifier::Authenticated(Authenticated {
            principal_name: Some(text),
        }) => {
            let nameless = [String::new()];
            let names = match request.principals {
                [] => &nameless[..],
                names => names,
            };
            let names = every(names.iter().map(|name| read_text(text, name)))?;
            Ok(request.authenticated && names.into_iter().any(|is| is))
        }
        Identifier::SourceIp(range)
        | Identifier::DirectRemoteIp(range)
        | Identifier::RemoteIp(range) => read_range(range, request.source),
        Identifier::Header(header) => read_header(header, request),
        Identifier::UrlPath(path) => read_path(path, request),
        Identifier::SourcedMetadata(rule) if rule.metadata_source != 0 => Err(Odd::Refuse),
        Identifier::Metadata(_) | Identifier::SourcedMetadata(_) => Err(Odd::Unread),
        _ => Err(Odd::Refuse),
    }
}

fn read_policy(proto: &Policy, request: &AuthzRequest<'_>) -> Read {
    // Conditions are in a language of their own.
    if proto.condition.is_some() || proto.checked_condition.is_some() {
        return Err(Odd::Unread);
    }
    if proto.permissions.is_empty() || proto.principals.is_empty() {
        return Err(Odd::Refuse);
    }
    let what = proto.permissions.iter();
    let what = every(what.map(|permission| read_permission(permission, request)));
    let who = proto.principals.iter();
    let who = every(who.map(|principal| read_principal(principal, request)));
    if what == Err(Odd::Refuse) || who == Err(Odd::Refuse) {
        return Err(Odd::Refuse);
    }
    Ok(what?.contains(&true) && who?.contains(&true))
}

/// Whether a request may pass, by the letter of gRFC A41.
fn read(proto: &FilterProto, request: &AuthzRequest<'_>) -> Read {
    if proto.matcher.is_some() {
        return Err(Odd::Refuse);
    }
    if proto.shadow_rules.is_some() || proto.shadow_matcher.is_some() {
        return Err(Odd::Unread);
    }
    let Some(rules) = &proto.rules else {
        return Ok(true);
    };
    if rules.audit_logging_options.is_some() {
        return Err(Odd::Unread);
    }
    let action = Action::try_from(rules.action).map_err(|_| Odd::Refuse)?;
    let policies = rules.policies.values();
    let matched = every(policies.map(|policy| read_policy(policy, request)))?.contains(&true);
    Ok(match action {
        Action::Allow => matched,
        Action::Deny => !matched,
        Action::Log => true,
    })
}

/// Asks everybody's requests; `asked` gets each.
fn each_request(mut asked: impl FnMut(&AuthzRequest<'_>)) {
    let names = [ALICE.to_owned(), "spiffe://t/ns/default/sa/bob".to_owned()];
    let mut headers = HeaderMap::new();
    let callers: [(&[String], bool); 5] = [
        (&[], false),
        (&[], true),
        (&names[..1], true),
        (&names[1..], true),
        (&names, true),
    ];
    for (round, (principals, authenticated)) in callers.into_iter().enumerate() {
        for (path, method) in [("/a", "GET"), ("/a/b", "POST"), ("/", "GET")] {
            asked(&AuthzRequest {
                principals,
                authenticated,
                method,
                path,
                authority: "A",
                headers: &headers,
                source: ["192.0.2.7", "::1"][round % 2].parse().unwrap(),
                destination: ([10, 0, 0, 1], [80, 81][round % 2]).into(),
                server_name: ["", "a"][round % 2],
                metadata: None,
                details: Default::default(),
            });
        }
        let name = HeaderName::from_static("x-a");
        headers.append(name, HeaderValue::from_static(["80", "a"][round % 2]));
    }
}

#[test]
fn a_filter_that_is_taken_means_what_it_says_and_what_nobody_can_evaluate_is_refused() {
    let mut rng = SplitMix64::new(41);
    let (mut taken, mut compared, mut refused) = (0, 0, 0);
    let rounds = mutate::rounds(10_000);
    for round in 0..rounds {
        let bytes = filter(&mut rng).encode_to_vec();
        let bytes = match rng.below(3) {
            0 => bytes,
            _ => mutate::message(&bytes, &mut rng),
        };
        let Ok(proto) = FilterProto::decode(&*bytes) else {
            continue;
        };
        let decoded = part(|sink| decode_filter(sink, &proto));
        let authorizer = decoded.as_ref().ok().map(Authorizer::compile);
        taken += usize::from(authorizer.is_some());
        each_request(|request| match (read(&proto, request), &authorizer) {
            (Err(Odd::Refuse), Some(_)) => panic!("round {round}: taken: {proto:#?}"),
            (Err(Odd::Refuse), None) => refused += 1,
            (Ok(is_allowed), Some(authorizer)) => {
                let decision = authorizer.decide(request);
                assert_eq!(
                    decision.allowed, is_allowed,
                    "round {round}: {request:?} {proto:#?}"
                );
                compared += 1;
            }
            // Refused for something that this reading takes: closed is never wrong.
            (Ok(_), None) | (Err(Odd::Unread), _) => {}
        });
    }
    assert!(taken > rounds / 3, "{taken} taken of {rounds}");
    assert!(
        compared > rounds && refused > rounds,
        "{compared} {refused}"
    );
}
