//! What a TLS context says of servers outside the mesh: their roots, certificates for them, versions.
//!
//! Stage 3. The system's roots (gRFC A82), roots in the resource or in a file of this machine
//! (Envoy `trusted_ca`), and certificates with keys from files of this machine. Keys do not travel with
//! clusters.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, TlsCertificate,
        TlsParameters, subject_alt_name_matcher::SanType as SanTypeProto,
        tls_parameters::TlsProtocol,
    },
};
use mesh_core::config::{
    CertificateSource, SanMatcher, SanType, TlsVersion, TrustBundle, TrustSource,
};

use super::secret::decode_roots;
use crate::resource::{path::Sink, report::report, route::matcher};

/// Roots that are named without a provider and without SDS.
pub(super) fn roots(sink: &mut Sink, proto: &CertificateValidationContext) -> Option<TrustSource> {
    if let Some(source) = &proto.trusted_ca {
        return sink.field("trusted_ca", |sink| trusted_ca(sink, source));
    }
    proto
        .system_root_certs
        .is_some()
        .then_some(TrustSource::System)
}

fn trusted_ca(sink: &mut Sink, source: &DataSource) -> Option<TrustSource> {
    let pem = match &source.specifier {
        Some(Specifier::InlineString(text)) => text.as_bytes(),
        Some(Specifier::InlineBytes(bytes)) => bytes,
        Some(Specifier::Filename(path)) if !path.is_empty() => {
            return Some(TrustSource::File(path.into()));
        }
        Some(Specifier::Filename(_)) => return sink.error_at("filename", "is empty"),
        Some(Specifier::EnvironmentVariable(_)) => {
            let reason = "is not supported; use inline_string, inline_bytes or filename";
            return sink.error_at("environment_variable", reason);
        }
        None => return sink.error("is empty"),
    };
    let bundle = TrustBundle {
        name: "trusted_ca".into(),
        roots: decode_roots(sink, pem)?,
    };
    Some(TrustSource::Inline(Arc::new(bundle)))
}

/// Our certificate, from files of this machine.
pub(super) fn certificate(sink: &mut Sink, common: &CommonTlsContext) -> Option<CertificateSource> {
    match common.tls_certificates.as_slice() {
        [] => None,
        [one] => sink.field("tls_certificates[0]", |sink| files(sink, one)),
        _ => sink.error_at("tls_certificates", "more than one is not supported"),
    }
}

/// Refuses forms of a certificate that cannot be read here, wherever it is from.
pub(super) fn check_certificate(sink: &mut Sink, proto: &TlsCertificate) {
    report!(
        sink,
        proto,
        [ocsp_staple, signed_certificate_timestamp, watched_directory]
    );
    let unsupported = "is not supported";
    sink.refuse("pkcs12", proto.pkcs12.is_some(), unsupported);
    sink.refuse("password", proto.password.is_some(), unsupported);
    sink.refuse("tls_params", proto.tls_params.is_some(), unsupported);
    let provider = proto.private_key_provider.is_some();
    sink.refuse("private_key_provider", provider, unsupported);
}

fn files(sink: &mut Sink, proto: &TlsCertificate) -> Option<CertificateSource> {
    check_certificate(sink, proto);
    let chain = file(sink, "certificate_chain", proto.certificate_chain.as_ref());
    let key = file(sink, "private_key", proto.private_key.as_ref());
    Some(CertificateSource::Files {
        chain: chain?.into(),
        key: key?.into(),
    })
}

fn file<'p>(sink: &mut Sink, name: &str, source: Option<&'p DataSource>) -> Option<&'p str> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::Filename(path)) if !path.is_empty() => Some(path),
        _ => sink.error_at(
            name,
            "must be a filename: keys do not travel with clusters and listeners",
        ),
    }
}

/// The oldest version that is spoken, where it is said. Everything else of `tls_params` is refused.
pub(super) fn min_version(sink: &mut Sink, params: &TlsParameters) -> Option<TlsVersion> {
    let unsupported = "is not supported: rustls has safe ones only";
    sink.refuse(
        "cipher_suites",
        !params.cipher_suites.is_empty(),
        unsupported,
    );
    sink.refuse("ecdh_curves", !params.ecdh_curves.is_empty(), unsupported);
    let algorithms = !params.signature_algorithms.is_empty();
    sink.refuse("signature_algorithms", algorithms, unsupported);
    let policies = !params.compliance_policies.is_empty();
    sink.refuse("compliance_policies", policies, "is not supported");
    match TlsProtocol::try_from(params.tls_maximum_protocol_version) {
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => {}
        _ => sink
            .error_at::<()>(
                "tls_maximum_protocol_version",
                "must be TLSv1_3 or TLS_AUTO: a newer version is never left out",
            )
            .unwrap_or_default(),
    }
    match TlsProtocol::try_from(params.tls_minimum_protocol_version) {
        Ok(TlsProtocol::TlsAuto) => None,
        Ok(TlsProtocol::TlSv12) => Some(TlsVersion::V1_2),
        Ok(TlsProtocol::TlSv13) => Some(TlsVersion::V1_3),
        _ => sink.error_at(
            "tls_minimum_protocol_version",
            "must be TLS_AUTO, TLSv1_2 or TLSv1_3: older ones are broken",
        ),
    }
}

/// A predicate over names of one kind.
pub(super) fn san_matcher(sink: &mut Sink, proto: &SubjectAltNameMatcher) -> Option<SanMatcher> {
    let san_type = match SanTypeProto::try_from(proto.san_type) {
        Ok(SanTypeProto::Email) => SanType::Email,
        Ok(SanTypeProto::Dns) => SanType::Dns,
        Ok(SanTypeProto::Uri) => SanType::Uri,
        Ok(SanTypeProto::IpAddress) => SanType::IpAddress,
        _ => return sink.error_at("san_type", "must be EMAIL, DNS, URI or IP_ADDRESS"),
    };
    sink.refuse("oid", !proto.oid.is_empty(), "is for OTHER_NAME alone");
    let Some(matcher) = &proto.matcher else {
        return sink.error_at("matcher", "is missing");
    };
    Some(SanMatcher {
        san_type: Some(san_type),
        matcher: sink.field("matcher", |sink| matcher::string(sink, matcher))?,
    })
}
