//! grpc-go's catalogue of watches, row by row, for each type that can be watched by itself:
//! {LDS,RDS,CDS,EDS}Watch and Federation_*ResourceContextParamOrder.

use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use futures_util::{FutureExt, StreamExt};
use mesh_core::config::{ClusterEndpoints, Listener, RouteConfig};
use mesh_xds_client::{
    Bootstrap, ClusterSpec, Resource, Variant, XdsClient,
    bootstrap::Authority,
    watcher::{News, ResourceWatcher},
};

use crate::{client, server::*, within};

/// A type with two good forms of a resource and a bad one.
trait Fixture: Resource + std::fmt::Debug {
    /// Whether a response holds all, so that absence means removal.
    const IS_COMPLETE: bool;

    /// A good resource; `form` tells two apart.
    fn good(name: &str, form: u16) -> Any;

    fn bad(name: &str) -> Any;
}

impl Fixture for Listener {
    const IS_COMPLETE: bool = true;

    fn good(name: &str, form: u16) -> Any {
        listener(name, &format!("r{form}"))
    }

    fn bad(name: &str) -> Any {
        listener(name, "")
    }
}

impl Fixture for RouteConfig {
    const IS_COMPLETE: bool = false;

    fn good(name: &str, form: u16) -> Any {
        routes(name, &format!("c{form}"))
    }

    fn bad(name: &str) -> Any {
        routes(name, "")
    }
}

impl Fixture for ClusterSpec {
    const IS_COMPLETE: bool = true;

    fn good(name: &str, form: u16) -> Any {
        dns_cluster(name, "host", form)
    }

    fn bad(name: &str) -> Any {
        bad_cluster(name)
    }
}

impl Fixture for ClusterEndpoints {
    const IS_COMPLETE: bool = false;

    fn good(name: &str, form: u16) -> Any {
        endpoints(name, form)
    }

    fn bad(name: &str) -> Any {
        endpoints(name, 0)
    }
}

/// The next event in a word.
async fn told<T: Fixture>(watcher: &mut ResourceWatcher<T>) -> &'static str {
    match within(watcher.next()).await.expect("the driver runs").news {
        News::Changed(Ok(_)) => "value",
        News::Changed(Err(_)) => "error",
        News::AmbientError(Some(_)) => "ambient",
        News::AmbientError(None) => "well",
    }
}

fn is_silent<T: Fixture>(watcher: &mut ResourceWatcher<T>) -> bool {
    watcher.next().now_or_never().is_none()
}

/// TwoWatchesForSameName, ThreeWatchesForDifferentNames, ResourceCaching.
async fn watches_share_names_and_are_served_from_memory<T: Fixture>(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut first = client.watch::<T>("a");
    let mut second = client.watch::<T>("a");
    let mut other = client.watch::<T>("b");
    let mut stream = server.accept().await;
    let both = vec![T::good("a", 1), T::good("b", 1)];
    stream.serve(T::TYPE_URL, "1", both).await;
    for watcher in [&mut first, &mut second, &mut other] {
        assert_eq!(told(watcher).await, "value");
    }
    let both = vec![T::good("a", 1), T::good("b", 2)];
    stream.serve(T::TYPE_URL, "2", both).await;
    assert_eq!(told(&mut other).await, "value");
    assert!(is_silent(&mut first) && is_silent(&mut second), "equal");
    let mut late = client.watch::<T>("a");
    assert_eq!(told(&mut late).await, "value");
    // Nothing was asked for in between: the next request is that of a new name.
    let _new = client.watch::<T>("c");
    assert_eq!(
        stream.expect(T::TYPE_URL).await.resource_names,
        ["a", "b", "c"]
    );
}

/// ExpiryTimerFiresBeforeResponse, ValidResponseCancelsExpiryTimer.
async fn a_response_stops_the_timer_and_a_late_one_is_taken<T: Fixture>(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut there = client.watch::<T>("there");
    let mut missing = client.watch::<T>("missing");
    let mut stream = server.accept().await;
    stream
        .serve(T::TYPE_URL, "1", vec![T::good("there", 1)])
        .await;
    assert_eq!(told(&mut there).await, "value");
    // Time jumps while all wait; the connection is made.
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(20)).await;
    tokio::time::resume();
    assert_eq!(told(&mut missing).await, "error");
    assert!(is_silent(&mut there));
    let both = vec![T::good("there", 1), T::good("missing", 1)];
    stream.serve(T::TYPE_URL, "2", both).await;
    assert_eq!(told(&mut missing).await, "value");
}

