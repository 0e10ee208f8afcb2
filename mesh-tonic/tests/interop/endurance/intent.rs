//! Random changes of a configuration under which no call may fail.

use std::{collections::BTreeSet, net::SocketAddr};

use mesh_core::rng::{Rng as _, SplitMix64};

use super::super::World;

/// Services beside the greeter, at most.
const SERVICES_MAX: u64 = 12;
/// Policies that refuse what nobody calls, at most.
const POLICIES_MAX: u64 = 6;

/// How far mTLS goes. Each step is safe for calls once everybody has taken the one before.
pub(super) const PLAINTEXT: u32 = 0;
pub(super) const OFFERED: u32 = 1;
const STRICT: u32 = 2;
const AUTHORISED: u32 = 3;

/// What the operator wants.
pub(super) struct Intent {
    rng: SplitMix64,
    servers: Vec<(&'static str, SocketAddr)>,
    live: BTreeSet<usize>,
    weight_v2: u64,
    has_canary: bool,
    has_extra_subset: bool,
    attempts: u64,
    timeout: u64,
    balancer: u64,
    services: BTreeSet<u64>,
    policies: BTreeSet<u64>,
    mtls: u32,
    /// The lowest that `mtls` goes.
    mtls_min: u32,
}

/// What one change needs.
pub(super) struct Change {
    /// Everybody must have the state before it, and it before the next one.
    pub(super) is_step: bool,
    /// What it was, for people.
    pub(super) text: String,
}

impl Intent {
    pub(super) fn new(seed: u64, servers: Vec<(&'static str, SocketAddr)>, mtls_min: u32) -> Self {
        Self {
            rng: SplitMix64::new(seed),
            live: (0..servers.len()).collect(),
            servers,
            weight_v2: 50,
            has_canary: true,
            has_extra_subset: false,
            attempts: 2,
            timeout: 15,
            balancer: 0,
            services: BTreeSet::new(),
            policies: BTreeSet::new(),
            mtls: OFFERED,
            mtls_min,
        }
    }

    /// A random number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    /// Makes a random change.
    pub(super) fn change(&mut self) -> Change {
        let mut is_step = false;
        let text = match self.below(10) {
            0 | 1 => {
                self.weight_v2 = self.below(101);
                format!("{} % to v2", self.weight_v2)
            }
            2 => {
                self.has_canary = !self.has_canary;
                format!("canary route: {}", self.has_canary)
            }
            3 | 4 => self.change_endpoint(),
            5 => toggle(&mut self.rng, &mut self.services, SERVICES_MAX, "service"),
            6 => {
                self.has_extra_subset = !self.has_extra_subset;
                format!("third subset: {}", self.has_extra_subset)
            }
            7 => {
                self.attempts = self.below(5);
                self.timeout = 10 + self.below(10);
                self.balancer = self.below(3);
                let (attempts, timeout) = (self.attempts, self.timeout);
                format!(
                    "{attempts} retries, {timeout} s, balancer {}",
                    self.balancer
                )
            }
            8 => toggle(&mut self.rng, &mut self.policies, POLICIES_MAX, "policy"),
            _ => {
                is_step = true;
                self.step_mtls()
            }
        };
        Change { is_step, text }
    }

    /// One step up or down.
    pub(super) fn step_mtls(&mut self) -> String {
        let is_up = self.below(2) == 0;
        self.mtls = match self.mtls {
            lowest if lowest == self.mtls_min => lowest + 1,
            AUTHORISED => STRICT,
            between if is_up => between + 1,
            between => between - 1,
        };
        format!("mTLS step {}", self.mtls)
    }

    /// Takes an endpoint away or brings one back; each version keeps one.
    fn change_endpoint(&mut self) -> String {
        let index = self.below(self.servers.len() as u64) as usize;
        let (version, address) = self.servers[index];
        let alike = |other: &&usize| self.servers[**other].0 == version;
        if !self.live.contains(&index) {
            self.live.insert(index);
            format!("endpoint {address} is back")
        } else if self.live.iter().filter(alike).count() > 1 {
            self.live.remove(&index);
            format!("endpoint {address} is gone")
        } else {
            format!("endpoint {address} is needed")
        }
    }

    /// All default traffic to one version, whose name is returned.
    pub(super) fn lead_all_to(&mut self, is_v2: bool) -> &'static str {
        self.weight_v2 = if is_v2 { 100 } else { 0 };
        if is_v2 { "v2" } else { "v1" }
    }

