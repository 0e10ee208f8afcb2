//! What is shown of the process's own certificate: how long it is still good for.
//!
//! Stage 13. Read from the identity at each scrape, so that there is nothing to forget to update. Of a
//! process without a certificate nothing is shown: the alarm for that is the absence of the metric.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use crate::identity::Certificate;

/// Name of the metric.
const NAME: &str = "mesh_certificate_expiry_seconds";

/// Gives the certificate of handshakes that begin now; `None` when the process has left the mesh.
type Source = Box<dyn Fn() -> Option<Option<Arc<Certificate>>> + Send + Sync>;

/// The collector of one registry. Clones share its sources.
#[derive(Clone, Default)]
pub(crate) struct CertificateSeries {
    sources: Arc<Mutex<Vec<Source>>>,
}

impl CertificateSeries {
    /// Adds an identity.
    pub(crate) fn add(
        &self,
        source: impl Fn() -> Option<Option<Arc<Certificate>>> + Send + Sync + 'static,
    ) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.push(Box::new(source));
    }

    /// Names with the seconds that are left, below zero after the end.
    fn rows(&self, now: SystemTime) -> Vec<(String, f64)> {
        let mut rows = Vec::new();
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|source| {
            let Some(held) = source() else {
                return false;
            };
            if let Some(certificate) = held {
                let left = match certificate.not_after().duration_since(now) {
                    Ok(left) => left.as_secs_f64(),
                    Err(over) => -over.duration().as_secs_f64(),
                };
                rows.push((certificate.spiffe_id().to_string(), left.floor()));
            }
            true
        });
        // Two members with one identity in one process are one row: that which ends first.
        rows.sort_by(|(a, a_left), (b, b_left)| a.cmp(b).then(a_left.total_cmp(b_left)));
        rows.dedup_by(|(a, _), (b, _)| a == b);
        rows
    }
}

impl Collector for CertificateSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let rows = self.rows(SystemTime::now());
        let help = "Time until our certificate ends";
        let mut metric = encoder.encode_descriptor(NAME, help, None, MetricType::Gauge)?;
        for (spiffe_id, left) in rows {
            let labels = [("spiffe_id", spiffe_id)];
            metric.encode_family(&labels)?.encode_gauge(&left)?;
        }
        Ok(())
    }
}

impl fmt::Debug for CertificateSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateSeries").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(id: &str, not_after: SystemTime) -> Option<Arc<Certificate>> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.not_after = not_after.into();
        let leaf = params.self_signed(&key).unwrap();
        let key = key.serialize_der().try_into().unwrap();
        Some(Arc::new(
            Certificate::new(vec![leaf.der().clone()], key).unwrap(),
        ))
    }

    #[test]
    fn the_seconds_that_are_left_are_read_at_each_scrape_and_go_below_zero() {
        let series = CertificateSeries::default();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let held = Arc::new(Mutex::new(certificate(
            "spiffe://t/a",
            now + Duration::from_secs(100),
        )));
        let is_there = Arc::new(Mutex::new(true));
        let source = (Arc::clone(&held), Arc::clone(&is_there));
        series.add(move || {
            source
                .1
                .lock()
                .unwrap()
                .then(|| source.0.lock().unwrap().clone())
        });
        let sooner = certificate("spiffe://t/a", now + Duration::from_secs(50));
        series.add(move || Some(sooner.clone()));
        series.add(|| Some(None));
        let row = |left: f64| vec![("spiffe://t/a".to_owned(), left)];
        assert_eq!(series.rows(now), row(50.0), "that which ends first");
        assert_eq!(series.rows(now + Duration::from_secs(60)), row(-10.0));
        *held.lock().unwrap() = certificate("spiffe://t/a", now + Duration::from_secs(10));
        assert_eq!(series.rows(now), row(10.0), "a rotation is seen");
        *is_there.lock().unwrap() = false;
        assert_eq!(series.rows(now), row(50.0), "who left is not shown");
    }
}
