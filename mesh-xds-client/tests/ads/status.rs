//! What people see: the dump, and CSDS (gRFC A40).

use envoy_types::pb::envoy::{
    admin::v3::ClientResourceStatus,
    service::status::v3::{
        ClientConfig, ClientStatusRequest,
        client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    },
};
use mesh_core::snapshot::ListenerState;
use mesh_xds_client::{StatusService, Variant, dump::ResourceStatus};

use crate::{client, server::*, wait, wait_for_port, within};

async fn fetch(service: StatusService, request: ClientStatusRequest) -> ClientConfig {
    let mut csds = ClientStatusDiscoveryServiceClient::new(service);
    let answer = within(csds.fetch_client_status(request)).await.unwrap();
    answer.into_inner().config.remove(0)
}

fn statuses(config: &ClientConfig) -> Vec<(&str, i32, &str)> {
    let resources = config.generic_xds_configs.iter();
    resources
        .map(|r| (r.name.as_str(), r.client_status, r.version_info.as_str()))
        .collect()
}

pub(crate) async fn the_status_service_shows_states_versions_and_contents(variant: Variant) {
    use ClientResourceStatus as S;
    let mut server = Server::start().await;
    let client = client(&server, variant);
    let service = client.status_service();
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.serve_all(1).await;
    wait_for_port(&mut reader, 1).await;
    let config = fetch(service.clone(), ClientStatusRequest::default()).await;
    assert_eq!(config.node.as_ref().unwrap().id, "me");
    assert_eq!(config.client_scope, server.address.to_string());
    let acked = S::Acked as i32;
    let expected = [
        ("c", acked, "c1"),
        ("c", acked, "e1"),
        ("l", acked, "l1"),
        ("r", acked, "r1"),
    ];
    assert_eq!(statuses(&config), expected);
    let received = config.generic_xds_configs[0].xds_config.as_ref();
    assert_eq!(received.unwrap().value, cluster("c").value, "as received");

    stream.send(CDS, "c2", vec![bad_cluster("c")]);
    stream.expect(CDS).await;
    let request = ClientStatusRequest {
        exclude_resource_contents: true,
        ..ClientStatusRequest::default()
    };
    let config = fetch(service.clone(), request).await;
    assert_eq!(statuses(&config)[0], ("c", S::Nacked as i32, "c1"));
    let refused = &config.generic_xds_configs[0];
    assert_eq!(refused.xds_config, None);
    let details = &refused.error_state.as_ref().unwrap().details;
    assert!(
        details.contains("CLUSTER_PROVIDED is not supported"),
        "{details}"
    );
    let dump = client.dump().await.unwrap();
    assert_eq!(dump.counters.nacks, 1);
    assert!(dump.servers[0].last_nack.is_some());

    // The service does not keep the client alive.
    drop((client, reader));
    while stream.next().await.is_some() {}
    let mut csds = ClientStatusDiscoveryServiceClient::new(service);
    let ended = csds.fetch_client_status(ClientStatusRequest::default());
    assert_eq!(
        within(ended).await.unwrap_err().code(),
        tonic::Code::Unavailable
    );
}

#[tokio::test]
async fn node_matchers_are_refused() {
    let server = Server::start().await;
    let client = client(&server, Variant::StateOfTheWorld);
    let mut csds = ClientStatusDiscoveryServiceClient::new(client.status_service());
    let request = ClientStatusRequest {
        node_matchers: vec![Default::default()],
        ..ClientStatusRequest::default()
    };
    let error = within(csds.fetch_client_status(request)).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn fields_without_effect_are_listed_counted_and_shown() {
    let mut server = Server::start().await;
    let client = client(&server, Variant::StateOfTheWorld);
    let mut reader = client.watch_listener("l", "greeter");
    let mut stream = server.accept().await;
    stream.expect(LDS).await;
    stream.serve(LDS, "1", vec![listener("l", "r")]).await;
    stream.serve(RDS, "1", vec![routes("r", "c")]).await;
    stream
        .serve(CDS, "1", vec![cluster_with_load_reports("c")])
        .await;
    stream.serve(EDS, "1", vec![endpoints("c", 1)]).await;
    wait(&mut reader, |s| matches!(s, ListenerState::Ready(_))).await;
    let dump = client.dump().await.unwrap();
    let cluster = &dump.resources[0];
    assert_eq!(cluster.status, ResourceStatus::Acked);
    assert_eq!(
        cluster.ignored_fields,
        ["lrs_server (neither self nor a server of the bootstrap)"]
    );
    assert_eq!(dump.counters.ignored_fields, 1);
    let service = client.status_service();
    let config = fetch(service, ClientStatusRequest::default()).await;
    let details = &config.generic_xds_configs[0]
        .error_state
        .as_ref()
        .unwrap()
        .details;
    assert_eq!(
        details,
        "fields without effect here: lrs_server (neither self nor a server of the bootstrap)"
    );
}
