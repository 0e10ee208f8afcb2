//! Sessions: what goes out in which order, and how long anything waits. The clock is a number.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};

use super::{
    delta::Delta,
    session::{HOLD_MAX, REMOVAL_MAX, Session, UNSUBSCRIBE_TIME},
    sotw::Sotw,
    tests::{CLUSTER, GREETER, OTHER, OTHER_CLUSTER, client, trust, world},
    wire::{Gone, Response},
    *,
};
use crate::encode::ClientClass;

/// A route of the greeter to a host.
fn route_to(host: &str) -> String {
    format!(
        "---
kind: VirtualService
metadata: {{name: greeter}}
spec: {{hosts: [greeter], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}
"
    )
}

/// A client that answers when it is told to.
struct Kit<V> {
    session: Session<V>,
    now: Instant,
    generation: u64,
}

impl<V: Variant> Kit<V> {
    fn new(class: ClientClass, yaml: &str) -> Self {
        let mut kit = Self {
            session: Session::default(),
            now: Instant::now(),
            generation: 0,
        };
        kit.session.introduce(client(class));
        kit.change(yaml);
        kit
    }

    fn change(&mut self, yaml: &str) {
        self.generation += 1;
        let world = match self.session.world() {
            Some(before) => World::following(world(yaml).compiled().clone(), trust(), before),
            None => world(yaml),
        };
        assert_eq!(world.generation, self.generation);
        self.session.world_changed(Arc::new(world), self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn next(&mut self) -> Option<Response> {
        self.session.next(self.now)
    }

    /// Everything that is due now, by type.
    fn all(&mut self) -> Vec<Response> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn is_settled(&self) -> bool {
        self.session.settled() == self.generation
    }
}

fn kinds(responses: &[Response]) -> Vec<ResourceType> {
    responses.iter().map(|response| response.kind).collect()
}

impl Kit<Sotw> {
    fn ask(&mut self, kind: ResourceType, names: &[&str], nonce: u64) -> Heard {
        let nonce = if nonce == 0 {
            String::new()
        } else {
            nonce.to_string()
        };
        let request = DiscoveryRequest {
            type_url: kind.url(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce,
            ..DiscoveryRequest::default()
        };
        self.session.hear(request).unwrap()
    }

    /// Asks for the first time, and accepts the answer.
    fn fetch(&mut self, kind: ResourceType, names: &[&str]) -> Response {
        self.ask(kind, names, 0);
        let response = self.next().expect("an answer");
        assert_eq!(response.kind, kind);
        self.ask(kind, names, response.nonce);
        assert!(self.next().is_none());
        response
    }
}

impl Kit<Delta> {
    fn ask(&mut self, kind: ResourceType, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.session.hear(request).unwrap();
    }

    fn ack(&mut self, response: &Response) {
        let request = DeltaDiscoveryRequest {
            type_url: response.kind.url(),
            response_nonce: response.nonce.to_string(),
            ..DeltaDiscoveryRequest::default()
        };
        self.session.hear(request).unwrap();
    }

    fn fetch(&mut self, kind: ResourceType, names: &[&str]) {
        self.ask(kind, names);
        for response in self.all() {
            self.ack(&response);
        }
        assert!(self.next().is_none());
    }
}

/// A gRPC client that uses the greeter's route, cluster and endpoints.
fn grpc(yaml: &str) -> Kit<Sotw> {
    let mut kit = Kit::<Sotw>::new(ClientClass::GrpcGo, yaml);
    for kind in [
        ResourceType::Route,
        ResourceType::Cluster,
        ResourceType::Endpoints,
    ] {
        kit.fetch(kind, &[CLUSTER]);
    }
    assert!(kit.is_settled());
    kit
}

#[test]
fn routes_wait_until_clusters_and_endpoints_are_accepted_or_a_bounded_time() {
    let both = format!("{GREETER}{OTHER}");
    let change = both.replace("5000", "5001") + &route_to("other.default.svc.cluster.local");
    for is_answered in [true, false] {
        let mut kit = grpc(&both);
        kit.change(&change);
        let first = kit.all();
        assert_eq!(kinds(&first), [ResourceType::Endpoints], "routes wait");
        kit.pass(HOLD_MAX - Duration::from_millis(1));
        assert!(kit.next().is_none());
        assert!(!kit.is_settled());
        if is_answered {
            kit.ask(ResourceType::Endpoints, &[CLUSTER], first[0].nonce);
        } else {
            assert_eq!(
                kit.session.deadline(),
                Some(kit.now + Duration::from_millis(1))
            );
            kit.pass(Duration::from_millis(1));
        }
        let routes = kit.all();
        assert_eq!(kinds(&routes), [ResourceType::Route]);
        kit.ask(ResourceType::Route, &[CLUSTER], routes[0].nonce);
        assert!(kit.next().is_none());
        assert_eq!(kit.is_settled(), is_answered);
    }
}

#[test]
fn envoy_gets_routes_when_it_has_the_endpoints_of_a_new_cluster() {
    let mut kit = Kit::<Delta>::new(ClientClass::Envoy, GREETER);
    kit.fetch(ResourceType::Cluster, &[]);
    kit.fetch(ResourceType::Endpoints, &[CLUSTER]);
    kit.fetch(ResourceType::Route, &["outbound"]);
    kit.change(&format!("{GREETER}{OTHER}"));
    let clusters = kit.next().unwrap();
    assert_eq!(
        (clusters.kind, clusters.resources.len()),
        (ResourceType::Cluster, 2)
    );
    assert!(kit.next().is_none());
    kit.ack(&clusters);
    assert!(kit.next().is_none(), "it will ask for endpoints first");
    let admin = OTHER_CLUSTER.replace("80", "81");
    kit.ask(ResourceType::Endpoints, &[OTHER_CLUSTER, &admin]);
    let endpoints = kit.next().unwrap();
    assert_eq!(endpoints.kind, ResourceType::Endpoints);
    assert!(kit.next().is_none());
    kit.ack(&endpoints);
    let routes = kit.next().unwrap();
    assert_eq!(routes.kind, ResourceType::Route);
    kit.ack(&routes);
    assert!(kit.next().is_none());
    assert!(kit.is_settled());
}

#[test]
fn what_is_gone_from_a_wildcard_goes_when_the_routes_are_accepted() {
    let mut kit = Kit::<Delta>::new(ClientClass::Envoy, &format!("{GREETER}{OTHER}"));
    kit.fetch(ResourceType::Cluster, &[]);
    kit.fetch(ResourceType::Route, &["outbound"]);
    kit.change(GREETER);
    let routes = kit.all();
    assert_eq!(kinds(&routes), [ResourceType::Route]);
    kit.pass(REMOVAL_MAX - Duration::from_millis(1));
    assert!(kit.next().is_none(), "not yet accepted");
    kit.ack(&routes[0]);
    let removed = kit.all();
    assert_eq!(kinds(&removed), [ResourceType::Cluster]);
    let Gone::Removed(names) = &removed[0].gone else {
        panic!()
    };
    assert_eq!(names.len(), 2);
    assert!(!kit.is_settled());
    kit.ack(&removed[0]);
    assert!(kit.next().is_none());
    assert!(kit.is_settled());
}

#[test]
fn what_is_gone_goes_after_a_bounded_time_from_a_client_that_does_not_answer() {
    let mut kit = Kit::<Delta>::new(ClientClass::Envoy, &format!("{GREETER}{OTHER}"));
    kit.fetch(ResourceType::Cluster, &[]);
    kit.fetch(ResourceType::Route, &["outbound"]);
    kit.change(GREETER);
    assert_eq!(kinds(&kit.all()), [ResourceType::Route]);
    let by = kit.now + REMOVAL_MAX;
    // Further changes do not put it off.
    kit.pass(REMOVAL_MAX - Duration::from_millis(1));
    kit.change(&GREETER.replace("5000", "5001"));
    assert!(kit.next().is_none());
    assert_eq!(kit.session.deadline(), Some(by));
    kit.pass(Duration::from_millis(1));
    assert_eq!(kinds(&kit.all()), [ResourceType::Cluster]);
}

#[test]
fn a_client_that_ends_its_subscription_is_never_told_of_a_removal() {
    let mut kit = grpc(&format!("{GREETER}{OTHER}"));
    kit.change(OTHER);
    assert!(kit.next().is_none(), "the client keeps what it uses");
    kit.pass(UNSUBSCRIBE_TIME - Duration::from_millis(1));
    for (kind, nonce) in [
        (ResourceType::Route, 1),
        (ResourceType::Cluster, 2),
        (ResourceType::Endpoints, 3),
    ] {
        kit.ask(kind, &[], nonce);
    }
    assert!(kit.all().is_empty());
    kit.pass(REMOVAL_MAX);
    assert!(kit.all().is_empty());
    assert!(kit.is_settled());
}

#[test]
fn a_client_that_stays_subscribed_is_told_after_a_while() {
    let mut kit = grpc(&format!("{GREETER}{OTHER}"));
    kit.change(OTHER);
    assert!(kit.next().is_none());
    assert_eq!(kit.session.deadline(), Some(kit.now + UNSUBSCRIBE_TIME));
    kit.pass(UNSUBSCRIBE_TIME - Duration::from_millis(1));
    assert!(kit.next().is_none());
    kit.pass(Duration::from_millis(1));
    // What refers to others goes first.
    let order = [
        ResourceType::Route,
        ResourceType::Endpoints,
        ResourceType::Cluster,
    ];
    assert_eq!(kinds(&kit.all()), order);
}

#[test]
fn a_slow_client_gets_the_newest_and_nothing_between() {
    let mut kit = grpc(GREETER);
    for port in 5_001..5_100 {
        kit.change(&GREETER.replace("5000", &port.to_string()));
    }
    let all = kit.all();
    assert_eq!(kinds(&all), [ResourceType::Endpoints]);
    let newest = world(&GREETER.replace("5000", "5099"));
    let client = client(ClientClass::GrpcGo);
    let newest = newest
        .resource(&client, ResourceType::Endpoints, CLUSTER)
        .unwrap();
    assert_eq!(all[0].resources, [newest]);
}

#[test]
fn a_refusal_ends_the_waits_and_is_not_sent_again_until_the_content_changes() {
    let both = format!("{GREETER}{OTHER}");
    let mut kit = grpc(&both);
    let change = both.replace("5000", "5001") + &route_to("other.default.svc.cluster.local");
    kit.change(&change);
    let endpoints = kit.next().unwrap();
    let nack = DiscoveryRequest {
        type_url: endpoints.kind.url(),
        resource_names: vec![CLUSTER.into()],
        response_nonce: endpoints.nonce.to_string(),
        error_detail: Some(Status {
            code: 3,
            message: "no".into(),
            details: vec![],
        }),
        ..DiscoveryRequest::default()
    };
    let heard = kit.session.hear(nack).unwrap();
    assert_eq!(heard.verdict, Some(Verdict::Nack("no".into())));
    let routes = kit.all();
    assert_eq!(
        kinds(&routes),
        [ResourceType::Route],
        "and nothing is sent again"
    );
    kit.ask(ResourceType::Route, &[CLUSTER], routes[0].nonce);
    kit.change(&change);
    assert!(kit.all().is_empty(), "the same content in another world");
    kit.change(&change.replace("5001", "5002"));
    assert_eq!(kinds(&kit.all()), [ResourceType::Endpoints]);
}

#[test]
fn nothing_is_answered_before_the_first_world() {
    let mut session = Session::<Sotw>::default();
    session.introduce(client(ClientClass::Rust));
    let request = DiscoveryRequest {
        type_url: ResourceType::Cluster.url(),
        resource_names: vec![CLUSTER.into()],
        ..DiscoveryRequest::default()
    };
    session.hear(request).unwrap();
    let now = Instant::now();
    assert!(session.next(now).is_none());
    assert_eq!((session.deadline(), session.settled()), (None, 0));
    session.world_changed(Arc::new(world(GREETER)), now);
    assert_eq!(session.next(now).unwrap().resources.len(), 1);
}

#[test]
fn bytes_are_shared_between_streams_and_classes_have_their_own() {
    let world = Arc::new(world(GREETER));
    let fetch = |class| {
        let mut session = Session::<Sotw>::default();
        session.introduce(client(class));
        session.world_changed(Arc::clone(&world), Instant::now());
        let request = DiscoveryRequest {
            type_url: ResourceType::Cluster.url(),
            resource_names: vec![CLUSTER.into()],
            ..DiscoveryRequest::default()
        };
        session.hear(request).unwrap();
        session.next(Instant::now()).unwrap().resources.remove(0)
    };
    let first = fetch(ClientClass::GrpcGo);
    assert!(Arc::ptr_eq(&first, &fetch(ClientClass::GrpcGo)));
    assert!(!Arc::ptr_eq(&first, &fetch(ClientClass::GrpcJava)));
}

#[test]
fn only_those_who_have_what_changed_look_at_it() {
    use ResourceType::{Cluster, Endpoints, Listener, Route};
    let before = world(&format!("{GREETER}{OTHER}"));
    let strict =
        "---\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n";
    let inbound = "mesh/inbound/127.0.0.1:5000";
    let all = [
        (Cluster, CLUSTER),
        (Endpoints, CLUSTER),
        (Route, CLUSTER),
        (Listener, "greeter.default:8080"),
        (Listener, inbound),
        (Cluster, OTHER_CLUSTER),
        (Endpoints, OTHER_CLUSTER),
    ];
    for (yaml, touched) in [
        (format!("{GREETER}{OTHER}"), &[][..]),
        (
            format!("{GREETER}{OTHER}").replace("5000", "5001"),
            &all[1..2],
        ),
        (
            format!(
                "{GREETER}{OTHER}{}",
                route_to("other.default.svc.cluster.local")
            ),
            &all[2..3],
        ),
        (
            format!("{GREETER}{OTHER}{strict}"),
            &[all[0], all[4], all[5]],
        ),
        (GREETER.to_owned(), &[all[3], all[5], all[6]]),
    ] {
        let after = World::following(world(&yaml).compiled().clone(), trust(), &before);
        let (changes, client) = (after.changes.as_ref().unwrap(), client(ClientClass::Rust));
        let found: Vec<_> = all
            .into_iter()
            .filter(|(kind, name)| changes.touches(&client, *kind, name))
            .collect();
        // An address that goes also changes who is judged there.
        let found: Vec<_> = found
            .into_iter()
            .filter(|one| touched.contains(one) || one.1 != inbound)
            .collect();
        assert_eq!(found, touched, "{yaml}");
    }
}

#[test]
fn a_client_that_missed_a_world_looks_at_everything() {
    let mut kit = grpc(GREETER);
    let held = Arc::clone(kit.session.world().unwrap());
    let missed = World::following(
        world(&GREETER.replace("5000", "5001")).compiled().clone(),
        trust(),
        &held,
    );
    let last = World::following(missed.compiled().clone(), trust(), &missed);
    kit.session.world_changed(Arc::new(last), kit.now);
    assert_eq!(kinds(&kit.all()), [ResourceType::Endpoints]);
}

/// The first request of a stream by a client that has something from an earlier one.
fn again(kind: ResourceType, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.url(),
        version_info: "of an earlier stream".into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..DiscoveryRequest::default()
    }
}

#[test]
fn a_client_that_comes_back_keeps_what_is_gone_until_it_has_what_takes_its_place() {
    let kinds = [ResourceType::Cluster, ResourceType::Endpoints];
    let names = [CLUSTER, OTHER_CLUSTER];
    for ends_by_itself in [true, false] {
        // The other one went while nobody served.
        let mut kit = Kit::<Sotw>::new(ClientClass::GrpcGo, GREETER);
        for kind in kinds {
            kit.session.hear(again(kind, &names)).unwrap();
        }
        kit.session
            .hear(again(ResourceType::Route, &[CLUSTER]))
            .unwrap();
        // An answer with clusters would be a deletion; of endpoints only the known ones are said.
        let endpoints = kit.next().expect("an answer");
        assert_eq!(endpoints.kind, ResourceType::Endpoints);
        assert_eq!(endpoints.resources.len(), 1);
        assert!(kit.next().is_none(), "routes wait for them");
        kit.ask(endpoints.kind, &names, endpoints.nonce);
        let routes = kit.next().expect("an answer");
        assert_eq!(routes.kind, ResourceType::Route);
        kit.ask(routes.kind, &names[..1], routes.nonce);
        assert!(kit.all().is_empty());
        if ends_by_itself {
            kit.session
                .hear(again(ResourceType::Cluster, &[CLUSTER]))
                .unwrap();
        } else {
            kit.pass(UNSUBSCRIBE_TIME);
        }
        let last = kit.all();
        let clusters = last.iter().find(|last| last.kind == ResourceType::Cluster);
        let clusters = clusters.expect("an answer at last");
        assert_eq!(clusters.resources.len(), 1);
        let Gone::Errors(missing) = &clusters.gone else {
            panic!()
        };
        assert_eq!(missing.is_empty(), ends_by_itself);
    }
}

#[test]
fn a_delta_client_that_comes_back_is_told_of_what_is_gone_after_the_new_routes() {
    let mut kit = Kit::<Delta>::new(ClientClass::Envoy, GREETER);
    for (kind, held) in [
        (ResourceType::Cluster, OTHER_CLUSTER),
        (ResourceType::Route, "outbound"),
    ] {
        let mut request = tests::delta(
            kind,
            if kind.is_full_set() {
                &[]
            } else {
                &["outbound"]
            },
            &[],
        );
        let version = "0123456789abcdef".to_owned();
        request
            .initial_resource_versions
            .insert(held.to_owned(), version);
        kit.session.hear(request).unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        for response in kit.all() {
            kit.ack(&response);
            let Gone::Removed(gone) = &response.gone else {
                panic!()
            };
            seen.push((response.kind, gone.len()));
            if response.kind == ResourceType::Cluster && gone.is_empty() {
                kit.ask(ResourceType::Endpoints, &[CLUSTER]);
            }
        }
    }
    assert_eq!(
        seen,
        [
            (ResourceType::Cluster, 0),
            (ResourceType::Endpoints, 0),
            (ResourceType::Route, 0),
            (ResourceType::Cluster, 1)
        ]
    );
}

#[test]
fn an_envoy_that_comes_back_gets_the_endpoints_of_a_changed_cluster_whatever_comes_first() {
    // What it has of endpoints is the newest, what it has of clusters is not.
    let mut newest = Kit::<Delta>::new(ClientClass::Envoy, GREETER);
    newest.ask(ResourceType::Endpoints, &[CLUSTER]);
    let version = newest.next().unwrap().resources[0].version.to_string();
    for endpoints_are_first in [true, false] {
        let mut kit = Kit::<Delta>::new(ClientClass::Envoy, GREETER);
        let mut clusters = tests::delta(ResourceType::Cluster, &[], &[]);
        let mut endpoints = tests::delta(ResourceType::Endpoints, &[CLUSTER], &[]);
        for (request, version) in [
            (&mut clusters, "0123456789abcdef"),
            (&mut endpoints, &version),
        ] {
            let versions = &mut request.initial_resource_versions;
            versions.insert(CLUSTER.to_owned(), version.to_owned());
        }
        let mut found = Vec::new();
        let mut requests = [clusters, endpoints];
        if endpoints_are_first {
            requests.reverse();
        }
        for request in requests {
            kit.session.hear(request).unwrap();
            found.extend(kit.all());
        }
        let expected = [ResourceType::Cluster, ResourceType::Endpoints];
        assert_eq!(kinds(&found), expected, "it would wait for them");
        assert_eq!(found[1].resources[0].name, CLUSTER);
    }
}
