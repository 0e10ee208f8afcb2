//! What a client cannot take is not sent, and the client keeps what it has.

use super::{
    delta::Delta,
    fit::{GRPC_MESSAGE_MAX, message_max},
    sotw::Sotw,
    subscription::{Reason, Withheld},
    tests::{Ask, CLUSTER, GREETER, OTHER, OTHER_CLUSTER, client, delta, sotw, view, world},
    *,
};
use crate::{class::ClientClass, diagnostic::TOO_LARGE};

/// The greeter with so many endpoints.
fn greeter(endpoints: usize) -> String {
    let endpoint = |port| format!("{{address: 127.0.0.1, ports: {{grpc: {}}}}}", 5000 + port);
    let endpoints: Vec<_> = (0..endpoints).map(endpoint).collect();
    GREETER.replace(
        "{address: 127.0.0.1, ports: {grpc: 5000}}",
        &endpoints.join(", "),
    )
}

/// Room for a response with this, and for nothing more.
fn room_for(world: &World, client: &Client, kind: ResourceType, names: &[&str]) -> usize {
    let mut stream = Sotw::default();
    stream.hear(sotw(kind, names, "")).unwrap();
    let all = stream.answer(kind, &view(world, client), false).unwrap();
    let resources = all.resources.iter();
    resources.map(|resource| fit::in_set(resource)).sum()
}

#[test]
fn a_full_set_that_is_too_large_is_withheld_whole_and_sent_when_it_fits() {
    let client = client(ClientClass::GrpcGo);
    let others: Vec<_> = (0..20).map(|n| format!("other{n}")).collect();
    let yaml = others.iter().map(|name| OTHER.replace("other", name));
    let world = world(&yaml.fold(GREETER.to_owned(), |all, other| all + &other));
    let kind = ResourceType::Cluster;
    let names = others
        .iter()
        .map(|name| OTHER_CLUSTER.replace("other", name));
    let names: Vec<_> = names.chain([CLUSTER.to_owned()]).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let bytes = room_for(&world, &client, kind, &names);
    let small = View {
        message_max: bytes - 1,
        ..view(&world, &client)
    };
    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &names[1..], "")).unwrap();
    assert_eq!(stream.ask(kind, &small, false).unwrap().resources.len(), 20);
    stream.hear(sotw(kind, &names, "1")).unwrap();
    assert!(stream.ask(kind, &small, false).is_none(), "a byte too many");
    let withheld: Vec<_> = stream.subscriptions().withheld().collect();
    let reason = Reason::Size(bytes);
    assert_eq!(withheld, [(kind, &Withheld { name: None, reason })]);
    let (_, has) = stream.subscriptions().sent().next().unwrap();
    assert_eq!(has.entries().len(), 20, "it keeps what it has");
    let enough = View {
        message_max: bytes,
        ..view(&world, &client)
    };
    assert_eq!(
        stream.ask(kind, &enough, false).unwrap().resources.len(),
        21
    );
    assert_eq!(stream.subscriptions().withheld().count(), 0);
}

#[test]
fn a_resource_that_is_too_large_alone_is_withheld_and_the_others_are_sent() {
    let client = client(ClientClass::GrpcGo);
    let kind = ResourceType::Endpoints;
    let before = world(&format!("{GREETER}{OTHER}"));
    let after = world(&format!(
        "{}{}",
        greeter(200),
        OTHER.replace("6000", "6001")
    ));
    let limit = |world| View {
        message_max: 2048,
        ..view(world, &client)
    };
    let names = [CLUSTER, OTHER_CLUSTER];

    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &names, "")).unwrap();
    assert_eq!(
        stream
            .ask(kind, &limit(&before), false)
            .unwrap()
            .resources
            .len(),
        2
    );
    let answer = stream.answer(kind, &limit(&after), false).unwrap();
    let sent: Vec<_> = answer.resources.iter().map(|sent| &sent.name).collect();
    assert_eq!(sent, [OTHER_CLUSTER]);
    assert!(stream.ask(kind, &limit(&after), false).is_none(), "once");
    let withheld = |stream: &Subscriptions| -> Vec<_> {
        stream
            .withheld()
            .map(|(_, held)| held.name.clone())
            .collect()
    };
    assert_eq!(withheld(stream.subscriptions()), [Some(CLUSTER.to_owned())]);

    let mut stream = Delta::default();
    stream.hear(delta(kind, &names, &[])).unwrap();
    assert_eq!(
        stream
            .ask(kind, &limit(&before), false)
            .unwrap()
            .resources
            .len(),
        2
    );
    let answer = stream.ask(kind, &limit(&after), false).unwrap();
    let sent: Vec<_> = answer.resources.iter().map(|sent| &sent.name).collect();
    assert_eq!(sent, [OTHER_CLUSTER]);
    assert!(answer.removed_resources.is_empty(), "the old one stays");
    assert_eq!(withheld(stream.subscriptions()), [Some(CLUSTER.to_owned())]);
    let answer = stream.ask(kind, &view(&after, &client), false).unwrap();
    assert_eq!(answer.resources[0].name, CLUSTER);
}

