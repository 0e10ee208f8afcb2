//! Verifies the tokens of requests (Envoy's `jwt_authn` filter; RFC 7519, 7515, 7517).
//!
//! Stage: server, between the normalised path and authorisation. A request without a token passes,
//! and rules that ask for claims do not match it; one with tokens needs one that a provider
//! verifies. Which algorithm a key may be used with is the key's to say, never the token's: `none`
//! and keyed hashes are not known at all. Keys come with the configuration, or are fetched ([`remote`]).

mod claims;
mod keys;
mod locate;
mod remote;
mod token;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use mesh_core::config::{DynamicMetadata, Jwks, JwtAuthn, JwtProvider, RemoteJwks};
use serde_json::Value;

pub(crate) use self::remote::RemoteKeys;
pub use self::remote::{
    JWKS_BYTES_MAX, JWKS_WAIT_MAX, JWKS_WAITING_MAX, KeySource, KeySources, KeysFuture,
};
use self::{
    keys::KeySet,
    locate::Location,
    remote::{Lack, Usable, now},
    token::Token,
};

/// Namespace of what was verified in the dynamic metadata, as in Envoy.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// Verifies tokens by a configuration.
#[derive(Debug)]
pub(crate) struct Verifier {
    providers: Box<[Provider]>,
    /// Headers that only the verifier writes.
    reserved: Box<[HeaderName]>,
}

#[derive(Debug)]
struct Provider {
    config: JwtProvider,
    keys: Keys,
    locations: Box<[Location]>,
    payload_header: Option<HeaderName>,
    claim_headers: Box<[(HeaderName, String)]>,
}

/// Where a provider's keys are.
#[derive(Debug)]
enum Keys {
    Inline(KeySet),
    Remote(Arc<RemoteKeys>),
}

/// Keys that a token needs, which a fetch may bring.
struct Lacking<'v> {
    keys: &'v RemoteKeys,
    lack: Lack,
}

/// Why a token is not believed; for the caller, who knows the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    Malformed,
    Algorithm,
    Issuer,
    Audience,
    Expired,
    NotYetValid,
    Key,
    Signature,
    KeysMissing,
}

impl Rejected {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "the token is malformed",
            Self::Algorithm => "the token's algorithm is not one of its issuer's keys",
            Self::Issuer => "the token's issuer is not known here",
            Self::Audience => "the token is for another audience",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::Key => "no key of the issuer is the token's",
            Self::Signature => "the token's signature is wrong",
            Self::KeysMissing => "the keys of the token's issuer cannot be fetched",
        }
    }
}

/// A token that was believed.
#[derive(Debug)]
pub(crate) struct Verified<'v> {
    provider: &'v Provider,
    location: &'v Location,
    claims: Value,
    /// As in the token.
    payload: String,
}

impl Verifier {
    /// Verifies as `config` says; `remote` are the keys that it does not hold itself.
    pub(crate) fn compile(
        config: &JwtAuthn,
        mut remote: impl FnMut(&Arc<RemoteJwks>) -> Arc<RemoteKeys>,
    ) -> Self {
        let providers = config.providers.iter();
        let providers: Box<[_]> = providers
            .map(|provider| Provider::compile(provider, &mut remote))
            .collect();
        let reserved = providers.iter().flat_map(|provider| {
            let claims = provider.claim_headers.iter().map(|(name, _)| name);
            claims.chain(&provider.payload_header).cloned()
        });
        let reserved = reserved.collect();
        Self {
            providers,
            reserved,
        }
    }

