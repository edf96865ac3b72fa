//! `kubectl posthorn`: look at Webhooks and have them verified.

use std::process::ExitCode;

use clap::Parser;
use posthorn::cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    cli::run(cli::Arguments::parse()).await
}
