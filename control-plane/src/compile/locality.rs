//! What places mean, from `localityLbSetting` of a DestinationRule: which endpoints a client in a place
//! gets, by priority and share.
//!
//! As in Istio: `distribute` sets shares, `failover` and `failoverPriority` set priorities. Unlike in
//! Istio, places mean nothing unless a rule says so, and priorities mean something without passive health,
//! too: what cannot be reached, or what checks say is not well, is enough.

use std::collections::{BTreeMap, HashMap};

use mesh_core::config::{ClusterEndpoints, Endpoint, LocalityEndpoints, LocalityId};

use super::{Viewer, balance::Wrong, services::Workload};
use crate::model::LocalityLbSpec;

/// The field, below that of the load balancer.
const FIELD: &str = "localityLbSetting";
/// Labels with a place, which `failoverPriority` knows without endpoints having them.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUB_ZONE: &str = "topology.istio.io/subzone";

/// What places mean for a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// Nothing.
    Nothing,
    /// Shares by place, by where the client is; the first that matches holds.
    Distribute(Vec<(Pattern, Vec<(Pattern, u32)>)>),
    /// The nearest first; the region that is next, by region.
    Failover(BTreeMap<String, String>),
    /// Those that have most of these labels in common with the client first.
    Priority(Vec<Label>),
}

/// A label, with a value that is the client's or this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    key: String,
    value: Option<String>,
}

/// `REGION/ZONE/SUB_ZONE` with `*` for any, and what is left out is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern([Option<String>; 3]);

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('/').collect();
        if text.is_empty() || parts.len() > 3 {
            return None;
        }
        let part = |at: usize| {
            let part = parts.get(at)?;
            (*part != "*").then(|| (*part).to_owned())
        };
        Some(Self([part(0), part(1), part(2)]))
    }

    fn has(&self, place: &LocalityId) -> bool {
        let parts = [&place.region, &place.zone, &place.sub_zone];
        let mut pairs = self.0.iter().zip(parts);
        pairs.all(|(wanted, part)| wanted.as_ref().is_none_or(|wanted| wanted == part))
    }
}

/// Reads a setting; nothing where places mean nothing.
pub(super) fn setting(spec: &LocalityLbSpec, wrong: &mut Wrong<'_>) -> Option<Setting> {
    if spec.enabled == Some(false) {
        return None;
    }
    let kinds = [
        !spec.distribute.is_empty(),
        !spec.failover.is_empty(),
        !spec.failover_priority.is_empty(),
    ];
    if kinds.iter().filter(|is_there| **is_there).count() > 1 {
        let message = "there must be one of distribute, failover and failoverPriority";
        wrong(FIELD, message.to_owned());
        return None;
    }
    if !spec.distribute.is_empty() {
        return distribute(spec, wrong);
    }
    if spec.failover_priority.is_empty() {
        let regions = spec.failover.iter();
        let regions = regions.map(|next| (next.from.clone(), next.to.clone()));
        return Some(Setting::Failover(regions.collect()));
    }
    let labels = spec.failover_priority.iter().map(|text| {
        let (key, value) = text
            .split_once('=')
            .map_or((&**text, None), |(k, v)| (k, Some(v)));
        Label {
            key: key.to_owned(),
            value: value.map(str::to_owned),
        }
    });
    Some(Setting::Priority(labels.collect()))
}

fn distribute(spec: &LocalityLbSpec, wrong: &mut Wrong<'_>) -> Option<Setting> {
    let mut found = Vec::new();
    for (index, rule) in spec.distribute.iter().enumerate() {
        let field = format!("{FIELD}.distribute[{index}]");
        let Some(from) = Pattern::parse(&rule.from) else {
            wrong(
                &format!("{field}.from"),
                format!("{:?} is not a place", rule.from),
            );
            return None;
        };
        let sum: u64 = rule.to.values().map(|share| u64::from(*share)).sum();
        if sum != 100 {
            wrong(
                &format!("{field}.to"),
                format!("the shares add up to {sum}, not to 100"),
            );
            return None;
        }
        let mut to = Vec::new();
        for (place, share) in &rule.to {
            let Some(pattern) = Pattern::parse(place) else {
                wrong(&format!("{field}.to"), format!("{place:?} is not a place"));
                return None;
            };
            to.push((pattern, *share));
        }
        // The narrowest place that matches counts.
        to.sort_by_key(|(pattern, _)| pattern.0.iter().flatten().count());
        to.reverse();
        found.push((from, to));
    }
    Some(Setting::Distribute(found))
}

/// The endpoints of a cluster and what places mean for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    setting: Setting,
    all: ClusterEndpoints,
    /// Labels of the endpoints, in their order.
    labels: Vec<Vec<BTreeMap<String, String>>>,
}

impl Placed {
    pub(super) fn new(
        setting: Setting,
        all: ClusterEndpoints,
        members: &[&Workload],
        port: u16,
    ) -> Self {
        let mut own = HashMap::new();
        for workload in members {
            if let Some(address) = workload.addresses.get(&port) {
                own.entry(*address).or_insert(&workload.labels);
            }
        }
        let labels_of = |endpoint: &Endpoint| {
            let labels = own.get(&endpoint.address);
            labels.map_or_else(BTreeMap::new, |labels| BTreeMap::clone(labels))
        };
        let groups = all.localities.iter();
        let labels = groups.map(|group| group.endpoints.iter().map(labels_of).collect());
        Self {
            setting,
            labels: labels.collect(),
            all,
        }
    }

