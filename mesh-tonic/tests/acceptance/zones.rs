//! Zone-aware routing: who calls and who is called, by zone.

use std::{net::SocketAddr, sync::atomic::Ordering::SeqCst};

use envoy_types::pb::{
    envoy::config::cluster::v3::cluster::{
        CommonLbConfig,
        common_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
    },
    google::protobuf::UInt64Value,
};
use mesh_examples::greeter::greeter_client::GreeterClient;
use mesh_tonic::MeshExt as _;
use mesh_tower::{Mesh, telemetry::Telemetry};
use mesh_xds_client::Bootstrap;
use tokio::time::Instant;

use super::{
    Backend, Client,
    balance::load,
    plane::Plane,
    resources::{
        CDS, EDS, Named, TARGET, any, assignment_of, cluster, eds_cluster, listener, route_to,
    },
    scenarios::Row,
    world::MUST_HAPPEN,
};

/// The client's own service.
const OWN: &str = "own";

/// Adds the rows.
pub(crate) async fn rows(rows: &mut Vec<Row>) {
    rows.push(Row {
        scenario: "zone_aware_lb_config: 2 of 4 callers in the own zone, then 3 of 4",
        expected: "all stay, then two thirds",
        got: zone_aware().await,
    });
}

/// Endpoints that share requests by zone.
fn zone_aware_cluster(name: &'static str) -> Named {
    let zones = ZoneAwareLbConfig {
        min_cluster_size: Some(UInt64Value { value: 2 }),
        ..ZoneAwareLbConfig::default()
    };
    let cluster = envoy_types::pb::envoy::config::cluster::v3::Cluster {
        common_lb_config: Some(CommonLbConfig {
            locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)),
            ..CommonLbConfig::default()
        }),
        ..eds_cluster(name)
    };
    (CDS, name, any(&cluster))
}

/// Endpoints in zones `z0`, `z1`.
fn zones(name: &'static str, of: [&[SocketAddr]; 2]) -> Named {
    (EDS, name, any(&assignment_of(name, &of)))
}

async fn zone_aware() -> String {
    let (near, far) = (Backend::start("v1").await, Backend::start("v2").await);
    let plane = Plane::start().await;
    // Nobody connects to them.
    let caller = |port: u16| SocketAddr::from(([127, 0, 0, 9], port));
    let callers = |near: &[u16], far: &[u16]| {
        let of = |ports: &[u16]| ports.iter().map(|port| caller(*port)).collect::<Vec<_>>();
        zones(OWN, [&of(near), &of(far)])
    };
    plane.set([
        listener(),
        route_to("c1"),
        zone_aware_cluster("c1"),
        zones("c1", [&[near.address], &[far.address]]),
        cluster(OWN),
        callers(&[1, 2], &[3, 4]),
    ]);
    let json = serde_json::json!({
        "xds_servers": [{
            "server_uri": format!("http://{}", plane.address),
            "channel_creds": [{"type": "insecure"}],
        }],
        "node": {"id": "acceptance", "locality": {"zone": "z0"}},
    });
    let mesh = Mesh::builder()
        .bootstrap(Bootstrap::from_json(&json.to_string()).unwrap())
        .telemetry(Telemetry::disabled())
        .local_cluster(OWN);
    let mesh = mesh.build().await.unwrap();
    let client = GreeterClient::new(mesh.channel(&format!("xds:///{TARGET}")).unwrap());
    let share = async |client: &Client| {
        let before = [&near, &far].map(|backend| backend.inside.load(SeqCst));
        let errors = load(client, 8, 1_000).await;
        let near = near.inside.load(SeqCst) - before[0];
        let far = far.inside.load(SeqCst) - before[1];
        assert_eq!((errors, near + far), (0, 1_000));
        near / 10
    };
    let becomes = async |is_so: fn(usize) -> bool, words: &'static str| {
        let deadline = Instant::now() + MUST_HAPPEN;
        loop {
            let percent = share(&client).await;
            if is_so(percent) || Instant::now() > deadline {
                return match is_so(percent) {
                    true => words.to_owned(),
                    false => format!("{percent} %"),
                };
            }
        }
    };
    let all = becomes(|percent| percent == 100, "all stay").await;
    plane.set([callers(&[1, 2, 3], &[4])]);
    let some = becomes(|percent| (58..76).contains(&percent), "two thirds").await;
    format!("{all}, then {some}")
}
