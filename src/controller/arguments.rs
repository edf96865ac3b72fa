//! The flags of `posthorn controller`.

use std::{net::SocketAddr, path::PathBuf};

use super::pool::PoolSettings;
use crate::runtime::logging::LogFormat;

/// Flags of `posthorn controller`.
#[derive(Clone, Debug, clap::Args)]
pub struct ControllerArguments {
    /// Namespace that Posthorn itself runs in.
    #[arg(long, env = "POSTHORN_NAMESPACE", default_value = "posthorn-system")]
    pub namespace: String,
    /// Name under which this replica stands for election: that of its pod.
    #[arg(long, env = "POSTHORN_IDENTITY", default_value = "posthorn-controller")]
    pub identity: String,
    /// Where the pod of a pool is; {pool} and {namespace} are filled in.
    #[arg(
        long,
        env = "POSTHORN_DELIVERY_URL",
        default_value = "https://posthorn-{pool}-0.posthorn-{pool}-pods.{namespace}.svc:8444"
    )]
    pub delivery_url: String,
    /// File with the token, of audience posthorn-internal, for calls of delivery pods.
    #[arg(long, env = "POSTHORN_TOKEN_FILE", default_value = "/var/run/secrets/posthorn/token")]
    pub token_file: PathBuf,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "POSTHORN_HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    pub health_listen: SocketAddr,
    /// Whether replicas elect a leader. Only for a single replica may it be off.
    #[arg(long, env = "POSTHORN_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,
    /// How log lines look.
    #[arg(long, env = "POSTHORN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What shapes the pods of every pool.
    #[command(flatten)]
    pub pools: PoolSettings,
}
