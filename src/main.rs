//! The `posthorn` binary: every role is a subcommand.

use anyhow::Context;
use clap::{Parser, Subcommand};
use posthorn::{
    cli::{
        store::{self, StoreArguments},
        wait::{self, WaitArguments},
    },
    controller, delivery, inbox,
    runtime::{clock, logging, shutdown, tls},
};

/// What one thread allocates another one frees, at every event; the system's
/// allocators take locks for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Receive webhooks, for demos and tests: answer every handshake, accept
    /// events, print what comes.
    Inbox(inbox::arguments::Arguments),
    /// Print the CustomResourceDefinitions as YAML.
    Crds {
        /// Write one file per kind into this folder instead.
        #[arg(long)]
        output: Option<std::path::PathBuf>,
    },
    /// Wait until a Webhook has a condition; for `helm test`.
    Wait(WaitArguments),
    /// Verify endpoints, keep pools, write every status; two replicas elect one.
    Controller(Box<controller::ControllerArguments>),
    /// Run a pod of a DeliveryPool: index, probes, internal API.
    Delivery(Box<delivery::DeliveryArguments>),
    /// Copy, check and restore the store of a pool.
    Store(StoreArguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Inbox(arguments) => run_inbox(arguments),
        Role::Crds { output } => print_crds(output.as_deref()),
        Role::Wait(arguments) => run_wait(&arguments),
        Role::Controller(arguments) => run_controller(*arguments),
        Role::Delivery(arguments) => run_delivery(*arguments),
        Role::Store(arguments) => run_store(arguments),
    }
}

#[tokio::main]
async fn run_inbox(arguments: inbox::arguments::Arguments) -> anyhow::Result<()> {
    let address = arguments.listen;
    let config = arguments.into_config()?;
    let shutdown = shutdown::on_signal().context("cannot listen for signals")?;
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    inbox::run(config, listener, shutdown).await;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn run_wait(arguments: &WaitArguments) -> anyhow::Result<()> {
    tls::install_provider();
    let client = kube::Client::try_default().await.context("cannot find the API server")?;
    Ok(wait::wait(client, arguments, |text| println!("{text}")).await?)
}

fn run_controller(arguments: controller::ControllerArguments) -> anyhow::Result<()> {
    logging::init(arguments.log_format);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let shutdown = shutdown::on_signal()?;
        Ok(controller::run(arguments, shutdown).await?)
    })
}

fn run_delivery(arguments: delivery::DeliveryArguments) -> anyhow::Result<()> {
    logging::init(arguments.log_format);
    let threads = arguments.worker_threads.into();
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?.block_on(async {
        let shutdown = shutdown::on_signal()?;
        Ok(delivery::run(arguments, shutdown).await?)
    })
}

/// Exit code 1: something is wrong with the store.
fn run_store(arguments: StoreArguments) -> anyhow::Result<()> {
    let new_id: String = clock::random_bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
    let done = store::run(arguments, &new_id)?;
    if done.has_data {
        eprint!("{}", done.text);
    } else {
        print!("{}", done.text);
    }
    if !done.is_good {
        std::process::exit(1);
    }
    Ok(())
}

fn print_crds(output: Option<&std::path::Path>) -> anyhow::Result<()> {
    for crd in posthorn::api::crds::all()? {
        let yaml = posthorn::api::crds::to_yaml(&crd)?;
        match output {
            None => print!("---\n{yaml}"),
            Some(folder) => {
                let path = folder.join(format!("{}.yaml", crd.spec.names.plural));
                std::fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    Ok(())
}
