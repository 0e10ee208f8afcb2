//! The index against a walk through all policies, on generated policies and requests.

use serde_json::json;

use super::*;
use crate::{
    authz::index::PolicyIndex,
    config::{
        DynamicMetadata, IpRange, MetadataMatcher, PathTemplate, Regex, ValueMatcher, joined,
    },
    rng::{Rng, SplitMix64},
};

const NAMES: [&str; 6] = [
    "",
    ALICE,
    "spiffe://cluster.local/ns/default/sa/bob",
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/web2",
    "spiffe://partner/ns/shop/sa/web",
];
const PATHS: [&str; 6] = ["/", "/a", "/a/b", "/a/bc", "/b", "/b/c"];
const VALUES: [&str; 4] = ["", "red", "redder", "blue"];
const HEADERS: [&str; 6] = [":method", ":path", "host", "x-a", "x-b", "te"];

/// The plain meaning of a policy.
fn is_match(policy: &RbacPolicy, request: &AuthzRequest<'_>) -> bool {
    policy.principals.iter().any(|one| who(one, request))
        && policy.permissions.iter().any(|one| what(one, request))
}

fn who(principal: &Principal, request: &AuthzRequest<'_>) -> bool {
    match principal {
        Principal::Any => true,
        Principal::And(all) => all.iter().all(|one| who(one, request)),
        Principal::Or(any) => any.iter().any(|one| who(one, request)),
        Principal::Not(inner) => !who(inner, request),
        Principal::Authenticated(None) => request.authenticated,
        Principal::Authenticated(Some(matcher)) => {
            let mut names = request.principals.iter();
            request.authenticated
                && (request.principals.is_empty() && matcher.is_match("")
                    || names.any(|name| matcher.is_match(name)))
        }
        Principal::DirectRemoteIp(range) | Principal::RemoteIp(range) => {
            range.contains(request.source)
        }
        Principal::Header(matcher) => is_header(matcher, request),
        Principal::Path(matcher) => matcher.is_match(request.path),
        Principal::Metadata(matcher) => matcher.is_match(request.metadata),
    }
}

fn what(permission: &Permission, request: &AuthzRequest<'_>) -> bool {
    match permission {
        Permission::Any => true,
        Permission::And(all) => all.iter().all(|one| what(one, request)),
        Permission::Or(any) => any.iter().any(|one| what(one, request)),
        Permission::Not(inner) => !what(inner, request),
        Permission::Path(matcher) => matcher.is_match(request.path),
        Permission::Template(template) => template.is_match(request.path),
        Permission::Header(matcher) => is_header(matcher, request),
        Permission::DestinationIp(range) => range.contains(request.destination.ip()),
        Permission::DestinationPort(port) => request.destination.port() == *port,
        Permission::DestinationPorts { start, end } => {
            let port = u32::from(request.destination.port());
            *start <= port && port < *end
        }
        Permission::RequestedServerName(matcher) => matcher.is_match(request.server_name),
        Permission::Metadata(matcher) => matcher.is_match(request.metadata),
    }
}

fn is_header(matcher: &HeaderMatcher, request: &AuthzRequest<'_>) -> bool {
    let joined = match &*matcher.name {
        ":method" => Some(request.method.into()),
        ":path" => Some(request.path.into()),
        "host" => Some(request.authority.into()),
        "te" => None,
        name => joined(request.headers, name),
    };
    matcher.is_match(joined.as_deref())
}

/// Makes up policies.
struct Maker(SplitMix64);

