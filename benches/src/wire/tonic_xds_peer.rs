//! tonic-xds as a user builds it, driven by our control plane.

use tonic::Status;
use tonic_xds::{BootstrapConfig, XdsChannelBuilder, XdsChannelConfig, XdsUri};
use tower::ServiceExt;

use super::{calls::EchoChannel, world::World};

/// Its channel with an error that has a name: with a boxed one a generated client cannot be used
/// in a spawned task.
pub(super) fn channel(world: &World) -> anyhow::Result<impl EchoChannel> {
    let bootstrap = BootstrapConfig::from_json(&world.bootstrap("client")?)?;
    let target = XdsUri::parse("xds:///echo.default:8080")?;
    let config = XdsChannelConfig::new(target).with_bootstrap(bootstrap);
    let channel = XdsChannelBuilder::new(config).build_grpc_channel()?;
    Ok(channel.map_err(Status::from_error))
}
