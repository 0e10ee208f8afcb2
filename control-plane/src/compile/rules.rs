//! One rule of an AuthorizationPolicy: who may do what, and when.
//!
//! What becomes of a rule that cannot be compiled is decided by the policy it is in.

use mesh_core::config::{
    HeaderMatcher, HeaderPredicate, IpRange, MetadataMatcher, PathTemplate, Permission, Principal,
    RbacPolicy, Regex, StringMatcher, StringPattern, ValueMatcher,
};

use super::{CompileOptions, claims};
use crate::model::{Condition, Operation, Rule, Source};

/// Everybody, everything.
pub(super) fn anything() -> RbacPolicy {
    RbacPolicy {
        principals: vec![Principal::Any],
        permissions: vec![Permission::Any],
        condition: None,
    }
}

/// The part that is wrong, and why.
pub(super) type Wrong = (String, String);

/// What the values of a rule are read with.
pub(super) struct Rules<'o> {
    pub(super) options: &'o CompileOptions,
    /// The policy's.
    pub(super) namespace: &'o str,
}

/// A predicate over the caller or over what is asked for.
trait Predicate: Sized {
    fn any(tests: Vec<Self>) -> Self;
    fn all(tests: Vec<Self>) -> Self;
    fn not(test: Self) -> Self;
    fn everything() -> Self;
}

macro_rules! predicate {
    ($kind:ident) => {
        impl Predicate for $kind {
            fn any(tests: Vec<Self>) -> Self {
                Self::Or(tests)
            }
            fn all(tests: Vec<Self>) -> Self {
                Self::And(tests)
            }
            fn not(test: Self) -> Self {
                Self::Not(Box::new(test))
            }
            fn everything() -> Self {
                Self::Any
            }
        }
    };
}
predicate!(Principal);
predicate!(Permission);

/// All of what a rule says on one side.
struct All<P>(Vec<P>);

impl<P: Predicate> All<P> {
    /// One of `is`, none of `is_not`; empty lists say nothing.
    fn push(
        &mut self,
        field: &str,
        is: &[String],
        is_not: &[String],
        one: impl Fn(&str) -> Result<P, String>,
    ) -> Result<(), Wrong> {
        let any = |texts: &[String], field: String| {
            let tests = texts.iter().map(|text| one(text));
            let tests: Result<Vec<_>, _> = tests.collect();
            tests.map(P::any).map_err(|message| (field, message))
        };
        if !is.is_empty() {
            self.0.push(any(is, field.to_owned())?);
        }
        if !is_not.is_empty() {
            self.0.push(P::not(any(is_not, negated(field))?));
        }
        Ok(())
    }

    fn finish(mut self) -> P {
        match self.0.len() {
            0 => P::everything(),
            1 => self.0.remove(0),
            _ => P::all(self.0),
        }
    }
}

/// `from.source.principals` to `from.source.notPrincipals`.
fn negated(field: &str) -> String {
    let (place, name) = field.rsplit_once('.').unwrap_or(("", field));
    let (first, rest) = name.split_at(1);
    format!("{place}.not{}{rest}", first.to_ascii_uppercase())
}

