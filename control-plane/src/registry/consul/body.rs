//! The body of a registration.
//!
//! Names are read in any case and with or without `_`, as Consul's decoder does and its clients rely
//! on. A field that is not listed here is refused by name.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustls_pki_types::ServerName;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    model::DEFAULT_NAMESPACE,
    registry::{
        CheckKind, CheckSpec, CheckStatus, CheckTls, Place, Registration, Schedule, Source,
        UNNAMED, Weights,
    },
    value,
};

/// Default of `Timeout` (Consul).
const TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest time of `DeregisterCriticalServiceAfter` (Consul).
const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);
/// The shortest `Interval` (Consul).
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Checks of one instance.
const CHECKS_MAX: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    name: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<WeightsBody>,
    #[serde(default)]
    check: Option<Check>,
    #[serde(default)]
    checks: Option<Vec<Check>>,
    #[serde(default)]
    enabletagoverride: bool,
    #[serde(default)]
    locality: Option<Locality>,
    #[serde(default)]
    namespace: String,
    /// `""` and `typical`; others are proxies and gateways.
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightsBody {
    #[serde(default = "one")]
    passing: u32,
    #[serde(default = "one")]
    warning: u32,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Locality {
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
}

#[derive(Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Check {
    checkid: String,
    id: String,
    name: String,
    notes: String,
    status: String,
    ttl: Option<Time>,
    http: String,
    method: String,
    header: Option<BTreeMap<String, Vec<String>>>,
    body: String,
    disableredirects: bool,
    tcp: String,
    tcpusetls: bool,
    grpc: String,
    grpcusetls: bool,
    tlsservername: String,
    tlsskipverify: bool,
    interval: Option<Time>,
    timeout: Option<Time>,
    successbeforepassing: u32,
    failuresbeforewarning: Option<u32>,
    failuresbeforecritical: u32,
    deregistercriticalserviceafter: Option<Time>,
}

/// A duration in words, or in nanoseconds, as Go writes it.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Time {
    Nanoseconds(u64),
    Text(String),
}

/// Reads a registration; `peer` is where it came from.
pub(super) fn registration(text: &[u8], peer: Option<IpAddr>) -> Result<Registration, String> {
    let wrong = |error: serde_json::Error| format!("Request decode failed: {error}");
    let body: Value = serde_json::from_slice(text).map_err(wrong)?;
    let body = fold(body, &["check", "checks", "weights", "locality"]);
    let service: Service = serde_path_to_error::deserialize(body).map_err(|error| {
        format!(
            "Request decode failed: {error}{}",
            way_out(&error.to_string())
        )
    })?;
    if service.name.is_empty() {
        return Err("Missing service name".to_owned());
    }
    if !matches!(service.kind.as_str(), "" | "typical") {
        let kind = &service.kind;
        return Err(format!(
            "Kind: {kind:?} is not served: register the service itself"
        ));
    }
    let id = match service.id.is_empty() {
        true => service.name.clone(),
        false => service.id,
    };
    let address = match service.address.is_empty() {
        true => peer.ok_or("Address is missing")?,
        false => service.address.parse().map_err(|_| {
            let address = &service.address;
            format!("Address: {address:?} is not an IP address: clients connect to it as it is")
        })?,
    };
    if service.port == 0 {
        return Err("Port is missing: clients could not connect".to_owned());
    }
    let weights = service
        .weights
        .map_or_else(Weights::default, |weights| Weights {
            passing: weights.passing,
            warning: weights.warning,
        });
    if weights.passing == 0 {
        return Err("Weights.Passing must be greater than 0".to_owned());
    }
    let locality = service.locality.map_or_else(Place::default, |place| Place {
        region: place.region,
        zone: place.zone,
        sub_zone: String::new(),
    });
    let single = service.check.map(|check| ("Check".to_owned(), check));
    let several = service.checks.unwrap_or_default().into_iter().enumerate();
    let several = several.map(|(index, check)| (format!("Checks[{index}]"), check));
    // An empty one is none, as in Consul.
    let all = single.into_iter().chain(several);
    let all: Vec<_> = all
        .filter(|(_, check)| *check != Check::default())
        .collect();
    if all.len() > CHECKS_MAX {
        return Err(format!("Checks: more than {CHECKS_MAX} of one instance"));
    }
    let count = all.len();
    let mut checks = Vec::new();
    for (index, (field, body)) in all.into_iter().enumerate() {
        let default_id = match count {
            1 => format!("service:{id}"),
            _ => format!("service:{id}:{}", index + 1),
        };
        let check =
            check(body, default_id, &service.name).map_err(|error| format!("{field}.{error}"))?;
        if checks.iter().any(|held: &CheckSpec| held.id == check.id) {
            return Err(format!("{field}.CheckID: {:?} is there twice", check.id));
        }
        checks.push(check);
    }
    Ok(Registration {
        namespace: match service.namespace.is_empty() {
            true => DEFAULT_NAMESPACE.to_owned(),
            false => service.namespace,
        },
        service: service.name,
        id,
        address,
        ports: [(UNNAMED.to_owned(), service.port)].into(),
        tags: service.tags.unwrap_or_default(),
        meta: service.meta.unwrap_or_default(),
        weights,
        locality,
        enable_tag_override: service.enabletagoverride,
        checks,
        lease: None,
        source: Source::Http,
    })
}

