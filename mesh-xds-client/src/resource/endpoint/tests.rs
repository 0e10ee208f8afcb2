//! What is read from the wire is what prost makes of it, whatever the bytes are.

use envoy_types::pb::{
    envoy::config::{
        core::v3::{Address, Metadata as MetadataProto, address, socket_address::PortSpecifier},
        endpoint::v3::{
            self as proto, lb_endpoint::HostIdentifier as HostProto,
            locality_lb_endpoints::LbConfig as LbConfigProto,
        },
    },
    google::protobuf::UInt32Value,
};
use mesh_core::rng::{Rng, SplitMix64};
use prost::Message;

use super::{super::lb_metadata::of_struct, message::*};
use crate::mutate;

/// Messages per run, unless [`mutate::rounds`] says otherwise.
const ROUNDS: usize = 4_000;

/// Reads `bytes` both ways; whether they can be.
#[track_caller]
fn compare(bytes: &[u8]) -> bool {
    let expected = proto::ClusterLoadAssignment::decode(bytes);
    let got = ClusterLoadAssignment::read(bytes);
    match (&expected, &got) {
        (Ok(proto), Ok(got)) => assert_eq!(*got, of(proto)),
        (Err(expected), Err(got)) => assert_eq!(*got, expected.to_string()),
        _ => panic!("{got:?}\nis not\n{expected:?}\nof {bytes:?}"),
    }
    got.is_ok()
}

fn of(proto: &proto::ClusterLoadAssignment) -> ClusterLoadAssignment<'_> {
    ClusterLoadAssignment {
        cluster_name: &proto.cluster_name,
        endpoints: proto.endpoints.iter().map(of_locality).collect(),
        policy: proto.policy.as_ref().map(|policy| Policy {
            drop_overloads: {
                let rules = policy.drop_overloads.iter();
                let rules = rules.map(|rule| DropOverload {
                    category: &rule.category,
                    drop_percentage: rule.drop_percentage,
                });
                rules.collect()
            },
            overprovisioning_factor: number(policy.overprovisioning_factor),
            endpoint_stale_after: policy.endpoint_stale_after.is_some(),
            weighted_priority_health: policy.weighted_priority_health,
        }),
    }
}

fn of_locality(proto: &proto::LocalityLbEndpoints) -> LocalityLbEndpoints<'_> {
    let place = proto.locality.as_ref();
    LocalityLbEndpoints {
        locality: place.map_or_else(Locality::default, |place| Locality {
            region: &place.region,
            zone: &place.zone,
            sub_zone: &place.sub_zone,
        }),
        lb_endpoints: proto.lb_endpoints.iter().map(of_endpoint).collect(),
        load_balancing_weight: number(proto.load_balancing_weight),
        priority: proto.priority,
        lb_config: proto.lb_config.as_ref().map(|config| match config {
            LbConfigProto::LoadBalancerEndpoints(listed) => LbConfig::LoadBalancerEndpoints(
                listed.lb_endpoints.iter().map(of_endpoint).collect(),
            ),
            LbConfigProto::LedsClusterLocalityConfig(_) => LbConfig::LedsClusterLocalityConfig,
        }),
    }
}

fn of_endpoint(proto: &proto::LbEndpoint) -> LbEndpoint<'_> {
    let under = |name| {
        let labels = |metadata: &MetadataProto| metadata.filter_metadata.get(name).map(of_struct);
        proto.metadata.as_ref().and_then(labels).unwrap_or_default()
    };
    LbEndpoint {
        health_status: proto.health_status,
        load_balancing_weight: number(proto.load_balancing_weight),
        host_identifier: proto.host_identifier.as_ref().map(of_host),
        metadata: Metadata {
            lb: under("envoy.lb"),
            socket_labels: under("envoy.transport_socket_match"),
        },
    }
}

