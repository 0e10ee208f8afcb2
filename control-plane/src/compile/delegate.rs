//! Routes of a VirtualService that another one declares (Istio's delegates).
//!
//! A route of the delegate takes what its own match and one of the root's both match; two that
//! contradict each other take nothing. What the delegate's route does not say of what happens on
//! the way, the root's says. A delegate has no delegates.

use std::collections::BTreeMap;

use super::{
    routes::Context,
    scoped::{Audience, DeclaredRoute},
};
use crate::{
    diagnostic::{BAD_VALUE, UNKNOWN_REFERENCE},
    model::{DelegateRef, HttpMatch, HttpRoute, Object, ObjectKey, Spec, StringMatch},
};

impl Context<'_> {
    /// The routes of the delegate in the place of `root`, which is at `field`. What is wrong with
    /// it fails the requests that `root` matches.
    pub(super) fn delegate(
        &mut self,
        object: &Object,
        root: &HttpRoute,
        delegate: &DelegateRef,
        field: &str,
        routes: &mut Vec<DeclaredRoute>,
    ) {
        let field_of_name = format!("{field}.delegate.name");
        let namespace = delegate.namespace.as_ref();
        let namespace = namespace.unwrap_or(&object.key.namespace);
        let key = ObjectKey {
            kind: "VirtualService".to_owned(),
            namespace: namespace.clone(),
            name: delegate.name.clone(),
        };
        let found = self.objects.get(&key).map(|found| (found, &found.spec));
        let wrong = match found {
            Some((_, Spec::VirtualService(spec))) => {
                let export_to = spec.export_to.iter().map(String::as_str);
                let audience = Audience::exported(export_to, namespace);
                if !audience.has(&object.key.namespace) {
                    let message = format!("{key} is not exported to {}", object.key.namespace);
                    Some((
                        UNKNOWN_REFERENCE,
                        message,
                        "name the namespace in its exportTo",
                    ))
                } else if !spec.hosts.is_empty() {
                    let message = format!("{key} has hosts of its own");
                    Some((BAD_VALUE, message, "a delegate has no hosts"))
                } else if !root.route.is_empty() || root.redirect.is_some() {
                    let message = "a route has a destination, a redirect or a delegate";
                    Some((BAD_VALUE, message.to_owned(), "keep one of them"))
                } else {
                    None
                }
            }
            _ => {
                let message = format!("there is no {key}");
                Some((UNKNOWN_REFERENCE, message, "add it, or mend the name"))
            }
        };
        let (Some((child, Spec::VirtualService(spec))), None) = (found, &wrong) else {
            if let Some((code, message, help)) = wrong {
                let finding = object.diagnose(code, &field_of_name, message, help);
                self.findings.push(finding);
            }
            self.route_that_fails(object, root, field, routes);
            return;
        };
        let (child, spec) = (child.clone(), spec.clone());
        self.compiled.made_of(&self.service.fqdn, &child.key);
        for (index, leaf) in spec.http.iter().enumerate() {
            let place = format!("spec.http[{index}]");
            if leaf.delegate.is_some() {
                let message = "a delegate has no delegates";
                self.wrong(&child, &format!("{place}.delegate"), message);
                continue;
            }
            let Some(matches) = merged_matches(&root.r#match, &leaf.r#match) else {
                let message = format!("its match contradicts that of {} {field}", object.key);
                self.wrong(&child, &format!("{place}.match"), &message);
                continue;
            };
            let merged = merged(root, leaf, matches);
            self.route(&child, &merged, &place, routes);
        }
    }

    /// Routes that fail the requests that `root` matches.
    fn route_that_fails(
        &mut self,
        object: &Object,
        root: &HttpRoute,
        field: &str,
        routes: &mut Vec<DeclaredRoute>,
    ) {
        let from = routes.len();
        let findings = self.findings.len();
        self.route(object, root, field, routes);
        // It has no destination, which is not the fault.
        self.findings.truncate(findings);
        for declared in &mut routes[from..] {
            let reason = "its delegate cannot be used".to_owned();
            declared.route.action = mesh_core::config::RouteAction::Unsupported(reason);
        }
    }
}