impl Maker {
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.below(end as u64)).expect("below end")
    }

    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.below(of.len())]
    }

    fn some<T>(&mut self, one: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..=self.below(3)).map(|_| one(self)).collect()
    }

    /// Mostly what an index can hold.
    fn text(&mut self, of: &[&str]) -> StringMatcher {
        let text = self.one(of);
        let cut = self.below(text.len().max(1)) + 1;
        let pattern = match self.below(9) {
            0 | 1 if !text.is_empty() => StringPattern::Prefix(text[..cut].to_owned()),
            2 if !text.is_empty() => StringPattern::Suffix(text[cut - 1..].to_owned()),
            3 if !text.is_empty() => StringPattern::Contains(text[cut - 1..cut].to_owned()),
            4 => StringPattern::Regex(Regex::new(&Regex::escaped(text)).expect("a regex")),
            _ => StringPattern::Exact(text.to_owned()),
        };
        let is_upper = self.below(8) == 0;
        let matcher = StringMatcher::new(pattern).expect("not empty");
        matcher.ignore_case(is_upper)
    }

    fn header(&mut self) -> HeaderMatcher {
        let name = self.one(&HEADERS);
        let values = match name {
            ":method" => &["GET", "POST"][..],
            ":path" => &PATHS,
            "host" => &["shop", "shop:80"],
            _ => &VALUES,
        };
        let predicate = match self.below(8) {
            0 => HeaderPredicate::Present(self.below(2) == 0),
            1 => HeaderPredicate::Range { start: 1, end: 3 },
            _ => HeaderPredicate::String(self.text(values)),
        };
        HeaderMatcher {
            invert: self.below(6) == 0,
            treat_missing_as_empty: self.below(6) == 0,
            ..HeaderMatcher::new(name, predicate)
        }
    }

    fn metadata(&mut self) -> MetadataMatcher {
        let path: &[&str] = match self.below(4) {
            0 => &["payload"],
            1 => &["payload", "groups"],
            _ => &["payload", "sub"],
        };
        let value = self.value(2);
        let filter = self.one(&["jwt", "jwt", "jwt", "other"]);
        MetadataMatcher {
            invert: self.below(6) == 0,
            ..MetadataMatcher::new(filter, path.iter().copied(), value)
        }
    }

    fn value(&mut self, depth: usize) -> ValueMatcher {
        match self.below(if depth == 0 { 4 } else { 9 }) {
            0 => ValueMatcher::Present,
            4 | 5 => ValueMatcher::ListContains(Box::new(self.value(depth - 1))),
            6 => ValueMatcher::Or(self.some(|maker| maker.value(depth - 1))),
            7 => ValueMatcher::Or(Vec::new()),
            _ => ValueMatcher::String(self.text(&VALUES)),
        }
    }

    fn range(&mut self) -> IpRange {
        let ranges = ["10.0.0.0/8", "10.0.0.1", "192.0.2.0/24", "::/0"];
        self.one(&ranges).parse().expect("a range")
    }

    fn principal(&mut self, depth: usize) -> Principal {
        let some = |maker: &mut Self| maker.some(|maker| maker.principal(depth - 1));
        match self.below(if depth == 0 { 10 } else { 16 }) {
            0 => Principal::Any,
            1 => Principal::Authenticated(None),
            2 => Principal::RemoteIp(self.range()),
            3 => Principal::Header(self.header()),
            4 => Principal::Path(self.text(&PATHS)),
            5 => Principal::Metadata(self.metadata()),
            10 | 11 => Principal::And(some(self)),
            12 | 13 => Principal::Or(some(self)),
            14 => Principal::Not(Box::new(self.principal(depth - 1))),
            15 => Principal::Or(Vec::new()),
            _ => Principal::Authenticated(Some(self.text(&NAMES))),
        }
    }

    fn permission(&mut self, depth: usize) -> Permission {
        let some = |maker: &mut Self| maker.some(|maker| maker.permission(depth - 1));
        match self.below(if depth == 0 { 12 } else { 18 }) {
            0 => Permission::Any,
            1 => Permission::DestinationPort(80),
            2 => Permission::DestinationPorts { start: 80, end: 82 },
            3 => Permission::DestinationIp(self.range()),
            4 => Permission::Header(self.header()),
            5 => Permission::Metadata(self.metadata()),
            6 => Permission::RequestedServerName(self.text(&["", "shop"])),
            7 => Permission::Template(PathTemplate::new("/a/*").expect("a template")),
            12 | 13 => Permission::And(some(self)),
            14 | 15 => Permission::Or(some(self)),
            16 => Permission::Not(Box::new(self.permission(depth - 1))),
            17 => Permission::And(Vec::new()),
            _ => Permission::Path(self.text(&PATHS)),
        }
    }

    /// A policy that can be found by a name, a path or a claim, whatever else it asks for.
    fn findable(&mut self) -> RbacPolicy {
        let (who, what) = match self.below(3) {
            0 => (
                Principal::Authenticated(Some(self.text(&NAMES))),
                Permission::Path(self.text(&PATHS)),
            ),
            1 => (
                Principal::Header(self.header()),
                Permission::Path(self.text(&PATHS)),
            ),
            _ => (
                Principal::Metadata(self.metadata()),
                Permission::Header(self.header()),
            ),
        };
        RbacPolicy {
            principals: vec![Principal::And(vec![self.principal(1), who])],
            permissions: vec![Permission::And(vec![what, self.permission(1)])],
            condition: None,
        }
    }

    fn policies(&mut self) -> BTreeMap<String, RbacPolicy> {
        let count = [3, 12, 60][self.below(3)];
        let is_findable = self.below(2) == 0;
        let policies = (0..self.below(count)).map(|number| {
            let policy = match is_findable {
                true => self.findable(),
                false => RbacPolicy {
                    principals: self.some(|maker| maker.principal(2)),
                    permissions: self.some(|maker| maker.permission(2)),
                    condition: None,
                },
            };
            (format!("{number:02}"), policy)
        });
        policies.collect()
    }
}

