//! The client against a scripted control plane, over real sockets.

mod catalogue;
mod dns;
mod keep;
mod load;
mod metrics;
#[allow(unreachable_pub, reason = "public where the examples share it")]
#[path = "../../../examples/src/ports.rs"]
mod ports;
mod secure;
mod server;
mod status;
mod translate;
mod watcher;
mod watches;

use std::{future::Future, time::Duration};

use catalogue::{
    a_second_watch_of_a_name_is_served_without_a_request, a_server_that_never_responds_is_given_up,
    a_stream_that_worked_is_no_failure_and_not_followed_at_once,
    a_stream_without_a_response_is_a_failure_and_is_told,
    a_watch_may_be_started_and_dropped_on_news_of_another,
};
use keep::a_process_starts_and_serves_with_the_control_plane_down;
use mesh_core::snapshot::{ListenerState, SnapshotReader};
use mesh_xds_client::{
    Bootstrap, InboundState, StreamStatus, Variant, XdsClient, XdsClientBuilder,
};
use metrics::{
    a_stream_counts_as_working_until_it_fails_and_from_the_next_response,
    resources_are_counted_by_type_and_by_what_became_of_them,
};
use server::*;
use status::the_status_service_shows_states_versions_and_contents;
use watcher::{
    a_held_token_does_not_keep_the_stream_open,
    a_resource_that_a_listener_uses_too_is_asked_for_once,
    a_token_outlives_its_watcher_and_an_unread_event_does_not,
    losing_the_control_plane_is_an_ambient_error_until_it_is_back,
    refusals_and_deletions_hold_back_the_next_response_too,
    the_last_watcher_of_a_name_unsubscribes,
    the_next_response_waits_for_every_watcher_and_requests_do_not,
    timers_stand_still_while_a_response_waits_to_be_read,
    watchers_are_told_what_is_new_and_late_ones_what_is_known,
    watches_may_be_started_and_dropped_while_a_token_is_held,
};

const MUST_HAPPEN: Duration = Duration::from_secs(10);

/// Every test over both variants of the protocol.
macro_rules! over_both_variants {
    ($($name:ident),* $(,)?) => {
        mod state_of_the_world {
            $(#[tokio::test]
            async fn $name() {
                super::$name(mesh_xds_client::Variant::StateOfTheWorld).await;
            })*
        }
        mod incremental {
            $(#[tokio::test]
            async fn $name() {
                super::$name(mesh_xds_client::Variant::Incremental).await;
            })*
        }
    };
}

over_both_variants!(
    a_stream_counts_as_working_until_it_fails_and_from_the_next_response,
    resources_are_counted_by_type_and_by_what_became_of_them,
    the_next_response_waits_for_every_watcher_and_requests_do_not,
    refusals_and_deletions_hold_back_the_next_response_too,
    watches_may_be_started_and_dropped_while_a_token_is_held,
    a_token_outlives_its_watcher_and_an_unread_event_does_not,
    timers_stand_still_while_a_response_waits_to_be_read,
    a_held_token_does_not_keep_the_stream_open,
    watchers_are_told_what_is_new_and_late_ones_what_is_known,
    the_last_watcher_of_a_name_unsubscribes,
    a_resource_that_a_listener_uses_too_is_asked_for_once,
    losing_the_control_plane_is_an_ambient_error_until_it_is_back,
    a_second_watch_of_a_name_is_served_without_a_request,
    a_watch_may_be_started_and_dropped_on_news_of_another,
    a_stream_that_worked_is_no_failure_and_not_followed_at_once,
    a_stream_without_a_response_is_a_failure_and_is_told,
    a_server_that_never_responds_is_given_up,
    a_cluster_of_hosts_needs_no_endpoints_from_the_control_plane,
    the_status_service_shows_states_versions_and_contents,
    a_process_starts_and_serves_with_the_control_plane_down,
    the_first_snapshot_and_a_change_of_endpoints,
    a_refusal_names_the_resource_and_keeps_the_last_good_one,
    a_new_stream_begins_with_the_versions_of_the_last_one,
    the_stream_closes_with_the_last_handle_and_the_last_watch,
    a_watch_that_is_dropped_unsubscribes,
    an_unreachable_control_plane_fails_the_listener_until_it_is_there,
    a_resource_that_does_not_come_in_time_fails_the_listener,
    inbound_listeners_and_trust_bundles,
    many_clusters_in_one_response,
);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(MUST_HAPPEN, future)
        .await
        .expect("it happens in time")
}

fn builder(uri: impl Into<String>) -> XdsClientBuilder {
    let bootstrap = Bootstrap::builder(uri)
        .node_id("me")
        .node_cluster("tests")
        .metadata("GENERATOR", "grpc")
        .build()
        .unwrap();
    XdsClient::builder(bootstrap).backoff(Duration::from_millis(10), Duration::from_millis(50))
}

fn client(server: &Server, variant: Variant) -> XdsClient {
    let builder = builder(server.address.to_string());
    builder.variant(variant).build().unwrap()
}