fn of_host(proto: &HostProto) -> HostIdentifier<'_> {
    match proto {
        HostProto::EndpointName(_) => HostIdentifier::EndpointName,
        HostProto::Endpoint(endpoint) => HostIdentifier::Endpoint(Endpoint {
            address: of_address(endpoint.address.as_ref()),
            health_check_config: endpoint.health_check_config.is_some(),
            hostname: &endpoint.hostname,
            additional_addresses: {
                let additional = endpoint.additional_addresses.iter();
                let addresses = additional.map(|one| of_address(one.address.as_ref()));
                addresses.collect()
            },
        }),
    }
}

fn of_address(proto: Option<&Address>) -> Option<SocketAddress<'_>> {
    match proto?.address.as_ref()? {
        address::Address::SocketAddress(socket) => Some(SocketAddress {
            address: &socket.address,
            port_value: match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => Some(port),
                _ => None,
            },
        }),
        _ => None,
    }
}

fn number(wrapped: Option<UInt32Value>) -> Option<u32> {
    wrapped.map(|wrapped| wrapped.value)
}

/// A field's type.
#[derive(Clone, Copy)]
enum Type {
    Number,
    Double,
    Text,
    Message(&'static Fields),
}

type Fields = [(u32, Type)];

use Type::{Double, Message as Nested, Number, Text};

static ASSIGNMENT: &Fields = &[
    (1, Text),
    (2, Nested(LOCALITY_ENDPOINTS)),
    (2, Nested(LOCALITY_ENDPOINTS)),
    (4, Nested(POLICY)),
    (5, Nested(&[(1, Text), (2, Nested(ENDPOINT))])),
];
static POLICY: &Fields = &[
    (
        2,
        Nested(&[(1, Text), (2, Nested(&[(1, Number), (2, Number)]))]),
    ),
    (3, Nested(WRAPPER)),
    (4, Nested(&[(1, Number), (2, Number)])),
    (6, Number),
];
static LOCALITY_ENDPOINTS: &Fields = &[
    (1, Nested(&[(1, Text), (2, Text), (3, Text)])),
    (2, Nested(LB_ENDPOINT)),
    (2, Nested(LB_ENDPOINT)),
    (3, Nested(WRAPPER)),
    (5, Number),
    (6, Nested(WRAPPER)),
    (7, Nested(&[(1, Nested(LB_ENDPOINT))])),
    (8, Nested(&[(2, Text)])),
    (9, Nested(METADATA)),
];
static LB_ENDPOINT: &Fields = &[
    (1, Nested(ENDPOINT)),
    (1, Nested(ENDPOINT)),
    (2, Number),
    (3, Nested(METADATA)),
    (4, Nested(WRAPPER)),
    (5, Text),
];
static ENDPOINT: &Fields = &[
    (1, Nested(ADDRESS)),
    (1, Nested(ADDRESS)),
    (2, Nested(&[(1, Number), (2, Text), (3, Nested(ADDRESS))])),
    (3, Text),
    (4, Nested(&[(1, Nested(ADDRESS))])),
    (5, Text),
];
static ADDRESS: &Fields = &[
    (1, Nested(SOCKET_ADDRESS)),
    (1, Nested(SOCKET_ADDRESS)),
    (2, Nested(&[(1, Text), (2, Number)])),
    (3, Nested(&[(1, Text), (2, Text)])),
];
static SOCKET_ADDRESS: &Fields = &[
    (1, Number),
    (2, Text),
    (3, Number),
    (4, Text),
    (5, Text),
    (6, Number),
    (7, Text),
];
static METADATA: &Fields = &[
    (1, Nested(&[(1, Text), (2, Nested(&STRUCT))])),
    (1, Nested(&[(1, Text), (2, Nested(&STRUCT))])),
    (
        2,
        Nested(&[(1, Text), (2, Nested(&[(1, Text), (2, Text)]))]),
    ),
];
static STRUCT: [(u32, Type); 1] = [(1, Nested(&[(1, Text), (2, Nested(&VALUE))]))];
static VALUE: [(u32, Type); 6] = [
    (1, Number),
    (2, Double),
    (3, Text),
    (4, Number),
    (5, Nested(&STRUCT)),
    (6, Nested(&[(1, Nested(&VALUE))])),
];
static WRAPPER: &Fields = &[(1, Number)];

const TEXTS: [&[u8]; 9] = [
    b"",
    b"c",
    b"10.0.0.1",
    b"10.0.0.2",
    b"::1",
    b"envoy.lb",
    b"envoy.transport_socket_match",
    b"k",
    b"\xc3\xa9",
];

const NUMBERS: [u64; 8] = [0, 1, 2, 3, 80, 65_536, 1 << 32 | 5, u64::MAX];

/// Fields of a type in any order and number: missing, repeated, unknown, rarely of a wrong layout.
fn generate(fields: &Fields, depth: usize, rng: &mut SplitMix64) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..rng.below(2 + fields.len() as u64) {
        if rng.below(25) == 0 {
            unknown(20 + rng.below(3) as u32, rng, &mut out);
        }
        if rng.below(800) == 0 {
            unknown(1 + rng.below(7) as u32, rng, &mut out);
        }
        let (number, kind) = fields[rng.below(fields.len() as u64) as usize];
        match kind {
            Number => {
                key(number, 0, &mut out);
                put(NUMBERS[rng.below(NUMBERS.len() as u64) as usize], &mut out);
            }
            Double => {
                key(number, 1, &mut out);
                out.extend(rng.next_u64().to_le_bytes());
            }
            Text => {
                let text: &[u8] = match rng.below(400) {
                    0 => b"\xff",
                    _ => TEXTS[rng.below(TEXTS.len() as u64) as usize],
                };
                delimited(number, text, &mut out);
            }
            Nested(_) if depth > 14 => {}
            Nested(inner) => {
                let inner = generate(inner, depth + 1, rng);
                delimited(number, &inner, &mut out);
            }
        }
    }
    out
}

