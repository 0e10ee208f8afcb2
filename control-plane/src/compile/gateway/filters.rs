//! What happens to a request on its way. A filter that cannot be used fails the requests of its
//! rule, as Gateway API says: it is never left out.

use std::sync::Arc;

use http::HeaderName;
use mesh_core::config::{
    AppendAction, CorsPolicy, FilterConfig, FilterOverride, FilterOverrides, Fraction,
    HeaderChanges, HeaderMutations, HeaderValue, HostRewrite, Mirror, MirrorTarget, PathPattern,
    PathRewrite, Redirect, RedirectPath, Regex, RegexRewrite, RouteMatch, StringMatcher,
    StringPattern, ValueTemplate,
};

use super::super::{CORS_FILTER, route_match::Wrong, routes::Context};
use crate::model::{
    Object,
    gateway::{
        CorsFilter, Filter, HeaderFilter, MirrorFilter, PathModifier, RedirectFilter, RewriteFilter,
    },
};

/// What all filters together do.
#[derive(Clone, Debug, Default)]
pub(super) struct Effects {
    pub(super) headers: HeaderMutations,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) redirect: Option<RedirectFilter>,
    pub(super) host: Option<HostRewrite>,
    pub(super) path: Option<PathModifier>,
    /// Filters that work by what a route says of them.
    pub(super) filters: FilterOverrides,
}

impl Effects {
    /// Whether it can be done for one of several backends.
    pub(super) fn is_for_a_backend(&self) -> bool {
        self.mirrors.is_empty()
            && self.redirect.is_none()
            && self.path.is_none()
            && self.filters == FilterOverrides::default()
    }

    pub(super) fn literal_host(&self) -> Option<String> {
        match &self.host {
            Some(HostRewrite::Literal(host)) => Some(host.clone()),
            _ => None,
        }
    }
}

impl Context<'_> {
    /// What the filters at `{field}.filters` do.
    pub(super) fn filters(
        &mut self,
        object: &Object,
        declared: &[Filter],
        field: &str,
        is_grpc: bool,
    ) -> Result<Effects, Wrong> {
        let mut effects = Effects::default();
        let mut seen = Vec::new();
        for (index, filter) in declared.iter().enumerate() {
            let place = format!("filters[{index}]");
            let kind = filter.r#type.as_str();
            let is_twice = kind != "RequestMirror" && seen.contains(&kind);
            seen.push(kind);
            if is_twice {
                let message = format!("there is more than one {kind}");
                return Err((format!("{place}.type"), message));
            }
            let missing = |part: &str| {
                let message = format!("{kind} needs {part}");
                (format!("{place}.{part}"), message)
            };
            let inside =
                |part: &str, (inner, message): Wrong| (format!("{place}.{part}.{inner}"), message);
            match kind {
                "RequestHeaderModifier" => {
                    let part = "requestHeaderModifier";
                    let declared = filter.request_header_modifier.as_ref();
                    effects.headers.request = changes(declared.ok_or_else(|| missing(part))?)
                        .map_err(|wrong| inside(part, wrong))?;
                }
                "ResponseHeaderModifier" => {
                    let part = "responseHeaderModifier";
                    let declared = filter.response_header_modifier.as_ref();
                    effects.headers.response = changes(declared.ok_or_else(|| missing(part))?)
                        .map_err(|wrong| inside(part, wrong))?;
                }
                "RequestMirror" => {
                    let part = "requestMirror";
                    let declared = filter.request_mirror.as_ref();
                    let declared = declared.ok_or_else(|| missing(part))?;
                    let place = format!("{place}.{part}");
                    let mirror = self.mirror_filter(object, declared, field, &place)?;
                    effects.mirrors.extend(mirror);
                }
                "RequestRedirect" if !is_grpc => {
                    let declared = filter.request_redirect.clone();
                    effects.redirect = Some(declared.ok_or_else(|| missing("requestRedirect"))?);
                }
                "URLRewrite" if !is_grpc => {
                    let declared = filter.url_rewrite.clone();
                    let RewriteFilter { hostname, path } =
                        declared.ok_or_else(|| missing("urlRewrite"))?;
                    effects.host = hostname.map(HostRewrite::Literal);
                    effects.path = path;
                }
                "CORS" if !is_grpc => {
                    let declared = filter.cors.as_ref().ok_or_else(|| missing("cors"))?;
                    let policy = cors(declared).map_err(|wrong| inside("cors", wrong))?;
                    let policy = FilterOverride::with(policy);
                    effects.filters.by_name.insert(CORS_FILTER.into(), policy);
                }
                other => {
                    let message = format!("{other:?} is no filter of {}", object.key.kind);
                    return Err((format!("{place}.type"), message));
                }
            }
        }
        let is_rewritten = effects.host.is_some() || effects.path.is_some();
        if effects.redirect.is_some() && (is_rewritten || !effects.mirrors.is_empty()) {
            let message =
                "RequestRedirect and what is done to a forwarded request exclude each other";
            return Err(("filters".to_owned(), message.to_owned()));
        }
        Ok(effects)
    }

    /// A copy; one to what is not there is not made, which the route's status says.
    fn mirror_filter(
        &mut self,
        object: &Object,
        declared: &MirrorFilter,
        field: &str,
        place: &str,
    ) -> Result<Option<Mirror>, Wrong> {
        let fraction = match (&declared.percent, &declared.fraction) {
            (Some(_), Some(_)) => {
                let message = "percent and fraction exclude each other".to_owned();
                return Err((format!("{place}.percent"), message));
            }
            (Some(percent), None) => Some((*percent, 100, "percent")),
            (None, Some(fraction)) => {
                let all = fraction.denominator.unwrap_or(100);
                Some((fraction.numerator, all, "fraction"))
            }
            (None, None) => None,
        };
        let fraction = match fraction {
            Some((part, all, at)) if all == 0 || part > all => {
                let message = format!("{part} of {all} is no share");
                return Err((format!("{place}.{at}"), message));
            }
            Some((part, all, _)) => Fraction::new(part, all),
            None => None,
        };
        let target = (&declared.backend_ref).into();
        let cluster = self.backend(object, &target, &format!("{field}.{place}.backendRef"));
        Ok(cluster.ok().map(|cluster| Mirror {
            cluster: MirrorTarget::Cluster(cluster.into()),
            fraction,
            shadow_suffix: true,
            trace_sampled: None,
        }))
    }
}

