//! Routes of each service port.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::config::{
    FilterOverride, FilterOverrides, Forward, HeaderMutations, Route, RouteAction, RouteMatch,
    VirtualHost,
};

use super::{
    CORS_FILTER, CompileOptions, Compiled, FAULT_FILTER, RATE_LIMIT_FILTER, RouteOrigin,
    SESSION_FILTER,
    clusters::cluster_name,
    consul::{self, ConsulEntries},
    fault::{cors, fault},
    filter_policy::ClientFilters,
    gateway::{self, Attached},
    hedge::{self, Hedges},
    route_action::{default_retries, direct_response, headers, redirect},
    route_match::{clients_of, compile_match},
    scoped::{Audience, Declaration, DeclaredRoute, ScopedRoutes},
    services::{PortInfo, ServiceInfo},
    virtual_service::{self, VirtualServices},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, PASSED_OVER, Severity},
    model::{HeadersSpec, HttpRoute, Object, ObjectKey, ObjectSet},
};

/// What operators say of where the requests of services go.
struct Intent<'o> {
    attachments: gateway::Attachments<'o>,
    grants: gateway::Grants,
    virtual_services: VirtualServices<'o>,
    consul: ConsulEntries<'o>,
    hedges: Hedges<'o>,
}

pub(super) fn compile(
    (objects, services, options): (&ObjectSet, &BTreeMap<String, ServiceInfo>, &CompileOptions),
    client_filters: &ClientFilters,
    compiled: &mut Compiled,
    findings: &mut Vec<Diagnostic>,
) {
    let intent = Intent {
        attachments: gateway::attach(objects, services, options, compiled, findings),
        grants: gateway::Grants::collect(objects),
        virtual_services: virtual_service::collect(objects, services, options, compiled, findings),
        consul: ConsulEntries::collect(objects, services, options, compiled, findings),
        hedges: hedge::collect(objects, services, options, compiled, findings),
    };
    let around = consul::Surroundings { services, options };
    intent.consul.resolve(&around, compiled, findings);
    let sessions = gateway::apply_policies(objects, services, options, compiled, findings);
    for service in services.values() {
        for port in &service.ports {
            let mut context = Context {
                objects,
                services,
                options,
                compiled,
                findings,
                grants: &intent.grants,
                service,
                port,
            };
            let mut declarations = context.declarations(&intent);
            if let Some((_, hedging)) = intent.hedges.get(&service.fqdn) {
                hedge::apply(hedging, &mut declarations);
            }
            let host = format!("{}:{}", service.fqdn, port.number);
            let limit = compiled.rate_limits.of_host(&service.fqdn);
            let limit = limit.map(|limit| (RATE_LIMIT_FILTER, limit));
            let session = sessions.get(&service.fqdn).cloned();
            let session = session.map(|session| (SESSION_FILTER, session));
            let own = client_filters.of_host(&service.fqdn);
            let mut filters = FilterOverrides::default();
            for (name, said) in limit.into_iter().chain(session).chain(own) {
                let said = FilterOverride::with(said);
                filters.by_name.insert(name.into(), said);
            }
            let routes = ScopedRoutes {
                name: format!("outbound|{}||{}", port.number, service.fqdn).into(),
                host: VirtualHost {
                    filters: filters.boxed(),
                    ..VirtualHost::new(host, domains(service, port, options), Vec::new())
                },
                declarations,
            };
            compiled.add_routes(routes);
        }
    }
    for status in compiled.statuses.values_mut() {
        status.finish();
    }
}

/// An object that says where requests go, which another one says already.
pub(super) fn passed_over(object: &Object, fqdn: &str, winner: &ObjectKey) -> Diagnostic {
    let message = format!("requests to {fqdn} follow {winner}, which goes before this");
    let help = "keep one of the two; docs/config-fields.md says which one goes before";
    Diagnostic {
        severity: Severity::Warning,
        ..object.diagnose(PASSED_OVER, "spec", message, help)
    }
}

