//! Where backends' load reports come from: trailers, read by the xDS client's crate, which knows their
//! protobuf. Without the feature `xds` nobody asks for them.

#[cfg(feature = "xds")]
pub(crate) use mesh_xds_client::orca::load_report;

#[cfg(not(feature = "xds"))]
pub(crate) fn load_report(_: &http::HeaderMap) -> Option<mesh_core::observed::LoadReport> {
    None
}
