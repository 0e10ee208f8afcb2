//! Hosts that are looked up as their cluster says, at a DNS server whose answers change.
#![expect(
    deprecated,
    reason = "control planes in use send the cluster's own fields"
)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use envoy_types::pb::{
    envoy::{
        config::cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, CustomClusterType, DnsLookupFamily},
        },
        extensions::clusters::dns::v3::DnsCluster,
    },
    google::protobuf::{Any, Duration as ProtoDuration},
};
use mesh_core::snapshot::{LazySnapshot, ListenerState, SnapshotReader};
use mesh_xds_client::XdsClient;
use prost::{Message, Name};
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::{builder, server::*, within};

/// A time to live that no test outlives.
const LONG: u32 = 3600;
const HOST: &str = "db.example";
const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 4));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 6));

/// The answer to every question, or none: then the name does not exist.
type Records = Arc<Mutex<Option<(Vec<IpAddr>, u32)>>>;

/// A DNS server over UDP.
struct Dns {
    address: SocketAddr,
    records: Records,
    task: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dns {
    async fn start(addresses: &[IpAddr], ttl: u32) -> Self {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let records: Records = Arc::new(Mutex::new(Some((addresses.to_vec(), ttl))));
        let known = Arc::clone(&records);
        let task = tokio::spawn(async move {
            let mut query = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut query).await.unwrap();
                let answer = answer(&query[..length], known.lock().unwrap().as_ref());
                _ = socket.send_to(&answer, from).await;
            }
        });
        Self {
            address,
            records,
            task,
        }
    }

    fn set(&self, addresses: &[IpAddr], ttl: u32) {
        *self.records.lock().unwrap() = Some((addresses.to_vec(), ttl));
    }

    fn forget(&self) {
        *self.records.lock().unwrap() = None;
    }
}

/// The answer to a query of one question (RFC 1035, section 4).
fn answer(query: &[u8], records: Option<&(Vec<IpAddr>, u32)>) -> Vec<u8> {
    const HEADER: usize = 12;
    const AAAA: [u8; 2] = [0, 28];
    let mut end = HEADER;
    while query[end] != 0 {
        end += 1 + usize::from(query[end]);
    }
    let question = &query[HEADER..end + 5];
    let wants_v6 = question[question.len() - 4..][..2] == AAAA;
    let (addresses, ttl) = records.cloned().unwrap_or_default();
    let addresses: Vec<_> = addresses
        .into_iter()
        .filter(|address| address.is_ipv6() == wants_v6)
        .collect();
    let code = if records.is_some() { 0 } else { 3 };
    let mut answer = query[..2].to_vec();
    answer.extend([
        0x81,
        0x80 | code,
        0,
        1,
        0,
        addresses.len() as u8,
        0,
        0,
        0,
        0,
    ]);
    answer.extend(question);
    for address in addresses {
        answer.extend([0xc0, HEADER as u8]);
        answer.extend(&question[question.len() - 4..]);
        answer.extend(ttl.to_be_bytes());
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        answer.extend([0, bytes.len() as u8]);
        answer.extend(bytes);
    }
    answer
}

fn any<T: Message + Name>(value: &T) -> Any {
    Any {
        type_url: T::type_url(),
        value: value.encode_to_vec(),
    }
}

fn second() -> Option<ProtoDuration> {
    Some(ProtoDuration {
        seconds: 1,
        nanos: 0,
    })
}

/// The cluster `c` of [`HOST`].
fn cluster(change: impl FnOnce(&mut Cluster)) -> Any {
    let plain = dns_cluster("c", HOST, 80);
    let mut cluster = Cluster::decode(&*plain.value).unwrap();
    change(&mut cluster);
    any(&cluster)
}

/// A client that follows the cluster, with its control plane.
struct World {
    dns: Dns,
    stream: ServerStream,
    reader: SnapshotReader,
    _server: Server,
    _client: XdsClient,
}

impl World {
    async fn start(dns: Dns, cluster: Any) -> Self {
        let mut server = Server::start().await;
        let client = builder(format!("http://{}", server.address))
            .dns_servers(&[dns.address])
            .build()
            .unwrap();
        let reader = client.watch_listener("l", "greeter");
        let mut stream = server.accept().await;
        stream.expect(LDS).await;
        stream.serve(LDS, "l1", vec![listener("l", "r")]).await;
        stream.serve(RDS, "r1", vec![routes("r", "c")]).await;
        stream.serve(CDS, "c1", vec![cluster]).await;
        Self {
            dns,
            stream,
            reader,
            _server: server,
            _client: client,
        }
    }