/// Waits until the listener's state is as wanted.
async fn wait(reader: &mut SnapshotReader, wanted: impl Fn(&ListenerState) -> bool) {
    within(async {
        while !wanted(&reader.load_and_mark()) {
            assert!(reader.changed().await, "the writer is gone");
        }
    })
    .await;
}

/// Waits until the first cluster has one endpoint with this port.
async fn wait_for_port(reader: &mut SnapshotReader, port: u16) {
    wait(reader, |state| matches!(state, ListenerState::Ready(_))).await;
    let ListenerState::Ready(snapshot) = reader.load() else {
        unreachable!("it is ready")
    };
    let mut current = snapshot.clusters[0].current.clone();
    let is_there = |cluster: &std::sync::Arc<mesh_core::snapshot::LazySnapshot>| {
        cluster
            .endpoints
            .iter()
            .any(|endpoint| endpoint.address.port() == port)
    };
    within(current.wait_for(is_there))
        .await
        .expect("the compiler lives");
}

async fn the_first_snapshot_and_a_change_of_endpoints(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;

    let first = stream.expect(LDS).await;
    let node = first.node.expect("the first request introduces us");
    assert_eq!((&*node.id, &*node.cluster), ("me", "tests"));
    assert_eq!(node.user_agent_name, "mesh-rs");
    let features = [
        "xds.config.resource-in-sotw",
        "xds.config.supports-resource-ttl",
    ];
    assert_eq!(node.client_features, features);
    assert!(node.metadata.unwrap().fields.contains_key("GENERATOR"));
    assert_eq!(
        (&*first.resource_names, &*first.version_info),
        (&["l".to_owned()][..], "")
    );

    stream.send(LDS, "l1", vec![listener("l", "r")]);
    let ack = stream.next().await.unwrap();
    assert_eq!(ack.node, None);
    stream.serve(RDS, "r1", vec![routes("r", "c")]).await;
    stream.serve(CDS, "c1", vec![cluster("c")]).await;
    assert!(
        matches!(reader.load(), ListenerState::Pending),
        "not before it is complete"
    );
    stream.serve(EDS, "e1", vec![endpoints("c", 1)]).await;
    wait_for_port(&mut reader, 1).await;
    assert_eq!(*client.status().borrow(), StreamStatus::Connected);

    let ListenerState::Ready(before) = reader.load() else {
        panic!()
    };
    stream.serve(EDS, "e2", vec![endpoints("c", 2)]).await;
    wait_for_port(&mut reader, 2).await;
    let ListenerState::Ready(after) = reader.load() else {
        panic!()
    };
    assert!(
        std::sync::Arc::ptr_eq(&before, &after),
        "the route table stays"
    );
}

async fn a_refusal_names_the_resource_and_keeps_the_last_good_one(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;

    stream.send(CDS, "c2", vec![bad_cluster("c")]);
    let nack = stream.expect(CDS).await;
    assert_eq!(
        (&*nack.version_info, &*nack.response_nonce),
        ("c1", "nonce-c2")
    );
    let text = nack.error_detail.unwrap().message;
    assert!(
        text.contains("cluster c: lb_policy: CLUSTER_PROVIDED is not supported"),
        "{text}"
    );
    stream.serve(EDS, "e2", vec![endpoints("c", 2)]).await;
    wait_for_port(&mut reader, 2).await;

    // A deletion takes nothing away either.
    stream.serve(LDS, "l2", vec![]).await;
    stream.serve(CDS, "c3", vec![]).await;
    stream.serve(EDS, "e3", vec![endpoints("c", 3)]).await;
    wait_for_port(&mut reader, 3).await;
}

async fn a_new_stream_begins_with_the_versions_of_the_last_one(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
    drop(stream);

    let mut stream = server.accept().await;
    let mut versions = Vec::new();
    for i in 0..4 {
        let request = stream.next().await.unwrap();
        assert_eq!(request.node.is_some(), i == 0);
        assert_eq!(
            (&*request.response_nonce, request.resource_names.len()),
            ("", 1)
        );
        versions.push(request.version_info);
    }
    let expected = match variant {
        Variant::StateOfTheWorld => ["c1", "e1", "l1", "r1"],
        // Here each resource has its own.
        Variant::Incremental => ["c=c1", "c=e1", "l=l1", "r=r1"],
    };
    assert_eq!(versions, expected);
    assert!(matches!(reader.load(), ListenerState::Ready(_)));
    stream.serve(EDS, "e2", vec![endpoints("c", 2)]).await;
    wait_for_port(&mut reader, 2).await;
}

async fn the_stream_closes_with_the_last_handle_and_the_last_watch(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut status = client.status();
    let reader = client.watch_listener("l", "greeter");
    let second = reader.clone();
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    drop(client);
    drop(reader);
    stream.serve(EDS, "e2", vec![endpoints("c", 2)]).await;
    drop(second);
    // What was wanted may be given back first; then the stream ends.
    while stream.next().await.is_some() {}
    let ended = async { while status.changed().await.is_ok() {} };
    within(ended).await;
}