fn check(body: Check, default_id: String, service: &str) -> Result<CheckSpec, String> {
    let time = |field: &str, time: Option<&Time>| match time {
        None => Ok(None),
        Some(Time::Nanoseconds(nanoseconds)) => Ok(Some(Duration::from_nanos(*nanoseconds))),
        Some(Time::Text(text)) if text.is_empty() => Ok(None),
        Some(Time::Text(text)) => value::duration(text)
            .map(Some)
            .map_err(|message| format!("{field}: {message}")),
    };
    let schedule = || -> Result<Schedule, String> {
        let interval = time("Interval", body.interval.as_ref())?;
        let interval = interval.ok_or("Interval is missing")?;
        if interval < INTERVAL_MIN {
            return Err(format!("Interval: it must be {INTERVAL_MIN:?} at least"));
        }
        let timeout = time("Timeout", body.timeout.as_ref())?.unwrap_or(TIMEOUT);
        Ok(Schedule { interval, timeout })
    };
    let ttl = time("TTL", body.ttl.as_ref())?.filter(|ttl| !ttl.is_zero());
    let kinds = [
        ttl.is_some(),
        !body.http.is_empty(),
        !body.tcp.is_empty(),
        !body.grpc.is_empty(),
    ];
    if kinds.iter().filter(|is_there| **is_there).count() != 1 {
        return Err("TTL, HTTP, TCP or GRPC: there must be one of them".to_owned());
    }
    let is_tls = body.http.starts_with("https://") || body.tcpusetls || body.grpcusetls;
    let tls = is_tls.then(|| CheckTls {
        server_name: body.tlsservername.clone(),
        skip_verify: body.tlsskipverify,
    });
    let name = body.tlsservername.as_str();
    if !name.is_empty() && ServerName::try_from(name).is_err() {
        return Err(format!("TLSServerName: {name:?} is not a name"));
    }
    if !is_tls && (body.tlsskipverify || !name.is_empty()) {
        return Err(
            "TLSServerName, TLSSkipVerify: the check is not done over TLS: write an \
                    https:// address, TCPUseTLS or GRPCUseTLS"
                .to_owned(),
        );
    }
    let kind = if let Some(ttl) = ttl {
        CheckKind::Ttl(ttl)
    } else if !body.http.is_empty() {
        http_kind(&body, tls, schedule()?)?
    } else if !body.tcp.is_empty() {
        CheckKind::Tcp {
            address: address("TCP", &body.tcp)?,
            tls,
            schedule: schedule()?,
        }
    } else {
        let (at, service) = body.grpc.split_once('/').unwrap_or((&body.grpc, ""));
        CheckKind::Grpc {
            address: address("GRPC", at)?,
            service: service.to_owned(),
            tls,
            schedule: schedule()?,
        }
    };
    let initial = match body.status.as_str() {
        "" => CheckStatus::Critical,
        word => CheckStatus::from_word(word)
            .ok_or_else(|| format!("Status: {word:?} is not passing, warning or critical"))?,
    };
    let after = body.deregistercriticalserviceafter.as_ref();
    let after = time("DeregisterCriticalServiceAfter", after)?.filter(|time| !time.is_zero());
    let or = |text: String, other: String| if text.is_empty() { other } else { text };
    Ok(CheckSpec {
        id: or(or(body.checkid, body.id), default_id),
        name: or(body.name, format!("Service '{service}' check")),
        notes: body.notes,
        kind,
        initial,
        success_before_passing: body.successbeforepassing,
        failures_before_warning: body.failuresbeforewarning,
        failures_before_critical: body.failuresbeforecritical,
        deregister_after: after.map(|after| after.max(DEREGISTER_AFTER_MIN)),
    })
}

fn http_kind(body: &Check, tls: Option<CheckTls>, schedule: Schedule) -> Result<CheckKind, String> {
    let uri: http::Uri = body
        .http
        .parse()
        .map_err(|error| format!("HTTP: {:?}: {error}", body.http))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(format!(
            "HTTP: {:?} is not an http:// or https:// address",
            body.http
        ));
    }
    let method = match body.method.as_str() {
        "" => "GET",
        method => method,
    };
    if http::Method::from_bytes(method.as_bytes()).is_err() {
        return Err(format!("Method: {method:?} is not a method"));
    }
    let headers = body.header.clone().unwrap_or_default();
    for (name, values) in &headers {
        let is_name = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !is_name
            || values
                .iter()
                .any(|v| http::HeaderValue::from_str(v).is_err())
        {
            return Err(format!("Header: {name:?} cannot be sent"));
        }
    }
    Ok(CheckKind::Http {
        url: body.http.clone(),
        method: method.to_owned(),
        headers,
        body: body.body.clone(),
        tls,
        schedule,
    })
}

