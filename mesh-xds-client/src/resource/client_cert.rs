//! `forward_client_cert_details` and `set_current_client_cert_details` to [`ForwardClientCert`].
//!
//! Stage 3. Servers alone: a client has no caller that it could tell of.

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager,
    http_connection_manager::{ForwardClientCertDetails, ForwardClientCertFormat},
};
use mesh_core::config::{ClientCertDetails, ForwardClientCert, ForwardMode};

use super::path::Sink;

pub(super) fn decode(sink: &mut Sink, proto: &HttpConnectionManager) -> Option<ForwardClientCert> {
    use ForwardClientCertDetails as Mode;
    let mode = match Mode::try_from(proto.forward_client_cert_details) {
        Ok(Mode::Sanitize) => ForwardMode::Sanitize,
        Ok(Mode::ForwardOnly) => ForwardMode::ForwardOnly,
        Ok(Mode::AppendForward) => ForwardMode::AppendForward,
        Ok(Mode::SanitizeSet) => ForwardMode::SanitizeSet,
        Ok(Mode::AlwaysForwardOnly) => ForwardMode::AlwaysForwardOnly,
        Err(_) => {
            let reason = "must be SANITIZE, FORWARD_ONLY, APPEND_FORWARD, SANITIZE_SET or \
                          ALWAYS_FORWARD_ONLY";
            return sink.error_at("forward_client_cert_details", reason);
        }
    };
    let details = proto.set_current_client_cert_details.as_ref();
    let is_text =
        details.is_none_or(|details| details.format == ForwardClientCertFormat::Text as i32);
    sink.refuse(
        "set_current_client_cert_details.format",
        !is_text,
        "is not supported; TEXT is",
    );
    let details = details.map_or_else(ClientCertDetails::default, |details| ClientCertDetails {
        subject: details.subject.as_ref().is_some_and(|value| value.value),
        cert: details.cert,
        chain: details.chain,
        dns: details.dns,
        uri: details.uri,
        issuer: details.issuer,
    });
    Some(ForwardClientCert { mode, details })
}
