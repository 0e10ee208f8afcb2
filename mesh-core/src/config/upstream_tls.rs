//! TLS towards a cluster's endpoints, as declared (gRFC A29, A82, A101; Envoy `UpstreamTlsContext`).
//!
//! What cannot be applied fails the connection; it never falls back to plaintext.

use super::{CertificateSource, LbMetadata, StringMatcher, StringPattern, TrustSource};
use crate::name::SecretName;

/// TLS towards a cluster's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Our certificate; `None` sends none.
    pub identity: Option<CertificateSource>,
    /// Whom to trust.
    pub roots: TrustSource,
    /// One of the peer's subject alternative names must match one of these; empty accepts every
    /// certificate that chains to the roots.
    pub subject_alt_names: Vec<SanMatcher>,
    /// Server name indication; `None` sends none.
    pub sni: Option<String>,
    /// The endpoint's host name, where it has one, is sent instead of [`sni`](Self::sni). Default
    /// `false`.
    pub auto_host_sni: bool,
    /// The name that is sent must be one of the peer's, whatever
    /// [`subject_alt_names`](Self::subject_alt_names) say; where none is sent, those hold. Default
    /// `false`.
    pub auto_sni_san_validation: bool,
    /// The oldest version that is spoken. Default [`TlsVersion::oldest`] of the roots.
    pub min_version: TlsVersion,
}

impl UpstreamTls {
    /// TLS that trusts `roots`, and all else by default.
    pub fn new(roots: TrustSource) -> Self {
        Self {
            identity: None,
            min_version: TlsVersion::oldest(&roots),
            roots,
            subject_alt_names: Vec::new(),
            sni: None,
            auto_host_sni: false,
            auto_sni_san_validation: false,
        }
    }

    /// The name that is sent to an endpoint, which is called `hostname` and perhaps a port.
    pub fn server_name<'n>(&'n self, hostname: Option<&'n str>) -> Option<&'n str> {
        let of_host = hostname.filter(|_| self.auto_host_sni).map(without_port);
        of_host
            .filter(|name| !name.is_empty())
            .or(self.sni.as_deref())
    }

    /// Whether the peer's names are compared with anything at every endpoint, whatever its host name.
    pub fn checks_names(&self) -> bool {
        let has_name = self.auto_host_sni || self.sni.is_some();
        !self.subject_alt_names.is_empty() || (self.auto_sni_san_validation && has_name)
    }

    /// Whether the process's own identity in the mesh is needed for it.
    pub fn needs_identity(&self) -> bool {
        self.roots.is_of_mesh()
            || self
                .identity
                .as_ref()
                .is_some_and(CertificateSource::is_own)
    }

    /// Names of the secrets that are to be fetched for it.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let certificate = self.identity.as_ref().and_then(CertificateSource::secret);
        certificate.into_iter().chain(self.roots.secret())
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // An IPv6 address has colons of its own.
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => host,
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    V1_2,
    /// RFC 8446.
    V1_3,
}

impl TlsVersion {
    /// The oldest version for peers that `roots` vouch for: members of the mesh, whom its own roots
    /// vouch for, all speak TLS 1.3; the world outside has servers that stop at 1.2.
    pub fn oldest(roots: &TrustSource) -> Self {
        match roots.is_of_mesh() {
            true => Self::V1_3,
            false => Self::V1_2,
        }
    }
}

/// A kind of subject alternative name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SanType {
    /// An e-mail address.
    Email,
    /// A DNS name.
    Dns,
    /// A URI.
    Uri,
    /// An address, as text in the form of RFC 5952.
    IpAddress,
}

/// A predicate over a subject alternative name (Envoy `SubjectAltNameMatcher`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SanMatcher {
    /// Names of this kind only; `None` is any (the deprecated `match_subject_alt_names`).
    pub san_type: Option<SanType>,
    /// The predicate.
    pub matcher: StringMatcher,
}

impl SanMatcher {
    /// Names of any kind that are exactly `name`.
    pub fn exact(name: impl Into<String>) -> Self {
        StringMatcher::exact(name).into()
    }

    /// Whether a name matches. An exact matcher also meets a wildcard DNS name, which stands for one
    /// label; DNS names are compared without ASCII case (gRFC A29).
    pub fn is_match(&self, san_type: SanType, name: &str) -> bool {
        if self.san_type.is_some_and(|wanted| wanted != san_type) {
            return false;
        }
        match &self.matcher.pattern {
            StringPattern::Exact(expected) if san_type == SanType::Dns => {
                is_same_host(expected, name)
            }
            _ => self.matcher.is_match(name),
        }
    }
}

impl From<StringMatcher> for SanMatcher {
    fn from(matcher: StringMatcher) -> Self {
        Self {
            san_type: None,
            matcher,
        }
    }
}

/// Whether a DNS name of a certificate, perhaps with a wildcard, is that of `host`.
fn is_same_host(host: &str, presented: &str) -> bool {
    if host.eq_ignore_ascii_case(presented) {
        return true;
    }
    let parent = presented.strip_prefix("*.");
    let Some(parent) = parent.filter(|parent| !parent.is_empty()) else {
        return false;
    };
    host.split_once('.')
        .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
}