/// What happens on the way is the leaf's, or else the root's.
fn merged(root: &HttpRoute, leaf: &HttpRoute, matches: Vec<HttpMatch>) -> HttpRoute {
    let mut merged = HttpRoute {
        r#match: matches,
        ..leaf.clone()
    };
    merged.name = match (root.name.as_str(), leaf.name.as_str()) {
        ("", name) | (name, "") => name.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    };
    let is_forwarded = leaf.redirect.is_none() && leaf.direct_response.is_none();
    if is_forwarded {
        merged.rewrite = merged.rewrite.or_else(|| root.rewrite.clone());
        merged.timeout = merged.timeout.or_else(|| root.timeout.clone());
        merged.retries = merged.retries.or_else(|| root.retries.clone());
        merged.fault = merged.fault.or_else(|| root.fault.clone());
        merged.cors_policy = merged.cors_policy.or_else(|| root.cors_policy.clone());
        if merged.mirror.is_none() && merged.mirrors.is_empty() {
            merged.mirror.clone_from(&root.mirror);
            merged.mirrors.clone_from(&root.mirrors);
            merged.mirror_percentage.clone_from(&root.mirror_percentage);
        }
    }
    merged.headers = merged.headers.or_else(|| root.headers.clone());
    merged
}

/// Every pair that does not contradict itself; `None` when all do.
fn merged_matches(roots: &[HttpMatch], leaves: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if roots.is_empty() || leaves.is_empty() {
        return Some([roots, leaves].concat());
    }
    let pairs = roots
        .iter()
        .flat_map(|root| leaves.iter().map(move |leaf| (root, leaf)));
    let merged: Vec<_> = pairs.filter_map(|(root, leaf)| both(root, leaf)).collect();
    (!merged.is_empty()).then_some(merged)
}

fn both(root: &HttpMatch, leaf: &HttpMatch) -> Option<HttpMatch> {
    let is_other_case = root.uri.is_some() && leaf.uri.is_some();
    if is_other_case && root.ignore_uri_case != leaf.ignore_uri_case {
        return None;
    }
    Some(HttpMatch {
        name: match (root.name.as_str(), leaf.name.as_str()) {
            ("", name) | (name, "") => name.to_owned(),
            (root, leaf) => format!("{root}-{leaf}"),
        },
        uri: narrower(root.uri.as_ref(), leaf.uri.as_ref())?,
        method: narrower(root.method.as_ref(), leaf.method.as_ref())?,
        authority: narrower(root.authority.as_ref(), leaf.authority.as_ref())?,
        scheme: narrower(root.scheme.as_ref(), leaf.scheme.as_ref())?,
        query_params: union(&root.query_params, &leaf.query_params)?,
        headers: union(&root.headers, &leaf.headers)?,
        without_headers: union(&root.without_headers, &leaf.without_headers)?,
        ignore_uri_case: root.ignore_uri_case || leaf.ignore_uri_case,
        port: same(root.port, leaf.port)?,
        source_labels: {
            let mut labels = root.source_labels.clone();
            for (key, value) in &leaf.source_labels {
                same(
                    labels.insert(key.clone(), value.clone()),
                    Some(value.clone()),
                )?;
            }
            labels
        },
        source_namespace: same(root.source_namespace.clone(), leaf.source_namespace.clone())?,
    })
}

fn same<T: PartialEq>(root: Option<T>, leaf: Option<T>) -> Option<Option<T>> {
    match (root, leaf) {
        (Some(root), Some(leaf)) if root != leaf => None,
        (root, leaf) => Some(leaf.or(root)),
    }
}

fn union(
    root: &BTreeMap<String, StringMatch>,
    leaf: &BTreeMap<String, StringMatch>,
) -> Option<BTreeMap<String, StringMatch>> {
    let mut all = root.clone();
    for (name, text) in leaf {
        let merged = narrower(root.get(name), Some(text))?;
        all.extend(merged.map(|merged| (name.clone(), merged)));
    }
    Some(all)
}

/// The leaf's, which must be inside of the root's. Nobody compares regular expressions.
fn narrower(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> Option<Option<StringMatch>> {
    let (Some(root), Some(leaf)) = (root, leaf) else {
        return Some(leaf.or(root).cloned());
    };
    let is_inside = match (root, leaf) {
        (StringMatch { regex: Some(_), .. }, _) | (_, StringMatch { regex: Some(_), .. }) => false,
        (
            StringMatch {
                exact: Some(root), ..
            },
            leaf,
        ) => leaf.exact.as_ref() == Some(root),
        (
            StringMatch {
                prefix: Some(root), ..
            },
            leaf,
        ) => {
            let text = leaf.exact.as_ref().or(leaf.prefix.as_ref());
            text.is_some_and(|text| text.starts_with(root))
        }
        // The root asks for presence.
        _ => true,
    };
    is_inside.then(|| Some(leaf.clone()))
}