/// A field of any layout.
fn unknown(number: u32, rng: &mut SplitMix64, out: &mut Vec<u8>) {
    let layout = rng.below(5) as u8;
    match layout {
        2 => return delimited(number, b"\x08\x01", out),
        4 => key(number, 5, out),
        _ => key(number, layout, out),
    }
    match layout {
        0 => put(rng.below(300), out),
        1 => out.extend([7; 8]),
        3 => {
            if rng.below(2) == 0 {
                unknown(3, rng, out);
            }
            key(number, 4, out);
        }
        _ => out.extend([7; 4]),
    }
}

fn key(number: u32, layout: u8, out: &mut Vec<u8>) {
    put(u64::from(number << 3 | u32::from(layout)), out);
}

fn delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    key(number, 2, out);
    put(bytes.len() as u64, out);
    out.extend(bytes);
}

fn put(value: u64, out: &mut Vec<u8>) {
    prost::encoding::encode_varint(value, out);
}

#[test]
fn any_assignment_is_read_as_prost_reads_it() {
    let mut rng = SplitMix64::new(11);
    let rounds = mutate::rounds(ROUNDS);
    let (mut readable, mut damaged) = (0, 0);
    for _ in 0..rounds {
        let bytes = generate(ASSIGNMENT, 0, &mut rng);
        readable += usize::from(compare(&bytes));
        for _ in 0..4 {
            let bytes = match rng.below(2) {
                0 => mutate::damage(&bytes, &mut rng),
                _ => mutate::message(&bytes, &mut rng),
            };
            damaged += usize::from(compare(&bytes));
        }
    }
    let share = readable * 100 / rounds;
    assert!((60..98).contains(&share), "readable: {share} %");
    let share = damaged * 25 / rounds;
    assert!(
        (10..90).contains(&share),
        "readable of the damaged: {share} %"
    );
}

