//! Single resources and flow control, over real sockets: rows ADSFlowControl_*, EDSWatch and
//! NACKError_DuplicateSuppression of grpc-go's catalogue, and the ways to wait for oneself.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use mesh_core::{
    ConfigError,
    config::{ClusterEndpoints, Listener, RouteConfig},
};
use mesh_xds_client::{
    ClusterSpec, Resource, Variant,
    watcher::{News, ResourceEvent, ResourceWatcher},
};

use crate::{client, server::*, within};

async fn event<T: Resource>(watcher: &mut ResourceWatcher<T>) -> ResourceEvent<T> {
    within(watcher.next()).await.expect("the driver runs")
}

async fn value<T: Resource>(watcher: &mut ResourceWatcher<T>) -> Arc<T> {
    match event(watcher).await.news {
        News::Changed(result) => result.expect("a value"),
        News::AmbientError(error) => panic!("{error:?}"),
    }
}

async fn error<T: Resource>(watcher: &mut ResourceWatcher<T>) -> ConfigError {
    match event(watcher).await.news {
        News::Changed(result) => result.map(|_| ()).expect_err("an error"),
        News::AmbientError(error) => panic!("{error:?}"),
    }
}

async fn ambient<T: Resource>(watcher: &mut ResourceWatcher<T>) -> Option<ConfigError> {
    match event(watcher).await.news {
        News::AmbientError(error) => error,
        News::Changed(result) => panic!("{:?}", result.map(|_| ())),
    }
}

fn port(endpoints: &ClusterEndpoints) -> u16 {
    endpoints.localities[0].endpoints[0].address.port()
}

fn bad_endpoints(name: &str) -> envoy_types::pb::google::protobuf::Any {
    endpoints(name, 0)
}

/// ADSFlowControl_ResourceUpdates_MultipleResources: the next response waits for every watcher,
/// requests do not.
pub(crate) async fn the_next_response_waits_for_every_watcher_and_requests_do_not(
    variant: Variant,
) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut first = client.watch::<ClusterEndpoints>("c");
    let mut second = client.watch::<ClusterEndpoints>("c");
    let mut stream = server.accept().await;
    // The acceptance is sent while nobody has even read the event.
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    let slow = event(&mut first).await;
    drop(event(&mut second).await);
    stream.send(EDS, "2", vec![endpoints("c", 2)]);

    let other = client.watch::<ClusterEndpoints>("other");
    let request = stream.expect(EDS).await;
    assert_eq!(request.resource_names, ["c", "other"]);
    assert_ne!(request.response_nonce, "nonce-2", "it has not been read");
    drop(other);
    let request = stream.expect(EDS).await;
    assert_eq!(request.resource_names, ["c"]);
    assert_ne!(request.response_nonce, "nonce-2", "it has not been read");
    assert!(first.next().now_or_never().is_none());
    assert!(second.next().now_or_never().is_none());

    drop(slow);
    let ack = stream.expect(EDS).await;
    assert_eq!((&*ack.version_info, &*ack.response_nonce), ("2", "nonce-2"));
    assert_eq!(port(&*value(&mut first).await), 2);
    assert_eq!(port(&*value(&mut second).await), 2);
}

/// ADSFlowControl_ResourceErrors, _ResourceDoesNotExist.
pub(crate) async fn refusals_and_deletions_hold_back_the_next_response_too(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut watcher = client.watch::<ClusterSpec>("c");
    let mut stream = server.accept().await;
    stream.serve(CDS, "1", vec![cluster("c")]).await;
    value(&mut watcher).await;

    let hold =
        |version: &'static str, resources, expected: &'static str| (version, resources, expected);
    for (version, resources, expected) in [
        hold("2", vec![bad_cluster("c")], "lb_policy"),
        hold("3", vec![], "removed by the control plane"),
    ] {
        stream.send(CDS, version, resources);
        let held = event(&mut watcher).await;
        let News::AmbientError(Some(error)) = &held.news else {
            panic!("{:?}", held.news)
        };
        assert!(error.to_string().contains(expected), "{error}");
        stream.expect(CDS).await;
        stream.send(CDS, "next", vec![cluster("c")]);
        let other = client.watch::<ClusterSpec>("other");
        assert_ne!(stream.expect(CDS).await.response_nonce, "nonce-next");
        drop(other);
        assert_ne!(stream.expect(CDS).await.response_nonce, "nonce-next");
        drop(held);
        assert_eq!(stream.expect(CDS).await.response_nonce, "nonce-next");
        assert!(ambient(&mut watcher).await.is_none(), "all is well again");
    }
}

