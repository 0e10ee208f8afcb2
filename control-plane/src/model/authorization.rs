//! Istio's objects about requests: who may do what, and whose tokens are believed.

use serde::Deserialize;

use super::{Limit, istio::Selector};
use crate::class::ClientClass;

object! {
    /// Who may do what.
    AuthorizationPolicy {
        /// Which workloads; none is the namespace.
        selector: Option<Selector>,
        /// Which services, instead of `selector`.
        target_ref: Option<TargetRef>,
        /// Which services, instead of `selector`.
        target_refs: Vec<TargetRef>,
        /// `ALLOW` (default), `DENY`, `AUDIT` or `CUSTOM`.
        action: Option<String>,
        /// Who decides, with `CUSTOM`.
        provider: Option<ProviderRef>,
        /// Any of these; none matches nothing.
        rules: Vec<Rule>,
    }
}
object! {
    /// Who decides.
    ProviderRef {
        /// Its name among a MeshPolicy's `extensionProviders`.
        name: String,
    }
}
object! {
    /// A service.
    TargetRef {
        /// `Service` or `ServiceEntry`.
        kind: String,
        /// Group of the kind.
        group: String,
        /// Its name.
        name: String,
        /// Its namespace, which is the object's own.
        namespace: Option<String>,
    }
}
object! {
    /// A rule; an empty one matches everything.
    Rule {
        /// Any of these.
        from: Vec<From>,
        /// Any of these.
        to: Vec<To>,
        /// All of these.
        when: Vec<Condition>,
    }
}
object! {
    /// Who.
    From {
        /// Who.
        source: Source,
    }
}
object! {
    /// What.
    To {
        /// What.
        operation: Operation,
    }
}
object! {
    /// All that are given.
    Source {
        /// `TRUST_DOMAIN/ns/NS/sa/SA`, with `*` first or last.
        principals: Vec<String>,
        /// None of these.
        not_principals: Vec<String>,
        /// `ISSUER/SUBJECT` of tokens.
        request_principals: Vec<String>,
        /// None of these.
        not_request_principals: Vec<String>,
        /// Namespaces.
        namespaces: Vec<String>,
        /// None of these.
        not_namespaces: Vec<String>,
        /// `NS/SA`, or `SA` of the policy's namespace.
        service_accounts: Vec<String>,
        /// None of these.
        not_service_accounts: Vec<String>,
        /// Trust domains.
        trust_domains: Vec<String>,
        /// None of these.
        not_trust_domains: Vec<String>,
        /// Addresses of the other end of the connection.
        ip_blocks: Vec<String>,
        /// None of these.
        not_ip_blocks: Vec<String>,
        /// Addresses of callers.
        remote_ip_blocks: Vec<String>,
        /// None of these.
        not_remote_ip_blocks: Vec<String>,
    }
}
object! {
    /// All that are given.
    Operation {
        /// Authorities.
        hosts: Vec<String>,
        /// Ports.
        ports: Vec<String>,
        /// Methods.
        methods: Vec<String>,
        /// Paths.
        paths: Vec<String>,
        /// None of these.
        not_hosts: Vec<String>,
        /// None of these.
        not_ports: Vec<String>,
        /// None of these.
        not_methods: Vec<String>,
        /// None of these.
        not_paths: Vec<String>,
    }
}
object! {
    /// A condition on an attribute.
    Condition {
        /// For example `request.headers[x]`.
        key: String,
        /// Any of these.
        values: Vec<String>,
        /// None of these.
        not_values: Vec<String>,
    }
}
object! {
    /// Whose tokens are believed.
    RequestAuthentication {
        /// Which workloads; none is the namespace.
        selector: Option<Selector>,
        /// Which services, instead of `selector`.
        target_ref: Option<TargetRef>,
        /// Which services, instead of `selector`.
        target_refs: Vec<TargetRef>,
        /// Issuers.
        jwt_rules: Vec<JwtRule>,
    }
}
object! {
    /// An issuer of tokens.
    JwtRule {
        /// `iss` of its tokens.
        issuer: String,
        /// One of these must be in `aud`; none asks nothing of it.
        audiences: Vec<String>,
        /// Where its keys are.
        jwks_uri: Option<String>,
        /// Its keys.
        jwks: Option<String>,
        /// Headers that hold a token.
        from_headers: Vec<JwtHeader>,
        /// Query parameters that hold one.
        from_params: Vec<String>,
        /// Cookies that hold one.
        from_cookies: Vec<String>,
        /// The application gets the payload in this header.
        output_payload_to_header: Option<String>,
        /// The application sees the token.
        forward_original_token: bool,
        /// The application gets claims in headers.
        output_claim_to_headers: Vec<ClaimToHeader>,
        /// How long fetching the keys may take.
        timeout: Option<String>,
    }
}
object! {
    /// A header that holds a token.
    JwtHeader {
        /// Its name.
        name: String,
        /// What stands before the token; default nothing.
        prefix: String,
    }
}
object! {
    /// A claim for the application.
    ClaimToHeader {
        /// The header.
        header: String,
        /// The claim.
        claim: String,
    }
}

/// What gRPC servers do not know.
const GRPC_NOTE: &str = "a gRPC server cannot tell: a rule that allows with it allows nothing there, \
                         one that denies with it refuses everything";

impl AuthorizationPolicy {
    /// Values that only some classes honour; what depends on the field alone is in the table.
    pub(crate) fn limits(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        let mut limit = |field: String| {
            limits.push(Limit {
                honoured_by: [ClientClass::Rust, ClientClass::Envoy].into(),
                field,
                note: GRPC_NOTE.to_owned(),
            });
        };
        for (index, rule) in self.rules.iter().enumerate() {
            for (at, To { operation }) in rule.to.iter().enumerate() {
                let field = format!("spec.rules[{index}].to[{at}].operation");
                for (name, paths) in [
                    ("paths", &operation.paths),
                    ("notPaths", &operation.not_paths),
                ] {
                    if paths.iter().any(|path| path.contains('{')) {
                        limit(format!("{field}.{name}"));
                    }
                }
            }
            for (at, condition) in rule.when.iter().enumerate() {
                let key = condition.key.as_str();
                if key.starts_with("request.auth.") || key == "connection.sni" {
                    limit(format!("spec.rules[{index}].when[{at}].key"));
                }
            }
        }
        limits
    }
}
