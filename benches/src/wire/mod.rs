//! End to end over loopback: bare channels, ours, peers and sidecars, to servers in a process of
//! their own.
//!
//! Clients and callers share this process, whose processor time is the client's; server and
//! proxies are told apart by their own. Every socket has `TCP_NODELAY`: without it, Nagle's
//! algorithm adds 40 ms to some calls.

pub mod calls;
mod envoy;
pub mod proto;
pub mod server;
pub mod tls;
#[cfg(feature = "peers")]
mod tonic_xds_peer;
pub mod world;

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_tonic::MeshExt;
use mesh_tower::{HttpClient, Mesh};
use tonic::transport::{Channel, Endpoint};

use crate::{
    harness::{
        Contender, Plan, Results, Turn,
        child::{self, Process},
        cpu,
        load::{Call, Measured, closed, fixed_rate},
        take_turns,
    },
    library::runtime,
};
use calls::{EchoChannel, Http, InTurn, PingPong, Unary};
use envoy::Sidecars;
use world::World;

/// Callers of the closed loops.
const CALLERS: [usize; 3] = [1, 16, 64];
/// Of one turn.
const LENGTH: Duration = Duration::from_millis(750);
/// Calls a second at a fixed rate: about a tenth of what the machine can, so that all contenders
/// keep up.
const RATE: usize = 3_000;

/// Something that can be loaded.
trait Loaded: Send + Sync {
    fn closed(&self, callers: usize, length: Duration) -> BoxFuture<'_, anyhow::Result<Measured>>;
    fn fixed_rate(&self, rate: usize, length: Duration) -> BoxFuture<'_, anyhow::Result<Measured>>;
}

impl<C: Call> Loaded for C {
    fn closed(&self, callers: usize, length: Duration) -> BoxFuture<'_, anyhow::Result<Measured>> {
        closed(self, callers, length).boxed()
    }

    fn fixed_rate(&self, rate: usize, length: Duration) -> BoxFuture<'_, anyhow::Result<Measured>> {
        fixed_rate(self, rate, length).boxed()
    }
}

/// A contender with the processes that work for it.
struct Entrant {
    name: &'static str,
    call: Box<dyn Loaded>,
    server: u32,
    proxies: Vec<u32>,
}

/// Everything that is up while the family runs.
struct Stage {
    plain: server::Plain,
    server: Process,
    /// Up as long as the stage is.
    #[cfg_attr(
        not(feature = "peers"),
        expect(dead_code, reason = "only the peers ask it")
    )]
    world: World,
    mesh: Mesh,
    mutual: (World, Mesh, Process),
    /// Our server without TLS.
    door: (World, Process, SocketAddr),
    sidecars: Option<Sidecars>,
}

/// Runs the family.
///
/// # Errors
/// When servers or control planes do not start.
pub fn run(plan: &Plan) -> anyhow::Result<Results> {
    runtime()?.block_on(async {
        let mut results = Results::default();
        let stage = Stage::set(&mut results).await?;
        stage.grpc(plan, &mut results).await?;
        stage.http(plan, &mut results).await?;
        Ok(results)
    })
}

#[derive(Clone, Copy)]
enum Kind {
    Unary(usize),
    PingPong(usize),
}

impl Stage {
    async fn set(results: &mut Results) -> anyhow::Result<Self> {
        let (server, plain): (_, server::Plain) = child::start(["serve", "plain"]).await?;
        let world = World::start(false).await?;
        world.service("echo", "GRPC", &plain.grpc)?;
        world.service("web1", "HTTP", &plain.http)?;
        world.service("web2", "HTTP2", &plain.http)?;
        let mesh = world.member("client").await?;

        let secure = World::start(true).await?;
        let (process, served) = meshed(&secure).await?;
        secure.service("echo", "GRPC", &served.grpc)?;
        let open = World::start(false).await?;
        let (door, doors) = meshed(&open).await?;
        let member = secure.member("client").await?;
        for name in [
            "echo.default:8080",
            "web1.default:8080",
            "web2.default:8080",
        ] {
            ready(&mesh, name).await?;
        }
        ready(&member, "echo.default:8080").await?;
        let sidecars = match Sidecars::start(&plain.grpc).await {
            Ok(sidecars) => Some(sidecars),
            Err(error) => {
                results.note(format!("no Envoy: {error:#}"));
                None
            }
        };
        Ok(Self {
            plain,
            server,
            world,
            mesh,
            mutual: (secure, member, process),
            door: (open, door, doors.grpc[0]),
            sidecars,
        })
    }

