//! Clients, servers and virtual time.
//!
//! Each client has its own snapshot, picker and maintainer, as a process has. A server works on so
//! many requests at a time and keeps the others in a queue; it says with each answer how loaded it is.
//! The same seed gives the same run.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::{
    balance::{PickContext, PickResult},
    config::Cluster,
    observed::{LATENCY_METRIC, LoadReport, Observation, REQUESTS_IN_FLIGHT_METRIC},
    outcome::Verdict,
    rng::{Rng, SplitMix64},
    snapshot::{ClusterSnapshot, Compiler, Maintainer},
    stats::Connectivity,
    testing,
};

/// How long a message is under way.
const NETWORK: Duration = Duration::from_micros(200);

/// How a server behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    /// Mean of the time that it works on a request, exponentially distributed.
    pub(crate) work: Duration,
    /// Share of requests that fail, at once.
    pub(crate) failing: f64,
    /// Whether it takes requests and never answers.
    pub(crate) is_silent: bool,
    /// Whether connections are refused.
    pub(crate) is_down: bool,
}

impl Behaviour {
    pub(crate) fn working(work: Duration) -> Self {
        Self {
            work,
            failing: 0.0,
            is_silent: false,
            is_down: false,
        }
    }
}

/// What is simulated.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) servers: Vec<Behaviour>,
    /// Requests that a server works on at a time.
    pub(crate) workers: usize,
    pub(crate) clients: usize,
    pub(crate) load: Load,
    /// Limit of a request.
    pub(crate) timeout: Duration,
    pub(crate) duration: Duration,
    /// Requests before this do not count.
    pub(crate) warm_up: Duration,
    /// At these times a server changes.
    pub(crate) changes: Vec<(Duration, usize, Behaviour)>,
    /// Whether servers say how loaded they are.
    pub(crate) reports: bool,
}

/// Where requests come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// So many a second, whatever becomes of them.
    Open(f64),
    /// Each client has so many in flight and sends the next when one ends.
    Closed(usize),
}

/// What came of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) server: usize,
    pub(crate) sent: Duration,
    pub(crate) latency: Duration,
    pub(crate) is_success: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Send { client: usize },
    Arrive { request: usize },
    Finish { request: usize },
    Answer { request: usize, is_success: bool },
    TimeOut { request: usize },
    Change { index: usize },
    Maintain { client: usize },
}

struct Request {
    client: usize,
    server: usize,
    sent: Duration,
    arrived: Duration,
    is_over: bool,
    /// Of the server when it answered: requests in flight, latency, utilisation, rate.
    report: Option<LoadReport>,
}

struct Server {
    behaviour: Behaviour,
    busy: usize,
    queue: VecDeque<usize>,
    latency: f64,
    /// Averages over about a second, and when they were taken.
    utilization: f64,
    rate: f64,
    then: Duration,
}

struct Client {
    snapshot: Arc<ClusterSnapshot>,
    maintainer: Maintainer,
    maintained: Duration,
    rng: SplitMix64,
}

pub(crate) struct World {
    scenario: Scenario,
    epoch: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    requests: Vec<Request>,
    servers: Vec<Server>,
    clients: Vec<Client>,
    rng: SplitMix64,
    ended: Vec<Ended>,
}

/// Runs a scenario with the balancing of `cluster`; what came of its requests.
pub(crate) fn run(scenario: &Scenario, seed: u64, cluster: &dyn Fn(&mut Cluster)) -> Vec<Ended> {
    let mut world = World::new(scenario.clone(), seed, cluster);
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        if at > world.scenario.duration {
            break;
        }
        world.now = at;
        world.handle(event);
    }
    let warm_up = scenario.warm_up;
    world.ended.retain(|ended| ended.sent >= warm_up);
    world.ended
}