impl Rules<'_> {
    /// What a rule says; else the part of it that is wrong, and why.
    pub(super) fn compile(&self, rule: &Rule) -> Result<RbacPolicy, Wrong> {
        let (mut who, mut what) = (All(Vec::new()), All(Vec::new()));
        for (index, condition) in rule.when.iter().enumerate() {
            self.condition(condition, &mut who, &mut what)
                .map_err(|(part, message)| (format!("when[{index}].{part}"), message))?;
        }
        if !rule.from.is_empty() {
            let sources = rule.from.iter().map(|from| self.source(&from.source));
            who.0
                .push(Principal::Or(sources.collect::<Result<_, _>>()?));
        }
        if !rule.to.is_empty() {
            let operations = rule.to.iter().map(|to| operation(&to.operation));
            what.0
                .push(Permission::Or(operations.collect::<Result<_, _>>()?));
        }
        Ok(RbacPolicy {
            principals: vec![who.finish()],
            permissions: vec![what.finish()],
            condition: None,
        })
    }

    fn source(&self, source: &Source) -> Result<Principal, Wrong> {
        let mut all = All(Vec::new());
        let at = |name: &str| format!("from.source.{name}");
        all.push(
            &at("principals"),
            &source.principals,
            &source.not_principals,
            by_name,
        )?;
        let (is, is_not) = (&source.request_principals, &source.not_request_principals);
        let by_token = |text: &str| claims::principal(text);
        all.push(&at("requestPrincipals"), is, is_not, by_token)?;
        let by_namespace = |text: &str| self.by_namespace(text);
        let (is, is_not) = (&source.namespaces, &source.not_namespaces);
        all.push(&at("namespaces"), is, is_not, by_namespace)?;
        let by_account = |text: &str| self.by_account(text);
        let (is, is_not) = (&source.service_accounts, &source.not_service_accounts);
        all.push(&at("serviceAccounts"), is, is_not, by_account)?;
        let (is, is_not) = (&source.trust_domains, &source.not_trust_domains);
        all.push(&at("trustDomains"), is, is_not, by_trust_domain)?;
        let range = |text: &str| text.parse::<IpRange>();
        let by_peer = |text: &str| range(text).map(Principal::DirectRemoteIp);
        all.push(
            &at("ipBlocks"),
            &source.ip_blocks,
            &source.not_ip_blocks,
            by_peer,
        )?;
        let by_caller = |text: &str| range(text).map(Principal::RemoteIp);
        let (is, is_not) = (&source.remote_ip_blocks, &source.not_remote_ip_blocks);
        all.push(&at("remoteIpBlocks"), is, is_not, by_caller)?;
        // A source that says nothing is everybody, as Istio has it.
        Ok(all.finish())
    }

    fn by_namespace(&self, text: &str) -> Result<Principal, String> {
        if text == "*" {
            return Ok(Principal::Authenticated(None));
        }
        let segment = segment(text, "a namespace")?;
        let domain = &self.options.trust_domain;
        if text.contains('*') {
            let domain = Regex::escaped(domain);
            return authenticated_regex(&format!("spiffe://{domain}/ns/{segment}/sa/.*"));
        }
        let prefix = StringPattern::Prefix(format!("spiffe://{domain}/ns/{text}/sa/"));
        Ok(Principal::Authenticated(Some(StringMatcher::new(prefix)?)))
    }

    fn by_account(&self, text: &str) -> Result<Principal, String> {
        let (namespace, account) = text.split_once('/').unwrap_or((self.namespace, text));
        let is_name = |name: &str| !name.is_empty() && !name.contains(['*', '/']);
        if !is_name(namespace) || !is_name(account) {
            let wrong = format!("{text:?} is not a service account: write NAMESPACE/NAME or NAME");
            return Err(wrong);
        }
        let domain = &self.options.trust_domain;
        let name = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
        Ok(Principal::Authenticated(Some(StringMatcher::exact(name))))
    }

    /// One condition, on the side that it is about.
    fn condition(
        &self,
        condition: &Condition,
        who: &mut All<Principal>,
        what: &mut All<Permission>,
    ) -> Result<(), Wrong> {
        let (key, is, is_not) = (
            condition.key.as_str(),
            &condition.values[..],
            &condition.not_values[..],
        );
        let wrong = |message: String| ("key".to_owned(), message);
        if is.is_empty() && is_not.is_empty() {
            let message = "has neither values nor notValues".to_owned();
            return Err(("values".to_owned(), message));
        }
        if let Some(name) = bracketed(key, "request.headers") {
            let name = name.map_err(wrong)?;
            let by_header = |text: &str| header(&name, text, false).map(Principal::Header);
            return who.push("values", is, is_not, by_header);
        }
        if let Some(path) = key.strip_prefix("request.auth.claims") {
            let path = claims::path(path).map_err(wrong)?;
            let by_claim = |text: &str| Ok(Principal::Metadata(claims::claim(&path, text)?));
            return who.push("values", is, is_not, by_claim);
        }
        let range = |text: &str| text.parse::<IpRange>();
        match key {
            "source.ip" => who.push("values", is, is_not, |text| {
                range(text).map(Principal::DirectRemoteIp)
            }),
            "remote.ip" => who.push("values", is, is_not, |text| {
                range(text).map(Principal::RemoteIp)
            }),
            "source.namespace" => who.push("values", is, is_not, |text| self.by_namespace(text)),
            "source.serviceAccount" => who.push("values", is, is_not, |text| self.by_account(text)),
            "source.principal" => who.push("values", is, is_not, by_name),
            "request.auth.principal" => who.push("values", is, is_not, claims::principal),
            "request.auth.audiences" => who.push("values", is, is_not, by_claim_of("aud")),
            "request.auth.presenter" => who.push("values", is, is_not, by_claim_of("azp")),
            "destination.ip" => what.push("values", is, is_not, |text| {
                range(text).map(Permission::DestinationIp)
            }),
            "destination.port" => what.push("values", is, is_not, port),
            "connection.sni" => what.push("values", is, is_not, |text| {
                let matcher = match text {
                    "*" => StringMatcher::new(StringPattern::Regex(Regex::new(".+")?))?,
                    text => pattern(text)?,
                };
                Ok(Permission::RequestedServerName(matcher))
            }),
            _ => Err(wrong(format!(
                "{key:?} is not an attribute that is known here"
            ))),
        }
    }
}

fn by_claim_of(claim: &str) -> impl Fn(&str) -> Result<Principal, String> {
    move |text| {
        Ok(Principal::Metadata(claims::claim(
            &[claim.to_owned()],
            text,
        )?))
    }
}

