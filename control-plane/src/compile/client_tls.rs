//! TLS of a DestinationRule: what clients do with a host's endpoints, and whom they trust.
//!
//! `SIMPLE` and `MUTUAL` are for servers outside the mesh: roots of the client's system or a file there,
//! a certificate from files there. The name that is sent and expected is the host's, unless the rule
//! names others. What cannot be used leaves mTLS of the mesh, which such a server does not pass.

use std::net::IpAddr;

use mesh_core::config::{CertificateSource, SanMatcher, SanType, TrustSource, UpstreamTls};

use crate::model::TlsSpec;

/// What `caCertificates` says where it means the system's roots.
const SYSTEM: &str = "system";

/// What a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientTls {
    /// Plaintext.
    Off,
    /// mTLS of the mesh; with these names instead of the accounts', and this server name, where they
    /// are written.
    Mesh {
        sni: Option<String>,
        names: Vec<SanMatcher>,
    },
    /// TLS to a server outside the mesh.
    Outside(UpstreamTls),
}

impl ClientTls {
    /// What is left where a rule cannot be used: never less than was asked for.
    fn refused() -> Self {
        Self::Mesh {
            sni: None,
            names: Vec::new(),
        }
    }
}

/// Reads the TLS of a rule for `host`. `wrong` is told the field and what is wrong with it.
pub(super) fn read(spec: &TlsSpec, host: &str, wrong: &mut dyn FnMut(&str, String)) -> ClientTls {
    let has_files = [
        ("caCertificates", &spec.ca_certificates),
        ("clientCertificate", &spec.client_certificate),
        ("privateKey", &spec.private_key),
    ];
    match spec.mode.as_str() {
        "DISABLE" => ClientTls::Off,
        "ISTIO_MUTUAL" => {
            for (field, file) in has_files {
                if file.is_some() {
                    wrong(
                        field,
                        "ISTIO_MUTUAL takes certificates from the mesh".to_owned(),
                    );
                }
            }
            ClientTls::Mesh {
                sni: spec.sni.clone(),
                names: spec
                    .subject_alt_names
                    .iter()
                    .map(|name| san(name))
                    .collect(),
            }
        }
        "SIMPLE" | "MUTUAL" => {
            outside(spec, host, wrong).map_or_else(ClientTls::refused, ClientTls::Outside)
        }
        other => {
            let known = "DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL";
            wrong("mode", format!("{other:?} is not {known}: mTLS is used"));
            ClientTls::refused()
        }
    }
}

fn outside(spec: &TlsSpec, host: &str, wrong: &mut dyn FnMut(&str, String)) -> Option<UpstreamTls> {
    let mut is_usable = true;
    let mut path = |field: &str, path: &Option<String>| -> Option<String> {
        let path = path.clone()?;
        if path.starts_with('/') {
            return Some(path);
        }
        is_usable = false;
        let message = format!("{path:?} is not an absolute path of a file at the clients");
        wrong(field, message);
        None
    };
    let roots = match &spec.ca_certificates {
        None => TrustSource::System,
        Some(word) if word == SYSTEM => TrustSource::System,
        some => path("caCertificates", some)
            .map_or(TrustSource::System, |path| TrustSource::File(path.into())),
    };
    let chain = path("clientCertificate", &spec.client_certificate);
    let key = path("privateKey", &spec.private_key);
    let is_mutual = spec.mode == "MUTUAL";
    let identity = match (chain, key) {
        (Some(chain), Some(key)) if is_mutual => Some(CertificateSource::Files {
            chain: chain.into(),
            key: key.into(),
        }),
        (None, None) if !is_mutual => None,
        _ => {
            is_usable = false;
            let message = match is_mutual {
                true => "MUTUAL needs clientCertificate and privateKey",
                false => "SIMPLE shows no certificate: write MUTUAL, or leave it out",
            };
            wrong("clientCertificate", message.to_owned());
            None
        }
    };
    let sni = spec.sni.clone().filter(|sni| !sni.is_empty());
    let sni = sni.or_else(|| (!host.contains('*')).then(|| host.to_owned()));
    if sni.is_none() && spec.subject_alt_names.is_empty() {
        is_usable = false;
        let message = "a host with a wildcard has no name to expect: write sni or subjectAltNames";
        wrong("sni", message.to_owned());
    }
    is_usable.then(|| UpstreamTls {
        identity,
        auto_sni_san_validation: spec.subject_alt_names.is_empty(),
        subject_alt_names: spec
            .subject_alt_names
            .iter()
            .map(|name| san(name))
            .collect(),
        sni,
        ..UpstreamTls::new(roots)
    })
}

