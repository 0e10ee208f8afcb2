//! What a DestinationRule and a BalancerPolicy do to calls.

use std::sync::atomic::Ordering::Relaxed;

use tokio::time::timeout;

use crate::{
    load::Load,
    world::{MUST_HAPPEN, World, endpoints, greeter_client},
};

/// The rule that is in every tutorial.
const PUBLISHED: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: default}
spec:
  host: greeter
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 100}}
    outlierDetection: {consecutiveErrors: 3, interval: 30s, baseEjectionTime: 30s, maxEjectionPercent: 50}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_three_times_in_a_row_gets_nothing_for_a_while() {
    let world = World::start().await;
    let (well, sick) = (world.greeter("well").await, world.greeter("sick").await);
    world.write(
        "greeter.yaml",
        &format!(
            "{}---{PUBLISHED}",
            endpoints(&[("v1", well.address), ("v2", sick.address)])
        ),
    );
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 1);
    let both = async {
        while sick.served.load(Relaxed) == 0 || well.served.load(Relaxed) == 0 {
            load.next(20).await;
        }
    };
    timeout(MUST_HAPPEN, both).await.expect("both are used");
    let many = 1_000_000;
    sick.fail_next.store(many, Relaxed);
    let failed = || many - sick.fail_next.load(Relaxed);
    let ejected = async {
        while failed() < 3 {
            load.next(20).await;
        }
    };
    timeout(MUST_HAPPEN, ejected).await.expect("it is asked");
    // One call may be on its way.
    load.next(20).await;
    let before = failed();
    let seen = load.next(1_000).await;
    assert_eq!((failed(), seen.failed), (before, 0), "it is ejected");
    assert!(before <= 4, "{before} calls failed");
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_balancers_reach_the_library() {
    let world = World::start().await;
    let (one, two) = (world.greeter("one").await, world.greeter("two").await);
    let declared = endpoints(&[("v1", one.address), ("v2", two.address)]);
    world.write(
        "greeter.yaml",
        &format!(
            "{declared}---
apiVersion: mesh/v1
kind: BalancerPolicy
metadata: {{name: greeter, namespace: default}}
spec: {{host: greeter, peakEwma: {{decay: 5s}}, panicThreshold: 40}}
"
        ),
    );
    let frontend = world.member("frontend").await;
    let load = Load::start(&greeter_client(&frontend), 2);
    let used = async {
        while one.served.load(Relaxed) == 0 || two.served.load(Relaxed) == 0 {
            load.next(20).await;
        }
    };
    timeout(MUST_HAPPEN, used).await.expect("both are used");
    assert_eq!(load.stop().await, [""; 0]);
}
