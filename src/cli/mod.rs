//! The commands of `kubectl posthorn`: look at Webhooks, have them verified,
//! read what a reason means.
//!
//! Data goes to stdout, talk and errors to stderr. Exit codes are the same for
//! every command ([`Exit`]). What is printed is made by pure functions; the
//! commands fetch, print and choose the code.

mod connect;
mod error;
mod explain;
mod status;
pub mod store;
mod text;
mod verify;
mod version;
pub mod wait;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use error::CliError;

/// Look at Webhooks and have them verified.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl posthorn",
    bin_name = "kubectl posthorn",
    version,
    about = "Look at Webhooks and have them verified",
    after_help = "Exit codes: 0 done or yes · 1 the answer is no · 2 wrong use · 3 not found · 4 not allowed · 5 time-out, still going on · 6 cluster or Posthorn not reachable"
)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster, and where in it.
#[derive(Args, Debug)]
struct Connection {
    /// Namespace. Default: that of the context.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Context of the kubeconfig. Default: the current one.
    #[arg(long, global = true, value_name = "CONTEXT")]
    context: Option<String>,
    /// The kubeconfig. Default: $KUBECONFIG, else ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<std::path::PathBuf>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show Webhooks, and for those that are not ready, why and what to do.
    #[command(
        after_help = "Examples:\n  kubectl posthorn status -n shop\n  kubectl posthorn status billing -n shop -o json\n\nRights: get and list on webhooks.posthorn.dev"
    )]
    Status(status::StatusArguments),
    /// Have an endpoint asked now whether it wants events, and wait for its answer.
    #[command(
        after_help = "Examples:\n  kubectl posthorn verify billing -n shop\n  kubectl posthorn verify billing -n shop --wait=false\n\nRights: get and patch on webhooks.posthorn.dev"
    )]
    Verify(verify::VerifyArguments),
    /// Say what a reason means and what to do; without a reason, list all. Needs no cluster.
    #[command(after_help = "Examples:\n  kubectl posthorn explain BodyMismatch\n  kubectl posthorn explain")]
    Explain(explain::ExplainArguments),
    /// Print the versions of this plugin, of Kubernetes, and of Posthorn's API in the cluster.
    #[command(after_help = "Examples:\n  kubectl posthorn version\n  kubectl posthorn version --client")]
    Version(version::VersionArguments),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or yes. Looking is this, whatever it sees.
    Done = 0,
    /// Done, and the answer is no.
    No = 1,
    /// Wrong use.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// The user may not do that.
    NotAllowed = 4,
    /// It takes longer and goes on.
    TimedOut = 5,
    /// The cluster, or Posthorn in it, does not answer.
    Unreachable = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the command, prints its error if it has one, and gives the exit code.
pub async fn run(arguments: Arguments) -> ExitCode {
    let Arguments { connection, command } = arguments;
    let result = match command {
        Command::Status(arguments) => status::run(connection, arguments).await,
        Command::Verify(arguments) => verify::run(connection, arguments).await,
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Version(arguments) => version::run(connection, arguments).await,
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            text::talk(&error.to_text());
            error.exit().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Arguments, ErrorKind> {
        Arguments::try_parse_from(["kubectl-posthorn"].into_iter().chain(line.split(' '))).map_err(|e| e.kind())
    }

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn common_flags_stand_before_or_after_the_command() {
        for line in ["-n shop status", "status -n shop", "status billing --namespace shop --context a --kubeconfig b"] {
            assert_eq!(parse(line).unwrap().connection.namespace.as_deref(), Some("shop"), "{line}");
        }
        for line in ["status -A -o json", "verify a --wait=false --timeout 30s", "explain", "version --client"] {
            parse(line).unwrap();
        }
        for (line, expected) in [
            ("status a -A", ErrorKind::ArgumentConflict),
            ("verify", ErrorKind::MissingRequiredArgument),
            ("verify a --timeout 0s", ErrorKind::ValueValidation),
            ("verify a --timeout soon", ErrorKind::ValueValidation),
            ("status -o yaml", ErrorKind::InvalidValue),
            ("statis", ErrorKind::InvalidSubcommand),
        ] {
            assert_eq!(parse(line).unwrap_err(), expected, "{line}");
        }
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().unwrap().to_string();
            let examples: Vec<_> =
                help.lines().filter_map(|line| line.trim().strip_prefix("kubectl posthorn ")).collect();
            assert!(examples.len() >= 2, "{}", command.get_name());
            for example in examples {
                parse(example).unwrap();
            }
        }
    }
}
