//! Who calls: bearer tokens of ServiceAccounts, checked by the API server.
//!
//! A call to the internal API carries a projected token of audience
//! [`INTERNAL_AUDIENCE`]; a publisher's ([`publish`]) has an audience of its own.
//! What cannot be one of ours is refused from its own
//! claims, without a call to the API server; claims are only ever believed
//! *against* the caller. The rest goes to TokenReview, and the answer is kept
//! for a while, keyed by the hash of the token. While the API server is away,
//! callers that it vouched for lately are let in; others are told to come back,
//! never that they are refused.

mod authenticate;
mod cache;
mod claims;
mod memory;
pub mod publish;
mod review;

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use k8s_openapi::jiff::Timestamp;

pub use authenticate::REVIEWS_MAX;
pub use cache::{NEGATIVE_TTL, POSITIVE_TTL, REFRESH_AFTER};
pub use claims::{TOKEN_BYTES_MAX, issuer};
pub use memory::{AWAY_PATIENCE, REVIEW_TIMEOUT};
pub use review::{
    Authorizer, Caller, KubeAuthorizer, KubeTokenReviewer, PublishRight, Review, ReviewError, TokenReviewer,
};

use authenticate::Authenticator;
use claims::Screened;

use crate::{
    runtime::{problem::Problem, reachability::Reachability, secret::SecretString},
    wire::INTERNAL_AUDIENCE,
};

/// Time since the last review for which a known caller of the internal API is
/// let in while the API server is away.
pub const GRACE: Duration = Duration::from_secs(5 * 60);
/// Tokens of callers of the internal API that are remembered at most.
pub const ENTRIES_MAX: usize = 1_024;

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

/// Decides who may call the internal API. Cheap to clone; clones share their
/// memory.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    tokens: Authenticator,
    allowed: Vec<String>,
}

impl Access {
    /// Lets in these ServiceAccounts.
    pub fn new(reviewer: Arc<dyn TokenReviewer>, allowed: &[ServiceAccount]) -> Self {
        let allowed = allowed.iter().map(ServiceAccount::username).collect();
        // The one caller has its own time-out, and grace.
        let tokens = Authenticator::new(reviewer, INTERNAL_AUDIENCE, ENTRIES_MAX, Reachability::default());
        Self { inner: Arc::new(Inner { tokens, allowed }) }
    }

    /// Whether the bearer of this token may call.
    ///
    /// # Flow
    /// The cache → the token's own claims → one TokenReview, shared by all who
    /// ask about the same token meanwhile.
    ///
    /// # Errors
    /// [`AccessError`]: why not.
    pub async fn check(&self, token: &SecretString, now: Timestamp) -> Result<(), AccessError> {
        let Inner { tokens, allowed } = &*self.inner;
        let is_worth_a_review = |screened: &Screened| {
            if allowed.contains(&screened.subject) { Ok(()) } else { Err(AccessError::NotAllowed) }
        };
        let bearer = tokens.authenticate(token.expose(), GRACE, now, is_worth_a_review).await?;
        if allowed.contains(&bearer.caller.username) { Ok(()) } else { Err(AccessError::NotAllowed) }
    }
}