    /// The same setting for other endpoints.
    pub(super) fn with(&self, mut all: ClusterEndpoints, members: &[&Workload], port: u16) -> Self {
        all.overprovisioning_factor = self.all.overprovisioning_factor;
        Self::new(self.setting.clone(), all, members, port)
    }

    /// How much more than its share a priority takes.
    pub(super) fn spill_over(&mut self, factor: Option<u32>) {
        self.all.overprovisioning_factor = factor;
    }

    /// Equal for clients that get the same.
    pub(super) fn key(&self, viewer: Viewer<'_>) -> String {
        match &self.setting {
            Setting::Nothing => String::new(),
            Setting::Priority(labels) => {
                let wanted = labels.iter().map(|label| label.wanted(viewer));
                format!("{:?}", wanted.collect::<Vec<_>>())
            }
            Setting::Distribute(_) | Setting::Failover(_) => {
                let LocalityId {
                    region,
                    zone,
                    sub_zone,
                } = viewer.locality;
                format!("{region}/{zone}/{sub_zone}")
            }
        }
    }

    /// What a client gets.
    pub(super) fn view(&self, viewer: Viewer<'_>) -> ClusterEndpoints {
        let localities = match &self.setting {
            Setting::Nothing => self.all.localities.clone(),
            Setting::Distribute(rules) => distributed(rules, &self.all.localities, viewer.locality),
            Setting::Failover(next) => {
                let priority = |place: &LocalityId, _: &BTreeMap<String, String>| {
                    distance(viewer.locality, place, next)
                };
                self.by_priority(priority)
            }
            Setting::Priority(labels) => self.by_priority(|place, own| {
                let has = |label: &&Label| {
                    let wanted = label.wanted(viewer);
                    wanted.is_some() && wanted == label.of(place, own)
                };
                let common = labels.iter().take_while(has).count();
                (labels.len() - common) as u32
            }),
        };
        ClusterEndpoints {
            localities,
            ..self.all.clone()
        }
    }

    /// The same endpoints, by priority and place, without gaps in the priorities.
    fn by_priority(
        &self,
        priority: impl Fn(&LocalityId, &BTreeMap<String, String>) -> u32,
    ) -> Vec<LocalityEndpoints> {
        let mut found = BTreeMap::<(u32, &LocalityId), LocalityEndpoints>::new();
        for (group, labels) in self.all.localities.iter().zip(&self.labels) {
            for (endpoint, own) in group.endpoints.iter().zip(labels) {
                let key = (priority(&group.locality, own), &group.locality);
                let group = found.entry(key).or_insert_with(|| LocalityEndpoints {
                    locality: group.locality.clone(),
                    priority: 0,
                    weight: 0,
                    endpoints: Vec::new(),
                });
                group.weight = group.weight.saturating_add(endpoint.weight);
                group.endpoints.push(endpoint.clone());
            }
        }
        let mut used: Vec<_> = found.keys().map(|(priority, _)| *priority).collect();
        used.dedup();
        let numbered = found.into_iter().map(|((priority, _), group)| {
            let number = used.iter().position(|used| *used == priority);
            LocalityEndpoints {
                priority: number.unwrap_or_default() as u32,
                ..group
            }
        });
        numbered.collect()
    }
}

impl Label {
    /// The value that an endpoint must have.
    fn wanted(&self, viewer: Viewer<'_>) -> Option<String> {
        let own = self.value.clone();
        own.or_else(|| self.of(viewer.locality, viewer.labels))
    }

    /// The value of who is at a place and has these labels.
    fn of(&self, place: &LocalityId, labels: &BTreeMap<String, String>) -> Option<String> {
        let said = labels.get(&self.key).cloned();
        said.or_else(|| {
            let part = match self.key.as_str() {
                REGION => &place.region,
                ZONE => &place.zone,
                SUB_ZONE => &place.sub_zone,
                _ => return None,
            };
            (!part.is_empty()).then(|| part.clone())
        })
    }
}

/// How far a place is: 0 is the same, 4 another region that is not the next.
fn distance(client: &LocalityId, place: &LocalityId, next: &BTreeMap<String, String>) -> u32 {
    if client.region != place.region {
        let is_next = next
            .get(&client.region)
            .is_none_or(|next| *next == place.region);
        return if is_next { 3 } else { 4 };
    }
    if client.zone != place.zone {
        return 2;
    }
    u32::from(client.sub_zone != place.sub_zone)
}

/// The places that a client's requests go to, each with its share.
fn distributed(
    rules: &[(Pattern, Vec<(Pattern, u32)>)],
    all: &[LocalityEndpoints],
    client: &LocalityId,
) -> Vec<LocalityEndpoints> {
    let Some((_, to)) = rules.iter().find(|(from, _)| from.has(client)) else {
        return all.to_vec();
    };
    let rule_of = |group: &LocalityEndpoints| to.iter().position(|(p, _)| p.has(&group.locality));
    let mut sums = vec![0_u64; to.len()];
    for group in all {
        if let Some(rule) = rule_of(group) {
            sums[rule] += u64::from(group.weight);
        }
    }
    let shared = all.iter().filter_map(|group| {
        let rule = rule_of(group).filter(|rule| to[*rule].1 > 0)?;
        // Places of one rule share by their weights.
        let share = u64::from(to[rule].1) * SHARE_SCALE * u64::from(group.weight);
        let weight = u32::try_from(share / sums[rule].max(1))
            .unwrap_or(u32::MAX)
            .max(1);
        Some(LocalityEndpoints {
            weight,
            ..group.clone()
        })
    });
    shared.collect()
}

/// Weights are in parts of a percent, so that several places can share one.
const SHARE_SCALE: u64 = 1_000;
