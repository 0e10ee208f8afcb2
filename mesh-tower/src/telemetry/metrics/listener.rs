//! Calls that were answered before a cluster had them, by what was dialled.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::{
    super::{
        code::Code,
        local_reply::{LocalReplies, LocalReplyReason, LocalReplyTotals},
    },
    encode::{counter, describe},
};

/// The listeners in use. One name may have several, in services that share nothing.
pub(super) type Listeners = Mutex<Vec<Weak<ListenerMetrics>>>;

/// Calls by one dialled name that no cluster counts, as they were answered before one had them.
#[derive(Debug)]
pub(crate) struct ListenerMetrics {
    listener: String,
    replies: LocalReplies,
}

impl ListenerMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self {
            listener: name.to_owned(),
            replies: LocalReplies::default(),
        }
    }

    /// Counts an answer.
    pub(crate) fn local_reply(&self, reason: LocalReplyReason, code: Code) {
        self.replies.count(reason, code);
    }
}

#[derive(Debug)]
pub(super) struct ListenerSeries(pub(super) Arc<Listeners>);

impl Collector for ListenerSeries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners: Vec<_> = held.iter().filter_map(Weak::upgrade).collect();
        drop(held);
        let mut totals = BTreeMap::<&str, Box<LocalReplyTotals>>::new();
        for listener in &listeners {
            let of_name = totals.entry(&listener.listener).or_default();
            listener.replies.add_to(of_name);
        }
        let name = "mesh_client_local_replies";
        let help = "Calls that were answered before a cluster had them, by why and how";
        let mut metric = describe(&mut encoder, name, help, MetricType::Counter)?;
        for (listener, totals) in &totals {
            for (reason, code, count) in totals.counted() {
                let labels = [("listener", *listener), ("reason", reason), ("code", code)];
                counter(&mut metric, &labels, count)?;
            }
        }
        Ok(())
    }
}
