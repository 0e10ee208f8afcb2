//! Which DestinationRule holds for whom.
//!
//! As in Istio, a client looks in its own namespace first, then in that of the service, then in the
//! root namespace; in the last two it sees what is exported to it (`exportTo`). Of a namespace's rules
//! the one with the narrowest host holds; several for one host are one: their subsets together, and
//! the policy of the oldest that has one. A rule with a `workloadSelector` goes before those without,
//! for the clients that it selects. Unlike in Istio, a client that no rule of a namespace selects looks
//! on, and a subset that its rule does not have is the one that other clients see.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    CompileOptions, Compiled, ServiceInfo,
    routes::passed_over,
    scoped::{Audience, ClientMatch},
    services::{find, unknown_host},
};
use crate::{
    diagnostic::Diagnostic,
    model::{ClientSelector, DestinationRule, Object, ObjectSet, Spec, Subset, TrafficPolicy},
};

/// A rule about a service.
#[derive(Clone, Debug)]
struct Declared<'r> {
    object: &'r Arc<Object>,
    rule: &'r DestinationRule,
    audience: Audience,
    /// Longer is narrower; the name itself is the narrowest.
    width: usize,
}

impl<'r> Declared<'r> {
    /// The labels of the clients that it is for; `None` is all.
    fn selector(&self) -> Option<&'r ClientSelector> {
        let selector = self.rule.workload_selector.as_ref();
        selector.filter(|selector| !selector.match_labels.is_empty())
    }

    fn namespace(&self) -> &'r str {
        &self.object.key.namespace
    }
}

/// What holds for a group of clients.
#[derive(Clone, Debug, Default)]
pub(super) struct Held<'r> {
    /// The policy of the host.
    pub(super) policy: Option<(&'r Object, &'r TrafficPolicy)>,
    /// Subsets, with their places in their objects.
    pub(super) subsets: Vec<(&'r Object, usize, &'r Subset)>,
}

impl<'r> Held<'r> {
    /// Of rules for one host, the first of which goes before the others.
    fn merged(rules: &[&Declared<'r>]) -> Self {
        let mut held = Self::default();
        for declared in rules {
            let (object, rule) = (&**declared.object, declared.rule);
            let policy = rule.traffic_policy.as_ref();
            held.policy = held
                .policy
                .or_else(|| policy.map(|policy| (object, policy)));
            for (index, subset) in rule.subsets.iter().enumerate() {
                if held
                    .subsets
                    .iter()
                    .all(|(_, _, own)| own.name != subset.name)
                {
                    held.subsets.push((object, index, subset));
                }
            }
        }
        held
    }
}

/// What holds for the clients of a service.
#[derive(Debug, Default)]
pub(super) struct Holding<'r> {
    /// Those that no rule is especially for.
    pub(super) all: Held<'r>,
    /// Others, in the order in which they are asked.
    pub(super) some: Vec<(ClientMatch, Held<'r>)>,
}

/// The rules of all services.
#[derive(Debug, Default)]
pub(super) struct DestinationRules<'r> {
    /// By full name, those that go before others first.
    by_service: BTreeMap<String, Vec<Declared<'r>>>,
    root_namespace: String,
}

impl<'r> DestinationRules<'r> {
    /// Finds the services of all rules.
    pub(super) fn collect(
        objects: &'r ObjectSet,
        services: &BTreeMap<String, ServiceInfo>,
        options: &CompileOptions,
        compiled: &mut Compiled,
        findings: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut rules = Self {
            by_service: BTreeMap::new(),
            root_namespace: options.root_namespace.clone(),
        };
        for object in objects.values() {
            let Spec::DestinationRule(rule) = &object.spec else {
                continue;
            };
            let named = named(rule, object, services, options);
            if named.is_empty() {
                findings.push(unknown_host(object, "spec.host", &rule.host));
            }
            for (service, width) in named {
                compiled.made_of(&service.fqdn, &object.key);
                let export_to = rule.export_to.iter().map(String::as_str);
                let declared = Declared {
                    object,
                    rule,
                    audience: Audience::exported(export_to, &object.key.namespace),
                    width,
                };
                let rules = rules.by_service.entry(service.fqdn.clone());
                rules.or_default().push(declared);
            }
        }
        for (fqdn, declared) in &mut rules.by_service {
            declared.sort_by_key(|held| {
                let made = held.object.metadata.creation_timestamp.clone();
                (made.is_none(), made, held.object.key.clone())
            });
            report_passed_over(fqdn, declared, findings);
        }
        rules
    }

