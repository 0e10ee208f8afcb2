//! The compiled routes of one listener.
//!
//! Stage 6 builds it, stage 8 reads it. A lookup does not allocate.

use std::{sync::Arc, time::Duration};

use super::{
    extras::{HeaderLevels, RouteExtras},
    feature::{Feature, Features},
    index::RouteIndex,
    request::{RequestView, conditions_hold},
    virtual_host,
};
use crate::{
    ConfigError,
    config::{
        AttemptCounts, BodyBuffer, DirectResponse, Forward, Redirect, RetryPolicy, Route,
        RouteAction, RouteConfig, RouteMatch, VirtualHost,
    },
    name::ClusterName,
    rng::Rng,
};

/// Routes of one virtual host, ready for lookup.
#[derive(Debug)]
#[repr(C)]
pub struct RouteTable {
    routes: Box<[CompiledRoute]>,
    index: Option<Box<RouteIndex>>,
    virtual_host: Arc<str>,
    /// Changes of headers for all routes.
    pub(super) headers: Option<Box<HeaderLevels>>,
    /// The virtual hosts without their routes, where a redirect may lead to one of them.
    pub(super) hosts: Option<Box<RouteConfig>>,
}

/// A route, ready for lookup. What each request reads is in the first two cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct CompiledRoute {
    /// Whether it is forwarded and that is all.
    is_plain: bool,
    /// Whether its matcher asks for more than a path.
    has_conditions: bool,
    /// What happens.
    pub action: CompiledAction,
    pub(super) matcher: RouteMatch,
    /// What [`RouteTable::decide`](super::RouteTable::decide) does beyond choosing a cluster; most
    /// routes have none.
    pub(super) extras: Option<Box<RouteExtras>>,
    /// For people, spans and metrics.
    pub name: Arc<str>,
}

impl CompiledRoute {
    /// Where and how to forward, whatever else is to be decided; `None` when it is not forwarded.
    pub fn forward(&self) -> Option<&ForwardAction> {
        match &self.action {
            CompiledAction::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    #[inline]
    fn is_match(&self, request: &RequestView<'_>, rng: &mut impl Rng) -> bool {
        self.matcher.path.is_match(request.path)
            && (!self.has_conditions || conditions_hold(&self.matcher, request, rng))
    }

    /// Where and how to forward, when that is all there is to decide. Whatever else a route asks
    /// for, [`RouteTable::decide_route`] says.
    #[inline]
    pub fn plain(&self) -> Option<&ForwardAction> {
        match &self.action {
            CompiledAction::Forward(forward) if self.is_plain => Some(forward),
            _ => None,
        }
    }
}

/// What a [`CompiledRoute`] does.
#[derive(Debug)]
pub enum CompiledAction {
    /// Send the request to a cluster.
    Forward(ForwardAction),
    /// Answer with another address.
    Redirect(Box<Redirect>),
    /// Answer without asking anybody.
    DirectResponse(Box<DirectResponse>),
    /// Serve it here.
    NonForwarding,
    /// Fail with this reason.
    Unsupported(String),
}

/// Where and how to forward.
#[derive(Debug)]
#[repr(C)]
pub struct ForwardAction {
    /// The index of the cluster, where there is no choice.
    only: Option<u32>,
    /// When to try again.
    pub retry: Option<Box<RetryPolicy>>,
    /// The lesser of `timeout` and `stream_limit`.
    pub grpc_limit: Option<Duration>,
    /// The lesser of `timeout` and `http_stream_limit`.
    pub http_limit: Option<Duration>,
    /// Running sum of the weights, and the cluster's index in the snapshot.
    pub(super) clusters: Box<[(u32, u32)]>,
    /// Limit over all attempts; `None` for no limit.
    pub timeout: Option<Duration>,
    /// Limit of the stream's life; `None` for no limit (gRFC A31).
    pub stream_limit: Option<Duration>,
    /// The same for what is not gRPC, to which the maximum of gRPC's header says nothing.
    pub http_stream_limit: Option<Duration>,
    /// A policy that does nothing by itself, as it names no condition.
    idle_retry: Option<Box<RetryPolicy>>,
    body_buffer: Option<BodyBuffer>,
}

impl ForwardAction {
    /// Draws a cluster by weight; the index points into the snapshot's clusters.
    pub fn cluster(&self, rng: &mut impl Rng) -> u32 {
        match self.only {
            Some(only) => only,
            None => self.clusters[self.place(rng.below(self.total()))].1,
        }
    }

    /// The retry policy as it was declared, also if it does nothing by itself.
    pub fn declared_retry(&self) -> Option<&RetryPolicy> {
        self.retry.as_deref().or(self.idle_retry.as_deref())
    }

    /// Bytes of a streaming body that are kept for other attempts, where the process' limit is `own`.
    pub fn body_buffer_limit(&self, own: usize) -> usize {
        self.body_buffer.map_or(own, |buffer| buffer.limit(own))
    }

    /// The clusters by their indexes in the snapshot, with their weights.
    pub fn clusters(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut before = 0;
        self.clusters.iter().map(move |&(sum, index)| {
            let weight = sum - before;
            before = sum;
            (index, weight)
        })
    }

    /// The sum of the weights.
    pub(super) fn total(&self) -> u64 {
        self.clusters.last().map_or(0, |(sum, _)| u64::from(*sum))
    }

    /// Where among the clusters a number below [`total`](Self::total) falls.
    pub(super) fn place(&self, number: u64) -> usize {
        self.clusters
            .partition_point(|(sum, _)| u64::from(*sum) <= number)
            .min(self.clusters.len() - 1)
    }

    /// Where a cluster is among the clusters.
    pub(super) fn place_of(&self, index: u32) -> Option<usize> {
        self.clusters.iter().position(|(_, held)| *held == index)
    }

    /// Whether it has this cluster.
    pub(super) fn has(&self, index: u32) -> bool {
        self.place_of(index).is_some()
    }

    /// The index of the cluster at `place`.
    pub(super) fn cluster_at(&self, place: usize) -> u32 {
        self.clusters[place].1
    }
}

/// What a listener says of streams, for routes that say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamLimits {
    /// Limit of a stream's life (`max_stream_duration`).
    pub max_duration: Option<Duration>,
    /// Limit of a stream without data in either direction (`stream_idle_timeout`).
    pub idle: Option<Duration>,
}

impl RouteTable {
    /// Compiles the virtual host that `authority` belongs to. `index` finds a cluster by name. A
    /// route that needs a feature which the data plane does not execute yet fails its requests.
    ///
    /// # Errors
    /// When no virtual host matches, a cluster is not known, or the weights of a route are
    /// not usable.
    pub fn compile(
        config: &RouteConfig,
        authority: &str,
        limits: &StreamLimits,
        index: impl Fn(&ClusterName) -> Option<u32>,
    ) -> Result<Self, ConfigError> {
        Self::compile_for(Features::EXECUTED, config, authority, limits, &index)
    }

