//! An authenticated workload identity, and the names it may be made of.
//!
//! Does not authenticate anything: [`Tokens`](super::Tokens) does. The SPIFFE ID's form
//! (`spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`) is Istio's.

use std::fmt;

use super::CaError;

/// Longest DNS label (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// Longest trust domain (SPIFFE ID §2.3).
const MAX_TRUST_DOMAIN: usize = 255;

/// A namespace and a service account in it, both DNS labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Identity {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
}

impl Identity {
    /// An identity of two DNS labels.
    ///
    /// # Errors
    /// [`CaError::InvalidName`] when either is not a DNS label.
    pub fn new(
        namespace: impl Into<String>,
        service_account: impl Into<String>,
    ) -> Result<Self, CaError> {
        Ok(Self {
            namespace: label("namespace", namespace.into())?,
            service_account: label("service account", service_account.into())?,
        })
    }

    /// The identity in a SPIFFE ID of `trust_domain`; none in that of another.
    pub fn of_spiffe_id(id: &str, trust_domain: &str) -> Option<Self> {
        let path = id.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?;
        Self::of_path(path.strip_prefix('/')?)
    }

    /// The identity that `ns/NAMESPACE/sa/ACCOUNT` names.
    pub fn of_path(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return None;
        };
        Self::new(namespace, account).ok()
    }

    /// The SPIFFE ID in `trust_domain`.
    pub fn spiffe_id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/{self}")
    }

    /// Checks the names again, because the fields can be written to from outside.
    pub(super) fn validate(&self) -> Result<(), CaError> {
        Self::new(self.namespace.as_str(), self.service_account.as_str()).map(drop)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ns/{}/sa/{}", self.namespace, self.service_account)
    }
}

fn label(what: &'static str, name: String) -> Result<String, CaError> {
    let is_inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let is_label = (1..=MAX_LABEL).contains(&name.len())
        && name.as_bytes().iter().all(is_inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_label {
        Ok(name)
    } else {
        Err(CaError::InvalidName { what, name })
    }
}

/// Accepts the trust domains SPIFFE allows: lower-case letters, digits, dots, dashes, underscores.
pub(super) fn validate_trust_domain(name: &str) -> Result<(), CaError> {
    let is_allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if (1..=MAX_TRUST_DOMAIN).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(CaError::InvalidName {
        what: "trust domain",
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_labels_are_names() {
        let longest = "a".repeat(MAX_LABEL);
        for name in ["a", "a-b", "9", &longest] {
            assert!(Identity::new(name, name).is_ok(), "{name}");
        }
        let too_long = "a".repeat(MAX_LABEL + 1);
        for name in [
            "", "-a", "a-", "a.b", "A", "a/b", "a/sa/b", "é", "a\n", &too_long,
        ] {
            assert!(Identity::new(name, "a").is_err(), "{name}");
            assert!(Identity::new("a", name).is_err(), "{name}");
        }
    }

    #[test]
    fn an_identity_is_read_back_from_its_own_trust_domain_alone() {
        let identity = Identity::new("a", "b").unwrap();
        let id = identity.spiffe_id("td");
        assert_eq!(Identity::of_spiffe_id(&id, "td"), Some(identity));
        for bad in [
            "spiffe://td2/ns/a/sa/b",
            "spiffe://t/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a",
            "spiffe://td",
            "https://td/ns/a/sa/b",
        ] {
            assert_eq!(Identity::of_spiffe_id(bad, "td"), None, "{bad}");
        }
    }

    #[test]
    fn a_trust_domain_has_no_path() {
        assert!(validate_trust_domain("cluster.local").is_ok());
        for name in ["", "a/b", "A", "a:1", "a b"] {
            assert!(validate_trust_domain(name).is_err(), "{name}");
        }
    }
}
