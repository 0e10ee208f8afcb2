//! From a destination through splitters and resolvers to clusters (Consul's discovery chain).

use std::time::Duration;

use mesh_core::config::{
    ClusterExtras, Forward, ForwardExtras, HashPolicy, HeaderMutations, Route, RouteAction,
    RouteMatch, WeightedCluster,
};

use super::{
    super::{
        RouteOrigin,
        route_action::{default_retries, headers},
        routes::Context,
        scoped::DeclaredRoute,
        services::find,
    },
    ConsulEntries, resolver,
};
use crate::{
    diagnostic::BAD_VALUE,
    model::{HeadersSpec, Object, Weighted, service_in},
    value,
};

/// Splitters and redirects that are followed, one behind the other.
const DEPTH_MAX: usize = 16;
/// Parts of all requests in which shares of nested splitters are counted.
const PARTS: u64 = 1_000_000;

/// A service, and a subset of it.
pub(in super::super) struct Target<'t> {
    /// Default the one that the object is for.
    pub(in super::super) service: Option<&'t str>,
    pub(in super::super) subset: Option<&'t str>,
    /// The fields of both.
    pub(in super::super) names: [String; 2],
}

/// Where a destination leads.
#[derive(Default)]
pub(super) struct Legs {
    pub(super) clusters: Vec<WeightedCluster>,
    /// Limit over all attempts.
    pub(super) timeout: Option<Duration>,
    pub(super) hash_policy: Vec<HashPolicy>,
}

/// A part of a destination: where it stands, and what happens on the way.
struct Leg<'l> {
    object: &'l Object,
    /// The service that is meant when none is named.
    own: &'l str,
    target: &'l Target<'l>,
    weight: u64,
    headers: HeaderMutations,
    depth: usize,
}

