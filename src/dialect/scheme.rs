//! The signature of each dialect, as data.

use crate::api::webhook::Dialect;

/// How a request is signed. Every scheme is an HMAC-SHA256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Header of the signature.
    pub header: &'static str,
    /// Header of the previous key's signature, where `header` has room for one only.
    pub previous_header: Option<&'static str>,
    /// Header of the id that is the same in every attempt.
    pub id_header: Option<&'static str>,
    /// Header of the time of the attempt, in Unix seconds.
    pub time_header: Option<&'static str>,
    /// What is signed.
    pub content: Content,
    /// How the signature is written.
    pub encoding: Encoding,
    /// What stands before each signature.
    pub prefix: &'static str,
}

/// What is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The body alone.
    Body,
    /// `id.timestamp.body`: the receiver can refuse what is old.
    IdTimeBody,
}

/// How a signature is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Lower-case hexadecimal.
    Hex,
    /// Standard base64 with padding.
    Base64,
}

const STANDARD_WEBHOOKS: Scheme = Scheme {
    header: "webhook-signature",
    previous_header: None,
    id_header: Some("webhook-id"),
    time_header: Some("webhook-timestamp"),
    content: Content::IdTimeBody,
    encoding: Encoding::Base64,
    prefix: "v1,",
};

const IMPROVADO: Scheme = Scheme {
    header: "X-Improvado-Signature",
    previous_header: Some("X-Improvado-Signature-Previous"),
    id_header: Some("X-Improvado-Idempotency-Key"),
    time_header: None,
    content: Content::Body,
    encoding: Encoding::Hex,
    prefix: "",
};

const ANALYTICS: Scheme = Scheme {
    header: "X-Webhook-Signature",
    previous_header: Some("X-Webhook-Signature-Previous"),
    id_header: None,
    time_header: None,
    content: Content::Body,
    encoding: Encoding::Hex,
    prefix: "sha256=",
};

const IMPIRA: Scheme = Scheme {
    header: "impira-signature",
    previous_header: Some("impira-signature-previous"),
    id_header: None,
    time_header: None,
    content: Content::Body,
    encoding: Encoding::Hex,
    prefix: "",
};

/// The signature of a dialect; none for CloudEvents, whose specification has
/// none. (It names bearer tokens instead: `headersFrom` carries those.)
pub const fn of(dialect: Dialect) -> Option<&'static Scheme> {
    match dialect {
        Dialect::StandardWebhooks => Some(&STANDARD_WEBHOOKS),
        Dialect::Improvado => Some(&IMPROVADO),
        Dialect::Analytics => Some(&ANALYTICS),
        Dialect::Impira => Some(&IMPIRA),
        Dialect::CloudEvents => None,
    }
}
