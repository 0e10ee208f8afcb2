//! Resources that come again as they were: most of a state-of-the-world response.
//!
//! Stage 3. Equal bytes have an equal value, so they are compared before they are decoded; what was made
//! of them goes on as if it had been decoded. The name is needed before: it is the first field of every
//! type. Where it is not, or where a wrapper says something of its own, decode decides.

use bytes::Bytes;

use super::{Config, Kind};

/// What is known of resources that were accepted.
pub(crate) trait Known {
    /// The last good value of a resource, if it was made of these bytes.
    fn known(&self, kind: Kind, name: &str, bytes: &[u8]) -> Option<Same>;
}

/// A value with what goes with it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Same {
    pub(crate) config: Config,
    pub(crate) raw: Bytes,
    pub(crate) ignored: Vec<String>,
}

/// Has no values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NothingKnown;

impl Known for NothingKnown {
    fn known(&self, _: Kind, _: &str, _: &[u8]) -> Option<Same> {
        None
    }
}

/// The text of field 1, if that is the first one. Only a hint: a later one would overrule it.
pub(super) fn first_name(bytes: &[u8]) -> Option<&str> {
    /// Field 1, length-delimited.
    const NAME: u8 = 0x0a;
    let (&key, mut rest) = bytes.split_first()?;
    if key != NAME {
        return None;
    }
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    let name = rest.get(..usize::try_from(length).ok()?)?;
    std::str::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    };
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
    use prost::Message;

    use super::*;

    #[test]
    fn the_name_is_the_first_field_of_every_type() {
        for name in ["a".to_owned(), "long".repeat(100)] {
            let all = [
                Cluster {
                    name: name.clone(),
                    ..Cluster::default()
                }
                .encode_to_vec(),
                ClusterLoadAssignment {
                    cluster_name: name.clone(),
                    ..ClusterLoadAssignment::default()
                }
                .encode_to_vec(),
                Listener {
                    name: name.clone(),
                    ..Listener::default()
                }
                .encode_to_vec(),
                RouteConfiguration {
                    name: name.clone(),
                    ..RouteConfiguration::default()
                }
                .encode_to_vec(),
                Secret {
                    name: name.clone(),
                    ..Secret::default()
                }
                .encode_to_vec(),
            ];
            for bytes in all {
                assert_eq!(first_name(&bytes), Some(&*name));
            }
        }
    }

    #[test]
    fn damaged_bytes_have_no_name() {
        for bytes in [
            &b""[..],
            b"\x0a",
            b"\x0a\x05abc",
            b"\x12\x01a",
            b"\x0a\x01\xff",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(first_name(bytes), None, "{bytes:?}");
        }
    }
}
