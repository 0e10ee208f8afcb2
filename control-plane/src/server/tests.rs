//! The protocol's rules, one test each, over both variants where both have them.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::endpoint::v3::ClusterLoadAssignment,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        },
    },
    google::{protobuf::Any, rpc::Status},
};
use mesh_core::config::TrustBundle;
use prost::Message as _;

use super::{delta::Delta, sotw::Sotw, *};
use crate::{
    compile::{CompileOptions, compile},
    encode::ClientClass,
    source,
};

pub(crate) const GREETER: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: greeter, namespace: default}
spec:
  hosts: [greeter.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1, ports: {grpc: 5000}}]
";
pub(crate) const CLUSTER: &str = "outbound|8080||greeter.default.svc.cluster.local";

pub(crate) fn world(yaml: &str) -> World {
    let loaded = source::load_text("test.yaml", yaml);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    let (compiled, found) = compile(&loaded.objects, &CompileOptions::default());
    assert!(found.is_empty(), "{found:?}");
    World::new(compiled, trust())
}

pub(crate) fn trust() -> TrustBundle {
    TrustBundle {
        name: "ROOTCA".into(),
        roots: vec![],
    }
}

pub(crate) fn client(class: ClientClass) -> Client {
    Client {
        class,
        release: None,
        node_id: "n".into(),
        namespace: "default".into(),
        labels: BTreeMap::new(),
        locality: Default::default(),
        outbound_port: 1,
    }
}

pub(crate) fn view<'w>(world: &'w World, client: &'w Client) -> View<'w> {
    View {
        world,
        client,
        leaf: None,
        message_max: usize::MAX,
    }
}

/// Answers, as they are on the wire.
pub(crate) trait Ask {
    type Answer;

    fn ask(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<Self::Answer>;
}

impl Ask for Sotw {
    type Answer = DiscoveryResponse;

    fn ask(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<DiscoveryResponse> {
        let mut bytes = Vec::new();
        self.answer(kind, view, keeps_removed)?.encode(&mut bytes);
        Some(DiscoveryResponse::decode(&bytes[..]).unwrap())
    }
}

impl Ask for Delta {
    type Answer = DeltaDiscoveryResponse;

    fn ask(
        &mut self,
        kind: ResourceType,
        view: &View<'_>,
        keeps_removed: bool,
    ) -> Option<DeltaDiscoveryResponse> {
        let mut bytes = Vec::new();
        self.answer(kind, view, keeps_removed)?.encode(&mut bytes);
        Some(DeltaDiscoveryResponse::decode(&bytes[..]).unwrap())
    }
}

pub(crate) fn sotw(kind: ResourceType, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.url(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.into(),
        ..DiscoveryRequest::default()
    }
}

pub(crate) fn delta(
    kind: ResourceType,
    subscribe: &[&str],
    unsubscribe: &[&str],
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url(),
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn sotw_ack_is_not_answered_and_a_stale_nonce_is_ignored() {
    let (world, client) = (world(GREETER), client(ClientClass::Rust));
    let (view, kind) = (view(&world, &client), ResourceType::Cluster);
    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &[CLUSTER], "")).unwrap();
    let first = stream.ask(kind, &view, false).unwrap();
    assert_eq!(first.resources.len(), 1);
    let heard = stream.hear(sotw(kind, &[CLUSTER], &first.nonce)).unwrap();
    assert_eq!(heard.verdict, Some(Verdict::Ack));
    assert!(!heard.is_changed);
    assert!(stream.ask(kind, &view, false).is_none());
    let stale = stream.hear(sotw(kind, &[], "stale")).unwrap();
    assert!(stale.is_stale && !stale.is_changed && stale.verdict.is_none());
    assert!(stream.ask(kind, &view, false).is_none());
}

#[test]
fn sotw_nack_is_not_answered_until_the_content_changes() {
    let client = client(ClientClass::Rust);
    let kind = ResourceType::Endpoints;
    let mut stream = Sotw::default();
    let held = world(GREETER);
    stream.hear(sotw(kind, &[CLUSTER], "")).unwrap();
    let first = stream.ask(kind, &view(&held, &client), false).unwrap();
    let mut refusal = sotw(kind, &[CLUSTER], &first.nonce);
    refusal.error_detail = Some(Status {
        code: 3,
        message: "no".into(),
        details: vec![],
    });
    let heard = stream.hear(refusal).unwrap();
    assert_eq!(heard.verdict, Some(Verdict::Nack("no".into())));
    assert!(stream.ask(kind, &view(&held, &client), false).is_none());
    let changed = world(&GREETER.replace("5000", "5001"));
    let second = stream.ask(kind, &view(&changed, &client), false).unwrap();
    assert_ne!(first.version_info, second.version_info);
}

#[test]
fn an_empty_list_is_a_wildcard_first_and_unsubscribes_later() {
    let (world, client) = (world(GREETER), client(ClientClass::Envoy));
    let (view, kind) = (view(&world, &client), ResourceType::Cluster);
    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &[], "")).unwrap();
    assert_eq!(stream.ask(kind, &view, false).unwrap().resources.len(), 1);

    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &[CLUSTER], "")).unwrap();
    let first = stream.ask(kind, &view, false).unwrap();
    stream.hear(sotw(kind, &[], &first.nonce)).unwrap();
    assert!(stream.ask(kind, &view, false).is_none());
}

