//! A server's configuration, ready to decide about connections and requests.
//!
//! Compiled when the listener changes. TLS whose settings did not change keeps its sessions.

mod routes;

use std::{net::SocketAddr, sync::Arc};

use mesh_core::{
    config::{
        Arrival, ChainMatch, ExtAuthz, FilterChain, FilterConfig, ForwardClientCert, HttpFilter,
        HttpLimits, InboundListener, JwtAuthn, PathNormalization, RouteSource, TransportMatch,
        choose_chain,
    },
    filter::{self, FilterStates, FilterTable, Filters},
};
use rustls_pki_types::CertificateDer;

use self::routes::Routes;
pub(super) use self::routes::{Found, ResponseRules, Routed};
use super::{
    InboundState,
    check::{AuthorizationService, AuthorizationServices, Checks},
    client_cert::ClientCert,
    refusal::Refusal,
};
use crate::{identity::Identity, jwt::Verifier, tls::server::ServerTls};

/// What to do with connections and requests.
pub(super) enum Inbound {
    /// No configuration yet.
    Pending,
    /// None that can be used.
    Refusing(String),
    /// Serve by these.
    Serving(Serving),
}

/// What a configuration is compiled with.
pub(super) struct With<'w> {
    pub(super) identity: &'w Identity,
    pub(super) services: Option<&'w dyn AuthorizationServices>,
}

/// Filter chains.
pub(super) struct Serving {
    listener: Arc<InboundListener>,
    /// In the order of the listener's.
    chains: Box<[Chain]>,
    /// Chains differ in nothing but the transport, which is the usual case.
    is_by_transport: bool,
    needs_hello: bool,
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) transport: Transport,
    /// Server name and application protocols that a TLS client asked for; read where a chain asks
    /// for them.
    pub(super) server_name: Option<String>,
    pub(super) application_protocols: Vec<Vec<u8>>,
}

impl Seen {
    fn arrival(&self) -> Arrival<'_> {
        Arrival {
            source: self.source,
            destination: self.destination,
            is_tls: self.transport == Transport::Tls,
            server_name: self.server_name.as_deref(),
            application_protocols: &self.application_protocols,
        }
    }

    /// The same, had the client spoken TLS.
    fn over_tls(&self) -> Self {
        Self {
            transport: Transport::Tls,
            ..self.clone()
        }
    }
}

/// A filter chain.
pub(super) struct Chain {
    transport: TransportMatch,
    pub(super) security: Security,
    pub(super) paths: PathNormalization,
    client_cert: ForwardClientCert,
    verifiers: Box<[(Arc<JwtAuthn>, Verifier)]>,
    pub(super) limits: Option<Arc<HttpLimits>>,
    routes: Routes,
    checks: Checks,
    /// Whether a filter may ask another service, and requests wait for it.
    pub(super) waits: bool,
    /// Of requests without a route.
    filters: Option<Filters>,
    /// Of requests with one, by virtual host.
    tables: Box<[FilterTable]>,
}

/// How connections of a chain are secured.
pub(super) enum Security {
    Plaintext,
    Tls(Arc<ServerTls>),
    /// The settings cannot be used: connections are refused.
    Unusable,
}

/// What the first byte of a connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Raw,
    Tls,
}

impl Inbound {
    /// Compiles `state`; `None` changes nothing.
    pub(super) fn compile(
        state: &InboundState,
        previous: &Self,
        local: SocketAddr,
        with: &With<'_>,
        states: &mut FilterStates,
    ) -> Option<Self> {
        let listener = match state {
            InboundState::Pending => return None,
            InboundState::Failed(error) => return Some(Self::Refusing(error.to_string())),
            InboundState::Ready(listener) => listener,
        };
        if !is_for(listener, local) {
            let declared = listener.address.map_or_else(String::new, |a| a.to_string());
            let reason = format!("the listener is for {declared}, this server is at {local}");
            return Some(Self::Refusing(reason));
        }
        let chains = listener.filter_chains.iter();
        let is_plain = |chain: &FilterChain| chain.matches == ChainMatch::default();
        Some(Self::Serving(Serving {
            listener: Arc::clone(listener),
            is_by_transport: chains.clone().all(is_plain),
            needs_hello: chains.clone().any(FilterChain::needs_hello),
            chains: chains
                .map(|chain| Chain::compile(chain, previous, with, states))
                .collect(),
        }))
    }

    /// Whether a chain can only be chosen once a TLS client has said hello.
    pub(super) fn needs_hello(&self) -> bool {
        matches!(self, Self::Serving(serving) if serving.needs_hello)
    }

    /// The most specific chain for a connection.
    pub(super) fn chain(&self, seen: &Seen) -> Option<&Chain> {
        let Self::Serving(serving) = self else {
            return None;
        };
        if !serving.is_by_transport {
            let declared = &serving.listener.filter_chains;
            return serving.chains.get(choose_chain(declared, &seen.arrival())?);
        }
        let wanted = match seen.transport {
            Transport::Raw => TransportMatch::RawBuffer,
            Transport::Tls => TransportMatch::Tls,
        };
        let find = |wanted| {
            serving
                .chains
                .iter()
                .find(|chain| chain.transport == wanted)
        };
        find(wanted).or_else(|| find(TransportMatch::Any))
    }

    /// Whether TLS connections to the same place prove who they are.
    pub(super) fn is_mutual_over_tls(&self, seen: &Seen) -> bool {
        self.chain(&seen.over_tls()).is_some_and(Chain::is_mutual)
    }

