//! Who may publish events where.
//!
//! A publisher brings a ServiceAccount token of audience [`PUBLISH_AUDIENCE`].
//! Its right is `create` on `eventtypes/events` of the namespace: for all types,
//! or with a type as the name of the resource. Both answers are remembered for a
//! minute at most and never past the end of the token.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{
    AccessError,
    authenticate::{Authenticator, Bearer},
    cache::{Key, Verdict},
    memory::{Away, Memory, Question},
    review::{Authorizer, PublishRight, TokenReviewer},
};
use crate::{runtime::reachability::Reachability, wire::PUBLISH_AUDIENCE};

/// Tokens of publishers that are remembered at most.
pub const TOKENS_MAX: usize = 4_096;
/// Rights that are remembered at most.
pub const RIGHTS_MAX: usize = 16_384;
/// Reviews of rights under way at a time; the rest waits.
pub const RIGHT_REVIEWS_MAX: usize = 16;
/// How often a token of an issuer that is not known is reviewed all the same.
pub const ISSUER_PAUSE: Duration = Duration::from_secs(10);
/// Issuers that are known at most.
const ISSUERS_MAX: usize = 8;

/// Decides who may publish. Cheap to clone; clones share their memory.
#[derive(Clone)]
pub struct PublishAccess {
    inner: Arc<Inner>,
}

struct Inner {
    tokens: Authenticator,
    authorizer: Arc<dyn Authorizer>,
    rights: Arc<Memory<()>>,
    issuers: Mutex<Issuers>,
}

/// A publisher whose token is valid.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Bearer>);

impl Publisher {
    /// The name under which the API server knows it.
    pub fn username(&self) -> &str {
        &self.0.caller.username
    }
}

impl PublishAccess {
    /// `own_issuer` is that of the pod's own token ([`super::issuer`]): tokens of
    /// others are hardly ever reviewed. Without it, all are.
    /// While `api_server` is away, callers that are not known wait for
    /// [`AWAY_PATIENCE`](super::AWAY_PATIENCE) at most.
    pub fn new(
        reviewer: Arc<dyn TokenReviewer>,
        authorizer: Arc<dyn Authorizer>,
        own_issuer: Option<String>,
        api_server: Reachability,
    ) -> Self {
        let tokens = Authenticator::new(reviewer, PUBLISH_AUDIENCE, TOKENS_MAX, api_server.clone());
        let rights = Memory::new(RIGHTS_MAX, RIGHT_REVIEWS_MAX, api_server);
        let issuers = Mutex::new(Issuers { known: own_issuer.into_iter().collect(), tried: None });
        Self { inner: Arc::new(Inner { tokens, authorizer, rights, issuers }) }
    }

    /// Who brings this token. A known publisher is let in for `grace` after the
    /// last review while the API server is away.
    ///
    /// # Errors
    /// [`AccessError`], but [`AccessError::NotAllowed`].
    pub async fn authenticate(&self, token: &str, grace: Duration, now: Timestamp) -> Result<Publisher, AccessError> {
        let mut unknown = None;
        let screen = |screened: &super::claims::Screened| {
            let admission = self.issuers(|issuers| issuers.admit(&screened.issuer, now));
            match admission {
                Admission::Known => Ok(()),
                Admission::Trial => {
                    unknown = Some(screened.issuer.clone());
                    Ok(())
                }
                Admission::Refused => Err(AccessError::NoUsableToken),
            }
        };
        let bearer = self.inner.tokens.authenticate(token, grace, now, screen).await?;
        if let Some(issuer) = unknown {
            self.issuers(|issuers| issuers.learn(issuer));
        }
        Ok(Publisher(bearer))
    }