#[test]
fn unknown_endpoints_are_answered_empty_and_unknown_clusters_with_an_error() {
    let (world, client) = (world(GREETER), client(ClientClass::Rust));
    let view = view(&world, &client);
    let mut stream = Sotw::default();
    stream
        .hear(sotw(ResourceType::Endpoints, &["nobody"], ""))
        .unwrap();
    let answer = stream.ask(ResourceType::Endpoints, &view, false).unwrap();
    assert_eq!(
        (answer.resources.len(), answer.resource_errors.len()),
        (1, 0)
    );
    stream
        .hear(sotw(ResourceType::Cluster, &["nobody"], ""))
        .unwrap();
    let answer = stream.ask(ResourceType::Cluster, &view, false).unwrap();
    assert_eq!(
        (answer.resources.len(), answer.resource_errors.len()),
        (0, 1)
    );
}

#[test]
fn versions_are_equal_for_equal_content_in_another_world() {
    let client = client(ClientClass::Envoy);
    let version = |yaml: &str| {
        let world = world(yaml);
        let mut stream = Sotw::default();
        stream.hear(sotw(ResourceType::Cluster, &[], "")).unwrap();
        stream
            .ask(ResourceType::Cluster, &view(&world, &client), false)
            .unwrap()
            .version_info
    };
    assert_eq!(version(GREETER), version(GREETER));
    assert_ne!(version(GREETER), version(&GREETER.replace("8080", "8081")));
}

#[test]
fn removals_of_a_wildcard_come_last() {
    let client = client(ClientClass::Envoy);
    let kind = ResourceType::Cluster;
    let (before, after) = (world(GREETER), world(&GREETER.replace("8080", "8081")));
    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &[], "")).unwrap();
    stream.ask(kind, &view(&before, &client), false).unwrap();
    let added = stream.ask(kind, &view(&after, &client), true).unwrap();
    assert_eq!(added.resources.len(), 2, "make before break");
    let removed = stream.ask(kind, &view(&after, &client), false).unwrap();
    assert_eq!(removed.resources.len(), 1);

    let mut stream = Delta::default();
    stream.hear(delta(kind, &[], &[])).unwrap();
    stream.ask(kind, &view(&before, &client), false).unwrap();
    let added = stream.ask(kind, &view(&after, &client), true).unwrap();
    assert_eq!(
        (added.resources.len(), added.removed_resources.len()),
        (1, 0)
    );
    let removed = stream.ask(kind, &view(&after, &client), false).unwrap();
    assert_eq!(
        (removed.resources.len(), removed.removed_resources.len()),
        (0, 1)
    );
}

#[test]
fn delta_answers_every_subscribed_name_and_sends_only_what_changed() {
    let client = client(ClientClass::Rust);
    let kind = ResourceType::Cluster;
    let held = world(GREETER);
    let mut stream = Delta::default();
    stream.hear(delta(kind, &[CLUSTER, "nobody"], &[])).unwrap();
    let first = stream.ask(kind, &view(&held, &client), false).unwrap();
    assert_eq!(first.resources.len(), 1);
    assert_eq!(first.removed_resources, ["nobody"]);
    assert!(stream.ask(kind, &view(&held, &client), false).is_none());
    // Asked again, answered again, even though the client has it.
    stream.hear(delta(kind, &[CLUSTER], &[])).unwrap();
    assert_eq!(
        stream
            .ask(kind, &view(&held, &client), false)
            .unwrap()
            .resources
            .len(),
        1
    );
}