    /// Waits until the cluster has these addresses and no other.
    async fn becomes(&mut self, expected: &[IpAddr]) {
        let ready = self.reader.clone();
        let is_ready = async {
            let mut reader = ready;
            while !matches!(reader.load(), ListenerState::Ready(_)) {
                assert!(reader.changed().await, "the client lives");
            }
            reader
        };
        let reader = within(is_ready).await;
        let ListenerState::Ready(snapshot) = reader.load() else {
            unreachable!("it is ready")
        };
        let mut current = snapshot.clusters[0].current.clone();
        let expected: BTreeSet<_> = expected.iter().copied().collect();
        let is_so = |cluster: &Arc<LazySnapshot>| {
            let endpoints = cluster.endpoints.iter();
            endpoints
                .map(|endpoint| endpoint.address.ip())
                .collect::<BTreeSet<_>>()
                == expected
        };
        within(current.wait_for(is_so)).await.unwrap();
    }
}

#[tokio::test]
async fn answers_are_followed_by_the_rate_of_the_cluster_whatever_their_time_to_live() {
    let other = IpAddr::from([10, 0, 0, 5]);
    let by_own_field = cluster(|cluster| cluster.dns_refresh_rate = second());
    let by_extension = cluster(|cluster| {
        let typed = DnsCluster {
            dns_refresh_rate: second(),
            ..DnsCluster::default()
        };
        cluster.cluster_discovery_type =
            Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                name: "envoy.clusters.dns".into(),
                typed_config: Some(any(&typed)),
            }));
    });
    for cluster in [by_own_field, by_extension] {
        let dns = Dns::start(&[V4], LONG).await;
        let mut world = World::start(dns, cluster).await;
        world.becomes(&[V4]).await;
        world.dns.set(&[other], LONG);
        world.becomes(&[other]).await;
        // What no longer exists serves as it was, and is followed when it is back.
        world.dns.forget();
        world.becomes(&[other]).await;
        world.dns.set(&[V4, other], LONG);
        world.becomes(&[V4, other]).await;
    }
}

#[tokio::test]
async fn the_time_to_live_is_respected_beside_a_rate_and_without_one() {
    let other = IpAddr::from([10, 0, 0, 5]);
    for cluster in [
        cluster(|_| {}),
        cluster(|cluster| {
            cluster.respect_dns_ttl = true;
            cluster.dns_refresh_rate = Some(ProtoDuration {
                seconds: i64::from(LONG),
                nanos: 0,
            });
        }),
    ] {
        let dns = Dns::start(&[V4], 1).await;
        let mut world = World::start(dns, cluster).await;
        world.becomes(&[V4]).await;
        world.dns.set(&[other], 1);
        world.becomes(&[other]).await;
    }
}

#[tokio::test]
async fn addresses_are_of_the_family_that_is_asked_for() {
    use DnsLookupFamily::{All, Auto, V4Only, V4Preferred, V6Only};
    let dns = Dns::start(&[V4, V6], LONG).await;
    let mut world = World::start(dns, cluster(|_| {})).await;
    for (i, (family, expected)) in [
        (Auto, &[V4, V6][..]),
        (V4Only, &[V4]),
        (V6Only, &[V6]),
        (V4Preferred, &[V4]),
        (All, &[V4, V6]),
    ]
    .into_iter()
    .enumerate()
    {
        let cluster = cluster(|cluster| cluster.dns_lookup_family = family as i32);
        let version = format!("family{i}");
        world.stream.serve(CDS, &version, vec![cluster]).await;
        world.becomes(expected).await;
    }
    world.dns.set(&[V6], LONG);
    let preferred = cluster(|cluster| {
        cluster.dns_lookup_family = V4Preferred as i32;
        cluster.dns_refresh_rate = second();
    });
    world.stream.serve(CDS, "preferred", vec![preferred]).await;
    world.becomes(&[V6]).await;
}

#[tokio::test]
async fn a_name_that_fails_at_first_is_asked_for_again_by_the_rate_for_failures() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::RefreshRate;
    let dns = Dns::start(&[], LONG).await;
    dns.forget();
    let cluster = cluster(|cluster| {
        cluster.dns_refresh_rate = Some(ProtoDuration {
            seconds: i64::from(LONG),
            nanos: 0,
        });
        cluster.dns_failure_refresh_rate = Some(RefreshRate {
            base_interval: second(),
            max_interval: second(),
        });
    });
    let mut world = World::start(dns, cluster).await;
    world.becomes(&[]).await;
    world.dns.set(&[V4], LONG);
    world.becomes(&[V4]).await;
}