    async fn grpc(&self, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
        for (table, kind) in [
            ("gRPC unary 64 B", Kind::Unary(64)),
            ("gRPC unary 16 KiB", Kind::Unary(16 * 1024)),
            ("gRPC stream, 64 B messages", Kind::PingPong(64)),
        ] {
            let entrants = self.grpc_entrants(kind, results).await?;
            closed_loops(plan, results, table, &entrants).await;
            if matches!(kind, Kind::Unary(64)) {
                at_fixed_rate(plan, results, table, &entrants).await;
            }
        }
        Ok(())
    }

    async fn grpc_entrants(
        &self,
        kind: Kind,
        results: &mut Results,
    ) -> anyhow::Result<Vec<Entrant>> {
        let server = self.server.pid();
        let entrant = |name, call: Box<dyn Loaded>, proxies| Entrant {
            name,
            call,
            server,
            proxies,
        };
        let one = bare(self.plain.grpc[0])?;
        let ten = self.plain.grpc.iter().map(|address| endpoint(*address));
        let ten = Channel::balance_list(ten.collect::<anyhow::Result<Vec<_>>>()?.into_iter());
        let ours = self.mesh.channel("xds:///echo.default:8080")?;
        let secure = tls::channel(self.plain.tls, &self.plain.client)?;
        let mutual = self.mutual.1.channel("xds:///echo.default:8080")?;
        let mut entrants = vec![
            entrant("tonic Channel", loaded(one, kind), vec![]),
            Entrant {
                name: "tonic Channel to our server",
                call: loaded(bare(self.door.2)?, kind),
                server: self.door.1.pid(),
                proxies: vec![],
            },
            entrant("tonic balance_list(10)", loaded(ten, kind), vec![]),
            entrant("ours, 10 endpoints", loaded(ours, kind), vec![]),
            entrant("tonic Channel over rustls", loaded(secure, kind), vec![]),
            Entrant {
                name: "ours, 10 endpoints, mTLS",
                call: loaded(mutual, kind),
                server: self.mutual.2.pid(),
                proxies: vec![],
            },
        ];
        if let Kind::Unary(bytes @ 64) = kind {
            // What ten connections cost without a library, plaintext and secure.
            let plain = self.plain.grpc.iter().map(|address| bare(*address));
            let secure = self.plain.grpc.iter();
            let secure = secure.map(|_| tls::channel(self.plain.tls, &self.plain.client));
            let in_turn = |channels: anyhow::Result<Vec<_>>| {
                let calls = channels?.into_iter();
                let calls = calls.map(|channel| Unary::new(channel, bytes)).collect();
                anyhow::Ok(Box::new(InTurn::new(calls)))
            };
            let (plain, secure) = (in_turn(plain.collect())?, in_turn(secure.collect())?);
            entrants.push(entrant("tonic Channels, ten in turn", plain, vec![]));
            entrants.push(entrant(
                "tonic Channels over rustls, ten in turn",
                secure,
                vec![],
            ));
        }
        #[cfg(feature = "peers")]
        match tonic_xds_peer::channel(&self.world) {
            Ok(channel) => {
                entrants.push(entrant(
                    "tonic-xds, 10 endpoints",
                    loaded(channel, kind),
                    vec![],
                ));
            }
            Err(error) => results.note(format!("no tonic-xds: {error:#}")),
        }
        if let Some(sidecars) = &self.sidecars {
            let (one, two) = (bare(sidecars.one_hop)?, bare(sidecars.two_hops)?);
            let (near, far) = (sidecars.near.pid(), sidecars.far.pid());
            entrants.push(entrant("one Envoy hop", loaded(one, kind), vec![near]));
            entrants.push(entrant(
                "two Envoy hops",
                loaded(two, kind),
                vec![near, far],
            ));
        }
        let mut ready = Vec::new();
        for entrant in entrants {
            match first_call(&entrant).await {
                Ok(()) => ready.push(entrant),
                Err(error) => results.note(format!("{} left out: {error:#}", entrant.name)),
            }
        }
        Ok(ready)
    }

