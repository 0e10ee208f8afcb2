//! Changes of headers, made.
//!
//! As Envoy does it: level by level; in each, headers are removed first, then every value is
//! computed from what there is, then values replace and at last values are added.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::RequestView;
use crate::config::{
    AppendAction, HeaderChanges, HeaderCommand, ValueCommand, ValuePart, ValueTemplate,
};

/// What the commands of a value can ask for, besides the headers that are changed.
pub(super) struct Values<'v> {
    pub(super) request: RequestView<'v>,
    /// `None` while the request's headers are changed.
    pub(super) status: Option<StatusCode>,
    pub(super) route: &'v str,
    pub(super) cluster: &'v str,
}

impl Values<'_> {
    fn format(&self, template: &ValueTemplate, headers: &HeaderMap) -> String {
        let mut out = String::new();
        for part in template.parts() {
            match part {
                ValuePart::Text(text) => out.push_str(text),
                ValuePart::Command(command) => self.command(command, headers, &mut out),
            }
        }
        out
    }

    fn command(&self, command: &ValueCommand, headers: &HeaderMap, out: &mut String) {
        match command {
            ValueCommand::RouteName => out.push_str(self.route),
            ValueCommand::Cluster => out.push_str(self.cluster),
            ValueCommand::ResponseCode => {
                out.push_str(self.status.as_ref().map_or("", StatusCode::as_str));
            }
            ValueCommand::Request(command) => {
                let of_request = match self.status {
                    None => headers,
                    Some(_) => self.request.headers,
                };
                push(command, out, |name| {
                    match name.starts_with(':') || name == "host" {
                        true => self.request.header(name).map(Into::into),
                        false => first(of_request, name),
                    }
                });
            }
            ValueCommand::Response(command) => push(command, out, |name| match name {
                ":status" => Some(self.status?.as_str().to_owned()),
                name => first(headers, name),
            }),
        }
    }
}

fn first(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn push(command: &HeaderCommand, out: &mut String, find: impl Fn(&str) -> Option<String>) {
    let found = find(&command.name).or_else(|| find(command.other.as_deref()?));
    let Some(mut value) = found else {
        return;
    };
    if let Some(length) = command.length_max {
        let end = (0..=length.min(value.len()))
            .rev()
            .find(|end| value.is_char_boundary(*end));
        value.truncate(end.unwrap_or(0));
    }
    out.push_str(&value);
}

/// Makes `changes` to the headers of a request, or, with a status, of its response.
pub(crate) fn apply_changes(
    changes: &HeaderChanges,
    request: &RequestView<'_>,
    status: Option<StatusCode>,
    [route, cluster]: [&str; 2],
    headers: &mut HeaderMap,
) {
    let values = Values {
        request: *request,
        status,
        route,
        cluster,
    };
    apply(changes, headers, &values);
}

/// Makes `changes` to `headers`.
pub(super) fn apply(changes: &HeaderChanges, headers: &mut HeaderMap, values: &Values<'_>) {
    for name in &changes.remove {
        headers.remove(name);
    }
    let mut replaced: Vec<(&HeaderName, HeaderValue)> = Vec::new();
    let mut added: Vec<(&HeaderName, HeaderValue)> = Vec::new();
    for header in &changes.add {
        let text = values.format(&header.value, headers);
        let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) else {
            continue;
        };
        if value.is_empty() && !header.keep_empty {
            continue;
        }
        let is_there = headers.contains_key(&header.name);
        match header.action {
            AppendAction::Append => added.push((&header.name, value)),
            AppendAction::AddIfAbsent if is_there => {}
            AppendAction::AddIfAbsent => added.push((&header.name, value)),
            AppendAction::OverwriteIfExists if !is_there => {}
            AppendAction::OverwriteIfExists | AppendAction::Overwrite => {
                replaced.push((&header.name, value));
            }
        }
    }
    for (name, value) in replaced {
        headers.insert(name.clone(), value);
    }
    for (name, value) in added {
        headers.append(name.clone(), value);
    }
}
