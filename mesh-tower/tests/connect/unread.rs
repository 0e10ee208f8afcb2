//! Servers that answer without reading what they are sent.

use std::sync::atomic::Ordering::Relaxed;

use http_body_util::BodyExt;
use mesh_core::config::HttpVersion;
use tower::ServiceExt;

use super::{
    backend::{Backend, ok},
    client, post,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_nobody_reads_leave_the_connection_alone() {
    let backend = Backend::start(|_| async { ok(false, "unread".to_owned()) }).await;
    let (_config, service) = client(&[backend.address], HttpVersion::Http2, false);
    for call in 0..3_000 {
        let response = service.clone().oneshot(post("x")).await;
        let response = response.unwrap_or_else(|error| panic!("call {call}: {error}"));
        let body = response.into_body().collect().await;
        body.unwrap_or_else(|error| panic!("call {call}: {error}"));
        assert_eq!(backend.connections.load(Relaxed), 1, "after {call} calls");
    }
}
