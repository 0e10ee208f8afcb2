//! Where an application says what its load is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_core::observed::LoadReport;

/// The load of a server, as it was last set. Clones share it. A value that cannot be (NaN, below 0, a
/// share above 1 where noted) is not taken, as in gRPC.
#[derive(Clone, Debug, Default)]
pub struct MetricRecorder {
    report: Arc<Mutex<LoadReport>>,
}

impl MetricRecorder {
    /// Share of the processors in use, 0 or more: it may exceed 1.
    pub fn set_cpu_utilization(&self, value: f64) -> &Self {
        self.set(value, f64::INFINITY, |report| &mut report.cpu_utilization)
    }

    /// Share of the memory in use, 0 to 1.
    pub fn set_mem_utilization(&self, value: f64) -> &Self {
        self.set(value, 1.0, |report| &mut report.mem_utilization)
    }

    /// Share of the capacity in use by the application's own measure, 0 or more: it may exceed 1.
    pub fn set_application_utilization(&self, value: f64) -> &Self {
        self.set(value, f64::INFINITY, |report| {
            &mut report.application_utilization
        })
    }

    /// Requests per second, 0 or more.
    pub fn set_requests_per_second(&self, value: f64) -> &Self {
        self.set(value, f64::INFINITY, |report| {
            &mut report.requests_per_second
        })
    }

    /// Errors per second, 0 or more.
    pub fn set_errors_per_second(&self, value: f64) -> &Self {
        self.set(value, f64::INFINITY, |report| &mut report.errors_per_second)
    }

    /// Share of a resource of the application's own in use, 0 to 1.
    pub fn set_utilization(&self, name: &str, value: f64) -> &Self {
        if (0.0..=1.0).contains(&value) {
            put(&mut self.lock().utilization, name, value);
        }
        self
    }

    /// A metric of the application's own.
    pub fn set_named_metric(&self, name: &str, value: f64) -> &Self {
        if value.is_finite() {
            put(&mut self.lock().named_metrics, name, value);
        }
        self
    }

    /// Forgets everything that was set.
    pub fn clear(&self) {
        *self.lock() = LoadReport::default();
    }

    /// What was set.
    pub fn report(&self) -> LoadReport {
        self.lock().clone()
    }

    fn set(&self, value: f64, most: f64, field: impl FnOnce(&mut LoadReport) -> &mut f64) -> &Self {
        if value.is_finite() && (0.0..=most).contains(&value) {
            *field(&mut self.lock()) = value;
        }
        self
    }

    /// The report is whole after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, LoadReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one call cost and did to its server; what is set here beats what is set for the whole server, in
/// the report of this call. Among the extensions of requests that came through an
/// [`OrcaLayer`](super::OrcaLayer).
#[derive(Clone, Debug, Default)]
pub struct CallMetrics {
    own: MetricRecorder,
}

impl CallMetrics {
    /// What holds for the server too, said by this call.
    pub fn recorder(&self) -> &MetricRecorder {
        &self.own
    }

    /// What the call cost of a resource, in a unit of the application's own.
    pub fn set_request_cost(&self, name: &str, value: f64) -> &Self {
        if value.is_finite() {
            put(&mut self.own.lock().request_cost, name, value);
        }
        self
    }

    /// The report of the call.
    pub(super) fn over(&self, server: &MetricRecorder) -> LoadReport {
        let (mut report, own) = (server.report(), self.own.report());
        for (value, own) in [
            (&mut report.cpu_utilization, own.cpu_utilization),
            (&mut report.mem_utilization, own.mem_utilization),
            (
                &mut report.application_utilization,
                own.application_utilization,
            ),
            (&mut report.requests_per_second, own.requests_per_second),
            (&mut report.errors_per_second, own.errors_per_second),
        ] {
            if own != 0.0 {
                *value = own;
            }
        }
        for (metrics, own) in [
            (&mut report.utilization, own.utilization),
            (&mut report.named_metrics, own.named_metrics),
            (&mut report.request_cost, own.request_cost),
        ] {
            for (name, value) in own {
                put(metrics, &name, value);
            }
        }
        report
    }
}

fn put(metrics: &mut Vec<(String, f64)>, name: &str, value: f64) {
    match metrics.iter_mut().find(|(held, _)| held == name) {
        Some((_, held)) => *held = value,
        None => metrics.push((name.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_not_taken() {
        let metrics = MetricRecorder::default();
        metrics
            .set_cpu_utilization(1.5)
            .set_cpu_utilization(f64::NAN)
            .set_mem_utilization(0.5)
            .set_mem_utilization(1.1)
            .set_requests_per_second(-1.0)
            .set_utilization("disk", 2.0)
            .set_named_metric("queue", f64::INFINITY);
        let expected = LoadReport {
            cpu_utilization: 1.5,
            mem_utilization: 0.5,
            ..LoadReport::default()
        };
        assert_eq!(metrics.report(), expected);
        metrics.clear();
        assert_eq!(metrics.report(), LoadReport::default());
    }

    #[test]
    fn what_a_call_says_beats_what_the_server_says() {
        let (server, call) = (MetricRecorder::default(), CallMetrics::default());
        server
            .set_cpu_utilization(0.2)
            .set_requests_per_second(10.0)
            .set_named_metric("queue", 1.0)
            .set_named_metric("other", 2.0);
        call.recorder()
            .set_cpu_utilization(0.9)
            .set_named_metric("queue", 5.0)
            .set_named_metric("queue", 6.0);
        call.set_request_cost("rows", 3.0);
        let report = call.over(&server);
        assert_eq!(
            (report.cpu_utilization, report.requests_per_second),
            (0.9, 10.0)
        );
        let metric = |name| report.metric(name);
        assert_eq!(metric("named_metrics.queue"), Some(6.0));
        assert_eq!(metric("named_metrics.other"), Some(2.0));
        assert_eq!(report.request_cost, [("rows".to_owned(), 3.0)]);
        assert_eq!(server.report().request_cost, []);
    }
}