    async fn http(&self, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
        for (table, service, only_http2) in [
            ("HTTP/1.1 64 B", "web1", false),
            ("HTTP/2 64 B", "web2", true),
        ] {
            let pooled: Client<HttpConnector, Full<Bytes>> = {
                let mut connector = HttpConnector::new();
                connector.set_nodelay(true);
                Client::builder(TokioExecutor::new())
                    .http2_only(only_http2)
                    .build(connector)
            };
            let ten = self.plain.http.iter();
            let ten: Vec<_> = ten.map(|address| format!("http://{address}/")).collect();
            let named = [format!("http://{service}.default:8080/")];
            let ours: HttpClient = self.mesh.http_client();
            let server = self.server.pid();
            let entrant = |name, call| Entrant {
                name,
                call,
                server,
                proxies: Vec::new(),
            };
            let entrants = [
                entrant(
                    "hyper-util client",
                    Box::new(Http::new(pooled.clone(), &ten[..1], 64)?) as _,
                ),
                entrant(
                    "hyper-util client, 10 addresses in turn",
                    Box::new(Http::new(pooled, &ten, 64)?) as _,
                ),
                entrant(
                    "ours, 10 endpoints",
                    Box::new(Http::new(ours, &named, 64)?) as _,
                ),
            ];
            for entrant in &entrants {
                first_call(entrant).await.context(entrant.name)?;
            }
            closed_loops(plan, results, table, &entrants).await;
            at_fixed_rate(plan, results, table, &entrants).await;
        }
        Ok(())
    }
}

/// Starts our server as a member of `world`.
async fn meshed(world: &World) -> anyhow::Result<(Process, server::Meshed)> {
    let bootstrap = world.bootstrap("server")?;
    child::start(["serve", "meshed", &bootstrap]).await
}

/// Waits until the control plane has announced `name`.
async fn ready(mesh: &Mesh, name: &str) -> anyhow::Result<()> {
    for _ in 0..100 {
        if mesh.service(name)?.ready().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{name} is not announced")
}

/// Waits until a call succeeds: configuration arrives and connections are made.
async fn first_call(entrant: &Entrant) -> anyhow::Result<()> {
    let mut last = Ok(());
    for _ in 0..100 {
        match tokio::time::timeout(
            Duration::from_secs(5),
            entrant.call.closed(1, Duration::from_millis(1)),
        )
        .await?
        {
            Ok(_) => return Ok(()),
            Err(error) => last = Err(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    last
}

fn endpoint(address: SocketAddr) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true))
}

fn bare(address: SocketAddr) -> anyhow::Result<Channel> {
    Ok(endpoint(address)?.connect_lazy())
}

fn loaded<C: EchoChannel>(channel: C, kind: Kind) -> Box<dyn Loaded> {
    match kind {
        Kind::Unary(bytes) => Box::new(Unary::new(channel, bytes)),
        Kind::PingPong(bytes) => Box::new(PingPong::new(channel, bytes)),
    }
}

async fn closed_loops(plan: &Plan, results: &mut Results, table: &str, entrants: &[Entrant]) {
    let length = LENGTH.mul_f64(plan.length);
    for callers in CALLERS {
        let contenders = entrants.iter().map(|entrant| Contender {
            name: entrant.name.to_owned(),
            turn: Box::new(move || turn(entrant, entrant.call.closed(callers, length)).boxed()),
        });
        let title = (
            &*format!("{table}, closed loop"),
            &*format!("{callers:2} callers"),
        );
        take_turns(plan, results, title, contenders.collect()).await;
    }
}

async fn at_fixed_rate(plan: &Plan, results: &mut Results, table: &str, entrants: &[Entrant]) {
    let length = LENGTH.mul_f64(plan.length) * 2;
    let contenders = entrants.iter().map(|entrant| Contender {
        name: entrant.name.to_owned(),
        turn: Box::new(move || turn(entrant, entrant.call.fixed_rate(RATE, length)).boxed()),
    });
    let title = (
        &*format!("{table}, fixed rate"),
        &*format!("{RATE} calls/s"),
    );
    take_turns(plan, results, title, contenders.collect()).await;
}

async fn turn(
    entrant: &Entrant,
    load: BoxFuture<'_, anyhow::Result<Measured>>,
) -> anyhow::Result<Turn> {
    /// A turn that takes longer hangs.
    const TURN_MAX: Duration = Duration::from_secs(30);
    let times = || {
        let proxies: Duration = entrant.proxies.iter().map(|pid| cpu::of(*pid)).sum();
        (cpu::of(entrant.server), proxies)
    };
    let before = times();
    let measured = tokio::time::timeout(TURN_MAX, load).await??;
    let after = times();
    let micros = |time| measured.each(time, 1e6);
    let (client, server) = (micros(measured.cpu), micros(after.0 - before.0));
    let proxies = micros(after.1 - before.1);
    Ok(vec![
        ("CPU µs/call, client", client),
        ("server", server),
        ("proxies", proxies),
        ("all", client + server + proxies),
        (
            "calls/s",
            measured.calls as f64 / measured.wall.as_secs_f64(),
        ),
        ("p50 µs", measured.quantile(0.5)),
        ("p90 µs", measured.quantile(0.9)),
        ("p99 µs", measured.quantile(0.99)),
        ("p99.9 µs", measured.quantile(0.999)),
    ])
}
