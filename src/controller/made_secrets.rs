//! Signing Secrets that the controller made are deleted 24 hours after their
//! Webhook. Why by a ledger: `docs/decisions/0002-made-secrets.md`.
//!
//! The ledger names every Webhook for which a Secret was made, in ConfigMaps of
//! the release's namespace. The leader compares it with the Webhooks that exist,
//! once a minute: who is gone gets a date, who came back loses it, whose date
//! has come loses the Secret. It does not matter when a Webhook went, or whether
//! anybody watched. [`Ledger::advance`] is pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{backoff, key::ObjectKey};
use crate::{
    api::{
        FIELD_MANAGER, WEBHOOK_LABEL, Webhook,
        condition::whole_seconds,
        defaults::{SIGNING_SECRET_TYPE, signing_secret_name},
    },
    runtime::clock,
};

/// How long a made Secret outlives its Webhook.
pub const KEEP: SignedDuration = SignedDuration::from_hours(24);
/// Time between two comparisons.
pub const PASS_INTERVAL: Duration = Duration::from_secs(60);
/// ConfigMaps that the ledger is spread over: each holds some hundred names of
/// the ten thousand that are supported.
pub const SHARDS: u8 = 16;
/// Names in one shard at most: 5,000 of up to 130 bytes stay below the 1 MiB that
/// a ConfigMap may have. Past it a Secret is not recorded and stays for ever.
pub const SHARD_NAMES_MAX: usize = 5_000;
/// Secrets of one shard that one pass tries to delete at most.
pub const DELETIONS_MAX: usize = 100;
/// Longest wait before a Secret that could not be deleted is tried again.
pub const POSTPONED_MAX: Duration = Duration::from_secs(60 * 60);

const CONFIG_MAP_PREFIX: &str = "posthorn-made-secrets-";
const LEDGER_KEY: &str = "ledger.json";

/// One shard of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Webhooks for which a Secret was made: namespace → names.
    #[serde(default)]
    made: BTreeMap<String, BTreeSet<String>>,
    /// Webhooks that are gone: namespace → name → when the Secret goes too.
    #[serde(default)]
    orphaned: BTreeMap<String, BTreeMap<String, Timestamp>>,
}

impl Ledger {
    /// Compares with what exists. Returns the Webhooks whose Secret is due.
    pub fn advance(
        &mut self,
        recorded: impl IntoIterator<Item = ObjectKey>,
        exists: impl Fn(&ObjectKey) -> bool,
        now: Timestamp,
    ) -> Vec<ObjectKey> {
        for key in recorded {
            if self.len() < SHARD_NAMES_MAX && !self.has(&key) {
                self.made.entry(key.namespace.into()).or_default().insert(key.name.into());
            }
        }
        let date = whole_seconds(now.checked_add(KEEP).unwrap_or(Timestamp::MAX));
        for key in keys(&self.made, |names| names.iter()) {
            if !exists(&key) {
                self.forget(&key);
                self.orphaned.entry(key.namespace.into()).or_default().insert(key.name.into(), date);
            }
        }
        let mut due = Vec::new();
        for key in keys(&self.orphaned, |names| names.keys()) {
            if exists(&key) {
                self.forget(&key);
                self.made.entry(key.namespace.into()).or_default().insert(key.name.into());
            } else if self.orphaned[&*key.namespace][&*key.name] <= now {
                due.push(key);
            }
        }
        due
    }

    /// Strikes out a name.
    pub fn forget(&mut self, key: &ObjectKey) {
        if let Some(names) = self.made.get_mut(&*key.namespace) {
            names.remove(&*key.name);
        }
        if let Some(names) = self.orphaned.get_mut(&*key.namespace) {
            names.remove(&*key.name);
        }
        self.made.retain(|_, names| !names.is_empty());
        self.orphaned.retain(|_, names| !names.is_empty());
    }

    fn has(&self, key: &ObjectKey) -> bool {
        self.made.get(&*key.namespace).is_some_and(|names| names.contains(&*key.name))
            || self.orphaned.get(&*key.namespace).is_some_and(|names| names.contains_key(&*key.name))
    }

    fn len(&self) -> usize {
        self.made.values().map(BTreeSet::len).sum::<usize>() + self.orphaned.values().map(BTreeMap::len).sum::<usize>()
    }
}

