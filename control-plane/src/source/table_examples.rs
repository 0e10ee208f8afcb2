//! Objects into which the examples of docs/config-fields.md are written, and what must stand beside some.

/// What the examples refer to.
pub(super) const AROUND: &str = "
kind: ServiceEntry
metadata: {name: around}
spec:
  hosts: [greeter.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 8080, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1, labels: {x: v1}}]
---
kind: Service
metadata: {name: svc}
spec: {ports: [{name: grpc, port: 8080}]}
---
kind: VirtualService
metadata: {name: child}
spec: {http: [{route: [{destination: {host: greeter}}]}]}
---
kind: ServiceEntry
metadata: {name: opa, namespace: checks}
spec:
  hosts: [opa.checks.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 9000, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1}]
---
kind: MeshPolicy
metadata: {name: around}
spec: {extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: checks/opa, port: 9000}}]}
";
pub(super) const SUBSETS: &str = "---
kind: DestinationRule
metadata: {name: around}
spec: {host: greeter, subsets: [{name: v1, labels: {x: v1}}]}
";

/// An object of each kind, into which examples are written.
pub(super) const OBJECTS: [(&str, &str); 23] = [
    (
        "Service",
        "metadata: {name: own}\nspec: {ports: [{name: grpc, port: 8080}]}",
    ),
    (
        "EndpointSlice",
        "metadata: {name: a, labels: {kubernetes.io/service-name: svc}}\n\
         addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{name: grpc, port: 1}]",
    ),
    (
        "ServiceEntry",
        "metadata: {name: a}\nspec: {hosts: [a.example.com], resolution: STATIC, \
         ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.0.0.1}]}",
    ),
    (
        "BalancerPolicy",
        "metadata: {name: a}\nspec: {host: greeter}",
    ),
    (
        "WorkloadEntry",
        "metadata: {name: a}\nspec: {address: 10.0.0.1}",
    ),
    (
        "VirtualService",
        "metadata: {name: a}\nspec: {hosts: [greeter], http: \
         [{route: [{destination: {host: greeter}}]}]}",
    ),
    (
        "HTTPRoute",
        "metadata: {name: a}\nspec: {parentRefs: [{group: '', kind: Service, name: greeter}], \
         rules: [{backendRefs: [{name: svc, port: 8080}]}]}",
    ),
    (
        "GRPCRoute",
        "metadata: {name: a}\nspec: {parentRefs: [{group: '', kind: Service, name: greeter}], \
         rules: [{backendRefs: [{name: svc, port: 8080}]}]}",
    ),
    (
        "XBackendTrafficPolicy",
        "metadata: {name: a}\nspec: {targetRefs: [{group: '', kind: Service, name: greeter}]}",
    ),
    ("Sidecar", "metadata: {name: a}\nspec: {}"),
    (
        "ReferenceGrant",
        "metadata: {name: a}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, \
         namespace: a}], to: [{group: '', kind: Service}]}",
    ),
    (
        "ServiceRouter",
        "metadata: {name: greeter}\nspec: {routes: [{destination: {service: greeter}}]}",
    ),
    (
        "ServiceSplitter",
        "metadata: {name: greeter}\nspec: {splits: [{weight: 100}]}",
    ),
    ("ServiceResolver", "metadata: {name: greeter}\nspec: {}"),
    (
        "DestinationRule",
        "metadata: {name: a}\nspec: {host: greeter, subsets: [{name: v1, labels: {x: v1}}], \
         trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}",
    ),
    (
        "HedgePolicy",
        "metadata: {name: a}\nspec: {host: greeter, onPerTryTimeout: true}",
    ),
    (
        "RateLimit",
        "metadata: {name: a}\nspec: {limits: [{requests: 10}]}",
    ),
    ("FilterPolicy", "metadata: {name: a}\nspec: {}"),
    ("PeerAuthentication", "metadata: {name: a}\nspec: {}"),
    (
        "AuthorizationPolicy",
        "metadata: {name: a}\nspec: {rules: [{}]}",
    ),
    ("RequestAuthentication", "metadata: {name: a}\nspec: {}"),
    (
        "ServiceIntentions",
        "metadata: {name: a}\nspec: {destination: {name: greeter}}",
    ),
    ("MeshPolicy", "metadata: {name: a}\nspec: {}"),
];

