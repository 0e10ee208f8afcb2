//! Random worlds and random clients, in simulated time: what must hold whatever happens.
//!
//! * A route that reaches a client of everything leads to no cluster that it does not have.
//! * Nothing is taken from a client while something that it has refers to it.
//! * Every client comes to the newest world, and then there is silence.
//!
//! Clients answer within 100 ms, lose their stream now and then, and may refuse a version. A failure
//! names its seed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::{
            listener::v3::Listener,
            route::v3::{RouteConfiguration, route::Action, route_action::ClusterSpecifier},
        },
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
    google::{protobuf::Any, rpc::Status},
};
use mesh_core::rng::{Rng as _, SplitMix64};
use prost::Message as _;

use super::{
    delta::Delta,
    session::Session,
    sotw::Sotw,
    tests::{client, trust, world},
    wire::{Gone, Response},
    *,
};
use crate::class::ClientClass;

/// Of one step.
const STEP: Duration = Duration::from_millis(10);
/// Steps in which anything may happen.
const STEPS: usize = 600;
/// Steps in which everybody comes to rest: more than the longest wait of a session.
const REST: usize = 1_500;
/// The longest that a client takes to answer, in steps.
const ANSWER_MAX: u64 = 10;
const SERVICES: u64 = 5;

/// Services that come and go, and a route that leads to some of them.
fn yaml(rng: &mut SplitMix64) -> String {
    let mut text = String::new();
    let mut there = Vec::new();
    for service in 0..SERVICES {
        // The greeter is always there.
        if service > 0 && rng.below(3) == 0 {
            continue;
        }
        there.push(service);
        let port = 5000 + rng.below(3);
        text += &format!(
            "---
kind: ServiceEntry
metadata: {{name: s{service}}}
spec:
  hosts: [s{service}.default.svc.cluster.local]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
"
        );
    }
    let to = there[rng.below(there.len() as u64) as usize];
    text + &format!(
        "---
kind: VirtualService
metadata: {{name: s0}}
spec: {{hosts: [s0], http: [{{route: [{{destination: {{host: s{to}}}}}]}}]}}
"
    )
}

/// The clusters that a route configuration leads to.
fn clusters(any: &[u8]) -> BTreeSet<String> {
    let any = Any::decode(any).unwrap();
    let config = RouteConfiguration::decode(&any.value[..]).unwrap();
    let routes = config
        .virtual_hosts
        .into_iter()
        .flat_map(|host| host.routes);
    let mut found = BTreeSet::new();
    for route in routes {
        let Some(Action::Route(action)) = route.action else {
            continue;
        };
        match action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => {
                found.insert(name);
            }
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                found.extend(weighted.clusters.into_iter().map(|cluster| cluster.name));
            }
            _ => {}
        }
    }
    found
}

/// How a client of one variant speaks.
trait Speaks: Variant {
    fn request(asks: &Asks<'_>) -> Self::Request;
}

/// What a client says.
struct Asks<'a> {
    kind: ResourceType,
    names: &'a BTreeSet<String>,
    before: &'a BTreeSet<String>,
    is_first: bool,
    nonce: Option<u64>,
    is_refusal: bool,
    versions: BTreeMap<String, String>,
}

impl Asks<'_> {
    fn nonce(&self) -> String {
        self.nonce
            .map_or_else(String::new, |nonce| nonce.to_string())
    }

    /// Of what it has; which it is does not matter here.
    fn version(&self) -> String {
        self.versions.values().next().cloned().unwrap_or_default()
    }

    fn detail(&self) -> Option<Status> {
        self.is_refusal.then(|| Status {
            message: "no".into(),
            ..Status::default()
        })
    }
}

impl Speaks for Sotw {
    fn request(asks: &Asks<'_>) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: asks.kind.url(),
            resource_names: asks.names.iter().cloned().collect(),
            response_nonce: asks.nonce(),
            error_detail: asks.detail(),
            version_info: asks.version(),
            ..DiscoveryRequest::default()
        }
    }
}

