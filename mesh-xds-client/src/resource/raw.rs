//! A resource as it comes: bare, wrapped or from an incremental response.
//!
//! Stage 3. Takes the wrapper off; what is inside is decoded by the module of its type. A named
//! wrapper without content is a heartbeat (xDS time to live): it only says that the resource lives.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::service::discovery::v3::Resource as WrapperProto, google::protobuf::Any,
};
use mesh_core::ConfigError;
use prost::{Message, Name};

use super::{Kind, canonical, unnamed};

/// One resource of a response.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    /// As the wrapper says.
    pub(super) name: Option<String>,
    /// Other names it was asked for by.
    pub(super) aliases: Vec<String>,
    pub(super) version: Arc<str>,
    /// How long it may be used.
    pub(super) ttl: Option<Duration>,
    pub(super) body: Result<Option<Any>, ConfigError>,
}

impl Raw {
    /// From a state-of-the-world response of `version`.
    pub(crate) fn from_any(kind: Kind, any: Any, version: &Arc<str>) -> Self {
        let bare = |body| Self {
            name: None,
            aliases: Vec::new(),
            version: Arc::clone(version),
            ttl: None,
            body,
        };
        if any.type_url != WrapperProto::type_url() {
            return bare(Ok(Some(any)));
        }
        match WrapperProto::decode(&*any.value) {
            Ok(wrapper) => Self {
                version: Arc::clone(version),
                ..Self::from_wrapper(kind, wrapper)
            },
            Err(e) => bare(Err(unnamed(
                kind,
                format!("the wrapper cannot be parsed: {e}"),
            ))),
        }
    }

    /// From an incremental response, or a wrapper in the other one.
    pub(crate) fn from_wrapper(kind: Kind, wrapper: WrapperProto) -> Self {
        let name = Some(wrapper.name)
            .filter(|name| !name.is_empty())
            .or_else(|| wrapper.resource_name.map(|name| name.name))
            .filter(|name| !name.is_empty())
            .map(canonical);
        let ttl = wrapper.ttl.map(|ttl| {
            let seconds = u64::try_from(ttl.seconds).ok()?;
            let nanos = u32::try_from(ttl.nanos).ok()?;
            (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
        });
        let body = match (wrapper.resource, &name) {
            _ if ttl == Some(None) => Err(unnamed(kind, "its ttl is negative")),
            (None, None) => Err(unnamed(kind, "the wrapper holds no resource")),
            (body, _) => Ok(body),
        };
        Self {
            name,
            aliases: wrapper.aliases.into_iter().map(canonical).collect(),
            version: wrapper.version.into(),
            ttl: ttl.flatten(),
            body,
        }
    }

    /// A resource from our own storage.
    pub(crate) fn stored(kind: Kind, name: String, version: Arc<str>, bytes: Vec<u8>) -> Self {
        Self {
            name: Some(name),
            aliases: Vec::new(),
            version,
            ttl: None,
            body: Ok(Some(Any {
                type_url: kind.type_url().into(),
                value: bytes,
            })),
        }
    }
}
