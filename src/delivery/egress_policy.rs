//! Keeps the clients that dial in step with the egress rules of the pool.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    egress::{Clients, Resolve, TlsError, public_roots},
    policy::egress::{ClusterNetworks, EgressPolicy, PolicyError},
    routing::watch::PoolView,
    runtime::health::ComponentHealth,
};

/// Where the clients come from.
pub(super) struct ClientSource {
    pub(super) cluster: ClusterNetworks,
    pub(super) is_loopback_allowed: bool,
    pub(super) resolver: Arc<dyn Resolve>,
}

#[derive(Debug, thiserror::Error)]
enum RulesError {
    #[error("the DeliveryPool does not exist")]
    Missing,
    #[error("the DeliveryPool cannot be read by this version of Posthorn; update the pods")]
    Unreadable,
    #[error("the rules of the DeliveryPool cannot be used: {0}")]
    Policy(#[from] PolicyError),
    #[error("the client for endpoints cannot be made")]
    Client(#[from] TlsError),
}

/// Follows the pool for ever. Rules that cannot be used leave the old ones in
/// force, because no rules are not safer ones: a default could be wider than
/// what the admin wrote. Without any, nothing is dialed.
pub(super) async fn follow(
    mut pool: watch::Receiver<PoolView>,
    source: ClientSource,
    clients: watch::Sender<Option<Arc<Clients>>>,
    health: ComponentHealth,
) {
    loop {
        let view = pool.borrow_and_update().clone();
        if view != PoolView::NotSeen {
            let old = clients.borrow().clone();
            match renew(&view, &source, old.as_deref()) {
                Ok(None) => {}
                Ok(Some(new)) => {
                    tracing::info!("the egress rules of the pool are in force");
                    clients.send_replace(Some(Arc::new(new)));
                    health.ready();
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the egress rules stay as they were");
                    if old.is_none() {
                        health.not_ready(error.to_string());
                    }
                }
            }
        }
        if pool.changed().await.is_err() {
            return;
        }
    }
}

/// Clients under the rules of the pool; none if the rules are the same.
fn renew(view: &PoolView, source: &ClientSource, old: Option<&Clients>) -> Result<Option<Clients>, RulesError> {
    let spec = match view {
        PoolView::NotSeen | PoolView::Missing => return Err(RulesError::Missing),
        PoolView::Unreadable => return Err(RulesError::Unreadable),
        PoolView::Spec(spec) => spec,
    };
    let mut policy = EgressPolicy::compile(spec.egress.as_ref(), &source.cluster)?;
    if source.is_loopback_allowed {
        policy = policy.allow_loopback();
    }
    match old {
        Some(old) if *old.policy() == policy => Ok(None),
        Some(old) => Ok(Some(old.renew(Arc::new(policy))?)),
        None => {
            let roots = Arc::new(public_roots());
            Ok(Some(Clients::new(Arc::new(policy), Arc::clone(&source.resolver), roots)?))
        }
    }
}
