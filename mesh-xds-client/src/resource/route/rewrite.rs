//! Other paths and authorities, redirects and direct responses.
//!
//! Stage 3.

use envoy_types::pb::envoy::{
    config::{
        core::v3::data_source,
        route::v3::{
            DirectResponseAction, RedirectAction, RouteAction as ActionProto,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            route_action::HostRewriteSpecifier,
        },
    },
    extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig,
    r#type::matcher::v3::RegexMatchAndSubstitute,
};
use mesh_core::{
    config::{
        DirectResponse, HostRewrite, PathMatcher, PathPattern, PathRewrite, Redirect, RedirectPath,
        RegexRewrite, RouteAction, TemplateRewrite,
    },
    route::Feature,
};

use crate::resource::{
    path::Sink,
    value::{is, parse},
};

/// The first field that would change what is sent or to whom, and is not known here.
pub(super) fn unsupported(proto: &ActionProto) -> Option<&'static str> {
    let is_template = |any| is::<UriTemplateRewriteConfig>(any);
    let policy = proto.path_rewrite_policy.as_ref();
    [
        ("path_rewrite", !proto.path_rewrite.is_empty()),
        (
            "this path_rewrite_policy",
            policy.is_some_and(|policy| !policy.typed_config.as_ref().is_some_and(is_template)),
        ),
        (
            "host_rewrite",
            matches!(
                proto.host_rewrite_specifier,
                Some(HostRewriteSpecifier::HostRewrite(_))
            ),
        ),
    ]
    .into_iter()
    .find_map(|(name, is_set)| is_set.then_some(name))
}

pub(super) fn regex_rewrite(
    sink: &mut Sink,
    field: &str,
    proto: &RegexMatchAndSubstitute,
) -> Option<RegexRewrite> {
    let Some(pattern) = &proto.pattern else {
        return sink.error_at(&format!("{field}.pattern"), "is missing");
    };
    match RegexRewrite::new(&pattern.regex, &proto.substitution) {
        Ok(rewrite) => Some(rewrite),
        Err(reason) => sink.error_at(field, reason),
    }
}

/// The outer `None` is an error.
pub(super) fn path(
    sink: &mut Sink,
    matcher: Option<&PathMatcher>,
    proto: &ActionProto,
) -> Option<Option<PathRewrite>> {
    let feature = Feature::PathRewrite;
    let (prefix, regex) = (&proto.prefix_rewrite, &proto.regex_rewrite);
    let policy = proto.path_rewrite_policy.as_ref();
    sink.pending("prefix_rewrite", feature, !prefix.is_empty());
    sink.pending("regex_rewrite", feature, regex.is_some());
    sink.pending("path_rewrite_policy", feature, policy.is_some());
    let count = usize::from(!prefix.is_empty())
        + usize::from(regex.is_some())
        + usize::from(policy.is_some());
    if count > 1 {
        return sink
            .error("only one of prefix_rewrite, regex_rewrite and path_rewrite_policy can be set");
    }
    if !prefix.is_empty() {
        return Some(Some(PathRewrite::Prefix(prefix.clone())));
    }
    if let Some(regex) = regex {
        let rewrite = regex_rewrite(sink, "regex_rewrite", regex)?;
        return Some(Some(PathRewrite::Regex(rewrite)));
    }
    let Some(any) = policy.and_then(|policy| policy.typed_config.as_ref()) else {
        return Some(None);
    };
    sink.field("path_rewrite_policy.typed_config", |sink| {
        let proto: UriTemplateRewriteConfig = parse(sink, any)?;
        let Some(PathPattern::Template(template)) = matcher.map(|matcher| &matcher.pattern) else {
            return sink.error("needs a path_match_policy with a template");
        };
        match TemplateRewrite::new(template, &proto.path_template_rewrite) {
            Ok(rewrite) => Some(Some(PathRewrite::Template(rewrite))),
            Err(reason) => sink.error_at("path_template_rewrite", reason),
        }
    })
}

/// The outer `None` is an error.
pub(super) fn host(sink: &mut Sink, proto: &ActionProto) -> Option<Option<HostRewrite>> {
    use HostRewriteSpecifier as Specifier;
    let Some(specifier) = &proto.host_rewrite_specifier else {
        return Some(None);
    };
    let (name, rewrite) = match specifier {
        Specifier::HostRewriteLiteral(host) => (
            "host_rewrite_literal",
            (!host.is_empty()).then(|| HostRewrite::Literal(host.clone())),
        ),
        Specifier::HostRewriteHeader(header) => (
            "host_rewrite_header",
            (!header.is_empty()).then(|| HostRewrite::Header(header.to_ascii_lowercase())),
        ),
        Specifier::HostRewritePathRegex(proto) => {
            let name = "host_rewrite_path_regex";
            let regex = regex_rewrite(sink, name, proto)?;
            (name, Some(HostRewrite::PathRegex(regex)))
        }
        Specifier::AutoHostRewrite(value) => (
            "auto_host_rewrite",
            value.value.then_some(HostRewrite::Endpoint),
        ),
        Specifier::HostRewrite(_) => return Some(None),
    };
    sink.pending(name, Feature::HostRewrite, rewrite.is_some());
    Some(rewrite)
}

pub(super) fn redirect(sink: &mut Sink, proto: &RedirectAction) -> Option<RouteAction> {
    let status = match RedirectResponseCode::try_from(proto.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return sink.error_at("response_code", "is not known"),
    };
    let scheme = match &proto.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            Some(scheme.to_ascii_lowercase()).filter(|scheme| !scheme.is_empty())
        }
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
    };
    let port = match u16::try_from(proto.port_redirect) {
        Ok(port) => Some(port).filter(|port| *port != 0),
        Err(_) => return sink.error_at("port_redirect", "must be 0 to 65535"),
    };
    let path = match &proto.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            (!path.is_empty()).then(|| RedirectPath::Full(path.clone()))
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            (!prefix.is_empty()).then(|| RedirectPath::Prefix(prefix.clone()))
        }
        Some(PathRewriteSpecifier::RegexRewrite(proto)) => Some(RedirectPath::Regex(
            regex_rewrite(sink, "regex_rewrite", proto)?,
        )),
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            let reason = "a redirect's path_rewrite is not supported";
            return Some(RouteAction::Unsupported(reason.into()));
        }
        None => None,
    };
    Some(RouteAction::Redirect(Box::new(Redirect {
        scheme,
        host: Some(proto.host_redirect.clone()).filter(|host| !host.is_empty()),
        port,
        path,
        status,
        strip_query: proto.strip_query,
    })))
}

pub(super) fn direct(sink: &mut Sink, proto: &DirectResponseAction) -> Option<RouteAction> {
    if proto.body_format.is_some() {
        let reason = "a body_format is not supported";
        return Some(RouteAction::Unsupported(reason.into()));
    }
    let Ok(status @ 200..=599) = u16::try_from(proto.status) else {
        return sink.error_at("status", format!("{} is not 200 to 599", proto.status));
    };
    use data_source::Specifier;
    let body = match proto.body.as_ref().and_then(|body| body.specifier.as_ref()) {
        None => Vec::new(),
        Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
        Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            let reason = "a body from a file or the environment is not supported";
            return Some(RouteAction::Unsupported(reason.into()));
        }
    };
    Some(RouteAction::DirectResponse(Box::new(DirectResponse {
        status,
        body: body.into(),
    })))
}