/// WatchCallAnotherWatch, with the token held all the while.
pub(crate) async fn watches_may_be_started_and_dropped_while_a_token_is_held(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut listeners = client.watch::<Listener>("l");
    let mut stream = server.accept().await;
    stream.serve(LDS, "1", vec![listener("l", "r")]).await;
    let held = event(&mut listeners).await;
    drop(listeners);
    let mut routes_of = client.watch::<RouteConfig>("r");
    let mut again = client.watch::<Listener>("l2");
    while stream.next().await.unwrap().resource_names != ["r"] {}
    stream.send(RDS, "1", vec![routes("r", "c")]);
    drop(held);
    assert_eq!(value(&mut routes_of).await.virtual_hosts.len(), 1);
    stream.send(LDS, "2", vec![listener("l2", "r")]);
    value(&mut again).await;
}

/// A token keeps the gate closed whatever becomes of its watcher; unread events do not.
pub(crate) async fn a_token_outlives_its_watcher_and_an_unread_event_does_not(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut kept = client.watch::<ClusterEndpoints>("c");
    let mut dropped = client.watch::<ClusterEndpoints>("c");
    let mut stream = server.accept().await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    drop(event(&mut kept).await);
    let held = event(&mut dropped).await.done;
    drop(dropped);
    let unread = client.watch::<ClusterEndpoints>("c");
    stream.send(EDS, "2", vec![endpoints("c", 2)]);
    let other = client.watch::<ClusterEndpoints>("other");
    assert_ne!(stream.expect(EDS).await.response_nonce, "nonce-2");
    drop(held);
    assert_eq!(stream.expect(EDS).await.response_nonce, "nonce-2");
    assert_eq!(port(&*value(&mut kept).await), 2);
    // `unread` has the second value too, and nobody will ever read it.
    stream.send(EDS, "3", vec![endpoints("c", 3)]);
    drop(other);
    assert_ne!(stream.expect(EDS).await.response_nonce, "nonce-3");
    drop(unread);
    assert_eq!(stream.expect(EDS).await.response_nonce, "nonce-3");
}

/// The answer may be there, unread: its watcher must not hear that there is none.
pub(crate) async fn timers_stand_still_while_a_response_waits_to_be_read(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut first = client.watch::<ClusterEndpoints>("c");
    let mut stream = server.accept().await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    let held = event(&mut first).await;
    let mut second = client.watch::<ClusterEndpoints>("late");
    assert_eq!(stream.expect(EDS).await.resource_names, ["c", "late"]);
    stream.send(EDS, "2", vec![endpoints("late", 2)]);
    tokio::time::pause();
    // Twice the time after which a resource does not exist; it passes when all are idle.
    tokio::time::sleep(Duration::from_secs(30)).await;
    tokio::time::resume();
    assert!(second.next().now_or_never().is_none());
    drop(held);
    assert_eq!(port(&*value(&mut second).await), 2);
}

/// An abandoned token must not keep a client alive.
pub(crate) async fn a_held_token_does_not_keep_the_stream_open(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut watcher = client.watch::<ClusterEndpoints>("c");
    let mut stream = server.accept().await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    let _held = event(&mut watcher).await;
    drop(watcher);
    drop(client);
    while stream.next().await.is_some() {}
}

