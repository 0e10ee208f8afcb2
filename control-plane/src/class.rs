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

/// A release of a client: major and minor number.
pub type Release = (u32, u32);

/// What not every release understands, with what it would do instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// mTLS (gRFC A29): the transport socket is ignored, and plaintext is spoken.
    Mtls,
    /// TLS with other roots than the mesh's: the cluster is refused, or (gRFC A82) needs a variable in
    /// the client's environment.
    OutsideTls,
    /// Clusters of several hosts that the client looks up: the cluster is refused (gRFC A37).
    ManyHosts,
    /// Clusters whose requests name their addresses: the cluster is refused.
    OriginalDst,
    /// Authorisation in servers (gRFC A41): the filter is refused.
    Authorization,
    /// The least-request balancer (gRFC A48): the cluster is refused.
    LeastRequest,
    /// The ring-hash balancer (gRFC A42): the cluster is refused.
    RingHash,
    /// Round robin by weights that the client measures (gRFC A58): the cluster is refused.
    ClientSideWeightedRoundRobin,
    /// One endpoint for all (gRFC A62): the cluster is refused.
    PickFirst,
}

impl Feature {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mTLS",
            Self::OutsideTls => "TLS to servers outside the mesh",
            Self::ManyHosts => "clusters of several DNS names",
            Self::OriginalDst => "addresses that requests name",
            Self::Authorization => "authorisation",
            Self::LeastRequest => "least request",
            Self::RingHash => "ring hash",
            Self::ClientSideWeightedRoundRobin => "client-side weighted round robin",
            Self::PickFirst => "pick first",
        }
    }
}

impl ClientClass {
    /// The first release with a feature: `Some((0, 0))` for all of them, `None` for none (grpc/grpc,
    /// doc/grpc_xds_features.md).
    pub fn first_with(self, feature: Feature) -> Option<Release> {
        use Feature::{
            Authorization, ClientSideWeightedRoundRobin, LeastRequest, ManyHosts, Mtls,
            OriginalDst, OutsideTls, PickFirst, RingHash,
        };
        match (self, feature) {
            (Self::Rust | Self::Envoy, _) => Some((0, 0)),
            (Self::GrpcNode, RingHash) => Some((1, 10)),
            (Self::GrpcCpp | Self::GrpcJava, RingHash) => Some((1, 40)),
            (Self::GrpcGo, RingHash) => Some((1, 41)),
            (Self::GrpcCpp, ClientSideWeightedRoundRobin) => Some((1, 55)),
            (Self::GrpcJava, ClientSideWeightedRoundRobin) => Some((1, 54)),
            (Self::GrpcGo, ClientSideWeightedRoundRobin | PickFirst) => Some((1, 56)),
            (Self::GrpcCpp | Self::GrpcJava, PickFirst) => Some((1, 58)),
            (Self::GrpcCpp | Self::GrpcJava | Self::GrpcGo, Mtls) => Some((1, 41)),
            (Self::GrpcCpp, Authorization) => Some((1, 51)),
            (Self::GrpcJava | Self::GrpcGo, Authorization) => Some((1, 42)),
            (Self::GrpcJava, LeastRequest) => Some((1, 48)),
            (_, LeastRequest | OutsideTls | ManyHosts | OriginalDst) | (Self::GrpcNode, _) => None,
        }
    }

    /// Whether a client has a feature. One that does not say its release is taken for a new one.
    pub fn has(self, feature: Feature, release: Option<Release>) -> bool {
        let first = self.first_with(feature);
        first.is_some_and(|first| release.is_none_or(|release| release >= first))
    }

    /// The release in what a node says of itself. The C-core counts its own releases, and names
    /// that of the language behind: `C-core 58.0.0 Python 1.85.1`.
    pub fn release(self, user_agent_version: &str) -> Option<Release> {
        let of_core = usize::from(user_agent_version.starts_with("C-core")) * 2;
        let mut words = user_agent_version.split(' ').skip(of_core);
        words.find_map(|word| {
            let mut numbers = word.trim_start_matches('v').split('.');
            let mut number = || numbers.next()?.parse().ok();
            Some((number()?, number()?))
        })
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
    fn the_release_of_a_client_decides_what_it_has() {
        use Feature::{Authorization, LeastRequest, Mtls};
        for (class, version, release) in [
            (ClientClass::GrpcGo, "1.40.0", Some((1, 40))),
            (ClientClass::GrpcGo, "1.72.0-dev", Some((1, 72))),
            (
                ClientClass::GrpcCpp,
                "C-core 58.0.0 Python 1.85.1",
                Some((1, 85)),
            ),
            (ClientClass::GrpcCpp, "C-core 19.0.0", None),
            (ClientClass::GrpcNode, "1.12", Some((1, 12))),
            (ClientClass::GrpcJava, "", None),
            (ClientClass::GrpcJava, "unknown", None),
        ] {
            assert_eq!(class.release(version), release, "{version}");
        }
        for (class, feature, old, new) in [
            (ClientClass::GrpcGo, Mtls, (1, 40), (1, 41)),
            (ClientClass::GrpcCpp, Authorization, (1, 50), (1, 51)),
            (ClientClass::GrpcJava, Authorization, (1, 41), (1, 42)),
            (ClientClass::GrpcJava, LeastRequest, (1, 47), (1, 48)),
            (ClientClass::GrpcNode, Feature::RingHash, (1, 9), (1, 10)),
        ] {
            assert!(!class.has(feature, Some(old)), "{class} {old:?}");
            assert!(class.has(feature, Some(new)), "{class} {new:?}");
            assert!(class.has(feature, None), "{class} that does not say");
        }
        assert!(!ClientClass::GrpcNode.has(Mtls, Some((9, 9))));
        assert!(!ClientClass::GrpcGo.has(LeastRequest, None));
        assert!(ClientClass::Envoy.has(LeastRequest, Some((1, 20))));
    }

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