fn keys<'a, V, I: Iterator<Item = &'a String>>(
    by_namespace: &'a BTreeMap<String, V>,
    names: impl Fn(&'a V) -> I,
) -> Vec<ObjectKey> {
    by_namespace.iter().flat_map(|(namespace, of)| names(of).map(move |name| ObjectKey::new(namespace, name))).collect()
}

/// The Webhooks that use a made Secret, as reconciles see them.
#[derive(Clone, Default)]
pub struct MadeSecrets(Arc<Mutex<BTreeSet<ObjectKey>>>);

impl MadeSecrets {
    /// Notes a Webhook for the next pass.
    pub fn record(&self, key: &ObjectKey) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !noted.contains(key) {
            noted.insert(key.clone());
        }
    }

    fn take(&self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Secrets that could not be deleted, for example because an admission webhook
/// refuses it: they make room for the others. In memory only.
#[derive(Default)]
struct Postponed(BTreeMap<ObjectKey, (u32, Instant)>);

impl Postponed {
    /// Which of those that are due are tried now.
    fn turn(&self, due: &[ObjectKey], now: Instant) -> Vec<ObjectKey> {
        let is_up = |key: &&ObjectKey| self.0.get(key).is_none_or(|(_, until)| *until <= now);
        due.iter().filter(is_up).take(DELETIONS_MAX).cloned().collect()
    }

    fn postpone(&mut self, key: ObjectKey, now: Instant, chance: f64) {
        let (failures, until) = self.0.entry(key).or_insert((0, now));
        *until = now + backoff::wait(PASS_INTERVAL, POSTPONED_MAX, *failures, chance);
        *failures = failures.saturating_add(1);
    }

    /// Forgets those of a shard that are no longer due.
    fn retain(&mut self, shard: u8, due: &[ObjectKey]) {
        let due: BTreeSet<_> = due.iter().collect();
        self.0.retain(|key, _| shard_of(key) != shard || due.contains(key));
    }
}

/// Keeps the ledger and deletes what is due.
pub struct Keeper {
    client: Client,
    config_maps: Api<ConfigMap>,
    made: MadeSecrets,
    shards: BTreeMap<u8, Ledger>,
    postponed: Postponed,
}

impl Keeper {
    /// A keeper whose ledger is in `namespace`.
    pub fn new(client: Client, namespace: &str, made: MadeSecrets) -> Self {
        let config_maps = Api::namespaced(client.clone(), namespace);
        Self { client, config_maps, made, shards: BTreeMap::new(), postponed: Postponed::default() }
    }

    /// Compares once a minute, for ever. To be run by the leader, once it knows
    /// all Webhooks.
    pub async fn run(mut self, exists: impl Fn(&ObjectKey) -> bool) {
        loop {
            let mut by_shard: BTreeMap<u8, Vec<ObjectKey>> = BTreeMap::new();
            for key in self.made.take() {
                by_shard.entry(shard_of(&key)).or_default().push(key);
            }
            for shard in 0..SHARDS {
                let recorded = by_shard.remove(&shard).unwrap_or_default();
                if let Err(error) = self.pass(shard, &recorded, &exists).await {
                    tracing::warn!(shard, %error, "the ledger of made Secrets could not be kept; the next pass tries again");
                    recorded.iter().for_each(|key| self.made.record(key));
                }
            }
            tokio::time::sleep(PASS_INTERVAL).await;
        }
    }

    async fn pass(
        &mut self,
        shard: u8,
        recorded: &[ObjectKey],
        exists: impl Fn(&ObjectKey) -> bool,
    ) -> Result<(), kube::Error> {
        let before = match self.shards.get(&shard) {
            Some(ledger) => ledger.clone(),
            None => self.load(shard).await?,
        };
        let mut ledger = before.clone();
        let due = ledger.advance(recorded.iter().cloned(), exists, clock::now());
        self.delete_due(shard, &due, &mut ledger).await;
        if ledger != before {
            self.save(shard, &ledger).await?;
        }
        self.shards.insert(shard, ledger);
        Ok(())
    }

    /// One Secret that cannot be deleted holds back neither the others nor the ledger.
    async fn delete_due(&mut self, shard: u8, due: &[ObjectKey], ledger: &mut Ledger) {
        self.postponed.retain(shard, due);
        for key in self.postponed.turn(due, clock::monotonic()) {
            let deleted = delete(&self.client, &key).await;
            match &deleted {
                Ok(true) => {
                    ledger.forget(&key);
                    continue;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(namespace = %key.namespace, webhook = %key.name, %error, "the signing Secret of a Webhook that is gone could not be deleted; it is tried again");
                }
            }
            self.postponed.postpone(key, clock::monotonic(), clock::chance());
            if !matches!(deleted, Ok(_) | Err(kube::Error::Api(_))) {
                // No answer: each of the others would wait for its time-out too.
                break;
            }
        }
    }

    async fn load(&self, shard: u8) -> Result<Ledger, kube::Error> {
        let name = format!("{CONFIG_MAP_PREFIX}{shard}");
        let Some(stored) = self.config_maps.get_opt(&name).await? else { return Ok(Ledger::default()) };
        let text = stored.data.unwrap_or_default().remove(LEDGER_KEY).unwrap_or_default();
        serde_json::from_str(&text).map_err(kube::Error::SerdeError)
    }

    async fn save(&self, shard: u8, ledger: &Ledger) -> Result<(), kube::Error> {
        let name = format!("{CONFIG_MAP_PREFIX}{shard}");
        let text = serde_json::to_string(ledger).map_err(kube::Error::SerdeError)?;
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "labels": { "app.kubernetes.io/managed-by": FIELD_MANAGER } },
            "data": { LEDGER_KEY: text },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.config_maps.patch(&name, &parameters, &Patch::Apply(&body)).await.map(|_| ())
    }
}

/// Deletes the Secret of a Webhook that is gone. Tells whether the name may be
/// struck out: the Secret is gone, or it is not of our making.
async fn delete(client: &Client, key: &ObjectKey) -> Result<bool, kube::Error> {
    let webhooks: Api<Webhook> = Api::namespaced(client.clone(), &key.namespace);
    // The watch may lag; this asks the API server itself.
    if webhooks.get_metadata_opt(&key.name).await?.is_some() {
        return Ok(false);
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
    let name = signing_secret_name(&key.name);
    let Some(secret) = secrets.get_opt(&name).await? else { return Ok(true) };
    let label = secret.metadata.labels.as_ref().and_then(|labels| labels.get(WEBHOOK_LABEL));
    if secret.type_.as_deref() != Some(SIGNING_SECRET_TYPE) || label.map(String::as_str) != Some(&key.name) {
        return Ok(true);
    }
    let (uid, resource_version) = (secret.metadata.uid, secret.metadata.resource_version);
    let parameters =
        DeleteParams { preconditions: Some(Preconditions { uid, resource_version }), ..DeleteParams::default() };
    match secrets.delete(&name, &parameters).await {
        Ok(_) => {
            tracing::info!(namespace = %key.namespace, secret = name, "deleted the signing Secret of a Webhook that is gone for 24 hours");
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn shard_of(key: &ObjectKey) -> u8 {
    Sha256::digest(key.to_string().as_bytes())[0] % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("n", name)
    }

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(hours * 3600).unwrap()
    }

    /// One pass at an hour with these Webhooks in the cluster; tells what is due.
    fn pass(ledger: &mut Ledger, hour: i64, exist: &[&str]) -> Vec<String> {
        // As the ConfigMap keeps it.
        *ledger = serde_json::from_str(&serde_json::to_string(ledger).unwrap()).unwrap();
        let recorded = exist.iter().map(|name| key(name));
        let due = ledger.advance(recorded, |key| exist.contains(&&*key.name), at(hour));
        due.iter().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn a_secret_is_due_a_day_after_its_webhook_was_missed() {
        let mut ledger = Ledger::default();
        assert!(pass(&mut ledger, 0, &["a", "b"]).is_empty());
        assert!(pass(&mut ledger, 1, &["b"]).is_empty());
        assert!(pass(&mut ledger, 24, &["b"]).is_empty());
        assert_eq!(pass(&mut ledger, 25, &["b"]), ["a"]);
        assert_eq!(pass(&mut ledger, 26, &["b"]), ["a"], "due until it is struck out");
        ledger.forget(&key("a"));
        assert!(pass(&mut ledger, 99, &["b"]).is_empty());
    }

    #[test]
    fn a_webhook_that_comes_back_keeps_its_secret() {
        let mut ledger = Ledger::default();
        pass(&mut ledger, 0, &["a"]);
        pass(&mut ledger, 1, &[]);
        assert!(pass(&mut ledger, 24, &["a"]).is_empty());
        assert!(pass(&mut ledger, 26, &["a"]).is_empty());
        pass(&mut ledger, 30, &[]);
        assert!(pass(&mut ledger, 53, &[]).is_empty(), "the day begins anew");
        assert_eq!(pass(&mut ledger, 54, &[]), ["a"]);
    }

    #[test]
    fn a_settled_ledger_does_not_change() {
        let mut ledger = Ledger::default();
        pass(&mut ledger, 0, &["a", "b"]);
        pass(&mut ledger, 1, &["b"]);
        let before = ledger.clone();
        pass(&mut ledger, 2, &["b"]);
        assert_eq!(ledger, before);
    }

    #[test]
    fn a_full_shard_takes_no_more_names() {
        let mut ledger = Ledger::default();
        let names = (0..=SHARD_NAMES_MAX).map(|i| key(&format!("w{i}")));
        ledger.advance(names, |_| true, at(0));
        assert_eq!(ledger.len(), SHARD_NAMES_MAX);
    }

    type Calls = Arc<Mutex<Vec<String>>>;

    /// A keeper of one shard with the Secrets of these Webhooks due, before an API
    /// server that deletes every Secret but those of names that begin with `stuck`.
    fn keeper(names: impl Iterator<Item = String>) -> (Keeper, Calls) {
        let calls = Calls::default();
        let log = Arc::clone(&calls);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            let (code, body) = match method.as_str() {
                "GET" if path.contains("/secrets/") => (
                    200,
                    json!({ "metadata": { "name": name, "labels": { WEBHOOK_LABEL: name.trim_end_matches("-signing") } }, "type": SIGNING_SECRET_TYPE }),
                ),
                "GET" => (404, json!({ "kind": "Status", "code": 404, "message": "no", "reason": "NotFound" })),
                "DELETE" if name.starts_with("stuck") => {
                    (403, json!({ "kind": "Status", "code": 403, "message": "no", "reason": "Forbidden" }))
                }
                _ => (200, json!({ "metadata": { "name": name } })),
            };
            if method != http::Method::GET {
                log.lock().unwrap().push(format!("{method} {name}"));
            }
            let body = kube::client::Body::from(serde_json::to_vec(&body).unwrap());
            let response = http::Response::builder().status(code).body(body).unwrap();
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let mut keeper = Keeper::new(Client::new(service, "default"), "posthorn-system", MadeSecrets::default());
        let orphaned = names.map(|name| (name, at(0))).collect();
        let ledger = Ledger { orphaned: [("n".to_owned(), orphaned)].into(), ..Ledger::default() };
        keeper.shards.insert(0, ledger);
        (keeper, calls)
    }

    #[tokio::test]
    async fn a_secret_that_cannot_be_deleted_holds_back_neither_the_others_nor_the_ledger() {
        let (mut keeper, calls) = keeper(["stuck", "well"].map(String::from).into_iter());
        keeper.pass(0, &[], |_| false).await.unwrap();
        let expected = ["DELETE stuck-signing", "DELETE well-signing", "PATCH posthorn-made-secrets-0"];
        assert_eq!(*calls.lock().unwrap(), expected);
        assert!(keeper.shards[&0].has(&key("stuck")) && !keeper.shards[&0].has(&key("well")));
    }

    #[tokio::test]
    async fn secrets_that_cannot_be_deleted_make_room_for_those_behind_them() {
        let stuck = (0..DELETIONS_MAX).map(|i| format!("stuck{i}"));
        let (mut keeper, calls) = keeper(stuck.chain(["well".to_owned()]));
        keeper.pass(0, &[], |_| false).await.unwrap();
        assert_eq!(calls.lock().unwrap().len(), DELETIONS_MAX);
        keeper.pass(0, &[], |_| false).await.unwrap();
        let calls = calls.lock().unwrap();
        assert_eq!(calls[DELETIONS_MAX..], ["DELETE well-signing", "PATCH posthorn-made-secrets-0"]);
    }

    #[test]
    fn a_postponed_secret_is_tried_again_after_a_growing_wait() {
        let (mut postponed, due, start) = (Postponed::default(), [key("a")], clock::monotonic());
        let shard = shard_of(&due[0]);
        postponed.postpone(due[0].clone(), start, 0.0);
        postponed.retain(shard, &due);
        assert!(postponed.turn(&due, start + PASS_INTERVAL - Duration::from_nanos(1)).is_empty());
        assert_eq!(postponed.turn(&due, start + PASS_INTERVAL), due);
        postponed.postpone(due[0].clone(), start, 0.0);
        assert!(postponed.turn(&due, start + PASS_INTERVAL).is_empty());
        (0..99).for_each(|_| postponed.postpone(due[0].clone(), start, 0.0));
        assert_eq!(postponed.turn(&due, start + POSTPONED_MAX), due);
        postponed.retain(shard, &[]);
        assert!(postponed.0.is_empty());
    }
}
