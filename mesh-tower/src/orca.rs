//! The bytes of backends' load reports: those of trailers and those out of band, as the xDS client's crate
//! knows their protobuf. Without the feature `xds` nobody asks for them.

#[cfg(feature = "xds")]
pub use mesh_xds_client::orca::{
    ORCA_TRAILER, ORCA_TRAILER_MAX, STREAM_CORE_METRICS, decode_load_report, decode_report_request,
    encode_load_report, encode_report_request, load_report, load_report_trailer,
};

#[cfg(not(feature = "xds"))]
pub(crate) use without::*;

#[cfg(not(feature = "xds"))]
mod without {
    use mesh_core::observed::LoadReport;

    pub(crate) const ORCA_TRAILER_MAX: usize = 0;
    pub(crate) const STREAM_CORE_METRICS: &str = "/";

    pub(crate) fn load_report(_: &http::HeaderMap) -> Option<LoadReport> {
        None
    }

    pub(crate) fn decode_load_report(_: &[u8]) -> Option<LoadReport> {
        None
    }

    pub(crate) fn encode_report_request(_: std::time::Duration) -> Vec<u8> {
        Vec::new()
    }
}
