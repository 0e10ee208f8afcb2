//! Compares what a call costs with `gate.toml`; fails when it is off.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Instructions, allocations and sizes of a call, against gate.toml")]
struct Arguments {
    /// Takes what is measured as the new numbers.
    #[arg(long)]
    write: bool,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Subcommand)]
enum Child {
    /// Calls a library scenario so often, under valgrind.
    #[command(hide = true)]
    Calls { scenario: String, calls: usize },
    /// Takes so many responses with changes of a big configuration, under valgrind.
    #[command(hide = true)]
    Changes { variant: String, responses: usize },
    /// What a big configuration holds.
    #[command(hide = true)]
    Held,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.child {
        Some(Child::Calls { scenario, calls }) => mesh_benches::library::call(&scenario, calls),
        Some(Child::Changes { variant, responses }) => {
            mesh_benches::big::cost::change(&variant, responses)
        }
        Some(Child::Held) => {
            println!("{:#?}", mesh_benches::big::cost::held()?);
            Ok(())
        }
        None => mesh_benches::gate::run(arguments.write),
    }
}
