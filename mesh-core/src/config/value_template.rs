//! Header values with substitution commands (Envoy's command operators, as far as a client can
//! answer them).

use std::{fmt, sync::Arc};

/// A header value: text and commands.
#[derive(Clone, PartialEq, Eq)]
pub struct ValueTemplate {
    source: Arc<str>,
    parts: Box<[ValuePart]>,
}

/// A part of a [`ValueTemplate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValuePart {
    /// As it stands.
    Text(String),
    /// Replaced for each message; by nothing when there is no value.
    Command(ValueCommand),
}

/// What a part is replaced by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueCommand {
    /// `%REQ(NAME?OTHER):LENGTH%`: the first value of a request header, else of the other one.
    Request(HeaderCommand),
    /// `%RESP(NAME?OTHER):LENGTH%`: the same of the response.
    Response(HeaderCommand),
    /// `%RESPONSE_CODE%`.
    ResponseCode,
    /// `%ROUTE_NAME%`.
    RouteName,
    /// `%UPSTREAM_CLUSTER%`.
    Cluster,
}

/// Which header a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderCommand {
    /// Lower-case name, or a pseudo-header.
    pub name: String,
    /// Asked for when the first is missing.
    pub other: Option<String>,
    /// Most bytes that are used.
    pub length_max: Option<usize>,
}

impl ValueTemplate {
    /// Parses a value; `%%` stands for `%`. `is_response` allows what only a response has.
    ///
    /// # Errors
    /// When a command is not known here.
    pub fn new(source: &str, is_response: bool) -> Result<Self, String> {
        let wrong = |why: String| format!("value {source:?}: {why}");
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = source;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix('%') {
                text.push('%');
                rest = behind;
                continue;
            }
            let end = rest
                .find('%')
                .ok_or_else(|| wrong("has a single %; write %% for a percent sign".into()))?;
            let command = command(&rest[..end], is_response).map_err(wrong)?;
            if !text.is_empty() {
                parts.push(ValuePart::Text(std::mem::take(&mut text)));
            }
            parts.push(ValuePart::Command(command));
            rest = &rest[end + 1..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(ValuePart::Text(text));
        }
        Ok(Self {
            source: source.into(),
            parts: parts.into(),
        })
    }

    /// This text, in which `%` means nothing.
    pub fn text(text: &str) -> Self {
        Self {
            source: text.replace('%', "%%").into(),
            parts: [ValuePart::Text(text.to_owned())].into(),
        }
    }

    /// The value as it was declared.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Its parts.
    pub fn parts(&self) -> &[ValuePart] {
        &self.parts
    }
}

fn command(text: &str, is_response: bool) -> Result<ValueCommand, String> {
    let only_response = |command| match is_response {
        true => Ok(command),
        false => Err(format!("%{text}% is known only to responses")),
    };
    match text {
        "ROUTE_NAME" => return Ok(ValueCommand::RouteName),
        "UPSTREAM_CLUSTER" => return Ok(ValueCommand::Cluster),
        "RESPONSE_CODE" => return only_response(ValueCommand::ResponseCode),
        _ => {}
    }
    if let Some(header) = header_command(text, "REQ")? {
        return Ok(ValueCommand::Request(header));
    }
    match header_command(text, "RESP")? {
        Some(header) => only_response(ValueCommand::Response(header)),
        None => Err(format!(
            "%{text}% is not supported; supported are %REQ(NAME?OTHER):LENGTH%, %ROUTE_NAME%, \
             %UPSTREAM_CLUSTER% and, for responses, %RESP(…)% and %RESPONSE_CODE%"
        )),
    }
}

fn header_command(text: &str, verb: &str) -> Result<Option<HeaderCommand>, String> {
    let Some(inside) = text
        .strip_prefix(verb)
        .and_then(|rest| rest.strip_prefix('('))
    else {
        return Ok(None);
    };
    let (names, length) = inside
        .split_once(')')
        .ok_or_else(|| format!("%{text}% lacks a )"))?;
    let length_max = match length.strip_prefix(':') {
        Some(number) => Some(
            number
                .parse()
                .map_err(|_| format!("%{text}%: {number:?} is not a length"))?,
        ),
        None if length.is_empty() => None,
        None => return Err(format!("%{text}%: {length:?} behind the )")),
    };
    let (name, other) = match names.split_once('?') {
        Some((name, other)) => (name, Some(other.to_ascii_lowercase())),
        None => (names, None),
    };
    if name.is_empty() || other.as_deref() == Some("") {
        return Err(format!("%{text}% names no header"));
    }
    Ok(Some(HeaderCommand {
        name: name.to_ascii_lowercase(),
        other,
        length_max,
    }))
}

impl fmt::Debug for ValueTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}