/// `HOST:PORT`, or `IP:PORT`.
fn address(field: &str, text: &str) -> Result<String, String> {
    let is_address = text.parse::<SocketAddr>().is_ok();
    let name = text.rsplit_once(':');
    let is_name = name.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(':') && port.parse::<u16>().is_ok()
    });
    match is_address || is_name {
        true => Ok(text.to_owned()),
        false => Err(format!("{field}: {text:?} is not HOST:PORT")),
    }
}

/// Names of fields without case and `_`, in this object and in those that are named.
fn fold(value: Value, inside: &[&str]) -> Value {
    match value {
        Value::Object(fields) => {
            let mut folded = Map::new();
            for (name, value) in fields {
                let name = name.replace('_', "").to_ascii_lowercase();
                let value = match inside.contains(&&*name) {
                    true => fold(value, &[]),
                    false => value,
                };
                folded.insert(name, value);
            }
            Value::Object(folded)
        }
        Value::Array(items) => items.into_iter().map(|item| fold(item, inside)).collect(),
        other => other,
    }
}

/// What to do instead of what is not served.
fn way_out(error: &str) -> &'static str {
    let is = |names: &[&str]| {
        names
            .iter()
            .any(|name| error.contains(&format!("`{name}`")))
    };
    if is(&["connect", "proxy"]) {
        "; applications are members of the mesh by themselves: leave it out"
    } else if is(&[
        "args",
        "script",
        "shell",
        "dockercontainerid",
        "osservice",
        "udp",
        "h2ping",
    ]) {
        "; checks are TTL, HTTP, TCP and GRPC"
    } else if is(&["taggedaddresses", "socketpath"]) {
        "; every client connects to Address and Port"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Registration, String> {
        registration(text.as_bytes(), Some([127, 0, 0, 1].into()))
    }

    #[test]
    fn names_are_read_as_consul_reads_them() {
        let read = |text| read(text).unwrap();
        let usual = read(
            r#"{"ID": "a1", "Name": "a", "Port": 1, "EnableTagOverride": true, "Meta": {"Not_Folded": "x"},
            "Check": {"HTTP": "http://127.0.0.1/", "Interval": "10s",
                      "DeregisterCriticalServiceAfter": "90m"}}"#,
        );
        let python = read(
            r#"{"id": "a1", "name": "a", "port": 1, "enable_tag_override": true, "meta": {"Not_Folded": "x"},
            "check": {"http": "http://127.0.0.1/", "interval": 10000000000,
                      "deregister_critical_service_after": "90m"}}"#,
        );
        assert_eq!(usual, python);
        assert_eq!(usual.meta["Not_Folded"], "x");
        assert_eq!(usual.checks[0].id, "service:a1");
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name_with_the_way_out() {
        for (text, expected) in [
            ("{", "Request decode failed"),
            ("{}", "missing field `name`"),
            (r#"{"Name": "a"}"#, "Port is missing"),
            (
                r#"{"Name": "a", "Port": 1, "Address": "a.b"}"#,
                "Address: \"a.b\" is not an IP",
            ),
            (r#"{"Name": "a", "Port": 1, "Connect": {}}"#, "leave it out"),
            (
                r#"{"Name": "a", "Port": 1, "Kind": "connect-proxy"}"#,
                "Kind: \"connect-proxy\"",
            ),
            (
                r#"{"Name": "a", "Port": 1, "Check": {"Notes": "a"}}"#,
                "Check.TTL, HTTP, TCP or GRPC",
            ),
            (
                r#"{"Name": "a", "Port": 1, "Check": {"Args": ["a"]}}"#,
                "checks are TTL",
            ),
            (
                r#"{"Name": "a", "Port": 1, "Checks": [{"TTL": "1x"}]}"#,
                "Checks[0].TTL: ",
            ),
            (
                r#"{"Name": "a", "Port": 1, "Check": {"TCP": "a:1"}}"#,
                "Check.Interval is missing",
            ),
            (
                r#"{"Name": "a", "Port": 1, "Check": {"HTTP": "http://a", "Interval": "1s",
                    "TLSSkipVerify": true}}"#,
                "not done over TLS",
            ),
            (
                r#"{"Name": "a", "Port": 1, "Checks": [{"TTL": "1s", "CheckID": "c"},
                {"TTL": "1s", "CheckID": "c"}]}"#,
                "Checks[1].CheckID: \"c\" is there twice",
            ),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }

    #[test]
    fn several_checks_are_numbered_and_the_reaper_waits_for_a_minute() {
        let read = read(
            r#"{"Name": "a", "Port": 1, "Checks": [
            {"TTL": "1s", "DeregisterCriticalServiceAfter": "5s"},
            {"GRPC": "127.0.0.1:2/greeter.Greeter", "Interval": "5s"}]}"#,
        );
        let checks = read.unwrap().checks;
        assert_eq!(checks[0].id, "service:a:1");
        assert_eq!(checks[0].deregister_after, Some(DEREGISTER_AFTER_MIN));
        let CheckKind::Grpc {
            address, service, ..
        } = &checks[1].kind
        else {
            panic!("{checks:?}");
        };
        assert_eq!((&**address, &**service), ("127.0.0.1:2", "greeter.Greeter"));
    }
}
