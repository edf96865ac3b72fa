//! What the operator's flags say about every pool.

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
    /// The spec of the pool `default` as JSON; without it no pool is made.
    #[arg(long, env = "POSTHORN_DEFAULT_POOL")]
    pub default_pool: Option<String>,
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
