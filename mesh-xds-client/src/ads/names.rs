//! A state-of-the-world request whose names are in protobuf already.
//!
//! Stage 2. Each answer repeats all names of its type: with ten thousand endpoints of which a hundred
//! change a second, a million names a second. They are encoded when they change, not when they are sent.

use std::fmt;

use bytes::{Buf, BufMut, Bytes};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, encode_key, encode_varint},
};

/// The field `resource_names` of a `DiscoveryRequest`.
const RESOURCE_NAMES: u32 = 3;

/// Names as they go over the wire. Cheap to clone.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct EncodedNames(Bytes);

impl<'n> FromIterator<&'n str> for EncodedNames {
    fn from_iter<I: IntoIterator<Item = &'n str>>(names: I) -> Self {
        let mut encoded = Vec::new();
        for name in names {
            encode_key(RESOURCE_NAMES, WireType::LengthDelimited, &mut encoded);
            encode_varint(name.len() as u64, &mut encoded);
            encoded.extend_from_slice(name.as_bytes());
        }
        encoded.shrink_to_fit();
        Self(encoded.into())
    }
}

impl fmt::Debug for EncodedNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = DiscoveryRequest::decode(&*self.0).map(|request| request.resource_names);
        f.debug_tuple("EncodedNames").field(&names).finish()
    }
}

/// A `DiscoveryRequest`: the same bytes, but for the order of its fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SotwRequest {
    /// All but the names.
    pub(super) head: DiscoveryRequest,
    pub(super) names: EncodedNames,
}

impl Message for SotwRequest {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.head.encode_raw(buf);
        buf.put_slice(&self.names.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.head.merge_field(tag, wire_type, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.names.0.len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
impl SotwRequest {
    /// As a server reads it.
    pub(super) fn read(&self) -> DiscoveryRequest {
        DiscoveryRequest::decode(&*self.encode_to_vec()).expect("a request")
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::Node;

    use super::*;

    #[test]
    fn a_server_reads_what_it_would_read_of_the_whole_message() {
        let node = Node {
            id: "me".to_owned(),
            ..Node::default()
        };
        let names = [String::new(), "a".to_owned(), "b".repeat(300)];
        for count in 0..=names.len() {
            let head = DiscoveryRequest {
                version_info: "1".to_owned(),
                node: Some(node.clone()),
                response_nonce: "n".to_owned(),
                ..DiscoveryRequest::default()
            };
            let request = SotwRequest {
                head: head.clone(),
                names: names[..count].iter().map(String::as_str).collect(),
            };
            let whole = DiscoveryRequest {
                resource_names: names[..count].to_vec(),
                ..head
            };
            assert_eq!(request.read(), whole);
            assert_eq!(request.encoded_len(), whole.encoded_len());
        }
    }
}