async fn a_watch_that_is_dropped_unsubscribes(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let reader = client.watch_listener("l", "greeter");
    let _other = client.watch_inbound("other");
    let mut stream = server.accept().await;
    assert_eq!(stream.expect(LDS).await.resource_names.len(), 2);
    drop(reader);
    assert_eq!(stream.expect(LDS).await.resource_names, ["other"]);
    let _again = client.watch_listener("l", "greeter");
    assert_eq!(stream.expect(LDS).await.resource_names.len(), 2);
}

async fn an_unreachable_control_plane_fails_the_listener_until_it_is_there(variant: Variant) {
    let server = Server::start().await;
    let address = server.address;
    drop(server);
    let client = builder(format!("dns:///{address}"))
        .variant(variant)
        .build()
        .unwrap();
    let mut reader = client.watch_listener("l", "greeter");
    wait(&mut reader, |state| {
        matches!(state, ListenerState::Failed(_))
    })
    .await;
    let ListenerState::Failed(error) = reader.load() else {
        panic!()
    };
    let text = error.to_string();
    for expected in [
        "listener l",
        "cannot be reached",
        "\"me\"",
        &address.to_string(),
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(matches!(
        &*client.status().borrow(),
        StreamStatus::Disconnected { .. }
    ));
    let mut server = Server::start_at(address).await;
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
}

async fn a_resource_that_does_not_come_in_time_fails_the_listener(variant: Variant) {
    // Time jumps while all wait; the sockets are real, so the connection is made first.
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.expect(LDS).await;
    tokio::time::pause();
    while !matches!(reader.load_and_mark(), ListenerState::Failed(_)) {
        assert!(reader.changed().await);
    }
    let ListenerState::Failed(error) = reader.load() else {
        panic!()
    };
    assert!(
        error.to_string().starts_with("listener l: does not exist"),
        "{error}"
    );
}

async fn inbound_listeners_and_trust_bundles(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut inbound_watch = client.watch_inbound("in");
    let mut bundle = client.watch_trust_bundle("ROOTCA");
    let mut stream = server.accept().await;
    stream.serve(LDS, "1", vec![inbound("in")]).await;
    while !matches!(inbound_watch.load_and_mark(), InboundState::Ready(_)) {
        assert!(within(inbound_watch.changed()).await);
    }
    let root = rcgen::generate_simple_self_signed(["root".to_owned()])
        .unwrap()
        .cert;
    stream
        .serve(SDS, "1", vec![trust_bundle("ROOTCA", &root.pem())])
        .await;
    while bundle.load_and_mark().is_none() {
        assert!(within(bundle.changed()).await);
    }
    assert_eq!(
        bundle.load().unwrap().roots[0].as_ref(),
        root.der().as_ref()
    );
}

async fn many_clusters_in_one_response(variant: Variant) {
    const CLUSTERS: usize = 10_000;
    let names: Vec<String> = (0..CLUSTERS)
        .map(|i| {
            format!(
                "outbound|8080|a-rather-long-subset-name|{i:08}.{}.local",
                "x".repeat(400)
            )
        })
        .collect();
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve(LDS, "1", vec![listener("l", "r")]).await;
    stream.serve(RDS, "1", vec![routes_to("r", &names)]).await;
    stream
        .serve(CDS, "1", names.iter().map(|name| cluster(name)).collect())
        .await;
    stream
        .serve(
            EDS,
            "1",
            names.iter().map(|name| endpoints(name, 1)).collect(),
        )
        .await;
    wait(&mut reader, |state| {
        matches!(state, ListenerState::Ready(snapshot) if snapshot.clusters.len() == CLUSTERS)
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket() {
    use tokio_stream::wrappers::UnixListenerStream;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xds");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (service, mut streams) = service(false);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let client = builder(format!("unix:{}", path.display())).build().unwrap();
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = within(streams.recv()).await.unwrap();
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
}

#[tokio::test]
async fn without_its_driver_a_client_fails_watches_at_once() {
    let (client, driver) = builder("127.0.0.1:1").build_with_driver().unwrap();
    drop(driver);
    let reader = client.watch_listener("l", "greeter");
    assert!(matches!(reader.load(), ListenerState::Failed(_)));
    assert!(matches!(
        client.watch_inbound("l").load(),
        InboundState::Failed(_)
    ));
}

#[tokio::test]
async fn a_server_without_the_incremental_variant_is_spoken_to_in_the_other() {
    let mut server = Server::start_sotw_only().await;
    let client = client(&server, Variant::Incremental);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
    let dump = client.dump().await.unwrap();
    assert_eq!(dump.servers[0].variant, Variant::StateOfTheWorld);
}

async fn a_cluster_of_hosts_needs_no_endpoints_from_the_control_plane(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve(LDS, "1", vec![listener("l", "r")]).await;
    stream.serve(RDS, "1", vec![routes("r", "c")]).await;
    let hosts = vec![dns_cluster("c", "127.0.0.1", 7)];
    stream.serve(CDS, "1", hosts).await;
    wait_for_port(&mut reader, 7).await;
}
