//! What the controller remembers of a Webhook between two reconciles, in memory
//! only. Losing it costs a read and a probe, never the truth.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use tokio::task::AbortHandle;

use super::material::Reading;
use crate::{
    api::{
        WebhookStatus,
        webhook::{KeyStatus, VerificationStatus},
    },
    controller::key::ObjectKey,
    verify::challenge::Verdict,
};

/// The desk of one Webhook.
#[derive(Default)]
pub struct Desk {
    uid: Box<str>,
    /// What its Secrets said when they were read last.
    pub reading: Option<KeptReading>,
    /// The probe under way, or the outcome that no status tells yet.
    pub probe: Option<Probe>,
    /// The status that was written and that the watch has not brought back yet.
    pub written: Option<Written<WebhookStatus>>,
}

/// What the Secrets said, and for how long that is taken for true.
#[derive(Clone)]
pub struct KeptReading {
    /// What they said.
    pub reading: Arc<Reading>,
    /// Read again after this.
    pub until: Instant,
    /// When they were read.
    pub time: Timestamp,
    /// Read again if this differs: generation and annotations.
    pub occasion: String,
    /// Readings in a row that told of a problem.
    pub failures: u32,
}

/// What a probe began with. Its verdict speaks of that and of nothing newer.
#[derive(Clone, Debug, PartialEq)]
pub struct Begun {
    /// Generation of the spec.
    pub generation: i64,
    /// The annotation `posthorn.dev/verify-requested-at`.
    pub requested: Option<String>,
    /// The signing keys.
    pub keys: Vec<KeyStatus>,
}

/// A probe of one endpoint.
pub enum Probe {
    /// On its way.
    Running {
        /// Which endpoint and method: their fingerprint.
        id: String,
        /// Since when.
        since: Instant,
        /// Probes before this one that no pod took.
        no_pod: u32,
        /// Ends the probe.
        task: AbortHandle,
    },
    /// The endpoint was asked.
    Judged {
        /// As above.
        id: String,
        /// What its answer means.
        verdict: Verdict,
        /// What it began with.
        begun: Begun,
    },
    /// No pod took it.
    NoPod {
        /// As above.
        id: String,
        /// Probes in a row that no pod took.
        failures: u32,
        /// When to try again.
        retry_at: Instant,
    },
}

/// A status that was written.
#[derive(Clone)]
pub struct Written<S> {
    /// The version of the object that the decision saw.
    pub seen: Option<String>,
    /// The version that the write made.
    pub made: Option<String>,
    /// The status.
    pub status: S,
}

impl<S> Written<S> {
    /// Whether an object of this version is older than the write: the watch lags,
    /// and to decide from its status would do everything a second time.
    pub fn is_ahead_of(&self, version: Option<&str>) -> bool {
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
        match (number(version), number(self.made.as_deref())) {
            (Some(version), Some(made)) => version < made,
            _ => version == self.seen.as_deref(),
        }
    }
}

impl Desk {
    /// Takes in the outcome of a probe. After a wrong answer, such as 401, the
    /// Secrets are read anew at once: one of them may have changed.
    pub fn end_probe(&mut self, outcome: Probe) {
        if let Probe::Judged { verdict: Verdict::NotWanted { .. }, .. } = outcome {
            self.reading = None;
        }
        self.probe = Some(outcome);
    }
}

impl KeptReading {
    /// Whether what was read may stand for the Secrets. A check that follows a
    /// failed one is made with what they say when it is due.
    pub fn is_fresh(&self, verification: Option<&VerificationStatus>, instant: Instant, now: Timestamp) -> bool {
        let failing = verification.filter(|verification| verification.attempts.is_some_and(|attempts| attempts > 0));
        let due = failing.and_then(|failing| failing.next_time.as_ref()).filter(|due| due.0 <= now);
        self.until > instant && due.is_none_or(|due| self.time >= due.0)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Self::Running { task, .. } = self {
            task.abort();
        }
    }
}

/// The desks of all Webhooks.
#[derive(Clone, Default)]
pub struct Desks(Arc<Mutex<HashMap<ObjectKey, Desk>>>);

impl Desks {
    /// Works at the desk of this Webhook; another Webhook of the same name before
    /// it left nothing there.
    pub fn at<T>(&self, key: &ObjectKey, uid: &str, work: impl FnOnce(&mut Desk) -> T) -> T {
        let mut desks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let desk = desks.entry(key.clone()).or_default();
        if *desk.uid != *uid {
            *desk = Desk { uid: uid.into(), ..Desk::default() };
        }
        work(desk)
    }

    /// Works at the desk of this Webhook if there is one.
    pub fn at_existing(&self, key: &ObjectKey, uid: &str, work: impl FnOnce(&mut Desk)) {
        let mut desks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(desk) = desks.get_mut(key).filter(|desk| *desk.uid == *uid) {
            work(desk);
        }
    }

    /// Clears the desk of a Webhook that is gone, and ends its probe.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Clears the desks of Webhooks that do not exist: a reconcile that was under
    /// way when its Webhook went makes the desk anew after [`Self::forget`].
    pub fn sweep(&self, exists: impl Fn(&ObjectKey) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| exists(key));
    }
}

