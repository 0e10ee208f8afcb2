//! The compiled routes of one listener.
//!
//! Stage 6 builds it, stage 8 reads it. A lookup does not allocate.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use http::{HeaderMap, Method};

use super::{index::RouteIndex, virtual_host};
use crate::{
    ConfigError,
    config::{
        Forward, HeaderMatcher, PathMatcher, RetryPolicy, RouteAction, RouteConfig, RouteMatch,
        joined,
    },
    name::ClusterName,
    rng::Rng,
};

/// What a lookup sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'r> {
    /// Method.
    pub method: &'r Method,
    /// Path without query.
    pub path: &'r str,
    /// Authority or host header.
    pub authority: &'r str,
    /// Headers.
    pub headers: &'r HeaderMap,
}

impl<'r> RequestView<'r> {
    /// The joined value of a header or pseudo-header. Headers that end in `-bin` are not visible
    /// (gRFC A28).
    pub fn header(&self, name: &str) -> Option<Cow<'r, str>> {
        match name {
            ":method" => Some(Cow::Borrowed(self.method.as_str())),
            ":path" => Some(Cow::Borrowed(self.path)),
            ":authority" | "host" => Some(Cow::Borrowed(self.authority)),
            name if name.ends_with("-bin") => None,
            name => joined(self.headers, name),
        }
    }
}

/// Routes of one virtual host, ready for lookup.
#[derive(Debug)]
pub struct RouteTable {
    virtual_host: Arc<str>,
    routes: Box<[CompiledRoute]>,
    index: Option<RouteIndex>,
}

/// A route, ready for lookup.
#[derive(Debug)]
pub struct CompiledRoute {
    /// For people, spans and metrics.
    pub name: Arc<str>,
    /// What happens.
    pub action: CompiledAction,
    matcher: RouteMatch,
}

/// What a [`CompiledRoute`] does.
#[derive(Debug)]
pub enum CompiledAction {
    /// Send the request to a cluster.
    Forward(ForwardAction),
    /// Serve it here.
    NonForwarding,
    /// Fail with this reason.
    Unsupported(String),
}

/// Where and how to forward.
#[derive(Debug)]
pub struct ForwardAction {
    /// Running sum of the weights, and the cluster's index in the snapshot.
    clusters: Box<[(u32, u32)]>,
    /// Limit over all attempts; `None` for no limit.
    pub timeout: Option<Duration>,
    /// Limit of the stream's life; `None` for no limit (gRFC A31).
    pub stream_limit: Option<Duration>,
    /// When to try again.
    pub retry: Option<RetryPolicy>,
}

impl ForwardAction {
    /// Draws a cluster by weight; the index points into the snapshot's clusters.
    pub fn cluster(&self, rng: &mut impl Rng) -> u32 {
        let (total, last) = match *self.clusters {
            [(_, only)] => return only,
            [.., last] => last,
            [] => unreachable!("compile refuses a route without clusters"),
        };
        let draw = rng.below(u64::from(total)) as u32;
        self.clusters
            .iter()
            .find(|(sum, _)| draw < *sum)
            .map_or(last, |(_, index)| *index)
    }
}

impl RouteTable {
    /// Compiles the virtual host that `authority` belongs to. `index` finds a cluster by name.
    ///
    /// # Errors
    /// When no virtual host matches, a cluster is not known, or the weights of a route are
    /// not usable.
    pub fn compile(
        config: &RouteConfig,
        authority: &str,
        listener_limit: Option<Duration>,
        index: impl Fn(&ClusterName) -> Option<u32>,
    ) -> Result<Self, ConfigError> {
        let resource = format!("route configuration {}", config.name);
        let host = virtual_host(config, authority).ok_or_else(|| {
            ConfigError::new(
                &resource,
                "virtual_hosts",
                format!("no domain matches the dialled authority {authority:?}"),
            )
        })?;
        let mut routes = Vec::with_capacity(host.routes.len());
        for (i, route) in host.routes.iter().enumerate() {
            let action = match &route.action {
                RouteAction::Forward(forward) => CompiledAction::Forward(
                    compile_forward(forward, listener_limit, &index).map_err(|reason| {
                        let path = format!("virtual_hosts[{}].routes[{i}]", host.name);
                        ConfigError::new(&resource, path, reason)
                    })?,
                ),
                RouteAction::NonForwarding => CompiledAction::NonForwarding,
                RouteAction::Unsupported(reason) => CompiledAction::Unsupported(reason.clone()),
            };
            let name = if route.name.is_empty() {
                format!("{}[{i}]", host.name).into()
            } else {
                route.name.as_str().into()
            };
            routes.push(CompiledRoute {
                name,
                action,
                matcher: route.matcher.clone(),
            });
        }
        Ok(Self {
            virtual_host: host.name.as_str().into(),
            index: RouteIndex::new(routes.iter().map(|route| &route.matcher.path)),
            routes: routes.into(),
        })
    }

