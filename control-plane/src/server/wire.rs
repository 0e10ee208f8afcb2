//! Responses, and how they become bytes.
//!
//! Each resource is encoded once and its bytes are shared by all streams: a response holds pointers
//! to them, and the codec copies them into the connection's buffer behind a small head. Protobuf
//! allows the parts of a message in any order, so that nobody can tell.

use std::{marker::PhantomData, sync::Arc};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse, Resource as ProtoResource, ResourceError,
        ResourceName,
    },
    google::rpc,
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, Decoder, EncodeBuf, Encoder},
};
use tonic_prost::ProstCodec;

use crate::cache::{Resource, ResourceType, Version};

/// Field number of `resources`, in both variants.
const RESOURCES: u32 = 2;
/// Field number of `resource` in a delta response's `Resource`.
const RESOURCE: u32 = 2;
/// gRPC's NOT_FOUND.
const NOT_FOUND: i32 = 5;
/// A stream's buffers begin with so much: an idle stream should cost little, and a large response
/// grows them.
const BUFFER: usize = 1024;
/// Bytes that are gathered before they are handed to the connection.
const YIELD_AT: usize = 32 * 1024;

/// What one response says.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(super) kind: ResourceType,
    pub(super) version: Version,
    pub(super) nonce: u64,
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) gone: Gone,
}

/// Names for which there is nothing, as each variant says so.
#[derive(Clone, Debug)]
pub(crate) enum Gone {
    /// State of the world.
    Errors(Vec<String>),
    /// Incremental.
    Removed(Vec<String>),
}

impl Response {
    /// Bytes of its resources.
    pub(super) fn resource_bytes(&self) -> usize {
        self.resources
            .iter()
            .map(|resource| resource.any.len())
            .sum()
    }

    /// Writes the message.
    pub(super) fn encode(&self, buffer: &mut impl bytes::BufMut) {
        match &self.gone {
            Gone::Errors(missing) => {
                let errors = missing.iter().map(|name| not_found(self.kind, name));
                let head = DiscoveryResponse {
                    version_info: self.version.to_string(),
                    type_url: self.kind.url(),
                    nonce: self.nonce.to_string(),
                    resource_errors: errors.collect(),
                    ..DiscoveryResponse::default()
                };
                put(&head, buffer);
                for resource in &self.resources {
                    encode_key(RESOURCES, WireType::LengthDelimited, buffer);
                    encode_varint(resource.any.len() as u64, buffer);
                    buffer.put_slice(&resource.any);
                }
            }
            Gone::Removed(removed) => {
                let head = DeltaDiscoveryResponse {
                    system_version_info: self.version.to_string(),
                    type_url: self.kind.url(),
                    nonce: self.nonce.to_string(),
                    removed_resources: removed.clone(),
                    ..DeltaDiscoveryResponse::default()
                };
                put(&head, buffer);
                for resource in &self.resources {
                    put_named(resource, buffer);
                }
            }
        }
    }
}

fn put(message: &impl Message, buffer: &mut impl bytes::BufMut) {
    let done = message.encode(buffer);
    done.expect("a buffer that grows holds every message");
}

/// A `Resource` of a delta response, around the shared bytes.
fn put_named(resource: &Resource, buffer: &mut impl bytes::BufMut) {
    let head = ProtoResource {
        name: resource.name.clone(),
        version: resource.version.to_string(),
        ..ProtoResource::default()
    };
    let length = resource.any.len();
    let inside = key_len(RESOURCE) + encoded_len_varint(length as u64) + length;
    encode_key(RESOURCES, WireType::LengthDelimited, buffer);
    encode_varint((head.encoded_len() + inside) as u64, buffer);
    put(&head, buffer);
    encode_key(RESOURCE, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
    buffer.put_slice(&resource.any);
}

/// Says that there is no such resource, to clients that understand it (xRFC TP3); the others have
/// their timer.
fn not_found(kind: ResourceType, name: &str) -> ResourceError {
    let message = format!(
        "the control plane has no {} resource {name:?}",
        kind.as_str()
    );
    ResourceError {
        resource_name: Some(ResourceName {
            name: name.to_owned(),
            ..ResourceName::default()
        }),
        error_detail: Some(rpc::Status {
            code: NOT_FOUND,
            message,
            details: Vec::new(),
        }),
    }
}

/// Requests are decoded as usual, responses are written as above.
pub(super) struct SharedBytes<Q>(PhantomData<Q>);

impl<Q> Default for SharedBytes<Q> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + Default + Send + 'static> Codec for SharedBytes<Q> {
    type Encode = Response;
    type Decode = Q;
    type Encoder = ResponseEncoder;
    type Decoder = RequestDecoder<Q>;

    fn encoder(&mut self) -> ResponseEncoder {
        ResponseEncoder
    }

    fn decoder(&mut self) -> RequestDecoder<Q> {
        let settings = BufferSettings::new(BUFFER, YIELD_AT);
        RequestDecoder(ProstCodec::<Q, Q>::raw_decoder(settings))
    }
}

/// See [`SharedBytes`].
pub(super) struct ResponseEncoder;

impl Encoder for ResponseEncoder {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, item: Response, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_AT)
    }
}

/// See [`SharedBytes`].
pub(super) struct RequestDecoder<Q>(tonic_prost::ProstDecoder<Q>);

impl<Q: Message + Default> Decoder for RequestDecoder<Q> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
