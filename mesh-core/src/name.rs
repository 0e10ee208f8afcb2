//! Names of resources, as cheap clonable newtypes.
//!
//! Stage: shared by every stage. It does not parse or normalise names.

use std::{borrow::Borrow, fmt, sync::Arc};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for Arc<str> {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self(name.into())
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name! {
    /// Name of a [`Listener`](crate::config::Listener) (xDS LDS): what a client dials.
    ListenerName
}
name! {
    /// Name of a [`RouteConfig`](crate::config::RouteConfig) (xDS RDS).
    RouteConfigName
}
name! {
    /// Name of a [`Cluster`](crate::config::Cluster) (xDS CDS).
    ClusterName
}
name! {
    /// Name of a [`ClusterEndpoints`](crate::config::ClusterEndpoints) (xDS EDS `cluster_name`).
    EndpointsName
}
name! {
    /// Name of a secret (xDS SDS), for example `ROOTCA`.
    SecretName
}
