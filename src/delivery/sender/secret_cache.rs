//! The values of the Secrets that Webhooks name: read when they are used, with
//! `get` alone, one reading a Webhook at a time, few at once.
//!
//! What the values are used for and when they are read again is decided in
//! `secret_state`. They live in memory and, for a restart of the container while
//! the API server is away, in [`RunDir`]; never on the volume.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use kube::Client;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    gate::hold,
    recent::Recent,
    run_dir::RunDir,
    secret_state::{Known, Pace, Reading, Step, is_signed, needs_secrets},
};
use crate::{
    api::{Reason, SecretKeyRef},
    dialect::SigningKeys,
    dispatch::Hold,
    routing::index::{EndpointSource, WebhookEntry},
    secrets::{Material, ReadValue, SecretError, SecretReader, material},
};

/// Readings at a time.
pub const READINGS_MAX: usize = 8;
/// Time that one reading may take, waiting for its turn included.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that an attempt waits for a reading when it has values already.
pub const REFRESH_WAIT: Duration = Duration::from_secs(1);
/// Webhooks whose values are kept in memory at most; one that was not sent to
/// for the longest time is read anew.
pub const WEBHOOKS_MAX: usize = 20_000;
/// When a Webhook is asked for again whose Secrets are still being read.
const BUSY_RETRY: Duration = Duration::from_secs(1);

type Flight = Shared<BoxFuture<'static, ()>>;

/// Values of the Secrets of Webhooks. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct SecretCache(Arc<Inner>);

struct Inner {
    client: Client,
    run_dir: Option<Arc<RunDir>>,
    pace: Pace,
    turns: Semaphore,
    /// By UID of the Webhook.
    slots: Mutex<Recent<Arc<str>, Arc<Slot>>>,
    /// Whether the last reading found no API server: told once, not for each Webhook.
    is_away: AtomicBool,
    /// For Webhooks that need no Secret.
    nothing: Arc<Material>,
}

#[derive(Default)]
struct Slot(Mutex<SlotState>);

#[derive(Default)]
struct SlotState {
    known: Known,
    flight: Option<(Arc<WebhookEntry>, Flight)>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // A panic elsewhere leaves it whole: every change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Not derived: it is full of secrets.
impl fmt::Debug for SecretCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretCache")
    }
}

impl SecretCache {
    /// An empty cache. Without a folder nothing survives the process.
    pub fn new(client: Client, run_dir: Option<Arc<RunDir>>, pace: Pace) -> Self {
        let nothing = Arc::new(Material { keys: SigningKeys::none(), url: None, headers: Vec::new(), tls: None });
        let slots = Mutex::new(Recent::new(WEBHOOKS_MAX));
        Self(Arc::new(Inner {
            client,
            run_dir,
            pace,
            turns: Semaphore::new(READINGS_MAX),
            slots,
            is_away: AtomicBool::default(),
            nothing,
        }))
    }

    /// What the Secrets of a Webhook say. The same values are the same place in
    /// memory, so that what was made of them can be kept.
    ///
    /// # Errors
    /// Why the Webhook is held.
    pub async fn get(&self, namespace: &str, webhook: &Arc<WebhookEntry>) -> Result<Arc<Material>, Hold> {
        if !needs_secrets(webhook) && webhook.sending.tls.is_none() {
            return Ok(Arc::clone(&self.0.nothing));
        }
        let slot = self.slot(&webhook.uid);
        let (flight, fallback) = {
            let mut state = slot.lock();
            match state.known.step(webhook, Instant::now(), &self.0.pace) {
                Step::Use(material) => return Ok(material),
                Step::Hold(hold) => return Err(hold),
                Step::Read(fallback) => (self.flight(&mut state, &slot, namespace, webhook), fallback),
            }
        };
        let wait = if fallback.is_some() { REFRESH_WAIT } else { READ_TIMEOUT };
        let is_read = timeout(wait, flight).await.is_ok();
        if is_read && let Some(result) = slot.lock().known.after_reading(webhook, Instant::now()) {
            return result;
        }
        fallback.ok_or_else(|| {
            let message = "The Secrets of this Webhook are still being read.";
            hold(Reason::SecretUnavailable, message, Some(BUSY_RETRY))
        })
    }

    /// The endpoint did not accept what was made with the values: read them
    /// again before the next attempt.
    pub fn distrust(&self, webhook: &WebhookEntry) {
        if let Some(slot) = self.slots().get(&webhook.uid) {
            slot.lock().known.distrust();
        }
    }

    /// Forgets every Webhook that is not known, in memory and in the folder;
    /// `is_known` gets namespace and UID. For after a listing, and from time to
    /// time.
    pub fn sweep(&self, is_known: impl Fn(&str, &str) -> bool) {
        if let Some(Err(error)) = self.0.run_dir.as_ref().map(|run_dir| run_dir.sweep(&is_known)) {
            warn(&error, "kept values of Secrets that nobody needs cannot be removed");
        }
    }

    /// Forgets one Webhook in memory and in the folder, because it is gone.
    pub fn forget(&self, namespace: &str, uid: &str) {
        self.slots().retain(|known| **known != *uid);
        if let Some(Err(error)) = self.0.run_dir.as_ref().map(|run_dir| run_dir.forget(namespace, uid)) {
            warn(&error, "kept values of Secrets that nobody needs cannot be removed");
        }
    }

