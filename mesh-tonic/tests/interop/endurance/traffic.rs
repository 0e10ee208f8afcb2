//! Calls at a steady rate through one peer, and what became of them.

use std::{
    collections::BTreeMap,
    mem,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_examples::greeter::{HelloRequest, greeter_client::GreeterClient};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{
    Request,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes, StdError},
};

use super::super::{Envoy, MUST_HAPPEN, python_of};

/// Between two calls of one peer.
const PAUSE: Duration = Duration::from_millis(15);
/// A call that takes longer has failed.
const CALL_MAX: Duration = Duration::from_secs(20);

/// What became of calls.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Seen {
    /// Answers by the version that gave them.
    pub(super) seen: BTreeMap<String, u64>,
    pub(super) failed: Vec<String>,
}

impl Seen {
    pub(super) fn calls(&self) -> u64 {
        self.seen.values().sum()
    }
}

/// Calls until dropped.
pub(super) struct Traffic {
    pub(super) name: String,
    source: Source,
    /// Calls that were taken so far.
    pub(super) calls: u64,
}

enum Source {
    Task(Arc<Mutex<Seen>>, JoinHandle<()>),
    Python(Box<Python>),
}

struct Python {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Drop for Traffic {
    fn drop(&mut self) {
        if let Source::Task(_, task) = &self.source {
            task.abort();
        }
    }
}

impl Traffic {
    /// Over a channel of ours, or one that leads to Envoy.
    pub(super) fn over<S>(name: &str, mut client: GreeterClient<S>) -> Self
    where
        S: GrpcService<Body, Future: Send> + Send + 'static,
        S::Error: Into<StdError>,
        S::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <S::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        let seen = Arc::<Mutex<Seen>>::default();
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let mut request = Request::new(HelloRequest { name: "x".into() });
                request.set_timeout(CALL_MAX);
                let answer = client.say_hello(request).await;
                {
                    let mut seen = shared.lock().unwrap();
                    match answer {
                        Ok(reply) => *seen.seen.entry(reply.into_inner().version).or_default() += 1,
                        Err(status) => seen.failed.push(status.to_string()),
                    }
                }
                sleep(PAUSE).await;
            }
        });
        Self {
            name: name.to_owned(),
            source: Source::Task(seen, task),
            calls: 0,
        }
    }

    /// Over HTTP/2 to Envoy, as a gRPC client without a mesh.
    pub(super) fn through(name: &str, envoy: &Envoy) -> Self {
        let uri = format!("http://127.0.0.1:{}", envoy.outbound);
        let endpoint = tonic::transport::Endpoint::from_shared(uri)
            .unwrap()
            .origin("http://greeter.default:8080".parse().unwrap());
        Self::over(name, GreeterClient::new(endpoint.connect_lazy()))
    }

    /// In a process of gRPC's C-core.
    pub(super) async fn of_grpc(
        name: &str,
        servers: &[std::net::SocketAddr],
        certificates: &Path,
    ) -> Self {
        let mut command = python_of(servers, name, Some(certificates), "grpc_steady.py").await;
        let mut process = command
            .args(["xds:///greeter.default", "0.015"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self {
            name: name.to_owned(),
            source: Source::Python(Box::new(Python {
                _process: process,
                input,
                output,
            })),
            calls: 0,
        }
    }

    /// What became of the calls since the last time.
    pub(super) async fn take(&mut self) -> Seen {
        let seen = match &mut self.source {
            Source::Task(seen, _) => mem::take(&mut *seen.lock().unwrap()),
            Source::Python(python) => {
                python.input.write_all(b"\n").await.unwrap();
                let line = timeout(MUST_HAPPEN, python.output.next_line()).await;
                let line = line.expect("a line").unwrap().expect("it runs");
                serde_json::from_str(&line).unwrap()
            }
        };
        self.calls += seen.calls();
        seen
    }

    /// That no call failed since the last time.
    pub(super) async fn check(&mut self, when: &str) {
        let Seen { failed, .. } = self.take().await;
        assert!(failed.is_empty(), "{} {when}: {failed:#?}", self.name);
    }

    /// Forgets calls until the first that succeeded: a peer must be up before it counts.
    pub(super) async fn warm_up(&mut self) {
        let mut last = Vec::new();
        for _ in 0..6_000 {
            let seen = self.take().await;
            if seen.calls() > 0 && seen.failed.is_empty() {
                return;
            }
            last.extend(seen.failed);
            sleep(PAUSE).await;
        }
        panic!("{}: no call succeeds: {last:#?}", self.name);
    }

    /// Waits until so many calls in a row were answered by `version` alone, and none failed.
    pub(super) async fn follows(&mut self, version: &str) {
        let mut in_row = 0;
        for _ in 0..6_000 {
            let Seen { seen, failed } = self.take().await;
            assert!(failed.is_empty(), "{}: {failed:#?}", self.name);
            in_row = match seen.get(version) {
                Some(calls) if seen.len() == 1 => in_row + calls,
                None if seen.is_empty() => in_row,
                _ => 0,
            };
            if in_row >= 20 {
                return;
            }
            sleep(PAUSE).await;
        }
        panic!("{} does not follow to {version}", self.name);
    }
}
