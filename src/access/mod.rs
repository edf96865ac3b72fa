//! Who calls: bearer tokens of ServiceAccounts, checked by the API server.
//!
//! A call to the internal API carries a projected token of audience
//! [`INTERNAL_AUDIENCE`]. What cannot be one of ours is refused from its own
//! claims, without a call to the API server; claims are only ever believed
//! *against* the caller. The rest goes to TokenReview, and the answer is kept
//! for a while, keyed by the hash of the token. While the API server is away,
//! callers that it vouched for lately are let in; others are told to come back,
//! never that they are refused.

mod cache;
mod claims;
mod review;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::timeout};

pub use cache::{ENTRIES_MAX, GRACE, NEGATIVE_TTL, POSITIVE_TTL};
pub use claims::TOKEN_BYTES_MAX;
pub use review::{KubeTokenReviewer, Review, ReviewError, TokenReviewer};

use cache::{Cache, Lookup, TokenHash, Verdict};

use crate::{
    runtime::{problem::Problem, secret::SecretString},
    wire::INTERNAL_AUDIENCE,
};

/// Reviews under way at a time; the rest waits.
pub const REVIEWS_MAX: usize = 8;
/// Time for a review, with the wait for its turn.
pub const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// A ServiceAccount that may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServiceAccount {
    /// The name under which the API server knows it.
    pub fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// The text is not of the form `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name a ServiceAccount: write NAMESPACE/NAME")]
pub struct ParseServiceAccountError(String);

impl std::str::FromStr for ServiceAccount {
    type Err = ParseServiceAccountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |part: &str| !part.is_empty() && !part.contains(['/', ':']);
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(ParseServiceAccountError(text.to_owned())),
        }
    }
}

/// Why a caller is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AccessError {
    /// No token, or nothing that could be one of ours.
    #[error("the request has no bearer token of audience {INTERNAL_AUDIENCE} that is still valid")]
    NoUsableToken,
    /// The API server does not know the token.
    #[error("the API server does not accept the token")]
    Refused,
    /// A real caller, but not one of ours.
    #[error("the caller is not one that may use this API")]
    NotAllowed,
    /// It cannot be told now.
    #[error("the API server cannot be asked about the token now; try again")]
    Unavailable,
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        let status = match error {
            AccessError::NoUsableToken | AccessError::Refused => StatusCode::UNAUTHORIZED,
            AccessError::NotAllowed => StatusCode::FORBIDDEN,
            AccessError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

type Reviewing = Shared<BoxFuture<'static, Result<Verdict, AccessError>>>;

/// Decides who may call. Cheap to clone; clones share their memory.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    reviewer: Arc<dyn TokenReviewer>,
    allowed: Vec<String>,
    cache: Mutex<Cache<Reviewing>>,
    turns: Semaphore,
}

impl Access {
    /// Lets in these ServiceAccounts.
    pub fn new(reviewer: Arc<dyn TokenReviewer>, allowed: &[ServiceAccount]) -> Self {
        let allowed = allowed.iter().map(ServiceAccount::username).collect();
        let turns = Semaphore::new(REVIEWS_MAX);
        Self { inner: Arc::new(Inner { reviewer, allowed, cache: Mutex::default(), turns }) }
    }

    /// Whether the bearer of this token may call.
    ///
    /// # Flow
    /// The token's own claims → the cache → one TokenReview, shared by all who
    /// ask about the same token meanwhile.
    ///
    /// # Errors
    /// [`AccessError`]: why not.
    pub async fn check(&self, token: &SecretString, now: Timestamp) -> Result<(), AccessError> {
        let expires = claims::screen(token.expose(), &self.inner.allowed, now)?;
        let hash: TokenHash = Sha256::digest(token.expose()).into();
        // A statement of its own: in a match the lock would be held throughout.
        let known = self.inner.cache().lookup(&hash, now);
        if let Lookup::Decided(verdict) = known {
            return verdict.into_result();
        }
        match self.start_review(hash, token.clone(), expires, now).await {
            Ok(verdict) => verdict.into_result(),
            Err(error) if self.inner.cache().has_grace(&hash, now) => {
                tracing::debug!(%error, "a caller is let in that the API server knew lately");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Joins the review of this token, or begins one. It ends even if nobody waits
    /// for it any more.
    fn start_review(&self, hash: TokenHash, token: SecretString, expires: Timestamp, now: Timestamp) -> Reviewing {
        let inner = Arc::clone(&self.inner);
        self.inner.cache().join_review(hash, || {
            let review = tokio::spawn(async move {
                let outcome = inner.review(&token).await;
                inner.cache().end_review(hash, outcome.ok(), expires, now);
                outcome
            });
            // The task neither panics nor is aborted, but while the process ends.
            review.map(|ended| ended.unwrap_or(Err(AccessError::Unavailable))).boxed().shared()
        })
    }
}

impl Inner {
    async fn review(&self, token: &SecretString) -> Result<Verdict, AccessError> {
        let ask = async {
            // The semaphore is never closed.
            let _turn = self.turns.acquire().await;
            self.reviewer.review(token, INTERNAL_AUDIENCE).await
        };
        match timeout(REVIEW_TIMEOUT, ask).await {
            Ok(Ok(review)) => Ok(self.judge(&review)),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a token could not be reviewed");
                Err(AccessError::Unavailable)
            }
            Err(_elapsed) => {
                tracing::warn!("the API server did not review a token within {REVIEW_TIMEOUT:?}");
                Err(AccessError::Unavailable)
            }
        }
    }

    /// `authenticated` alone is not enough: an API server that knows nothing of
    /// audiences says it of every valid token.
    fn judge(&self, review: &Review) -> Verdict {
        if !review.authenticated || !review.audiences.iter().any(|audience| audience == INTERNAL_AUDIENCE) {
            Verdict::Refused
        } else if self.allowed.contains(&review.username) {
            Verdict::Allowed
        } else {
            Verdict::NotAllowed
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache<Reviewing>> {
        // A panic elsewhere leaves the cache whole: its methods do not panic.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verdict {
    fn into_result(self) -> Result<(), AccessError> {
        match self {
            Self::Allowed => Ok(()),
            Self::Refused => Err(AccessError::Refused),
            Self::NotAllowed => Err(AccessError::NotAllowed),
        }
    }
}