    /// The same for somebody who executes other features.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn compile_for(
        features: Features,
        config: &RouteConfig,
        authority: &str,
        limits: &StreamLimits,
        index: &impl Fn(&ClusterName) -> Option<u32>,
    ) -> Result<Self, ConfigError> {
        let resource = format!("route configuration {}", config.name);
        let host = virtual_host(config, authority).ok_or_else(|| {
            ConfigError::new(
                &resource,
                "virtual_hosts",
                format!("no domain matches the dialled authority {authority:?}"),
            )
        })?;
        Self::compile_host(features, config, host, limits, index)
    }

    /// The same for one of the virtual hosts of `config`.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn compile_host(
        features: Features,
        config: &RouteConfig,
        host: &VirtualHost,
        limits: &StreamLimits,
        index: &impl Fn(&ClusterName) -> Option<u32>,
    ) -> Result<Self, ConfigError> {
        let resource = format!("route configuration {}", config.name);
        let headers = HeaderLevels::of(config, host);
        let mut routes = Vec::with_capacity(host.routes.len());
        for (i, route) in host.routes.iter().enumerate() {
            let action = compile_action(features, route, limits, &index);
            let action = action.map_err(|reason| {
                let path = format!("virtual_hosts[{}].routes[{i}]", host.name);
                ConfigError::new(&resource, path, reason)
            })?;
            let name = if route.name.is_empty() {
                format!("{}[{i}]", host.name).into()
            } else {
                route.name.as_str().into()
            };
            let extras = RouteExtras::of(route, limits);
            let changes_headers = headers.as_ref().is_some_and(|levels| !levels.is_empty());
            routes.push(CompiledRoute {
                is_plain: extras.is_none() && !changes_headers,
                has_conditions: route.matcher.has_conditions(),
                name,
                action,
                matcher: route.matcher.clone(),
                extras,
            });
        }
        Ok(Self {
            virtual_host: host.name.as_str().into(),
            hosts: follows_redirects(host).then(|| Box::new(without_routes(config))),
            index: RouteIndex::new(routes.iter().map(|route| &route.matcher.path)).map(Box::new),
            routes: routes.into(),
            headers,
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
            route.is_match(request, rng).then_some((number, route))
        })
    }

    /// The same by trying every route.
    pub(super) fn lookup_in_order(
        &self,
        request: &RequestView<'_>,
        rng: &mut impl Rng,
    ) -> Option<(u32, &CompiledRoute)> {
        let mut routes = (0..).zip(&self.routes);
        routes.find(|(_, route)| route.is_match(request, rng))
    }

    /// How much work the look-up of a path is: lists that are asked for, and routes in them.
    #[cfg(test)]
    pub(super) fn steps(&self, path: &str) -> usize {
        match &self.index {
            Some(index) => index.steps(path),
            None => self.routes.len(),
        }
    }

    #[cfg(test)]
    pub(super) fn has_index(&self) -> bool {
        self.index.is_some()
    }

    /// Who is told how often requests were tried.
    pub fn attempt_counts(&self) -> AttemptCounts {
        let headers = self.headers.as_deref();
        headers.map_or_else(AttemptCounts::default, |levels| levels.attempts)
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

fn follows_redirects(host: &VirtualHost) -> bool {
    host.routes.iter().any(|route| match &route.action {
        RouteAction::Forward(Forward {
            extras: Some(extras),
            ..
        }) => extras.internal_redirect.is_some(),
        _ => false,
    })
}

/// What says which virtual host an authority belongs to.
fn without_routes(config: &RouteConfig) -> RouteConfig {
    let hosts = config.virtual_hosts.iter();
    let hosts = hosts.map(|host| VirtualHost::new(&*host.name, &host.domains, Vec::new()));
    RouteConfig {
        ignore_port: config.ignore_port,
        ..RouteConfig::new(config.name.clone(), hosts.collect())
    }
}

fn compile_action(
    features: Features,
    route: &Route,
    limits: &StreamLimits,
    index: &impl Fn(&ClusterName) -> Option<u32>,
) -> Result<CompiledAction, String> {
    if let Some(missing) = Feature::required_by(&route.action)
        .into_iter()
        .find(|feature| !features.contains(*feature))
    {
        let reason = format!("{missing} is not supported");
        return Ok(CompiledAction::Unsupported(reason));
    }
    Ok(match &route.action {
        RouteAction::Forward(forward) => {
            CompiledAction::Forward(compile_forward(forward, limits, index)?)
        }
        RouteAction::Redirect(redirect) => CompiledAction::Redirect(redirect.clone()),
        RouteAction::DirectResponse(direct) => CompiledAction::DirectResponse(direct.clone()),
        RouteAction::NonForwarding => CompiledAction::NonForwarding,
        RouteAction::Unsupported(reason) => CompiledAction::Unsupported(reason.clone()),
    })
}

fn compile_forward(
    forward: &Forward,
    limits: &StreamLimits,
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
    let is_by_header = forward
        .extras
        .as_ref()
        .is_some_and(|extras| extras.cluster_header.is_some());
    if clusters.is_empty() && !is_by_header {
        return Err("the weights sum up to 0".into());
    }
    // gRFC A31: the header's maximum replaces the others even when it is zero; zero is no limit.
    let own = forward.max_stream_duration.unwrap_or_default();
    let declared = own.max_stream_duration.or(limits.max_duration);
    let stream_limit = own.grpc_timeout_header_max.or(declared);
    let is_limit = |limit: &Duration| !limit.is_zero();
    let retry = forward.retry.clone();
    let (retry, idle_retry) = match retry.map(Box::new) {
        Some(policy) if !policy.has_effect() => (None, Some(policy)),
        retry => (retry, None),
    };
    let timeout = forward.timeout.filter(is_limit);
    let stream_limit = stream_limit.filter(is_limit);
    let http_stream_limit = declared.filter(is_limit);
    let least = |limit: Option<Duration>| timeout.into_iter().chain(limit).min();
    let only = match *clusters {
        [(_, only)] => Some(only),
        _ => None,
    };
    Ok(ForwardAction {
        only,
        clusters: clusters.into(),
        grpc_limit: least(stream_limit),
        http_limit: least(http_stream_limit),
        timeout,
        stream_limit,
        http_stream_limit,
        retry,
        idle_retry,
        body_buffer: forward.body_buffer,
    })
}
