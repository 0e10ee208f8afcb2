//! Lets a test script both variants in the words of state of the world.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource,
    },
    google::protobuf::Any,
};
use prost::Message;

use crate::server::{CDS, LDS};

/// Lets a test script both variants in the words of state of the world.
#[derive(Default)]
pub(crate) struct Translator {
    wanted: BTreeMap<String, BTreeSet<String>>,
    sent: BTreeMap<String, BTreeSet<String>>,
    version: BTreeMap<String, String>,
}

impl Translator {
    pub(crate) fn request(&mut self, request: DeltaDiscoveryRequest) -> DiscoveryRequest {
        let type_url = request.type_url;
        let wanted = self.wanted.entry(type_url.clone()).or_default();
        for name in &request.resource_names_unsubscribe {
            wanted.remove(name);
        }
        wanted.extend(request.resource_names_subscribe);
        let initial: Vec<_> = request
            .initial_resource_versions
            .iter()
            .map(|(name, version)| format!("{name}={version}"))
            .collect();
        let version = self.version.entry(type_url.clone()).or_default();
        if !initial.is_empty() {
            *version = initial.join(",");
        }
        if request.error_detail.is_none()
            && let Some(acked) = request.response_nonce.strip_prefix("nonce-")
        {
            *version = acked.to_owned();
        }
        DiscoveryRequest {
            node: request.node,
            version_info: version.clone(),
            resource_names: wanted.iter().cloned().collect(),
            type_url,
            response_nonce: request.response_nonce,
            error_detail: request.error_detail,
            ..DiscoveryRequest::default()
        }
    }

    pub(crate) fn response(&mut self, response: DiscoveryResponse) -> DeltaDiscoveryResponse {
        let version = response.version_info;
        let wrap = |any: Any| Resource {
            name: name_of(&any),
            version: version.clone(),
            resource: Some(any),
            ..Resource::default()
        };
        let resources: Vec<_> = response.resources.into_iter().map(wrap).collect();
        let now: BTreeSet<_> = resources.iter().map(|r| r.name.clone()).collect();
        let mut removed_resources = Vec::new();
        if [LDS, CDS].contains(&&*response.type_url) {
            let before = self.sent.insert(response.type_url.clone(), now.clone());
            removed_resources = before
                .unwrap_or_default()
                .difference(&now)
                .cloned()
                .collect();
        }
        DeltaDiscoveryResponse {
            system_version_info: version,
            resources,
            removed_resources,
            type_url: response.type_url,
            nonce: response.nonce,
            resource_errors: response.resource_errors,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

/// Field 1 of every type here is its name.
fn name_of(any: &Any) -> String {
    Named::decode(&*any.value).map_or_else(|_| String::new(), |n| n.name)
}

/// Any message whose first field is its name.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}