/// How endpoints with certain labels are connected to (Envoy `Cluster.TransportSocketMatch`): Istio
/// has those of a cluster that take mTLS beside those that do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketMatch {
    /// For people.
    pub name: String,
    /// Labels that the endpoint has
    /// ([`EndpointDetails::socket_labels`](super::EndpointDetails::socket_labels)); none match all.
    pub labels: LbMetadata,
    /// TLS; `None` is plaintext.
    pub tls: Option<UpstreamTls>,
}

impl SocketMatch {
    /// Whether an endpoint with `labels` is meant.
    pub fn is_match(&self, labels: Option<&LbMetadata>) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_by_their_kind() {
        let exact = |name: &str| SanMatcher::exact(name);
        let prefix = StringPattern::Prefix("spiffe://td/".into());
        let prefix = SanMatcher::from(StringMatcher::new(prefix).expect("set"));
        let of = |san_type, name: &str| SanMatcher {
            san_type: Some(san_type),
            ..exact(name)
        };
        use SanType::{Dns, Email, IpAddress, Uri};
        for (matcher, (san_type, name), expected) in [
            (exact("spiffe://td/a"), (Uri, "spiffe://td/a"), true),
            (exact("spiffe://td/a"), (Uri, "spiffe://td/b"), false),
            (exact("spiffe://td/A"), (Uri, "spiffe://td/a"), false),
            (prefix.clone(), (Uri, "spiffe://td/b"), true),
            (prefix, (Uri, "spiffe://other/b"), false),
            (exact("a.example"), (Dns, "A.example"), true),
            (exact("a.example"), (Dns, "*.example"), true),
            (exact("a.b.example"), (Dns, "*.example"), false),
            (exact("example"), (Dns, "*.example"), false),
            (exact(".example"), (Dns, "*.example"), false),
            (exact("a.example"), (Uri, "*.example"), false),
            (exact("a."), (Dns, "*."), false),
            (of(Dns, "a.example"), (Dns, "*.example"), true),
            (of(Dns, "a.example"), (Uri, "a.example"), false),
            (of(Uri, "a.example"), (Dns, "a.example"), false),
            (of(Email, "a@b.example"), (Email, "a@b.example"), true),
            (of(IpAddress, "10.0.0.1"), (IpAddress, "10.0.0.1"), true),
            (of(IpAddress, "10.0.0.1"), (Dns, "10.0.0.1"), false),
        ] {
            let is_match = matcher.is_match(san_type, name);
            assert_eq!(is_match, expected, "{matcher:?} {san_type:?} {name:?}");
        }
    }

    #[test]
    fn the_name_that_is_sent_is_the_hosts_before_the_declared_one() {
        let mut tls = UpstreamTls::new(TrustSource::System);
        assert_eq!(
            tls.server_name(Some("a.example")),
            None,
            "nothing asks for it"
        );
        tls.sni = Some("sni.example".into());
        assert_eq!(tls.server_name(Some("a.example")), Some("sni.example"));
        tls.auto_host_sni = true;
        for (host, expected) in [
            (Some("a.example"), "a.example"),
            (Some("a.example:443"), "a.example"),
            (Some("fd00::1"), "fd00::1"),
            (Some(""), "sni.example"),
            (None, "sni.example"),
        ] {
            assert_eq!(tls.server_name(host), Some(expected), "{host:?}");
        }
    }

    #[test]
    fn tls_1_2_is_for_outside_the_mesh_alone() {
        let instance = || "default".to_owned();
        for (roots, expected) in [
            (TrustSource::System, TlsVersion::V1_2),
            (TrustSource::File("/ca.pem".into()), TlsVersion::V1_2),
            (TrustSource::Sds("ROOTCA".into()), TlsVersion::V1_3),
            (TrustSource::Sds("partner".into()), TlsVersion::V1_2),
            (
                TrustSource::Provider {
                    instance: instance(),
                },
                TlsVersion::V1_3,
            ),
        ] {
            assert_eq!(
                UpstreamTls::new(roots.clone()).min_version,
                expected,
                "{roots:?}"
            );
        }
    }

    #[test]
    fn labels_of_a_socket_are_all_asked_for() {
        let labels = |pairs: &[(&str, &str)]| -> LbMetadata {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).into()))
                .collect()
        };
        let mtls = SocketMatch {
            name: "mtls".into(),
            labels: labels(&[("tlsMode", "istio")]),
            tls: None,
        };
        let any = SocketMatch {
            labels: LbMetadata::new(),
            ..mtls.clone()
        };
        let both = labels(&[("tlsMode", "istio"), ("more", "x")]);
        assert!(mtls.is_match(Some(&both)) && any.is_match(Some(&both)));
        assert!(!mtls.is_match(Some(&labels(&[("tlsMode", "disabled")]))));
        assert!(!mtls.is_match(None) && any.is_match(None));
    }
}
