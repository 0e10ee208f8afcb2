//! What other instances make of what was compiled, compared with compiling everything anew.

use mesh_core::rng::{Rng as _, SplitMix64};

use super::*;
use crate::registry::{Member, Place, Registration, Source, Weights};

/// Services with everything that endpoints can be part of.
const OBJECTS: &str = "
kind: ServiceEntry
metadata: {name: cart}
spec:
  hosts: [cart.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: grpc, protocol: GRPC}]
  endpoints: [{address: 10.9.0.1, ports: {http: 1}, labels: {version: v1}}]
---
kind: DestinationRule
metadata: {name: cart}
spec:
  host: cart
  exportTo: [default]
  trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: true}}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
kind: DestinationRule
metadata: {name: own}
spec:
  host: cart
  workloadSelector: {matchLabels: {app: batch}}
  subsets: [{name: v1, labels: {version: v2}}]
---
kind: BalancerPolicy
metadata: {name: cart}
spec: {host: cart, overprovisioningFactor: 150}
---
kind: ServiceEntry
metadata: {name: some}
spec:
  hosts: [some.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {version: v2}}
---
kind: WorkloadEntry
metadata: {name: w, labels: {version: v2}}
spec: {address: 10.9.0.2}
---
kind: PeerAuthentication
metadata: {name: a}
spec: {selector: {matchLabels: {version: v2}}, mtls: {mode: STRICT}}
---
kind: ServiceEntry
metadata: {name: old}
spec:
  hosts: [old.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
---
kind: ServiceResolver
metadata: {name: old}
spec:
  subsets: {v1: {filter: Service.Meta.version == v1}}
  failover: {v1: {service: spare}}
---
kind: ServiceEntry
metadata: {name: spare}
spec:
  hosts: [spare.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
---
kind: VirtualService
metadata: {name: free}
spec:
  hosts: [free]
  http: [{route: [{destination: {host: free}}]}]
";

fn member(random: &mut SplitMix64, id: &str) -> Arc<Member> {
    let one_of = |random: &mut SplitMix64, all: &[&str]| {
        let index = random.next_u64() % all.len() as u64;
        all[index as usize].to_owned()
    };
    let services = [
        "cart", "cart", "cart", "free", "free", "some", "old", "spare",
    ];
    let service = one_of(random, &services);
    let mut meta = BTreeMap::new();
    meta.insert("version".to_owned(), one_of(random, &["v1", "v2"]));
    if random.next_u64().is_multiple_of(8) {
        meta.insert(META_PROTOCOL.to_owned(), "grpc".to_owned());
    }
    if random.next_u64().is_multiple_of(8) {
        meta.insert(META_ACCOUNT.to_owned(), "other".to_owned());
    }
    let weight = 1 + random.next_u64() % 3;
    let registration = Registration {
        namespace: "default".to_owned(),
        service,
        id: id.to_owned(),
        // Some share an address, and some are where the files say that something is.
        address: [10, 9, 0, (1 + random.next_u64() % 6) as u8].into(),
        ports: [(String::new(), 1)].into(),
        tags: Vec::new(),
        meta,
        weights: Weights::default(),
        locality: Place {
            region: one_of(random, &["", "eu"]),
            ..Place::default()
        },
        enable_tag_override: false,
        checks: Vec::new(),
        lease: None,
        source: Source::Http,
    };
    Arc::new(Member {
        registration: Arc::new(registration),
        health: match random.next_u64() % 4 {
            0 => HealthStatus::Unhealthy,
            _ => HealthStatus::Healthy,
        },
        weight: weight as u32,
    })
}

fn text(compiled: &Compiled) -> Vec<String> {
    format!("{compiled:#?}")
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn other_instances_give_what_compiling_everything_gives() {
    let objects = load_text("t.yaml", OBJECTS).objects;
    let options = CompileOptions::default();
    let (mut patches, mut steps) = (0, 0);
    for seed in 0..6 {
        let mut random = SplitMix64::new(seed);
        let mut members = Members::new();
        let (mut held, _) = compile_with(&objects, &members, &options);
        for _ in 0..50 {
            steps += 1;
            let before = members.clone();
            let id = format!("i{}", random.next_u64() % 12);
            if random.next_u64().is_multiple_of(3) {
                members.remove(&id);
            } else {
                members.insert(id.clone(), member(&mut random, &id));
            }
            let (full, _) = compile_with(&objects, &members, &options);
            if let Some(patched) = held.patched((&before, &members), &options) {
                patches += 1;
                assert_eq!(text(&patched.compiled), text(&full), "seed {seed}, {id}");
                let changed = held.changed_endpoints(&full);
                assert!(changed.is_subset(&patched.endpoints), "{changed:?}");
                assert!(held.changed_clusters(&full).is_subset(&changed));
                assert!(patched.policies || held.has_same_policies(&full));
                assert!(held.has_same_names(&full));
                held = patched.compiled;
            } else {
                held = full;
            }
        }
    }
    assert!(patches * 3 > steps, "{patches} of {steps}");
}

#[test]
fn an_instance_touches_nothing_but_the_endpoints_of_its_service() {
    // A thousand services, each with an endpoint.
    let service = |index| {
        format!(
            "---\nkind: ServiceEntry\nmetadata: {{name: s{index}}}\nspec:\n  \
             hosts: [s{index}.default.svc.cluster.local]\n  resolution: STATIC\n  \
             ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints: [{{address: 10.0.0.1}}]\n"
        )
    };
    let objects = load_text("t.yaml", &(0..1000).map(service).collect::<String>()).objects;
    let options = CompileOptions::default();
    let before = Members::new();
    let (held, _) = compile_with(&objects, &before, &options);
    let mut random = SplitMix64::new(1);
    let mut one = Member::clone(&member(&mut random, "a"));
    let mut registration = Registration::clone(&one.registration);
    registration.service = "s7".to_owned();
    one.registration = Arc::new(registration);
    let after = Members::from([("a".to_owned(), Arc::new(one))]);
    let patched = held
        .patched((&before, &after), &options)
        .expect("endpoints");
    let name = "outbound|80||s7.default.svc.cluster.local";
    assert_eq!(patched.endpoints, [name.to_owned()].into());
    // All else is the same object in memory.
    let others = patched.compiled.endpoints.iter();
    let copied = others.filter(|(name, made)| !Arc::ptr_eq(made, &held.endpoints[name.as_str()]));
    assert_eq!(copied.count(), 1);
    let services = patched.compiled.services.iter();
    let copied = services.filter(|(name, made)| !Arc::ptr_eq(made, &held.services[*name]));
    assert_eq!(copied.count(), 1);
    for (is_shared, what) in [
        (
            patched.compiled.clusters.is_shared_with(&held.clusters),
            "clusters",
        ),
        (
            patched.compiled.routes.is_shared_with(&held.routes),
            "routes",
        ),
        (patched.compiled.names.is_shared_with(&held.names), "names"),
        (
            patched.compiled.security.is_shared_with(&held.security),
            "policies",
        ),
    ] {
        assert!(is_shared, "{what}");
    }
}
