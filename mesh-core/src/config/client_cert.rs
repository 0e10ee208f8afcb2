//! What becomes of `x-forwarded-client-cert`, as declared (Envoy `forward_client_cert_details`).

/// What a server does with the header that says who the client of a proxy was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardClientCert {
    /// Whether what comes in is believed, and what is added. Default [`ForwardMode::Sanitize`].
    pub mode: ForwardMode,
    /// What is said of the caller's certificate besides its hash.
    pub details: ClientCertDetails,
}

/// Whose word about the client counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardMode {
    /// Nobody's: the header is removed.
    #[default]
    Sanitize,
    /// That of a caller with a certificate, which is passed on.
    ForwardOnly,
    /// That of a caller with a certificate, with ours of itself behind it.
    AppendForward,
    /// Ours alone, of a caller with a certificate.
    SanitizeSet,
    /// Everybody's, also over plaintext.
    AlwaysForwardOnly,
}

/// What is said of a certificate. Default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    /// Its subject, as in RFC 2253.
    pub subject: bool,
    /// It itself, in PEM.
    pub cert: bool,
    /// It and its issuers, in PEM.
    pub chain: bool,
    /// Its DNS names.
    pub dns: bool,
    /// Its URIs.
    pub uri: bool,
    /// Its issuer, as in RFC 2253.
    pub issuer: bool,
}
