//! Well-known protobuf values: durations, percentages, `Any`, config sources.
//!
//! Stage 3. Shared by the decoders of all types.

use std::{net::IpAddr, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, ConfigSource, HealthStatus as HealthProto, address,
            config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{Any, Duration as DurationProto, UInt32Value},
};
use mesh_core::config::{Fraction, HealthStatus};
use prost::{Message, Name};

use super::path::Sink;

/// Longest duration that is understood: 10,000 years, protobuf's own bound.
const SECONDS_MAX: i64 = 315_576_000_000;

/// A duration; an absent field is `Some(None)`.
pub(super) fn duration(
    sink: &mut Sink,
    name: &str,
    value: Option<&DurationProto>,
) -> Option<Duration> {
    let value = value?;
    let nanos = u32::try_from(value.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000);
    let seconds = u64::try_from(value.seconds)
        .ok()
        .filter(|_| value.seconds <= SECONDS_MAX);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Some(Duration::new(seconds, nanos)),
        _ => sink.error_at(name, "is not a duration of zero or more"),
    }
}

/// A declared health, or why it is none.
pub(super) fn health_status(value: i32) -> Result<HealthStatus, String> {
    Ok(match HealthProto::try_from(value) {
        Ok(HealthProto::Unknown) => HealthStatus::Unknown,
        Ok(HealthProto::Healthy) => HealthStatus::Healthy,
        Ok(HealthProto::Unhealthy) => HealthStatus::Unhealthy,
        Ok(HealthProto::Draining) => HealthStatus::Draining,
        Ok(HealthProto::Timeout) => HealthStatus::Timeout,
        Ok(HealthProto::Degraded) => HealthStatus::Degraded,
        Err(_) => return Err(format!("{value} is not a known health status")),
    })
}

/// A wrapped integer.
pub(super) fn uint32(value: Option<&UInt32Value>) -> Option<u32> {
    value.map(|value| value.value)
}

/// A share of traffic.
pub(super) fn fraction(sink: &mut Sink, value: &FractionalPercent) -> Option<Fraction> {
    let denominator = match DenominatorType::try_from(value.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => {
            return sink.error_at(
                "denominator",
                format!(
                    "{} is not one of HUNDRED, TEN_THOUSAND, MILLION",
                    value.denominator
                ),
            );
        }
    };
    Fraction::new(value.numerator, denominator)
}

/// Whether `any` holds a `T`.
pub(super) fn is<T: Name>(any: &Any) -> bool {
    any.type_url == T::type_url()
}

/// Parses an `Any` that is known to hold a `T`.
pub(super) fn parse<T: Message + Default>(sink: &mut Sink, any: &Any) -> Option<T> {
    match T::decode(&*any.value) {
        Ok(value) => Some(value),
        Err(e) => sink.error(format!("cannot be parsed as {}: {e}", any.type_url)),
    }
}

/// Refuses a config source other than this stream.
pub(super) fn same_stream(sink: &mut Sink, name: &str, source: Option<&ConfigSource>) {
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {}
        _ => {
            sink.error_at::<()>(name, "must be ads or self: resources come over one stream");
        }
    }
}

/// Of an address, the number of its port.
pub(super) const PORT: &str = "socket_address.port_value";

/// An IP address and port.
pub(super) fn socket_address(sink: &mut Sink, address: Option<&Address>) -> Option<(IpAddr, u16)> {
    let socket = address.and_then(|address| match &address.address {
        Some(address::Address::SocketAddress(socket)) => Some(socket),
        _ => None,
    });
    let parts = socket.map(|socket| match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => (&*socket.address, Some(port)),
        _ => (&*socket.address, None),
    });
    ip_and_port(parts).map_or_else(|wrong| wrong.tell(sink), Some)
}

/// What is wrong with an address.
#[derive(Debug)]
pub(super) struct WrongAddress {
    /// The field of it; empty for all of it.
    pub(super) place: &'static str,
    pub(super) reason: String,
}

impl WrongAddress {
    pub(super) fn new(place: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { place, reason }
    }

    /// Records it where `sink` is; returns `None` for use as a decode result.
    pub(super) fn tell<T>(self, sink: &mut Sink) -> Option<T> {
        match self.place {
            "" => sink.error(self.reason),
            place => sink.error_at(place, self.reason),
        }
    }
}

/// The same of the address and the number of the port in a `socket_address`. Needs no sink while all is
/// well.
pub(super) fn ip_and_port(
    socket: Option<(&str, Option<u32>)>,
) -> Result<(IpAddr, u16), WrongAddress> {
    let Some((address, port)) = socket else {
        return Err(WrongAddress::new("", "must be a socket_address"));
    };
    let Ok(ip) = address.parse() else {
        let reason = format!("{address:?} is not an IP address; names are not resolved");
        return Err(WrongAddress::new("socket_address.address", reason));
    };
    match port.and_then(|port| u16::try_from(port).ok()) {
        Some(port) => Ok((ip, port)),
        None => Err(WrongAddress::new(PORT, "must be 0 to 65535")),
    }
}
