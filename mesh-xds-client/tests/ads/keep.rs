//! What outlives the process and the control plane: stored state, fall-back servers, authorities.

use std::{net::SocketAddr, time::Duration};

use futures_util::StreamExt;
use mesh_core::{config::ClusterEndpoints, snapshot::ListenerState};
use mesh_xds_client::{
    Bootstrap, StreamStatus, Variant, XdsClient, XdsClientBuilder,
    bootstrap::{Authority, BootstrapBuilder, Server as ServerConfig, ServerUri},
    watcher::News,
};

use crate::{server::*, wait, wait_for_port, within};

fn at(address: SocketAddr) -> ServerConfig {
    ServerConfig::new(ServerUri::parse(&address.to_string()).unwrap())
}

fn options(bootstrap: BootstrapBuilder) -> XdsClientBuilder {
    let pauses = [10, 50].map(Duration::from_millis);
    XdsClient::builder(bootstrap.node_id("me").build().unwrap()).backoff(pauses[0], pauses[1])
}

/// An address where nobody listens.
async fn nowhere() -> SocketAddr {
    let server = Server::start().await;
    server.address
}

pub(crate) async fn a_process_starts_and_serves_with_the_control_plane_down(variant: Variant) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    let mut server = Server::start().await;
    let address = server.address;
    let start = || {
        let builder = options(Bootstrap::builder(address.to_string()));
        let builder = builder.state_file(&file).variant(variant);
        let (client, driver) = builder.build_with_driver().unwrap();
        (client, tokio::spawn(driver.run()))
    };
    let (client, run) = start();
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
    assert!(!client.freshness().borrow().is_stale());
    drop((client, reader, server, stream));
    within(run).await.unwrap();

    // The control plane is down, and the process starts anew.
    let (client, _run) = start();
    let mut reader = client.watch_listener("l", "greeter");
    wait_for_port(&mut reader, 1).await;
    let ListenerState::Ready(before) = reader.load() else {
        panic!("it has been waited for")
    };
    let mut freshness = client.freshness();
    within(freshness.wait_for(|f| f.is_stale())).await.unwrap();
    let mut status = client.status();
    let is_down = |s: &StreamStatus| matches!(s, StreamStatus::Disconnected { .. });
    within(status.wait_for(is_down)).await.unwrap();
    let dump = client.dump().await.unwrap();
    assert!(dump.resources.iter().all(|resource| resource.is_stored));

    // It comes back: what is equal moves nothing, what is new is taken.
    let mut server = Server::start_at(address).await;
    let mut stream = server.accept().await;
    stream.serve(LDS, "l1", vec![listener("l", "r")]).await;
    stream.serve(RDS, "r1", vec![routes("r", "c")]).await;
    stream.serve(CDS, "c1", vec![cluster("c")]).await;
    assert!(freshness.borrow().is_stale(), "endpoints are not confirmed");
    stream.serve(EDS, "e2", vec![endpoints("c", 2)]).await;
    wait_for_port(&mut reader, 2).await;
    within(freshness.wait_for(|f| !f.is_stale())).await.unwrap();
    let ListenerState::Ready(after) = reader.load() else {
        panic!("nothing took it away")
    };
    assert!(std::sync::Arc::ptr_eq(&before, &after));
}

#[tokio::test]
async fn a_damaged_state_file_is_not_used_and_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    std::fs::write(&file, b"MESHXDS\nnonsense").unwrap();
    let mut server = Server::start().await;
    let builder = options(Bootstrap::builder(server.address.to_string()));
    let (client, driver) = builder.state_file(&file).build_with_driver().unwrap();
    let run = tokio::spawn(driver.run());
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
    drop((client, reader));
    within(run).await.unwrap();
    assert!(std::fs::read(&file).unwrap().len() > 100);
}