    /// Why no chain takes a connection: `plaintext` where one would take it over TLS.
    pub(super) fn why_no_chain(&self, seen: &Seen) -> &'static str {
        // What a client would say in its handshake is not known of one that speaks plaintext.
        let is_tls_asked = || self.needs_hello() || self.chain(&seen.over_tls()).is_some();
        match seen.transport {
            Transport::Raw if is_tls_asked() => "plaintext",
            Transport::Raw | Transport::Tls => "no_filter_chain",
        }
    }

    /// The chain of a live connection's requests; `None` when the connection does not fit any more.
    pub(super) fn chain_of_live(&self, seen: &Seen, is_authenticated: bool) -> Option<&Chain> {
        self.chain(seen)
            .filter(|chain| match (&chain.security, seen.transport) {
                (Security::Plaintext, Transport::Raw) => true,
                (Security::Tls(tls), Transport::Tls) => {
                    is_authenticated || !tls.settings().require_client_certificate
                }
                _ => false,
            })
    }
}

impl Chain {
    /// What verifies the tokens that a filter asks for.
    pub(super) fn verifier(&self, tokens: &Arc<JwtAuthn>) -> Option<&Verifier> {
        let mut known = self.verifiers.iter();
        let found = known.find(|(known, _)| Arc::ptr_eq(known, tokens));
        found.map(|(_, verifier)| verifier)
    }

    /// Who is asked as `config` says.
    pub(super) fn authorization_service(
        &self,
        config: &ExtAuthz,
    ) -> Option<Arc<dyn AuthorizationService>> {
        self.checks.find(config)
    }

    fn compile(
        chain: &FilterChain,
        previous: &Inbound,
        with: &With<'_>,
        states: &mut FilterStates,
    ) -> Self {
        let security = match &chain.tls {
            None => Security::Plaintext,
            Some(settings) => match previous.held_tls(settings) {
                Some(held) => Security::Tls(held),
                None => match ServerTls::new(settings, with.identity.clone()) {
                    Ok(tls) => Security::Tls(Arc::new(tls)),
                    Err(error) => {
                        let name = &chain.name;
                        tracing::error!(target: "mesh::server", chain = name, %error, "refusing");
                        Security::Unusable
                    }
                },
            },
        };
        let scope = format!("filter chain {} of {:?}", chain.name, chain.transport);
        let tables = match &chain.routes {
            RouteSource::Inline(config) => {
                let hosts = config.virtual_hosts.iter();
                let tables = hosts.map(|host| {
                    FilterTable::compile(&scope, &chain.filters, config, host, |_| None, states)
                });
                tables.collect()
            }
            RouteSource::Rds(_) => Box::default(),
        };
        Self {
            transport: chain.transport,
            security,
            paths: chain.path_normalization,
            client_cert: chain.client_cert,
            verifiers: verifiers(&chain.filters),
            limits: chain
                .limits
                .is_any()
                .then(|| Arc::new(chain.limits.clone())),
            routes: Routes::compile(&chain.routes),
            waits: asked(&chain.filters).next().is_some(),
            checks: Checks::compile(
                asked(&chain.filters),
                |config| previous.held_service(config),
                with.services,
            ),
            filters: filter::compile(&scope, &chain.filters, states),
            tables,
        }
    }

    /// What requests say of a caller who showed `chain`.
    pub(super) fn client_cert(&self, chain: Option<&[CertificateDer<'_>]>) -> ClientCert {
        let by = match &self.security {
            Security::Tls(tls) => tls.shown_uris(),
            Security::Plaintext | Security::Unusable => Vec::new(),
        };
        ClientCert::of(&self.client_cert, chain, &by)
    }

    /// Whether clients prove who they are.
    fn is_mutual(&self) -> bool {
        match &self.security {
            Security::Tls(tls) => tls.settings().require_client_certificate,
            Security::Plaintext | Security::Unusable => false,
        }
    }
}

impl Inbound {
    fn held_service(&self, config: &ExtAuthz) -> Option<Arc<dyn AuthorizationService>> {
        let Self::Serving(serving) = self else {
            return None;
        };
        let mut chains = serving.chains.iter();
        chains.find_map(|chain| chain.checks.find(config))
    }

    fn held_tls(&self, settings: &mesh_core::config::DownstreamTls) -> Option<Arc<ServerTls>> {
        let Self::Serving(serving) = self else {
            return None;
        };
        serving
            .chains
            .iter()
            .find_map(|chain| match &chain.security {
                Security::Tls(tls) if tls.settings() == settings => Some(Arc::clone(tls)),
                _ => None,
            })
    }
}

/// The services that filters ask; routes override none of them.
fn asked(filters: &[HttpFilter]) -> impl Iterator<Item = &Arc<ExtAuthz>> {
    filters.iter().filter_map(|filter| match &filter.config {
        FilterConfig::ExtAuthz(settings) => settings.service.as_ref(),
        _ => None,
    })
}

/// What verifies the tokens of each filter that asks for it; routes override none of them.
fn verifiers(filters: &[HttpFilter]) -> Box<[(Arc<JwtAuthn>, Verifier)]> {
    let tokens = filters.iter().filter_map(|filter| match &filter.config {
        FilterConfig::JwtAuthn(tokens) => Some(Arc::clone(tokens)),
        _ => None,
    });
    tokens
        .map(|tokens| {
            let verifier = Verifier::compile(&tokens);
            (tokens, verifier)
        })
        .collect()
}

/// gRFC A36: the address of the resource must be the one listened on; a wildcard address or port 0
/// on either side stands for any.
fn is_for(listener: &InboundListener, local: SocketAddr) -> bool {
    listener.address.is_none_or(|declared| {
        let ip = declared.ip() == local.ip()
            || declared.ip().is_unspecified()
            || local.ip().is_unspecified();
        ip && (declared.port() == local.port() || declared.port() == 0)
    })
}

#[cfg(test)]
mod tests;
