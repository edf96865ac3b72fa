//! Asks the API server once for all who want to know the same, and remembers
//! what it said.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use k8s_openapi::jiff::Timestamp;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    cache::{Cache, Key, Lookup, Verdict},
    review::ReviewError,
};
use crate::runtime::reachability::Reachability;

/// Time for a review, with the wait for its turn.
pub const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a caller waits for a review while the API server is known to be away;
/// the review itself goes on, and tells when it is back.
pub const AWAY_PATIENCE: Duration = Duration::from_secs(1);

/// Nobody can be asked, and nothing holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Away;

type Reviewing<V> = Shared<BoxFuture<'static, Result<Verdict<V>, Away>>>;

/// A question: how long its answer can hold at most, and how it is asked.
pub(super) struct Question<V> {
    pub(super) expires: Timestamp,
    pub(super) ask: BoxFuture<'static, Result<Verdict<V>, ReviewError>>,
}

/// Verdicts of one sort. Shared behind an `Arc`.
pub(super) struct Memory<V> {
    cache: Mutex<Cache<V, Reviewing<V>>>,
    turns: Semaphore,
    api_server: Reachability,
}

impl<V: Clone + Send + Sync + 'static> Memory<V> {
    /// Remembers so many verdicts and asks so many questions at a time.
    pub(super) fn new(entries_max: usize, reviews_max: usize, api_server: Reachability) -> Arc<Self> {
        Arc::new(Self { cache: Mutex::new(Cache::new(entries_max)), turns: Semaphore::new(reviews_max), api_server })
    }

    /// The verdict on `key`.
    ///
    /// # Flow
    /// The cache → one review, shared by all who ask the same meanwhile → what
    /// held within `grace`, if there is no verdict.
    ///
    /// # Errors
    /// The outer one is that of `question`: what need not be asked. The inner one
    /// says that nobody could be asked.
    pub(super) async fn decide<E>(
        self: &Arc<Self>,
        key: Key,
        grace: Duration,
        now: Timestamp,
        question: impl FnOnce() -> Result<Question<V>, E>,
    ) -> Result<Result<Verdict<V>, Away>, E> {
        // A statement of its own: in a match the lock would be held throughout.
        let known = self.cache().lookup(&key, grace, now);
        match known {
            Lookup::Decided(verdict) => Ok(Ok(verdict)),
            Lookup::Aging(value) | Lookup::Grace(value) => {
                if let Ok(question) = question() {
                    // It runs by itself; who waits is not this caller.
                    drop(self.start(key, now, question));
                }
                Ok(Ok(Verdict::Yes(value)))
            }
            Lookup::Undecided => {
                let review = self.start(key, now, question()?);
                let reviewed = if self.is_away() {
                    timeout(AWAY_PATIENCE, review).await.unwrap_or(Err(Away))
                } else {
                    review.await
                };
                Ok(match reviewed {
                    Ok(verdict) => Ok(verdict),
                    Err(Away) => self.cache().graced(&key, grace, now).map(Verdict::Yes).ok_or(Away),
                })
            }
        }
    }

    /// The watches know of a server that refuses before anybody was reviewed, the
    /// last review of one that hangs.
    fn is_away(&self) -> bool {
        self.api_server.is_away() || self.cache().is_away()
    }

    /// Joins the review of this key, or begins one. It ends even if nobody waits
    /// for it any more.
    fn start(self: &Arc<Self>, key: Key, now: Timestamp, question: Question<V>) -> Reviewing<V> {
        let memory = Arc::clone(self);
        self.cache().join_review(key, || {
            let Question { expires, ask } = question;
            let review = tokio::spawn(async move {
                let outcome = memory.ask(ask).await;
                memory.cache().end_review(key, outcome.clone().ok(), expires, now);
                outcome
            });
            // The task neither panics nor is aborted, but while the process ends.
            review.map(|ended| ended.unwrap_or(Err(Away))).boxed().shared()
        })
    }

    /// Logs the first failure of an outage: every caller that is not known asks
    /// again and again.
    async fn ask(&self, ask: BoxFuture<'static, Result<Verdict<V>, ReviewError>>) -> Result<Verdict<V>, Away> {
        let is_told = self.cache().is_away();
        let in_turn = async {
            // The semaphore is never closed.
            let _turn = self.turns.acquire().await;
            ask.await
        };
        match timeout(REVIEW_TIMEOUT, in_turn).await {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(error)) => {
                if !is_told {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a caller could not be reviewed");
                }
                Err(Away)
            }
            Err(_elapsed) => {
                if !is_told {
                    tracing::warn!("the API server did not review a caller within {REVIEW_TIMEOUT:?}");
                }
                Err(Away)
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache<V, Reviewing<V>>> {
        // A panic elsewhere leaves the cache whole: its methods do not panic.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