fn changes(declared: &HeaderFilter) -> Result<HeaderChanges, Wrong> {
    let name = |field: &str, name: &str| match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if name != http::header::HOST => Ok(name),
        _ => {
            let message =
                format!("{name:?} cannot be changed: for the authority there is URLRewrite");
            Err((field.to_owned(), message))
        }
    };
    let mut changes = HeaderChanges::default();
    for (index, header) in declared.remove.iter().enumerate() {
        let header = name(&format!("remove[{index}]"), header)?;
        changes.remove.push(header);
    }
    let lists = [
        ("set", &declared.set, AppendAction::Overwrite),
        ("add", &declared.add, AppendAction::Append),
    ];
    for (list, values, action) in lists {
        for (index, header) in values.iter().enumerate() {
            let field = format!("{list}[{index}].name");
            // Gateway API knows no commands in values.
            let literal = header.value.replace('%', "%%");
            changes.add.push(HeaderValue {
                name: name(&field, &header.name)?,
                value: ValueTemplate::new(&literal, true)
                    .map_err(|message| (format!("{list}[{index}].value"), message))?,
                action,
                keep_empty: false,
            });
        }
    }
    Ok(changes)
}

/// The prefix that a match asks for, without a slash at its end.
fn prefix_of(matcher: &RouteMatch) -> Result<&str, Wrong> {
    match &matcher.path.pattern {
        PathPattern::Prefix(prefix) | PathPattern::SeparatedPrefix(prefix) => {
            Ok(prefix.trim_end_matches('/'))
        }
        _ => {
            let message = "every match of its rule must be a PathPrefix for ReplacePrefixMatch";
            Err(("filters".to_owned(), message.to_owned()))
        }
    }
}

/// What becomes of a path.
enum NewPath<'m> {
    Same,
    Full(&'m str),
    Prefix(String),
    Regex(RegexRewrite),
}

fn new_path<'m>(modifier: &'m PathModifier, matcher: &RouteMatch) -> Result<NewPath<'m>, Wrong> {
    let wrong = |message: String| ("filters".to_owned(), message);
    let PathModifier {
        r#type: kind,
        replace_full_path: full,
        replace_prefix_match: prefix,
    } = modifier;
    match (kind.as_str(), full, prefix) {
        ("ReplaceFullPath", Some(full), None) => Ok(NewPath::Full(full)),
        ("ReplacePrefixMatch", None, Some(replacement)) => {
            let prefix = prefix_of(matcher)?;
            match (prefix, replacement.trim_end_matches('/')) {
                ("", "") => Ok(NewPath::Same),
                // All of the prefix `/` is the first slash.
                ("", replacement) => Ok(NewPath::Prefix(format!("{replacement}/"))),
                (prefix, "") => {
                    // Nothing must be left of the prefix but one slash.
                    let pattern = format!("^{}/*", Regex::escaped(prefix));
                    let regex = RegexRewrite::new(&pattern, "/").map_err(wrong)?;
                    Ok(NewPath::Regex(regex))
                }
                (_, replacement) => Ok(NewPath::Prefix(replacement.to_owned())),
            }
        }
        _ => Err(wrong(format!(
            "the path's type {kind:?} and the field that is written do not fit"
        ))),
    }
}