impl Speaks for Delta {
    fn request(asks: &Asks<'_>) -> DeltaDiscoveryRequest {
        let new = |name: &&String| asks.is_first || !asks.before.contains(*name);
        let dropped = asks
            .before
            .difference(asks.names)
            .filter(|_| !asks.is_first);
        DeltaDiscoveryRequest {
            type_url: asks.kind.url(),
            resource_names_subscribe: asks.names.iter().filter(new).cloned().collect(),
            resource_names_unsubscribe: dropped.cloned().collect(),
            initial_resource_versions: match asks.is_first {
                true => asks.versions.clone().into_iter().collect(),
                false => Default::default(),
            },
            response_nonce: asks.nonce(),
            error_detail: asks.detail(),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// A client and the session that serves it.
struct Sim<V: Variant> {
    rng: SplitMix64,
    seed: u64,
    class: ClientClass,
    session: Session<V>,
    world: Arc<World>,
    now: Instant,
    held: BTreeMap<ResourceType, BTreeMap<String, Arc<Resource>>>,
    asked: BTreeMap<ResourceType, BTreeSet<String>>,
    nonces: BTreeMap<ResourceType, u64>,
    /// Responses on their way, and when they are answered.
    inbox: VecDeque<(u64, Response)>,
    step: u64,
    responses: usize,
    refuses: bool,
    loses_streams: bool,
}

/// What goes wrong on the client's side.
#[derive(Clone, Copy, PartialEq)]
enum Faults {
    Nothing,
    Streams,
    Refusals,
}

impl<V: Speaks> Sim<V> {
    fn new(seed: u64, class: ClientClass, faults: Faults) -> Self {
        let mut rng = SplitMix64::new(seed);
        let world = Arc::new(world(&yaml(&mut rng)));
        let mut sim = Self {
            rng,
            seed,
            class,
            session: Session::default(),
            world,
            now: Instant::now(),
            held: BTreeMap::new(),
            asked: BTreeMap::new(),
            nonces: BTreeMap::new(),
            inbox: VecDeque::new(),
            step: 0,
            responses: 0,
            refuses: faults == Faults::Refusals,
            loses_streams: faults == Faults::Streams,
        };
        sim.connect();
        sim
    }

    fn is_envoy(&self) -> bool {
        self.class == ClientClass::Envoy
    }

    /// A new stream of a client that has what it has.
    fn connect(&mut self) {
        self.session = Session::default();
        self.inbox.clear();
        self.nonces.clear();
        self.session.introduce(client(self.class));
        self.session
            .world_changed(Arc::clone(&self.world), self.now);
        let asked = std::mem::take(&mut self.asked);
        let begins = [ResourceType::Cluster, ResourceType::Listener];
        let kinds = asked.keys().copied().chain(begins);
        for kind in kinds.collect::<BTreeSet<_>>() {
            let names = self.wants(kind);
            self.ask(kind, names, None, false);
        }
    }

    fn change(&mut self) {
        let yaml = yaml(&mut self.rng);
        let next = World::following(world(&yaml).compiled().clone(), trust(), &self.world);
        self.world = Arc::new(next);
        self.session
            .world_changed(Arc::clone(&self.world), self.now);
    }

    /// What the client subscribes to, given what it has.
    fn wants(&self, kind: ResourceType) -> BTreeSet<String> {
        let of = |kind| self.held.get(&kind).into_iter().flatten();
        match kind {
            _ if self.is_envoy() && kind.is_full_set() => BTreeSet::new(),
            ResourceType::Listener => BTreeSet::from(["s0.default".to_owned()]),
            ResourceType::Route if self.is_envoy() => of(ResourceType::Listener)
                .map(|(name, _)| name.clone())
                .collect(),
            ResourceType::Route => of(ResourceType::Listener)
                .flat_map(|(_, held)| {
                    let any = Any::decode(&*held.any).unwrap();
                    let listener = Listener::decode(&any.value[..]).unwrap();
                    // The name is in the connection manager, which is text enough.
                    let api = listener.api_listener.unwrap().api_listener.unwrap();
                    let text = String::from_utf8_lossy(&api.value).into_owned();
                    let at = text.find("outbound|").unwrap();
                    let end = text.find("cluster.local").unwrap() + "cluster.local".len();
                    [text[at..end].to_owned()]
                })
                .collect(),
            ResourceType::Cluster => of(ResourceType::Route)
                .flat_map(|(_, held)| clusters(&held.any))
                .collect(),
            ResourceType::Endpoints => of(ResourceType::Cluster)
                .map(|(name, _)| name.clone())
                .collect(),
            ResourceType::Secret => BTreeSet::new(),
        }
    }

    fn ask(
        &mut self,
        kind: ResourceType,
        names: BTreeSet<String>,
        nonce: Option<u64>,
        is_refusal: bool,
    ) {
        let before = self.asked.get(&kind).cloned();
        let versions = self.held.get(&kind).into_iter().flatten();
        let asks = Asks {
            kind,
            names: &names,
            is_first: before.is_none(),
            before: &before.unwrap_or_default(),
            nonce,
            is_refusal,
            versions: versions
                .map(|(name, held)| (name.clone(), held.version.to_string()))
                .collect(),
        };
        self.session.hear(V::request(&asks)).unwrap();
        // What it does not ask for any more it forgets.
        if let Some(held) = self.held.get_mut(&kind).filter(|_| !names.is_empty()) {
            held.retain(|name, _| names.contains(name));
        }
        self.asked.insert(kind, names);
    }

    fn fail(&self, what: &str) -> ! {
        panic!(
            "seed {}, {}, step {}: {what}",
            self.seed, self.class, self.step
        );
    }

    /// The client takes a response, answers it, and subscribes to what follows.
    fn take(&mut self, response: &Response) {
        let kind = response.kind;
        let refuses = self.refuses && self.rng.below(20) == 0;
        if !refuses {
            self.apply(response);
        }
        self.nonces.insert(kind, response.nonce);
        let names = self.wants(kind);
        self.ask(kind, names, Some(response.nonce), refuses);
        for next in [
            ResourceType::Route,
            ResourceType::Cluster,
            ResourceType::Endpoints,
        ] {
            let names = self.wants(next);
            let is_new = self.asked.get(&next).is_none_or(|asked| *asked != names);
            if next != kind && is_new && !(self.is_envoy() && next.is_full_set()) {
                let is_known = self.asked.contains_key(&next);
                if is_known || !names.is_empty() {
                    // State of the world says the nonce of the last response with every request.
                    let nonce = self.nonces.get(&next).copied();
                    self.ask(next, names, nonce, false);
                }
            }
        }
    }

    fn apply(&mut self, response: &Response) {
        let kind = response.kind;
        let before = self.held.entry(kind).or_default().clone();
        let mut held = before.clone();
        let gone = match &response.gone {
            Gone::Errors(gone) => {
                if kind.is_full_set() {
                    held.clear();
                }
                gone
            }
            Gone::Removed(gone) => gone,
        };
        held.retain(|name, _| !gone.contains(name));
        for resource in &response.resources {
            held.insert(resource.name.clone(), Arc::clone(resource));
        }
        let lost = before.keys().filter(|name| !held.contains_key(*name));
        if kind == ResourceType::Cluster && self.is_envoy() && !self.refuses {
            self.check_lost(lost);
        }
        if kind == ResourceType::Route && self.is_envoy() && !self.refuses {
            let there = self.held.get(&ResourceType::Cluster);
            for name in held.values().flat_map(|route| clusters(&route.any)) {
                if there.is_none_or(|there| !there.contains_key(&name)) {
                    self.fail(&format!("a route leads to {name}, which it does not have"));
                }
            }
        }
        self.held.insert(kind, held);
    }

    /// That no route leads to what is taken away.
    fn check_lost<'n>(&self, lost: impl Iterator<Item = &'n String>) {
        let routes = self.held.get(&ResourceType::Route).into_iter().flatten();
        let routed: BTreeSet<_> = routes.flat_map(|(_, route)| clusters(&route.any)).collect();
        for name in lost {
            if routed.contains(name) {
                self.fail(&format!("{name} is taken away while a route leads to it"));
            }
        }
    }

    /// The clusters that the server knows the client to have.
    fn known(&self) -> BTreeSet<String> {
        let mut sent = self.session.variant().subscriptions().sent();
        let clusters = sent.find(|(kind, _)| *kind == ResourceType::Cluster);
        let names = clusters.map(|(_, sent)| sent.entries().keys().cloned().collect());
        names.unwrap_or_default()
    }

    fn tick(&mut self) {
        self.step += 1;
        self.now += STEP;
        loop {
            let known = self.known();
            let Some(response) = self.session.next(self.now) else {
                break;
            };
            self.responses += 1;
            // Who asks by name may have asked anew since: what counts is what was known when the
            // answer was made.
            if !self.is_envoy() && !self.refuses && response.kind == ResourceType::Cluster {
                let left = self.known();
                self.check_lost(known.iter().filter(|name| !left.contains(*name)));
            }
            let delay = self.rng.below(ANSWER_MAX);
            let after = self.inbox.back().map_or(0, |(at, _)| *at);
            self.inbox
                .push_back((after.max(self.step + delay), response));
        }
        while self.inbox.front().is_some_and(|(at, _)| *at <= self.step) {
            let (_, response) = self.inbox.pop_front().unwrap();
            self.take(&response);
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.below(60) {
                0..3 => self.change(),
                3 if self.loses_streams => self.connect(),
                _ => {}
            }
            self.tick();
        }
        (0..REST).for_each(|_| self.tick());
        let before = self.responses;
        (0..REST).for_each(|_| self.tick());
        if self.responses != before {
            self.fail("there is no silence");
        }
        if self.session.settled() != self.world.generation {
            self.fail("it did not settle");
        }
        if !self.refuses {
            self.check_newest();
        }
    }

    /// What the client has is what the world has, of all that it asks for.
    fn check_newest(&self) {
        let client = client(self.class);
        for (kind, asked) in &self.asked {
            let mut names = asked.clone();
            if self.is_envoy() {
                names.extend(self.world.wildcard(&client, *kind));
            }
            let wanted: BTreeMap<_, _> = names
                .iter()
                .filter_map(|name| {
                    let resource = self.world.resource(&client, *kind, name);
                    let resource = resource.or_else(|| World::placeholder(*kind, name))?;
                    Some((name.clone(), resource.version))
                })
                .collect();
            let held = self.held.get(kind).into_iter().flatten();
            let held: BTreeMap<_, _> = held
                .filter(|(name, _)| names.contains(*name))
                .map(|(name, held)| (name.clone(), held.version))
                .collect();
            if held != wanted {
                self.fail(&format!("{kind:?}: it has {held:?}, the world {wanted:?}"));
            }
        }
    }
}

const SEEDS: u64 = 16;

#[test]
fn routes_follow_clusters_removals_follow_routes_and_all_come_to_the_newest_world() {
    for seed in 0..SEEDS {
        for faults in [Faults::Nothing, Faults::Streams] {
            Sim::<Delta>::new(seed, ClientClass::Envoy, faults).run();
            Sim::<Sotw>::new(seed, ClientClass::GrpcGo, faults).run();
            Sim::<Delta>::new(seed, ClientClass::Rust, faults).run();
        }
        // What it has of an earlier stream cannot be said in state of the world beside what is new.
        Sim::<Sotw>::new(seed, ClientClass::Envoy, Faults::Nothing).run();
    }
}

#[test]
fn refusals_end_in_silence_and_are_never_answered_with_the_same_again() {
    for seed in 0..SEEDS {
        Sim::<Sotw>::new(seed, ClientClass::Envoy, Faults::Refusals).run();
        Sim::<Delta>::new(seed, ClientClass::Envoy, Faults::Refusals).run();
        Sim::<Sotw>::new(seed, ClientClass::GrpcGo, Faults::Refusals).run();
    }
}
