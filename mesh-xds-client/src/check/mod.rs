//! Questions to authorization services and their answers, as protobuf (`envoy.service.auth.v3`).
//!
//! Beside the stages: [`mesh_core::filter`] decides what is asked and what an answer does, the server
//! sends it. An answer is read whole or not at all: a header that cannot be written would leave the
//! application with the caller's own. Deviations from Envoy are in [`mesh_core::filter`].

use std::{collections::HashMap, fmt::Display, net::SocketAddr, time::SystemTime};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, HeaderValueOption, Metadata, SocketAddress, address,
            header_value_option::HeaderAppendAction, socket_address::PortSpecifier,
        },
        service::auth::v3::{
            AttributeContext, CheckRequest as RequestProto, CheckResponse, DeniedHttpResponse,
            OkHttpResponse,
            attribute_context::{HttpRequest, Peer, Request, TlsSession},
            check_response::HttpResponse,
        },
    },
    google::protobuf::{ListValue, Struct, Timestamp, Value as ValueProto, value::Kind},
};
use http::{HeaderName, HeaderValue, header::CONTENT_LENGTH};
use mesh_core::filter::{Allowed, CheckRequest, CheckVerdict, Denied, EditAction, HeaderEdit};
use prost::Message;
use serde_json::Value;

/// Deepest nesting of the metadata in an answer.
const METADATA_DEPTH_MAX: usize = 32;

/// The message that asks about a request.
pub fn encode(request: &CheckRequest<'_>) -> Bytes {
    let CheckRequest { caller, view, .. } = request;
    let headers = request.headers.iter();
    let headers = headers.map(|(name, value)| ((*name).to_owned(), value.clone()));
    let size = view.headers.get(CONTENT_LENGTH);
    let size = size.and_then(|size| size.to_str().ok()?.parse().ok());
    let unknown = match &request.body {
        Some(body) if !body.is_partial => body.data.len() as i64,
        _ if caller.has_body => -1,
        _ => 0,
    };
    let (mut body, mut raw_body) = (String::new(), Vec::new());
    if let Some(told) = &request.body {
        match request.packs_body {
            true => raw_body = told.data.to_vec(),
            false => body = String::from_utf8_lossy(&told.data).into_owned(),
        }
    }
    let http = HttpRequest {
        method: view.method.as_str().to_owned(),
        headers: headers.collect(),
        path: view
            .header(":path")
            .map_or_else(String::new, |path| path.into_owned()),
        host: view.authority.to_owned(),
        scheme: caller.scheme.to_owned(),
        size: size.unwrap_or(unknown),
        protocol: caller.protocol.to_owned(),
        body,
        raw_body,
        ..HttpRequest::default()
    };
    let extensions = request.context_extensions.iter();
    let mut source = peer(caller.source, caller.principal);
    source.certificate = request.certificate.map_or_else(String::new, certificate);
    let told = request.metadata.iter();
    let told = told.filter_map(|(name, value)| Some(((*name).to_owned(), structure(value)?)));
    let told: HashMap<_, _> = told.collect();
    let attributes = AttributeContext {
        source: Some(source),
        metadata_context: (!told.is_empty()).then(|| Metadata {
            filter_metadata: told,
            ..Metadata::default()
        }),
        destination: Some(peer(caller.destination, "")),
        request: Some(Request {
            time: Some(timestamp(caller.time)),
            http: Some(http),
        }),
        context_extensions: extensions
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        tls_session: request.tells_server_name.then(|| TlsSession {
            sni: caller.server_name.to_owned(),
        }),
        ..AttributeContext::default()
    };
    let message = RequestProto {
        attributes: Some(attributes),
    };
    message.encode_to_vec().into()
}

/// Times before 1970 are 1970.
fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

fn peer(address: SocketAddr, principal: &str) -> Peer {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Peer {
        address: Some(Address {
            address: Some(address::Address::SocketAddress(socket)),
        }),
        principal: principal.to_owned(),
        ..Peer::default()
    }
}

/// A certificate as PEM with percent signs, as Envoy writes it.
fn certificate(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut escaped = String::with_capacity(pem.len() * 9 / 8);
    for character in pem.chars() {
        match character {
            '\n' => escaped.push_str("%0A"),
            ' ' => escaped.push_str("%20"),
            '+' => escaped.push_str("%2B"),
            '/' => escaped.push_str("%2F"),
            '=' => escaped.push_str("%3D"),
            plain => escaped.push(plain),
        }
    }
    escaped
}

/// An object as protobuf; `None` for what is none.
fn structure(value: &Value) -> Option<Struct> {
    let fields = value.as_object()?.iter();
    Some(Struct {
        fields: fields
            .map(|(key, value)| (key.clone(), proto(value)))
            .collect(),
    })
}

fn proto(value: &Value) -> ValueProto {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(is) => Kind::BoolValue(*is),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(proto).collect(),
        }),
        Value::Object(_) => Kind::StructValue(structure(value).unwrap_or_default()),
    };
    ValueProto { kind: Some(kind) }
}

