//! Consistent hashing, from `consistentHash` of a DestinationRule: the balancer of the cluster, and what
//! routes to it hash.

use mesh_core::config::{
    HashPolicy, HashSource, LbPolicy, MAGLEV_TABLE_SIZE_DEFAULT, MAGLEV_TABLE_SIZE_MAX,
    RING_SIZE_MAX, RingHash, Route, RouteAction,
};

use super::{
    Compiled, Viewer,
    balance::{Wrong, duration},
    scoped::{ClientMatch, DeclaredRoute},
};
use crate::model::ConsistentHash;

/// The field, below that of the load balancer.
const FIELD: &str = "consistentHash";

/// What a cluster of a route hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartHash {
    /// For some clients; the first that is for one holds.
    some: Vec<(ClientMatch, Option<HashPolicy>)>,
    all: Option<HashPolicy>,
}

/// What a client hashes, and what tells it apart from those that hash something else: the first part
/// that has something to hash decides.
pub(super) fn of<'p>(
    parts: &'p [PartHash],
    viewer: Option<Viewer<'_>>,
) -> (String, Option<&'p HashPolicy>) {
    let (mut key, mut found) = (String::new(), None);
    for part in parts {
        let is_for = |(clients, _): &(ClientMatch, _)| viewer.is_some_and(|v| clients.has(v));
        let own = part.some.iter().position(is_for);
        let policy = match own {
            Some(index) => &part.some[index].1,
            None => &part.all,
        };
        key.push('h');
        key.extend(own.map(|index| index.to_string()));
        found = found.or(policy.as_ref());
    }
    (key, found)
}

/// Says what is hashed.
pub(super) fn set(route: &mut Route, policy: Option<&HashPolicy>) {
    if let RouteAction::Forward(forward) = &mut route.action
        && let Some(policy) = policy
    {
        let extras = forward.extras.get_or_insert_default();
        extras.hash_policy.push(policy.clone());
    }
}

impl Compiled {
    /// Routes to what balances by hash say what is hashed, unless they do already.
    pub(super) fn hash(&self, declared: &mut DeclaredRoute) {
        let RouteAction::Forward(forward) = &declared.route.action else {
            return;
        };
        let extras = forward.extras.as_deref();
        if extras.is_some_and(|extras| !extras.hash_policy.is_empty()) {
            return;
        }
        let parts = forward.clusters.iter().map(|part| {
            let own = self.own_clusters.get(&part.name).into_iter().flatten();
            PartHash {
                some: own
                    .map(|own| (own.clients.clone(), own.hash.clone()))
                    .collect(),
                all: self.hashing.get(&part.name).cloned(),
            }
        });
        let parts: Vec<_> = parts.collect();
        let is_same = |part: &PartHash| part.some.iter().all(|(_, own)| *own == part.all);
        if parts.iter().all(is_same) {
            let policy = parts.iter().find_map(|part| part.all.as_ref());
            set(&mut declared.route, policy);
        } else {
            declared.hashes = parts;
        }
    }
}

/// The balancer, and what is hashed; nothing when it cannot be used.
pub(super) fn consistent_hash(
    spec: &ConsistentHash,
    wrong: &mut Wrong<'_>,
) -> Option<(LbPolicy, HashPolicy)> {
    let sources = [
        spec.http_header_name.is_some(),
        spec.http_cookie.is_some(),
        spec.use_source_ip == Some(true),
        spec.http_query_parameter_name.is_some(),
    ];
    if sources.iter().filter(|is_there| **is_there).count() != 1 {
        let message = "there must be one of httpHeaderName, httpCookie, useSourceIp and \
                       httpQueryParameterName";
        wrong(FIELD, message.to_owned());
        return None;
    }
    let source = source(spec, wrong)?;
    let policy = HashPolicy {
        source,
        terminal: false,
    };
    Some((balancer(spec, wrong)?, policy))
}

fn source(spec: &ConsistentHash, wrong: &mut Wrong<'_>) -> Option<HashSource> {
    if let Some(name) = &spec.http_header_name {
        let Ok(name) = http::HeaderName::from_bytes(name.as_bytes()) else {
            let message = format!("{name:?} is not the name of a header");
            wrong(&format!("{FIELD}.httpHeaderName"), message);
            return None;
        };
        return Some(HashSource::Header {
            name: name.as_str().to_owned(),
            rewrite: None,
        });
    }
    if let Some(cookie) = &spec.http_cookie {
        if cookie.name.is_empty() {
            wrong(
                &format!("{FIELD}.httpCookie.name"),
                "it is missing".to_owned(),
            );
            return None;
        }
        let nameless = cookie.attributes.iter().position(|one| one.name.is_empty());
        if let Some(index) = nameless {
            let field = format!("{FIELD}.httpCookie.attributes[{index}].name");
            wrong(&field, "it is missing".to_owned());
            return None;
        }
        let ttl = cookie.ttl.as_deref();
        let ttl = ttl.map(|text| duration(&format!("{FIELD}.httpCookie.ttl"), text, wrong));
        return Some(HashSource::Cookie {
            name: cookie.name.clone(),
            ttl: ttl.flatten(),
            path: cookie.path.clone().unwrap_or_default(),
            attributes: cookie
                .attributes
                .iter()
                .map(|attribute| (attribute.name.clone(), attribute.value.clone()))
                .collect(),
        });
    }
    let parameter = spec.http_query_parameter_name.clone();
    Some(parameter.map_or(HashSource::SourceIp, HashSource::QueryParameter))
}

fn balancer(spec: &ConsistentHash, wrong: &mut Wrong<'_>) -> Option<LbPolicy> {
    if let Some(maglev) = &spec.maglev {
        let size = Some(maglev.table_size.unwrap_or(MAGLEV_TABLE_SIZE_DEFAULT));
        let size = size.filter(|size| *size <= MAGLEV_TABLE_SIZE_MAX && is_prime(*size));
        if size.is_none() {
            let message = format!("it must be a prime, at most {MAGLEV_TABLE_SIZE_MAX}");
            wrong(&format!("{FIELD}.maglev.tableSize"), message);
        }
        return size.map(|table_size| LbPolicy::Maglev { table_size });
    }
    let ring = spec.ring_hash.as_ref();
    let (field, size) = match ring.and_then(|ring| ring.minimum_ring_size) {
        Some(size) => ("ringHash.minimumRingSize", Some(size)),
        None => ("minimumRingSize", spec.minimum_ring_size),
    };
    let mut ring = RingHash::default();
    match size {
        None => {}
        Some(size) if u64::from(size) <= RING_SIZE_MAX => ring.minimum_ring_size = size.into(),
        Some(size) => {
            let message = format!("{size} is more than {RING_SIZE_MAX}");
            wrong(&format!("{FIELD}.{field}"), message);
            return None;
        }
    }
    Some(LbPolicy::RingHash(ring))
}

fn is_prime(number: u32) -> bool {
    let divisors = (2..).take_while(|d: &u32| d.saturating_mul(*d) <= number);
    number > 1 && !{ divisors }.any(|divisor| number.is_multiple_of(divisor))
}
