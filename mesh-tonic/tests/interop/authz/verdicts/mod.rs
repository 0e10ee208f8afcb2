//! The decision table over mutual TLS: the same policies and calls at our server, at Envoy and at a
//! gRPC server of the C-core that the control plane drives.
//!
//! All three are asked over gRPC, which is what they have in common; [`super::cases`] has the rest of
//! HTTP. Where gRPC cannot evaluate an operator the row says what is served in its place, which is
//! never less strict.

mod caller;
mod operators;
mod rows;
mod servers;

use std::{collections::BTreeSet, fmt, time::Duration};

use control_plane::{
    compile::{CompileOptions, Compiled, compile},
    source::load_text,
};
use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep};

use super::signer::Signer;
use caller::{Authority, Caller};
use rows::Row;
use servers::{Address, Kind, Servers};

/// Calls at a time.
const IN_FLIGHT: usize = 16;
/// Until every server has its listeners: a real bound only in a failing run.
const SERVES: Duration = Duration::from_secs(120);

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The application answered.
    Passes,
    /// PERMISSION_DENIED, or 403.
    Denied,
    /// UNAUTHENTICATED, or 401.
    Unauthenticated,
    /// No connection.
    Refused,
    /// Something that no row asks for.
    Other(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passes => "passes",
            Self::Denied => "denied",
            Self::Unauthenticated => "401",
            Self::Refused => "refused",
            Self::Other(text) => text,
        })
    }
}

/// A call with the verdict of our server and of Envoy, and that of gRPC.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// `CALLER METHOD [header=value]…`; `TOKEN(claims)` stands for a signed token.
    call: String,
    mesh: Verdict,
    grpc: Verdict,
}

/// The call with its token signed.
fn signed(call: &str, signer: &Signer) -> String {
    let Some((before, rest)) = call.split_once("TOKEN(") else {
        return call.to_owned();
    };
    let (claims, after) = rest.split_once(')').unwrap();
    format!("{before}Bearer+{}{after}", signer.token(claims))
}

/// All objects of a table, each row's for the server that bears its number.
fn objects(rows: &[Row], addresses: &[Vec<Address>], signer: &Signer) -> String {
    let all = rows.iter().zip(addresses).enumerate();
    let one = all.map(|(index, (row, addresses))| {
        let name = format!("case{index}");
        let endpoints = addresses.iter().map(|address| {
            let (ip, port) = (address.ip(), address.port());
            format!("{{address: {ip}, ports: {{grpc: {port}}}, labels: {{case: {name}}}}}")
        });
        let endpoints: Vec<_> = endpoints.collect();
        let ports: Vec<_> = addresses
            .iter()
            .map(|address| format!("'{}'", address.port()))
            .collect();
        let selector = format!("selector: {{matchLabels: {{case: {name}}}}}");
        let service = format!(
            "kind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
             hosts: [{name}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  \
             resolution: STATIC\n  ports: [{{number: 80, name: grpc, protocol: GRPC}}]\n  \
             endpoints: [{}]\n",
            endpoints.join(", ")
        );
        let mtls = format!(
            "kind: PeerAuthentication\nmetadata: {{name: {name}}}\n\
             spec: {{{selector}, mtls: {{mode: {}}}}}\n",
            row.mode
        );
        let own = row
            .objects
            .replace("SELECTOR", &selector)
            .replace("NAME", &name)
            .replace("PORTS", &ports.join(", "))
            .replace("KEYS", &signer.keys());
        format!("{service}---\n{mtls}---\n{own}")
    });
    one.collect::<Vec<_>>().join("\n---\n")
}

/// The rows whose objects do not compile are those that say so.
fn check_findings(rows: &[Row], text: &str) -> Compiled {
    let loaded = load_text("table.yaml", text);
    let (compiled, found) = compile(&loaded.objects, &CompileOptions::default());
    let found = loaded.diagnostics.iter().chain(&found);
    let named = found.map(|found| {
        let (_, number) = found.object.split_once("case").expect(&found.object);
        let number = number.split('-').next().unwrap();
        number.parse::<usize>().expect(&found.object)
    });
    let found: BTreeSet<usize> = named.collect();
    let wanted = rows.iter().enumerate().filter(|(_, row)| row.is_broken);
    let wanted: BTreeSet<usize> = wanted.map(|(index, _)| index).collect();
    assert_eq!(found, wanted, "rows that do not compile");
    compiled
}

/// Waits until a server answers a call that some row does not refuse.
async fn serves(authority: &Authority, row: &Row, address: Address) {
    let answered = |asked: &&Asked| asked.grpc != Verdict::Refused;
    let Some(asked) = row.asked.iter().find(answered) else {
        return;
    };
    let deadline = Instant::now() + SERVES;
    let caller = Caller::new(authority, &asked.call);
    while let Err(error) = caller.attempt(address).await {
        assert!(Instant::now() < deadline, "{address}: {error} {row:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_server_envoy_and_grpc_come_to_the_verdicts_of_the_table() {
    let (authority, signer) = (Authority::new(), Signer::new());
    let rows: Vec<Row> = operators::rows().into_iter().chain(rows::rows()).collect();
    let servers = Servers::new(rows.len());
    let text = objects(&rows, servers.addresses(), &signer);
    let compiled = check_findings(&rows, &text);
    let running = servers.start(&rows, &text, &compiled, &authority).await;
    let table = rows.iter().zip(&running.addresses);
    let every = table.clone().flat_map(|(row, addresses)| {
        let addresses = addresses.iter();
        addresses.map(move |address| (row, *address))
    });
    let authority = &authority;
    let ready = stream::iter(every).map(|(row, address)| serves(authority, row, address));
    ready.buffer_unordered(IN_FLIGHT).collect::<()>().await;

    let calls = table.flat_map(|(row, addresses)| {
        let asked = row.asked.iter();
        asked.map(move |asked| (row, asked, addresses))
    });
    let seen = stream::iter(calls).map(|(row, asked, addresses)| {
        let caller = Caller::new(authority, &signed(&asked.call, &signer));
        async move {
            let mut verdicts = Vec::new();
            for address in addresses {
                verdicts.push(caller.call(*address).await);
            }
            (row, asked, verdicts)
        }
    });
    let seen: Vec<_> = seen.buffered(IN_FLIGHT).collect().await;
    print(&seen);
    let wrong = seen.iter().filter(|(row, asked, verdicts)| {
        let right = Kind::ALL.map(|kind| match kind {
            Kind::Grpc => &asked.grpc,
            Kind::Ours | Kind::Envoy => &asked.mesh,
        });
        let is_right = verdicts.iter().eq(right);
        if !is_right {
            println!("wrong: {} {verdicts:?}, {asked:?}", row.objects);
        }
        !is_right
    });
    assert_eq!(wrong.count(), 0, "wrong verdicts; see above");
}

fn print(seen: &[(&Row, &Asked, Vec<Verdict>)]) {
    let [ours, envoy, grpc] = Kind::ALL.map(Kind::as_str);
    println!("| {ours:8} | {envoy:8} | {grpc:8} | policy, call |");
    println!("|---|---|---|---|");
    let mut before = "";
    for (row, asked, verdicts) in seen {
        if row.title != before {
            println!("| | | | **{}** |", row.title);
            before = &row.title;
        }
        let call = asked.call.chars().take(90).collect::<String>();
        for verdict in verdicts {
            print!("| {verdict:8} ");
        }
        println!("| {call} |");
    }
    println!("{} rows, {} servers", seen.len(), Kind::ALL.len());
}