#[test]
fn delta_sends_nothing_to_a_reconnecting_client_that_has_everything() {
    let client = client(ClientClass::Rust);
    let kind = ResourceType::Cluster;
    let held = world(GREETER);
    let mut stream = Delta::default();
    stream.hear(delta(kind, &[CLUSTER], &[])).unwrap();
    let version = stream
        .ask(kind, &view(&held, &client), false)
        .unwrap()
        .resources[0]
        .version
        .clone();
    let mut again = delta(kind, &[CLUSTER], &[]);
    again
        .initial_resource_versions
        .insert(CLUSTER.into(), version);
    let mut stream = Delta::default();
    stream.hear(again).unwrap();
    let answer = stream.ask(kind, &view(&world(GREETER), &client), false);
    assert!(answer.is_none_or(|answer| answer.resources.is_empty()));
}

#[test]
fn a_certificate_goes_to_nobody_who_did_not_prove_who_he_is() {
    let (world, client) = (world(GREETER), client(ClientClass::Envoy));
    let view = view(&world, &client);
    let mut stream = Sotw::default();
    stream
        .hear(sotw(ResourceType::Secret, &["default", "ROOTCA"], ""))
        .unwrap();
    assert!(stream.subscriptions().wants_leaf());
    let answer = stream.ask(ResourceType::Secret, &view, false).unwrap();
    assert_eq!(
        (answer.resources.len(), answer.resource_errors.len()),
        (1, 1)
    );
}

pub(crate) const OTHER: &str = "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other, namespace: default}
spec:
  hosts: [other.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: admin, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: 6000, admin: 6001}}]
";
pub(crate) const OTHER_CLUSTER: &str = "outbound|80||other.default.svc.cluster.local";

fn names(response: &DiscoveryResponse) -> Vec<String> {
    let name = |any: &Any| {
        ClusterLoadAssignment::decode(&any.value[..])
            .unwrap()
            .cluster_name
    };
    response.resources.iter().map(name).collect()
}

#[test]
fn what_is_gone_stays_with_the_client_until_the_removals() {
    let client = client(ClientClass::GrpcCpp);
    let (before, after) = (world(&format!("{GREETER}{OTHER}")), world(OTHER));
    let mut stream = Sotw::default();
    for kind in [ResourceType::Cluster, ResourceType::Endpoints] {
        stream.hear(sotw(kind, &[CLUSTER], "")).unwrap();
        stream.ask(kind, &view(&before, &client), false).unwrap();
        assert!(stream.ask(kind, &view(&after, &client), true).is_none());
        assert_ne!(stream.subscriptions().kept(), Kept::Nothing);
        let gone = stream.ask(kind, &view(&after, &client), false).unwrap();
        // A cluster is deleted by absence, endpoints by an empty set.
        assert_eq!(
            gone.resources.len(),
            usize::from(kind == ResourceType::Endpoints)
        );
        assert_eq!(stream.subscriptions().kept(), Kept::Nothing);
    }
    let mut stream = Delta::default();
    for kind in [ResourceType::Cluster, ResourceType::Endpoints] {
        stream.hear(delta(kind, &[CLUSTER], &[])).unwrap();
        stream.ask(kind, &view(&before, &client), false).unwrap();
        assert!(stream.ask(kind, &view(&after, &client), true).is_none());
        assert_ne!(stream.subscriptions().kept(), Kept::Nothing);
        let gone = stream.ask(kind, &view(&after, &client), false).unwrap();
        assert_eq!(
            gone.removed_resources.len(),
            usize::from(kind == ResourceType::Cluster)
        );
        assert_eq!(stream.subscriptions().kept(), Kept::Nothing);
    }
}

#[test]
fn sotw_endpoints_are_sent_alone_and_a_dropped_name_is_answered_when_it_comes_back() {
    let client = client(ClientClass::Rust);
    let kind = ResourceType::Endpoints;
    let both = format!("{GREETER}{OTHER}");
    let (before, after) = (world(&both), world(&both.replace("5000", "5001")));
    let mut stream = Sotw::default();
    stream
        .hear(sotw(kind, &[CLUSTER, OTHER_CLUSTER], ""))
        .unwrap();
    let first = stream.ask(kind, &view(&before, &client), false).unwrap();
    assert_eq!(names(&first).len(), 2);
    let second = stream.ask(kind, &view(&after, &client), true).unwrap();
    assert_eq!(names(&second), [CLUSTER]);

    stream.hear(sotw(kind, &[CLUSTER], &second.nonce)).unwrap();
    assert!(
        stream.ask(kind, &view(&after, &client), false).is_none(),
        "a drop has no answer"
    );
    stream
        .hear(sotw(kind, &[CLUSTER, OTHER_CLUSTER], &second.nonce))
        .unwrap();
    let third = stream.ask(kind, &view(&after, &client), false).unwrap();
    assert_eq!(names(&third), [OTHER_CLUSTER]);

    // Envoy waits for the endpoints of a cluster that changed.
    stream
        .subscriptions_mut()
        .endpoints_again(&[CLUSTER.to_owned(), "not subscribed".to_owned()]);
    let fourth = stream.ask(kind, &view(&after, &client), true).unwrap();
    assert_eq!(names(&fourth), [CLUSTER]);
    assert!(stream.ask(kind, &view(&after, &client), true).is_none());
}

