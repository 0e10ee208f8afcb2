//! The header `x-forwarded-client-cert` of requests: who removes it, who passes it on, and what we say
//! in it.
//!
//! What is said is the same for all requests of a connection, and made once. Spec: Envoy's HTTP connection
//! manager, header by header. Deviation: values with a character that separates parts are quoted, so
//! that no name of a certificate can look like more than one.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::config::{ClientCertDetails, ForwardClientCert, ForwardMode, SanType};
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;

use crate::identity::Leaf;

/// Written by those who terminate TLS, about who called them.
const HEADER: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Characters of a line of PEM (RFC 7468 §2).
const PEM_LINE: usize = 64;

/// What is done to the header of each request of a connection.
#[derive(Debug, Default)]
pub(super) enum ClientCert {
    /// It is the caller's own claim.
    #[default]
    Remove,
    Keep,
    /// This stands behind what is there.
    Append(HeaderValue),
    /// This stands alone.
    Set(HeaderValue),
}

impl ClientCert {
    /// As `config` has it for a caller that showed `chain`, leaf first, to a server called `by`.
    pub(super) fn of(
        config: &ForwardClientCert,
        chain: Option<&[CertificateDer<'_>]>,
        by: &[String],
    ) -> Self {
        let chain = chain.filter(|chain| !chain.is_empty());
        match (config.mode, chain) {
            (ForwardMode::AlwaysForwardOnly, _) | (ForwardMode::ForwardOnly, Some(_)) => Self::Keep,
            (ForwardMode::Sanitize, _) | (_, None) => Self::Remove,
            (ForwardMode::AppendForward, Some(chain)) => {
                element(&config.details, chain, by).map_or(Self::Remove, Self::Append)
            }
            (ForwardMode::SanitizeSet, Some(chain)) => {
                element(&config.details, chain, by).map_or(Self::Remove, Self::Set)
            }
        }
    }

    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Remove => _ = headers.remove(HEADER),
            Self::Keep => {}
            Self::Set(said) => _ = headers.insert(HEADER, said.clone()),
            Self::Append(said) => append(headers, said),
        }
    }
}

fn append(headers: &mut HeaderMap, said: &HeaderValue) {
    let mut whole = Vec::new();
    for value in headers.get_all(HEADER).iter().chain([said]) {
        if !whole.is_empty() {
            whole.push(b',');
        }
        whole.extend(value.as_bytes());
    }
    // Parts of valid values make a valid one.
    if let Ok(whole) = HeaderValue::from_bytes(&whole) {
        headers.insert(HEADER, whole);
    }
}

/// What we say of the caller; `None` when it cannot be said in a header.
fn element(
    details: &ClientCertDetails,
    chain: &[CertificateDer<'_>],
    by: &[String],
) -> Option<HeaderValue> {
    let leaf = chain.first()?;
    let parsed = Leaf::parse(leaf).ok()?;
    let mut parts: Vec<String> = by.iter().map(|uri| part("By", uri)).collect();
    parts.push(format!("Hash={}", hex(digest(&SHA256, leaf).as_ref())));
    if details.subject {
        parts.push(format!("Subject=\"{}\"", escaped(&parsed.subject())));
    }
    if details.issuer {
        parts.push(format!("Issuer=\"{}\"", escaped(&parsed.issuer())));
    }
    if details.cert {
        parts.push(format!("Cert=\"{}\"", encoded_pem(&chain[..1])));
    }
    if details.chain {
        parts.push(format!("Chain=\"{}\"", encoded_pem(chain)));
    }
    let names = parsed.alt_names();
    let mut named = |key: &str, san_type| {
        let of_type = names.iter().filter(|name| name.san_type == san_type);
        parts.extend(of_type.map(|name| part(key, &name.text)));
    };
    if details.uri {
        named("URI", SanType::Uri);
    }
    if details.dns {
        named("DNS", SanType::Dns);
    }
    HeaderValue::try_from(parts.join(";")).ok()
}

fn part(key: &str, value: &str) -> String {
    match value.contains([',', ';', '=', '"']) {
        true => format!("{key}=\"{}\"", escaped(value)),
        false => format!("{key}={value}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        _ = write!(text, "{byte:02x}");
    }
    text
}

/// Certificates in PEM, percent-encoded.
fn encoded_pem(chain: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let base64 = STANDARD.encode(certificate);
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(PEM_LINE));
            text.push_str(line);
            text.push('\n');
            rest = more;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    let mut encoded = String::with_capacity(text.len() * 5 / 4);
    for c in text.chars() {
        match c {
            '\n' => encoded.push_str("%0A"),
            ' ' => encoded.push_str("%20"),
            '+' => encoded.push_str("%2B"),
            '/' => encoded.push_str("%2F"),
            '=' => encoded.push_str("%3D"),
            c => encoded.push(c),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject as _;

    use super::*;

    fn certificate(uri: &str) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).expect("name");
        let uri = rcgen::SanType::URI(uri.try_into().expect("ASCII"));
        params.subject_alt_names.push(uri);
        let name = rcgen::DnType::CommonName;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(name, "a \"b\", c");
        params.self_signed(&key).expect("signed").der().clone()
    }

    #[test]
    fn no_name_of_a_certificate_can_look_like_more_than_one() {
        let evil = "spiffe://td/a;URI=spiffe://td/admin,By=x";
        let details = ClientCertDetails {
            uri: true,
            dns: true,
            subject: true,
            ..ClientCertDetails::default()
        };
        let chain = [certificate(evil)];
        let said = element(&details, &chain, &["spiffe://td/server".into()]).expect("a value");
        let said = said.to_str().expect("text");
        let hash = hex(digest(&SHA256, &chain[0]).as_ref());
        let expected = format!(
            "By=spiffe://td/server;Hash={hash};Subject=\"CN=a \\\\\\\"b\\\\\\\"\\\\, c\";URI=\"{evil}\";DNS=a.example"
        );
        assert_eq!(said, expected);
    }

    #[test]
    fn certificates_are_said_in_percent_encoded_pem() {
        let chain = [certificate("spiffe://td/a"), certificate("spiffe://td/b")];
        let details = ClientCertDetails {
            cert: true,
            chain: true,
            ..ClientCertDetails::default()
        };
        let said = element(&details, &chain, &[]).expect("a value");
        let said = said.to_str().expect("text");
        let decoded = said
            .replace("%0A", "\n")
            .replace("%20", " ")
            .replace("%2B", "+")
            .replace("%2F", "/")
            .replace("%3D", "=");
        let of = |key: &str| {
            let (_, rest) = decoded.split_once(&format!("{key}=\"")).expect("the key");
            let pem = rest.split_once('"').expect("its end").0;
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .expect("PEM")
        };
        assert_eq!(of("Cert"), chain[..1]);
        assert_eq!(of("Chain"), chain);
    }
}
