//! What the levels of a route say about a listener's filters, taken together.
//!
//! The most specific level that says something wins: weighted cluster, route, virtual host,
//! configuration, listener (gRFC A39). It replaces, it does not mix; who mixes (header mutations, CORS)
//! finds every level's in [`Merged::levels`]. An override of another type than the filter's is without
//! effect, so that it cannot take an authorisation away.

use crate::config::{FilterConfig, FilterOverrides, HttpFilter};

/// A level of a route, with the name of its place.
#[derive(Clone, Copy, Debug)]
pub struct Level<'c> {
    /// Tells apart what is counted.
    pub place: &'c str,
    /// What it says.
    pub overrides: Option<&'c FilterOverrides>,
}

/// A filter that is on, and its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged<'c> {
    /// The filter.
    pub filter: &'c HttpFilter,
    /// The most specific configuration.
    pub config: &'c FilterConfig,
    /// Where that is from; `None` is the listener.
    pub place: Option<&'c str>,
    /// Every configuration, the listener's first, the most specific last.
    pub levels: Vec<&'c FilterConfig>,
}

/// The filters that are on for a route with these levels, the least specific first.
pub fn merge<'c>(filters: &'c [HttpFilter], levels: &[Level<'c>]) -> Vec<Merged<'c>> {
    let merged = filters.iter().map(|filter| {
        let mut merged = Merged {
            filter,
            config: &filter.config,
            place: None,
            levels: vec![&filter.config],
        };
        let mut is_off = filter.disabled;
        for level in levels {
            let overrides = level.overrides.map(|overrides| &overrides.by_name);
            let Some(one) = overrides.and_then(|by_name| by_name.get(&filter.name)) else {
                continue;
            };
            let config = one.config.as_ref();
            let is_foreign = config.is_some_and(|config| !config.is_same_kind(&filter.config));
            if is_foreign {
                continue;
            }
            is_off = one.disabled;
            if let Some(config) = config {
                merged.config = config;
                merged.place = Some(level.place);
                merged.levels.push(config);
            }
        }
        (!is_off).then_some(merged)
    });
    merged.flatten().collect()
}
