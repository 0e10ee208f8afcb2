//! The binary `control-plane`.

use std::{env, io::IsTerminal as _, process::ExitCode};

use clap::Parser;
use control_plane::cli::{Cli, colours};

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours(
            std::io::stderr().is_terminal(),
            env::var_os("NO_COLOR"),
        ))
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().run().await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}