#[test]
fn every_class_has_its_limit_and_a_way_out() {
    assert_eq!(message_max(ClientClass::Envoy), usize::MAX);
    assert!(message_max(ClientClass::Rust) > GRPC_MESSAGE_MAX);
    for (class, help) in [
        (ClientClass::Rust, "xds_delta"),
        (ClientClass::GrpcJava, "fewer services"),
    ] {
        let withheld = Withheld {
            name: None,
            reason: Reason::Size(5 << 20),
        };
        let client = Client {
            node_id: "web~1".into(),
            ..client(class)
        };
        let found = withheld.diagnose(ResourceType::Cluster, &client);
        assert_eq!(found.code, TOO_LARGE);
        let text = found.to_string();
        for part in ["web~1", "5242880", "it keeps what it has", help] {
            assert!(text.contains(part), "{text}");
        }
    }
}

const STRICT: &str = "---
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";
const POLICY: &str = "---
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {}
";

/// Whether an old and a new release get a resource in this world.
fn given(yaml: &str, class: ClientClass, kind: ResourceType, name: &str) -> [bool; 2] {
    let world = world(&format!("{GREETER}{yaml}"));
    [Some((1, 30)), None].map(|release| {
        let client = Client {
            release,
            ..client(class)
        };
        let mut stream = Sotw::default();
        stream.hear(sotw(kind, &[name], "")).unwrap();
        let answer = stream.ask(kind, &view(&world, &client), false).unwrap();
        let is_withheld = stream.subscriptions().withheld().next().is_some();
        assert_eq!(is_withheld, answer.resources.is_empty());
        !answer.resources.is_empty()
    })
}

#[test]
fn a_release_that_does_not_know_mtls_or_authorisation_gets_nothing_less_secure_instead() {
    let (cluster, inbound) = (ResourceType::Cluster, ResourceType::Listener);
    let server = "mesh/inbound/127.0.0.1:5000";
    for class in [
        ClientClass::GrpcCpp,
        ClientClass::GrpcJava,
        ClientClass::GrpcGo,
    ] {
        assert_eq!(given("", class, cluster, CLUSTER), [true; 2]);
        assert_eq!(given(STRICT, class, cluster, CLUSTER), [false, true]);
        assert_eq!(given("", class, inbound, server), [true; 2]);
        assert_eq!(given(STRICT, class, inbound, server), [false, true]);
        assert_eq!(given(POLICY, class, inbound, server), [false, true]);
    }
    let node = ClientClass::GrpcNode;
    assert_eq!(given(STRICT, node, cluster, CLUSTER), [false; 2]);
    for class in [ClientClass::Rust, ClientClass::Envoy] {
        assert_eq!(given(STRICT, class, cluster, CLUSTER), [true; 2]);
    }
}

#[test]
fn a_cluster_that_turns_to_mtls_is_taken_from_a_client_that_does_not_know_it() {
    let old = Client {
        release: Some((1, 40)),
        ..client(ClientClass::GrpcGo)
    };
    let (before, after) = (world(GREETER), world(&format!("{GREETER}{STRICT}")));
    let kind = ResourceType::Cluster;
    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &[CLUSTER], "")).unwrap();
    assert_eq!(
        stream
            .ask(kind, &view(&before, &old), false)
            .unwrap()
            .resources
            .len(),
        1
    );
    // Even while what is gone is kept for a while: it is not gone, it became unsafe.
    assert!(
        stream
            .ask(kind, &view(&after, &old), true)
            .unwrap()
            .resources
            .is_empty()
    );
    let (_, withheld) = stream.subscriptions().withheld().next().unwrap();
    let told = withheld.diagnose(kind, &old).to_string();
    for part in ["grpc-go 1.40 does not know mTLS", "update it to 1.41"] {
        assert!(told.contains(part), "{told}");
    }
}