    fn slots(&self) -> MutexGuard<'_, Recent<Arc<str>, Arc<Slot>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, uid: &Arc<str>) -> Arc<Slot> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(uid) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(Slot::default());
        slots.insert(Arc::clone(uid), Arc::clone(&slot));
        slot
    }

    /// The reading that is under way for this state of the Webhook, or a new one.
    fn flight(&self, state: &mut SlotState, slot: &Arc<Slot>, namespace: &str, webhook: &Arc<WebhookEntry>) -> Flight {
        if let Some((of, flight)) = &state.flight
            && (Arc::ptr_eq(of, webhook) || of == webhook)
            && flight.peek().is_none()
        {
            return flight.clone();
        }
        // A task of its own: an attempt that gives up waiting does not end it.
        let reading = self.clone().read_and_note(Arc::clone(slot), namespace.to_owned(), Arc::clone(webhook));
        let task = tokio::spawn(reading);
        // A panic there would be in the log; to those who wait it brought nothing.
        let flight = task.map(|_ended| ()).boxed().shared();
        state.flight = Some((Arc::clone(webhook), flight.clone()));
        flight
    }

    async fn read_and_note(self, slot: Arc<Slot>, namespace: String, webhook: Arc<WebhookEntry>) {
        let reading = self.read(&namespace, &webhook).await;
        let mut state = slot.lock();
        state.known.note(Arc::clone(&webhook), reading, Instant::now(), &self.0.pace);
        if state.flight.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, &webhook)) {
            state.flight = None;
        }
    }

    async fn read(&self, namespace: &str, webhook: &WebhookEntry) -> Reading {
        let api = async {
            // Never closed.
            let _turn = self.0.turns.acquire().await;
            let mut reader = SecretReader::new(self.0.client.clone(), namespace);
            let material = gather(&mut reader, webhook).await?;
            Ok((material, reader.into_values()))
        };
        match timeout(READ_TIMEOUT, api).await {
            Ok(Ok((material, values))) => {
                self.is_back();
                self.keep(namespace, webhook, &values);
                Reading::Read(Arc::new(material))
            }
            Ok(Err(SecretError::Problem(problem))) => {
                self.is_back();
                // What was read before is revoked: a restart must not bring it back.
                self.keep(namespace, webhook, &[]);
                Reading::Problem(problem)
            }
            Ok(Err(SecretError::Api(error))) => {
                if !self.0.is_away.swap(true, Ordering::Relaxed) {
                    warn(&error, "the API server gives no Secrets: known values are used on");
                }
                self.kept(namespace, webhook).await
            }
            Err(_elapsed) => {
                if !self.0.is_away.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the API server gave no Secrets in {READ_TIMEOUT:?}: known values are used on");
                }
                self.kept(namespace, webhook).await
            }
        }
    }

    fn is_back(&self) {
        if self.0.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the API server gives Secrets again");
        }
    }

    fn keep(&self, namespace: &str, webhook: &WebhookEntry, values: &[ReadValue]) {
        let Some(run_dir) = &self.0.run_dir else { return };
        let kept = match values {
            [] => run_dir.forget(namespace, &webhook.uid),
            values => run_dir.keep(namespace, &webhook.uid, values),
        };
        if let Err(error) = kept {
            let name = &*webhook.name;
            tracing::warn!(
                namespace,
                webhook = name,
                error = &error as &dyn std::error::Error,
                "values of Secrets are not kept over a restart"
            );
        }
    }

    /// What was kept from before a restart, judged like what is read.
    async fn kept(&self, namespace: &str, webhook: &WebhookEntry) -> Reading {
        let Some(run_dir) = &self.0.run_dir else { return Reading::Away };
        let values = match run_dir.values(namespace, &webhook.uid) {
            Ok(Some(values)) => values,
            Ok(None) => return Reading::Away,
            Err(error) => {
                warn(&error, "kept values of Secrets cannot be read");
                return Reading::Away;
            }
        };
        match gather(&mut SecretReader::kept(values), webhook).await {
            Ok(material) => Reading::Kept(Arc::new(material)),
            // The spec names others now.
            Err(_) => Reading::Away,
        }
    }
}

/// Everything that the Secrets of a Webhook say for its deliveries.
async fn gather(reader: &mut SecretReader, webhook: &WebhookEntry) -> Result<Material, SecretError> {
    let spec = &webhook.sending;
    let url = match &webhook.endpoint {
        EndpointSource::UrlFrom { secret, key } => {
            let reference = SecretKeyRef { name: secret.to_string(), key: key.to_string() };
            Some(material::url(reader, &reference).await?)
        }
        EndpointSource::Url(_) | EndpointSource::Service(_) => None,
    };
    let keys =
        if is_signed(webhook) { material::keys(reader, spec, &webhook.name).await? } else { SigningKeys::none() };
    let headers = material::headers(reader, &spec.headers_from).await?;
    let tls = match &spec.tls {
        None => None,
        Some(tls) => Some(material::tls(reader, tls).await?),
    };
    Ok(Material { keys, url, headers, tls })
}

fn warn(error: &(dyn std::error::Error + 'static), message: &'static str) {
    tracing::warn!(error, message);
}
