//! From class-neutral config to xDS protobuf.
//!
//! One file per resource type. What differs between client classes is decided here and nowhere
//! else: certificates by provider instance or by SDS, timeouts, and what a class cannot do. It does
//! not choose which resources a client gets.

mod action;
mod balance;
mod cluster;
mod connection;
mod endpoint;
mod ext_authz;
mod extension;
mod filter;
mod headers;
mod health_check;
mod hedge;
mod http_limits;
mod internal_redirect;
mod jwt;
mod listener;
mod matcher;
mod own_policy;
mod rbac;
mod retry;
mod route;
mod session;
mod subset;
#[cfg(test)]
mod tests;
mod tls;

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::core::v3::{
        Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address,
        config_source, socket_address,
    },
    google::protobuf::{self, Any},
};
use prost::{Message, Name};

pub use crate::class::{ClientClass, Feature};
pub use cluster::cluster;
pub use endpoint::{empty_endpoints, endpoints};
pub use listener::{envoy_outbound_listener, listener};
pub use route::route_config;
pub use tls::secret;

/// `message` with its type URL.
pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// "From the stream you are on."
fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
            AggregatedConfigSource {},
        )),
        ..ConfigSource::default()
    }
}

fn duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn uint32(value: u32) -> protobuf::UInt32Value {
    protobuf::UInt32Value { value }
}

fn socket(address: std::net::SocketAddr) -> Address {
    host_address(&address.ip().to_string(), address.port())
}

/// An address, or a name that stands for some.
fn host_address(host: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    }
}
