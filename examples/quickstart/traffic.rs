//! A visitor that calls the front end over and over, and what it sees.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use mesh_tower::{Body, HttpClient, Mesh};
use serde_json::Value;
use tokio::sync::Notify;
use tower::ServiceExt;

use crate::services::bootstrap;

/// Callers at a time.
const CALLERS: usize = 4;
/// Pause of a caller between two requests, so that the machine is not busy with the demonstration.
const PAUSE: Duration = Duration::from_millis(2);
/// Errors that are kept to be shown.
const ERRORS_MAX: usize = 5;

/// What was seen since the last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) versions: BTreeMap<String, u64>,
    pub(crate) failed: u64,
    pub(crate) latencies: Vec<Duration>,
    pub(crate) peer: String,
    pub(crate) retries: u64,
}

impl Seen {
    pub(crate) fn requests(&self) -> u64 {
        self.versions.values().sum::<u64>() + self.failed
    }

    /// Share of the requests that `version` answered.
    pub(crate) fn share(&self, version: &str) -> f64 {
        self.versions.get(version).copied().unwrap_or(0) as f64 / self.requests().max(1) as f64
    }

    /// The latency below which `share` of the requests are, in milliseconds.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted
            .get(index)
            .map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "v1 {:>5.1} %  v2 {:>5.1} %  failed {}  p50 {:.1} ms  p99 {:.1} ms",
            self.share("v1") * 100.0,
            self.share("v2") * 100.0,
            self.failed,
            self.percentile(0.5),
            self.percentile(0.99)
        )
    }
}

#[derive(Default)]
struct State {
    seen: Seen,
    total: u64,
    failed: u64,
    errors: Vec<String>,
}

/// Running callers; they end with the process.
pub(crate) struct Traffic {
    state: Arc<Mutex<State>>,
    progress: Arc<Notify>,
    mesh: Mesh,
}

impl Traffic {
    pub(crate) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let mesh = Mesh::builder()
            .bootstrap(bootstrap(folder, "visitor")?)
            .build()
            .await?;
        let state = Arc::<Mutex<State>>::default();
        let progress = Arc::new(Notify::new());
        for _ in 0..CALLERS {
            tokio::spawn(call(
                mesh.http_client(),
                Arc::clone(&state),
                Arc::clone(&progress),
            ));
        }
        Ok(Self {
            state,
            progress,
            mesh,
        })
    }

    /// Waits until requests are answered.
    pub(crate) async fn warmed_up(&self) {
        while self.next(20).await.failed > 0 {}
    }

    /// Forgets everything so far.
    pub(crate) fn reset(&self) {
        *self.lock() = State::default();
    }

    /// Waits for so many requests from now.
    pub(crate) async fn next(&self, requests: u64) -> Seen {
        self.lock().seen = Seen::default();
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.lock().seen.requests() >= requests {
                return std::mem::take(&mut self.lock().seen);
            }
            progress.await;
        }
    }

    /// What was seen since the last look.
    pub(crate) fn seen(&self) -> Seen {
        let mut seen = std::mem::take(&mut self.lock().seen);
        let metrics = self.mesh.telemetry().metrics().encode();
        let retries = metrics
            .lines()
            .filter(|line| line.starts_with("mesh_client_retries_total"));
        seen.retries = retries
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum();
        seen
    }

    pub(crate) fn total(&self) -> u64 {
        self.lock().total
    }

    pub(crate) fn failed(&self) -> u64 {
        self.lock().failed
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.lock().errors.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn call(client: HttpClient, state: Arc<Mutex<State>>, progress: Arc<Notify>) {
    loop {
        let started = Instant::now();
        let answer = greet(&client).await;
        let latency = started.elapsed();
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.total += 1;
            match answer {
                Ok((version, peer)) => {
                    *state.seen.versions.entry(version).or_default() += 1;
                    state.seen.peer = peer;
                    state.seen.latencies.push(latency);
                }
                Err(error) => {
                    state.failed += 1;
                    state.seen.failed += 1;
                    if state.errors.len() < ERRORS_MAX {
                        state.errors.push(error.to_string());
                    }
                }
            }
        }
        progress.notify_waiters();
        tokio::time::sleep(PAUSE).await;
    }
}

/// One request; the version that answered, and who the greeter saw.
async fn greet(client: &HttpClient) -> anyhow::Result<(String, String)> {
    let request = http::Request::get("http://frontend.default/greet/world").body(Body::empty())?;
    let response = client.clone().oneshot(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    anyhow::ensure!(
        status.is_success(),
        "{status}: {}",
        String::from_utf8_lossy(&body)
    );
    let json: Value = serde_json::from_slice(&body)?;
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    Ok((text("version"), text("peer")))
}
