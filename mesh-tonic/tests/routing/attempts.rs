//! Retries, second attempts and copies, from YAML to requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use super::{
    echo,
    intent::{Services, entry, server},
    scene::Wire,
    world::MUST_HAPPEN,
};

/// A server that never answers, and one that does.
async fn half_hung() -> Services {
    let services = Services::start(&[]).await;
    let hung = axum::Router::new().fallback(std::future::pending::<()>);
    let hung = server(&services.world, "shop", hung).await;
    let good = echo::router("good", &Arc::default(), &Arc::default());
    let good = server(&services.world, "shop", good).await;
    services.world.write(
        "shop.yaml",
        &entry("shop", &[("hung", hung), ("good", good)]),
    );
    services
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_policy_answers_for_an_endpoint_that_hangs() {
    let services = half_hung().await;
    services.world.write(
        "hedge.yaml",
        "
apiVersion: mesh/v1
kind: HedgePolicy
metadata: {name: shop, namespace: default}
spec: {host: shop, delay: 20ms}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: default}
spec:
  host: shop
  trafficPolicy: {retryBudget: {percent: 100, minRetryConcurrency: 100}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - headers: {response: {set: {x-routed: 'yes'}}}
    timeout: 60s
    route: [{destination: {host: shop}}]
",
    );
    for wire in Wire::ALL {
        // Before the policy is there, a call may hang.
        let answered = async {
            let patience = Duration::from_secs(1);
            loop {
                let asked = services.ask(wire, "shop", "/", &[]);
                match tokio::time::timeout(patience, asked).await {
                    Ok(Some(reply)) if reply.header("x-routed") == ["yes"] => break,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let answered = tokio::time::timeout(MUST_HAPPEN * 3, answered).await;
        answered.unwrap_or_else(|_| panic!("{wire:?}: no policy"));
        for _ in 0..20 {
            let reply = services.ask(wire, "shop", "/", &[]).await;
            assert_eq!(reply.expect("an answer").seen().by, "good", "{wire:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_a_virtual_service_gets_copies() {
    let services = Services::start(&[("shop", &["shop"])]).await;
    let served = Arc::<AtomicUsize>::default();
    let shadow = echo::router("shadow", &Arc::default(), &served);
    let shadow = server(&services.world, "shadow", shadow).await;
    services
        .world
        .write("shadow.yaml", &entry("shadow", &[("shadow", shadow)]));
    services.world.write(
        "routes.yaml",
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - headers: {response: {set: {x-routed: 'yes'}}}
    mirror: {host: shadow}
    route: [{destination: {host: shop}}]
",
    );
    for wire in Wire::ALL {
        let is_so = |reply: &super::scene::Reply| reply.header("x-routed") == ["yes"];
        services.until(wire, "shop", "/", &[], is_so).await;
        let before = served.load(SeqCst);
        let copied = async {
            while served.load(SeqCst) < before + 5 {
                let reply = services.ask(wire, "shop", "/", &[]).await.unwrap();
                assert_eq!(reply.seen().by, "shop");
            }
        };
        let copied = tokio::time::timeout(MUST_HAPPEN, copied).await;
        copied.unwrap_or_else(|_| panic!("{wire:?}: no copies"));
    }
}
