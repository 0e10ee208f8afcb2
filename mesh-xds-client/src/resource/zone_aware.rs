//! Localities of a cluster: shares by weight, or zone-aware routing.
//!
//! Stage 3. `locality_lb_config` of a policy says more of zones than the cluster's `common_lb_config`,
//! which counts where there is no `load_balancing_policy` (as in Envoy). Both are for policies that can
//! choose a locality; zones also want to know where the callers are
//! (`XdsClientBuilder::local_cluster`).

use envoy_types::pb::envoy::{
    config::cluster::v3::cluster::common_lb_config::{
        LocalityConfigSpecifier as OfCluster, ZoneAwareLbConfig as ZoneAwareOfCluster,
    },
    extensions::load_balancing_policies::common::v3::{
        LocalityLbConfig,
        locality_lb_config::{
            LocalityConfigSpecifier, ZoneAwareLbConfig,
            zone_aware_lb_config::{ForceLocalZone, LocalityBasis as BasisProto},
        },
    },
    r#type::v3::Percent,
};
use mesh_core::config::{CommonLbConfig, LbPolicy, LocalityBasis, ZoneAware};

use super::{path::Sink, value::uint32};

/// What a policy says of localities.
pub(super) fn of_policy(
    sink: &mut Sink,
    config: Option<&LocalityLbConfig>,
    common: &mut CommonLbConfig,
) {
    sink.field("locality_lb_config", |sink| {
        match config.and_then(|config| config.locality_config_specifier) {
            None => {}
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
                common.locality_weighted = true;
            }
            Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
                sink.field("zone_aware_lb_config", |sink| {
                    common.zone_aware = zone_aware(sink, &config);
                });
            }
        }
    });
}

/// What a cluster says of localities in `common_lb_config`, whose field this is.
pub(super) fn of_cluster(
    sink: &mut Sink,
    config: Option<&OfCluster>,
    is_legacy: bool,
    policy: Option<&LbPolicy>,
    common: &mut CommonLbConfig,
) {
    let zones = match config {
        None => return,
        Some(OfCluster::LocalityWeightedLbConfig(_)) => {
            common.locality_weighted = true;
            return;
        }
        Some(OfCluster::ZoneAwareLbConfig(zones)) => zones,
    };
    if !is_legacy {
        return sink.ignore([("zone_aware_lb_config (of lb_policy)", true)]);
    }
    if policy.is_some_and(LbPolicy::is_one_list) {
        return sink.ignore([("zone_aware_lb_config (not of this lb_policy)", true)]);
    }
    // The one or the other: what gRPC takes for granted (A27) is not meant here.
    common.locality_weighted = false;
    sink.field("zone_aware_lb_config", |sink| {
        common.zone_aware = zone_aware(sink, &newer(zones));
    });
}

/// The message of a cluster as that of a policy, which has more fields.
fn newer(config: &ZoneAwareOfCluster) -> ZoneAwareLbConfig {
    ZoneAwareLbConfig {
        routing_enabled: config.routing_enabled,
        min_cluster_size: config.min_cluster_size,
        fail_traffic_on_panic: config.fail_traffic_on_panic,
        ..ZoneAwareLbConfig::default()
    }
}

fn zone_aware(sink: &mut Sink, config: &ZoneAwareLbConfig) -> Option<ZoneAware> {
    let defaults = ZoneAware::default();
    let routing_enabled = match config.routing_enabled {
        None => defaults.routing_enabled,
        Some(Percent { value }) if (0.0..=100.0).contains(&value) => value,
        Some(Percent { value }) => {
            return sink.error_at("routing_enabled", format!("{value} is not 0 to 100"));
        }
    };
    let Ok(basis) = BasisProto::try_from(config.locality_basis) else {
        let reason = format!("{} is not known", config.locality_basis);
        return sink.error_at("locality_basis", reason);
    };
    let size = config.min_cluster_size.as_ref();
    Some(ZoneAware {
        routing_enabled,
        min_cluster_size: size.map_or(defaults.min_cluster_size, |size| size.value),
        fail_traffic_on_panic: config.fail_traffic_on_panic,
        force_local_zone: force_local_zone(config),
        locality_basis: match basis {
            BasisProto::HealthyHostsNum => LocalityBasis::HealthyHostsNum,
            BasisProto::HealthyHostsWeight => LocalityBasis::HealthyHostsWeight,
        },
    })
}

/// How many endpoints the own zone must have; 1 where that is not said (Envoy).
fn force_local_zone(config: &ZoneAwareLbConfig) -> Option<u32> {
    #[expect(deprecated, reason = "means the same as an empty force_local_zone")]
    let is_forced = config.force_locality_direct_routing;
    let force = config.force_local_zone;
    let force = force.or_else(|| is_forced.then(ForceLocalZone::default));
    force.map(|force| uint32(force.min_size.as_ref()).unwrap_or(1))
}