    /// The first route that matches, with its index in [`routes`](Self::routes).
    pub fn lookup(
        &self,
        request: &RequestView<'_>,
        rng: &mut impl Rng,
    ) -> Option<(u32, &CompiledRoute)> {
        let candidates = self
            .index
            .as_ref()
            .and_then(|index| index.candidates(request.path));
        let Some(mut candidates) = candidates else {
            return self.lookup_in_order(request, rng);
        };
        candidates.find_map(|number| {
            let route = &self.routes[number as usize];
            matches(&route.matcher, request, rng).then_some((number, route))
        })
    }

    /// The same by trying every route.
    pub(super) fn lookup_in_order(
        &self,
        request: &RequestView<'_>,
        rng: &mut impl Rng,
    ) -> Option<(u32, &CompiledRoute)> {
        let mut routes = (0..).zip(&self.routes);
        routes.find(|(_, route)| matches(&route.matcher, request, rng))
    }

    #[cfg(test)]
    pub(super) fn has_index(&self) -> bool {
        self.index.is_some()
    }

    /// Name of the virtual host.
    pub fn virtual_host(&self) -> &str {
        &self.virtual_host
    }

    /// The routes in order.
    pub fn routes(&self) -> &[CompiledRoute] {
        &self.routes
    }
}

impl fmt::Display for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "virtual host {}", self.virtual_host)?;
        for route in &self.routes {
            let RouteMatch {
                path: PathMatcher { pattern, .. },
                headers,
                ..
            } = &route.matcher;
            write!(f, "  {}: {pattern:?}", route.name)?;
            for HeaderMatcher {
                name, predicate, ..
            } in headers
            {
                write!(f, " {name}={predicate:?}")?;
            }
            match &route.action {
                CompiledAction::Forward(forward) => writeln!(f, " -> {:?}", forward.clusters)?,
                other => writeln!(f, " -> {other:?}")?,
            }
        }
        Ok(())
    }
}

fn matches(matcher: &RouteMatch, request: &RequestView<'_>, rng: &mut impl Rng) -> bool {
    matcher.path.is_match(request.path)
        && matcher
            .headers
            .iter()
            .all(|header| header.is_match(request.header(&header.name).as_deref()))
        && matcher
            .fraction
            .is_none_or(|fraction| fraction.contains(rng.next_u64()))
}

fn compile_forward(
    forward: &Forward,
    listener_limit: Option<Duration>,
    index: &impl Fn(&ClusterName) -> Option<u32>,
) -> Result<ForwardAction, String> {
    let mut clusters = Vec::with_capacity(forward.clusters.len());
    let mut sum = 0u32;
    for cluster in forward.clusters.iter().filter(|cluster| cluster.weight > 0) {
        sum = sum
            .checked_add(cluster.weight)
            .ok_or("the weights sum up to more than 2^32 - 1")?;
        let index = index(&cluster.name)
            .ok_or_else(|| format!("cluster {} is not part of the snapshot", cluster.name))?;
        clusters.push((sum, index));
    }
    if clusters.is_empty() {
        return Err("the weights sum up to 0".into());
    }
    // gRFC A31: the header's maximum replaces the others even when it is zero; zero is no limit.
    let limits = forward.max_stream_duration.unwrap_or_default();
    let stream_limit = limits
        .grpc_timeout_header_max
        .or(limits.max_stream_duration)
        .or(listener_limit)
        .filter(|limit| !limit.is_zero());
    Ok(ForwardAction {
        clusters: clusters.into(),
        timeout: forward.timeout.filter(|timeout| !timeout.is_zero()),
        stream_limit,
        retry: forward.retry.clone(),
    })
}