/// Everybody's requests.
fn each_request(maker: &mut Maker, mut asked: impl FnMut(&AuthzRequest<'_>)) {
    let names = |range: std::ops::Range<usize>| -> Vec<String> {
        NAMES[range].iter().map(ToString::to_string).collect()
    };
    for (principals, authenticated) in [
        (vec![], false),
        (names(1..2), false),
        (vec![], true),
        (names(1..2), true),
        (names(2..4), true),
        (names(4..6), true),
    ] {
        let mut headers = HeaderMap::new();
        for name in ["x-a", "x-a", "x-b", "te"] {
            if maker.below(2) == 0 {
                let value = maker.one(&["red", "redder", "2"]);
                headers.append(name, HeaderValue::from_static(value));
            }
        }
        let mut metadata = DynamicMetadata::default();
        let groups = [json!(["red", "blue", 7]), json!([["red"]]), json!("blue")];
        let claims = json!({"sub": maker.one(&VALUES), "groups": groups[maker.below(3)]});
        metadata.set("jwt", "payload", claims);
        for path in PATHS {
            asked(&AuthzRequest {
                principals: &principals,
                authenticated,
                method: maker.one(&["GET", "POST", "PUT"]),
                path,
                authority: maker.one(&["shop", "SHOP:80"]),
                headers: &headers,
                source: [192, 0, 2, 7].into(),
                destination: ([10, 0, 0, 1], 80).into(),
                server_name: maker.one(&["", "shop"]),
                metadata: (maker.below(3) > 0).then_some(&metadata),
                details: Default::default(),
            });
        }
    }
}

#[test]
fn the_index_finds_the_policy_that_a_walk_through_all_of_them_finds() {
    let mut maker = Maker(SplitMix64::new(41));
    let (mut matched, mut refused, mut looked_at, mut walked) = (0, 0, 0, 0);
    for _ in 0..300 {
        let policies = maker.policies();
        let index = PolicyIndex::compile(&policies);
        each_request(&mut maker, |request| {
            let mut matching = policies.iter().filter(|(_, one)| is_match(one, request));
            let first = matching.next().map(|(name, _)| name.as_str());
            let found = index.find(request).map(|name| &**name);
            assert_eq!(found, first, "{request:?} {policies:#?}");
            *if first.is_some() {
                &mut matched
            } else {
                &mut refused
            } += 1;
            if policies.len() > 20 {
                looked_at += index.looked_at(request);
                walked += policies.len();
            }
        });
    }
    assert!(matched > 3_000 && refused > 1_500, "{matched} {refused}");
    assert!(looked_at * 10 < walked * 9, "{looked_at} of {walked}");
}