#[tokio::test]
async fn fallback_on_startup_and_back_to_the_first_server() {
    let first = nowhere().await;
    let mut second = Server::start().await;
    let bootstrap = Bootstrap::builder(first.to_string()).fallback_server(at(second.address));
    let client = options(bootstrap).build().unwrap();
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = second.accept().await;
    stream.serve_all(2).await;
    wait_for_port(&mut reader, 2).await;

    let mut first = Server::start_at(first).await;
    let mut primary = first.accept().await;
    // The first word of the first server ends the fall-back, and its stream.
    primary.send(LDS, "l1", vec![listener("l", "r")]);
    while stream.next().await.is_some() {}
    primary.serve(RDS, "r1", vec![routes("r", "c")]).await;
    primary.serve(CDS, "c1", vec![cluster("c")]).await;
    primary.serve(EDS, "e1", vec![endpoints("c", 1)]).await;
    wait_for_port(&mut reader, 1).await;
}

#[tokio::test]
async fn fallback_mid_startup() {
    let mut first = Server::start().await;
    let mut second = Server::start().await;
    let bootstrap =
        Bootstrap::builder(first.address.to_string()).fallback_server(at(second.address));
    let client = options(bootstrap).build().unwrap();
    let mut reader = client.watch_listener("l", "greeter");
    let mut primary = first.accept().await;
    primary.expect(LDS).await;
    primary.serve(LDS, "1", vec![listener("l", "r")]).await;
    primary.serve(RDS, "1", vec![routes("r", "c")]).await;
    // It dies when it is asked for the cluster.
    drop((primary, first));
    let mut stream = second.accept().await;
    let mut asked = std::collections::BTreeSet::new();
    while asked.len() < 3 {
        asked.insert(stream.next().await.unwrap().type_url);
    }
    stream.serve(CDS, "1", vec![cluster("c")]).await;
    stream.serve(EDS, "1", vec![endpoints("c", 2)]).await;
    wait_for_port(&mut reader, 2).await;
}

#[tokio::test]
async fn no_fallback_while_everything_is_known_and_one_when_something_new_is_wanted() {
    let mut first = Server::start().await;
    let mut second = Server::start().await;
    let bootstrap =
        Bootstrap::builder(first.address.to_string()).fallback_server(at(second.address));
    let client = options(bootstrap).build().unwrap();
    let mut reader = client.watch_listener("l", "greeter");
    let mut primary = first.accept().await;
    primary.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
    drop((primary, first));
    let mut status = client.status();
    let is_down = |s: &StreamStatus| matches!(s, StreamStatus::Disconnected { .. });
    within(status.wait_for(is_down)).await.unwrap();
    assert_eq!(second.connections(), 0);
    let _inbound = client.watch_inbound("new");
    let mut stream = second.accept().await;
    let mut names = Vec::new();
    while names.len() < 2 {
        let request = stream.next().await.unwrap();
        if request.type_url == LDS {
            names = request.resource_names;
        }
    }
    assert_eq!(names, ["l", "new"], "everything is asked for there, too");
}

#[tokio::test]
async fn an_outage_is_told_when_every_server_has_failed() {
    let (first, second) = (nowhere().await, nowhere().await);
    let bootstrap = Bootstrap::builder(first.to_string()).fallback_server(at(second));
    let client = options(bootstrap).build().unwrap();
    let mut reader = client.watch_listener("l", "greeter");
    wait(&mut reader, |s| matches!(s, ListenerState::Failed(_))).await;
    let ListenerState::Failed(error) = reader.load() else {
        panic!("it has been waited for")
    };
    let text = error.to_string();
    assert!(text.contains(&format!("{first}, {second}")), "{text}");
}

