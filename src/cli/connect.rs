//! From the flags to a client.

use std::time::Duration;

use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{CliError, Connection, text};
use crate::api::Webhook;

/// Time for a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an answer of the API server.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Webhooks in one page of a list.
const PAGE: u32 = 500;

/// A client and the namespace to use.
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl Connection {
    /// Makes the client; dials nothing yet.
    pub(super) async fn connect(self) -> Result<Cluster, CliError> {
        // The only provider in this binary; a second call changes nothing.
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let options = KubeConfigOptions { context: self.context, ..KubeConfigOptions::default() };
        let config = match self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(&path)
                    .map_err(|source| CliError::ReadKubeconfig { path, source: Box::new(source) })?;
                Config::from_custom_kubeconfig(file, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = config.map_err(|error| CliError::Kubeconfig(Box::new(error)))?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        let namespace = self.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| CliError::Client(Box::new(error)))?;
        Ok(Cluster { client, namespace })
    }
}

impl Cluster {
    /// The Webhooks of the namespace.
    pub(super) fn webhooks(&self) -> Api<Webhook> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// One Webhook of the namespace. If there is none, the error names one that
    /// is much like it.
    pub(super) async fn get(&self, name: &str) -> Result<Webhook, CliError> {
        let error = match self.webhooks().get_opt(name).await {
            Ok(Some(webhook)) => return Ok(webhook),
            Ok(None) => {
                let others = list(&self.webhooks(), &self.namespace).await?;
                let names = others.iter().filter_map(|w| w.metadata.name.as_deref());
                let near = text::near(name, names).map(str::to_owned);
                return Err(CliError::NoSuchWebhook { namespace: self.namespace.clone(), name: name.to_owned(), near });
            }
            Err(error) => error,
        };
        Err(CliError::from_api(error, "get", &self.namespace))
    }
}

/// Every Webhook behind the API, page by page.
pub(super) async fn list(api: &Api<Webhook>, place: &str) -> Result<Vec<Webhook>, CliError> {
    let mut all = Vec::new();
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&parameters).await.map_err(|error| CliError::from_api(error, "list", place))?;
        all.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => parameters = ListParams::default().limit(PAGE).continue_token(&token),
            _ => return Ok(all),
        }
    }
}
