//! Every reason that a condition or an Event of Posthorn may give, with its
//! meaning and its cure. A reason without a cure does not compile.

use std::fmt;

/// What a user reads about a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What the reason means.
    pub meaning: &'static str,
    /// What to do about it.
    pub cure: &'static str,
}

macro_rules! reasons {
    ($($name:ident, $meaning:literal, $cure:literal;)+) => {
        /// Why a condition is as it is, in one word of CamelCase.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum Reason {
            $(#[doc = $meaning] $name,)+
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word in `reason`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What the reason means and what to do about it.
            pub const fn explanation(self) -> Explanation {
                match self { $(Self::$name => Explanation { meaning: $meaning, cure: $cure },)+ }
            }
        }
    };
}

reasons! {
    Verified, "The endpoint proved that it wants events.", "Nothing to do.";
    NotRequired, "This way of verification asks the endpoint nothing, so it counts as verified.", "Nothing to do.";
    Accepted, "The spec is well formed.", "Nothing to do.";
    Programmed, "The delivery pods have this generation of the object in their index.", "Nothing to do.";
    Ready, "Everything that this object needs is in place.", "Nothing to do.";
    WebhookFound, "The Webhook that the Subscription names exists.", "Nothing to do.";
    Unverified, "The endpoint has not been asked yet whether it wants events.", "Wait: the first check follows by itself.";
    VerificationPending, "The endpoint is being asked and has not given the right answer yet.", "Read the message of the condition Verified; checks go on by themselves.";
    VerificationFailed, "The endpoint gave no right answer for too long.", "Mend the receiver. It is asked again every 30 minutes; set the annotation posthorn.dev/verify-requested-at to any new value to be asked at once.";
    BodyMismatch, "The endpoint answered with success, but the answer was not the challenge.", "Make the receiver answer with exactly the challenge that it got. Often the route is served by a web page and not by the handler.";
    ProofMissing, "The answer repeats the challenge but has no proof that the receiver holds the key.", "Make the receiver answer JSON with challenge and proof, proof being the base64 HMAC-SHA256 of the challenge under the signing key.";
    ProofMismatch, "The answer's proof was made with another key.", "Give the receiver the key of the Secret in status.secretName and compute proof as the base64 HMAC-SHA256 of the challenge.";
    OriginNotAllowed, "The answer to OPTIONS did not carry a WebHook-Allowed-Origin that fits.", "Make the receiver answer OPTIONS with WebHook-Allowed-Origin set to the WebHook-Request-Origin that it got, or to *.";
    UnexpectedStatus, "The endpoint answered with a status code other than 2xx.", "Look at the receiver's log for this request; the status code is in the message.";
    RedirectRefused, "The endpoint answered with a redirect, and redirects are never followed.", "Put the final URL into the Webhook.";
    AnswerTimedOut, "The endpoint took the connection and did not answer in time.", "A receiver should answer first and work later; see whether it is overloaded, or raise the time-out.";
    BodyTimedOut, "The endpoint began an answer and did not end it in time.", "Make the receiver end its answer: set Content-Length, or close the body.";
    BodyTooLong, "The endpoint's answer was longer than what is read of it.", "Make the receiver answer with the challenge alone.";
    HeadersTooLong, "The headers of the endpoint's answer were longer than 16 KiB.", "Make the receiver send fewer headers.";
    ConnectTimedOut, "No connection to the endpoint came about in time.", "See whether the host is up and whether a firewall drops packets from the cluster.";
    ConnectionRefused, "The endpoint's host refused the connection.", "See whether the receiver runs and listens on this port.";
    ConnectionClosed, "The endpoint closed the connection before its answer was complete.", "See whether the receiver crashes on this request; its log should say.";
    CertificateInvalid, "The endpoint's certificate was refused.", "Renew the certificate, have it name the host, or give its authority in spec.tls.caRef.";
    TlsFailed, "The TLS handshake with the endpoint failed.", "See whether the endpoint speaks TLS 1.2 or later on this port.";
    ProtocolError, "What the endpoint answered is not HTTP.", "See whether the URL's port is that of the receiver.";
    NameNotResolved, "The host name of the endpoint could not be resolved.", "See whether the name is spelled right and exists in DNS.";
    DestinationNotAllowed, "The pool's rules do not allow the address of the endpoint.", "This is a setting of the platform, not of your endpoint. Ask the admins of the pool to allow it, or use serviceRef.";
    InvalidUrl, "The URL of the endpoint cannot be used.", "Write an absolute https URL without user name, password and fragment.";
    HttpNotAllowed, "The URL is http, and the pool does not allow http.", "Use https, or ask the admins of the pool to allow http.";
    MethodNotAllowed, "The pool does not allow this way of verification.", "Choose one of the ways that the pool allows; the message names them.";
    InvalidHeader, "A header of the Webhook cannot be sent.", "Change the header that the message names.";
    Gone, "The endpoint answered 410: it wants no events any more.", "Change the spec, or set the annotation posthorn.dev/verify-requested-at, to ask it again.";
    VerificationExpired, "No check of the endpoint succeeded for so long that the verification ended.", "Set the annotation posthorn.dev/verify-requested-at, or wait for the next check.";
    SecretNotFound, "A Secret that the object names does not exist.", "Make the Secret in the same namespace. It is looked for again by itself.";
    SecretKeyMissing, "A Secret that the object names lacks the key.", "Add the key to the Secret's data, or name another key.";
    SecretEmpty, "The value in the Secret is empty.", "Put a value into the Secret.";
    SecretTooShort, "The signing key in the Secret is too short.", "Use a key of at least 24 bytes.";
    SecretTooLong, "The value in the Secret is too long.", "Use a shorter value; the message names the limit.";
    SecretTypeForbidden, "The Secret is of a type that must not be used for this.", "Use a Secret of type Opaque or posthorn.dev/*.";
    SecretInvalid, "The value in the Secret cannot be used.", "Mend the value as the message says.";
    SecretNotReadable, "Posthorn may not read the Secret.", "Give Posthorn's ServiceAccount get on this Secret; the chart's value rbac.secrets decides where it may read.";
    SecretUnavailable, "The API server did not give a Secret that the object names.", "Wait: it is asked for again by itself. If it lasts, see whether the API server is up.";
    ServiceNotFound, "The Service that serviceRef names does not exist.", "Make the Service in the same namespace, or name another one.";
    ServiceNotUsable, "The Service that serviceRef names cannot be used.", "Use a Service with a selector whose Pods are in the same namespace, and one of its ports.";
    ServiceWithoutPods, "No ready Pod stands behind the Service that serviceRef names.", "See whether the Pods of the receiver are ready.";
    Suspended, "spec.suspend is true: nothing is verified and nothing is sent.", "Set spec.suspend to false.";
    PoolNotFound, "The DeliveryPool that the namespace names does not exist.", "Correct the namespace's label posthorn.dev/pool, or make the pool.";
    PoolNotReady, "No pod of the DeliveryPool answers.", "See the DeliveryPool's condition Ready and its pods.";
    NotProgrammed, "The delivery pods do not have this generation of the object yet.", "Wait: it takes a moment. If it lasts, see the DeliveryPool's condition Ready.";
    InvalidSpec, "The spec says something that cannot work.", "Change what the message names.";
    WebhookNotFound, "The Webhook that the Subscription names does not exist.", "Make the Webhook in the same namespace, or name another one.";
    WebhookNotVerified, "The Webhook has not been verified, so nothing is sent yet.", "See the condition Verified of the Webhook.";
    Healthy, "The endpoint takes what it is sent.", "Nothing to do.";
    NothingSent, "Nothing was sent to the endpoint yet.", "Nothing to do: it is sent the next event that a Subscription wants.";
    DeliveryFailing, "The last attempts to deliver failed; they are repeated on the schedule.", "See whether the receiver is up and what its log says; status.delivery has the last status code.";
    CircuitOpen, "The endpoint failed so many times in a row that sending pauses.", "Mend the receiver. One Delivery is tried from time to time, and sending goes on by itself when it succeeds; what waits uses up no attempt.";
    TooManyRequests, "The endpoint answered 429: it wants a pause.", "Nothing is sent until the time in the message. Set spec.delivery.rateLimit to what the receiver takes, or the annotation posthorn.dev/reload to go on at once.";
    Exhausted, "Every attempt of the schedule failed, and the Delivery was given up.", "Mend the receiver, then apply a Replay.";
    DeadOn, "The endpoint gave an answer that spec.delivery.deadOn lists, and the Delivery was given up.", "See why the receiver refuses this event. When it takes it, apply a Replay.";
    Expired, "The event was owed for longer than spec.delivery.maxAge, and the Delivery was given up.", "Find out what held it (the conditions of the Webhook say it), then apply a Replay.";
    BacklogFull, "More was owed to the Webhook than may wait, and the oldest Deliveries were given up.", "Mend the receiver, or let it take more at once (spec.delivery.concurrency, rateLimit), then apply a Replay.";
    Corrupt, "The event was damaged on disk.", "It cannot be sent. Publish it again, and see whether the volume of the DeliveryPool is sound.";
    Unrenderable, "The event cannot be brought into the form that the Webhook wants.", "Look at the event and at spec.dialect; the event stays for another Webhook.";
    CardLimitReached, "More Deliveries were given up than there may be DeadLetters.", "They are kept all the same: a Replay with deadLetters.all reaches them. Mend the receiver, or raise spec.deadLetter.limit.";
    ReplayRunning, "The Replay makes Deliveries owed again.", "Wait, or set spec.cancel to end it.";
    ReplaySending, "Everything that matched is owed again, and not all of it has ended.", "Wait; the conditions of the Webhook say what holds it.";
    Completed, "Everything that the Replay matched has ended.", "Nothing to do; status.dead says how many were given up again.";
    DryRun, "The Replay only counted what it would send.", "Delete it and apply it without dryRun to send.";
    Cancelled, "The Replay was ended by spec.cancel.", "Apply another Replay for the rest.";
    AlreadyRun, "A Replay of this name and spec ran before; these are its counts.", "Give spec.runId another value to run it again.";
    NothingMatched, "The Replay matched no Delivery.", "See whether spec.webhookRef and what is to be sent are right, and whether retention has removed the events.";
    DuplicateType, "Another EventType of this namespace describes the same type.", "Delete one of the two; the message names the other.";
    StoreMismatch, "The pod's volume does not have the store that is recorded for it.", "Bring the right volume back, or restore a backup. To go on with what the volume has, set the annotation posthorn.dev/accept-store on the DeliveryPool to the id in the message; events of the other store are then not delivered.";
    StoreFull, "The store is nearly full: new events are refused with 507, deliveries go on.", "Make it larger (spec.store.size), or keep less (spec.store.retention).";
    StoreFailed, "The store could not be read or written.", "See the log of the delivery pod and whether its volume is sound.";
    PodsStarting, "The pods of the pool are being made or replaced.", "Wait; see the pods if it lasts.";
    PodsReady, "All pods of the pool are ready.", "Nothing to do.";
    ApplyFailed, "The API server refused a part of the pool.", "Read the message; it holds the API server's answer.";
    Internal, "Something went wrong inside Posthorn.", "Look at the controller's log for this object.";
}

/// Something that keeps an object from being used, for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it is, in one word.
    pub reason: Reason,
    /// What it is and what to do.
    pub message: String,
}

impl Problem {
    /// A problem of these two.
    pub const fn new(reason: Reason, message: String) -> Self {
        Self { reason, message }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_camel_case_and_explains_itself_in_sentences() {
        for reason in Reason::ALL {
            let name = reason.as_str();
            assert!(
                name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric()),
                "{name}"
            );
            let Explanation { meaning, cure } = reason.explanation();
            for sentence in [meaning, cure] {
                assert!(
                    sentence.ends_with('.') && !sentence.contains('!') && sentence.len() > 10,
                    "{name}: {sentence}"
                );
            }
        }
    }
}