    /// The first token that a provider believes; `None` for a request without any. Waits for keys that
    /// must be fetched first.
    ///
    /// # Errors
    /// When there are tokens, and none is believed.
    pub(crate) async fn verify_waiting(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
    ) -> Result<Option<Verified<'_>>, Rejected> {
        let came = now();
        let mut may_wait = true;
        loop {
            let mut lacking = None;
            let verdict = self.judge(headers, uri, (SystemTime::now(), came), &mut lacking);
            let (Err(why), Some(Lacking { keys, lack }), true) = (&verdict, lacking, may_wait)
            else {
                return verdict;
            };
            match keys.fetched(lack, came).await {
                Some(again) => may_wait = again,
                None => return Err(*why),
            }
        }
    }

    /// The same for what needs no keys that must be fetched.
    ///
    /// # Errors
    /// When there are tokens, and none is believed.
    pub(crate) fn verify(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        now: SystemTime,
    ) -> Result<Option<Verified<'_>>, Rejected> {
        self.judge(headers, uri, (now, self::now()), &mut None)
    }

    fn judge<'v>(
        &'v self,
        headers: &HeaderMap,
        uri: &Uri,
        (now, came): (SystemTime, Instant),
        lacking: &mut Option<Lacking<'v>>,
    ) -> Result<Option<Verified<'v>>, Rejected> {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let mut rejected = None;
        for provider in &self.providers {
            for location in &provider.locations {
                for text in location.tokens(headers, uri) {
                    match provider.believe(text, (now, came), lacking) {
                        Ok((claims, payload)) => {
                            return Ok(Some(Verified {
                                provider,
                                location,
                                claims,
                                payload: payload.to_owned(),
                            }));
                        }
                        // What the token's own issuer says of it is worth more.
                        Err(Rejected::Issuer) if rejected.is_some() => {}
                        Err(why) => rejected = Some(why),
                    }
                }
            }
        }
        rejected.map_or(Ok(None), Err)
    }

    /// The keys that are fetched as `config` says.
    pub(crate) fn remote_keys(&self, config: &RemoteJwks) -> Option<Arc<RemoteKeys>> {
        let mut providers = self.providers.iter();
        providers.find_map(|provider| match &provider.keys {
            Keys::Remote(keys) if keys.config() == config => Some(Arc::clone(keys)),
            Keys::Remote(_) | Keys::Inline(_) => None,
        })
    }

    /// Drops what callers may not say themselves.
    pub(crate) fn sanitize(&self, headers: &mut HeaderMap) {
        for name in &self.reserved {
            headers.remove(name);
        }
    }
}

impl Verified<'_> {
    /// Says in `metadata` what rules compare with.
    pub(crate) fn tell(&self, metadata: &mut DynamicMetadata) {
        let key = &self.provider.config.payload_in_metadata;
        if !key.is_empty() {
            metadata.set(NAMESPACE, key, self.claims.clone());
        }
    }

    /// Makes of the request what the application sees; returns its new URI, if that changes.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, uri: &Uri) -> Option<Uri> {
        let mut changed = None;
        if !self.provider.config.forward {
            changed = self.location.remove(headers, uri);
        }
        if let Some(name) = &self.provider.payload_header
            && let Ok(value) = HeaderValue::from_str(&self.payload)
        {
            headers.insert(name.clone(), value);
        }
        for (name, claim) in &self.provider.claim_headers {
            let text = claims::find(&self.claims, claim).and_then(claims::text);
            if let Some(value) = text.and_then(|text| HeaderValue::from_str(&text).ok()) {
                headers.insert(name.clone(), value);
            }
        }
        changed
    }
}

impl Provider {
    fn compile(
        config: &JwtProvider,
        remote: &mut impl FnMut(&Arc<RemoteJwks>) -> Arc<RemoteKeys>,
    ) -> Self {
        // Names are checked when the configuration is decoded; one that is none is no header.
        let name = |text: &String| HeaderName::from_bytes(text.as_bytes()).ok();
        let claims = config.claim_to_headers.iter();
        let claims = claims.filter_map(|one| Some((name(&one.header)?, one.claim.clone())));
        let keys = match &config.jwks {
            Jwks::Inline(text) => {
                let keys = KeySet::parse(text).unwrap_or_else(|error| {
                    let provider = &config.name;
                    tracing::error!(target: "mesh::server", provider, error, "its tokens are refused");
                    KeySet::default()
                });
                Keys::Inline(keys)
            }
            Jwks::Remote(source) => Keys::Remote(remote(source)),
        };
        Self {
            keys,
            locations: Location::all_of(config),
            payload_header: config.forward_payload_header.as_ref().and_then(name),
            claim_headers: claims.collect(),
            config: config.clone(),
        }
    }

    /// The claims and the payload of a token; `lacking` is what a fetch may bring for it.
    fn believe<'t, 'v>(
        &'v self,
        text: &'t str,
        (now, came): (Duration, Instant),
        lacking: &mut Option<Lacking<'v>>,
    ) -> Result<(Value, &'t str), Rejected> {
        let token = Token::parse(text)?;
        claims::check(&token.claims, &self.config, now)?;
        match &self.keys {
            Keys::Inline(keys) => keys.verify(&token)?,
            Keys::Remote(remote) => {
                let mut lacks = |lack| {
                    *lacking = Some(Lacking { keys: remote, lack });
                };
                match remote.usable() {
                    Usable::Keys(held) => held.keys.verify(&token).inspect_err(|why| {
                        if *why == Rejected::Key && held.asked < came {
                            lacks(Lack::Unknown);
                        }
                    })?,
                    Usable::Awaited => {
                        lacks(Lack::Keys);
                        return Err(Rejected::KeysMissing);
                    }
                    Usable::Missing => return Err(Rejected::KeysMissing),
                }
            }
        }
        Ok((token.claims, token.payload))
    }
}

#[cfg(test)]
mod remote_tests;
#[cfg(test)]
mod tests;