/// Kinds of routes.
pub(super) const ROUTES: [&str; 6] = [
    "VirtualService",
    "HTTPRoute",
    "GRPCRoute",
    "ServiceRouter",
    "ServiceSplitter",
    "ServiceResolver",
];

/// What must stand beside a field of a load balancer.
pub(super) const BESIDE_BALANCER: [(&str, &str, &str); 7] = [
    (
        "consistentHash.httpCookie.attributes[].value",
        "consistentHash.httpCookie.attributes[].name",
        "SameSite",
    ),
    (
        "consistentHash.httpCookie",
        "consistentHash.httpCookie.name",
        "a",
    ),
    (
        "consistentHash.ringHash",
        "consistentHash.httpHeaderName",
        "a",
    ),
    (
        "consistentHash.maglev",
        "consistentHash.httpHeaderName",
        "a",
    ),
    (
        "consistentHash.minimum",
        "consistentHash.httpHeaderName",
        "a",
    ),
    (
        "localityLbSetting.distribute[].from",
        "localityLbSetting.distribute[].to.b",
        "100",
    ),
    (
        "localityLbSetting.distribute[].to",
        "localityLbSetting.distribute[].from",
        "a",
    ),
];

/// What must stand beside a field of a route.
pub(super) const BESIDE: [(&str, &str, &str); 22] = [
    (
        "fault.delay.percent",
        "spec.http[].fault.delay.fixedDelay",
        "1s",
    ),
    (
        "fault.abort.percentage",
        "spec.http[].fault.abort.httpStatus",
        "503",
    ),
    ("[].redirect", "spec.http[].route", "[]"),
    ("[].directResponse", "spec.http[].route", "[]"),
    ("[].delegate", "spec.http[].route", "[]"),
    (
        "hashPolicies[]",
        "spec.loadBalancer.hashPolicies[].field",
        "header",
    ),
    (
        "hashPolicies[]",
        "spec.loadBalancer.hashPolicies[].fieldValue",
        "x",
    ),
    (
        "[].cookieConfig",
        "spec.loadBalancer.hashPolicies[].field",
        "cookie",
    ),
    ("[].delegate", "spec.http[].delegate.name", "child"),
    (
        "matches[].headers",
        "spec.rules[].matches[].headers[].name",
        "a",
    ),
    (
        "queryParams[]",
        "spec.rules[].matches[].queryParams[].name",
        "a",
    ),
    ("method.type", "spec.rules[].matches[].method.service", "a"),
    ("requestRedirect", "spec.rules[].backendRefs", "[]"),
    (
        "[].directResponse",
        "spec.http[].directResponse.status",
        "503",
    ),
    ("[].mirror.", "spec.http[].mirror.host", "greeter"),
    ("[].mirrorPer", "spec.http[].mirror.host", "greeter"),
    (
        "[].mirrors",
        "spec.http[].mirrors[].destination.host",
        "greeter",
    ),
    (
        "uriRegexRewrite",
        "spec.http[].rewrite.uriRegexRewrite.match",
        "a",
    ),
    (
        "http.header[]",
        "spec.routes[].match.http.header[].name",
        "a",
    ),
    (
        "http.header[]",
        "spec.routes[].match.http.header[].exact",
        "a",
    ),
    (
        "http.queryParam[]",
        "spec.routes[].match.http.queryParam[].name",
        "a",
    ),
    (
        "http.queryParam[]",
        "spec.routes[].match.http.queryParam[].exact",
        "a",
    ),
];

