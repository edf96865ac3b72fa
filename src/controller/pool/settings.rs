//! What the operator's flags say about every pool.

use ipnet::IpNet;

/// Flags of the controller that shape the pods of every pool.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct PoolSettings {
    /// Image of the delivery pods.
    #[arg(long, env = "POSTHORN_DELIVERY_IMAGE")]
    pub delivery_image: String,
    /// When nodes pull that image.
    #[arg(long, env = "POSTHORN_DELIVERY_IMAGE_PULL_POLICY", value_enum, default_value = "IfNotPresent")]
    pub delivery_image_pull_policy: PullPolicy,
    /// Names of the Secrets that nodes pull that image with, comma-separated.
    #[arg(long, env = "POSTHORN_DELIVERY_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub delivery_image_pull_secrets: Vec<String>,
    /// PriorityClass of the delivery pods.
    #[arg(long, env = "POSTHORN_DELIVERY_PRIORITY_CLASS")]
    pub delivery_priority_class: Option<String>,
    /// How the delivery pods write their logs.
    #[arg(long, env = "POSTHORN_DELIVERY_LOG_FORMAT", value_enum, default_value = "json")]
    pub delivery_log_format: crate::runtime::logging::LogFormat,
    /// Range of the cluster's Pods, Services or Nodes, comma-separated: pods never
    /// call an address in it as a public one. Private ranges need not be named.
    #[arg(long, env = "POSTHORN_CLUSTER_CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// DNS domain of the cluster.
    #[arg(long, env = "POSTHORN_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The spec of the pool `default` as JSON; without it no pool is made.
    #[arg(long, env = "POSTHORN_DEFAULT_POOL")]
    pub default_pool: Option<String>,
}

impl PoolSettings {
    /// PriorityClass of the delivery pods; a variable that is set to nothing
    /// counts as absent.
    pub fn priority_class(&self) -> Option<&str> {
        self.delivery_priority_class.as_deref().filter(|class| !class.is_empty())
    }

    /// Names of the Secrets that nodes pull the image with.
    pub fn pull_secrets(&self) -> impl Iterator<Item = &str> {
        self.delivery_image_pull_secrets.iter().map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The spec of the pool `default`, if one is to be made.
    pub fn default_pool(&self) -> Option<&str> {
        self.default_pool.as_deref().filter(|spec| !spec.is_empty())
    }
}

/// When nodes pull an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PullPolicy {
    /// At every start of a container.
    #[value(name = "Always")]
    Always,
    /// If the node lacks it.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Not at all.
    #[value(name = "Never")]
    Never,
}

impl PullPolicy {
    /// The text in a pod's spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;
    use crate::runtime::logging::LogFormat;

    /// Settings whose values appear nowhere else.
    pub(in crate::controller::pool) fn settings() -> PoolSettings {
        PoolSettings {
            delivery_image: "registry.test/horn:1.2.3".into(),
            delivery_image_pull_policy: PullPolicy::IfNotPresent,
            delivery_image_pull_secrets: vec!["pull".into()],
            delivery_priority_class: Some("important".into()),
            delivery_log_format: LogFormat::Json,
            cluster_cidr: vec!["198.18.0.0/16".parse().unwrap(), "33.0.0.0/8".parse().unwrap()],
            cluster_domain: "cluster.test".into(),
            default_pool: None,
        }
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: PoolSettings,
    }

    #[test]
    fn flags_are_spelled_as_in_a_pod() {
        let flags = ["x", "--delivery-image=a:1", "--delivery-image-pull-policy=Never", "--delivery-priority-class="];
        let settings = Cli::try_parse_from(flags).unwrap().settings;
        assert_eq!(settings.delivery_image_pull_policy, PullPolicy::Never);
        assert_eq!((settings.priority_class(), settings.default_pool()), (None, None));
        assert_eq!(settings.pull_secrets().count(), 0);
    }
}
