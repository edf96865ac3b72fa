//! How an attempt ends without an answer. Pure but for the operator's log.

use std::error::Error;

use super::gate::{STARTING_RETRY, hold};
use crate::{
    api::Reason,
    dialect::Unrenderable,
    dispatch::{AttemptEnd, FailureKind, Hold},
    egress::{EgressError, Failure, ServiceError},
};

/// Why no request was sent, or why it got no answer.
#[derive(Clone, Debug)]
pub(super) enum NotMade {
    /// The Webhook is held.
    Held(Hold),
    /// An attempt that failed.
    Failed { reason: Reason, kind: FailureKind, message: String },
    /// The event has no form that the Webhook wants.
    Unrenderable(Unrenderable),
}

impl NotMade {
    /// How the attempt ended, and what is told of it in the history.
    pub(super) fn into_end(self) -> (AttemptEnd, Option<String>) {
        match self {
            Self::Held(hold) => (AttemptEnd::NotSent(hold), None),
            Self::Failed { reason, kind, message } => (AttemptEnd::Failed { reason, kind }, Some(message)),
            Self::Unrenderable(error) => (AttemptEnd::Unrenderable, Some(error.to_string())),
        }
    }
}

impl From<Hold> for NotMade {
    fn from(hold: Hold) -> Self {
        Self::Held(hold)
    }
}

impl From<&EgressError> for NotMade {
    fn from(error: &EgressError) -> Self {
        Self::Failed { reason: error.reason(), kind: kind(error.failure()), message: error.message() }
    }
}

/// What a failure tells of the endpoint. What is not on the way to it or said by
/// it does not count against it, and neither does what depends on the event.
const fn kind(failure: Failure) -> FailureKind {
    match failure {
        Failure::NameNotResolved
        | Failure::TooManyAddresses
        | Failure::ConnectTimedOut
        | Failure::Unreachable
        | Failure::Refused
        | Failure::Certificate(_)
        | Failure::Tls
        | Failure::TlsTimedOut
        | Failure::AnswerTimedOut(_)
        | Failure::BodyTimedOut(_)
        | Failure::Closed
        | Failure::Protocol => FailureKind::Endpoint,
        Failure::NotAllowed | Failure::HeadersTooLong | Failure::Header | Failure::Internal => FailureKind::Other,
    }
}

impl From<&ServiceError> for NotMade {
    fn from(error: &ServiceError) -> Self {
        let (reason, message) = (error.reason(), error.message());
        match error {
            // What the API server did not say tells nothing of the endpoint.
            ServiceError::Read { .. } | ServiceError::ReadTimedOut { .. } => {
                Self::Held(hold(reason, format!("{message}."), Some(STARTING_RETRY)))
            }
            ServiceError::NotAllowed { .. } => Self::Failed { reason, kind: FailureKind::Other, message },
            ServiceError::NotFound { .. }
            | ServiceError::ExternalName { .. }
            | ServiceError::NoSelector { .. }
            | ServiceError::PortNotFound { .. }
            | ServiceError::NoPods { .. }
            | ServiceError::Uri(_) => Self::Failed { reason, kind: FailureKind::Endpoint, message },
        }
    }
}

/// Tells the operator in full, who may see which address a name has.
pub(super) fn not_allowed(namespace: &str, webhook: &str, error: &(dyn Error + 'static)) {
    tracing::info!(namespace, webhook, error, "the rules of the pool do not allow where a Webhook leads");
}