impl World {
    fn new(scenario: Scenario, seed: u64, cluster: &dyn Fn(&mut Cluster)) -> Self {
        let addresses: Vec<_> = (0..scenario.servers.len() as u16)
            .map(|server| SocketAddr::from(([10, 0, 0, 1], server + 1)))
            .collect();
        let builder = testing::tree("l").cluster_with("c", &addresses, cluster);
        let tree = builder.route("/", "c").build();
        let clients = (0..scenario.clients as u64).map(|client| {
            let seed = seed * 1_000 + client;
            let snapshot = Compiler::new(seed).compile(&tree).expect("a good tree");
            let snapshot = snapshot.clusters[0].current.borrow().clone();
            for endpoint in &snapshot.endpoints {
                endpoint.stats.set_connectivity(Connectivity::Ready);
            }
            Client {
                snapshot,
                maintainer: Maintainer::new(seed),
                maintained: Duration::ZERO,
                rng: SplitMix64::new(seed),
            }
        });
        let servers = scenario.servers.iter().map(|behaviour| Server {
            behaviour: *behaviour,
            busy: 0,
            queue: VecDeque::new(),
            latency: 0.0,
            utilization: 0.0,
            rate: 0.0,
            then: Duration::ZERO,
        });
        let mut world = Self {
            clients: clients.collect(),
            servers: servers.collect(),
            epoch: Instant::now(),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            requests: Vec::new(),
            rng: SplitMix64::new(seed),
            ended: Vec::new(),
            scenario,
        };
        for client in 0..world.clients.len() {
            world.at(Duration::ZERO, Event::Maintain { client });
            let at_once = match world.scenario.load {
                Load::Open(_) => 1,
                Load::Closed(count) => count,
            };
            for _ in 0..at_once {
                world.at(Duration::ZERO, Event::Send { client });
            }
        }
        for index in 0..world.scenario.changes.len() {
            world.at(world.scenario.changes[index].0, Event::Change { index });
        }
        world
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.rng.unit()).ln())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Send { client } => self.send(client),
            Event::Arrive { request } => self.arrive(request),
            Event::Finish { request } => self.finish(request),
            Event::Answer {
                request,
                is_success,
            } => self.end(request, is_success, false),
            Event::TimeOut { request } => self.end(request, false, true),
            Event::Change { index } => self.change(index),
            Event::Maintain { client } => self.maintain(client),
        }
    }

    fn send(&mut self, client: usize) {
        if let Load::Open(rate) = self.scenario.load {
            let mean = Duration::from_secs_f64(self.scenario.clients as f64 / rate);
            let next = self.now + self.exponential(mean);
            self.at(next, Event::Send { client });
        }
        let now = self.epoch + self.now;
        let Client { snapshot, rng, .. } = &mut self.clients[client];
        let mut context = PickContext::new(rng, &[]);
        context.now = Some(now);
        let PickResult::Endpoint(server) = snapshot.pick(&mut context) else {
            return;
        };
        snapshot.endpoints[server].stats.begin();
        let request = self.requests.len();
        self.requests.push(Request {
            client,
            server,
            sent: self.now,
            arrived: self.now,
            is_over: false,
            report: None,
        });
        self.at(self.now + NETWORK, Event::Arrive { request });
        let limit = self.now + self.scenario.timeout;
        self.at(limit, Event::TimeOut { request });
    }

    fn arrive(&mut self, request: usize) {
        let failing = self.rng.unit();
        self.requests[request].arrived = self.now;
        let server = self.requests[request].server;
        let Behaviour {
            failing: share,
            is_silent,
            is_down,
            ..
        } = self.servers[server].behaviour;
        if is_silent {
            return;
        }
        if is_down || failing < share {
            let at = self.now + NETWORK;
            let is_success = false;
            return self.at(
                at,
                Event::Answer {
                    request,
                    is_success,
                },
            );
        }
        self.account(server);
        if self.servers[server].busy < self.scenario.workers {
            self.work(request);
        } else {
            self.servers[server].queue.push_back(request);
        }
    }

    fn work(&mut self, request: usize) {
        let server = self.requests[request].server;
        self.servers[server].busy += 1;
        let mean = self.servers[server].behaviour.work;
        let end = self.now + self.exponential(mean);
        self.at(end, Event::Finish { request });
    }

    /// Brings a server's averages up to now.
    fn account(&mut self, server: usize) {
        let workers = self.scenario.workers as f64;
        let server = &mut self.servers[server];
        let past = (self.now - server.then).as_secs_f64();
        let keep = (-past).exp();
        let busy = server.busy as f64 / workers;
        server.utilization = server.utilization * keep + busy * (1.0 - keep);
        server.rate *= keep;
        server.then = self.now;
    }

    fn finish(&mut self, request: usize) {
        let Request {
            server, arrived, ..
        } = self.requests[request];
        self.account(server);
        let latency = (self.now - arrived).as_secs_f64();
        let held = &mut self.servers[server];
        held.busy -= 1;
        held.rate += 1.0;
        held.latency += (latency - held.latency) * 0.2;
        if self.scenario.reports {
            let in_flight = (held.busy + held.queue.len()) as f64;
            self.requests[request].report = Some(LoadReport {
                application_utilization: held.utilization,
                requests_per_second: held.rate,
                named_metrics: vec![
                    (REQUESTS_IN_FLIGHT_METRIC.into(), in_flight),
                    (LATENCY_METRIC.into(), held.latency),
                ],
                ..LoadReport::default()
            });
        }
        let next = loop {
            match self.servers[server].queue.pop_front() {
                // Nobody waits for it any more.
                Some(next) if self.requests[next].is_over => {}
                next => break next,
            }
        };
        if let Some(next) = next {
            self.work(next);
        }
        let is_success = true;
        self.at(
            self.now + NETWORK,
            Event::Answer {
                request,
                is_success,
            },
        );
    }

    fn end(&mut self, request: usize, is_success: bool, is_late: bool) {
        let held = &mut self.requests[request];
        if std::mem::replace(&mut held.is_over, true) {
            return;
        }
        let (client, server, sent) = (held.client, held.server, held.sent);
        let report = held.report.take();
        let verdict = match (is_success, is_late) {
            (true, _) => Verdict::Success,
            (false, false) => Verdict::GatewayFailure,
            (false, true) => Verdict::LocalFailure,
        };
        let latency = self.now - sent;
        let observation = Observation {
            now: self.epoch + self.now,
            latency,
            is_success,
            report: report.as_ref(),
        };
        let snapshot = &self.clients[client].snapshot;
        if snapshot.end_attempt(server, verdict, Some(&observation)) {
            self.at(self.now, Event::Maintain { client });
        }
        self.ended.push(Ended {
            server,
            sent,
            latency,
            is_success,
        });
        if matches!(self.scenario.load, Load::Closed(_)) {
            self.at(self.now, Event::Send { client });
        }
    }

    fn change(&mut self, index: usize) {
        let (_, server, behaviour) = self.scenario.changes[index];
        self.servers[server].behaviour = behaviour;
        let connectivity = match behaviour.is_down {
            true => Connectivity::TransientFailure,
            false => Connectivity::Ready,
        };
        for client in 0..self.clients.len() {
            let stats = &self.clients[client].snapshot.endpoints[server].stats;
            stats.set_connectivity(connectivity);
            self.at(self.now, Event::Maintain { client });
        }
    }

    fn maintain(&mut self, client: usize) {
        let now = self.epoch + self.now;
        let held = &mut self.clients[client];
        let next = held.maintainer.advance(&held.snapshot, now);
        if let Some(next) = next {
            let next = next - self.epoch;
            // One chain of calls, whoever asked for one between them.
            if next > held.maintained {
                held.maintained = next;
                self.at(next, Event::Maintain { client });
            }
        }
    }
}