/// Shortest time between two readings of the same Secrets.
pub const SECRETS_FRESH: Duration = Duration::from_secs(5 * 60);
/// Readings a second at most while nothing else asks for them.
pub const READINGS_PER_SECOND: u64 = 20;

/// For how long a reading is taken for true. With many Webhooks longer: the
/// readings of settled Webhooks together keep to [`READINGS_PER_SECOND`].
pub fn reading_lasts(webhooks: usize) -> Duration {
    let webhooks = u64::try_from(webhooks).unwrap_or(u64::MAX);
    SECRETS_FRESH.max(Duration::from_secs(webhooks / READINGS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::secrets::Material;
    use crate::{api::Reason, dialect::SigningKeys, runtime::clock};

    const READ_AT: i64 = 1_800_000_000;

    fn kept(lasts: Duration) -> KeptReading {
        let material = Material { keys: SigningKeys::none(), url: None, headers: Vec::new(), tls: None };
        KeptReading {
            reading: Arc::new(Reading { material: Ok(material), url: None, secret_name: None }),
            until: clock::monotonic() + lasts,
            time: Timestamp::from_second(READ_AT).unwrap(),
            occasion: String::new(),
            failures: 0,
        }
    }

    #[test]
    fn after_a_wrong_answer_the_secrets_are_read_anew_and_after_a_right_one_not() {
        let wrong = Verdict::NotWanted { reason: Reason::UnexpectedStatus, message: "The answer was 401.".into() };
        for (verdict, keeps) in [(Verdict::Wanted, true), (wrong, false)] {
            let mut desk = Desk { reading: Some(kept(SECRETS_FRESH)), ..Desk::default() };
            let begun = Begun { generation: 1, requested: None, keys: Vec::new() };
            desk.end_probe(Probe::Judged { id: "id".into(), verdict, begun });
            assert_eq!((desk.reading.is_some(), desk.probe.is_some()), (keeps, true));
        }
    }

    #[test]
    fn a_check_after_a_failed_one_reads_the_secrets_once_more_when_it_is_due() {
        let at = |seconds: i64| Timestamp::from_second(READ_AT + seconds).unwrap();
        let is_fresh = |attempts, due: i64, now: i64| {
            let next_time = Some(Time(at(due)));
            let verification = VerificationStatus { attempts, next_time, ..VerificationStatus::default() };
            kept(SECRETS_FRESH).is_fresh(Some(&verification), clock::monotonic(), at(now))
        };
        assert!(is_fresh(Some(1), 60, 59), "not due yet");
        assert!(!is_fresh(Some(1), 60, 60), "due, and read before that");
        assert!(is_fresh(Some(1), 0, 60), "read when it was due");
        assert!(is_fresh(None, 60, 60), "the last check was right");
        assert!(!kept(Duration::ZERO).is_fresh(None, clock::monotonic(), at(0)), "too old for anything");
    }

    fn written(seen: &str, made: &str) -> Written<WebhookStatus> {
        Written { seen: Some(seen.into()), made: Some(made.into()), status: WebhookStatus::default() }
    }

    #[test]
    fn a_written_status_counts_until_the_watch_brings_it_back() {
        let write = written("7", "12");
        for (version, ahead) in [("7", true), ("9", true), ("12", false), ("13", false)] {
            assert_eq!(write.is_ahead_of(Some(version)), ahead, "{version}");
        }
    }

    #[test]
    fn versions_that_are_no_numbers_are_only_compared_with_what_was_seen() {
        let write = written("a", "b");
        assert!(write.is_ahead_of(Some("a")));
        assert!(!write.is_ahead_of(Some("c")));
    }

    #[test]
    fn another_webhook_of_the_same_name_finds_an_empty_desk() {
        let (desks, key) = (Desks::default(), ObjectKey::new("n", "a"));
        desks.at(&key, "1", |desk| desk.written = Some(written("1", "2")));
        assert!(desks.at(&key, "1", |desk| desk.written.is_some()));
        assert!(desks.at(&key, "2", |desk| desk.written.is_none()));
    }

    #[test]
    fn a_desk_that_a_late_reconcile_made_anew_is_swept_and_others_stay() {
        let (desks, gone, here) = (Desks::default(), ObjectKey::new("n", "gone"), ObjectKey::new("n", "here"));
        desks.forget(&gone);
        for key in [&gone, &here] {
            desks.at(key, "1", |desk| desk.written = Some(written("1", "2")));
        }
        desks.sweep(|key| *key == here);
        assert_eq!(desks.0.lock().unwrap().keys().collect::<Vec<_>>(), [&here]);
    }

    #[test]
    fn ten_thousand_webhooks_read_their_secrets_twenty_times_a_second() {
        assert_eq!(reading_lasts(10).as_secs(), 300);
        assert_eq!(reading_lasts(6_000).as_secs(), 300);
        assert_eq!(reading_lasts(10_000).as_secs(), 500);
    }
}
