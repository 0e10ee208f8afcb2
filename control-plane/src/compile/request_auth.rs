//! RequestAuthentication: whose tokens are believed.
//!
//! Keys at a `jwksUri` are fetched by the control plane and travel inside the configuration, as
//! Istio does by default: servers need no way out, and all of them believe the same keys. Until they
//! are there the rule has no keys, so that its tokens are refused. Where a MeshPolicy says `remoteJwks`
//! servers fetch them themselves.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{ClaimToHeader, HeaderLocation, JWT_CLOCK_SKEW_DEFAULT, Jwks, JwtProvider};

use super::{
    CompileOptions,
    authorization::{Authorization, closed},
    claims,
    remote_jwks::{self, KeyServices},
    rules::Wrong,
    security::Scoped,
    target::{Names, select},
};
use crate::{
    diagnostic::{Diagnostic, FAILS_CLOSED},
    model::{JwtRule, Object, RequestAuthentication},
    value,
};

/// What was fetched, by address; an error says why not.
pub type KeySets = BTreeMap<String, Result<Arc<str>, String>>;

/// The keys of a rule that has none yet.
const NO_KEYS: &str = r#"{"keys":[]}"#;

/// The issuers that a workload believes, or what closes the workload.
pub(super) fn compile(
    object: &Object,
    spec: &RequestAuthentication,
    (options, remote): (&CompileOptions, Option<&KeyServices<'_>>),
    names: &Names<'_>,
    findings: &mut Vec<Diagnostic>,
) -> Result<Scoped<Vec<JwtProvider>>, Box<Scoped<Authorization>>> {
    let refs = (spec.target_ref.as_ref(), spec.target_refs.as_slice());
    let selector = spec.selector.as_ref();
    let mut compiled = select(object, selector, refs, names, findings, Vec::new());
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        let field = format!("spec.jwtRules[{index}]");
        match provider(object, rule, index, (options, remote)) {
            Ok((provider, why)) => {
                if let Some(why) = why {
                    let message =
                        format!("the keys cannot be fetched, its tokens are refused: {why}");
                    let field = format!("{field}.jwksUri");
                    findings.push(object.diagnose(FAILS_CLOSED, &field, message, ""));
                }
                compiled.value.push(provider);
            }
            Err((part, message)) => {
                let field = format!("{field}.{part}");
                let help = "what it selects is closed";
                findings.push(object.diagnose(FAILS_CLOSED, &field, message, help));
                return Err(Box::new(closed(&compiled)));
            }
        }
    }
    Ok(compiled)
}

/// The issuer of a rule, and why its keys cannot be fetched.
fn provider(
    object: &Object,
    rule: &JwtRule,
    index: usize,
    (options, remote): (&CompileOptions, Option<&KeyServices<'_>>),
) -> Result<(JwtProvider, Option<String>), Wrong> {
    let wrong = |field: &str, message: String| (field.to_owned(), message);
    if rule.issuer.is_empty() {
        return Err(wrong("issuer", "is missing".to_owned()));
    }
    let timeout = rule.timeout.as_deref().map(value::duration).transpose();
    let timeout = timeout.map_err(|message| wrong("timeout", message))?;
    let mut missing = None;
    let jwks: Jwks = match (&rule.jwks, &rule.jwks_uri) {
        (Some(jwks), None) => {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(jwks);
            let is_set = parsed.is_ok_and(|value| value["keys"].is_array());
            if !is_set {
                return Err(wrong("jwks", "is not a JSON Web Key Set".to_owned()));
            }
            jwks.as_str().into()
        }
        (None, Some(uri)) => {
            let url = uri.parse::<http::Uri>().ok();
            let url = url.filter(|uri| uri.host().is_some() && uri.scheme_str() == Some("https"));
            let Some(url) = url else {
                let message = format!(
                    "{uri:?} is not an https address: in the clear, keys could be anybody's"
                );
                return Err(wrong("jwksUri", message));
            };
            let found = match remote {
                Some(services) => services.keys(object, &url, timeout).map(Jwks::from),
                None => match options.keys.get(uri) {
                    Some(Ok(keys)) => Ok(Arc::clone(keys).into()),
                    Some(Err(why)) => Err(why.clone()),
                    None => Ok(NO_KEYS.into()),
                },
            };
            found.unwrap_or_else(|why| {
                missing = Some(why);
                NO_KEYS.into()
            })
        }
        (Some(_), Some(_)) => {
            return Err(wrong("jwks", "and jwksUri exclude each other".to_owned()));
        }
        (None, None) => {
            let message = "is missing, and so is jwks; issuers are not asked where they keep keys";
            return Err(wrong("jwksUri", message.to_owned()));
        }
    };
    let header = |text: &str, field: &str| match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => Err(wrong(
            field,
            format!("{text:?} is not the name of a header"),
        )),
    };
    let mut from_headers = Vec::new();
    for (at, location) in rule.from_headers.iter().enumerate() {
        from_headers.push(HeaderLocation {
            name: header(&location.name, &format!("fromHeaders[{at}].name"))?,
            value_prefix: location.prefix.clone(),
        });
    }
    let mut claim_to_headers = Vec::new();
    for (at, claim) in rule.output_claim_to_headers.iter().enumerate() {
        let field = format!("outputClaimToHeaders[{at}]");
        if claim.claim.is_empty() {
            return Err(wrong(&format!("{field}.claim"), "is missing".to_owned()));
        }
        claim_to_headers.push(ClaimToHeader {
            header: header(&claim.header, &format!("{field}.header"))?,
            claim: claim.claim.clone(),
        });
    }
    let forward_payload_header = match &rule.output_payload_to_header {
        Some(name) => Some(header(name, "outputPayloadToHeader")?),
        None => None,
    };
    let provider = JwtProvider {
        name: format!("{}/{}[{index}]", object.key.namespace, object.key.name),
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        jwks,
        from_headers,
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        forward: rule.forward_original_token,
        forward_payload_header,
        claim_to_headers,
        payload_in_metadata: claims::PAYLOAD.to_owned(),
        clock_skew: JWT_CLOCK_SKEW_DEFAULT,
    };
    Ok((provider, missing))
}

/// The addresses that the control plane fetches keys from, each with the longest time that a rule gives it.
pub(crate) fn key_sets(
    objects: &crate::model::ObjectSet,
) -> BTreeMap<String, Option<std::time::Duration>> {
    let mut found = BTreeMap::new();
    if remote_jwks::is_asked_for(objects) {
        return found;
    }
    for object in objects.values() {
        let crate::model::Spec::RequestAuthentication(spec) = &object.spec else {
            continue;
        };
        for rule in &spec.jwt_rules {
            let Some(uri) = &rule.jwks_uri else { continue };
            let timeout = rule.timeout.as_deref().map(value::duration);
            let timeout = timeout.and_then(Result::ok);
            let held = found.entry(uri.clone()).or_insert(timeout);
            *held = (*held).max(timeout);
        }
    }
    found
}
