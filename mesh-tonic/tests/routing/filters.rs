//! Faults and limits, from YAML to requests.

use http::StatusCode;

use super::{
    intent::Services,
    scene::{Reply, Wire},
};

/// gRPC `RESOURCE_EXHAUSTED`.
const EXHAUSTED: Option<&str> = Some("8");

fn is_limited(reply: &Reply) -> bool {
    reply.status == StatusCode::TOO_MANY_REQUESTS || reply.grpc() == EXHAUSTED
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_and_limits_hold_as_they_are_declared() {
    let services = Services::start(&[("shop", &["v1"])]).await;
    services.world.write(
        "filters.yaml",
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /tea}}]
    fault: {abort: {httpStatus: 429, percentage: {value: 100}}}
    route: [{destination: {host: shop}}]
  - route: [{destination: {host: shop}}]
---
apiVersion: mesh/v1
kind: RateLimit
metadata: {name: of-clients, namespace: default}
spec:
  host: shop
  limits:
  - {requests: 3, interval: 1h, match: {pathPrefix: /few}, per: {header: x-user}}
---
apiVersion: mesh/v1
kind: RateLimit
metadata: {name: of-servers, namespace: default}
spec:
  selector: {matchLabels: {version: v1}}
  limits:
  - {requests: 2, interval: 1h, match: {pathPrefix: /scarce}, per: {header: x-user}}
",
    );
    for wire in Wire::ALL {
        let aborted = |reply: &Reply| match wire {
            Wire::Grpc => reply.grpc() == Some("14"),
            _ => reply.status == StatusCode::TOO_MANY_REQUESTS,
        };
        services.until(wire, "shop", "/tea", &[], aborted).await;
        for (path, most) in [("/few", 3), ("/scarce", 2)] {
            let probe = format!("probe-{wire:?}");
            let probe = [("x-user", probe.as_str())];
            services.until(wire, "shop", path, &probe, is_limited).await;
            for name in ["one", "two"] {
                let user = format!("{name}-{wire:?}");
                let user = [("x-user", user.as_str())];
                for _ in 0..most {
                    let reply = services.ask(wire, "shop", path, &user).await.unwrap();
                    assert_eq!(reply.seen().by, "v1", "{wire:?} {path}");
                }
                let reply = services.ask(wire, "shop", path, &user).await.unwrap();
                assert!(is_limited(&reply), "{wire:?} {path} {reply:?}");
                assert!(!reply.header("retry-after").is_empty(), "{wire:?} {path}");
            }
        }
        let reply = services.ask(wire, "shop", "/rest", &[]).await.unwrap();
        assert_eq!(reply.seen().by, "v1");
    }
}
