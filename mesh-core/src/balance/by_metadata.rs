//! Requests that ask for a subset of the endpoints by metadata (Envoy `LbSubsetConfig`).
//!
//! Each combination of values of a selector's keys is a list of endpoints with a picker of its own. A
//! request belongs to the selector whose keys are exactly those that it asks for.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    ClusterEndpoint, Group, LoadBalancer, Parts, PickContext, PickResult, Picker, TierParts,
    TierState, TriedPriorities,
};
use crate::{
    config::{LbMetadata, MetadataValue, SubsetFallback, SubsetSelector, Subsets},
    observed::Observation,
    rng::Rng,
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ByMetadata {
    all: Picker,
    default: Option<Part>,
    selectors: Box<[Selector]>,
    fallback: SubsetFallback,
    panic_mode_any: bool,
}

#[derive(Debug)]
struct Selector {
    /// Sorted.
    keys: Box<[String]>,
    fallback: SubsetFallback,
    fallback_keys: Box<[String]>,
    /// By the values of the keys, in their order.
    parts: HashMap<Vec<MetadataValue>, Part>,
}

/// Some of the endpoints.
#[derive(Debug)]
struct Part {
    endpoints: Box<[ClusterEndpoint]>,
    /// Where they are among all.
    places: Box<[u32]>,
    picker: Picker,
}

impl ByMetadata {
    /// `all` is the picker of all endpoints.
    ///
    /// # Errors
    /// Why there can be no picker.
    pub(super) fn new(subsets: &Subsets, all: Picker, parts: &Parts<'_>) -> Result<Self, String> {
        let selectors = subsets.selectors.iter();
        let selectors = selectors.map(|selector| Selector::new(selector, subsets.fallback, parts));
        let default = &subsets.default_subset;
        let default = match default.is_empty() {
            true => None,
            false => Some(Part::new(parts, |metadata| {
                default
                    .iter()
                    .all(|(key, value)| metadata.get(key) == Some(value))
            })?),
        };
        Ok(Self {
            all,
            default,
            selectors: selectors.collect::<Result<_, _>>()?,
            fallback: subsets.fallback,
            panic_mode_any: subsets.panic_mode_any,
        })
    }

    fn pick_part(
        &self,
        endpoints: &[ClusterEndpoint],
        wanted: &LbMetadata,
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: Tried<'_>,
    ) -> PickResult {
        let keys: Vec<&String> = wanted.keys().collect();
        let is_its = |selector: &&Selector| selector.keys.iter().eq(keys.iter().copied());
        let Some(selector) = self.selectors.iter().find(is_its) else {
            return self.fall_back(self.fallback, endpoints, context, tried);
        };
        let values: Vec<_> = wanted.values().cloned().collect();
        if let Some(part) = selector.parts.get(&values) {
            return part.pick(context, tried);
        }
        if selector.fallback != SubsetFallback::KeysSubset {
            return self.fall_back(selector.fallback, endpoints, context, tried);
        }
        // Fewer keys each time, as the decoder sees to.
        let mut fewer = wanted.clone();
        fewer.retain(|key, _| selector.fallback_keys.contains(key));
        if fewer.len() == wanted.len() {
            return PickResult::Fail;
        }
        self.pick_part(endpoints, &fewer, context, tried)
    }

    fn fall_back(
        &self,
        fallback: SubsetFallback,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: Tried<'_>,
    ) -> PickResult {
        match (fallback, &self.default) {
            (SubsetFallback::AnyEndpoint, _) => pick(&self.all, endpoints, context, tried),
            (SubsetFallback::DefaultSubset, Some(part)) => part.pick(context, tried),
            // An empty default subset is all of them.
            (SubsetFallback::DefaultSubset, None) => pick(&self.all, endpoints, context, tried),
            (SubsetFallback::NoFallback | SubsetFallback::KeysSubset, _) => PickResult::Fail,
        }
    }

    fn pick_beyond(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: Tried<'_>,
    ) -> PickResult {
        let picked = match context.metadata {
            Some(wanted) if !wanted.is_empty() => self.pick_part(endpoints, wanted, context, tried),
            _ => self.fall_back(self.fallback, endpoints, context, tried),
        };
        match picked {
            PickResult::Fail if self.panic_mode_any => pick(&self.all, endpoints, context, tried),
            picked => picked,
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        let of_selectors = self.selectors.iter().flat_map(|s| s.parts.values());
        self.default.iter().chain(of_selectors)
    }
}

impl Selector {
    fn new(
        config: &SubsetSelector,
        fallback: SubsetFallback,
        parts: &Parts<'_>,
    ) -> Result<Self, String> {
        let mut keys = config.keys.clone();
        keys.sort();
        let values_of = |metadata: &LbMetadata| -> Option<Vec<MetadataValue>> {
            keys.iter().map(|key| metadata.get(key).cloned()).collect()
        };
        let mut found = HashMap::new();
        for endpoint in parts.sources {
            if let Some(values) = values_of(&endpoint.details().metadata)
                && !found.contains_key(&values)
            {
                let is_in = |metadata: &LbMetadata| values_of(metadata).as_ref() == Some(&values);
                let part = Part::new(parts, is_in)?;
                found.insert(values, part);
            }
        }
        Ok(Self {
            fallback: config.fallback.unwrap_or(fallback),
            fallback_keys: config.fallback_keys.clone().into(),
            keys: keys.into(),
            parts: found,
        })
    }
}

impl Part {
    fn new(parts: &Parts<'_>, is_in: impl Fn(&LbMetadata) -> bool) -> Result<Self, String> {
        let (mut endpoints, mut places, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        let mut take = |range: std::ops::Range<usize>| {
            let start = endpoints.len();
            for place in range {
                if is_in(&parts.sources[place].details().metadata) {
                    endpoints.push(parts.endpoints[place].clone());
                    sources.push(parts.sources[place]);
                    places.push(place as u32);
                }
            }
            start..endpoints.len()
        };
        let groups = parts.groups.iter().map(|group| {
            let range = take(group.range.clone());
            Group {
                total: range.len(),
                range,
                ..*group
            }
        });
        let groups: Vec<_> = groups.filter(|group| !group.range.is_empty()).collect();
        let tiers = parts.tier_parts.iter().enumerate().map(|(tier, parts)| {
            let of_tier = groups.iter().filter(|group| group.tier == tier);
            let usable: usize = of_tier.map(|group| group.range.len()).sum();
            let rest = take(parts.rest.clone());
            TierParts {
                total: usable + rest.len(),
                rest,
                ..*parts
            }
        });
        let tier_parts = tiers.collect();
        let picker = Picker::build_tiers(&Parts {
            endpoints: &endpoints,
            sources: &sources,
            groups,
            tier_parts,
            // Its own failover: its endpoints are not those of the others.
            tiers: &Arc::<TierState>::default(),
            ..*parts
        })?;
        Ok(Self {
            picker,
            endpoints: endpoints.into(),
            places: places.into(),
        })
    }

    fn pick(&self, context: &mut PickContext<'_, dyn Rng + '_>, tried: Tried<'_>) -> PickResult {
        match pick(&self.picker, &self.endpoints, context, tried) {
            PickResult::Endpoint(index) => PickResult::Endpoint(self.places[index] as usize),
            other => other,
        }
    }
}

/// What a retry avoids; nothing for a first attempt.
type Tried<'a> = Option<&'a TriedPriorities<'a>>;

fn pick(
    picker: &Picker,
    endpoints: &[ClusterEndpoint],
    context: &mut PickContext<'_, dyn Rng + '_>,
    tried: Tried<'_>,
) -> PickResult {
    match tried {
        None => picker.pick_dyn(endpoints, context),
        Some(tried) => picker.pick_untried(endpoints, context, tried),
    }
}

impl LoadBalancer for ByMetadata {
    fn pick(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
    ) -> PickResult {
        self.pick_beyond(endpoints, context, None)
    }

    fn pick_untried(
        &self,
        endpoints: &[ClusterEndpoint],
        context: &mut PickContext<'_, dyn Rng + '_>,
        tried: &TriedPriorities<'_>,
    ) -> PickResult {
        self.pick_beyond(endpoints, context, Some(tried))
    }

    fn observes(&self) -> bool {
        self.all.observes()
    }

    /// What is learned is kept with the endpoints, which all pickers share.
    fn observe(&self, endpoints: &[ClusterEndpoint], index: usize, observation: &Observation<'_>) {
        self.all.observe(endpoints, index, observation);
    }

    fn refresh(&self, endpoints: &[ClusterEndpoint], now: Instant) -> Option<Instant> {
        let parts = self.parts();
        let of_parts = parts.filter_map(|part| part.picker.refresh(&part.endpoints, now));
        of_parts.chain(self.all.refresh(endpoints, now)).min()
    }

    fn connects(&self, endpoint: usize) -> bool {
        self.all.connects(endpoint)
    }
}