    pub(super) fn write(&self, world: &World) {
        let live: Vec<_> = self.live.iter().map(|index| self.servers[*index]).collect();
        world.write("endpoints.yaml", &super::super::endpoints(&live));
        world.write("routes.yaml", &self.routes());
        world.write("services.yaml", &self.other_services());
        world.write("security.yaml", &self.security());
    }

    fn routes(&self) -> String {
        let mode = match self.mtls {
            PLAINTEXT => "DISABLE",
            _ => "ISTIO_MUTUAL",
        };
        let balancer = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"][self.balancer as usize];
        let mut text = format!(
            "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: greeter, namespace: default}}
spec:
  host: greeter.default.svc.cluster.local
  trafficPolicy: {{tls: {{mode: {mode}}}, loadBalancer: {{simple: {balancer}}}}}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
"
        );
        if self.has_extra_subset {
            text += "  - {name: v3, labels: {version: v1}}\n";
        }
        text += "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeter, namespace: default}
spec:
  hosts: [greeter.default.svc.cluster.local]
  http:
";
        let only = |header: &str, subset: &str| {
            format!(
                "  - match: [{{headers: {{{header}: {{exact: 'true'}}}}}}]
    route: [{{destination: {{host: greeter.default.svc.cluster.local, subset: {subset}}}}}]
"
            )
        };
        if self.has_canary {
            text += &only("canary", "v2");
        }
        if self.has_extra_subset {
            text += &only("extra", "v3");
        }
        let (attempts, timeout, v2) = (self.attempts, self.timeout, self.weight_v2);
        let v1 = 100 - v2;
        text + &format!(
            "  - route:
    - {{destination: {{host: greeter.default.svc.cluster.local, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: greeter.default.svc.cluster.local, subset: v2}}, weight: {v2}}}
    timeout: {timeout}s
    retries: {{attempts: {attempts}, retryOn: 'unavailable,reset'}}
"
        )
    }

    fn other_services(&self) -> String {
        let (_, address) = self.servers[0];
        let service = |number: &u64| {
            format!(
                "---
kind: ServiceEntry
metadata: {{name: other-{number}, namespace: default}}
spec:
  hosts: [other-{number}.default.svc.cluster.local]
  resolution: STATIC
  ports: [{{number: 8080, name: grpc, protocol: GRPC}}]
  endpoints:
  - {{address: {}, ports: {{grpc: {}}}, serviceAccount: greeter}}
",
                address.ip(),
                address.port()
            )
        };
        self.services.iter().map(service).collect()
    }

    fn security(&self) -> String {
        let mode = if self.mtls >= STRICT {
            "STRICT"
        } else {
            "PERMISSIVE"
        };
        let mut text = format!(
            "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: default}}
spec: {{mtls: {{mode: {mode}}}}}
"
        );
        if self.mtls == AUTHORISED {
            text += "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: frontend-only, namespace: default}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/frontend]}}]}]
";
        }
        for number in &self.policies {
            text += &format!(
                "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: never-{number}, namespace: default}}
spec:
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/never.{number}/*]}}}}]}}]
"
            );
        }
        text
    }
}

/// Adds a number below `bound`, or takes it away.
fn toggle(rng: &mut SplitMix64, held: &mut BTreeSet<u64>, bound: u64, what: &str) -> String {
    let number = rng.below(bound);
    if held.remove(&number) {
        return format!("{what} {number} is gone");
    }
    held.insert(number);
    format!("{what} {number} is new")
}
