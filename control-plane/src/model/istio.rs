//! Istio's traffic and security objects, as far as they are honoured.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// A map of labels.
type Labels = BTreeMap<String, String>;

object! {
    /// Hosts with addresses.
    ServiceEntry {
        /// Names.
        hosts: Vec<String>,
        /// Ports.
        ports: Vec<ServiceEntryPort>,
        /// `MESH_INTERNAL` or `MESH_EXTERNAL`; external hosts speak no mTLS.
        location: Option<String>,
        /// `STATIC`.
        resolution: Option<String>,
        /// Addresses.
        endpoints: Vec<WorkloadEntry>,
        /// Names that may appear in the endpoints' certificates, besides those of their accounts.
        subject_alt_names: Vec<String>,
        /// Further endpoints, by label.
        workload_selector: Option<WorkloadSelector>,
        /// Namespaces that see it: `*`, `.` for its own, or a name; none is all.
        export_to: Vec<String>,
    }
}
object! {
    /// What clients see.
    Sidecar {
        /// Whose; none is all of the namespace.
        workload_selector: Option<WorkloadSelector>,
        /// What they see; none is everything.
        egress: Vec<SidecarEgress>,
    }
}
object! {
    /// A part of what clients see.
    SidecarEgress {
        /// Of each service only this port.
        port: Option<PortSelector>,
        /// `NAMESPACE/HOST`, either with `*`.
        hosts: Vec<String>,
    }
}
object! {
    /// Workloads by label.
    WorkloadSelector {
        /// Labels that they have.
        labels: Labels,
    }
}
object! {
    /// A port of a ServiceEntry.
    ServiceEntryPort {
        /// Number that clients use.
        number: u16,
        /// Name.
        name: String,
        /// For example `GRPC` or `HTTP`.
        protocol: String,
        /// Number at the endpoints; default the same.
        target_port: Option<u16>,
    }
}
object! {
    /// One address.
    WorkloadEntry {
        /// IP address.
        address: String,
        /// Port numbers by port name.
        ports: BTreeMap<String, u16>,
        /// Labels.
        labels: Labels,
        /// `region/zone/sub_zone`.
        locality: Option<String>,
        /// Share; default 1.
        weight: Option<u32>,
        /// Service account, for its identity.
        service_account: Option<String>,
    }
}
object! {
    /// Routes of hosts.
    VirtualService {
        /// Names, short or full.
        hosts: Vec<String>,
        /// Where it holds; none is the mesh.
        gateways: Vec<String>,
        /// Namespaces whose clients follow it: `*`, `.` for its own, or a name; none is all.
        export_to: Vec<String>,
        /// HTTP and gRPC routes.
        http: Vec<HttpRoute>,
    }
}
object! {
    /// A route.
    HttpRoute {
        /// For people.
        name: String,
        /// Any of these; none is everything.
        r#match: Vec<HttpMatch>,
        /// Where to.
        route: Vec<RouteDestination>,
        /// Another VirtualService whose routes stand in the place of this one.
        delegate: Option<DelegateRef>,
        /// Answer with another address, instead of a destination.
        redirect: Option<HttpRedirect>,
        /// Answer without asking anybody, instead of a destination.
        direct_response: Option<HttpDirectResponse>,
        /// Another path or authority.
        rewrite: Option<HttpRewrite>,
        /// Changes of headers.
        headers: Option<HeadersSpec>,
        /// Limit over all attempts.
        timeout: Option<String>,
        /// When to try again.
        retries: Option<Retries>,
        /// Injected delays and aborts.
        fault: Option<FaultSpec>,
        /// What pages of other origins may do.
        cors_policy: Option<CorsSpec>,
        /// A copy of each request.
        mirror: Option<Weighted>,
        /// Share of the requests that `mirror` copies.
        mirror_percentage: Option<Percent>,
        /// The old form of `mirrorPercentage`.
        mirror_percent: Option<u32>,
        /// Copies of requests.
        mirrors: Vec<MirrorSpec>,
    }
}
object! {
    /// Injected delays and aborts.
    FaultSpec {
        /// Before the request is sent.
        delay: Option<FaultDelaySpec>,
        /// Instead of sending it.
        abort: Option<FaultAbortSpec>,
    }
}
object! {
    /// A delay.
    FaultDelaySpec {
        /// How long.
        fixed_delay: Option<String>,
        /// Share of the requests; default all.
        percentage: Option<Percent>,
        /// The old form of `percentage`.
        percent: Option<u32>,
    }
}
object! {
    /// An abort.
    FaultAbortSpec {
        /// 200 to 599.
        http_status: Option<u16>,
        /// Name of a gRPC status, instead of an HTTP status.
        grpc_status: Option<String>,
        /// Share of the requests; default all.
        percentage: Option<Percent>,
    }
}
object! {
    /// What pages of other origins may do.
    CorsSpec {
        /// Origins, any of them.
        allow_origins: Vec<StringMatch>,
        /// The old form of `allowOrigins`: each is exact, or `*`.
        allow_origin: Vec<String>,
        /// Methods.
        allow_methods: Vec<String>,
        /// Request headers.
        allow_headers: Vec<String>,
        /// Response headers that pages may read.
        expose_headers: Vec<String>,
        /// How long browsers may remember the answer.
        max_age: Option<String>,
        /// Whether requests may have credentials.
        allow_credentials: Option<bool>,
        /// `FORWARD` (default) or `IGNORE` preflight requests of other origins.
        unmatched_preflights: Option<String>,
    }
}
object! {
    /// A VirtualService without hosts.
    DelegateRef {
        /// Its name.
        name: String,
        /// Its namespace; default that of the object that refers to it.
        namespace: Option<String>,
    }
}
object! {
    /// Another address.
    HttpRedirect {
        /// Path.
        uri: Option<String>,
        /// Host.
        authority: Option<String>,
        /// Port.
        port: Option<u16>,
        /// `FROM_REQUEST_PORT` or `FROM_PROTOCOL_DEFAULT`, instead of a port.
        derive_port: Option<String>,
        /// Scheme.
        scheme: Option<String>,
        /// 301 (default), 302, 303, 307 or 308.
        redirect_code: Option<u16>,
    }
}
object! {
    /// An answer.
    HttpDirectResponse {
        /// 200 to 599.
        status: u16,
        /// The body.
        body: Option<HttpBody>,
    }
}
object! {
    /// A body.
    HttpBody {
        /// As text.
        string: Option<String>,
        /// In base64.
        bytes: Option<String>,
    }
}
object! {
    /// Another path or authority.
    HttpRewrite {
        /// Takes the place of the prefix that matched, or of the whole path.
        uri: Option<String>,
        /// Authority.
        authority: Option<String>,
        /// Replaces what matches in the path.
        uri_regex_rewrite: Option<UriRegexRewrite>,
    }
}
object! {
    /// A replacement.
    UriRegexRewrite {
        /// Regular expression.
        r#match: String,
        /// What comes in its place, with `\\1` for a group.
        rewrite: String,
    }
}
object! {
    /// Changes of headers, there and back.
    HeadersSpec {
        /// Of the request.
        request: Option<HeaderOperations>,
        /// Of the response.
        response: Option<HeaderOperations>,
    }
}
object! {
    /// Changes of headers.
    HeaderOperations {
        /// These values alone.
        set: BTreeMap<String, String>,
        /// One more value.
        add: BTreeMap<String, String>,
        /// None.
        remove: Vec<String>,
    }
}
object! {
    /// A share.
    Percent {
        /// 0 to 100.
        value: f64,
    }
}
object! {
    /// Copies of requests.
    MirrorSpec {
        /// Where to.
        destination: Weighted,
        /// Share; default all.
        percentage: Option<Percent>,
    }
}
object! {
    /// All of these.
    HttpMatch {
        /// For people.
        name: String,
        /// Path.
        uri: Option<StringMatch>,
        /// Method.
        method: Option<StringMatch>,
        /// Authority.
        authority: Option<StringMatch>,
        /// Scheme.
        scheme: Option<StringMatch>,
        /// Query parameters.
        query_params: BTreeMap<String, StringMatch>,
        /// Headers.
        headers: BTreeMap<String, StringMatch>,
        /// Headers that must not match.
        without_headers: BTreeMap<String, StringMatch>,
        /// Compare the path without case.
        ignore_uri_case: bool,
        /// Port that the client dialled.
        port: Option<u16>,
        /// Labels that the client has.
        source_labels: Labels,
        /// Namespace that the client is in.
        source_namespace: Option<String>,
    }
}
object! {
    /// One of these; none asks for presence.
    StringMatch {
        /// Equal.
        exact: Option<String>,
        /// Begins with.
        prefix: Option<String>,
        /// Matches in full.
        regex: Option<String>,
    }
}
object! {
    /// A destination and its share.
    RouteDestination {
        /// Where to.
        destination: Weighted,
        /// Share; a single destination needs none.
        weight: Option<u32>,
        /// Changes of headers, for this destination.
        headers: Option<HeadersSpec>,
    }
}
object! {
    /// A host, and a part of it.
    Weighted {
        /// Name, short or full.
        host: String,
        /// Subset of a DestinationRule.
        subset: Option<String>,
        /// Port; default the route's.
        port: Option<PortSelector>,
    }
}
object! {
    /// A port by number.
    PortSelector {
        /// Number.
        number: u16,
    }
}
object! {
    /// Retry policy.
    Retries {
        /// Retries; 0 is none.
        attempts: u32,
        /// Limit of an attempt.
        per_try_timeout: Option<String>,
        /// Conditions, and HTTP codes.
        retry_on: Option<String>,
        /// First pause.
        backoff: Option<String>,
        /// Whether a retry after two attempts leaves their priorities.
        retry_remote_localities: bool,
    }
}
object! {
    /// Which workloads.
    Selector {
        /// Labels that they have.
        match_labels: Labels,
    }
}
object! {
    /// What servers ask of connections.
    PeerAuthentication {
        /// Which workloads; none is the namespace.
        selector: Option<Selector>,
        /// For all ports.
        mtls: Option<Mtls>,
        /// By port.
        #[serde(deserialize_with = "by_port")]
        port_level_mtls: BTreeMap<String, Mtls>,
    }
}
/// Ports are numbers in YAML and text in JSON.
fn by_port<'de, D: Deserializer<'de>>(map: D) -> Result<BTreeMap<String, Mtls>, D::Error> {
    #[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    #[serde(untagged)]
    enum Port {
        Number(u64),
        Text(String),
    }
    let ports = BTreeMap::<Port, Mtls>::deserialize(map)?;
    let text = |(port, mode)| match port {
        Port::Number(port) => (port.to_string(), mode),
        Port::Text(port) => (port, mode),
    };
    Ok(ports.into_iter().map(text).collect())
}

object! {
    /// A mode.
    Mtls {
        /// `UNSET`, `DISABLE`, `PERMISSIVE` or `STRICT`.
        mode: Option<String>,
    }
}