/// NACKError_DuplicateSuppression, ResourceCaching(_NACKError), NewWatcherForRemovedResource.
pub(crate) async fn watchers_are_told_what_is_new_and_late_ones_what_is_known(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut watcher = client.watch::<ClusterEndpoints>("c");
    let stream = server.accept().await;
    stream.send(EDS, "1", vec![bad_endpoints("c")]);
    let refused = error(&mut watcher).await;
    assert!(refused.to_string().contains("node \"me\""), "{refused}");
    assert_eq!(
        error(&mut client.watch::<ClusterEndpoints>("c")).await,
        refused
    );
    // The same again, and then something else: only that is told.
    stream.send(EDS, "2", vec![bad_endpoints("c")]);
    stream.send(EDS, "3", vec![endpoints("c", 1)]);
    let first = value(&mut watcher).await;
    stream.send(EDS, "4", vec![endpoints("c", 1)]);
    stream.send(EDS, "5", vec![bad_endpoints("c")]);
    let refused = ambient(&mut watcher).await.expect("an error");
    let mut late = client.watch::<ClusterEndpoints>("c");
    assert!(Arc::ptr_eq(&value(&mut late).await, &first));
    assert_eq!(ambient(&mut late).await, Some(refused));
    // Good again, though equal to what is in use.
    stream.send(EDS, "6", vec![endpoints("c", 1)]);
    assert_eq!(ambient(&mut watcher).await, None);
    assert_eq!(ambient(&mut late).await, None);
}

/// The last cancel unsubscribes and evicts; a new watch asks anew.
pub(crate) async fn the_last_watcher_of_a_name_unsubscribes(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let _other = client.watch::<ClusterEndpoints>("other");
    let mut stream = server.accept().await;
    assert_eq!(stream.expect(EDS).await.resource_names, ["other"]);
    let mut first = client.watch::<ClusterEndpoints>("c");
    assert_eq!(stream.expect(EDS).await.resource_names, ["c", "other"]);
    let second = client.watch::<ClusterEndpoints>("c");
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    value(&mut first).await;
    drop(first);
    drop(second);
    assert_eq!(stream.expect(EDS).await.resource_names, ["other"]);
    let mut third = client.watch::<ClusterEndpoints>("c");
    assert_eq!(stream.expect(EDS).await.resource_names, ["c", "other"]);
    assert!(third.next().now_or_never().is_none());
}

/// A cluster may be watched by itself and by a mesh at the same time; either may go first.
pub(crate) async fn a_resource_that_a_listener_uses_too_is_asked_for_once(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    crate::wait_for_port(&mut reader, 1).await;
    let mut clusters = client.watch::<ClusterSpec>("c");
    let mut of_cluster = client.watch::<ClusterEndpoints>("c");
    value(&mut clusters).await;
    assert_eq!(port(&*value(&mut of_cluster).await), 1);
    drop(reader);
    // Of what the listener used, only what is not watched is given back.
    let mut left: Vec<_> = [stream.next().await.unwrap(), stream.next().await.unwrap()]
        .into_iter()
        .map(|request| (request.type_url, request.resource_names))
        .collect();
    left.sort();
    assert_eq!(left, [(LDS.to_owned(), vec![]), (RDS.to_owned(), vec![])]);
    stream.serve(EDS, "e2", vec![endpoints("c", 2)]).await;
    assert_eq!(port(&*value(&mut of_cluster).await), 2);
}

/// RetriesAfterBrokenStream, and the row of gRFC A88 for a channel in TRANSIENT_FAILURE.
pub(crate) async fn losing_the_control_plane_is_an_ambient_error_until_it_is_back(
    variant: Variant,
) {
    let mut server = Server::start().await;
    let address = server.address;
    let client = client(&server, variant);
    let mut watcher = client.watch::<ClusterEndpoints>("c");
    let mut stream = server.accept().await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    value(&mut watcher).await;
    // A stream that worked ends, and the next one is there: nobody hears of that.
    drop(stream);
    let mut stream = server.accept().await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    assert!(watcher.next().now_or_never().is_none());

    drop(stream);
    drop(server);
    let away = ambient(&mut watcher).await.expect("an error");
    assert!(away.to_string().contains("cannot be reached"), "{away}");
    let mut unknown = client.watch::<ClusterEndpoints>("unknown");
    let away = error(&mut unknown).await;
    assert!(away.to_string().contains("endpoints unknown"), "{away}");

    let mut server = Server::start_at(address).await;
    let mut stream = server.accept().await;
    let both = vec![endpoints("c", 1), endpoints("unknown", 2)];
    stream.serve(EDS, "1", both).await;
    // Attempts fail in more than one way meanwhile.
    while ambient(&mut watcher).await.is_some() {}
    loop {
        if let News::Changed(Ok(value)) = event(&mut unknown).await.news {
            assert_eq!(port(&value), 2);
            break;
        }
    }
}
