//! `control-plane explain` and `control-plane status`: of a directory, or of who serves it.

use anyhow::{Context as _, bail};
use http::{HeaderName, HeaderValue, Method, Uri};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Output, Where, admin::Admin};
use crate::{
    compile::{CompileOptions, compile},
    explain::{ExplainRequest, Explained, explain as explain_folder},
    source::load_folder,
};

/// Exit code when the answer is no.
const NO: u8 = 1;

/// Prints what becomes of a request; the exit code.
pub(super) async fn explain(
    of: &Where,
    method: &Method,
    url: &Uri,
    headers: &[(HeaderName, HeaderValue)],
    from: &str,
    output: Output,
) -> anyhow::Result<u8> {
    let mut lines = String::new();
    for (name, value) in headers {
        let value = value.to_str();
        let value = value.with_context(|| format!("header {name} is not text"))?;
        lines += &format!("{name}: {value}\n");
    }
    let (method, url) = (method.as_str(), url.to_string());
    let request = ExplainRequest::parse(method, &url, &lines, from);
    let request = request.map_err(anyhow::Error::msg)?;
    let explained: Explained = match (&of.config, &of.server) {
        (Some(folder), _) => explain_folder(folder, &CompileOptions::default(), &request)
            .with_context(|| folder.display().to_string())?,
        (None, Some(server)) => {
            let query = [
                ("method", method),
                ("url", &url),
                ("headers", &lines),
                ("from", from),
            ];
            answer(server, of, "/v1/explain", &query).await?
        }
        (None, None) => bail!("write --config or --server"),
    };
    match output {
        Output::Text => print!("{explained}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&explained)?),
    }
    Ok(if explained.taken.is_some() { 0 } else { NO })
}

/// Prints what became of the routes of Gateway API; the exit code.
pub(super) async fn status(of: &Where, object: Option<&str>, output: Output) -> anyhow::Result<u8> {
    let all: Vec<Value> = match (&of.config, &of.server) {
        (Some(folder), _) => {
            let loaded = load_folder(folder).with_context(|| folder.display().to_string())?;
            let (compiled, _) = compile(&loaded.objects, &CompileOptions::default());
            let all = compiled.statuses.values();
            let all = all.filter(|status| object.is_none_or(|object| status.object == object));
            all.map(serde_json::to_value).collect::<Result<_, _>>()?
        }
        (None, Some(server)) => {
            let query: Vec<_> = object
                .map(|object| ("object", object))
                .into_iter()
                .collect();
            answer(server, of, "/v1/routes", &query).await?
        }
        (None, None) => bail!("write --config or --server"),
    };
    if let (Some(object), true) = (object, all.is_empty()) {
        bail!("there is no route {object:?}: write for example HTTPRoute default/greeter");
    }
    let mut is_good = true;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut lines = String::new();
    for status in &all {
        let place = format!("{}:{}", text(&status["file"]), status["line"]);
        lines += &format!("{} ({place})\n", text(&status["object"]));
        for parent in list(&status["parents"]) {
            lines += &format!("  {}\n", text(&parent["parent"]));
            for condition in list(&parent["conditions"]) {
                let [kind, value, reason, message] =
                    ["type", "status", "reason", "message"].map(|key| text(&condition[key]));
                is_good &= (value == "True") != (kind == "PartiallyInvalid");
                let colon = if message.is_empty() { "" } else { ": " };
                lines += &format!("    {kind} {value}, {reason}{colon}{message}\n");
            }
        }
    }
    match output {
        Output::Text => print!("{lines}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&all)?),
    }
    Ok(if is_good { 0 } else { NO })
}

/// What a server's admin API answers.
async fn answer<T: DeserializeOwned>(
    server: &Uri,
    of: &Where,
    path: &str,
    query: &[(&str, &str)],
) -> anyhow::Result<T> {
    let admin = Admin {
        server,
        ca: of.ca.as_deref(),
        data_dir: of.data_dir.as_deref(),
    };
    let pairs = query
        .iter()
        .map(|(key, value)| format!("{key}={}", escaped(value)));
    let path = format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"));
    admin.ask(Method::GET, &path).await
}

/// A value in a query (RFC 3986).
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte.into());
            }
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}