/// ResourceRemoved, NewWatcherForRemovedResource, PartialResponse.
async fn absence_removes_only_where_a_response_holds_all<T: Fixture>(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut kept = client.watch::<T>("kept");
    let mut gone = client.watch::<T>("gone");
    let mut stream = server.accept().await;
    let both = vec![T::good("kept", 1), T::good("gone", 1)];
    stream.serve(T::TYPE_URL, "1", both).await;
    assert_eq!(
        (told(&mut kept).await, told(&mut gone).await),
        ("value", "value")
    );
    stream
        .serve(T::TYPE_URL, "2", vec![T::good("kept", 2)])
        .await;
    assert_eq!(told(&mut kept).await, "value");
    let mut late = client.watch::<T>("gone");
    assert_eq!(told(&mut late).await, "value", "it stays in use (gRFC A88)");
    if T::IS_COMPLETE {
        assert_eq!(
            (told(&mut gone).await, told(&mut late).await),
            ("ambient", "ambient")
        );
    }
    assert!(is_silent(&mut gone) && is_silent(&mut late));
}

/// NACKError, ResourceCaching_NACKError, PartialValid.
async fn a_refusal_is_told_and_its_good_sibling_delivered<T: Fixture>(variant: Variant) {
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let mut good = client.watch::<T>("good");
    let mut bad = client.watch::<T>("bad");
    let mut stream = server.accept().await;
    stream.send(T::TYPE_URL, "1", vec![T::bad("bad"), T::good("good", 1)]);
    assert_eq!(
        (told(&mut bad).await, told(&mut good).await),
        ("error", "value")
    );
    while stream.next().await.unwrap().error_detail.is_none() {}
    let mut late = client.watch::<T>("bad");
    assert_eq!(told(&mut late).await, "error");
    let both = vec![T::good("bad", 1), T::good("good", 1)];
    stream.serve(T::TYPE_URL, "2", both).await;
    assert_eq!(
        (told(&mut bad).await, told(&mut late).await),
        ("value", "value")
    );
    stream.send(T::TYPE_URL, "3", vec![T::bad("bad"), T::good("good", 2)]);
    assert_eq!(
        (told(&mut bad).await, told(&mut good).await),
        ("ambient", "value")
    );
}

/// Federation_*ResourceContextParamOrder.
async fn the_order_of_context_parameters_means_nothing<T: Fixture>(variant: Variant) {
    let mut server = Server::start().await;
    let bootstrap = Bootstrap::builder(server.address.to_string())
        .authority("x", Authority::new("x", vec![]))
        .build()
        .unwrap();
    let client = XdsClient::builder(bootstrap).variant(variant);
    let client = client.build().unwrap();
    let mut first = client.watch::<T>("xdstp://x/t/id?b=2&a=1");
    let mut second = client.watch::<T>("xdstp://x/t/id?a=1&b=2");
    let mut stream = server.accept().await;
    let asked = stream.expect(T::TYPE_URL).await.resource_names;
    assert_eq!(asked, ["xdstp://x/t/id?a=1&b=2"]);
    let sent = T::good("xdstp://x/t/id?b=2&a=1", 1);
    stream.send(T::TYPE_URL, "1", vec![sent]);
    assert_eq!(
        (told(&mut first).await, told(&mut second).await),
        ("value", "value")
    );
}

/// Each row for each type and variant.
macro_rules! rows {
    ($($row:ident),* $(,)?) => {
        mod state_of_the_world {
            use super::*;
            rows!(@types StateOfTheWorld: $($row),*);
        }
        mod incremental {
            use super::*;
            rows!(@types Incremental: $($row),*);
        }
    };
    (@types $variant:ident: $($row:ident),*) => {$(
        #[tokio::test]
        async fn $row() {
            super::$row::<Listener>(Variant::$variant).await;
            super::$row::<RouteConfig>(Variant::$variant).await;
            super::$row::<ClusterSpec>(Variant::$variant).await;
            super::$row::<ClusterEndpoints>(Variant::$variant).await;
        }
    )*};
}

rows!(
    watches_share_names_and_are_served_from_memory,
    a_response_stops_the_timer_and_a_late_one_is_taken,
    absence_removes_only_where_a_response_holds_all,
    a_refusal_is_told_and_its_good_sibling_delivered,
    the_order_of_context_parameters_means_nothing,
);
