//! Which of a DestinationRule's policies hold for a port of a part of a service.
//!
//! As in Istio, a section of a subset's policy takes the place of the host's, and the policy of a port
//! takes the place of all sections, whether it says them or not. What a section means is for the
//! modules beside this one.

use crate::model::{
    BudgetSpec, ConnectionPool, LoadBalancer, Object, OutlierSpec, TlsSpec, TrafficPolicy,
};

/// Where a policy or a section of one is written.
#[derive(Clone, Debug)]
pub(super) struct Place<'p> {
    pub(super) object: &'p Object,
    pub(super) field: String,
}

impl Place<'_> {
    fn inside(&self, field: &str) -> Self {
        Self {
            object: self.object,
            field: format!("{}.{field}", self.field),
        }
    }
}

/// A section, and where it is.
pub(super) type Section<'p, T> = Option<(Place<'p>, &'p T)>;

/// The sections that hold.
#[derive(Debug, Default)]
pub(super) struct Effective<'p> {
    pub(super) load_balancer: Section<'p, LoadBalancer>,
    pub(super) connection_pool: Section<'p, ConnectionPool>,
    pub(super) outlier_detection: Section<'p, OutlierSpec>,
    pub(super) retry_budget: Section<'p, BudgetSpec>,
    pub(super) tls: Section<'p, TlsSpec>,
}

/// Of policies with their places, the widest first, for a port.
pub(super) fn effective<'p>(
    policies: &[(Place<'p>, &'p TrafficPolicy)],
    port: u16,
) -> Effective<'p> {
    let mut found = Effective::default();
    for (place, policy) in policies {
        let own = |name: &str| place.inside(name);
        replace(
            &mut found.load_balancer,
            own("loadBalancer"),
            &policy.load_balancer,
        );
        replace(
            &mut found.connection_pool,
            own("connectionPool"),
            &policy.connection_pool,
        );
        replace(
            &mut found.outlier_detection,
            own("outlierDetection"),
            &policy.outlier_detection,
        );
        replace(
            &mut found.retry_budget,
            own("retryBudget"),
            &policy.retry_budget,
        );
        replace(&mut found.tls, own("tls"), &policy.tls);
        let ports = policy.port_level_settings.iter().enumerate();
        for (index, settings) in ports.filter(|(_, settings)| settings.port.number == port) {
            let own = |name: &str| place.inside(&format!("portLevelSettings[{index}].{name}"));
            let budget = found.retry_budget.take();
            found = Effective {
                load_balancer: section(own("loadBalancer"), &settings.load_balancer),
                connection_pool: section(own("connectionPool"), &settings.connection_pool),
                outlier_detection: section(own("outlierDetection"), &settings.outlier_detection),
                // A port has none of its own.
                retry_budget: budget,
                tls: section(own("tls"), &settings.tls),
            };
        }
    }
    found
}

fn section<'p, T>(place: Place<'p>, own: &'p Option<T>) -> Section<'p, T> {
    own.as_ref().map(|own| (place, own))
}

fn replace<'p, T>(held: &mut Section<'p, T>, place: Place<'p>, own: &'p Option<T>) {
    if own.is_some() {
        *held = section(place, own);
    }
}
