//! Why a request got no complete answer: in one word for metrics and conditions,
//! in a sentence for the tenant, and in full for the operator's log.

use std::{error::Error, io, time::Duration};

use rustls::CertificateError;

use super::{
    connector::{CONNECT_TIMEOUT, ConnectError, TLS_TIMEOUT},
    resolver::{ADDRESSES_MAX, ResolveError},
};
use crate::api::Reason;

type BoxError = Box<dyn Error + Send + Sync>;

/// What went wrong, without detail that a tenant must not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The name has no address.
    NameNotResolved,
    /// The name has more addresses than are accepted.
    TooManyAddresses,
    /// The policy forbids where the destination leads.
    NotAllowed,
    /// No connection in time.
    ConnectTimedOut,
    /// No way to the host.
    Unreachable,
    /// The host refused the connection.
    Refused,
    /// The certificate was refused.
    Certificate(CertificateFailure),
    /// The TLS handshake failed otherwise.
    Tls,
    /// The TLS handshake did not end in time.
    TlsTimedOut,
    /// No answer within the budget.
    AnswerTimedOut(Duration),
    /// An answer began and did not end within the budget.
    BodyTimedOut(Duration),
    /// The connection ended before the answer did.
    Closed,
    /// The answer's headers are too long or too many.
    HeadersTooLong,
    /// The answer is not HTTP.
    Protocol,
    /// A header of the request cannot be sent.
    Header,
    /// A mistake of ours.
    Internal,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFailure {
    /// It is no longer valid.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It is for another name.
    WrongName,
    /// No trusted authority signed it.
    UnknownIssuer,
    /// It was revoked.
    Revoked,
    /// Anything else.
    Other,
}

/// Why a request got no complete answer. `Display` and the sources are for the
/// operator's log and may name addresses; [`EgressError::message`] is for the
/// tenant.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {host} ({failure:?})")]
pub struct EgressError {
    host: String,
    failure: Failure,
    #[source]
    source: Option<BoxError>,
}

impl EgressError {
    pub(super) fn new(host: &str, failure: Failure) -> Self {
        Self { host: host.to_owned(), failure, source: None }
    }

    pub(super) fn because(host: &str, failure: Failure, source: impl Into<BoxError>) -> Self {
        Self { host: host.to_owned(), failure, source: Some(source.into()) }
    }

    /// What the connector reports.
    pub(super) fn from_connect(host: &str, source: ConnectError) -> Self {
        Self::because(host, classify_connect(&source), source)
    }

    /// What hyper reports from the request to the end of the answer's body.
    pub(super) fn from_exchange(host: &str, source: hyper::Error) -> Self {
        Self::because(host, classify_exchange(&source), source)
    }

    /// What went wrong.
    pub fn failure(&self) -> Failure {
        self.failure
    }

    /// The reason in the status of the Webhook.
    pub fn reason(&self) -> Reason {
        match self.failure {
            Failure::NameNotResolved | Failure::TooManyAddresses => Reason::NameNotResolved,
            Failure::NotAllowed => Reason::DestinationNotAllowed,
            Failure::ConnectTimedOut | Failure::Unreachable => Reason::ConnectTimedOut,
            Failure::Refused => Reason::ConnectionRefused,
            Failure::Certificate(_) => Reason::CertificateInvalid,
            Failure::Tls | Failure::TlsTimedOut => Reason::TlsFailed,
            Failure::AnswerTimedOut(_) => Reason::AnswerTimedOut,
            Failure::BodyTimedOut(_) => Reason::BodyTimedOut,
            Failure::Closed => Reason::ConnectionClosed,
            Failure::HeadersTooLong => Reason::HeadersTooLong,
            Failure::Protocol => Reason::ProtocolError,
            Failure::Header => Reason::InvalidHeader,
            Failure::Internal => Reason::Internal,
        }
    }

    /// The sentence in the status of the Webhook: names the host and nothing that
    /// the endpoint, its name server or our network told.
    pub fn message(&self) -> String {
        let host = &self.host;
        match self.failure {
            Failure::NameNotResolved => {
                format!("the name {host} could not be resolved: see whether it is spelled right and exists in DNS")
            }
            Failure::TooManyAddresses => {
                format!("the name {host} has more than {ADDRESSES_MAX} addresses: give it fewer in DNS")
            }
            Failure::NotAllowed => format!(
                "the rules of the DeliveryPool do not allow {host}: ask the admins of the pool to allow it, or use serviceRef"
            ),
            Failure::ConnectTimedOut => format!(
                "no connection to {host} came about in time ({CONNECT_TIMEOUT:?}): see whether it is up and whether a firewall drops packets from the cluster"
            ),
            Failure::Unreachable => {
                format!("there is no way to {host} from the cluster: see whether it is up and its network is connected")
            }
            Failure::Refused => {
                format!("{host} refused the connection: see whether the receiver runs and listens on this port")
            }
            Failure::Certificate(certificate) => certificate.message(host),
            Failure::Tls => {
                format!("the TLS handshake with {host} failed: see whether it speaks TLS 1.2 or later on this port")
            }
            Failure::TlsTimedOut => format!(
                "the TLS handshake with {host} did not end in time ({TLS_TIMEOUT:?}): see whether it speaks TLS on this port"
            ),
            Failure::AnswerTimedOut(budget) => format!(
                "{host} took the connection and did not answer within {}: a receiver should answer first and work later",
                whole_seconds(budget)
            ),
            Failure::BodyTimedOut(budget) => format!(
                "{host} began an answer and did not end it within {}: set Content-Length, or close the body",
                whole_seconds(budget)
            ),
            Failure::Closed => format!(
                "{host} closed the connection before its answer was complete: see whether the receiver crashes on this request"
            ),
            Failure::HeadersTooLong => {
                format!(
                    "the headers of the answer of {host} are longer than 16 KiB or more than 100: send fewer headers"
                )
            }
            Failure::Protocol => {
                format!("what {host} answered is not HTTP: see whether the port is that of the receiver")
            }
            Failure::Header => {
                "a header of the request cannot be sent: see spec.headers and spec.headersFrom".to_owned()
            }
            Failure::Internal => {
                format!("the request to {host} could not be made; the log of the delivery pod has the detail")
            }
        }
    }
}