/// The path of a forwarded request; `None` when it stays.
pub(super) fn path_rewrite(
    modifier: &PathModifier,
    matcher: &RouteMatch,
) -> Result<Option<PathRewrite>, Wrong> {
    Ok(match new_path(modifier, matcher)? {
        NewPath::Same => None,
        NewPath::Full(path) => {
            let literal = path.replace('\\', r"\\");
            let all = RegexRewrite::new("^.*$", &literal);
            let all = all.map_err(|message| ("filters".to_owned(), message))?;
            Some(PathRewrite::Regex(all))
        }
        NewPath::Prefix(prefix) => Some(PathRewrite::Prefix(prefix)),
        NewPath::Regex(regex) => Some(PathRewrite::Regex(regex)),
    })
}

/// A redirect of requests to a service's port.
pub(super) fn redirect(
    declared: &RedirectFilter,
    matcher: &RouteMatch,
    dialled: u16,
) -> Result<Redirect, Wrong> {
    let wrong = |message: String| ("filters".to_owned(), message);
    let status = declared.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        let message = format!("statusCode {status} is not 301, 302, 303, 307 or 308");
        return Err(wrong(message));
    }
    let well_known = match declared.scheme.as_deref() {
        None | Some("http") => 80,
        Some("https") => 443,
        Some(other) => return Err(wrong(format!("scheme {other:?} is not http or https"))),
    };
    let is_plain = matches!(dialled, 80 | 443);
    let port = match (declared.port, &declared.scheme, &declared.hostname) {
        (Some(port), ..) if port == well_known && is_plain => None,
        (Some(port), ..) => Some(port),
        // The port of the scheme, which is only written where another one would be.
        (None, Some(_), None) if !is_plain => Some(well_known),
        (None, None, Some(_)) => Some(dialled).filter(|dialled| *dialled != well_known),
        (None, ..) => None,
    };
    let path = declared.path.as_ref();
    let path = path
        .map(|modifier| new_path(modifier, matcher))
        .transpose()?;
    Ok(Redirect {
        scheme: declared.scheme.clone(),
        host: declared.hostname.clone(),
        port,
        path: match path {
            None | Some(NewPath::Same) => None,
            Some(NewPath::Full(path)) => Some(RedirectPath::Full(path.to_owned())),
            Some(NewPath::Prefix(prefix)) => Some(RedirectPath::Prefix(prefix)),
            Some(NewPath::Regex(regex)) => Some(RedirectPath::Regex(regex)),
        },
        status,
        strip_query: false,
    })
}

/// How long browsers remember an answer, in seconds (Gateway API).
const CORS_MAX_AGE: u32 = 5;

/// What pages of other origins may do.
fn cors(declared: &CorsFilter) -> Result<FilterConfig, Wrong> {
    let mut allow_origins = Vec::new();
    for (index, origin) in declared.allow_origins.iter().enumerate() {
        let wrong = |message| (format!("allowOrigins[{index}]"), message);
        let pattern = match origin.split_once('*') {
            None if origin.is_empty() => return Err(wrong("it is empty".to_owned())),
            None => StringPattern::Exact(origin.clone()),
            Some((scheme, host)) => {
                let quoted = |text: &str| text.replace('.', "\\.");
                let regex = format!("{}.*{}", quoted(scheme), quoted(host));
                StringPattern::Regex(Regex::new(&regex).map_err(wrong)?)
            }
        };
        allow_origins.push(StringMatcher::new(pattern).map_err(wrong)?);
    }
    let max_age = declared.max_age.unwrap_or(CORS_MAX_AGE);
    Ok(FilterConfig::Cors(Some(Arc::new(CorsPolicy {
        allow_origins,
        allow_methods: declared.allow_methods.join(","),
        allow_headers: declared.allow_headers.join(","),
        expose_headers: declared.expose_headers.join(","),
        max_age: max_age.to_string(),
        allow_credentials: declared.allow_credentials,
        allow_private_network_access: None,
        // The backend answers who asks for something else.
        forward_not_matching_preflights: Some(true),
        enabled: None,
    }))))
}
