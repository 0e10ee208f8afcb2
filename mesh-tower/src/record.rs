//! The counters and the span of one call, which end exactly once.
//!
//! Stage 13. Dropping a record that was not ended means that the caller went away.

use std::{sync::Arc, time::Instant};

use crate::telemetry::{
    CallSpan, Code, Protocol,
    metrics::{CallMetrics, InFlight},
};

/// One call being counted.
pub(crate) struct CallRecord {
    started: Instant,
    protocol: Protocol,
    span: CallSpan,
    counted: Option<(Arc<CallMetrics>, InFlight)>,
    code: Code,
}

impl CallRecord {
    pub(crate) fn begin(started: Instant, protocol: Protocol, span: CallSpan) -> Self {
        Self {
            started,
            protocol,
            span,
            counted: None,
            code: Code::Cancelled,
        }
    }

    /// The cluster is known: the call counts there.
    pub(crate) fn count_in(&mut self, cluster: &str, metrics: &Arc<CallMetrics>) {
        self.span.set_cluster(cluster);
        self.counted = Some((Arc::clone(metrics), metrics.start()));
    }

    pub(crate) fn span(&self) -> &CallSpan {
        &self.span
    }

    pub(crate) fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if let Some((metrics, _in_flight)) = self.counted.take() {
            metrics.finish(self.protocol, self.code, self.started.elapsed());
        }
        std::mem::replace(&mut self.span, CallSpan::none()).end(self.code);
    }
}