/// A name, whose form says of which kind it is.
fn san(name: &str) -> SanMatcher {
    let san_type = if name.contains("://") {
        SanType::Uri
    } else if name.parse::<IpAddr>().is_ok() {
        SanType::IpAddress
    } else if name.contains('@') {
        SanType::Email
    } else {
        SanType::Dns
    };
    SanMatcher {
        san_type: Some(san_type),
        ..SanMatcher::exact(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut TlsSpec)) -> (ClientTls, Vec<String>) {
        let mut spec = TlsSpec::default();
        change(&mut spec);
        let mut fields = Vec::new();
        let tls = read(&spec, "api.example", &mut |field, _| {
            fields.push(field.to_owned())
        });
        (tls, fields)
    }

    fn mode(spec: &mut TlsSpec, mode: &str) {
        spec.mode = mode.to_owned();
    }

    #[test]
    fn simple_trusts_the_system_and_expects_the_host() {
        let (tls, fields) = of(|spec| mode(spec, "SIMPLE"));
        let expected = UpstreamTls {
            sni: Some("api.example".into()),
            auto_sni_san_validation: true,
            ..UpstreamTls::new(TrustSource::System)
        };
        assert_eq!((tls, fields), (ClientTls::Outside(expected), Vec::new()));
    }

    #[test]
    fn names_that_are_written_are_expected_instead_by_their_form() {
        let (tls, _) = of(|spec| {
            mode(spec, "SIMPLE");
            spec.sni = Some("sni.example".into());
            let names = ["a.example", "spiffe://td/a", "10.0.0.1", "who@example"];
            spec.subject_alt_names = names.map(str::to_owned).to_vec();
            spec.ca_certificates = Some("/ca.pem".into());
        });
        let ClientTls::Outside(tls) = tls else {
            panic!("{tls:?}");
        };
        let types = tls
            .subject_alt_names
            .iter()
            .filter_map(|name| name.san_type);
        use SanType::{Dns, Email, IpAddress, Uri};
        assert_eq!(types.collect::<Vec<_>>(), [Dns, Uri, IpAddress, Email]);
        assert_eq!(tls.sni.as_deref(), Some("sni.example"));
        assert_eq!(tls.roots, TrustSource::File("/ca.pem".into()));
        assert!(!tls.auto_sni_san_validation);
    }

    #[test]
    fn what_cannot_be_used_asks_for_mtls_and_says_which_field() {
        for (change, field) in [
            (
                (|spec| mode(spec, "MUTUAL")) as fn(&mut TlsSpec),
                "clientCertificate",
            ),
            (
                |spec| {
                    mode(spec, "SIMPLE");
                    spec.client_certificate = Some("/a.pem".into());
                },
                "clientCertificate",
            ),
            (
                |spec| {
                    mode(spec, "SIMPLE");
                    spec.ca_certificates = Some("ca.pem".into());
                },
                "caCertificates",
            ),
            (|spec| mode(spec, "SIMPEL"), "mode"),
        ] {
            let (tls, fields) = of(change);
            assert_eq!((tls, &*fields[0]), (ClientTls::refused(), field));
        }
        let mutual = |spec: &mut TlsSpec| {
            mode(spec, "MUTUAL");
            spec.client_certificate = Some("/a.pem".into());
            spec.private_key = Some("/key.pem".into());
        };
        let (ClientTls::Outside(tls), _) = of(mutual) else {
            panic!("it is complete");
        };
        assert!(matches!(
            tls.identity,
            Some(CertificateSource::Files { .. })
        ));
    }
}
