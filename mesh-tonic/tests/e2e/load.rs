//! Callers that go on until they are told to stop, and count what they see.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use mesh_examples::greeter::HelloRequest;
use tokio::{sync::Notify, task::JoinSet};

use crate::world::Client;

/// What callers saw since the last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) versions: BTreeMap<String, usize>,
    pub(crate) failed: usize,
}

impl Seen {
    pub(crate) fn calls(&self) -> usize {
        self.versions.values().sum::<usize>() + self.failed
    }

    /// Share of the calls that `version` answered.
    pub(crate) fn share(&self, version: &str) -> f64 {
        self.versions.get(version).copied().unwrap_or(0) as f64 / self.calls().max(1) as f64
    }
}

/// Running callers.
pub(crate) struct Load {
    seen: Arc<Mutex<Seen>>,
    /// Never forgotten.
    errors: Arc<Mutex<Vec<String>>>,
    progress: Arc<Notify>,
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(client: &Client, callers: usize) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let errors = Arc::<Mutex<Vec<String>>>::default();
        let (progress, stop) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let mut client = client.clone();
            let (seen, errors) = (Arc::clone(&seen), Arc::clone(&errors));
            let (progress, stop) = (Arc::clone(&progress), Arc::clone(&stop));
            tasks.spawn(async move {
                while !stop.load(Relaxed) {
                    let answer = client
                        .say_hello(HelloRequest {
                            name: "load".into(),
                        })
                        .await;
                    {
                        let mut seen = seen.lock().unwrap();
                        match answer {
                            Ok(reply) => {
                                let version = reply.into_inner().version;
                                *seen.versions.entry(version).or_default() += 1;
                            }
                            Err(status) => {
                                seen.failed += 1;
                                errors.lock().unwrap().push(status.to_string());
                            }
                        }
                    }
                    progress.notify_waiters();
                    // A call that fails at once never waits: the others need the thread, too.
                    tokio::task::yield_now().await;
                }
            });
        }
        Self {
            seen,
            errors,
            progress,
            stop,
            callers: tasks,
        }
    }

    /// Waits for so many calls from now, and tells what they saw.
    pub(crate) async fn next(&self, calls: usize) -> Seen {
        *self.seen.lock().unwrap() = Seen::default();
        self.until(|seen| seen.calls() >= calls).await
    }

    async fn until(&self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let seen = self.seen.lock().unwrap();
                if wanted(&seen) {
                    return seen.clone();
                }
            }
            progress.await;
        }
    }

    /// Stops; every error since the start.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        while self.callers.join_next().await.is_some() {}
        std::mem::take(&mut self.errors.lock().unwrap())
    }
}