/// What the message `answer` says. No status is OK, as in Envoy.
///
/// # Errors
/// When it is no answer, or asks for something that cannot be done.
#[allow(deprecated, reason = "services in use set the deprecated metadata")]
pub fn decode(answer: &[u8]) -> Result<CheckVerdict, String> {
    let answer = CheckResponse::decode(answer).map_err(|error| error.to_string())?;
    let is_ok = answer
        .status
        .as_ref()
        .is_none_or(|status| status.code == tonic::Code::Ok as i32);
    match answer.http_response {
        Some(HttpResponse::OkResponse(mut ok)) if is_ok => {
            // The deprecated one wins, as in Envoy.
            let metadata = ok.dynamic_metadata.take().or(answer.dynamic_metadata);
            Ok(CheckVerdict::Allowed(Box::new(allowed(ok, metadata)?)))
        }
        _ if is_ok => {
            let nothing = OkHttpResponse::default();
            let allowed = allowed(nothing, answer.dynamic_metadata)?;
            Ok(CheckVerdict::Allowed(Box::new(allowed)))
        }
        Some(HttpResponse::ErrorResponse(said)) => {
            Ok(CheckVerdict::Failed(Box::new(denied(said)?)))
        }
        Some(HttpResponse::DeniedResponse(said)) => {
            Ok(CheckVerdict::Denied(Box::new(denied(said)?)))
        }
        Some(HttpResponse::OkResponse(_)) | None => Ok(CheckVerdict::Denied(Box::default())),
    }
}

fn allowed(ok: OkHttpResponse, metadata: Option<Struct>) -> Result<Allowed, String> {
    let mut remove = Vec::new();
    for name in &ok.headers_to_remove {
        // What Envoy never removes.
        if !name.starts_with(':') && !name.eq_ignore_ascii_case("host") {
            remove.push(header_name(name)?);
        }
    }
    for name in ok.query_parameters_to_set.iter().map(|one| &one.key) {
        if name.is_empty() || name.contains(['&', '=', '#']) {
            return Err(format!("{name:?} is not the name of a query parameter"));
        }
    }
    let set = ok.query_parameters_to_set.into_iter();
    let metadata = metadata.map(|metadata| object(metadata, METADATA_DEPTH_MAX));
    Ok(Allowed {
        request: edits(ok.headers, Place::Request)?,
        remove,
        response: edits(ok.response_headers_to_add, Place::Response)?,
        query_set: set.map(|one| (one.key, one.value)).collect(),
        query_remove: ok.query_parameters_to_remove,
        metadata: metadata.transpose()?,
    })
}

fn denied(said: DeniedHttpResponse) -> Result<Denied, String> {
    let status = said.status.map(|status| status.code);
    let status = status.filter(|code| *code > 0);
    let status = status.map(|code| u16::try_from(code).map_err(|_| wrong("a status", code)));
    Ok(Denied {
        status: status.transpose()?,
        headers: edits(said.headers, Place::Refusal)?,
        body: said.body,
    })
}

/// What a change of a header is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Request,
    Response,
    Refusal,
}

fn edits(options: Vec<HeaderValueOption>, place: Place) -> Result<Vec<HeaderEdit>, String> {
    let edits = options.into_iter().map(|option| edit(option, place));
    edits.collect()
}

fn edit(option: HeaderValueOption, place: Place) -> Result<HeaderEdit, String> {
    let action = action(&option, place)?;
    let header = option.header.unwrap_or_default();
    if place == Place::Request && header.key.eq_ignore_ascii_case("host") {
        return Err("host must not be changed: the request was routed by it".to_owned());
    }
    let value = match header.raw_value.is_empty() {
        true => HeaderValue::from_bytes(header.value.as_bytes()),
        false => HeaderValue::from_bytes(&header.raw_value),
    };
    Ok(HeaderEdit {
        name: header_name(&header.key)?,
        value: value
            .map_err(|_| format!("the value of {:?} is not one of a header", header.key))?,
        action,
    })
}

/// What Envoy 1.40 does: `append_action` counts for the headers of responses alone. Elsewhere a header
/// is replaced unless `append` says otherwise, so that what services write that set neither never stands
/// beside what the caller wrote; and what is appended joins a value that is there.
#[allow(deprecated, reason = "services in use set append, not append_action")]
fn action(option: &HeaderValueOption, place: Place) -> Result<EditAction, String> {
    let known = HeaderAppendAction::try_from(option.append_action);
    let declared = known.map_err(|_| wrong("an append_action", option.append_action))?;
    let appends = option.append.map(|append| append.value);
    Ok(match (place, appends) {
        (Place::Request | Place::Refusal, Some(true)) => EditAction::Join,
        (Place::Request, _) | (Place::Response, Some(false)) => EditAction::Overwrite,
        // Each of them, in an answer that has none yet.
        (Place::Refusal, _) | (Place::Response, Some(true)) => EditAction::Append,
        (Place::Response, None) => match declared {
            HeaderAppendAction::AppendIfExistsOrAdd => EditAction::Append,
            HeaderAppendAction::AddIfAbsent => EditAction::AddIfAbsent,
            HeaderAppendAction::OverwriteIfExistsOrAdd => EditAction::Overwrite,
            HeaderAppendAction::OverwriteIfExists => EditAction::OverwriteIfExists,
        },
    })
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| wrong("the name of a header", text))
}

fn wrong(what: &str, value: impl Display) -> String {
    format!("{value} is not {what}")
}

fn object(fields: Struct, depth: usize) -> Result<Value, String> {
    let fields = fields.fields.into_iter();
    let fields = fields.map(|(key, value)| Ok((key, json(value, depth)?)));
    Ok(Value::Object(fields.collect::<Result<_, String>>()?))
}

fn json(value: ValueProto, depth: usize) -> Result<Value, String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(format!(
            "its metadata is nested deeper than {METADATA_DEPTH_MAX}"
        ));
    };
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::StructValue(fields)) => object(fields, depth)?,
        Some(Kind::ListValue(list)) => {
            let values = list.values.into_iter().map(|value| json(value, depth));
            Value::Array(values.collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests;
