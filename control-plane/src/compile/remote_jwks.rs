//! Keys that servers fetch themselves (`remoteJwks` of MeshPolicies).
//!
//! They are asked for through a service of the mesh, so that it is known who is asked and with which TLS (a
//! DestinationRule says so). What no service of the mesh has cannot be fetched, and its tokens are
//! refused.

use std::{collections::BTreeMap, time::Duration};

use http::Uri;
use mesh_core::config::{JWKS_CACHE_DURATION_MIN, RemoteJwks};

use super::{
    clusters::cluster_name,
    services::{self, ServiceInfo},
};
use crate::{
    diagnostic::{BAD_VALUE, Diagnostic},
    model::{Object, ObjectSet, Spec},
    value,
};

/// How long keys are used before they are fetched again where nobody says.
const CACHE_DURATION_DEFAULT: Duration = Duration::from_secs(300);
/// How long an issuer may take to answer where no rule says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The port of https.
const HTTPS: u16 = 443;

/// Who is asked for keys, and how often.
pub(super) struct KeyServices<'c> {
    services: &'c BTreeMap<String, ServiceInfo>,
    cluster_domain: &'c str,
    cache_duration: Duration,
}

/// Whether servers fetch keys themselves.
pub(super) fn is_asked_for(objects: &ObjectSet) -> bool {
    objects
        .values()
        .any(|object| matches!(&object.spec, Spec::MeshPolicy(spec) if spec.remote_jwks.is_some()))
}

impl<'c> KeyServices<'c> {
    /// `None` where the control plane fetches keys. Of several MeshPolicies the shortest duration counts.
    pub(super) fn of(
        objects: &ObjectSet,
        services: &'c BTreeMap<String, ServiceInfo>,
        cluster_domain: &'c str,
        findings: &mut Vec<Diagnostic>,
    ) -> Option<Self> {
        let policies = objects.values().filter_map(|object| match &object.spec {
            Spec::MeshPolicy(spec) => Some((object, spec.remote_jwks.as_ref()?)),
            _ => None,
        });
        let durations = policies.map(|(object, policy)| {
            let declared = policy.cache_duration.as_deref().map(value::duration);
            declared
                .unwrap_or(Ok(CACHE_DURATION_DEFAULT))
                .unwrap_or_else(|message| {
                    findings.push(bad(object, message));
                    CACHE_DURATION_DEFAULT
                })
        });
        let cache_duration = durations.min()?.max(JWKS_CACHE_DURATION_MIN);
        Some(Self {
            services,
            cluster_domain,
            cache_duration,
        })
    }

    /// How servers fetch the keys at `uri`, of which `object` speaks.
    ///
    /// # Errors
    /// When no service of the mesh is there.
    pub(super) fn keys(
        &self,
        object: &Object,
        uri: &Uri,
        timeout: Option<Duration>,
    ) -> Result<RemoteJwks, String> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(HTTPS);
        let namespace = &object.key.namespace;
        let service = services::find(self.services, host, namespace, self.cluster_domain)
            .ok_or_else(|| format!("there is no host {host:?} in the mesh: add a ServiceEntry"))?;
        if !service.ports.iter().any(|known| known.number == port) {
            return Err(format!("{} has no port {port}", service.fqdn));
        }
        let cluster = cluster_name(port, "", &service.fqdn);
        Ok(RemoteJwks {
            prefetch: true,
            cache_duration: self.cache_duration,
            ..RemoteJwks::new(uri.clone(), cluster, timeout.unwrap_or(TIMEOUT_DEFAULT))
        })
    }
}

fn bad(object: &Object, message: String) -> Diagnostic {
    let help = "five minutes are used";
    object.diagnose(BAD_VALUE, "spec.remoteJwks.cacheDuration", message, help)
}