/// What is in the brackets of `NAME[x]`; `None` when the key is about something else.
fn bracketed(key: &str, name: &str) -> Option<Result<String, String>> {
    let rest = key.strip_prefix(name)?;
    let inside = rest
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_name = |inside: &&str| http::HeaderName::from_bytes(inside.as_bytes()).is_ok();
    Some(match inside.filter(is_name) {
        Some(inside) => Ok(inside.to_ascii_lowercase()),
        None => Err(format!("{key:?}: write {name}[NAME]")),
    })
}

fn by_name(text: &str) -> Result<Principal, String> {
    let name = match text {
        "*" => return Ok(Principal::Authenticated(None)),
        text if text.starts_with('*') => text.to_owned(),
        text => format!("spiffe://{text}"),
    };
    Ok(Principal::Authenticated(Some(pattern(&name)?)))
}

fn by_trust_domain(text: &str) -> Result<Principal, String> {
    if text == "*" {
        return Ok(Principal::Authenticated(None));
    }
    let segment = segment(text, "a trust domain")?;
    authenticated_regex(&format!("spiffe://{segment}/.*"))
}

fn authenticated_regex(text: &str) -> Result<Principal, String> {
    let matcher = StringMatcher::new(StringPattern::Regex(Regex::new(text)?))?;
    Ok(Principal::Authenticated(Some(matcher)))
}

/// A part between two slashes, with `*` first or last, as a regular expression.
fn segment(text: &str, what: &str) -> Result<String, String> {
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*'));
    let plain = inner.unwrap_or(text);
    if plain.is_empty() || plain.contains(['*', '/']) {
        return Err(format!(
            "{text:?} is not {what}, with * first or last at most"
        ));
    }
    let plain = Regex::escaped(plain);
    Ok(match (inner, text.starts_with('*')) {
        (None, _) => plain,
        (Some(_), true) => format!("[^/]*{plain}"),
        (Some(_), false) => format!("{plain}[^/]*"),
    })
}

/// A predicate over a header; `*` asks for presence.
pub(super) fn header(name: &str, text: &str, ignore_case: bool) -> Result<HeaderMatcher, String> {
    let predicate = match text {
        "*" => HeaderPredicate::Present(true),
        text => HeaderPredicate::String(pattern(text)?.ignore_case(ignore_case)),
    };
    Ok(HeaderMatcher::new(name, predicate))
}

fn operation(operation: &Operation) -> Result<Permission, Wrong> {
    let mut all = All(Vec::new());
    let at = |name: &str| format!("to.operation.{name}");
    // Hosts are compared without case (CVE-2021-39155).
    let host = |text: &str| header(":authority", text, true).map(Permission::Header);
    all.push(&at("hosts"), &operation.hosts, &operation.not_hosts, host)?;
    all.push(&at("ports"), &operation.ports, &operation.not_ports, port)?;
    let method = |text: &str| header(":method", text, false).map(Permission::Header);
    all.push(
        &at("methods"),
        &operation.methods,
        &operation.not_methods,
        method,
    )?;
    all.push(&at("paths"), &operation.paths, &operation.not_paths, path)?;
    Ok(all.finish())
}

fn port(text: &str) -> Result<Permission, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(Permission::DestinationPort(port)),
        _ => Err(format!("{text:?} is not a port")),
    }
}

/// Exact, `prefix*`, `*suffix`, or a template with `{*}` for a segment and `{**}` for any number.
fn path(text: &str) -> Result<Permission, String> {
    if text == "*" {
        return Ok(Permission::Any);
    }
    if !text.contains(['{', '}']) {
        return Ok(Permission::Path(pattern(text)?));
    }
    let literal = text.replace("{**}", "").replace("{*}", "");
    if literal.contains(['{', '}', '*']) {
        let wrong = format!("{text:?}: beside {{*}} and {{**}} a template holds plain text");
        return Err(wrong);
    }
    let template = text.replace("{**}", "**").replace("{*}", "*");
    PathTemplate::new(&template).map(Permission::Template)
}

/// Istio's text patterns: exact, `prefix*` or `*suffix`.
pub(super) fn pattern(text: &str) -> Result<StringMatcher, String> {
    let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(suffix), _) => StringPattern::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => StringPattern::Prefix(prefix.to_owned()),
        (None, None) => StringPattern::Exact(text.to_owned()),
    };
    StringMatcher::new(pattern)
}

/// A value of metadata: a text, or a list that holds it; `*` asks for presence.
pub(super) fn value(text: &str) -> Result<ValueMatcher, String> {
    if text == "*" {
        return Ok(ValueMatcher::Present);
    }
    let text = ValueMatcher::String(pattern(text)?);
    Ok(ValueMatcher::Or(vec![
        text.clone(),
        ValueMatcher::ListContains(Box::new(text)),
    ]))
}

/// A claim of the token that was verified.
pub(super) fn of_token(path: &[String], value: ValueMatcher) -> MetadataMatcher {
    let path = std::iter::once(claims::PAYLOAD.to_owned()).chain(path.iter().cloned());
    MetadataMatcher::new(claims::NAMESPACE, path, value)
}
