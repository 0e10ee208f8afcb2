//! Compares what a call costs with `gate.toml`; fails when it is off.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Instructions, allocations and sizes of a call, against gate.toml")]
struct Arguments {
    /// Takes what is measured as the new numbers.
    #[arg(long)]
    write: bool,
    #[command(subcommand)]
    calls: Option<Calls>,
}

#[derive(Subcommand)]
enum Calls {
    /// Calls a library scenario so often, under valgrind.
    #[command(hide = true)]
    Calls { scenario: String, calls: usize },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.calls {
        Some(Calls::Calls { scenario, calls }) => mesh_benches::library::call(&scenario, calls),
        None => mesh_benches::gate::run(arguments.write),
    }
}