#[test]
fn an_assignment_that_is_cut_short_is_refused_as_prost_refuses_it() {
    let mut rng = SplitMix64::new(12);
    let bytes = loop {
        let bytes = generate(ASSIGNMENT, 0, &mut rng);
        if (300..3000).contains(&bytes.len()) && compare(&bytes) {
            break bytes;
        }
    };
    let whole = (0..bytes.len()).filter(|length| compare(&bytes[..*length]));
    assert!(whole.count() < 20, "only between fields of the outermost");
}

/// Puts `bytes` into a message of its own as field `number`.
fn wrapped(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    delimited(number, bytes, &mut out);
    out
}

/// Messages inside of each other have a bound, and each way to be deep counts towards it.
#[test]
fn what_is_nested_too_deeply_is_refused_as_prost_refuses_it() {
    let group = |levels: usize| {
        let mut out = vec![];
        (0..levels).for_each(|_| key(30, 3, &mut out));
        (0..levels).for_each(|_| key(30, 4, &mut out));
        out
    };
    let in_metadata = |value: &[u8]| {
        let entry = [
            wrapped(1, b"other"),
            wrapped(2, &wrapped(1, &wrapped(2, value))),
        ]
        .concat();
        wrapped(2, &wrapped(2, &wrapped(3, &wrapped(1, &entry))))
    };
    let mut refused = 0;
    for inside in [vec![], wrapped(30, b"x"), group(1)] {
        let (mut list, mut structs) = (inside.clone(), inside.clone());
        for levels in 0..60 {
            for bytes in [in_metadata(&list), in_metadata(&structs)] {
                refused += usize::from(!compare(&bytes));
            }
            list = wrapped(6, &wrapped(1, &list));
            structs = wrapped(5, &wrapped(1, &wrapped(2, &structs)));
            let groups = group(levels * 2);
            for bytes in [wrapped(2, &wrapped(2, &groups)), groups] {
                refused += usize::from(!compare(&bytes));
            }
        }
    }
    assert!((50..300).contains(&refused), "{refused}");
}

#[test]
fn messages_in_pieces_are_put_together_and_of_alternatives_the_last_one_stays() {
    let address = |parts: &[Vec<u8>]| wrapped(1, &wrapped(1, &parts.concat()));
    let port = |port: u8| vec![0x18, port];
    let ip = |ip: &str| wrapped(2, ip.as_bytes());
    let endpoint = [
        wrapped(1, &address(&[ip("10.0.0.9"), port(1)])),
        wrapped(1, &address(&[port(2)])),
        wrapped(5, b"name"),
        // Another begins after the name.
        wrapped(1, &address(&[ip("10.0.0.1")])),
        wrapped(1, &address(&[port(3)])),
        wrapped(1, &wrapped(3, b"host")),
        wrapped(4, &[0x08, 7]),
        wrapped(4, &[]),
    ];
    let locality = [
        wrapped(1, &wrapped(1, b"r")),
        wrapped(2, &endpoint.concat()),
        wrapped(1, &wrapped(2, b"z")),
    ];
    let bytes = [
        wrapped(1, b"a"),
        wrapped(2, &locality.concat()),
        wrapped(1, b"b"),
    ]
    .concat();
    assert!(compare(&bytes));
    let read = ClusterLoadAssignment::read(&bytes).unwrap();
    assert_eq!(read.cluster_name, "b");
    let [place] = &read.endpoints[..] else {
        panic!("{read:?}")
    };
    assert_eq!((place.locality.region, place.locality.zone), ("r", "z"));
    assert_eq!(place.lb_endpoints[0].load_balancing_weight, Some(7));
    let expected = Endpoint {
        address: Some(SocketAddress {
            address: "10.0.0.1",
            port_value: Some(3),
        }),
        hostname: "host",
        ..Endpoint::default()
    };
    assert_eq!(
        place.lb_endpoints[0].host_identifier,
        Some(HostIdentifier::Endpoint(expected))
    );
}
