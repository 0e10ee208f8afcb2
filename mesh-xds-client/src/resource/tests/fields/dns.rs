//! Clusters of hosts, and secrets by kind.

use envoy_types::pb::envoy::{
    config::cluster::v3::cluster::{ClusterDiscoveryType, CustomClusterType},
    extensions::{
        clusters::dns::v3::DnsCluster,
        transport_sockets::tls::v3::{
            CertificateValidationContext, Secret as SecretProto, TlsCertificate,
            secret::Type as SecretType,
        },
    },
};

use super::{
    super::{discovery::hosts_of, *},
    messages::{Table, add, inline_string},
};

/// `DiscoveryType.STRICT_DNS`.
const STRICT_DNS: i32 = 1;

pub(super) fn add_all(t: &mut Table) {
    let kind = Kind::Cluster;
    let base = hosts_of(STRICT_DNS, &[("a.example", 80)]);
    add(t, " (of hosts)", kind, &base, |m| any(&m));
    add(t, "", kind, &DnsCluster::default(), |m| {
        let custom = CustomClusterType {
            name: "envoy.clusters.dns".into(),
            typed_config: Some(any(&m)),
        };
        any(&ClusterProto {
            cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(custom)),
            ..base.clone()
        })
    });
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["leaf".to_owned()]).expect("a name");
    let leaf = leaf.self_signed(&key).expect("a certificate").pem();
    let secret = |value| SecretProto {
        name: "s".into(),
        r#type: Some(value),
    };
    let roots = CertificateValidationContext {
        trusted_ca: Some(inline_string(&leaf)),
        ..CertificateValidationContext::default()
    };
    add(t, " (of secrets)", Kind::Secret, &roots, |m| {
        any(&secret(SecretType::ValidationContext(m)))
    });
    let pair = TlsCertificate {
        certificate_chain: Some(inline_string(&leaf)),
        private_key: Some(inline_string(&key.serialize_pem())),
        ..TlsCertificate::default()
    };
    add(t, " (of secrets)", Kind::Secret, &pair, |m| {
        any(&secret(SecretType::TlsCertificate(m)))
    });
}
