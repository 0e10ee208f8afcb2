//! Kinds of clients, by what part of xDS they understand.
//!
//! Only tells them apart. What a class is sent is `encode`'s to decide, and what it cannot honour
//! is in docs/config-fields.md.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// What kind of client asks; each understands another part of xDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientClass {
    /// Our library: everything the mesh can say; certificates from a provider, trust over SDS.
    Rust,
    /// gRPC's C-core, under C++, Python, Ruby and C#; also clients that nobody knows.
    GrpcCpp,
    /// gRPC for Java: the only gRPC with least request.
    GrpcJava,
    /// gRPC for Go.
    GrpcGo,
    /// gRPC for Node: no authorisation in servers.
    GrpcNode,
    /// Envoy: everything over SDS, one outbound listener.
    Envoy,
}

impl ClientClass {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Rust,
        Self::GrpcCpp,
        Self::GrpcJava,
        Self::GrpcGo,
        Self::GrpcNode,
        Self::Envoy,
    ];

    /// From what a node says of itself. Every gRPC says in its features that it does no
    /// overprovisioning; a client that nobody knows gets what the C-core gets.
    pub fn of(user_agent_name: &str, client_features: &[String]) -> Self {
        let name = user_agent_name.to_ascii_lowercase();
        let is_grpc = name.contains("grpc")
            || client_features
                .iter()
                .any(|feature| feature == "envoy.lb.does_not_support_overprovisioning");
        match name.as_str() {
            "mesh-rs" => Self::Rust,
            name if name.starts_with("envoy") && !name.contains("grpc") => Self::Envoy,
            name if is_grpc && name.contains("java") => Self::GrpcJava,
            name if is_grpc && name.contains("node") => Self::GrpcNode,
            name if is_grpc && name.split([' ', '-', '/']).any(|word| word == "go") => Self::GrpcGo,
            _ => Self::GrpcCpp,
        }
    }

    /// For logs, metrics and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::GrpcCpp => "grpc-cpp",
            Self::GrpcJava => "grpc-java",
            Self::GrpcGo => "grpc-go",
            Self::GrpcNode => "grpc-node",
            Self::Envoy => "envoy",
        }
    }

    /// Whether it is gRPC, in any language.
    pub fn is_grpc(self) -> bool {
        !matches!(self, Self::Rust | Self::Envoy)
    }
}

impl fmt::Display for ClientClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ClientClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|class| class.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("{text:?} is not a client class: write one of {known}")
        })
    }
}

/// A set of classes.
pub type Classes = BTreeSet<ClientClass>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_known_by_its_user_agent() {
        let feature = ["envoy.lb.does_not_support_overprovisioning".to_owned()];
        for (name, class) in [
            ("mesh-rs", ClientClass::Rust),
            ("gRPC C-core linux", ClientClass::GrpcCpp),
            ("gRPC C-core", ClientClass::GrpcCpp),
            ("gRPC Java", ClientClass::GrpcJava),
            ("gRPC Go", ClientClass::GrpcGo),
            ("gRPC Node Pure JS", ClientClass::GrpcNode),
            ("grpc-go/1.71", ClientClass::GrpcGo),
            ("envoy", ClientClass::Envoy),
            ("somebody", ClientClass::GrpcCpp),
            ("", ClientClass::GrpcCpp),
        ] {
            assert_eq!(ClientClass::of(name, &feature), class, "{name}");
            assert_eq!(class.as_str().parse(), Ok(class));
        }
        assert!(
            "grpc"
                .parse::<ClientClass>()
                .unwrap_err()
                .contains("grpc-go")
        );
    }
}