/// All spellings, with and without the port; a client that dials the listener by another name
/// still finds its one virtual host.
fn domains(service: &ServiceInfo, port: &PortInfo, options: &CompileOptions) -> Vec<String> {
    let is_default = service
        .port(None)
        .is_some_and(|default| default.number == port.number);
    let mut spellings = service.spellings(&options.cluster_domain);
    if spellings.len() > 1 {
        spellings.push((service.name.clone(), 2));
    }
    let mut domains = Vec::new();
    for (spelling, _) in spellings {
        domains.push(format!("{spelling}:{}", port.number));
        if is_default {
            domains.push(spelling);
        }
    }
    domains.push("*".to_owned());
    domains
}

pub(super) struct Context<'c> {
    pub(super) objects: &'c ObjectSet,
    pub(super) services: &'c BTreeMap<String, ServiceInfo>,
    pub(super) options: &'c CompileOptions,
    pub(super) compiled: &'c mut Compiled,
    pub(super) findings: &'c mut Vec<Diagnostic>,
    pub(super) grants: &'c gateway::Grants,
    pub(super) service: &'c ServiceInfo,
    pub(super) port: &'c PortInfo,
}

impl Context<'_> {
    /// What holds for whom: routes of Gateway API before a VirtualService, that before Consul's
    /// entries, and what is for fewer clients before what is for all.
    fn declarations(&mut self, intent: &Intent<'_>) -> Vec<Declaration> {
        let (fqdn, number) = (&self.service.fqdn, self.port.number);
        let attached = intent.attachments.get(fqdn).map_or(&[][..], Vec::as_slice);
        let attached: Vec<_> = attached.iter().filter(|held| held.is_on(number)).collect();
        let consumers =
            |held: &Attached<'_>| held.consumers(&self.service.namespace).map(str::to_owned);
        let groups: BTreeSet<_> = attached.iter().map(|held| consumers(held)).collect();
        let mut declarations = Vec::new();
        // `None`, the producer's, is first in the set and comes last here.
        for group in groups.into_iter().rev() {
            let own = attached.iter().copied();
            let own = own
                .filter(|held| consumers(held) == group)
                .collect::<Vec<_>>();
            let winner = group.is_none().then(|| own[0].object().key.clone());
            declarations.push(Declaration {
                audience: group.map_or(Audience::All, |namespace| Audience::namespace(&namespace)),
                routes: self.gateway_routes(own.into_iter()),
            });
            if let Some(winner) = winner {
                self.passed_over(intent, &winner);
                return declarations;
            }
        }
        let virtual_services = intent.virtual_services.get(fqdn);
        for declared in virtual_services.into_iter().flatten() {
            let routes = self.virtual_service(declared);
            let audience = declared.audience.clone();
            let is_for_all = audience == Audience::All;
            declarations.push(Declaration { audience, routes });
            if is_for_all {
                let winner = &declared.object.key;
                let others = intent.consul.of(fqdn);
                let findings = others.map(|object| passed_over(object, fqdn, winner));
                self.findings.extend(findings);
                return declarations;
            }
        }
        let routes = match intent.consul.routers.get(fqdn) {
            Some((object, spec)) => self.router(object, spec, &intent.consul),
            None => vec![self.consul_default(&intent.consul)],
        };
        declarations.push(Declaration {
            audience: Audience::All,
            routes,
        });
        declarations
    }

    /// Warns of what is not followed because routes of Gateway API are.
    fn passed_over(&mut self, intent: &Intent<'_>, winner: &ObjectKey) {
        let fqdn = &self.service.fqdn;
        let virtual_services = intent.virtual_services.get(fqdn).into_iter().flatten();
        let others = virtual_services.map(|declared| declared.object);
        let others = others.chain(intent.consul.of(fqdn));
        let findings = others.map(|object| passed_over(object, fqdn, winner));
        self.findings.extend(findings.collect::<Vec<_>>());
    }

    /// Everything to the service itself.
    pub(super) fn default_route(&self) -> Route {
        let name = cluster_name(self.port.number, "", &self.service.fqdn);
        let forward = Forward {
            retry: Some(default_retries()),
            ..Forward::to(name)
        };
        Route::new("default", RouteMatch::any(), RouteAction::Forward(forward))
    }

    pub(super) fn route(
        &mut self,
        object: &Object,
        http: &HttpRoute,
        field: &str,
        routes: &mut Vec<DeclaredRoute>,
    ) {
        let action = match self.action(object, http, field) {
            Ok(action) => action,
            Err(reason) => RouteAction::Unsupported(reason),
        };
        let filters = self.http_filters(object, http, field);
        let mutations = self.headers(object, http.headers.as_ref(), &format!("{field}.headers"));
        let mutations = (!mutations.is_empty()).then(|| Box::new(mutations));
        let mut matches = Vec::new();
        for (index, declared) in http.r#match.iter().enumerate() {
            if declared.port.is_some_and(|port| port != self.port.number) {
                continue;
            }
            match compile_match(declared) {
                Ok(matcher) => matches.push((matcher, clients_of(declared))),
                Err((part, message)) => {
                    let field = format!("{field}.match[{index}].{part}");
                    self.findings
                        .push(object.diagnose(BAD_VALUE, &field, message, ""));
                }
            }
        }
        if http.r#match.is_empty() {
            matches.push((RouteMatch::any(), None));
        }
        let count = matches.len();
        for (index, (matcher, clients)) in matches.into_iter().enumerate() {
            let base = if http.name.is_empty() {
                let number = field.trim_start_matches("spec.");
                format!("{}/{number}", object.key.name)
            } else {
                http.name.clone()
            };
            let name = if count > 1 {
                format!("{base}.{index}")
            } else {
                base
            };
            let route = Route {
                headers: mutations.clone(),
                filters: filters.clone(),
                ..Route::new(name, matcher, action.clone())
            };
            let origin = Some(RouteOrigin::new(object, field));
            routes.push(DeclaredRoute {
                clients,
                ..DeclaredRoute::new(route, origin)
            });
        }
    }

    /// What the route does; an error stands in its place, so that no other is taken.
    fn action(
        &mut self,
        object: &Object,
        http: &HttpRoute,
        field: &str,
    ) -> Result<RouteAction, String> {
        let answer = match (&http.redirect, &http.direct_response) {
            (None, None) => return self.forward(object, http, field).map(RouteAction::Forward),
            _ if !http.route.is_empty() => Err((
                "route".to_owned(),
                "a route has a destination, a redirect or a directResponse".to_owned(),
            )),
            (Some(_), Some(_)) => Err((
                "redirect".to_owned(),
                "redirect and directResponse exclude each other".to_owned(),
            )),
            (Some(declared), None) => redirect(declared, self.port.number)
                .map(|redirect| RouteAction::Redirect(Box::new(redirect)))
                .map_err(|(part, message)| (format!("redirect.{part}"), message)),
            (None, Some(declared)) => direct_response(declared)
                .map(|direct| RouteAction::DirectResponse(Box::new(direct)))
                .map_err(|(part, message)| (format!("directResponse.{part}"), message)),
        };
        answer.map_err(|(part, message)| {
            self.wrong(object, &format!("{field}.{part}"), &message);
            message
        })
    }

    pub(super) fn wrong(&mut self, object: &Object, field: &str, message: &str) {
        self.findings
            .push(object.diagnose(BAD_VALUE, field, message, ""));
    }

    /// What the route says about filters.
    fn http_filters(
        &mut self,
        object: &Object,
        http: &HttpRoute,
        field: &str,
    ) -> Option<Box<FilterOverrides>> {
        let mut filters = FilterOverrides::default();
        let declared = [
            (FAULT_FILTER, "fault", http.fault.as_ref().map(fault)),
            (
                CORS_FILTER,
                "corsPolicy",
                http.cors_policy.as_ref().map(cors),
            ),
        ];
        for (name, part, config) in declared {
            match config {
                Some(Ok(config)) => {
                    let config = FilterOverride::with(config);
                    filters.by_name.insert(name.into(), config);
                }
                Some(Err((inside, message))) => {
                    self.wrong(object, &format!("{field}.{part}.{inside}"), &message);
                }
                None => {}
            }
        }
        filters.boxed()
    }

    pub(super) fn headers(
        &mut self,
        object: &Object,
        declared: Option<&HeadersSpec>,
        field: &str,
    ) -> HeaderMutations {
        match declared.map(headers) {
            Some(Ok(mutations)) => mutations,
            Some(Err((part, message))) => {
                self.wrong(object, &format!("{field}.{part}"), &message);
                HeaderMutations::default()
            }
            None => HeaderMutations::default(),
        }
    }
}
