//! TLS of clusters: contexts, what they hold, and sockets that endpoints are matched with.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::cluster::TransportSocketMatch,
        core::v3::{DataSource, data_source::Specifier},
    },
    extensions::transport_sockets::tls::v3::{
        CommonTlsContext, TlsCertificate, TlsParameters, UpstreamTlsContext,
        common_tls_context::ValidationContextType,
    },
};

use super::{
    super::*,
    messages::{Table, add, cluster, common, socket, upstream, validation},
};

fn with_tls(context: &UpstreamTlsContext) -> Any {
    any(&ClusterProto {
        transport_socket: Some(socket(any(context))),
        ..cluster()
    })
}

fn filename(path: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::Filename(path.into())),
        ..DataSource::default()
    })
}

pub(super) fn add_all(t: &mut Table) {
    let of_clusters = " (of clusters)";
    let kind = Kind::Cluster;
    add(t, "", kind, &upstream(common()), |m| with_tls(&m));
    add(t, of_clusters, kind, &common(), |m| with_tls(&upstream(m)));
    add(t, of_clusters, kind, &TlsParameters::default(), |m| {
        with_tls(&upstream(CommonTlsContext {
            tls_params: Some(m),
            ..common()
        }))
    });
    let files = TlsCertificate {
        certificate_chain: filename("/chain.pem"),
        private_key: filename("/key.pem"),
        ..TlsCertificate::default()
    };
    add(t, of_clusters, kind, &files, |m| {
        with_tls(&upstream(CommonTlsContext {
            tls_certificate_provider_instance: None,
            tls_certificates: vec![m],
            ..common()
        }))
    });
    add(t, of_clusters, kind, &validation(), |m| {
        with_tls(&upstream(CommonTlsContext {
            validation_context_type: Some(ValidationContextType::ValidationContext(m)),
            ..common()
        }))
    });
    let matched = TransportSocketMatch {
        transport_socket: Some(socket(any(&upstream(common())))),
        ..TransportSocketMatch::default()
    };
    add(t, "", kind, &matched, |m| {
        any(&ClusterProto {
            transport_socket_matches: vec![m],
            ..cluster()
        })
    });
}