/// What must stand beside a field of a security object.
pub(super) const BESIDE_SECURITY: [(&str, &str, &str, &str); 34] = [
    (
        "AuthorizationPolicy",
        "spec.action",
        "spec.provider.name",
        "opa",
    ),
    (
        "AuthorizationPolicy",
        "spec.provider",
        "spec.action",
        "CUSTOM",
    ),
    ("FilterPolicy", "session", "spec.host", "greeter"),
    ("FilterPolicy", "session.strict", "spec.session.header", "x"),
    (
        "FilterPolicy",
        "cookie.ttl",
        "spec.session.cookie.name",
        "s",
    ),
    (
        "FilterPolicy",
        "cookie.path",
        "spec.session.cookie.name",
        "s",
    ),
    (
        "MeshPolicy",
        "extensionProviders[]",
        "spec.extensionProviders[].name",
        "authz",
    ),
    (
        "MeshPolicy",
        "extensionProviders[].name",
        "spec.extensionProviders[].envoyExtAuthzGrpc.service",
        "default/svc",
    ),
    (
        "MeshPolicy",
        "extensionProviders[].name",
        "spec.extensionProviders[].envoyExtAuthzGrpc.port",
        "8080",
    ),
    (
        "MeshPolicy",
        "envoyExtAuthzGrpc",
        "spec.extensionProviders[].envoyExtAuthzGrpc.service",
        "default/svc",
    ),
    (
        "MeshPolicy",
        "envoyExtAuthzGrpc",
        "spec.extensionProviders[].envoyExtAuthzGrpc.port",
        "8080",
    ),
    (
        "MeshPolicy",
        "envoyExtAuthzHttp",
        "spec.extensionProviders[].envoyExtAuthzHttp.service",
        "default/svc",
    ),
    (
        "MeshPolicy",
        "envoyExtAuthzHttp",
        "spec.extensionProviders[].envoyExtAuthzHttp.port",
        "8080",
    ),
    (
        "MeshPolicy",
        "envoyExtAuthzGrpc.includeRequestBodyInCheck.",
        "spec.extensionProviders[].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes",
        "1024",
    ),
    (
        "MeshPolicy",
        "envoyExtAuthzHttp.includeRequestBodyInCheck.",
        "spec.extensionProviders[].envoyExtAuthzHttp.includeRequestBodyInCheck.maxRequestBytes",
        "1024",
    ),
    (
        "AuthorizationPolicy",
        "targetRef.",
        "spec.targetRef.name",
        "greeter",
    ),
    (
        "AuthorizationPolicy",
        "targetRefs[]",
        "spec.targetRefs[].name",
        "greeter",
    ),
    (
        "AuthorizationPolicy",
        "when[]",
        "spec.rules[].when[].key",
        "source.ip",
    ),
    (
        "AuthorizationPolicy",
        "when[].key",
        "spec.rules[].when[].values[]",
        "192.0.2.1",
    ),
    (
        "RequestAuthentication",
        "targetRef.",
        "spec.targetRef.name",
        "greeter",
    ),
    (
        "RequestAuthentication",
        "targetRefs[]",
        "spec.targetRefs[].name",
        "greeter",
    ),
    (
        "RequestAuthentication",
        "jwtRules[]",
        "spec.jwtRules[].issuer",
        "https://a.example",
    ),
    (
        "RequestAuthentication",
        "jwtRules[]",
        "spec.jwtRules[].jwks",
        "'{\"keys\":[]}'",
    ),
    (
        "RequestAuthentication",
        "fromHeaders",
        "spec.jwtRules[].fromHeaders[].name",
        "a",
    ),
    (
        "RequestAuthentication",
        "ToHeaders",
        "spec.jwtRules[].outputClaimToHeaders[].header",
        "a",
    ),
    (
        "RequestAuthentication",
        "ToHeaders",
        "spec.jwtRules[].outputClaimToHeaders[].claim",
        "a",
    ),
    (
        "ServiceIntentions",
        "sources[]",
        "spec.sources[].name",
        "web",
    ),
    (
        "ServiceIntentions",
        "sources[].n",
        "spec.sources[].action",
        "allow",
    ),
    (
        "ServiceIntentions",
        "sources[].d",
        "spec.sources[].action",
        "allow",
    ),
    (
        "ServiceIntentions",
        "permissions[]",
        "spec.sources[].permissions[].action",
        "allow",
    ),
    (
        "ServiceIntentions",
        "header[]",
        "spec.sources[].permissions[].http.header[].name",
        "a",
    ),
    (
        "ServiceIntentions",
        "header[].name",
        "spec.sources[].permissions[].http.header[].exact",
        "a",
    ),
    (
        "ServiceIntentions",
        "ignoreCase",
        "spec.sources[].permissions[].http.header[].exact",
        "a",
    ),
    (
        "ServiceIntentions",
        "invert",
        "spec.sources[].permissions[].http.header[].exact",
        "a",
    ),
];
