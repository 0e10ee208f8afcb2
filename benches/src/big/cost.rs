//! What the big configuration costs its client, counted: bytes that it holds, and instructions of a
//! change from its receipt until it is published and answered.
//!
//! Client and server are in one process without sockets, so the counts are the same every time; they
//! leave out the transport, and what the allocator adds.

use std::collections::BTreeMap;

use allocation_counter::{measure, opt_out};
use anyhow::{Context, bail};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_core::snapshot::SnapshotReader;
use mesh_xds_client::{Bootstrap, Variant, testing::Loopback};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{
    CLUSTERS, HUB,
    ads::{self, CHANGES, Subscriber},
};
use crate::library::counted;

/// Clusters where instructions are counted, which under valgrind take their time. What a change costs
/// does not depend on them, but for the names in each request of the state of the world.
const CLUSTERS_COUNTED: usize = 1_000;
/// Responses to count over, with ten changes each.
const TICKS: usize = 200;
/// Responses before the count: each cluster has changed once.
const TICKS_BEFORE: usize = CLUSTERS_COUNTED / CHANGES;

/// The variants of the protocol by their names in `gate.toml`.
pub const VARIANTS: [&str; 2] = ["delta", "state of the world"];

/// What a client holds of the big configuration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Of a cluster with its route and ten endpoints.
    pub bytes_per_cluster: u64,
    /// The same at the most while it is received, with what is received.
    pub peak_bytes_per_cluster: u64,
    /// Of a cluster.
    pub allocations_per_cluster: u64,
}

/// A client and its server.
struct Pair<V> {
    server: Subscriber,
    client: Loopback,
    version: u64,
    /// What keeps the configuration wanted.
    _reader: SnapshotReader,
    variant: std::marker::PhantomData<V>,
}

impl<V: ads::Variant> Pair<V> {
    fn new(server: Subscriber, variant: Variant) -> anyhow::Result<Self> {
        let bootstrap = serde_json::json!({
            "xds_servers": [{
                "server_uri": "http://127.0.0.1:1",
                "channel_creds": [{"type": "insecure"}],
            }],
            "node": {"id": "big", "metadata": {"NAMESPACE": "default"}},
        });
        let bootstrap = Bootstrap::from_json(&bootstrap.to_string())?;
        let client = Loopback::new(bootstrap, variant)?;
        let authority = format!("{HUB}.default:8080");
        let reader = client.client().watch_listener(&authority, &authority);
        Ok(Self {
            server,
            client,
            version: 0,
            _reader: reader,
            variant: std::marker::PhantomData,
        })
    }

    /// Exchanges requests and responses until nobody has anything to say.
    fn settle(&mut self) -> anyhow::Result<()> {
        loop {
            let requests = self.client.requests();
            let mut is_answered = false;
            for request in &requests {
                if let Some(response) = opt_out_with(|| self.answer(request))? {
                    self.client.respond(&response);
                    is_answered = true;
                    opt_out(|| drop(response));
                }
            }
            if !is_answered {
                return Ok(());
            }
        }
    }

    fn answer(&mut self, request: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        let news = self.server.subscribe(V::decode(request)?);
        Ok(news
            .filter(|(_, resources)| !resources.is_empty())
            .map(|(kind, resources)| self.encoded(kind, resources)))
    }

    fn encoded(
        &mut self,
        kind: control_plane::cache::ResourceType,
        resources: Vec<ads::Named>,
    ) -> Vec<u8> {
        self.version += 1;
        V::response(kind, self.version, resources).encode_to_vec()
    }

    /// The next ten changes.
    fn changes(&mut self) -> anyhow::Result<Vec<u8>> {
        let (kind, resources) = self.server.change().context("it is asked for changes")?;
        Ok(self.encoded(kind, resources))
    }
}

/// [`opt_out`] with a result.
fn opt_out_with<T>(run: impl FnOnce() -> T) -> T {
    let mut result = None;
    opt_out(|| result = Some(run()));
    result.unwrap_or_else(|| unreachable!("it ran"))
}

/// Bytes and allocations that a client holds of ten thousand clusters.
///
/// # Errors
/// When the configuration cannot be made.
pub fn held() -> anyhow::Result<BTreeMap<String, Held>> {
    let mut all = BTreeMap::new();
    for variant in VARIANTS {
        let held = match variant {
            "delta" => held_of::<DeltaDiscoveryRequest>(Variant::Incremental),
            _ => held_of::<DiscoveryRequest>(Variant::StateOfTheWorld),
        };
        all.insert(variant.to_owned(), held?);
    }
    Ok(all)
}

fn held_of<V: ads::Variant>(variant: Variant) -> anyhow::Result<Held> {
    let server = Subscriber::alone(CLUSTERS)?;
    let mut pair = None;
    let info = measure(|| {
        let settled = Pair::<V>::new(server, variant).and_then(|mut pair| {
            pair.settle()?;
            Ok(pair)
        });
        pair = Some(settled);
    });
    pair.context("it ran")??;
    let each = |count: u64| count / CLUSTERS as u64;
    Ok(Held {
        bytes_per_cluster: each(info.bytes_current.unsigned_abs()),
        peak_bytes_per_cluster: each(info.bytes_max),
        allocations_per_cluster: each(info.count_current.unsigned_abs()),
    })
}

/// Instructions of one change of an endpoint, by variant.
///
/// # Errors
/// When valgrind is not installed.
pub fn instructions() -> anyhow::Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for variant in VARIANTS {
        let run = |ticks: usize| counted(&["changes", variant, &ticks.to_string()]);
        let (few, many) = (run(TICKS_BEFORE)?, run(TICKS_BEFORE + TICKS)?);
        let each = many.saturating_sub(few) / (TICKS * CHANGES) as u64;
        all.insert(variant.to_owned(), each);
    }
    Ok(all)
}

/// Takes so many responses with ten changes each, for [`instructions`] to count.
///
/// # Errors
/// When there is no such variant, or the configuration cannot be made.
pub fn change(variant: &str, ticks: usize) -> anyhow::Result<()> {
    match variant {
        "delta" => change_of::<DeltaDiscoveryRequest>(Variant::Incremental, ticks),
        "state of the world" => change_of::<DiscoveryRequest>(Variant::StateOfTheWorld, ticks),
        other => bail!("no variant is named {other:?}"),
    }
}

fn change_of<V: ads::Variant>(variant: Variant, ticks: usize) -> anyhow::Result<()> {
    let server = Subscriber::alone(CLUSTERS_COUNTED)?;
    let mut pair = Pair::<V>::new(server, variant)?;
    pair.settle()?;
    // All of them in each run: making them is not part of a change.
    let responses: anyhow::Result<Vec<_>> =
        (0..TICKS_BEFORE + TICKS).map(|_| pair.changes()).collect();
    for response in responses?.iter().take(ticks) {
        pair.client.respond(response);
        anyhow::ensure!(!pair.client.requests().is_empty(), "each is answered");
    }
    // What is left is not part of a change.
    std::process::exit(0)
}