#[test]
fn a_star_may_stand_beside_names_and_be_dropped() {
    let (world, client) = (
        world(&format!("{GREETER}{OTHER}")),
        client(ClientClass::Envoy),
    );
    let (view, kind) = (view(&world, &client), ResourceType::Cluster);
    let mut stream = Sotw::default();
    stream.hear(sotw(kind, &["*", "nobody"], "")).unwrap();
    let first = stream.ask(kind, &view, false).unwrap();
    assert_eq!((first.resources.len(), first.resource_errors.len()), (3, 1));
    stream.hear(sotw(kind, &[CLUSTER], &first.nonce)).unwrap();
    let narrow = stream.ask(kind, &view, false).unwrap();
    assert_eq!(narrow.resources.len(), 1, "now a name of its own");

    let mut stream = Delta::default();
    stream.hear(delta(kind, &["*", CLUSTER], &[])).unwrap();
    assert_eq!(stream.ask(kind, &view, false).unwrap().resources.len(), 3);
    // Still in the wildcard: answered with the resource.
    stream.hear(delta(kind, &[], &[CLUSTER])).unwrap();
    let answer = stream.ask(kind, &view, false).unwrap();
    assert_eq!(
        (answer.resources.len(), answer.removed_resources.len()),
        (1, 0)
    );
    stream.hear(delta(kind, &[OTHER_CLUSTER], &["*"])).unwrap();
    let answer = stream.ask(kind, &view, false).unwrap();
    assert_eq!(
        (answer.resources.len(), answer.removed_resources.len()),
        (1, 0)
    );
    assert!(stream.ask(kind, &view, false).is_none());
}

#[test]
fn delta_applies_subscriptions_of_a_stale_nonce() {
    let (world, client) = (
        world(&format!("{GREETER}{OTHER}")),
        client(ClientClass::Rust),
    );
    let (view, kind) = (view(&world, &client), ResourceType::Cluster);
    let mut stream = Delta::default();
    stream.hear(delta(kind, &[CLUSTER], &[])).unwrap();
    stream.ask(kind, &view, false).unwrap();
    let mut stale = delta(kind, &[OTHER_CLUSTER], &[]);
    stale.response_nonce = "stale".into();
    stale.error_detail = Some(Status {
        code: 3,
        message: "no".into(),
        details: vec![],
    });
    let heard = stream.hear(stale).unwrap();
    assert!(
        heard.is_stale && heard.verdict.is_none(),
        "about nothing that was sent"
    );
    let answer = stream.ask(kind, &view, false).unwrap();
    assert_eq!(answer.resources[0].name, OTHER_CLUSTER);
    assert_eq!(answer.resources.len(), 1);
}

#[test]
fn delta_tells_a_reconnecting_client_what_changed_and_what_is_gone() {
    let (world, client) = (world(GREETER), client(ClientClass::Envoy));
    let (view, kind) = (view(&world, &client), ResourceType::Cluster);
    let mut again = delta(kind, &[], &[]);
    for name in [CLUSTER, OTHER_CLUSTER] {
        again
            .initial_resource_versions
            .insert(name.into(), "old".into());
    }
    let mut stream = Delta::default();
    stream.hear(again).unwrap();
    let answer = stream.ask(kind, &view, false).unwrap();
    assert_eq!(answer.resources[0].name, CLUSTER);
    assert_eq!(answer.removed_resources, [OTHER_CLUSTER]);
}

#[test]
fn delta_answers_in_parts_that_clients_can_take() {
    let (world, client) = (
        world(&format!("{GREETER}{OTHER}")),
        client(ClientClass::Envoy),
    );
    let (view, kind) = (view(&world, &client), ResourceType::Cluster);
    let mut stream = Delta::with_response_bytes(1);
    stream.hear(delta(kind, &[], &[])).unwrap();
    let parts = std::iter::from_fn(|| stream.ask(kind, &view, false));
    let sizes: Vec<_> = parts.map(|part| part.resources.len()).collect();
    assert_eq!(sizes, [1, 1, 1]);
}
