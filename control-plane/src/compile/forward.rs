//! Where a route of a VirtualService sends requests: clusters with their shares, limits, rewrites, copies.

use std::sync::Arc;

use mesh_core::config::{
    ClusterEndpoints, ClusterExtras, Discovery, Forward, ForwardExtras, Mirror, MirrorTarget,
    WeightedCluster,
};

use super::{
    clusters::cluster_name,
    route_action::{compile_retries, default_retries, rewrite, share},
    routes::Context,
    services::{find, unknown_host},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic, Severity, UNKNOWN_REFERENCE},
    model::{HttpRoute, Object, Percent, Weighted},
    value,
};

impl Context<'_> {
    /// Rewrites and copies.
    fn extras(
        &mut self,
        object: &Object,
        http: &HttpRoute,
        field: &str,
    ) -> Result<Option<Box<ForwardExtras>>, String> {
        let mut extras = ForwardExtras::default();
        if let Some(declared) = &http.rewrite {
            (extras.path_rewrite, extras.host_rewrite) =
                rewrite(declared).map_err(|(part, message)| {
                    self.wrong(object, &format!("{field}.rewrite.{part}"), &message);
                    message
                })?;
        }
        let old = http.mirror_percent.map(|value| Percent {
            value: value.into(),
        });
        let single = http.mirror.iter().map(|destination| {
            let percentage = http.mirror_percentage.as_ref().or(old.as_ref());
            (
                "mirror".to_owned(),
                "mirrorPercentage".to_owned(),
                destination,
                percentage,
            )
        });
        let listed = http.mirrors.iter().enumerate().map(|(index, mirror)| {
            let place = format!("mirrors[{index}]");
            let percentage = mirror.percentage.as_ref();
            let share = format!("{place}.percentage");
            (
                format!("{place}.destination"),
                share,
                &mirror.destination,
                percentage,
            )
        });
        for (place, share_field, destination, percentage) in single.chain(listed) {
            let place = format!("{field}.{place}");
            let share_field = format!("{field}.{share_field}.value");
            if let Some(mirror) = self.mirror(object, destination, percentage, &place, &share_field)
            {
                extras.mirrors.push(mirror);
            }
        }
        if http.mirror_percentage.is_some() && http.mirror.is_none() {
            let message = "there is no mirror that it could be a share of";
            self.wrong(object, &format!("{field}.mirrorPercentage"), message);
        }
        Ok((extras != ForwardExtras::default()).then(|| Box::new(extras)))
    }

    fn mirror(
        &mut self,
        object: &Object,
        destination: &Weighted,
        percentage: Option<&Percent>,
        place: &str,
        share_field: &str,
    ) -> Option<Mirror> {
        let name = self.destination(object, destination, place);
        match share(percentage) {
            Ok(fraction) => Some(Mirror {
                cluster: MirrorTarget::Cluster(name.into()),
                fraction,
                shadow_suffix: true,
                trace_sampled: None,
            }),
            Err(message) => {
                self.wrong(object, share_field, &message);
                None
            }
        }
    }

    /// A single subset with a share below 100: the rest is for the host's other subset, if there is
    /// one alone, as whoever writes 90 does not mean all.
    fn remainder(
        &mut self,
        object: &Object,
        http: &HttpRoute,
        field: &str,
    ) -> Option<WeightedCluster> {
        let [only] = &http.route[..] else {
            return None;
        };
        let weight = only.weight.filter(|weight| (1..100).contains(weight))?;
        let subset = only.destination.subset.as_deref()?;
        let namespace = &object.key.namespace;
        let host = &only.destination.host;
        let service = find(self.services, host, namespace, &self.options.cluster_domain)?;
        let asked = only.destination.port.as_ref().map(|port| port.number);
        let (start, end) = (
            format!("outbound|{}|", asked.unwrap_or(self.port.number)),
            format!("|{}", service.fqdn),
        );
        let mut others = self.compiled.clusters.keys().filter(|name| {
            let inner = name.as_str().strip_prefix(&start);
            let other = inner.and_then(|inner| inner.strip_suffix(&end));
            other.is_some_and(|other| !other.is_empty() && other != subset)
        });
        let rest = match (others.next(), others.next()) {
            (Some(other), None) => Some(WeightedCluster::new(other.clone(), 100 - weight)),
            _ => None,
        };
        let message = match &rest {
            Some(other) => format!(
                "one destination with {weight} of 100: the other {} go to {}",
                other.weight, other.name
            ),
            None => format!("one destination with {weight} of 100: it gets everything"),
        };
        let help = "write every destination with its weight";
        self.findings.push(Diagnostic {
            severity: Severity::Warning,
            ..object.diagnose(
                BAD_VALUE,
                &format!("{field}.route[0].weight"),
                message,
                help,
            )
        });
        rest
    }

    pub(super) fn forward(
        &mut self,
        object: &Object,
        http: &HttpRoute,
        field: &str,
    ) -> Result<Forward, String> {
        if http.route.is_empty() {
            let message = "a route needs a destination";
            let field = format!("{field}.route");
            self.findings
                .push(object.diagnose(BAD_VALUE, &field, message, ""));
            return Err(message.to_owned());
        }
        let mut clusters = Vec::new();
        for (index, destination) in http.route.iter().enumerate() {
            let field = format!("{field}.route[{index}]");
            let place = format!("{field}.destination");
            let name = self.destination(object, &destination.destination, &place);
            let only = http.route.len() == 1;
            let weight = destination.weight.unwrap_or_else(|| u32::from(only));
            let own = format!("{field}.headers");
            let extras = ClusterExtras {
                headers: self.headers(object, destination.headers.as_ref(), &own),
                ..ClusterExtras::default()
            };
            clusters.push(WeightedCluster {
                extras: (extras != ClusterExtras::default()).then(|| Box::new(extras)),
                ..WeightedCluster::new(name, weight)
            });
        }
        clusters.extend(self.remainder(object, http, field));
        let extras = self.extras(object, http, field)?;
        let sum: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
        if sum == 0 || sum > u64::from(u32::MAX) {
            let message = format!("the weights sum up to {sum}, not to 1 to {}", u32::MAX);
            let field = format!("{field}.route");
            let help = "give at least one destination a weight";
            self.findings
                .push(object.diagnose(BAD_VALUE, &field, message.clone(), help));
            return Err(message);
        }
        clusters.retain(|cluster| cluster.weight > 0);
        let mut wrong = |part: &str, message: String| {
            let field = format!("{field}.{part}");
            self.findings
                .push(object.diagnose(BAD_VALUE, &field, message, ""));
        };
        let timeout = match http.timeout.as_deref().map(value::duration) {
            Some(Ok(timeout)) => Some(timeout).filter(|timeout| !timeout.is_zero()),
            Some(Err(message)) => {
                wrong("timeout", message);
                None
            }
            None => None,
        };
        let retry = match &http.retries {
            None => Some(default_retries()),
            Some(retries) => compile_retries(retries, &mut wrong),
        };
        Ok(Forward {
            clusters,
            timeout,
            retry,
            extras,
            ..Forward::default()
        })
    }

    /// The cluster of a destination; one that is not there becomes a cluster without endpoints, so
    /// that only its share fails.
    fn destination(&mut self, object: &Object, destination: &Weighted, field: &str) -> String {
        let (host, subset) = (format!("{field}.host"), format!("{field}.subset"));
        self.destination_named(object, destination, &host, &subset)
    }

    /// The same, with the fields that findings are about.
    pub(super) fn destination_named(
        &mut self,
        object: &Object,
        destination: &Weighted,
        host_field: &str,
        subset_field: &str,
    ) -> String {
        let namespace = &object.key.namespace;
        let subset = destination.subset.as_deref().unwrap_or_default();
        let found = find(
            self.services,
            &destination.host,
            namespace,
            &self.options.cluster_domain,
        );
        let asked = destination.port.as_ref().map(|port| port.number);
        let name = match found {
            Some(service) => {
                let port = match asked {
                    Some(number) => number,
                    None if service.port(Some(self.port.number)).is_some() => self.port.number,
                    None => service
                        .port(None)
                        .map_or(self.port.number, |port| port.number),
                };
                cluster_name(port, subset, &service.fqdn)
            }
            None => {
                self.findings
                    .push(unknown_host(object, host_field, &destination.host));
                cluster_name(asked.unwrap_or(self.port.number), subset, &destination.host)
            }
        };
        if self.compiled.clusters.contains_key(name.as_str()) {
            return name;
        }
        if found.is_some() {
            let message = format!("{} has no subset {subset:?} on that port", destination.host);
            let help = "add the subset to the host's DestinationRule";
            self.findings
                .push(object.diagnose(UNKNOWN_REFERENCE, subset_field, message, help));
        }
        self.add_empty_cluster(&name);
        name
    }

    fn add_empty_cluster(&mut self, name: &str) {
        let own = cluster_name(self.port.number, "", &self.service.fqdn);
        let Some(template) = self.compiled.clusters.get(own.as_str()) else {
            return;
        };
        let mut cluster = (**template).clone();
        cluster.name = name.into();
        cluster.discovery = Discovery::Eds(name.into());
        self.compiled
            .clusters
            .insert(name.into(), Arc::new(cluster));
        let empty = ClusterEndpoints::new(name, Vec::new());
        self.compiled.endpoints.insert(name.into(), Arc::new(empty));
    }
}