    /// Whether the publisher may publish events of a type in a namespace; of all
    /// types if none is given.
    ///
    /// # Errors
    /// [`AccessError::Unavailable`]: it cannot be told now.
    pub async fn may_publish(
        &self,
        publisher: &Publisher,
        namespace: &str,
        event_type: Option<&str>,
        grace: Duration,
        now: Timestamp,
    ) -> Result<bool, AccessError> {
        let key = right_key(&publisher.0.token, namespace, event_type);
        let verdict = self.inner.rights.decide(key, grace, now, || {
            let right = PublishRight { namespace: namespace.to_owned(), event_type: event_type.map(ToOwned::to_owned) };
            Ok::<_, AccessError>(self.question(publisher, right))
        });
        match verdict.await? {
            Ok(Verdict::Yes(())) => Ok(true),
            Ok(Verdict::No) => Ok(false),
            Err(Away) => Err(AccessError::Unavailable),
        }
    }

    fn question(&self, publisher: &Publisher, right: PublishRight) -> Question<()> {
        let (authorizer, bearer) = (Arc::clone(&self.inner.authorizer), Arc::clone(&publisher.0));
        let expires = bearer.expires;
        let ask = async move {
            let allowed = authorizer.may_publish(&bearer.caller, &right).await?;
            Ok(if allowed { Verdict::Yes(()) } else { Verdict::No })
        };
        Question { expires, ask: Box::pin(ask) }
    }

    fn issuers<R>(&self, look: impl FnOnce(&mut Issuers) -> R) -> R {
        // Its methods do not panic.
        look(&mut self.inner.issuers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The right belongs to the token, so it ends with it. Namespaces are no longer
/// than 63 bytes and have no zero in them.
fn right_key(token: &Key, namespace: &str, event_type: Option<&str>) -> Key {
    let mut hash = Sha256::new();
    hash.update(token);
    hash.update(namespace);
    if let Some(event_type) = event_type {
        hash.update([0]);
        hash.update(event_type);
    }
    hash.finalize().into()
}

/// Whose tokens are worth a review.
///
/// A cluster changes its issuer while tokens of the old one live on, and the
/// pod's own may be the older one. So now and then one token of an unknown
/// issuer is reviewed; if it is valid, the issuer is known.
#[derive(Debug)]
struct Issuers {
    known: Vec<String>,
    tried: Option<Timestamp>,
}

#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Known,
    Trial,
    Refused,
}

impl Issuers {
    fn admit(&mut self, issuer: &str, now: Timestamp) -> Admission {
        if self.known.is_empty() || self.known.iter().any(|known| known == issuer) {
            return Admission::Known;
        }
        // A clock that was set back does not close the door for long.
        let is_too_soon = self.tried.is_some_and(|tried| now.duration_since(tried).unsigned_abs() < ISSUER_PAUSE);
        if is_too_soon {
            return Admission::Refused;
        }
        self.tried = Some(now);
        Admission::Trial
    }

    fn learn(&mut self, issuer: String) {
        if self.known.len() < ISSUERS_MAX && !self.known.contains(&issuer) {
            self.known.push(issuer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn tokens_of_unknown_issuers_are_tried_now_and_then_and_a_valid_one_makes_its_issuer_known() {
        let mut issuers = Issuers { known: vec!["own".to_owned()], tried: None };
        assert_eq!(issuers.admit("own", at(0)), Admission::Known);
        assert_eq!(issuers.admit("new", at(0)), Admission::Trial);
        assert_eq!(issuers.admit("new", at(9)), Admission::Refused);
        assert_eq!(issuers.admit("evil", at(9)), Admission::Refused);
        assert_eq!(issuers.admit("evil", at(10)), Admission::Trial);
        issuers.learn("new".to_owned());
        assert_eq!(issuers.admit("new", at(11)), Admission::Known);
        (0..2 * ISSUERS_MAX).for_each(|number| issuers.learn(number.to_string()));
        assert_eq!(issuers.known.len(), ISSUERS_MAX);
    }

    #[test]
    fn rights_of_other_tokens_namespaces_and_types_are_other_rights() {
        let (one, other) = ([1; 32], [2; 32]);
        let keys = [
            right_key(&one, "a", None),
            right_key(&one, "a", Some("")),
            right_key(&one, "ab", None),
            right_key(&one, "a", Some("b")),
            right_key(&other, "a", None),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