/// What is left of a budget differs a little each time; a message that differs
/// too would be a write to the API server each time.
fn whole_seconds(budget: Duration) -> String {
    format!("{}s", budget.as_millis().div_ceil(1000))
}

impl CertificateFailure {
    fn message(self, host: &str) -> String {
        match self {
            Self::Expired => format!("the certificate of {host} has expired: renew it"),
            Self::NotYetValid => format!("the certificate of {host} is not valid yet: see the clock of who issued it"),
            Self::WrongName => format!("the certificate of {host} is for another name: have it name {host}"),
            Self::UnknownIssuer => format!(
                "the certificate of {host} is not signed by an authority that is trusted: give its authority in spec.tls.caRef"
            ),
            Self::Revoked => format!("the certificate of {host} was revoked: replace it"),
            Self::Other => format!("the certificate of {host} cannot be used: replace it"),
        }
    }
}

fn classify_connect(error: &ConnectError) -> Failure {
    match error {
        ConnectError::NoHost => Failure::Internal,
        ConnectError::Resolve(ResolveError::TooMany(_)) => Failure::TooManyAddresses,
        ConnectError::Resolve(_) => Failure::NameNotResolved,
        ConnectError::Forbidden(_) | ConnectError::Peer(_) => Failure::NotAllowed,
        ConnectError::NoAddress => Failure::NameNotResolved,
        ConnectError::TimedOut => Failure::ConnectTimedOut,
        ConnectError::Dial { source, .. } => match source.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::TimedOut => Failure::ConnectTimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Failure::Closed,
            _ => Failure::Unreachable,
        },
        ConnectError::Tls(source) => classify_tls(&**source).unwrap_or(Failure::Tls),
        ConnectError::TlsTimedOut => Failure::TlsTimedOut,
    }
}

fn classify_tls(error: &(dyn Error + 'static)) -> Option<Failure> {
    Some(match cause::<rustls::Error>(error)? {
        rustls::Error::InvalidCertificate(error) => Failure::Certificate(classify_certificate(error)),
        rustls::Error::NoCertificatesPresented => Failure::Certificate(CertificateFailure::Other),
        _ => Failure::Tls,
    })
}

fn classify_certificate(error: &CertificateError) -> CertificateFailure {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => CertificateFailure::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => CertificateFailure::NotYetValid,
        E::NotValidForName | E::NotValidForNameContext { .. } => CertificateFailure::WrongName,
        // A bad signature is what an authority of the same name and another key
        // looks like: one that was made anew.
        E::UnknownIssuer | E::BadSignature => CertificateFailure::UnknownIssuer,
        E::Revoked => CertificateFailure::Revoked,
        _ => CertificateFailure::Other,
    }
}

fn classify_exchange(error: &(dyn Error + 'static)) -> Failure {
    // TLS 1.3 lets a server refuse our certificate after the handshake.
    if let Some(failure) = classify_tls(error) {
        return failure;
    }
    match cause::<hyper::Error>(error) {
        Some(error) if error.is_parse_too_large() => Failure::HeadersTooLong,
        Some(error) if error.is_parse() => Failure::Protocol,
        Some(error) if error.is_user() => Failure::Internal,
        // The rest speaks of the connection: closed, reset, cut short.
        _ => Failure::Closed,
    }
}

/// The first cause of this type. `io::Error` hides the error that it wraps from
/// `source`, so it is asked by `get_ref`.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_same_whatever_is_left_of_the_budget() {
        let message = |ms| EgressError::new("a.example", Failure::AnswerTimedOut(Duration::from_millis(ms))).message();
        assert_eq!(message(14_001), message(15_000));
        assert!(message(15_000).contains("within 15s"), "{}", message(15_000));
    }

    #[test]
    fn a_cause_is_found_through_the_errors_that_hide_it() {
        let inner = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        let error = ConnectError::Tls(Box::new(wrapped));
        assert_eq!(classify_connect(&error), Failure::Certificate(CertificateFailure::Expired));
        assert!(cause::<hyper::Error>(&error).is_none());
    }
}
