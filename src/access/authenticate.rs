//! Whose a token is, for one audience.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{
    AccessError,
    cache::{Key, Verdict},
    claims::{self, Screened, TOKEN_BYTES_MAX},
    memory::{Away, Memory, Question},
    review::{Caller, TokenReviewer},
};
use crate::runtime::{reachability::Reachability, secret::SecretString};

/// Reviews of tokens under way at a time; the rest waits.
pub const REVIEWS_MAX: usize = 8;

/// Who brought a token that is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) caller: Caller,
    pub(super) token: Key,
    pub(super) expires: Timestamp,
}

/// Reviews tokens of one audience.
pub(super) struct Authenticator {
    reviewer: Arc<dyn TokenReviewer>,
    audience: &'static str,
    memory: Arc<Memory<Arc<Bearer>>>,
}

impl Authenticator {
    /// Remembers so many tokens.
    pub(super) fn new(
        reviewer: Arc<dyn TokenReviewer>,
        audience: &'static str,
        entries_max: usize,
        api_server: Reachability,
    ) -> Self {
        Self { reviewer, audience, memory: Memory::new(entries_max, REVIEWS_MAX, api_server) }
    }

    /// Who brings this token. `screen` may refuse it by its claims, before the
    /// API server is asked.
    pub(super) async fn authenticate(
        &self,
        token: &str,
        grace: Duration,
        now: Timestamp,
        screen: impl FnOnce(&Screened) -> Result<(), AccessError>,
    ) -> Result<Arc<Bearer>, AccessError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AccessError::NoUsableToken);
        }
        let key: Key = Sha256::digest(token).into();
        let verdict = self.memory.decide(key, grace, now, || {
            let screened = claims::screen(token, self.audience, now)?;
            screen(&screened)?;
            Ok(self.question(SecretString::from(token), key, screened.expires))
        });
        match verdict.await? {
            Ok(Verdict::Yes(bearer)) => Ok(bearer),
            Ok(Verdict::No) => Err(AccessError::Refused),
            Err(Away) => Err(AccessError::Unavailable),
        }
    }

    fn question(&self, token: SecretString, key: Key, expires: Timestamp) -> Question<Arc<Bearer>> {
        let (reviewer, audience) = (Arc::clone(&self.reviewer), self.audience);
        let ask = async move {
            let review = reviewer.review(&token, audience).await?;
            Ok(if review.is_for(audience) {
                Verdict::Yes(Arc::new(Bearer { caller: review.caller, token: key, expires }))
            } else {
                Verdict::No
            })
        };
        Question { expires, ask: Box::pin(ask) }
    }
}
