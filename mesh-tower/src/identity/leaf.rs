//! What is read of a leaf certificate: its names and its end.
//!
//! It reads, it does not verify: the chain is webpki's business.

use std::time::{Duration, SystemTime};

use mesh_core::config::SanType;
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, objects::oid_registry,
    objects::oid2abbrev, prelude::FromDer, x509::X509Name,
};

use super::{IdentityError, SpiffeId};

/// What is read of a leaf certificate.
pub(crate) struct Leaf<'c> {
    parsed: X509Certificate<'c>,
}

/// A subject alternative name as text, with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AltName {
    pub(crate) san_type: SanType,
    /// Of an IP address in the form of RFC 5952; of a DNS name perhaps with `*.`.
    pub(crate) text: String,
}

impl<'c> Leaf<'c> {
    pub(crate) fn parse(der: &'c CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|e| IdentityError::new(format!("the certificate cannot be read: {e}")))?;
        Ok(Self { parsed })
    }

    fn general_names(&self) -> impl Iterator<Item = &GeneralName<'c>> {
        let extension = self.parsed.subject_alternative_name().ok().flatten();
        extension
            .into_iter()
            .flat_map(|san| &san.value.general_names)
    }

    /// All subject alternative names that have a text form.
    pub(crate) fn alt_names(&self) -> Vec<AltName> {
        let named = |san_type, text: &str| AltName {
            san_type,
            text: text.to_owned(),
        };
        self.general_names()
            .filter_map(|name| match name {
                GeneralName::DNSName(text) => Some(named(SanType::Dns, text)),
                GeneralName::URI(text) => Some(named(SanType::Uri, text)),
                GeneralName::RFC822Name(text) => Some(named(SanType::Email, text)),
                GeneralName::IPAddress(bytes) => {
                    ip_text(bytes).map(|text| named(SanType::IpAddress, &text))
                }
                _ => None,
            })
            .collect()
    }

    pub(crate) fn uris(&self) -> Vec<&'c str> {
        self.general_names()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect()
    }

    /// The SPIFFE ID, `None` when no URI name claims to be one.
    pub(crate) fn spiffe_id(&self) -> Result<Option<SpiffeId>, IdentityError> {
        let uris = self.uris();
        let claims = |uri: &&str| {
            uri.get(..SpiffeId::SCHEME.len())
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case(SpiffeId::SCHEME))
        };
        match uris[..] {
            [only] if claims(&only) => SpiffeId::parse(only).map(Some),
            _ if uris.iter().any(claims) => Err(IdentityError::new(
                "a certificate with a SPIFFE ID must not have another URI name",
            )),
            _ => Ok(None),
        }
    }

    /// gRFC A41: URI names, else DNS names, else the subject.
    pub(super) fn principal_names(&self) -> Vec<String> {
        let uris: Vec<String> = self.uris().into_iter().map(str::to_owned).collect();
        if !uris.is_empty() {
            return uris;
        }
        let dns: Vec<String> = self
            .alt_names()
            .into_iter()
            .filter(|name| name.san_type == SanType::Dns)
            .map(|name| name.text)
            .collect();
        if !dns.is_empty() {
            return dns;
        }
        let subject = self.subject();
        if subject.is_empty() {
            Vec::new()
        } else {
            vec![subject]
        }
    }

    /// The subject in the form of RFC 2253.
    pub(crate) fn subject(&self) -> String {
        rfc2253(self.parsed.subject())
    }

    /// The issuer in the form of RFC 2253.
    pub(crate) fn issuer(&self) -> String {
        rfc2253(self.parsed.issuer())
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        let seconds = self.parsed.validity().not_after.timestamp();
        u64::try_from(seconds).map_or(SystemTime::UNIX_EPOCH, |seconds| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        })
    }
}

fn ip_text(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|b| std::net::Ipv4Addr::from(b).to_string()),
        16 => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|b| std::net::Ipv6Addr::from(b).to_string()),
        _ => None,
    }
}

/// A distinguished name in the order and form of RFC 2253: the most specific part first.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for rdn in name.iter_rdn() {
        let attributes: Vec<String> = rdn
            .iter()
            .map(|attribute| {
                let oid = attribute.attr_type();
                let key = oid2abbrev(oid, oid_registry())
                    .map_or_else(|_| oid.to_id_string(), str::to_owned);
                format!(
                    "{key}={}",
                    escape_2253(attribute.as_str().unwrap_or_default())
                )
            })
            .collect();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

fn escape_2253(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        let at_edge = (c == ' ' && (i == 0 || i == last)) || (c == '#' && i == 0);
        if at_edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
