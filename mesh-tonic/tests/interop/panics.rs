//! Priorities that panic and whose requests fail then, beside Envoy: the same requests are served, all,
//! some or none of them.

use envoy_types::pb::envoy::config::{
    cluster::v3::cluster::{
        CommonLbConfig,
        common_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
    },
    core::v3::HealthStatus,
    endpoint::v3::LbEndpoint,
};
use futures_util::future::join_all;

use super::{
    beside::{Beside, Options},
    http,
    resources::{TARGET, endpoint},
    scene::{Scene, Wire, forward, host, prefix, priorities},
    unruly::Unruly,
};

const REQUESTS: usize = 100;

/// How many requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    All,
    Some,
    None,
}

impl Served {
    fn of(served: usize) -> Self {
        match served {
            0 => Self::None,
            REQUESTS => Self::All,
            _ => Self::Some,
        }
    }
}

/// Healthy ones, served by `servers`, and others that are not.
fn endpoints(servers: &[Unruly], unhealthy: u8, priority: u8) -> Vec<LbEndpoint> {
    let healthy = servers.iter().map(|server| {
        let address = server.address;
        endpoint(&address.ip().to_string(), address.port())
    });
    let others = (0..unhealthy).map(|number| {
        let mut other = endpoint(&format!("127.0.{}.{}", priority + 1, number + 1), 1);
        other.health_status = HealthStatus::Unhealthy as i32;
        other
    });
    healthy.chain(others).collect()
}

/// What comes of requests where the priorities have so many healthy and unhealthy endpoints.
async fn served(of_priorities: &[[u8; 2]]) -> [Served; 2] {
    let mut servers = Vec::new();
    let mut by_priority = Vec::new();
    for (priority, [healthy, unhealthy]) in (0..).zip(of_priorities) {
        let mut own = Vec::new();
        for _ in 0..*healthy {
            own.push(Unruly::start().await);
        }
        by_priority.push(endpoints(&own, *unhealthy, priority));
        servers.extend(own);
    }
    let assignment = priorities("c", by_priority);
    let zones = ZoneAwareLbConfig {
        fail_traffic_on_panic: true,
        ..ZoneAwareLbConfig::default()
    };
    let balancing = CommonLbConfig {
        locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)),
        ..CommonLbConfig::default()
    };
    let host = host(vec![prefix("/", forward("c", |_| {}))]);
    let ours = Scene::start(Wire::Http1, host.clone()).await;
    ours.serve_priorities(&assignment, "c", |cluster| {
        cluster.common_lb_config = Some(balancing.clone());
    });
    let options = Options {
        balancing: Some(balancing),
        ..Options::default()
    };
    let envoy = Beside::start(host, assignment, options).await;
    let mut mine = 0;
    for _ in 0..REQUESTS {
        mine += usize::from(ours.try_with("/good", &[]).await.is_ok());
    }
    let request = format!("GET /good HTTP/1.1\r\nhost: {TARGET}\r\nconnection: close\r\n\r\n");
    // Side by side: Envoy closes the connection of an answer of its own a second later.
    let answers = join_all((0..REQUESTS).map(|_| http(envoy.address, &request))).await;
    let good = |answer: &&String| answer.starts_with("HTTP/1.1 200");
    let theirs = answers.iter().filter(good).count();
    [mine, theirs].map(Served::of)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_a_priority_that_panics_fail_and_those_to_others_do_not() {
    for (of_priorities, expected) in [
        // Half of one priority is no panic, less is.
        (&[[1, 1]][..], Served::All),
        (&[[1, 2]], Served::None),
        // There is enough for everybody: nobody panics, however bad the first is.
        (&[[0, 2], [1, 0]], Served::All),
        (&[[1, 3], [2, 1]], Served::All),
        // Not enough: the first panics and its share fails, the second serves its own.
        (&[[1, 4], [1, 1]], Served::Some),
        // It panics, but has no share.
        (&[[0, 2], [1, 1]], Served::All),
        // Both panic.
        (&[[1, 3], [1, 3]], Served::None),
    ] {
        let [ours, theirs] = served(of_priorities).await;
        assert_eq!(theirs, expected, "Envoy, {of_priorities:?}");
        assert_eq!(ours, expected, "{of_priorities:?}");
    }
}