impl Context<'_> {
    /// Everything to the service itself, through its splitter and its resolver.
    pub(in super::super) fn consul_default(
        &mut self,
        entries: &ConsulEntries<'_>,
    ) -> DeclaredRoute {
        let fqdn = self.service.fqdn.as_str();
        let splitter = entries.splitters.get(fqdn).map(|(object, _)| *object);
        let resolver = entries.resolvers.get(fqdn).map(|(object, _)| *object);
        let Some(object) = splitter.or(resolver) else {
            return DeclaredRoute::new(self.default_route(), None);
        };
        let target = Target {
            service: None,
            subset: None,
            names: [String::new(), String::new()],
        };
        let legs = self.legs(object, &target, entries);
        let extras = ForwardExtras {
            hash_policy: legs.hash_policy,
            ..ForwardExtras::default()
        };
        let forward = Forward {
            clusters: legs.clusters,
            timeout: legs.timeout,
            retry: Some(default_retries()),
            extras: (extras != ForwardExtras::default()).then(|| Box::new(extras)),
            ..Forward::default()
        };
        let route = Route::new("default", RouteMatch::any(), RouteAction::Forward(forward));
        DeclaredRoute::new(route, Some(RouteOrigin::new(object, "spec")))
    }

    /// Where a destination of `object` leads. One that leads nowhere is a cluster without endpoints.
    pub(super) fn legs(
        &mut self,
        object: &Object,
        target: &Target<'_>,
        entries: &ConsulEntries<'_>,
    ) -> Legs {
        let mut legs = Legs::default();
        let own = self.service.fqdn.clone();
        let leg = Leg {
            object,
            own: &own,
            target,
            weight: PARTS,
            headers: HeaderMutations::default(),
            depth: 0,
        };
        self.leg(&leg, entries, &mut legs);
        if let [only] = &mut legs.clusters[..] {
            only.weight = 1;
        }
        legs
    }

    fn leg(&mut self, leg: &Leg<'_>, entries: &ConsulEntries<'_>, legs: &mut Legs) {
        let name = leg.target.service.unwrap_or(leg.own);
        let (namespace, domain) = (&leg.object.key.namespace, &self.options.cluster_domain);
        let found = find(self.services, name, namespace, domain).map(|found| found.fqdn.clone());
        if leg.depth >= DEPTH_MAX {
            let message = format!("splitters lead in a circle, or through more than {DEPTH_MAX}");
            self.findings.push(
                leg.object
                    .diagnose(BAD_VALUE, "spec.splits", message, "break it"),
            );
        } else if leg.target.subset.is_none()
            && let Some(fqdn) = &found
            // A share that goes to the service itself is what is left to its resolver.
            && (leg.depth == 0 || *fqdn != leg.own)
            && let Some((object, spec)) = entries.splitters.get(fqdn)
        {
            let sum: u64 = spec.splits.iter().map(|split| parts(split.weight)).sum();
            if sum != parts(100.0) {
                let message = "the weights do not sum up to 100: they are shares of their sum";
                self.wrong(object, "spec.splits", message);
            }
            for (index, split) in spec.splits.iter().enumerate() {
                let field = format!("spec.splits[{index}]");
                let (namespace, own) = (split.namespace.as_deref(), &object.key.name);
                let service = service_in(split.service.as_deref(), namespace, own);
                let target = Target {
                    service: service.as_deref(),
                    subset: split.service_subset.as_deref(),
                    names: [format!("{field}.service"), format!("{field}.serviceSubset")],
                };
                let spec = HeadersSpec {
                    request: split.request_headers.clone(),
                    response: split.response_headers.clone(),
                };
                let own = headers(&spec).unwrap_or_else(|(part, message)| {
                    let field = format!("{field}.{}", part.replacen('.', "Headers.", 1));
                    self.wrong(object, &field, &message);
                    HeaderMutations::default()
                });
                let weight = leg.weight * parts(split.weight) / sum.max(1);
                let is_some = split.weight > 0.0;
                self.leg(
                    &Leg {
                        object,
                        own: fqdn,
                        target: &target,
                        weight: if is_some { weight.max(1) } else { 0 },
                        headers: both(&leg.headers, own),
                        depth: leg.depth + 1,
                    },
                    entries,
                    legs,
                );
            }
            return;
        }
        if leg.weight == 0 {
            return;
        }
        let cluster = self.resolve_leg(leg, found, entries, legs);
        let extras = ClusterExtras {
            headers: leg.headers.clone(),
            ..ClusterExtras::default()
        };
        let weight = u32::try_from(leg.weight).unwrap_or(u32::MAX);
        legs.clusters.push(WeightedCluster {
            extras: (extras != ClusterExtras::default()).then(|| Box::new(extras)),
            ..WeightedCluster::new(cluster, weight)
        });
    }

    /// The cluster behind redirects and default subsets.
    fn resolve_leg(
        &mut self,
        leg: &Leg<'_>,
        found: Option<String>,
        entries: &ConsulEntries<'_>,
        legs: &mut Legs,
    ) -> String {
        let mut weighted = Weighted {
            host: found.unwrap_or_else(|| leg.target.service.unwrap_or(leg.own).to_owned()),
            subset: leg.target.subset.map(str::to_owned),
            port: None,
        };
        let (mut object, mut names) = (leg.object, leg.target.names.clone());
        for _ in 0..DEPTH_MAX {
            let Some((resolver, spec)) = entries.resolvers.get(&weighted.host) else {
                break;
            };
            if legs.timeout.is_none()
                && let Some(text) = &spec.request_timeout
            {
                match value::duration(text) {
                    Ok(timeout) => legs.timeout = Some(timeout).filter(|limit| !limit.is_zero()),
                    Err(message) => self.wrong(resolver, "spec.requestTimeout", &message),
                }
            }
            let Some(redirect) = &spec.redirect else {
                if weighted.subset.is_none() && spec.default_subset.is_some() {
                    weighted.subset.clone_from(&spec.default_subset);
                    (object, names[1]) = (resolver, "spec.defaultSubset".to_owned());
                }
                if legs.hash_policy.is_empty()
                    && let Some(balancer) = &spec.load_balancer
                {
                    legs.hash_policy = resolver::hash_policies(self, resolver, balancer);
                }
                break;
            };
            let (namespace, domain) = (&resolver.key.namespace, &self.options.cluster_domain);
            let elsewhere = redirect.namespace.as_deref();
            let own = &resolver.key.name;
            let name = service_in(redirect.service.as_deref(), elsewhere, own);
            let name = name.as_ref().unwrap_or(&weighted.host);
            let to = find(self.services, name, namespace, domain);
            let host = to.map_or_else(|| name.clone(), |to| to.fqdn.clone());
            let next = Weighted {
                host,
                subset: redirect.service_subset.clone(),
                port: None,
            };
            object = resolver;
            names = ["spec.redirect.service", "spec.redirect.serviceSubset"].map(str::to_owned);
            let is_same = next.host == weighted.host;
            weighted = next;
            if is_same {
                break;
            }
        }
        self.destination_named(object, &weighted, &names[0], &names[1])
    }
}

/// Hundredths of a percent.
fn parts(weight: f64) -> u64 {
    (weight.clamp(0.0, 100.0) * 100.0).round() as u64
}

fn both(outer: &HeaderMutations, inner: HeaderMutations) -> HeaderMutations {
    let mut all = inner;
    all.request
        .remove
        .extend(outer.request.remove.iter().cloned());
    all.request.add.extend(outer.request.add.iter().cloned());
    all.response
        .remove
        .extend(outer.response.remove.iter().cloned());
    all.response.add.extend(outer.response.add.iter().cloned());
    all
}
