//! Webhook: gather → validate → plan → apply → status. The middle two are pure.

pub mod desk;
pub mod gather;
pub mod material;
pub mod plan;
mod probe;
pub mod status;
pub mod validate;

use std::{sync::Arc, time::Duration};

use kube_runtime::controller::Action;

use self::{
    desk::{Probe, Written},
    gather::{Gathered, gather},
    plan::{Plan, plan},
    validate::validate,
};
use super::{
    cache::Cached,
    context::{Context, ReconcileError},
    events::reference,
};
use crate::{api::Webhook, runtime::clock};

/// One reconcile of a Webhook.
///
/// # Errors
/// If the object cannot be read, or the API server did not do what it should.
pub async fn reconcile(cached: Arc<Cached<Webhook>>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    if kube::Resource::meta(cached.as_ref()).deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let gathered = gather(&context, &cached).await?;
    let requeue = act(&context, &gathered).await?;
    Ok(Action::requeue(requeue))
}

async fn act(context: &Arc<Context>, gathered: &Gathered) -> Result<Duration, ReconcileError> {
    let validated = validate(gathered);
    let Plan { status, is_held, probe, uses_outcome, notices, requeue } =
        plan(gathered, &validated, &context.fingerprint_key);
    if let Some(order) = probe {
        probe::start(context, gathered, &validated, order);
    }
    if is_held {
        return Ok(requeue);
    }
    if gathered.webhook.status.as_ref() != Some(&status) {
        write(context, gathered, &status).await?;
        let object = || reference("Webhook", &gathered.webhook.metadata);
        for notice in &notices {
            context.events.write(notice, object(), clock::now()).await;
        }
    }
    if uses_outcome {
        context.desks.at_existing(&gathered.key, &gathered.uid, |desk| {
            if matches!(desk.probe, Some(Probe::Judged { .. })) {
                desk.probe = None;
            }
        });
    }
    Ok(requeue)
}

async fn write(context: &Context, gathered: &Gathered, status: &crate::api::WebhookStatus) -> Result<(), kube::Error> {
    let Gathered { key, uid, webhook, .. } = gathered;
    let made = status::write::<Webhook>(&context.client, key, uid, status).await?;
    let seen = webhook.metadata.resource_version.clone();
    let written = Written { seen, made, status: status.clone() };
    context.desks.at_existing(key, uid, |desk| desk.written = Some(written));
    let state = status.verification.as_ref().map(|verification| verification.state);
    tracing::info!(namespace = %key.namespace, webhook = %key.name, ?state, "wrote status");
    Ok(())
}