    /// What holds for whom.
    pub(super) fn of(&self, service: &ServiceInfo) -> Holding<'r> {
        let Some(rules) = self.by_service.get(&service.fqdn) else {
            return Holding::default();
        };
        let mut namespaces: BTreeSet<_> = rules.iter().map(Declared::namespace).collect();
        for declared in rules {
            if let Audience::Namespaces(names) = &declared.audience {
                namespaces.extend(names.iter().map(String::as_str));
            }
        }
        let for_all = self.lookup(rules, service, None);
        let mut some = Vec::new();
        for namespace in namespaces {
            for declared in rules.iter().filter(|held| held.namespace() == namespace) {
                if let Some(selector) = declared.selector() {
                    let clients = ClientMatch {
                        audience: Audience::namespace(namespace),
                        labels: selector.match_labels.clone(),
                    };
                    some.push((clients, Held::merged(&[declared])));
                }
            }
            let own = self.lookup(rules, service, Some(namespace));
            let is_same = own.len() == for_all.len()
                && own.iter().zip(&for_all).all(|(a, b)| std::ptr::eq(*a, *b));
            if !is_same {
                let clients = ClientMatch {
                    audience: Audience::namespace(namespace),
                    ..ClientMatch::default()
                };
                some.push((clients, Held::merged(&own)));
            }
        }
        Holding {
            all: Held::merged(&for_all),
            some,
        }
    }

    /// The rules, without those with a selector, that a client of a namespace finds; `None` is one of
    /// a namespace that no rule names.
    fn lookup<'d>(
        &self,
        rules: &'d [Declared<'r>],
        service: &ServiceInfo,
        client: Option<&str>,
    ) -> Vec<&'d Declared<'r>> {
        let narrowest = |is_seen: &dyn Fn(&Declared<'r>) -> bool| {
            let seen = rules.iter();
            let seen = seen.filter(|held| held.selector().is_none() && is_seen(held));
            let seen: Vec<_> = seen.collect();
            let width = seen.iter().map(|held| held.width).max();
            let narrowest = seen.into_iter().filter(|held| Some(held.width) == width);
            narrowest.collect::<Vec<_>>()
        };
        let exported = |namespace: &str| {
            narrowest(&|held| {
                let is_for = match client {
                    Some(client) => held.audience.has(client),
                    None => held.audience == Audience::All,
                };
                held.namespace() == namespace && is_for
            })
        };
        let own = |held: &Declared<'r>| {
            // What the root namespace says to all is not meant for its own clients first.
            let is_root = held.namespace() == self.root_namespace;
            Some(held.namespace()) == client && !(is_root && held.audience == Audience::All)
        };
        [
            narrowest(&own),
            exported(&service.namespace),
            exported(&self.root_namespace),
        ]
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or_default()
    }
}

/// The services that a rule is about, and how narrow its host is.
fn named<'s>(
    rule: &DestinationRule,
    object: &Object,
    services: &'s BTreeMap<String, ServiceInfo>,
    options: &CompileOptions,
) -> Vec<(&'s ServiceInfo, usize)> {
    match rule.host.strip_prefix('*') {
        Some(suffix) => {
            let all = services.values();
            let all = all.filter(|service| service.fqdn.ends_with(suffix));
            all.map(|service| (service, suffix.len())).collect()
        }
        None => {
            let namespace = &object.key.namespace;
            let found = find(services, &rule.host, namespace, &options.cluster_domain);
            found
                .map(|service| (service, usize::MAX))
                .into_iter()
                .collect()
        }
    }
}

/// Warns of policies of a host that has one already.
fn report_passed_over(fqdn: &str, rules: &[Declared<'_>], findings: &mut Vec<Diagnostic>) {
    let labels = |held: &Declared<'_>| held.selector().map(|own| own.match_labels.clone());
    for (index, declared) in rules.iter().enumerate() {
        let goes_before = |other: &&Declared<'_>| {
            other.namespace() == declared.namespace()
                && other.width == declared.width
                && labels(other) == labels(declared)
                && other.rule.traffic_policy.is_some()
                && other.audience.covers(&declared.audience)
        };
        let winner = rules[..index].iter().find(goes_before);
        if let Some(winner) = winner
            && declared.rule.traffic_policy.is_some()
        {
            findings.push(passed_over(declared.object, fqdn, &winner.object.key));
        }
    }
}
