//! The command line of the role `delivery`.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;

use crate::{
    access::ServiceAccount, api::DEFAULT_POOL, policy::egress::CLUSTER_DOMAIN_DEFAULT, runtime::logging::LogFormat,
};

/// Name of the controller's ServiceAccount unless `--controller-service-account`
/// says otherwise.
const CONTROLLER_SERVICE_ACCOUNT: &str = "posthorn-controller";

/// Flags of `posthorn delivery`.
#[derive(clap::Args, Clone, Debug)]
pub struct DeliveryArguments {
    /// Name of the DeliveryPool that this pod belongs to.
    #[arg(long, env = "POSTHORN_POOL", default_value = DEFAULT_POOL)]
    pub pool: String,
    /// Namespace that Posthorn itself runs in.
    #[arg(long, env = "POSTHORN_NAMESPACE", default_value = "posthorn-system")]
    pub namespace: String,
    /// Address of the internal API (HTTPS).
    #[arg(long, env = "POSTHORN_INTERNAL_LISTEN", default_value = "0.0.0.0:8444")]
    pub internal_listen: SocketAddr,
    /// Address of ingest (HTTP), where publishers hand events in.
    #[arg(long, env = "POSTHORN_INGEST_LISTEN", default_value = "0.0.0.0:8080")]
    pub ingest_listen: SocketAddr,
    /// Folder of the store, on a volume that outlives the pod.
    #[arg(long, env = "POSTHORN_DATA_DIR", default_value = "/data")]
    pub data_dir: PathBuf,
    /// Folder in memory, where Secrets survive a restart of the container but
    /// not the pod.
    #[arg(long, env = "POSTHORN_RUN_DIR", default_value = "/run/posthorn")]
    pub run_dir: PathBuf,
    /// Name of this pod, as DeliveryPool.status.stores records its store.
    #[arg(long, env = "HOSTNAME", default_value = "posthorn")]
    pub pod_name: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "POSTHORN_HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    pub health_listen: SocketAddr,
    /// Folder with tls.crt and tls.key of the internal API.
    #[arg(long, env = "POSTHORN_TLS_DIR", default_value = "/etc/posthorn/tls")]
    pub tls_dir: PathBuf,
    /// Folder with the key of fingerprints.
    #[arg(long, env = "POSTHORN_KEYS_DIR", default_value = "/etc/posthorn/keys")]
    pub keys_dir: PathBuf,
    /// ServiceAccount that may call the internal API, as NAMESPACE/NAME; may be
    /// given several times. Default: posthorn-controller in --namespace.
    #[arg(long, env = "POSTHORN_CONTROLLER_SERVICE_ACCOUNT", value_name = "NAMESPACE/NAME", value_delimiter = ',')]
    pub controller_service_account: Vec<ServiceAccount>,
    /// Range of the cluster's Pods, Services or Nodes: never called as a public
    /// address. May be given several times.
    #[arg(long, env = "POSTHORN_CLUSTER_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// DNS domain of the cluster.
    #[arg(long, env = "POSTHORN_CLUSTER_DOMAIN", default_value = CLUSTER_DOMAIN_DEFAULT)]
    pub cluster_domain: String,
    /// Let endpoints be on loopback addresses; for tests on one machine only.
    #[arg(long, env = "POSTHORN_INSECURE_ALLOW_LOOPBACK", hide = true)]
    pub insecure_allow_loopback: bool,
    /// Threads that do the work.
    #[arg(long, env = "POSTHORN_WORKER_THREADS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub worker_threads: u16,
    /// How log lines look.
    #[arg(long, env = "POSTHORN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

impl DeliveryArguments {
    /// Who may call the internal API.
    pub fn callers(&self) -> Vec<ServiceAccount> {
        if !self.controller_service_account.is_empty() {
            return self.controller_service_account.clone();
        }
        vec![ServiceAccount { namespace: self.namespace.clone(), name: CONTROLLER_SERVICE_ACCOUNT.to_owned() }]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: DeliveryArguments,
    }

    fn parse(flags: &[&str]) -> Result<DeliveryArguments, clap::Error> {
        Command::try_parse_from(["posthorn"].iter().chain(flags)).map(|command| command.arguments)
    }

    #[test]
    fn lists_come_as_repeated_flags_or_with_commas() {
        let arguments = parse(&["--cluster-cidr", "10.0.0.0/8,fd00::/8", "--cluster-cidr", "172.16.0.0/12"]).unwrap();
        assert_eq!(arguments.cluster_cidr.len(), 3);
    }

    #[test]
    fn the_caller_is_the_controller_of_the_same_namespace_unless_told_otherwise() {
        let callers = |flags: &[&str]| parse(flags).unwrap().callers()[0].username();
        assert_eq!(callers(&["--namespace", "p"]), "system:serviceaccount:p:posthorn-controller");
        assert_eq!(callers(&["--controller-service-account", "a/b"]), "system:serviceaccount:a:b");
    }

    #[test]
    fn nonsense_is_refused() {
        for flags in [
            ["--controller-service-account", "no-slash"],
            ["--controller-service-account", "a/b/c"],
            ["--controller-service-account", "a/"],
            ["--cluster-cidr", "10.0.0.0/33"],
            ["--worker-threads", "0"],
        ] {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
    }
}