#[tokio::test]
async fn authorities_have_servers_of_their_own_and_share_equal_ones() {
    let mut first = Server::start().await;
    let mut second = Server::start().await;
    let bootstrap = Bootstrap::builder(first.address.to_string())
        .authority("x", Authority::new("x", vec![at(second.address)]))
        .authority("same", Authority::new("same", vec![at(first.address)]))
        .authority("top", Authority::new("top", vec![]));
    let client = options(bootstrap).build().unwrap();
    let name = client.client_listener_name("xds://x/greeter");
    assert_eq!(name, "xdstp://x/envoy.config.listener.v3.Listener/greeter");
    let mut reader = client.watch_listener(&name, "greeter");
    let mut named = second.accept().await;
    assert_eq!(
        named.expect(LDS).await.resource_names,
        std::slice::from_ref(&name)
    );
    named.serve(LDS, "1", vec![listener(&name, "r")]).await;
    // A name of the old style belongs to the first server, whoever refers to it.
    let mut top = first.accept().await;
    top.expect(RDS).await;
    top.serve(RDS, "1", vec![routes("r", "c")]).await;
    top.serve(CDS, "1", vec![cluster("c")]).await;
    top.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    wait_for_port(&mut reader, 1).await;
    let _same = client.watch_inbound("xdstp://same/t/in");
    let _top = client.watch_inbound("xdstp://top/t/in");
    while top.next().await.unwrap().resource_names.len() < 2 {}
    assert_eq!(first.connections(), 0, "one stream serves all three");
}

#[tokio::test]
async fn a_target_of_an_unknown_authority_fails_at_once() {
    let server = Server::start().await;
    let client = options(Bootstrap::builder(server.address.to_string()))
        .build()
        .unwrap();
    let name = client.client_listener_name("xds://nobody/greeter");
    let mut reader = client.watch_listener(&name, "greeter");
    wait(&mut reader, |s| matches!(s, ListenerState::Failed(_))).await;
    let ListenerState::Failed(error) = reader.load() else {
        panic!("it has been waited for")
    };
    let text = error.to_string();
    assert!(
        text.contains("its authority is not among authorities"),
        "{text}"
    );
}

/// gRFC A95: endpoints of another server are asked for though those of the first are known, and given
/// up when it is back.
#[tokio::test]
async fn an_authority_may_fall_back_though_everything_is_known() {
    let mut first = Server::start().await;
    let mut second = Server::start().await;
    let top = nowhere().await;
    let address = first.address;
    let servers = vec![at(first.address), at(second.address)];
    let authority = Authority::new("x", servers).with_fallback_on_reachability_only(true);
    let bootstrap = Bootstrap::builder(top.to_string()).authority("x", authority);
    let client = options(bootstrap).build().unwrap();
    let name = "xdstp://x/envoy.config.endpoint.v3.ClusterLoadAssignment/c";
    let mut watcher = client.watch::<ClusterEndpoints>(name);
    let mut next = async || loop {
        let event = within(watcher.next()).await.unwrap();
        if let News::Changed(value) = event.news {
            return value.unwrap().localities[0].endpoints[0].address.port();
        }
    };
    let mut stream = first.accept().await;
    stream.serve(EDS, "1", vec![endpoints(name, 1)]).await;
    assert_eq!(next().await, 1);
    drop((first, stream));
    let mut other = second.accept().await;
    other.serve(EDS, "1", vec![endpoints(name, 2)]).await;
    assert_eq!(next().await, 2);
    let mut first = Server::start_at(address).await;
    let mut stream = first.accept().await;
    stream.serve(EDS, "2", vec![endpoints(name, 3)]).await;
    assert_eq!(next().await, 3);
    while other.next().await.is_some() {}
}

