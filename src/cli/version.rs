//! `kubectl posthorn version`.

use super::{CliError, Connection, Exit, text};
use crate::api::GROUP;

#[derive(clap::Args, Debug)]
pub(super) struct VersionArguments {
    /// Only the version of this plugin; asks no cluster.
    #[arg(long)]
    client: bool,
}

pub(super) async fn run(connection: Connection, arguments: VersionArguments) -> Result<Exit, CliError> {
    text::print(&format!("Plugin:      {}\n", env!("CARGO_PKG_VERSION")));
    if arguments.client {
        return Ok(Exit::Done);
    }
    let client = connection.connect().await?.client;
    let unreachable = |error| CliError::Unreachable(Box::new(error));
    let kubernetes = client.apiserver_version().await.map_err(unreachable)?;
    let groups = client.list_api_groups().await.map_err(unreachable)?;
    text::print(&format!("Kubernetes:  {}\n", text::clean(&kubernetes.git_version)));
    let group = groups.groups.into_iter().find(|group| group.name == GROUP).ok_or(CliError::NotInstalled)?;
    let versions: Vec<_> = group.versions.into_iter().map(|v| text::clean(&v.version)).collect();
    text::print(&format!("Posthorn:    {GROUP} {}\n", versions.join(", ")));
    Ok(Exit::Done)
}