#[tokio::test]
async fn a_glob_collection_is_refused_by_name_and_never_asked_for() {
    let mut server = Server::start().await;
    let bootstrap =
        Bootstrap::builder(server.address.to_string()).authority("x", Authority::new("x", vec![]));
    let client = options(bootstrap).build().unwrap();
    let mut watcher = client.watch::<ClusterEndpoints>("xdstp://x/t/all/*");
    let event = within(watcher.next()).await.unwrap();
    let News::Changed(Err(error)) = &event.news else {
        panic!("{event:?}")
    };
    let text = error.to_string();
    assert!(
        text.contains("glob collections are not supported"),
        "{text}"
    );
    let _one = client.watch::<ClusterEndpoints>("xdstp://x/t/all/one");
    let request = server.accept().await.expect(EDS).await;
    assert_eq!(request.resource_names, ["xdstp://x/t/all/one"]);
}

/// Fallback_ThreeServerPromotion: each better server that speaks ends the streams of those behind it,
/// and what those say late does not count.
#[tokio::test]
async fn three_servers_are_fallen_back_to_and_promoted_in_order() {
    let (one, two) = (nowhere().await, nowhere().await);
    let mut third = Server::start().await;
    let bootstrap = Bootstrap::builder(one.to_string())
        .fallback_server(at(two))
        .fallback_server(at(third.address));
    let client = options(bootstrap).build().unwrap();
    let mut watcher = client.watch::<ClusterEndpoints>("c");
    let mut next = async || loop {
        let event = within(watcher.next()).await.unwrap();
        if let News::Changed(value) = event.news {
            return value.unwrap().localities[0].endpoints[0].address.port();
        }
    };
    let mut of_third = third.accept().await;
    of_third.serve(EDS, "1", vec![endpoints("c", 3)]).await;
    assert_eq!(next().await, 3);

    let mut second = Server::start_at(two).await;
    let mut of_second = second.accept().await;
    of_second.serve(EDS, "1", vec![endpoints("c", 2)]).await;
    assert_eq!(next().await, 2);
    while of_third.next().await.is_some() {}

    let mut first = Server::start_at(one).await;
    let mut of_first = first.accept().await;
    of_first.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    assert_eq!(next().await, 1);
    while of_second.next().await.is_some() {}
    of_first.serve(EDS, "2", vec![endpoints("c", 4)]).await;
    assert_eq!(next().await, 4);
}

/// Authority_XDSChannelClose.
#[tokio::test]
async fn the_stream_of_an_authority_closes_with_its_last_watch_and_others_stay() {
    let mut top = Server::start().await;
    let mut named = Server::start().await;
    let bootstrap = Bootstrap::builder(top.address.to_string())
        .authority("x", Authority::new("x", vec![at(named.address)]));
    let client = options(bootstrap).build().unwrap();
    let of_top = client.watch::<ClusterEndpoints>("c");
    let one = client.watch::<ClusterEndpoints>("xdstp://x/t/one");
    let two = client.watch::<ClusterEndpoints>("xdstp://x/t/two");
    let mut stream = named.accept().await;
    let mut other = top.accept().await;
    drop(one);
    while stream.next().await.unwrap().resource_names != ["xdstp://x/t/two"] {}
    drop(two);
    while stream.next().await.is_some() {}
    other.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    drop(of_top);
}

/// gRFC A88 spells the feature in two ways: either makes a silent server slow, not one without the
/// resource, and gives it 30 s.
#[tokio::test]
async fn a_transient_timer_is_known_by_both_spellings() {
    for feature in [
        "resource_timer_is_transient_error",
        "resource_timer_is_transient_failure",
    ] {
        let mut server = Server::start().await;
        let bootstrap = Bootstrap::builder(server.address.to_string()).server_feature(feature);
        let client = options(bootstrap).build().unwrap();
        let mut watcher = client.watch::<ClusterEndpoints>("c");
        let mut stream = server.accept().await;
        stream.expect(EDS).await;
        tokio::time::pause();
        let early = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await;
        assert!(early.is_err(), "{feature}: not after 15 s");
        let event = watcher.next().await.unwrap();
        tokio::time::resume();
        let News::Changed(Err(error)) = &event.news else {
            panic!("{event:?}")
        };
        assert!(error.to_string().contains("within 30 s"), "{error}");
    }
}
